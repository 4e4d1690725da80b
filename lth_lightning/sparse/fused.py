"""A whole training step in one call of the kernels, for chains of linear layers and ReLU.

Forward, mean cross-entropy, backward and the optimizer's step cost what survives; under autograd, a step of a small
network is mostly Python and dispatch.
"""

import copy
import ctypes
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from lth_lightning.pruning.survivors import survivors_of
from lth_lightning.sparse.pattern import Layer, Pattern, linear_pattern
from lth_lightning.sparse.timing import in_turns
from lth_lightning.sparse.training import TURNS, ThinLinear, densified, training_kernels

KINDS = (SGD, Adam, AdamW)
UNKNOWN = ("maximize", "amsgrad", "capturable", "differentiable")  # settings of which the kernels know only False
RELUS = (F.relu, torch.relu, "relu")


class Link(NamedTuple):
    """A linear layer of a chain, and whether a ReLU follows."""

    layer: nn.Linear
    relu: bool


class _Settings(ctypes.Structure):
    """training.c's `Settings`."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("kind", "nesterov", "decoupled")),
        *((name, ctypes.c_double) for name in ("lr", "decay", "momentum", "dampening", "beta1", "beta2", "eps")),
    ]


class _Trained(ctypes.Structure):
    """training.c's `Trained`."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("value", "grad", "first", "second", "steps")),
        *((name, ctypes.c_int64) for name in ("size", "fresh", "settings")),
    ]


class _Step(ctypes.Structure):
    """training.c's `Step`."""

    _fields_ = [
        ("layers", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("count", "widest")),
        *((name, ctypes.c_void_p) for name in ("acts", "scratch", "settings", "trained")),
        ("parameters", ctypes.c_int64),
    ]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Linear) or super().is_leaf_module(m, module_qualified_name)


def chain_of(net: nn.Module) -> list[Link] | None:
    """Return the linear layers of a network that is a chain of them, with or without ReLU; None for any other."""
    try:
        graph = _Tracer().trace(net)
    except Exception:  # fx raises whatever a forward does with its symbols
        return None
    found: list[Link] = []
    inputs = 0
    for node in graph.nodes:
        if len(node.users) > 1:
            return None
        layer = net.get_submodule(node.target) if node.op == "call_module" else None
        if node.op == "placeholder":
            inputs += 1
        elif type(layer) in (nn.Linear, ThinLinear) and all(layer is not link.layer for link in found):
            found.append(Link(layer, False))  # type: ignore[arg-type]
        elif node.op != "output" and _is_relu(node, layer) and found:
            found[-1] = Link(found[-1].layer, True)
        elif node.op != "output" and not (_flattens(node, layer) and not found):
            return None
    fitting = all(a.layer.out_features == b.layer.in_features for a, b in pairwise(found))
    return found if found and inputs == 1 and fitting and not found[-1].relu else None


def _is_relu(node: fx.Node, layer: nn.Module | None) -> bool:
    return type(layer) is nn.ReLU or (layer is None and node.target in RELUS)


def _flattens(node: fx.Node, layer: nn.Module | None) -> bool:
    """Whether a node turns images into (N, features)."""
    if layer is not None:
        return type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1)
    return node.target in ("flatten", torch.flatten) and node.args[1:] == (1,) and not node.kwargs


def can_step(optimizer: Optimizer) -> bool:
    """Whether the kernels know an optimizer's step: SGD, Adam or AdamW of torch, without hooks of its own."""
    hooks = [*optimizer._optimizer_step_pre_hooks, *optimizer._optimizer_step_post_hooks]
    return (
        type(optimizer) in KINDS
        and not hooks
        and not any(group.get(name) for group in optimizer.param_groups for name in UNKNOWN)
    )


class FusedStep:
    """One training step of a chain on a batch: forward, mean cross-entropy, backward, optimizer.

    The optimizer's state is torch's own, so that checkpoints and other steps see it.

    Args:
        links: the chain; thinned layers and dense ones.
        optimizer: one that `can_step`, whose groups hold exactly the chain's parameters.
    """

    def __init__(self, links: Sequence[Link], optimizer: Optimizer) -> None:
        first = links[0].layer._parameters["weight"]
        assert first is not None
        self.dtype, self.features = first.dtype, links[0].layer.in_features
        self._kernels, self._optimizer = training_kernels(first.dtype), optimizer
        tile = self._kernels.lth_tile()
        self._patterns: list[Pattern] = []
        self._layers = (Layer * len(links))()
        gradients: dict[int, Tensor] = {}
        for layer, (linear, relu) in zip(self._layers, links, strict=True):
            self._patterns.append(_pattern(linear))
            self._patterns[-1].fill(layer)
            layer.relu = relu
            for name, value in linear._parameters.items():
                if value is not None:
                    gradients[id(value)] = torch.zeros_like(value)
                    setattr(layer, f"{name}_grad", gradients[id(value)].data_ptr())
        sizes = [self.features, *(linear.out_features for linear, _ in links)]
        self._buffers = [
            torch.zeros(sum(sizes) * tile, dtype=self.dtype),
            torch.zeros(2 * max(sizes) * tile, dtype=self.dtype),
        ]
        self._links, self._gradients = links, gradients
        groups = optimizer.param_groups
        self._places = [(number, value) for number, group in enumerate(groups) for value in group["params"]]
        self._settings, self._trained = (_Settings * len(groups))(), (_Trained * len(self._places))()
        self._addresses: list[int] = []
        self._point()
        self._seen: list[tuple[Any, ...]] = []
        self._look()
        self._step = _Step(
            layers=ctypes.addressof(self._layers),
            count=len(links),
            widest=max(sizes),
            acts=self._buffers[0].data_ptr(),
            scratch=self._buffers[1].data_ptr(),
            settings=ctypes.addressof(self._settings),
            trained=ctypes.addressof(self._trained),
            parameters=len(self._places),
        )

    def _point(self) -> None:
        """Take over where parameters and state lie, which code between two steps may change (`p.data = …`)."""
        if self._where() == self._addresses:
            return
        for layer, (linear, _) in zip(self._layers, self._links, strict=True):
            for name, value in linear._parameters.items():
                if value is not None:
                    setattr(layer, name, value.data_ptr())
        for one, (number, value) in zip(self._trained, self._places, strict=True):
            one.value, one.size, one.settings = value.data_ptr(), value.numel(), number
            one.grad = self._gradients[id(value)].data_ptr()
            self._point_to_state(one, value, self._optimizer.param_groups[number])
        self._addresses = self._where()  # with the state that was made

    def _where(self) -> list[int]:
        state = self._optimizer.state
        return [
            tensor.data_ptr()
            for _, value in self._places
            for tensor in (value, *state.get(value, {}).values())
            if tensor is not None
        ]

    def _point_to_state(self, one: _Trained, value: nn.Parameter, group: dict[str, Any]) -> None:
        """Use the optimizer's state of a parameter, made as its first step would make it."""
        if isinstance(self._optimizer, SGD):
            if group["momentum"]:
                state = self._optimizer.state[value]
                one.fresh = state.get("momentum_buffer") is None
                if one.fresh:
                    state["momentum_buffer"] = torch.zeros_like(value.data)
                one.first = state["momentum_buffer"].data_ptr()
            return
        state = self._optimizer.state[value]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(value.data), torch.zeros_like(value.data)
        one.steps, one.first, one.second = (state[name].data_ptr() for name in ("step", "exp_avg", "exp_avg_sq"))

    def _look(self) -> None:
        """Take over the optimizer's settings, which schedules change."""
        if (now := [_values(group) for group in self._optimizer.param_groups]) != self._seen:
            self._seen = now
            for settings, values in zip(self._settings, now, strict=True):
                for (name, *_), value in zip(_Settings._fields_, values, strict=True):
                    setattr(settings, name, value)
                settings.kind = not isinstance(self._optimizer, SGD)

    def __call__(self, inputs: Tensor, targets: Tensor) -> Tensor | None:
        """Train on a batch and return its mean loss before the step; None if the batch is of another kind.

        Args:
            inputs: (N, ...) of as many numbers an example as the chain's inputs.
            targets: classes (N,), int64.
        """
        count = len(inputs)
        if (
            inputs.dtype != self.dtype
            or targets.dtype != torch.int64
            or targets.shape != (count,)
            or inputs.numel() != count * self.features
            or not count
        ):
            return None
        self._look()
        self._point()
        inputs, targets = inputs.contiguous(), targets.contiguous()
        loss = self._kernels.lth_step(ctypes.addressof(self._step), inputs.data_ptr(), targets.data_ptr(), count)
        if loss == -1:
            return None  # targets that F.cross_entropy refuses, or ignores
        for one in self._trained:
            one.fresh = False
        self._optimizer._opt_called = True  # type: ignore[attr-defined]  # or a schedule's first step warns
        return torch.tensor(loss, dtype=self.dtype)


def _pattern(linear: nn.Linear) -> Pattern:
    survivors: Any = survivors_of(linear._parameters["weight"])  # type: ignore[arg-type]
    if survivors is None:
        return linear_pattern(torch.ones_like(linear.weight, dtype=torch.bool))
    return survivors.kernel.pattern


def _values(group: dict[str, Any]) -> tuple[Any, ...]:
    """Return a group's settings in the order of `_Settings`."""
    beta1, beta2 = group.get("betas", (0.0, 0.0))
    return (
        *(0, bool(group.get("nesterov")), bool(group.get("decoupled_weight_decay"))),
        *(
            float(group["lr"]),
            float(group["weight_decay"]),
            float(group.get("momentum", 0)),
            float(group.get("dampening", 0)),
        ),
        *(float(beta1), float(beta2), float(group.get("eps", 0))),
    )


def is_faster(net: nn.Module, optimizer: Optimizer, inputs: Tensor, targets: Tensor) -> bool:
    """Time the fused step, and forward and backward of the dense network in torch, in turns, on copies."""
    thin, dense = copy.deepcopy(net), copy.deepcopy(net)
    densified(dense)
    links = chain_of(thin)
    assert links is not None
    group = {name: value for name, value in optimizer.param_groups[0].items() if name in ("lr", "weight_decay")}
    fused = FusedStep(links, type(optimizer)(thin.parameters(), **group))

    def in_torch() -> None:
        F.cross_entropy(dense(inputs), targets).backward()

    sparse_ms, dense_ms = in_turns([lambda: fused(inputs, targets), in_torch], TURNS, 0)
    return sparse_ms < dense_ms
