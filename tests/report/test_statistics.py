"""Paired statistics against SciPy's and against vectors worked out by hand."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lth_lightning.report.aggregate import PooledRuns, Spread
from lth_lightning.report.statistics import (
    DENSE,
    difference,
    geometric_spread,
    paired_differences,
    smallest_match,
    speed_ups,
    statistics,
)
from lth_lightning.runs.rows import Row
from lth_lightning.runs.run import RunFiles
from lth_lightning.runs.score import ACCURACY


def net(
    number: int,
    variant: str,
    accuracy: float | None,
    stop: int | None = None,
    replicate: int = 0,
    kept: int | None = None,
) -> Row:
    """A network of 1,000 weights, half of them pruned a round."""
    kept = 1000 // 2**number if kept is None else kept
    nothing = [None] * 4
    return Row(number, variant, replicate, kept / 1000, kept, 1000, 400, 1.0, *nothing, accuracy, stop, None, None)


def run(tickets: Sequence[float | None], reinits: Sequence[float | None]) -> list[Row]:
    """Accuracies by round."""
    return [
        net(number, variant, accuracy)
        for variant, accuracies in (("ticket", tickets), ("random_reinit", reinits))
        for number, accuracy in enumerate(accuracies)
        if accuracy is not None
    ]


def of(*runs: list[Row]) -> PooledRuns:
    return PooledRuns([RunFiles(Path(str(n)), rows) for n, rows in enumerate(runs)])


@pytest.mark.parametrize("n", [3, 5, 12])
def test_interval_is_that_of_the_paired_t_test(n: int) -> None:
    draw = np.random.default_rng(n)
    ones = draw.normal(0.98, 0.02, n)
    others = ones - draw.normal(0.01, 0.003, n)
    found = difference((ones - others).tolist())
    expected = stats.ttest_rel(ones, others).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    gaps = ones - others
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.95, n - 1, gaps.mean(), stats.sem(gaps)))
    assert (found.mean, found.n) == (pytest.approx(gaps.mean()), n)


def test_interval_by_hand() -> None:
    found = difference([0.01, 0.02, 0.03])  # mean 0.02, s = 0.01; t(0.975, 2) = 4.3027 as tables print it
    assert found.mean == pytest.approx(0.02)
    assert found.margin == pytest.approx(4.3027 * 0.01 / math.sqrt(3), rel=1e-4)
    assert difference([0.01, 0.01, 0.01]).margin == pytest.approx(0, abs=1e-12)
    for few in (
        [0.01],
        [0.01, 0.02],
    ):  # of two, t(0.975, 1) = 12.7: an interval thirteen times as wide as they lie apart
        found = difference(few)
        assert (found.low, found.high, found.margin, found.n) == (None, None, None, len(few))
        assert found.mean == pytest.approx(sum(few) / len(few))


def test_pairs_are_of_one_run_and_one_round() -> None:
    """The runs are far apart, their differences are not: what a comparison of means would drown, pairs show."""
    runs = [run([0.9, 0.7], [None, 0.69]), run([0.9, 0.8], [None, 0.79]), run([0.9, 0.9], [None, 0.89])]
    found = paired_differences(of(*runs), "ticket", "random_reinit")
    assert list(found) == [1]
    assert found[1].mean == pytest.approx(0.01)
    assert found[1].margin == pytest.approx(0, abs=1e-12)
    assert found[1].n == 3


def test_replicates_of_a_control_are_averaged_within_their_run_first() -> None:
    one = [net(1, "ticket", 0.9), *(net(1, "random_reinit", a, replicate=i) for i, a in enumerate((0.6, 0.8, 0.7)))]
    other = [net(1, "ticket", 0.9), net(1, "random_reinit", 0.8)]
    found = paired_differences(of(one, other), "ticket", "random_reinit")[1]
    assert (found.mean, found.n) == (pytest.approx(0.15), 2)  # of 0.2 and 0.1; four networks alike would give 0.175


def test_a_run_without_the_pair_does_not_count() -> None:
    runs = [run([0.9, 0.7, 0.6], [None, 0.69]), run([0.9, None], [None, 0.5]), run([0.9, 0.8], [])]
    found = paired_differences(of(*runs), "ticket", "random_reinit")
    assert {number: (value.mean, value.n) for number, value in found.items()} == {1: (pytest.approx(0.01), 1)}
    unknown = [net(1, "ticket", None), net(1, "random_reinit", 0.5)]
    assert paired_differences(of(unknown), "ticket", "random_reinit") == {}


def test_the_dense_network_stands_against_every_round_but_its_own() -> None:
    runs = [run([0.9, 0.92, 0.8], [None, 0.9]), run([0.8, 0.84, 0.7], [None, 0.8])]
    found = paired_differences(of(*runs), "ticket", DENSE)
    assert {number: value.mean for number, value in found.items()} == pytest.approx({1: 0.03, 2: -0.1})
    assert found[1].n == 2
    assert paired_differences(of(run([None, 0.9], [None, 0.8])), "ticket", DENSE) == {}  # from ticket files: no dense


def test_speed_up_is_the_geometric_mean_of_ratios_within_runs() -> None:
    def timed(dense: int | None, *stops: int | None) -> list[Row]:
        return [net(number, "ticket", 0.9, stop) for number, stop in enumerate((dense, *stops))]

    found = speed_ups(of(timed(400, 100, 0), timed(100, 100, None)), "ticket")
    assert found == {1: Spread(pytest.approx(2.0), 1.0, 4.0, 2)}
    assert speed_ups(of(timed(None, 200)), "ticket") == {}
    values = [1.5, 2.5, 4.0]
    assert geometric_spread(values).mean == pytest.approx(stats.gmean(values))


def test_smallest_match_is_half_a_point_below_at_most() -> None:
    curve = {1: Spread(0.99, 0, 1, 1), 2: Spread(0.9, 0, 1, 1), 3: Spread(0.4997, 0, 1, 1)}
    density = {1: 0.5, 2: 0.25, 3: 0.125}
    assert smallest_match(ACCURACY, curve, density, Spread(0.5047, 0, 1, 1)) == 0.125  # exactly half a point
    assert smallest_match(ACCURACY, curve, density, Spread(0.5048, 0, 1, 1)) == 0.25
    assert smallest_match(ACCURACY, curve, density, Spread(0.996, 0, 1, 1)) is None


def test_statistics_have_a_line_a_round_and_variant_and_leave_empty_what_is_not_known() -> None:
    runs = [run([0.9, 0.91], [None, 0.88]), run([0.92, 0.93], [None, 0.9])]
    dense, ticket, reinit = statistics(of(*runs))
    assert [(s.round, s.variant, s.density, s.n) for s in (dense, ticket, reinit)] == [
        (0, "ticket", 1.0, 2),
        (1, "ticket", 0.5, 2),
        (1, "random_reinit", 0.5, 2),
    ]
    assert (ticket.score, ticket.score_min, ticket.score_max) == pytest.approx((0.92, 0.91, 0.93))
    assert ticket.ticket_minus_variant is None and dense.variant_minus_dense is None
    assert reinit.ticket_minus_variant == pytest.approx(0.03)
    assert reinit.variant_minus_dense == pytest.approx(-0.02)
    assert reinit.ticket_minus_variant_low95 is None and reinit.variant_minus_dense_high95 is None  # of two runs
    assert (reinit.variant_minus_dense_n, reinit.matches_dense, ticket.matches_dense) == (2, False, True)
    assert reinit.speedup is None and reinit.early_stop_step is None
