"""A network's state, every parameter and buffer by name: copy, load and compare it."""

import hashlib
from collections.abc import Iterable, Mapping
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lth_lightning.errors import SettingError
from lth_lightning.pruning.survivors import survivors_of, whole

State = dict[str, Tensor]


def copied(state: State) -> State:
    """Copy a state; a rewind point that aliased the live tensors would change in training."""
    return {name: value.detach().clone() for name, value in state.items()}


def full_state(module: nn.Module) -> State:
    """Return every parameter and buffer of `module` by name and dense: as references, unless only survivors exist."""
    state: State = {stable_name(name): whole(parameter) for name, parameter in module.named_parameters()}
    state.update((stable_name(name), buffer) for name, buffer in module.named_buffers())
    return state


@torch.no_grad()
def load_state(module: nn.Module, state: State) -> None:
    """Copy `state` into the parameters and buffers of `module`, in place, so that optimizers keep their parameters.

    Buffers of another shape or dtype are replaced; buffers that `state` does not hold become None.
    """
    for name, parameter in module.named_parameters():
        value = state[stable_name(name)]
        if (survivors := survivors_of(parameter)) is not None:
            parameter.copy_(survivors.taken(value))
        else:
            _once(parameter.data).copy_(_once(value, like=parameter))
    _load_buffers(module, state)


def _load_buffers(module: nn.Module, state: State) -> None:
    owners = {stable_name(f"{prefix}." if prefix else ""): part for prefix, part in module.named_modules()}
    there = {prefix + name: value for prefix, part in owners.items() for name, value in part._buffers.items()}
    device = next((value.device for value in full_state(module).values()), None)
    placed: dict[int, Tensor | None] = {}  # by the `id` of the old buffer, as modules may share one
    for name in [*there, *_not_there(module, there, state)]:
        value, wanted = there.get(name), state.get(name)
        if value is not None and id(value) in placed:
            wanted = placed[id(value)]
        elif value is not None and wanted is not None and (value.shape, value.dtype) == (wanted.shape, wanted.dtype):
            _once(value).copy_(_once(wanted, like=value))
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
    """Return the names of buffers in `state` that the module does not have, not even as None."""
    parameters = {stable_name(name) for name, _ in module.named_parameters()}
    return [name for name in state if name not in there and name not in parameters]


def _once(value: Tensor, like: Tensor | None = None) -> Tensor:
    """Reduce an expanded tensor (`like`) to its numbers in memory, each once, as only those can be written to."""
    strides = (value if like is None else like).stride()
    for dim, (stride, size) in enumerate(zip(strides, value.shape, strict=True)):
        value = value.narrow(dim, 0, 1) if stride == 0 and size > 1 else value
    return value


def check_state(module: nn.Module) -> None:
    """Refuse a module with parameters or buffers that cannot be copied, compared and saved.

    Raises:
        SettingError: one has no shape yet, has no values (meta), or is sparse, nested or quantized; the error names it.
    """
    for name, value in chain(module.named_parameters(), module.named_buffers()):
        if is_lazy(value):
            owner = module.get_submodule(name.rpartition(".")[0])
            raise SettingError(
                f"{stable_name(name)}: {type(owner).__name__} takes its shape from the first batch and has not seen "
                "one yet. Pass a batch through the network before the fit, or in the module's `setup`."
            )
        if value.is_meta:
            raise SettingError(
                f"{stable_name(name)} is on the meta device and has no values. Initialise it before the fit, or in the "
                "module's `configure_model`."
            )
        if value.layout != torch.strided or value.is_quantized:
            kind = "quantized" if value.is_quantized else str(value.layout).removeprefix("torch.")
            raise SettingError(
                f"{stable_name(name)} is {kind}, but rewind points and tickets hold dense tensors. Make it dense, or, "
                "if it never changes, keep it in an attribute that is not a buffer."
            )


def aliases(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return every parameter by all its names; shared ones have several, and `full_state` uses the first."""
    return {stable_name(name): weight for name, weight in module.named_parameters(remove_duplicate=False)}


def parameters_by_name(module: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """Return the module's parameters with these names; a shared parameter may go by any of its names.

    Raises:
        SettingError: the module has no parameters with some of the names; the error lists them.
    """
    own = aliases(module)
    wanted = {name: own.get(stable_name(name)) for name in names}
    if missing := [name for name, weight in wanted.items() if weight is None]:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise SettingError(
            f"{type(module).__name__} has no parameter {', '.join(missing[:5])}{more}. Use the names in "
            "`module.named_parameters()`."
        )
    return {name: weight for name, weight in wanted.items() if weight is not None}


def stable_name(name: str) -> str:
    """Strip `torch.compile`'s prefixes from `name`, so that tickets fit compiled and uncompiled modules."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 of names, dtypes, shapes and bytes: equal exactly if the tensors are bit-for-bit equal."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name!r} {value.dtype} {tuple(value.shape)}\n".encode())
        # Not `reshape(-1)`, which keeps a stride that `view` refuses for one entry or none.
        digest.update(value.as_strided((value.numel(),), (1,)).view(torch.uint8).numpy().data)
    return digest.hexdigest()
