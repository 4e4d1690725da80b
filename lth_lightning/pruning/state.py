"""The state of a network: every parameter and buffer by its name, copied, loaded and compared."""

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from lth_lightning.errors import SettingError

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
    """Copy `state` into the parameters and buffers of `module`, in place: optimizers keep hold of them."""
    for name, value in full_state(module).items():
        value.copy_(state[name])


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


def parameters_by_name(module: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """The parameters of `module` that have these names; a parameter with several names is found under each.

    Raises:
        SettingError: there is no parameter of that name.
    """
    known = {stable_name(name): weight for name, weight in module.named_parameters(remove_duplicate=False)}
    if missing := [name for name in names if name not in known]:
        raise SettingError(f"{type(module).__name__} has no parameter {', '.join(missing)}.")
    return {name: known[name] for name in names}
