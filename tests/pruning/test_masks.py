"""Masks: what may be pruned, and that what is pruned stays exactly 0, whatever the optimizer does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lth_lightning import MaskHooks, SettingError, prunable_weights
from lth_lightning.pruning.masks import check_masks, count_kept, dense_masks, density, masked, shuffled
from lth_lightning.pruning.state import fingerprint

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd, momentum, decay": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "fused adam": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "adamw, amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "rmsprop, centered": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "rprop": torch.optim.Rprop,
    "asgd": lambda p: torch.optim.ASGD(p, weight_decay=0.1),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01, weight_decay=0.1),
    "lbfgs": lambda p: torch.optim.LBFGS(p, max_iter=3),
}


def _network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def _half(weights: dict[str, nn.Parameter]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.rand(weight.shape, generator=generator) < 0.5 for name, weight in weights.items()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_gradients_and_optimizer_state_stay_exactly_0(name: str) -> None:
    net = _network()
    weights, optimizer = prunable_weights(net), OPTIMIZERS[name](net.parameters())
    x, y = torch.randn(32, 1, 6, 6), torch.randint(3, (32,))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        return loss

    for _ in range(3):  # momentum from before the pruning is the harder case
        optimizer.step(closure)
    if name != "lbfgs":  # keeps one history for all weights; a round starts with a new optimizer anyway
        optimizer.state.clear()
    masks = _half(weights)
    MaskHooks(weights, [optimizer]).enforce(masks)
    before = {key: weight.detach().clone() for key, weight in weights.items()}
    for _ in range(5):
        optimizer.step(closure)
        for key, weight in weights.items():
            pruned = ~masks[key]
            assert not weight[pruned].any()
            assert not weight.grad[pruned].any()
            for state in optimizer.state[weight].values():
                if torch.is_tensor(state) and state.shape == weight.shape and name != "rprop":  # its step sizes
                    assert not state[pruned].any()
    assert all((weight != before[key])[masks[key]].all() for key, weight in weights.items()), "survivors must learn"


def test_an_optimizer_that_moves_weights_without_gradient_is_held_too() -> None:
    class Noisy(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for weight in group["params"]:
                    weight.add_(1.0)

    layer = nn.Linear(4, 4)
    optimizer = Noisy(layer.parameters(), lr=0.1)
    mask = torch.eye(4, dtype=torch.bool)
    MaskHooks({"weight": layer.weight}, [optimizer]).enforce({"weight": mask})
    optimizer.step()
    assert not layer.weight[~mask].any()
    assert layer.weight[mask].all()


def change_in_place(layer: nn.Linear) -> None:
    layer.weight.grad.add_(1.0)


def put_another(layer: nn.Linear) -> None:
    layer.weight.grad = torch.ones_like(layer.weight)


@pytest.mark.parametrize("change", [change_in_place, put_another])
def test_a_gradient_that_somebody_changes_before_the_step_moves_no_pruned_weight(
    change: Callable[[nn.Linear], None],
) -> None:
    """Gradient noise, say: pruned weights are looked after again where the step can have moved them."""
    layer = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    mask = torch.rand(3, 4) < 0.5
    MaskHooks({"weight": layer.weight}, [optimizer]).enforce({"weight": mask})
    before = layer.weight.detach().clone()
    for _ in range(2):
        optimizer.zero_grad()
        layer(torch.ones(2, 4)).sum().backward()
        change(layer)
        optimizer.step()
        assert not layer.weight[~mask].any()
    assert (layer.weight[mask] != before[mask]).all()


class CountedWrites(TorchDispatchMode):
    """Counts passes over tensors that write bit by bit, as masks do."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ == "bitwise_and_"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "passes"), [("fused adam", 1), ("sgd, momentum, decay", 1), ("lbfgs", 2)])
def test_a_mask_costs_one_pass_a_step_where_an_optimizer_moves_no_zeros(name: str, passes: int) -> None:
    layer = nn.Linear(4, 3, bias=False)
    optimizer = OPTIMIZERS[name](layer.parameters())
    MaskHooks({"weight": layer.weight}, [optimizer]).enforce({"weight": torch.rand(3, 4) < 0.5})
    layer(torch.ones(2, 4)).sum().backward()
    with CountedWrites() as counted:
        layer.zero_grad()
        layer(torch.ones(2, 4)).sum().backward()
        optimizer.step(lambda: 0.0)
    assert counted.count == passes


def test_a_dense_network_has_no_hooks_at_all() -> None:
    layer = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    hooks = MaskHooks({"weight": layer.weight}, [optimizer])
    hooks.enforce(dense_masks({"weight": layer.weight}))
    assert not layer.weight._post_accumulate_grad_hooks
    assert not optimizer._optimizer_step_post_hooks
    hooks.enforce({"weight": torch.zeros(4, 4, dtype=torch.bool)})
    assert layer.weight._post_accumulate_grad_hooks
    hooks.remove()
    assert not layer.weight._post_accumulate_grad_hooks
    assert not optimizer._optimizer_step_post_hooks


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
