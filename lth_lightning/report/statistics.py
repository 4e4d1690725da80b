"""Statistics over several runs: differences paired by run, speed-ups, and the smallest density that matches.

The two networks of a pair come from the same run and round: they share starting weights, data order and split.
Replicates of a control are first averaged within their run, so that n counts runs.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from lth_lightning.report.aggregate import Curve, PooledRuns, Spread
from lth_lightning.runs.rows import VARIANTS
from lth_lightning.runs.score import Score

CONFIDENCE = 0.95

DENSE = "dense"
"""The dense network of a run, as a control for the pruned networks of every round."""


@dataclass(frozen=True)
class Difference:
    """The mean difference of n pairs, and its 95 % interval from `low` to `high` (None for one pair)."""

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

    The interval assumes roughly normal differences. It is not adjusted for multiple comparisons.

    Args:
        values: one difference per run, at least one.
    """
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Difference(mean, None, None, 1)
    from scipy.special import stdtrit  # takes 0.3 s, so only when there are repetitions

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    margin = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * deviation / math.sqrt(n)
    return Difference(mean, mean - margin, mean + margin, n)


def paired_differences(experiment: PooledRuns, variant: str, control: str) -> dict[int, Difference]:
    """The score of `variant` minus that of `control` (a variant, or `DENSE`) at the end of training, by round."""
    ours = experiment.scores.get(variant, {})
    dense = _in_every_round(experiment, experiment.dense_score)
    theirs = dense if control == DENSE else experiment.scores.get(control, {})
    return {number: difference([one - other for one, other in found]) for number, found in _pairs(ours, theirs)}


def speed_ups(experiment: PooledRuns, variant: str) -> Curve:
    """How many times sooner than the dense network `variant` reaches its early stop, by round.

    The dense network's early-stop step divided by the variant's, paired by run: geometric mean, least and greatest over
    runs. A stop at step 0 has no ratio and is left out.
    """
    dense = _in_every_round(experiment, experiment.dense_stop)
    ratios = {
        number: [theirs / ours for ours, theirs in found if ours and theirs]
        for number, found in _pairs(experiment.early_stop.get(variant, {}), dense)
    }
    return {number: geometric_spread(values) for number, values in ratios.items() if values}


def _in_every_round(experiment: PooledRuns, dense: Spread | None) -> Curve:
    """The dense network's figure, repeated in every round but its own."""
    return {number: dense for number, density in experiment.density.items() if density < 1} if dense else {}


def _pairs(ours: Curve, theirs: Curve) -> Iterator[tuple[int, list[tuple[float, float]]]]:
    """Yield by round the two figures of each run that has both."""
    for number in sorted(ours.keys() & theirs.keys()):
        one, other = ours[number].by_run, theirs[number].by_run
        if found := [(one[run], other[run]) for run in one if run in other]:
            yield number, found


def geometric_spread(values: Sequence[float]) -> Spread:
    """Geometric mean, least and greatest of positive values: the mean of twice and half as fast is equally fast."""
    mean = math.exp(math.fsum(map(math.log, values)) / len(values))
    return Spread(mean, min(values), max(values), len(values))


def smallest_match(
    score: Score, curve: Mapping[int, Spread], density: Mapping[int, float], dense: Spread
) -> float | None:
    """The smallest density at which a variant matches the dense network, even if it missed at a larger one.

    Args:
        score: the score, which says what matches.
        curve: the variant's scores by round.
        density: the density by round.
        dense: the dense network's score.

    Returns:
        The density, or None if it matches at none.
    """
    matching = (density[number] for number, value in curve.items() if score.matches(value.mean, dense.mean))
    return min(matching, default=None)


@dataclass(frozen=True)
class Statistic:
    """One variant in one round over all runs, a line of statistics.csv. An empty field means not known.

    `score` is the runs' score, and its columns are named after it (`test_acc`, `test_acc_min`). Accuracies and their
    differences are fractions (0.01 is a point). `_min` and `_max` are the least and the greatest, `_low95` and
    `_high95` the ends of the 95 % interval. `n` counts networks, `…_n` runs.
    `ticket_minus_variant` is the paired difference between the ticket and this control, `variant_minus_dense` between
    this network and the dense one. `speedup` is the geometric mean of the dense network's early-stop step divided by
    this one's. `matches_dense` is whether the mean is at most `Score.allowance` worse than the dense network's: for an
    accuracy half a point.
    """

    round: int
    density: float
    variant: str
    n: int
    score: float | None
    score_min: float | None
    score_max: float | None
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


def statistic_columns(experiment: PooledRuns) -> list[str]:
    """The columns of statistics.csv: the fields of `Statistic`, with the score's name."""
    column = experiment.reported.column
    return [field.name.replace("score", column) for field in fields(Statistic)]


def statistics(experiment: PooledRuns) -> list[Statistic]:
    """Compute a `Statistic` for each trained round and variant, in order."""
    dense, found, matches = experiment.dense_score, [], experiment.reported.score.matches
    for variant, trained in experiment.trained.items():
        scores, stop = experiment.scores.get(variant, {}), experiment.early_stop.get(variant, {})
        over_control = paired_differences(experiment, "ticket", variant) if variant != "ticket" else {}
        over_dense, speed_up = paired_differences(experiment, variant, DENSE), speed_ups(experiment, variant)
        for number, networks in trained.items():
            found.append(
                Statistic(
                    number, experiment.density[number], variant, networks.n,
                    *_ends(scores.get(number)), *_ends(stop.get(number)),
                    *_all(over_control.get(number)), *_all(over_dense.get(number)), *_all(speed_up.get(number)),
                    matches(scores[number].mean, dense.mean) if dense and number in scores else None,
                )
            )  # fmt: skip
    return sorted(found, key=lambda one: (one.round, VARIANTS.index(one.variant)))


def _ends(value: Spread | None) -> tuple[float | None, float | None, float | None]:
    return (value.mean, value.low, value.high) if value else (None, None, None)


def _all(value: Spread | Difference | None) -> tuple[Any, Any, Any, Any]:
    return (value.mean, value.low, value.high, value.n) if value else (None, None, None, None)
