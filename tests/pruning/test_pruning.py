"""Pruning: exactly as many weights as announced, and exactly those, against NumPy and the paper's figures."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lth_lightning import Criterion, Evidence, Magnitude, MagnitudeIncrease, Movement, Pruning, Random, SettingError
from lth_lightning.models import Conv2, Conv4, LeNet300
from lth_lightning.pruning.masks import count_kept, dense_masks, density
from lth_lightning.pruning.prunable import prunable_weights
from lth_lightning.pruning.pruning import lowest


def evidence(trained: dict[str, Tensor], start: dict[str, Tensor] | None = None, seed: int = 0) -> Evidence:
    return Evidence(trained, start or trained, torch.Generator().manual_seed(seed))


def reference(scores: np.ndarray, mask: np.ndarray, count: int) -> np.ndarray:
    """The mask after the `count` lowest surviving scores went, the earlier position first: a full stable sort."""
    order = np.lexsort((np.arange(scores.size), scores))
    goes = [i for i in order if mask[i]][:count]
    out = mask.copy()
    out[goes] = False
    return out


@pytest.mark.parametrize(
    ("network", "rates", "percents"),
    [
        (LeNet300, {"output.weight": 0.1}, {3: 51.28, 7: 21.07, 9: 13.52, 12: 6.95, 15: 3.58, 18: 1.85}),
        (Conv2, {"*conv*": 0.1, "output.weight": 0.1}, {11: 8.81, 14: 4.57}),
        (Conv4, {"*conv*": 0.1, "output.weight": 0.1}, {11: 11.06, 12: 9.18}),
    ],
)
def test_densities_are_the_papers(network: type, rates: dict[str, float], percents: dict[int, float]) -> None:
    sizes = {name: weight.numel() for name, weight in prunable_weights(network()).items()}
    pruning = Pruning(rate=0.2, rates=rates)
    ours = {round: pruning.density_after(sizes, round) * 100 for round in percents}
    assert ours == pytest.approx(percents, abs=0.006)


def test_the_tutorials_counts() -> None:
    """SCIENCE.md's seed B: 40 % of 784-128-64-10 takes 40,140 / 3,276 / 256 weights; 18 rounds at 20 % leave 1,965."""
    weights = {"fc1": torch.randn(128, 784), "fc2": torch.randn(64, 128), "output": torch.randn(10, 64)}
    masks = Pruning(rate=0.4).prune(dense_masks(weights), evidence(weights), 1)
    assert [int((~mask).sum()) for mask in masks.values()] == [40_140, 3_276, 256]
    sizes = {name: weight.numel() for name, weight in weights.items()}
    assert sum(sizes.values()) == 109_184
    assert Pruning(rate=0.2).density_after(sizes, 18) * 109_184 == pytest.approx(1_965, rel=0.02)


@given(st.data())
def test_exactly_k_weights_go_and_the_right_ones(data: st.DataObject) -> None:
    """Ties included: scores come from few values. Two rounds, both scopes, against the NumPy reference."""
    sizes = data.draw(st.lists(st.integers(1, 30), min_size=1, max_size=3))
    rate = data.draw(st.sampled_from([0.0, 0.1, 0.2, 0.29, 0.3, 0.5, 0.9]))
    scope = data.draw(st.sampled_from(["layerwise", "global"]))
    values = st.sampled_from([-1.0, -0.5, 0.0, 0.5, 0.5, 2.0])
    pruning = Pruning(rate=rate, scope=scope)
    weights = {str(i): torch.zeros(size) for i, size in enumerate(sizes)}
    masks = dense_masks(weights)
    for round in (1, 2):
        trained = {
            n: torch.tensor(data.draw(st.lists(values, min_size=len(w), max_size=len(w)))) for n, w in weights.items()
        }
        pruned = pruning.prune(masks, evidence(trained), round)
        for names in [list(weights)] if scope == "global" else [[name] for name in weights]:
            scores = np.concatenate([np.abs(trained[name].numpy()) for name in names])
            before = np.concatenate([masks[name].numpy() for name in names])
            after = np.concatenate([pruned[name].numpy() for name in names])
            percent = round_half(rate * 100)
            np.testing.assert_array_equal(after, reference(scores, before, before.sum() * percent // 100))
        masks = pruned


def round_half(percent: float) -> int:
    return int(np.rint(percent))


@given(st.lists(st.sampled_from([0.0, 1.0, 1.5]), min_size=1, max_size=40), st.integers(0, 40))
def test_lowest_breaks_ties_by_position(values: list[float], count: int) -> None:
    count = min(count, len(values))
    expected = np.zeros(len(values), dtype=bool)
    expected[np.argsort(np.array(values), kind="stable")[:count]] = True
    np.testing.assert_array_equal(lowest(torch.tensor(values), count).numpy(), expected)


def test_a_rate_is_read_as_it_is_written() -> None:
    weights = {"w": torch.randn(100)}
    assert 0.29 * 100 < 29  # in floating point
    assert count_kept(Pruning(rate=0.29).prune(dense_masks(weights), evidence(weights), 1)) == 71


def test_globs_give_layers_their_own_rates_and_the_first_match_decides() -> None:
    weights = {
        "net.conv1.weight": torch.randn(100),
        "net.fc.weight": torch.randn(100),
        "net.output.weight": torch.randn(100),
    }
    pruning = Pruning(rate=0.5, rates={"*.output.weight": 0.0, "net.conv*": 0.1, "*conv*": 0.9})
    masks = pruning.prune(dense_masks(weights), evidence(weights), 1)
    assert [int(mask.sum()) for mask in masks.values()] == [90, 50, 100]


def test_layers_that_are_never_pruned_do_not_count_in_the_number_to_prune() -> None:
    weights = {"a": torch.randn(100), "b": torch.randn(100), "big": torch.randn(10_000)}
    masks = Pruning(rate=0.2, rates={"big": 0.0}, scope="global").prune(dense_masks(weights), evidence(weights), 1)
    assert count_kept({name: masks[name] for name in ("a", "b")}) == 160
    assert masks["big"].all()


def test_global_scope_ranks_layers_together() -> None:
    weights = {"small": torch.full((10,), 0.1), "large": torch.full((10,), 1.0)}
    masks = Pruning(rate=0.5, scope="global").prune(dense_masks(weights), evidence(weights), 1)
    assert [int(mask.sum()) for mask in masks.values()] == [0, 10]


def test_densities_are_reached_in_place_of_a_rate() -> None:
    weights = {"a": torch.randn(1000), "b": torch.randn(500), "output": torch.randn(100)}
    pruning = Pruning(densities=[0.6, 0.36, 0.05], rates={"output": 0.0})
    masks = dense_masks(weights)
    for round, kept in enumerate([(600, 300, 100), (360, 180, 100), (50, 25, 100)], start=1):
        masks = pruning.prune(masks, evidence(weights), round)
        assert tuple(int(mask.sum()) for mask in masks.values()) == kept
        assert pruning.density_after({"a": 1000, "b": 500, "output": 100}, round) == density(masks)


def test_one_shot_reaches_the_same_density_as_iterative() -> None:
    weights = {"a": torch.randn(1000), "b": torch.randn(37)}
    iterative, one_shot = Pruning(rate=0.3), Pruning(rate=0.3, prune_from="dense")
    masks = dense_masks(weights)
    for round in range(1, 6):
        masks = iterative.prune(masks, evidence(weights), round)
        at_once = one_shot.prune(dense_masks(weights), evidence(weights), round)
        assert all(torch.equal(masks[name], at_once[name]) for name in weights)


def test_signs_do_not_matter_to_magnitude() -> None:
    """`tensor < eps` in place of `tensor.abs() < eps` pruned (and froze) every negative weight."""
    weight = torch.tensor([-3.0, -0.1, 0.2, 2.0])
    assert Pruning(rate=0.5).prune({"w": weight > -9}, evidence({"w": weight}), 1)["w"].tolist() == [
        True,
        False,
        False,
        True,
    ]


def test_random_is_a_function_of_its_seed_and_of_nothing_else() -> None:
    weights = {"w": torch.randn(500)}
    pruning = Pruning(rate=0.5, criterion=Random())
    one, again = (pruning.prune(dense_masks(weights), evidence(weights, seed=1), 1)["w"] for _ in range(2))
    other = pruning.prune(dense_masks(weights), evidence(weights, seed=2), 1)["w"]
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    large = torch.topk(weights["w"].abs(), 250).indices
    assert 90 < int(one[large].sum()) < 160, "large weights go as often as small ones"


class LargeInitLargeFinal(Criterion):
    """A user's own criterion, as README shows it."""

    def scores(self, seen: Evidence) -> dict[str, Tensor]:
        return {name: trained.abs().minimum(seen.start[name].abs()) for name, trained in seen.trained.items()}


def test_a_users_own_criterion() -> None:
    trained, start = {"w": torch.tensor([1.0, -2.0, 3.0, 4.0])}, {"w": torch.tensor([9.0, 2.5, -3.5, 0.5])}
    masks = Pruning(rate=0.5, criterion=LargeInitLargeFinal()).prune(dense_masks(trained), evidence(trained, start), 1)
    assert masks["w"].tolist() == [False, True, True, False]


@pytest.mark.parametrize(
    ("criterion", "formula"),
    [
        (Magnitude(), lambda final, first: np.abs(final)),
        (MagnitudeIncrease(), lambda final, first: np.abs(final) - np.abs(first)),
        (Movement(), lambda final, first: np.abs(final - first)),
    ],
)
def test_criteria_are_the_formulas_of_zhou_et_al(criterion: Criterion, formula: Any) -> None:
    """Table of section 2; signs differ between start and end, so that increase and movement do."""
    trained, start = {"w": torch.randn(20, 5)}, {"w": torch.randn(20, 5)}
    mask = Pruning(rate=0.3, criterion=criterion).prune(dense_masks(trained), evidence(trained, start), 1)["w"]
    scores = formula(trained["w"].numpy(), start["w"].numpy()).ravel()
    np.testing.assert_array_equal(mask.numpy().ravel(), reference(scores, np.ones(100, dtype=bool), 30))


class Gradual(Criterion):
    """Notes how many weights each step finds."""

    steps = 4

    def __init__(self) -> None:
        self.found: list[list[int]] = []

    def scores(self, seen: Evidence) -> dict[str, Tensor]:
        self.found.append([int(weight.count_nonzero()) for weight in seen.trained.values()])
        return {name: weight.abs() for name, weight in seen.trained.items()}


@pytest.mark.parametrize("scope", ["layerwise", "global"])
def test_steps_keep_the_same_fraction_each_and_reach_what_one_step_reaches(scope: str) -> None:
    """N ρ^(k/n) after k of n steps (Tanaka et al. 2020, algorithm 1): with ρ = 1/16 and n = 4, half goes in each."""
    weights = {"a": torch.randn(1600), "b": torch.randn(400), "whole": torch.randn(10)}
    settings: dict[str, Any] = {"densities": [0.0625], "rates": {"whole": 0.0}, "scope": scope}
    gradual, masks = Gradual(), dense_masks(weights)
    slowly = Pruning(**settings, criterion=gradual).prune(masks, evidence(weights), 1)
    at_once = Pruning(**settings).prune(masks, evidence(weights), 1)
    assert all(torch.equal(slowly[name], at_once[name]) for name in weights), "magnitudes do not change on the way"
    assert all(mask.all() for mask in masks.values()), "left alone"
    assert [a + b for a, b, _ in gradual.found] == [2000, 1000, 500, 250]
    assert all(whole == 10 for _, _, whole in gradual.found)
    if scope == "layerwise":
        assert [a for a, _, _ in gradual.found] == [1600, 800, 400, 200]


@pytest.mark.parametrize("score", [torch.full((4,), float("nan")), torch.zeros(3)])
def test_scores_that_rank_nothing_are_refused(score: Tensor) -> None:
    class Broken(Criterion):
        def scores(self, evidence: Evidence) -> dict[str, Tensor]:
            return {"w": score}

    with pytest.raises(SettingError, match="w"):
        Pruning(rate=0.5, criterion=Broken()).prune(
            {"w": torch.ones(4, dtype=torch.bool)}, evidence({"w": torch.ones(4)}), 1
        )


def test_nan_of_pruned_weights_is_nobodys_business() -> None:
    trained = {"w": torch.tensor([float("nan"), 1.0, 2.0])}
    masks = Pruning(rate=0.5, criterion=Magnitude()).prune(
        {"w": torch.tensor([False, True, True])}, evidence(trained), 1
    )
    assert masks["w"].tolist() == [False, True, True]  # round 1 keeps 2 of 3, and so many there are


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 1.0}, r"pruning.rate must be in \[0, 1\), got 1.0"),
        ({"rate": -0.1}, "pruning.rate"),
        ({"rates": {"*": 1.5}}, r"rates\['\*'\] must be in \[0, 1\), got 1.5"),
        ({"scope": "globl"}, "Did you mean 'global'"),
        ({"prune_from": "start"}, "pruning.prune_from"),
        ({"prune_from": "initialisation", "criterion": Movement()}, "prune_from: Movement prunes from last_round or"),
        ({"prune_from": "initialisation", "criterion": MagnitudeIncrease()}, "set --lottery.pruning.prune_from last"),
        ({"densities": []}, "pruning.densities"),
        ({"densities": [0.5, 0.6]}, "must be .* and decrease"),
        ({"densities": [1.2]}, "must be .* and decrease"),
        ({"densities": [0.5, 0.0]}, "must be .* and decrease"),
        ({"densities": [0.5], "rates": {"*": 0.1}}, "Leave out one"),
    ],
)
def test_settings_out_of_range_are_named(settings: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Pruning(**settings)


def test_plans_that_cannot_work_are_refused_before_training() -> None:
    with pytest.raises(SettingError, match=r"'\*\.fc9\.weight' matches no prunable weight; choose from net.fc1.weight"):
        Pruning(rates={"*.fc9.weight": 0.1}).check({"net.fc1.weight": 100}, 1)
    with pytest.raises(SettingError, match="nothing to prune"):
        Pruning().check({}, 1)
    with pytest.raises(SettingError, match=r"nothing left to prune in round 7.*rounds to at most 6"):
        Pruning(rate=0.5).check({"w": 64}, 7)
    with pytest.raises(SettingError, match="nothing to prune: lottery.pruning.rate 0.0"):
        Pruning(rate=0.0).check({"w": 64}, 1)
    Pruning(rate=0.5).check({"w": 64}, 6)
