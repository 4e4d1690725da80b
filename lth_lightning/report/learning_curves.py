"""Which rounds' learning curves are shown: with many, the curves could not be distinguished."""

import math
from collections.abc import Sequence

from lth_lightning.errors import SettingError
from lth_lightning.report.aggregate import of_variant
from lth_lightning.runs.rows import CurveRow

TICKETS = 4
"""How many tickets a figure shows by default."""
NEAR = 1.25
"""A wanted density fits a round if neither density is more than this many times the other."""


def chosen_rounds(
    points: Sequence[CurveRow], density: dict[int, float], wanted: Sequence[float] | None = None
) -> list[int]:
    """Choose the rounds to show, densest first: those nearest to the densities `wanted`, or by default `TICKETS` rounds
    spread evenly over log density. If at least `TICKETS` rounds have a random reinit, only these are candidates.

    Raises:
        SettingError: no round is near one of `wanted`.
    """
    trained = {row.round for row in of_variant(points, "ticket")} & density.keys()
    if wanted is None:
        controlled = {row.round for row in of_variant(points, "random_reinit")} & trained
        trained = controlled if len(controlled) >= TICKETS else trained
        least = min((density[number] for number in trained), default=1.0)
        wanted = [least ** (place / TICKETS) for place in range(1, TICKETS + 1)]
    elif trained:
        for value in wanted:
            if all(_apart(value, density[number]) > math.log(NEAR) for number in trained):
                there = ", ".join(f"{density[number]:.3g}" for number in sorted(trained))
                raise SettingError(f"--densities: no round is near {value:g}; choose from {there}.")
    nearest = {min(trained, key=lambda number: _apart(value, density[number])) for value in wanted if trained}
    return sorted(nearest, key=lambda number: -density[number])


def _apart(one: float, other: float) -> float:
    return abs(math.log(one / other))
