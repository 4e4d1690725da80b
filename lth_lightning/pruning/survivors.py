"""Survivors: a weight of which only the entries that a mask keeps exist, in one dimension, in row-major order.

The `nn.Parameter` remains the same object, so optimizers and hooks keep it; its `data` change. Whatever reads a
network's state by name (`full_state`, a layer's `state_dict`) sees the dense tensor, with 0 where nothing survives.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

ATTRIBUTE = "lth_survivors"


class Survivors:
    """Which entries of a weight exist.

    Args:
        mask: 1 = exists, in the weight's shape.

    Attributes:
        shape: the dense weight's.
        index: their positions in the flattened weight, ascending, int64.
    """

    def __init__(self, mask: Tensor) -> None:
        self.shape = mask.shape
        self.index = mask.flatten().nonzero().flatten()

    def __len__(self) -> int:
        return len(self.index)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Survivors":
        return self  # never changed

    def taken(self, dense: Tensor) -> Tensor:
        """Return the surviving entries of a dense tensor, (survivors,)."""
        return dense.reshape(-1)[self.index.to(dense.device)]

    def whole(self, values: Tensor) -> Tensor:
        """Return the dense tensor; gradients flow to the survivors."""
        dense = values.new_zeros(self.shape.numel())
        return dense.index_copy(0, self.index.to(values.device), values).view(self.shape)


def survivors_of(weight: Tensor) -> Survivors | None:
    """Return which entries of a parameter exist; None if it is dense."""
    return weight.__dict__.get(ATTRIBUTE)


def whole(weight: Tensor) -> Tensor:
    """Return a parameter's values in their dense shape, detached: a reference to a dense one's, else a new tensor."""
    survivors = survivors_of(weight)
    return weight.data if survivors is None else survivors.whole(weight.data)


def shape_of(weight: Tensor) -> torch.Size:
    """Return a parameter's dense shape."""
    survivors = survivors_of(weight)
    return weight.shape if survivors is None else survivors.shape


def thin(weight: nn.Parameter, survivors: Survivors, optimizers: Iterable[Optimizer] = ()) -> None:
    """Drop the entries of a dense parameter, its gradient and its optimizer state that do not survive."""
    _reshape(weight, survivors.taken, optimizers)
    weight.__dict__[ATTRIBUTE] = survivors


def restore(weight: nn.Parameter, optimizers: Iterable[Optimizer] = ()) -> None:
    """Make a thinned parameter, its gradient and its optimizer state dense again, with 0 for what did not exist."""
    survivors = survivors_of(weight)
    assert survivors is not None
    _reshape(weight, survivors.whole, optimizers)
    del weight.__dict__[ATTRIBUTE]


@torch.no_grad()
def _reshape(weight: nn.Parameter, reshaped: Any, optimizers: Iterable[Optimizer]) -> None:
    shape = weight.shape
    gradient, weight.grad = weight.grad, None  # torch refuses a gradient of another shape than its parameter's
    weight.data = reshaped(weight.data)
    if gradient is not None:
        weight.grad = reshaped(gradient)
    for optimizer in optimizers:
        if weight in optimizer.state:
            optimizer.state[weight] = _mapped(optimizer.state[weight], shape, reshaped)


def _mapped(state: Any, shape: torch.Size, reshaped: Any) -> Any:
    """Reshape the tensors of a shape in an optimizer's state, in place where it is a mapping."""
    if isinstance(state, Tensor):
        return reshaped(state) if state.shape == shape else state
    if isinstance(state, dict):
        for name, value in state.items():
            state[name] = _mapped(value, shape, reshaped)
    return state


def show_dense(optimizer: Optimizer) -> RemovableHandle:
    """Make an optimizer's `state_dict` hold dense tensors, so that its checkpoints do not depend on this module."""
    return optimizer.register_state_dict_post_hook(_with_dense_states)


def _with_dense_states(optimizer: Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    states = dict(saved["state"])
    for number, weight in _numbered(optimizer, saved):
        if (survivors := survivors_of(weight)) is not None and isinstance(states.get(number), Mapping):
            states[number] = {
                name: survivors.whole(value) if _is_like(value, weight) else value
                for name, value in states[number].items()
            }
    return {**saved, "state": states}


def _is_like(value: Any, weight: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == weight.shape


def _numbered(optimizer: Optimizer, saved: Mapping[str, Any]) -> Iterator[tuple[Any, Tensor]]:
    """Yield each parameter with its number in a `state_dict`."""
    for group, theirs in zip(optimizer.param_groups, saved["param_groups"], strict=True):
        yield from zip(theirs["params"], group["params"], strict=True)
