"""Masks: what may be pruned, and that what is pruned stays exactly 0, whatever the optimizer does."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lth_lightning import SettingError, prunable_weights
from lth_lightning.pruning.masks import check_masks, count_kept, density, masked, shuffled
from lth_lightning.pruning.state import fingerprint


def _network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def test_only_trained_weights_of_linear_and_convolution_layers_are_prunable() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 8)
            self.body = nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2), nn.ConvTranspose2d(2, 2, 2))
            self.norm = nn.LayerNorm(8)
            self.first = nn.Linear(8, 8)
            self.second = nn.Linear(8, 8)
            self.second.weight = self.first.weight
            self.frozen = nn.Linear(8, 8)
            self.frozen.weight.requires_grad_(False)

    assert list(prunable_weights(Tied())) == ["body.0.weight", "body.2.weight", "first.weight"]


def test_names_are_the_same_for_a_compiled_network() -> None:
    net = nn.ModuleDict({"net": _network()})
    names = list(prunable_weights(net))
    net["net"] = torch.compile(net["net"], backend="eager")
    assert list(prunable_weights(net)) == names


def test_masked_gives_plus_0_and_leaves_its_argument_alone() -> None:
    weight = torch.tensor([-1.0, 2.0])
    out = masked({"w": weight, "bias": weight}, {"w": torch.tensor([False, True])})
    assert str(out["w"].tolist()) == "[0.0, 2.0]"  # -0.0 would print as such
    assert out["bias"].data_ptr() != weight.data_ptr()
    assert weight.tolist() == [-1.0, 2.0]


@given(st.integers(0, 2**31), st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_shuffled_keeps_each_layers_count_and_is_a_function_of_the_seed(seed: int, sizes: list[int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks = {str(i): torch.rand(size, generator=generator) < 0.5 for i, size in enumerate(sizes)}
    first, second = (shuffled(masks, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert {name: int(mask.sum()) for name, mask in first.items()} == {n: int(m.sum()) for n, m in masks.items()}
    assert fingerprint(first) == fingerprint(second)


def test_shuffled_moves_the_survivors() -> None:
    mask = torch.arange(1000) < 500
    moved = shuffled({"w": mask}, torch.Generator().manual_seed(1))["w"]
    assert 200 < int((moved & mask).sum()) < 300  # half of the survivors meet a place that was kept: 250 expected


def test_density_counts_weights() -> None:
    masks = {"a": torch.tensor([True, False]), "b": torch.tensor([True] * 6)}
    assert count_kept(masks) == 7
    assert density(masks) == 7 / 8


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({}, "differ in w"),
        ({"w": torch.ones(2, 2)}, "float32"),
        ({"w": torch.ones(3, dtype=torch.bool)}, r"\(3,\)"),
    ],
)
def test_masks_that_do_not_fit_are_refused_where_they_enter(masks: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        check_masks(masks, {"w": torch.ones(2, 2)})


def test_a_fingerprint_sees_one_bit_a_name_and_a_shape() -> None:
    one = {"w": torch.zeros(4)}
    others = [{"w": torch.tensor([0.0, 0.0, 0.0, -0.0])}, {"v": torch.zeros(4)}, {"w": torch.zeros(2, 2)}]
    assert len({fingerprint(state) for state in [one, *others]}) == 4
