"""Fresh weights from θ₀'s own distribution, for random_reinit and for tickets whose weights are not taken over.

How to draw them is settled once, before any training, while the module's weights still are θ₀. Two dry runs check,
tensor by tensor, whether the draws have θ₀'s distribution.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lth_lightning.errors import SettingError
from lth_lightning.lottery.same_distribution import difference, is_same_throughout
from lth_lightning.models import reset
from lth_lightning.models.initialise import is_constant
from lth_lightning.models.rebuild import complete, fresh_values
from lth_lightning.pruning.state import State, copied, full_state, load_state, stable_name
from lth_lightning.seeding import derive_seed, preserved_generators, seed_global_generators

Reinit = Callable[[], nn.Module]

NOT_DRAWN = 1000.0  # every number format can hold it, and no initialisation draws it
MORE_DRAWS = 8  # for tensors that two draws do not settle
WAY_OUT = (
    "Pass a function that builds a fresh network: LotteryTicket(reinit=function), --lottery.reinit on the command "
    "line. It takes no arguments and returns a new module with the same names."
)


@dataclass(frozen=True)
class FreshWeights:
    """How to draw a module's weights anew, as tensors and names only, so that a checkpoint can hold it.

    Args:
        kept: parameters and buffers that are not trained and keep the rewind point's values.
        copies: parameters and buffers that start as copies of a trained parameter, each with that one's name.
        constants: parameters that are not drawn, with their initial values.
    """

    kept: list[str]
    copies: dict[str, str]
    constants: State

    def draw(self, module: nn.Module, reinit: Reinit | None, seed: int, rewind_point: State | None) -> State:
        """Draw new weights for what is trained; the rest is the rewind point's. `module` is not changed.

        Args:
            module: the network.
            reinit: returns a fresh network; if None, `module` is reset (`models.reset`).
            seed: the draw depends on nothing else.
            rewind_point: the state for what is not drawn; if None, the module's own.

        Raises:
            SettingError: `reinit`'s module does not fit `module`, or `module` cannot be reset.
        """
        before = copied(full_state(module))
        base = before if rewind_point is None else rewind_point
        try:
            with preserved_generators():
                seed_global_generators(seed)
                fresh = copied(_given(module, reinit) if reinit else _reset(module, base))
        finally:
            load_state(module, before)
        state = {name: fresh.get(name, value) for name, value in base.items()}  # buffers may come and go in training
        state |= {name: base[name] for name in self.kept} | self.constants
        state |= {name: state[original] for name, original in self.copies.items()}
        own = {name: before.get(name, value) for name, value in base.items()}
        return copied({name: value.to(own[name].device, base[name].dtype) for name, value in state.items()})


def how_to_draw(
    module: nn.Module, reinit: Reinit | None, seed: int, prunable: Iterable[str], setting: str
) -> FreshWeights:
    """Settle how weights are drawn anew, while `module` holds θ₀.

    Args:
        module: the network at the start of the fit; not changed.
        reinit: the user's function that returns a fresh network; its distribution is not checked.
        seed: the seed of the dry runs.
        prunable: names of the weights that must be drawn anew.
        setting: the setting that asks for fresh weights, for errors.

    Raises:
        SettingError: names, shapes or dtypes of `reinit`'s module do not fit; draws under one seed differ, or always
            give the same weights; or, without `reinit`, draws have another distribution than θ₀.
    """
    start = copied(full_state(module))
    kept, copies = _not_trained(module), _copies(module, start)
    if reinit is not None:  # it determines all trained weights, even which layers are equal
        copies = {name: original for name, original in copies.items() if name in kept}
    how = FreshWeights(kept, copies, {})

    def draw(number: int) -> State:
        try:
            return how.draw(module, reinit, derive_seed(seed, "dry run", number), start)
        except SettingError as error:
            raise SettingError(f"{setting}: {error}") from error

    drawn = [name for name in _trained(module) if name not in copies]
    draws = [draw(0), draw(1)]
    again = draw(0)
    if changing := [name for name in drawn if not torch.equal(again[name], draws[0][name])]:
        raise SettingError(
            f"{setting}: two draws with the same seed differ in {_listed(changing)}. Draw from the global generators "
            "of torch, NumPy or Python, which the lottery seeds."
        )
    untouched = [name for name in drawn if reinit is None and bool((draws[0][name] == NOT_DRAWN).all())]
    constants = {name: start[name] for name in untouched if is_constant(start[name])}
    if lost := [name for name in untouched if name not in constants]:
        raise SettingError(f"{setting}: no layer has a method to draw {_listed(lost)} anew. {WAY_OUT}")
    loaded = [name for name in drawn if name in set(prunable) and is_same_throughout([draw[name] for draw in draws])]
    if loaded:
        raise SettingError(
            f"{setting}: a newly built network always has the same {_listed(loaded)} (it loads pretrained weights, "
            f"say), so nothing would be random. {WAY_OUT}"
        )
    if reinit is None:
        compared = [name for name in drawn if name not in constants]
        suspects = [
            name
            for name in compared
            if start[name].numel() == 1 or difference(start[name], [draw[name] for draw in draws])
        ]
        for number in range(2, MORE_DRAWS if suspects else 2):
            draws.append({name: value for name, value in draw(number).items() if name in suspects})
        _refuse_other_distribution(
            {name: difference(start[name], [draw[name] for draw in draws]) for name in suspects}, setting
        )
    return FreshWeights(kept, copies, constants)


def _refuse_other_distribution(differences: Mapping[str, str | None], setting: str) -> None:
    differ = [f"{name} ({what})" for name, what in differences.items() if what]
    if differ:
        raise SettingError(
            f"{setting}: if each layer initialised itself, the fresh weights would not have the distribution of the "
            f"initial ones: {_listed(differ)}. A constructor may do more than its layers do, and pretrained weights do "
            f"not show how they were drawn. {WAY_OUT}"
        )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


# ---------------------------------------------------------------------------- two ways to draw


def _reset(module: nn.Module, base: State) -> State:
    """Draw by `models.reset`, with the rewind point's buffers; what it does not draw is `NOT_DRAWN`."""
    load_state(module, base)
    for parameter in module.parameters():
        parameter.data.fill_(NOT_DRAWN)
    reset(module)
    return full_state(module)


def _given(module: nn.Module, reinit: Reinit) -> State:
    """Draw by `reinit`, and rename the tensors to the names of `module`."""
    built = reinit()
    if not isinstance(built, nn.Module):
        raise SettingError(f"reinit must return a module, got {type(built).__name__}.")
    complete(built)
    if any(nn.parameter.is_lazy(parameter) for parameter in built.parameters()):
        raise SettingError("reinit: the module that it returns has lazy layers; pass a batch through it first.")
    fresh = {stable_name(name): value for name, value in fresh_values(built)}
    target = full_state(module)
    renamed = _renamed(fresh, _trained(module), _all_names(module))
    if renamed is None:
        missing = [name for name in _trained(module) if name not in fresh]
        superfluous = [f"{name} (only there)" for name in fresh if name not in _all_names(module)]
        raise SettingError(
            f"reinit: the names of the {type(built).__name__} that it returns are not those of "
            f"{type(module).__name__}, with or without a prefix: {_listed([f'{n} (missing)' for n in missing])}"
            f"{', ' if missing and superfluous else ''}{_listed(superfluous)}. Return a module of the same class, or "
            "the network that it holds."
        )
    ours = {name: value for name, value in renamed.items() if name in target}
    unfit = [
        f"{name} (there {tuple(value.shape)} {value.dtype}, here {tuple(target[name].shape)} {target[name].dtype})"
        for name, value in ours.items()
        if value.shape != target[name].shape or _kind(value) != _kind(target[name])
    ]
    if unfit:
        raise SettingError(
            f"reinit: the {type(built).__name__} that it returns has other shapes or dtypes: {_listed(unfit)}."
        )
    return {name: value.to(target[name].device, target[name].dtype) for name, value in ours.items()}


def _renamed(fresh: State, needed: list[str], known: set[str]) -> State | None:
    """Rename `fresh` to the module's names: unchanged, without a shared prefix, or with one of the module's."""
    heads = {name.split(".", 1)[0] + "." for name in fresh}
    old = ["", *(head for head in heads if all(name.startswith(head) for name in fresh))]
    new = [
        "",
        *sorted({name[: place + 1] for name in known for place, sign in enumerate(name) if sign == "."}, key=len),
    ]
    for off in old:
        for on in new:
            renamed = {on + name.removeprefix(off): value for name, value in fresh.items()}
            if renamed.keys() <= known and set(needed) <= renamed.keys():
                return renamed
    return None


def _all_names(module: nn.Module) -> set[str]:
    parameters = module.named_parameters(remove_duplicate=False)
    buffers = module.named_buffers(remove_duplicate=False)
    return {stable_name(name) for name, _ in (*parameters, *buffers)}


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    """Return (is real, is complex); dtypes of the same kind convert to each other, as modules change precision."""
    return tensor.is_floating_point(), tensor.is_complex()


# ---------------------------------------------------------------------------- what is not drawn


def _trained(module: nn.Module) -> list[str]:
    return [stable_name(name) for name, weight in module.named_parameters() if weight.requires_grad]


def _not_trained(module: nn.Module) -> list[str]:
    """List frozen parameters and the buffers beside them, such as a frozen backbone's running statistics."""
    names = [name for name, weight in module.named_parameters() if not weight.requires_grad]
    for name, _ in module.named_buffers():
        owner = name.rpartition(".")[0]
        while not (weights := list(module.get_submodule(owner).parameters())) and owner:
            owner = owner.rpartition(".")[0]
        if weights and not any(weight.requires_grad for weight in weights):
            names.append(name)
    return [stable_name(name) for name in names]


def _copies(module: nn.Module, start: State) -> dict[str, str]:
    """Map each tensor that starts as a copy of a drawn one to that one's name: a student's teacher, cloned layers.

    A copy is bit-for-bit equal and not constant; a constant counts as a copy if it lies beside one.
    """
    trained, kept = _trained(module), set(_not_trained(module))
    flat = {name: value.reshape(-1) for name, value in start.items()}
    constant = {name for name, value in flat.items() if bool((value == value[:1]).all())}
    formats = {value.dtype for value in start.values()}
    originals: dict[tuple[object, ...], list[str]] = {}
    copies: dict[str, str] = {}
    for name in (*trained, *(name for name in start if name not in trained)):
        value = start[name]
        if name in constant:
            continue
        same = (one for one in originals.get(_key(value), []) if torch.equal(start[one].to(value.dtype), value))
        alike = (one for one in same if one in trained or name in kept)  # buffers may diverge before the rewind point
        if (original := next(alike, None)) is not None:
            copies[name] = original
        elif name not in kept:
            for format in formats:  # a teacher in half precision is a copy too
                if format.is_floating_point == value.is_floating_point() and format.is_complex == value.is_complex():
                    originals.setdefault(_key(value.to(format)), []).append(name)
    beside = {_parted(*pair) for pair in copies.items()}
    for copy, original in ((copy, original) for copy, original in beside if copy):
        for name in (name for name in constant & kept if name.startswith(copy)):
            counterpart = original + name.removeprefix(copy)
            if counterpart in start and torch.equal(start[counterpart].to(start[name].dtype), start[name]):
                copies[name] = counterpart
    return copies


def _parted(copy: str, original: str) -> tuple[str, str]:
    """Strip the common ending of two names: `teacher.` and `student.` for `….0.weight`."""
    ours, theirs = copy.split("."), original.split(".")
    while ours and theirs and ours[-1] == theirs[-1]:
        ours.pop(), theirs.pop()
    return "".join(f"{part}." for part in ours), "".join(f"{part}." for part in theirs)


def _key(value: Tensor) -> tuple[object, ...]:
    """Return a quick key that copies have in common."""
    return value.dtype, tuple(value.shape), tuple(value.reshape(-1)[:8].tolist())
