"""How variants and experiments look, in every figure and on the page; readable in black and white too."""

from typing import NamedTuple


class Style(NamedTuple):
    """How a variant looks; colours of Okabe and Ito (2008), and a marker and a line of its own without colour."""

    color: str
    marker: str
    line: str | tuple[int, tuple[float, ...]]


STYLES = {
    "ticket": Style("#0072B2", "o", "-"),
    "random_reinit": Style("#D55E00", "s", (0, (5, 1.5))),
    "random_mask": Style("#009E73", "^", (0, (5, 1.5, 1, 1.5))),
    "pruned_only": Style("#CC79A7", "D", (0, (1, 1.5))),
}

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito (2008)
MARKERS = "osD^v<>pX*"
