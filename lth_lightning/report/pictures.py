"""What a ticket looks at: pictures of how many weights each pixel of the image keeps, round by round.

They exist only for networks whose first layer is fully connected, where each weight belongs to a pixel. A convolution's
kernel passes over the whole image, so no pixel is left out.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lth_lightning.report.aggregate import of_variant
from lth_lightning.report.figures import CARD, CARD_LOOK
from lth_lightning.runs.folder import RunFolder
from lth_lightning.runs.rows import LayerRow
from lth_lightning.tickets.packed_file import read_facts, read_mask

Picture = np.ndarray
"""Weights kept, (height, width)."""
PANELS = 8


def kept_per_pixel(mask: np.ndarray, image_shape: Sequence[int]) -> Picture:
    """Count the first layer's weights that each pixel keeps, over all units and channels.

    Args:
        mask: mask of a fully connected layer's weight, (units, channels * height * width), True = kept.
        image_shape: (channels, height, width).

    Returns:
        Counts, (height, width).
    """
    return mask.sum(axis=0).reshape(tuple(image_shape)).sum(axis=0)


def chosen(rounds: Sequence[int], at_most: int = PANELS) -> list[int]:
    """Choose the first and the last round, and others evenly spaced between them."""
    places = np.linspace(0, len(rounds) - 1, min(at_most, len(rounds))).round()
    return [rounds[int(place)] for place in places]


def input_pictures(run: Path, layers: Sequence[LayerRow]) -> dict[int, Picture]:
    """`kept_per_pixel` of some of a run's tickets, by round; empty unless the first layer is fully connected.

    Args:
        run: the run's folder. Missing tickets are skipped.
        layers: the run's rows of layers.csv, the first layer first in each round.

    Raises:
        TicketError: a ticket cannot be read.
    """
    tickets, folder = of_variant(layers, "ticket"), RunFolder(run)
    rounds = [number for number in dict.fromkeys(row.round for row in tickets) if folder.ticket(number).is_file()]
    if not rounds:
        return {}
    first, facts = tickets[0].layer, read_facts(folder.ticket(rounds[0]))
    shape, image = facts["shapes"].get(first), facts.get("input_shape")
    if shape is None or image is None or len(shape) != 2 or shape[1] != np.prod(image):
        return {}
    sparse = [number for number in rounds if number > 0] or rounds
    return {n: kept_per_pixel(read_mask(folder.ticket(n), first, shape), image) for n in chosen(sparse)}


def looks_figure(
    pictures: Mapping[int, Picture], densities: Mapping[int, float], title: str = "", *, card: bool = False
) -> Figure | None:
    """Draw the pictures side by side, each on its own scale, since only the contrast between pixels matters.

    Args:
        pictures: the pictures by round.
        densities: the whole network's density by round, in [0, 1].
        title: the title of the figure.
        card: whether to draw it for a small card, without title and scales.

    Returns:
        The figure, or None if there are no pictures.
    """
    if not pictures:
        return None
    columns = min(4, len(pictures))
    lines = -(-len(pictures) // columns)
    size = CARD if card else (2.3 * columns + 0.4, 2.2 * lines + 0.7)
    figure = Figure(figsize=size, dpi=100 if card else 150, layout="constrained")
    if not card:
        heading = f"{title}\nfirst-layer weights kept per pixel" if title else "first-layer weights kept per pixel"
        figure.suptitle(heading, fontsize="medium", parse_math=False)
    for number, (round, picture) in enumerate(pictures.items(), start=1):
        axes = figure.add_subplot(lines, columns, number)
        shown = axes.imshow(picture, cmap="gray", vmin=0, vmax=max(1, picture.max()), interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        kept = f"{100 * densities[round]:.3g} %"
        if card:
            axes.set_title(kept, fontsize=CARD_LOOK["font.size"], pad=2)
            continue
        axes.set_title(f"round {round}, {kept} kept", fontsize="small")
        bar = figure.colorbar(shown, ax=axes, shrink=0.85, ticks=MaxNLocator(4, integer=True))
        bar.ax.tick_params(labelsize="x-small")
    return figure
