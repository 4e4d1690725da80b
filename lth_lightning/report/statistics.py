"""What the rows of several runs say together: differences paired by run, speed-ups, how far down a network matches.

Everywhere `runs` are the rows of the runs, run by run. A pair is of one run and one round: its networks share the
weights they started from, the order of their data and the split. Replicates of a control are averaged within their
run first, so that n is a number of runs.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lth_lightning.report.aggregate import Spread, by_round, dense_rows, densities, of_variant, spread
from lth_lightning.runs.rows import VARIANTS, Row

RunRows = Sequence[Row]

CONFIDENCE = 0.95

MATCH_TOLERANCE = 0.005
"""A network matches the dense one when its mean test accuracy is at most this much lower: half a point."""

DENSE = "dense"
"""The dense network of a run, as something to compare the pruned ones of every round with."""


@dataclass(frozen=True)
class Difference:
    """A mean difference of n pairs, and its 95 % interval from `low` to `high`; of one pair there is none."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def margin(self) -> float | None:
        """Half the width of the interval."""
        return None if self.high is None else self.high - self.mean


def difference(values: Sequence[float]) -> Difference:
    """The mean of paired differences with Student's interval, mean ± t(0.975, n - 1) s / √n (Student 1908).

    It holds for differences that are about normal. It is not adjusted for how many comparisons are made.

    Args:
        values: one difference a run, at least one.
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Difference(mean, None, None, 1)
    from scipy.special import stdtrit  # 0.3 s: only who has repetitions waits for it

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    margin = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * deviation / math.sqrt(n)
    return Difference(mean, mean - margin, mean + margin, n)


def paired_differences(runs: Sequence[RunRows], variant: str, control: str) -> dict[int, Difference]:
    """Test accuracy of `variant` less that of `control` (a variant, or `DENSE`) at the end of training, by round."""
    pairs = [(_means(rows, variant, _accuracy), _means(rows, control, _accuracy)) for rows in runs]
    return {
        number: difference(values)
        for number, values in _by_round(
            {number: one[number] - other[number] for number in one if number in other} for one, other in pairs
        ).items()
    }


def speed_ups(runs: Sequence[RunRows], variant: str) -> dict[int, Spread]:
    """How many times sooner than the dense network `variant` reaches its early stop, by round.

    The dense network's early-stop step over the variant's, paired by run; the geometric mean, least and greatest over
    runs. A stop at step 0 has no ratio and is left out.
    """
    pairs = [(_means(rows, DENSE, _stop), _means(rows, variant, _stop)) for rows in runs]
    ratios = _by_round(
        {number: dense[number] / step for number, step in steps.items() if step and dense.get(number)}
        for dense, steps in pairs
    )
    return {number: geometric_spread(values) for number, values in ratios.items()}


def geometric_spread(values: Sequence[float]) -> Spread:
    """Geometric mean, least and greatest of positive values: twice and half as fast are as fast in the mean."""
    mean = math.exp(math.fsum(map(math.log, values)) / len(values))
    return Spread(mean, min(values), max(values), len(values))


def matches(accuracy: float, dense: float) -> bool:
    """Whether a mean test accuracy is at most `MATCH_TOLERANCE` below the dense network's."""
    return accuracy >= dense - MATCH_TOLERANCE - 1e-9  # 1e-9: in floats 0.5047 - 0.005 > 0.4997


def smallest_match(curve: Mapping[int, Spread], density: Mapping[int, float], dense: Spread) -> float | None:
    """The smallest density at which a variant matches the dense network, even if it missed at a larger one.

    Args:
        curve: the variant's test accuracy by round.
        density: that of each round.
        dense: the dense network's test accuracy.

    Returns:
        The density, or None where it matches at none.
    """
    return min((density[number] for number, value in curve.items() if matches(value.mean, dense.mean)), default=None)


@dataclass(frozen=True)
class Statistic:
    """One variant in one round over all runs, a line of statistics.csv. An empty field is what is not known.

    Accuracies and their differences are fractions (0.01 is a point); `_min` and `_max` are the least and the greatest,
    `_low95` and `_high95` the ends of the 95 % interval. `n` counts networks, `…_n` runs.
    `ticket_minus_variant` is the paired difference of the ticket and this control, `variant_minus_dense` that of this
    network and the dense one; `speedup` the dense network's early-stop step over this one's, its geometric mean;
    `matches_dense` says whether the mean test accuracy is at most half a point below the dense network's.
    """

    round: int
    density: float
    variant: str
    n: int
    test_acc: float | None
    test_acc_min: float | None
    test_acc_max: float | None
    early_stop_step: float | None
    early_stop_step_min: float | None
    early_stop_step_max: float | None
    ticket_minus_variant: float | None
    ticket_minus_variant_low95: float | None
    ticket_minus_variant_high95: float | None
    ticket_minus_variant_n: int | None
    variant_minus_dense: float | None
    variant_minus_dense_low95: float | None
    variant_minus_dense_high95: float | None
    variant_minus_dense_n: int | None
    speedup: float | None
    speedup_min: float | None
    speedup_max: float | None
    speedup_n: int | None
    matches_dense: bool | None


def statistics(runs: Sequence[RunRows]) -> list[Statistic]:
    """A `Statistic` for each round and variant that was trained, in their order."""
    rows = [row for run in runs for row in run]
    density = densities(rows)
    dense = spread(row.test_acc for row in dense_rows(rows))
    found = []
    for variant in VARIANTS:
        trained = of_variant(rows, variant)
        accuracy, stop = by_round(trained, _accuracy), by_round(trained, _stop)
        over_control = paired_differences(runs, "ticket", variant) if variant != "ticket" else {}
        over_dense, speed_up = paired_differences(runs, variant, DENSE), speed_ups(runs, variant)
        for number, n in sorted(_counts(trained).items()):
            found.append(
                Statistic(
                    number, density[number], variant, n,
                    *_ends(accuracy.get(number)), *_ends(stop.get(number)),
                    *_all(over_control.get(number)), *_all(over_dense.get(number)), *_all(speed_up.get(number)),
                    matches(accuracy[number].mean, dense.mean) if dense and number in accuracy else None,
                )
            )  # fmt: skip
    return sorted(found, key=lambda one: (one.round, VARIANTS.index(one.variant)))


def _counts(rows: Iterable[Row]) -> dict[int, int]:
    return {number: value.n for number, value in by_round(rows, lambda row: row.kept).items()}


def _ends(value: Spread | None) -> tuple[float | None, float | None, float | None]:
    return (value.mean, value.low, value.high) if value else (None, None, None)


def _all(value: Spread | Difference | None) -> tuple[Any, Any, Any, Any]:
    return (value.mean, value.low, value.high, value.n) if value else (None, None, None, None)


def _accuracy(row: Row) -> float | None:
    return row.test_acc


def _stop(row: Row) -> float | None:
    return row.early_stop_step


def _means(rows: RunRows, variant: str, figure: Callable[[Row], float | None]) -> dict[int, float]:
    """A run's figure by round, the mean over replicates; the dense network's stands in every round but its own."""
    if variant != DENSE:
        return {number: value.mean for number, value in by_round(of_variant(rows, variant), figure).items()}
    dense = spread(figure(row) for row in dense_rows(rows))
    return dict.fromkeys((row.round for row in rows if row.density < 1), dense.mean) if dense else {}


def _by_round(runs: Iterable[Mapping[int, float]]) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for run in runs:
        for number, value in run.items():
            found.setdefault(number, []).append(value)
    return dict(sorted(found.items()))
