"""The state of a network: every parameter and buffer by its name, copied, loaded and compared."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


def copied(state: State) -> State:
    """Copies, never the live tensors: a rewind point that aliases them would follow training."""
    return {name: value.detach().clone() for name, value in state.items()}


def full_state(module: nn.Module) -> State:
    """Every parameter and buffer of `module` by name: references, not copies."""
    state: State = {stable_name(name): parameter.data for name, parameter in module.named_parameters()}
    state.update((stable_name(name), buffer) for name, buffer in module.named_buffers())
    return state


@torch.no_grad()
def load_state(module: nn.Module, state: State) -> None:
    """Copy `state` into the parameters and buffers of `module`, in place: optimizers keep hold of them.

    Buffers may come, go and grow: one of another shape or type is replaced, one that `state` does not hold is None.
    """
    for name, parameter in module.named_parameters():
        parameter.data.copy_(state[stable_name(name)])
    _load_buffers(module, state)


def _load_buffers(module: nn.Module, state: State) -> None:
    owners = {stable_name(f"{prefix}." if prefix else ""): part for prefix, part in module.named_modules()}
    there = {prefix + name: value for prefix, part in owners.items() for name, value in part._buffers.items()}
    device = next((value.device for value in full_state(module).values()), None)
    placed: dict[int, Tensor | None] = {}  # by the `id` of what was there: modules may share a buffer
    for name in [*there, *_not_there(module, there, state)]:
        value, wanted = there.get(name), state.get(name)
        if value is not None and id(value) in placed:
            wanted = placed[id(value)]
        elif value is not None and wanted is not None and (value.shape, value.dtype) == (wanted.shape, wanted.dtype):
            value.copy_(wanted)
            wanted = value
        elif wanted is not None:
            wanted = wanted.to(device if value is None else value.device, copy=True)
        if value is not None:
            placed[id(value)] = wanted
        if wanted is not value:
            prefix, dot, last = name.rpartition(".")
            owner = owners[prefix + dot]
            owner.register_buffer(last, wanted, persistent=last not in owner._non_persistent_buffers_set)


def _not_there(module: nn.Module, there: Mapping[str, Tensor | None], state: State) -> list[str]:
    """The buffers of `state` that the module has not even the names of."""
    parameters = {stable_name(name) for name, _ in module.named_parameters()}
    return [name for name in state if name not in there and name not in parameters]


def stable_name(name: str) -> str:
    """`name` without the marks that `torch.compile` leaves in it, so that tickets fit with and without."""
    return name.replace("_orig_mod.", "")


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes: equal exactly if the tensors are equal bit for bit."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name!r} {value.dtype} {tuple(value.shape)}\n".encode())
        # Not `reshape(-1)`: of a single entry, or of none, it keeps a stride that `view` refuses.
        digest.update(value.as_strided((value.numel(),), (1,)).view(torch.uint8).numpy().data)
    return digest.hexdigest()
