"""Hooks before and after every optimizer step: pruned entries of held weights are 0 when it starts and ends."""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from lth_lightning.errors import SettingError
from lth_lightning.pruning.held_mask import held_by

# Here each entry's step depends on that entry alone: a state of 0 stays 0 as long as the gradient is 0.
ENTRY_BY_ENTRY = {
    *(torch.optim.SGD, torch.optim.ASGD, torch.optim.Rprop, torch.optim.RMSprop, torch.optim.Adagrad),
    *(torch.optim.Adadelta, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam),
}

_watching: list[RemovableHandle] = []


def watch_optimizers() -> None:
    """Hook into each step of each optimizer of this process, even those created later.

    An optimizer without held weights only pays for a look at its parameters.
    """
    if not _watching:
        _watching.append(register_optimizer_step_pre_hook(_before_step))
        _watching.append(register_optimizer_step_post_hook(_after_step))


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
    """Mask what the step reads, immediately before it does: after the closure, if there is one, as in Lightning."""
    held = [
        (mask, weight)
        for group in optimizer.param_groups
        for weight in group["params"]
        if (mask := held_by(weight)) is not None
    ]
    if not held:
        return None

    def settle() -> None:
        for mask, weight in held:
            mask.before_step(weight, optimizer)

    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if not callable(closure):
        settle()
        return None
    for mask, weight in held:
        mask.before_forward(weight)

    def settled_closure() -> Any:
        loss = closure()
        settle()
        return loss

    if len(args) > 1:
        return (args[0], settled_closure, *args[2:]), kwargs
    return args, {**kwargs, "closure": settled_closure}


def _after_step(optimizer: Optimizer, *_: Any) -> None:
    keeps_zeros: bool | None = None
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if (held := held_by(weight)) is not None:
                if keeps_zeros is None:
                    keeps_zeros = _keeps_zeros(optimizer)
                held.after_step(weight, optimizer, keeps_zeros)
    if keeps_zeros is not None and isinstance(optimizer, LBFGS):
        _clear_history(optimizer)


def clear_state_of(optimizer: Optimizer) -> None:
    """Set the state of pruned weights to 0, also in optimizers inside this one (Lookahead's base, say)."""
    for weight in list(optimizer.state):
        if isinstance(weight, Tensor) and (held := held_by(weight)) is not None:
            held.clear_state(weight, optimizer.state[weight])
    if isinstance(optimizer, LBFGS):
        _clear_history(optimizer)
    for inner in vars(optimizer).values():
        if isinstance(inner, Optimizer) and inner is not optimizer:
            clear_state_of(inner)


def _clear_history(optimizer: LBFGS) -> None:
    """Mask LBFGS's directions, which are vectors over all parameters, stored under the first of them."""
    state = optimizer.state.get(optimizer._params[0], {})
    flat = [state.get("d"), state.get("prev_flat_grad"), *(state.get("old_dirs") or []), *(state.get("old_stps") or [])]
    for vector in flat:
        if not isinstance(vector, Tensor):
            continue
        parts = vector.split([weight.numel() for weight in optimizer._params])
        for weight, part in zip(optimizer._params, parts, strict=True):
            if (held := held_by(weight)) is not None:
                held.clear(part.view(weight.shape))


def _keeps_zeros(optimizer: Optimizer) -> bool:
    """Whether a step keeps a state of 0 where the gradient is 0. An `eps` of 0, also in float16, would give 0 / 0."""
    return type(optimizer) in ENTRY_BY_ENTRY and all(
        group.get("eps", 1.0) >= _least(weight.dtype) for group in optimizer.param_groups for weight in group["params"]
    )


@functools.cache
def _least(dtype: torch.dtype) -> float:
    """Return the least normal number of a type."""
    return torch.finfo(dtype).tiny


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose steps cannot be hooked.

    Raises:
        SettingError: its class does not call `torch.optim.Optimizer.__init__`.
    """
    if not hasattr(optimizer, "_optimizer_step_post_hooks"):
        name = type(optimizer).__name__
        raise SettingError(
            f"configure_optimizers: {name} does not call torch.optim.Optimizer.__init__, so its steps cannot be hooked "
            f"and pruned weights could come back. Call super().__init__(params, defaults) in {name}."
        )
