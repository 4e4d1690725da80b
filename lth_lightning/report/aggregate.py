"""The figures of several networks, pooled once for every table, chart and sentence of a report."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from lth_lightning.report.reported import reported
from lth_lightning.runs.rows import VARIANTS, Record, Row
from lth_lightning.runs.run import RunFiles


class Value(NamedTuple):
    """A figure of one network, with the number of its run and its replicate."""

    value: float
    run: int
    replicate: int


@dataclass(frozen=True)
class Spread:
    """One figure over the `n` networks (runs, replicates) for which it is known; `each` lists them."""

    mean: float
    low: float
    high: float
    n: int
    each: tuple[Value, ...] = field(default=(), compare=False)

    @property
    def by_run(self) -> dict[int, float]:
        """The figure of each run: the mean over its replicates."""
        runs: dict[int, list[float]] = {}
        for value, run, _ in self.each:
            runs.setdefault(run, []).append(value)
        return {run: sum(values) / len(values) for run, values in runs.items()}


Curve = dict[int, Spread]
"""A figure by round, or by step."""


def by_round(
    runs: Sequence[Iterable[Record]],
    figure: Callable[[Record], float | None],
    key: Callable[[Any], int] = lambda row: row.round,
) -> Curve:
    """Pool `figure` over runs and replicates, by round or by another `key`, where it is known and finite.

    `runs` holds the rows of each run.
    """
    found: dict[int, list[Value]] = {}
    for number, rows in enumerate(runs):
        for row in rows:
            value = figure(row)
            if value is not None and math.isfinite(value):
                found.setdefault(key(row), []).append(Value(value, number, row.replicate))
    return {at: _spread(each) for at, each in sorted(found.items())}


def _spread(each: Sequence[Value]) -> Spread:
    values = [one.value for one in each]
    return Spread(sum(values) / len(values), min(values), max(values), len(values), tuple(each))


def of_variant(rows: Iterable[Record], variant: str) -> list[Record]:
    """Select the rows of one variant."""
    return [row for row in rows if row.variant == variant]


def densities(rows: Iterable[Row]) -> dict[int, float]:
    """The density of each round, which all variants of the round share."""
    return {row.round: row.density for row in rows}


class PooledRuns:
    """Repetitions of one experiment, pooled over runs and replicates.

    Args:
        runs: they differ by seed only; see `check_comparable`.
        label: what distinguishes the experiment in a comparison.
        values: the values of the settings compared by.
    """

    def __init__(self, runs: Sequence[RunFiles], label: str = "", values: tuple[Any, ...] = ()) -> None:
        self.runs, self.label, self.values = list(runs), label, values
        rows = sorted((row for run in runs for row in run.rows), key=lambda row: row.round)
        self.prunable = rows[0].prunable  # weights
        self.density, self.kept = densities(rows), {row.round: row.kept for row in rows}
        self.trained = self._curves(lambda row: row.kept)  # how many networks each variant and round has
        self.reported = reported(runs)
        self.scores = self._curves(self.reported.value)  # at the end of training
        self.early_stop = self._curves(lambda row: row.early_stop_step)
        self.dense_score, self.dense_stop = self._of_dense(self.scores), self._of_dense(self.early_stop)
        self.ends = by_round([run.rows for run in runs], lambda row: row.steps or None)  # steps of training

    def _curves(self, figure: Callable[[Row], float | None]) -> dict[str, Curve]:
        """Apply `by_round` to each variant for which `figure` is known, in the order of `VARIANTS`."""
        found = {v: by_round([of_variant(run.rows, v) for run in self.runs], figure) for v in VARIANTS}
        return {variant: curve for variant, curve in found.items() if curve}

    def _of_dense(self, curves: Mapping[str, Curve]) -> Spread | None:
        """The dense network of each run: round 0, if it keeps every weight. Runs from ticket files have none."""
        return curves.get("ticket", {}).get(0) if self.density.get(0) == 1 else None
