"""The state of a network: every parameter and buffer by its name, copied, loaded and compared."""

import hashlib
from collections.abc import Iterable, Mapping
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

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
    """Copy `state` into the parameters and buffers of `module`, in place: optimizers keep hold of them.

    Buffers may come, go and grow: one of another shape or type is replaced, one that `state` does not hold is None.
    """
    for name, parameter in module.named_parameters():
        _once(parameter.data).copy_(_once(state[stable_name(name)], like=parameter))
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
    """The buffers of `state` that the module has not even the names of."""
    parameters = {stable_name(name) for name, _ in module.named_parameters()}
    return [name for name in state if name not in there and name not in parameters]


def _once(value: Tensor, like: Tensor | None = None) -> Tensor:
    """Of an expanded tensor (`like`) the numbers that are in memory, each once: others cannot be written to."""
    strides = (value if like is None else like).stride()
    for dim, (stride, size) in enumerate(zip(strides, value.shape, strict=True)):
        value = value.narrow(dim, 0, 1) if stride == 0 and size > 1 else value
    return value


def check_state(module: nn.Module) -> None:
    """Refuse a module with parameters or buffers that cannot be copied, compared and written down.

    Raises:
        SettingError: one has no shape yet, no values (meta), or is sparse, nested or quantized; it names it.
    """
    for name, value in chain(module.named_parameters(), module.named_buffers()):
        if is_lazy(value):
            owner = module.get_submodule(name.rpartition(".")[0])
            raise SettingError(
                f"{stable_name(name)}: {type(owner).__name__} gets its shape from the first batch, and none has gone "
                "through it. Send one through the network before the fit, or in the module's `setup`."
            )
        if value.is_meta:
            raise SettingError(
                f"{stable_name(name)} is on the meta device and has no values. Give it some before the fit, or in the "
                "module's `configure_model`."
            )
        if value.layout != torch.strided or value.is_quantized:
            kind = "quantized" if value.is_quantized else str(value.layout).removeprefix("torch.")
            raise SettingError(
                f"{stable_name(name)} is {kind}; rewind points and tickets hold dense tensors. Make it dense, or keep "
                "it in an attribute that is not a buffer, if it never changes."
            )


def aliases(module: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter by all its names: one that is shared has several, of which `full_state` has the first."""
    return {stable_name(name): weight for name, weight in module.named_parameters(remove_duplicate=False)}


def parameters_by_name(module: nn.Module, names: Iterable[str]) -> dict[str, nn.Parameter]:
    """The module's own parameters of these names, aliases of shared ones included.

    Raises:
        SettingError: the module has no parameter of such a name; it lists them.
    """
    own = aliases(module)
    wanted = {name: own.get(stable_name(name)) for name in names}
    if missing := [name for name, weight in wanted.items() if weight is None]:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise SettingError(
            f"{type(module).__name__} has no parameter {', '.join(missing[:5])}{more}; names are as in "
            "`module.named_parameters()`."
        )
    return {name: weight for name, weight in wanted.items() if weight is not None}


def stable_name(name: str) -> str:
    """`name` without the marks that `torch.compile` leaves in it, so that tickets fit with and without."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes: equal exactly if the tensors are equal bit for bit."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name!r} {value.dtype} {tuple(value.shape)}\n".encode())
        # Not `reshape(-1)`: of a single entry, or of none, it keeps a stride that `view` refuses.
        digest.update(value.as_strided((value.numel(),), (1,)).view(torch.uint8).numpy().data)
    return digest.hexdigest()
