"""What is pruned stays exactly 0, in weight, gradient and optimizer state, after every step, whoever touches it.

Tried here, each way in with each kind of optimizer:

| way in | seen to by |
| --- | --- |
| an optimizer that has run before, `enforce` again, in other masks | `enforce` |
| `load_state_dict` of an optimizer given; of one that was not | its hook; the next step |
| `load_state_dict` of the network, a part, a network around it, `strict=False` | a hook of each layer |
| `load_state_dict(assign=True)`, a Parameter replaced | refused by name |
| a gradient changed in place, assigned, infinite, NaN, sparse | after the step |
| weights written to between steps, in place or by `.data` | after the step, and before the next where it is seen |
| the optimizer's state written to, replaced or cleared between steps | before or after the step |
| an optimizer made later, or one that nobody named | hooks of all optimizers |
| a step inside backward | the order of gradient hooks |
| `module.to(dtype)`, channels-last, transposed weights; complex and half types | bits by size, device and strides |
| a deep copy, a pickled copy | a guard that is part of the layer |
| weights frozen while they are held, and thawed | after the step |
| optimizers that mix entries or move zeros (LBFGS, Muon, Adafactor, noise, eps = 0) | a pass over all of it each step |
| a wrapper that writes after the inner step (Lookahead) | `check`; `LotteryTicket` refuses it before training |
"""

import copy
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lth_lightning import MaskHooks, SettingError, prunable_weights
from lth_lightning.errors import RevivedError
from lth_lightning.pruning.held_mask import HELD
from lth_lightning.pruning.masks import Masks, dense_masks
from lth_lightning.pruning.optimizer_hooks import check_optimizer

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "fused adam": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "adamw, amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01, weight_decay=0.1),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "rmsprop, centered": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, weight_decay=0.1),
    "rprop": torch.optim.Rprop,
    "asgd": lambda p: torch.optim.ASGD(p, weight_decay=0.1),
    "lbfgs": lambda p: torch.optim.LBFGS(p, max_iter=3),
    "adam, eps 0": lambda p: torch.optim.Adam(p, lr=0.01, eps=0.0),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
}
USUAL = ("momentum", "adam", "fused adam", "lbfgs")


class Case:
    """A network with warm momentum, half of whose weights are pruned."""

    def __init__(self, optimizer: str = "momentum", enforce: bool = True) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 3)
        )
        self.x, self.y = torch.randn(32, 1, 6, 6), torch.randint(3, (32,))
        self.optimizer = OPTIMIZERS[optimizer](self.net.parameters())
        self.masks: Masks = {name: torch.rand(w.shape) < 0.5 for name, w in prunable_weights(self.net).items()}
        self.train(3)
        self.warm = copy.deepcopy(self.optimizer.state_dict())
        self.hooks = MaskHooks(self.net, [self.optimizer])
        if enforce:
            self.hooks.enforce(self.masks)

    def train(self, steps: int, before_step: Callable[[], None] = lambda: None) -> None:
        def closure() -> Tensor:
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.net(self.x), self.y)
            loss.backward()
            before_step()
            return loss

        for _ in range(steps):
            self.optimizer.step(closure)

    def everything(
        self, net: nn.Module | None = None, optimizer: torch.optim.Optimizer | None = None
    ) -> Iterator[Tensor]:
        """Each weight, gradient and state, where it is pruned; found without the code under test."""
        optimizer = optimizer or self.optimizer
        parameters = dict((net or self.net).named_parameters())
        flat = []
        for name, weight in parameters.items():
            mask = self.masks.get(name, torch.ones_like(weight, dtype=torch.bool))
            flat.append(~mask.flatten())
            yield weight.detach()[~mask]
            if weight.grad is not None:
                yield weight.grad.to_dense()[~mask]
            for key, value in optimizer.state.get(weight, {}).items():
                if torch.is_tensor(value) and value.shape == weight.shape and key != "step_size":  # Rprop's rates
                    yield value[~mask]
        if isinstance(optimizer, torch.optim.LBFGS):
            state = optimizer.state[next(iter(parameters.values()))]
            for vector in [state["d"], state["prev_flat_grad"], *state["old_dirs"], *state["old_stps"]]:
                yield vector[torch.cat(flat)]

    def assert_pruned(self, net: nn.Module | None = None, optimizer: torch.optim.Optimizer | None = None) -> None:
        assert all(not part.any() for part in self.everything(net, optimizer))


# ------------------------------------------------------------------------ optimizers that have run before


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_warm_optimizers_move_no_pruned_weight_and_survivors_learn(name: str) -> None:
    case = Case(name)
    case.assert_pruned()
    before = {key: weight.detach().clone() for key, weight in case.net.named_parameters()}
    for _ in range(4):
        case.train(1)
        case.assert_pruned()
        case.hooks.check()
    for key, weight in prunable_weights(case.net).items():
        learns = case.masks[key] & (weight.grad != 0)  # a unit whose outgoing weights are all pruned does not
        assert learns.any() and (weight != before[key])[learns].all()


@pytest.mark.parametrize("name", USUAL)
def test_enforcing_again_with_other_masks(name: str) -> None:
    case = Case(name)
    case.train(2)
    case.masks = {key: ~mask for key, mask in case.masks.items()}
    case.hooks.enforce(case.masks)
    case.assert_pruned()
    case.train(1)
    case.assert_pruned()


@pytest.mark.parametrize("name", USUAL)
def test_a_kept_weight_takes_the_same_steps_as_with_a_product_by_the_mask(name: str) -> None:
    """Against a plain loop with `weight * mask` and an optimizer that starts new."""
    case, plain = Case(name), Case(name, enforce=False)
    case.optimizer.state.clear()
    if name == "lbfgs":
        case.optimizer.__setstate__({"state": case.optimizer.state})
    plain.optimizer = OPTIMIZERS[name](plain.net.parameters())
    weights = prunable_weights(plain.net)

    def mask_gradients() -> None:
        for key, weight in weights.items():
            weight.grad *= plain.masks[key]

    for key, weight in weights.items():
        weight.data *= plain.masks[key]
    for _ in range(3):
        case.train(1)
        plain.train(1, mask_gradients)
        for key, weight in weights.items():
            weight.data *= plain.masks[key]
    for ours, theirs in zip(case.net.parameters(), plain.net.parameters(), strict=True):
        assert torch.equal(ours, theirs)


# ------------------------------------------------------------------------ what is loaded


@pytest.mark.parametrize("name", USUAL)
def test_a_state_that_an_optimizer_loads_is_masked_at_once(name: str) -> None:
    case = Case(name)
    case.train(1)
    case.optimizer.load_state_dict(case.warm)
    case.assert_pruned()
    case.train(2)
    case.assert_pruned()


@pytest.mark.parametrize("name", USUAL)
def test_an_optimizer_that_nobody_named_is_masked_by_its_steps(name: str) -> None:
    case = Case(name, enforce=False)
    MaskHooks(case.net).enforce(case.masks)
    case.train(1)
    case.assert_pruned()
    case.optimizer.load_state_dict(case.warm)
    case.train(1)
    case.assert_pruned()
    case.optimizer = OPTIMIZERS[name](case.net.parameters())  # made later
    case.train(2)
    case.assert_pruned()


@pytest.mark.parametrize("where", ["the network", "a part", "around it"])
def test_weights_that_a_network_loads_are_masked_before_they_are_used(where: str) -> None:
    case = Case()
    around = nn.ModuleDict({"net": case.net})
    loads = {"the network": case.net, "a part": case.net[4], "around it": around}[where]
    loads.load_state_dict({key: torch.ones_like(value) for key, value in loads.state_dict().items()}, strict=False)
    case.assert_pruned()
    assert case.net[4].weight[case.masks["4.weight"]].eq(1).all()


def test_parameters_that_are_replaced_are_refused_by_name() -> None:
    case = Case()
    with pytest.raises(RevivedError, match=r"load_state_dict\(assign=True\) has replaced a pruned Parameter"):
        case.net.load_state_dict(copy.deepcopy(case.net.state_dict()), assign=True)
    case = Case()
    case.net[4].weight = nn.Parameter(torch.ones(5, 64))
    with pytest.raises(RevivedError, match=r"4\.weight is another Parameter than the one that was pruned"):
        case.hooks.check()


# ------------------------------------------------------------------------ what others write


def noise(case: Case) -> None:
    with torch.no_grad():
        for weight in case.net.parameters():
            weight.add_(torch.randn_like(weight))


def noise_by_data(case: Case) -> None:
    for weight in case.net.parameters():
        weight.data.add_(1.0)


def swap_data(case: Case) -> None:
    for weight in case.net.parameters():
        weight.data = torch.ones_like(weight)


def state_noise(case: Case) -> None:
    for state in case.optimizer.state.values():
        for value in state.values():
            if torch.is_tensor(value) and value.ndim:
                value.add_(1.0)


def other_state(case: Case) -> None:
    for weight, state in list(case.optimizer.state.items()):
        case.optimizer.state[weight] = {
            key: torch.ones_like(value) if torch.is_tensor(value) and value.ndim else value
            for key, value in state.items()
        }


def no_state(case: Case) -> None:
    case.optimizer.state.clear()


@pytest.mark.parametrize("name", ["momentum", "adam", "fused adam"])
@pytest.mark.parametrize("write", [noise, noise_by_data, swap_data, state_noise, other_state, no_state])
def test_what_somebody_writes_between_steps_is_gone_after_the_next(write: Callable[[Case], None], name: str) -> None:
    case = Case(name)
    for _ in range(3):
        case.train(1)
        write(case)
        case.train(1)
        case.assert_pruned()


def test_a_state_that_is_replaced_by_hand_revives_nothing() -> None:
    """In the same dictionary, as a momentum that is reset or restored: no version counter shows it."""
    case = Case("adam")
    case.train(2)
    for weight in case.net.parameters():
        case.optimizer.state[weight]["exp_avg"] = torch.ones_like(weight)
    case.train(1)
    assert not any(bool(value.any()) for value in case.everything())


@pytest.mark.parametrize("write", [noise_by_data, swap_data, noise])
def test_a_mask_before_forward_passes_is_there_after_unseen_writes(write: Callable[[Case], None]) -> None:
    case = Case(enforce=False)
    MaskHooks(case.net, [case.optimizer], before_forward=True).enforce(case.masks)
    write(case)
    seen = []
    case.net[4].register_forward_hook(lambda layer, *_: seen.append(layer.weight[~case.masks["4.weight"]].any()))
    case.train(1)
    assert not any(seen)


def test_settling_undoes_a_write_and_checking_names_it() -> None:
    case = Case("adam")
    case.train(1)
    noise(case)
    with pytest.raises(RevivedError, match=r"^0\.weight: \d+ of its pruned weights are not 0\. Something writes"):
        case.hooks.check()
    case.hooks.settle()
    case.hooks.check()
    case.net[6].weight.grad = torch.ones(3, 5)
    with pytest.raises(RevivedError, match=r"6\.weight: \d+ of its pruned weights have a gradient that is not 0"):
        case.hooks.check()
    case.net.zero_grad()
    state_noise(case)
    with pytest.raises(RevivedError, match=r"0\.weight: \d+ of its pruned weights have a state of Adam that is not 0"):
        case.hooks.check()


@pytest.mark.parametrize("value", [1.0, float("inf"), float("nan")])
@pytest.mark.parametrize("name", USUAL)
def test_gradients_that_are_changed_or_assigned_in_some_steps(name: str, value: float) -> None:
    case = Case(name)
    pruned_only = {key: torch.where(mask, 0.0, value) for key, mask in case.masks.items()}

    def add() -> None:
        for key, weight in prunable_weights(case.net).items():
            weight.grad.add_(pruned_only[key])

    def assign() -> None:
        for key, weight in prunable_weights(case.net).items():
            weight.grad = weight.grad + pruned_only[key]

    if name == "lbfgs" and value != 1.0:  # one number that is none spoils all its directions: nothing is left to keep
        return
    for change in (add, assign):
        case.train(1, change)
        case.assert_pruned()
        case.train(1)
        case.assert_pruned()


def test_clipping_counts_no_pruned_weight_and_revives_none() -> None:
    case = Case("adam")
    norms = []
    case.train(1, lambda: norms.append(nn.utils.clip_grad_norm_(case.net.parameters(), 0.01)))
    case.assert_pruned()
    kept = nn.utils.get_total_norm([p.grad for p in case.net.parameters()])
    assert norms[0] > kept  # it was clipped, by the norm of what is kept: nothing else was there
    case.train(1, lambda: nn.utils.clip_grad_value_(case.net.parameters(), 0.001))
    case.assert_pruned()


def test_sparse_gradients() -> None:
    embedding = nn.Embedding(6, 4, sparse=True)
    mask = torch.rand(6, 4) < 0.5
    for optimizer in (torch.optim.SparseAdam(embedding.parameters()), torch.optim.SGD(embedding.parameters(), lr=0.1)):
        hooks = MaskHooks(embedding, [optimizer])
        hooks.enforce({"weight": mask})
        for _ in range(3):
            optimizer.zero_grad()
            embedding(torch.tensor([1, 2, 2, 5])).pow(2).sum().backward()
            assert not embedding.weight.grad.to_dense()[~mask].any()
            optimizer.step()
            hooks.check()
            assert not embedding.weight[~mask].any()
        hooks.remove()


# ------------------------------------------------------------------------ optimizers of other kinds


class Noisy(torch.optim.SGD):
    """Moves weights that have no gradient."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                weight.add_(1.0)
                self.state[weight]["nested"] = [{"of": torch.ones_like(weight)}]


def test_an_optimizer_that_moves_weights_without_gradient_is_held_too() -> None:
    layer = nn.Linear(4, 4)
    optimizer, mask = Noisy(layer.parameters(), lr=0.1), torch.eye(4, dtype=torch.bool)
    hooks = MaskHooks(layer, [optimizer])
    hooks.enforce({"weight": mask})
    optimizer.step()
    hooks.check()
    assert not layer.weight[~mask].any() and layer.weight[mask].all()
    assert not optimizer.state[layer.weight]["nested"][0]["of"][~mask].any()


def test_muon() -> None:
    layer = nn.Linear(6, 4, bias=False)
    optimizer, mask = torch.optim.Muon(layer.parameters(), lr=0.1), torch.rand(4, 6) < 0.5
    for _ in range(4):
        layer(torch.randn(8, 6)).pow(2).sum().backward()
        optimizer.step()
        MaskHooks(layer, [optimizer]).enforce({"weight": mask})
        assert not layer.weight[~mask].any() and not optimizer.state[layer.weight]["momentum_buffer"][~mask].any()


def test_a_wrapper_around_a_warm_optimizer_starts_at_0() -> None:
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, base: torch.optim.Optimizer) -> None:
            super().__init__(base.param_groups, {})
            self.base = base

        def step(self, closure: Any = None) -> Any:
            return self.base.step(closure)

    case = Case("adam", enforce=False)
    base, case.optimizer = case.optimizer, Wrapper(case.optimizer)
    MaskHooks(case.net, [case.optimizer]).enforce(case.masks)
    case.assert_pruned(optimizer=base)
    case.train(2)
    case.assert_pruned(optimizer=base)


def test_an_optimizer_whose_steps_nobody_can_see_is_refused() -> None:
    class Aloof(torch.optim.Optimizer):
        def __init__(self) -> None:
            pass

    with pytest.raises(SettingError, match=r"Aloof does not call torch\.optim\.Optimizer\.__init__"):
        check_optimizer(Aloof())
    check_optimizer(torch.optim.SGD(nn.Linear(1, 1).parameters()))


@pytest.mark.parametrize("hooks_first", [True, False])
def test_a_step_inside_backward(hooks_first: bool) -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    masks = {key: torch.rand(weight.shape) < 0.5 for key, weight in prunable_weights(net).items()}
    inner = {weight: torch.optim.Adam([weight], lr=0.1) for weight in net.parameters()}

    def step(weight: Tensor) -> None:
        inner[weight].step()
        inner[weight].zero_grad()

    def register() -> None:
        for weight in net.parameters():
            weight.register_post_accumulate_grad_hook(step)

    if not hooks_first:
        register()
    MaskHooks(net).enforce(masks)
    if hooks_first:
        register()
    for _ in range(3):
        net(torch.randn(8, 4)).pow(2).sum().backward()
        for key, mask in masks.items():
            weight = net.get_parameter(key)
            assert not weight[~mask].any() and weight[mask].all()
            assert not any(value[~mask].any() for value in inner[weight].state[weight].values() if value.ndim)


# ------------------------------------------------------------------------ types, layouts, copies


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128])
def test_other_types_from_the_start_or_afterwards(dtype: torch.dtype) -> None:
    for convert_first in (True, False):
        layer = nn.Linear(6, 5, dtype=dtype if convert_first else torch.float32)
        mask = torch.rand(5, 6) < 0.5
        MaskHooks(layer).enforce({"weight": mask})
        layer.to(dtype)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            layer(torch.ones(2, 6, dtype=dtype)).abs().sum().backward()
            optimizer.step()
            assert not layer.weight[~mask].any() and not layer.weight.grad[~mask].any()
            assert layer.weight[mask].abs().gt(0).all()
            assert not optimizer.state[layer.weight]["momentum_buffer"][~mask].any()


@pytest.mark.parametrize("layout", ["channels last", "transposed", "part of a larger tensor", "afterwards"])
def test_strided_weights(layout: str) -> None:
    conv = nn.Conv2d(4, 6, 3)
    if layout == "channels last":
        conv.to(memory_format=torch.channels_last)
    elif layout == "transposed":
        conv.weight = nn.Parameter(torch.randn(4, 6, 3, 3).transpose(0, 1))
    elif layout == "part of a larger tensor":
        conv.weight = nn.Parameter(torch.randn(12, 4, 3, 3)[::2])
    mask = torch.rand(6, 4, 3, 3) < 0.5
    optimizer = torch.optim.Adam(conv.parameters(), lr=0.1)
    hooks = MaskHooks(conv, [optimizer])
    hooks.enforce({"weight": mask})
    if layout == "afterwards":
        conv.to(memory_format=torch.channels_last)
    for _ in range(3):
        conv(torch.randn(2, 4, 5, 5)).pow(2).sum().backward()
        optimizer.step()
        hooks.check()
        assert not conv.weight[~mask].any() and conv.weight[mask].all()


def _pickled(net: nn.Module) -> nn.Module:
    content = io.BytesIO()
    torch.save(net, content)
    content.seek(0)
    return torch.load(content, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, _pickled])
def test_a_copy_does_not_train_dense_and_leaves_the_original_alone(copied: Callable[[nn.Module], nn.Module]) -> None:
    case = Case()
    twin = copied(case.net)
    optimizer = OPTIMIZERS["momentum"](twin.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(twin(case.x), case.y).backward()
        optimizer.step()
        case.assert_pruned(twin, optimizer)
    twin.load_state_dict({key: torch.ones_like(value) for key, value in twin.state_dict().items()})
    case.assert_pruned(twin, optimizer)
    case.assert_pruned()
    case.hooks.remove()
    late = copied(case.net)  # what was let go is not held again
    assert not any(hasattr(weight, HELD) for weight in (*case.net.parameters(), *late.parameters()))


def test_frozen_weights_that_thaw() -> None:
    case = Case("momentum", enforce=False)
    for weight in case.net.parameters():
        weight.requires_grad_(False)
    case.net[6].bias.requires_grad_(True)
    case.hooks.enforce(case.masks)
    case.train(1)
    for weight in case.net.parameters():
        weight.requires_grad_(True)
    for _ in range(3):
        case.train(1)
        case.assert_pruned()


# ------------------------------------------------------------------------ what it costs, and that it goes


class CountedWrites(TorchDispatchMode):
    """Counts passes over tensors that write bit by bit, as masks do."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ == "bitwise_and_"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("before_step", [True, False])
@pytest.mark.parametrize("before_forward", [True, False])
@pytest.mark.parametrize("name", ["fused adam", "momentum"])
def test_a_mask_costs_one_to_three_passes_a_step_where_an_optimizer_keeps_zeros(
    name: str, before_forward: bool, before_step: bool
) -> None:
    """Over gradient and, unless nobody writes to it unseen, weight; none over the state once it is known to be 0."""
    layer = nn.Linear(4, 3, bias=False)
    optimizer = OPTIMIZERS[name](layer.parameters())
    hooks = MaskHooks(layer, [optimizer], before_forward=before_forward, before_step=before_step)
    hooks.enforce({"weight": torch.rand(3, 4) < 0.5})

    def closure() -> Tensor:
        layer.zero_grad()
        loss = layer(torch.ones(2, 4)).sum()
        loss.backward()
        return loss

    counts = []
    for _ in range(3):
        with CountedWrites() as counted:
            optimizer.step(closure)
        counts.append(counted.count)
    passes = 1 + before_forward + before_step
    assert counts[0] > passes and counts[1:] == [passes, passes]
    with torch.no_grad():
        layer.weight.fill_(1.0)  # seen all the same
    optimizer.step()
    assert bool((layer.weight[~layer.weight.__dict__[HELD].mask] == 0).all())


@pytest.mark.parametrize("write", [noise_by_data, swap_data])
def test_settling_unseen_writes_masks_now_and_before_the_next_forward_pass(write: Callable[[Case], None]) -> None:
    case = Case()
    alive = []
    case.net[4].register_forward_hook(lambda layer, *_: alive.append(layer.weight[~case.masks["4.weight"]].any()))
    for _ in range(2):
        write(case)
        case.hooks.settle(seen=False)
        case.hooks.check()
        write(case)  # a hook that is called later
        case.train(1)
    assert len(alive) == 2 and not any(alive)


def test_a_dense_network_has_no_hooks_and_what_is_removed_is_gone() -> None:
    layer = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    hooks = MaskHooks({"weight": layer.weight}, [optimizer])
    hooks.enforce(dense_masks({"weight": layer.weight}))
    assert not layer.weight._post_accumulate_grad_hooks
    hooks.enforce({"weight": torch.zeros(4, 4, dtype=torch.bool)})
    assert layer.weight._post_accumulate_grad_hooks
    hooks.remove()
    assert not layer.weight._post_accumulate_grad_hooks and not hasattr(layer.weight, HELD)
    layer(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    assert layer.weight.all()


def test_weights_by_name_need_no_module() -> None:
    layer = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    MaskHooks({"w": layer.weight}, [optimizer]).enforce({"w": torch.tensor([[True, False]])})
    optimizer.step()
    assert layer.weight[0, 1] == 0 != layer.weight[0, 0]


def test_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SettingError, match="Linear has no parameter other"):
        MaskHooks(nn.Linear(2, 1)).enforce({"other": torch.ones(1, 2, dtype=torch.bool)})
    with pytest.raises(SettingError, match="shape"):
        MaskHooks(nn.Linear(2, 1)).enforce({"weight": torch.ones(2, 2, dtype=torch.bool)})
