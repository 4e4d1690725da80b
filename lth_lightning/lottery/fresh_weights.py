"""Weights drawn anew from θ₀'s own distribution: for random_reinit, and for tickets of which only the mask is taken.

How to draw them is settled once, before anything is trained, where the module's weights still are θ₀: two dry runs
show whether what comes out has θ₀'s distribution, tensor by tensor.
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

NOT_DRAWN = 1000.0  # every number format holds it, and no initialisation gives it
MORE_DRAWS = 8  # of what two draws do not settle
WAY_OUT = (
    "Say how a fresh network is built: LotteryTicket(reinit=function), --lottery.reinit on the command line, with a "
    "function of no arguments that gives a new module of the same names."
)


@dataclass(frozen=True)
class FreshWeights:
    """How to draw a module's weights anew: tensors and names alone, which a checkpoint may hold.

    Args:
        kept: parameters and buffers that are not trained, and stay as at the rewind point.
        copies: parameters and buffers that start as copies of a trained parameter, by the name of that one.
        constants: parameters that nothing draws, as they start.
    """

    kept: list[str]
    copies: dict[str, str]
    constants: State

    def draw(self, module: nn.Module, reinit: Reinit | None, seed: int, rewind_point: State | None) -> State:
        """New weights for what is trained; the rest as at the rewind point. `module` stays as it is.

        Args:
            module: the network.
            reinit: gives a fresh one; None: `module` is reset (`models.reset`).
            seed: what the draw depends on, and nothing else.
            rewind_point: None: what `module` holds.

        Raises:
            SettingError: what `reinit` gives does not fit the module, or the module cannot be reset.
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
    """Settle how weights are drawn anew, while `module` holds θ₀, or refuse.

    Args:
        module: the network at the start of the fit, left as it is.
        reinit: gives a fresh one, as the user says: its distribution is taken as given.
        seed: for the dry runs.
        prunable: names of the weights that must be drawn anew to be called fresh.
        setting: what asks for them, to be named in errors.

    Raises:
        SettingError: names, shapes or types of what `reinit` gives do not fit; draws differ under one seed, or give
            the weights that there are; or, without `reinit`, are of another distribution than θ₀.
    """
    start = copied(full_state(module))
    kept, copies = _not_trained(module), _copies(module, start)
    if reinit is not None:  # it says what is trained, down to which layers are alike
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
            f"{setting}: two draws under the same seed differ in {_listed(changing)}. Draw from the global generators "
            "of torch, NumPy or Python, which the lottery seeds."
        )
    untouched = [name for name in drawn if reinit is None and bool((draws[0][name] == NOT_DRAWN).all())]
    constants = {name: start[name] for name in untouched if is_constant(start[name])}
    if lost := [name for name in untouched if name not in constants]:
        raise SettingError(f"{setting}: nothing says how to draw {_listed(lost)} anew. {WAY_OUT}")
    loaded = [name for name in drawn if name in set(prunable) and is_same_throughout([draw[name] for draw in draws])]
    if loaded:
        raise SettingError(
            f"{setting}: a network built anew has the same {_listed(loaded)} each time (pretrained weights that it "
            f"loads, say), so nothing would be random. {WAY_OUT}"
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
            f"{setting}: weights drawn anew, each layer as it initialises itself, would not have the distribution of "
            f"those that training starts from: {_listed(differ)}. A constructor may do more than its layers do, and "
            f"weights that were trained before do not tell how they were drawn. {WAY_OUT}"
        )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


# ---------------------------------------------------------------------------- two ways to draw


def _reset(module: nn.Module, base: State) -> State:
    """By `models.reset`, from buffers as at the rewind point; what it leaves alone is `NOT_DRAWN`."""
    load_state(module, base)
    for parameter in module.parameters():
        parameter.data.fill_(NOT_DRAWN)
    reset(module)
    return full_state(module)


def _given(module: nn.Module, reinit: Reinit) -> State:
    """What `reinit` gives, under the names of `module`."""
    built = reinit()
    if not isinstance(built, nn.Module):
        raise SettingError(f"reinit: it gave {type(built).__name__}, and must give a module.")
    complete(built)
    if any(nn.parameter.is_lazy(parameter) for parameter in built.parameters()):
        raise SettingError("reinit: the module that it gives has lazy layers; pass a batch through it first.")
    fresh = {stable_name(name): value for name, value in fresh_values(built)}
    target = full_state(module)
    renamed = _renamed(fresh, _trained(module), _all_names(module))
    if renamed is None:
        missing = [name for name in _trained(module) if name not in fresh]
        superfluous = [f"{name} (only there)" for name in fresh if name not in _all_names(module)]
        raise SettingError(
            f"reinit: the names of the {type(built).__name__} that it gives are not those of "
            f"{type(module).__name__}, with or without a prefix: {_listed([f'{n} (missing)' for n in missing])}"
            f"{', ' if missing and superfluous else ''}{_listed(superfluous)}. Give a module of the same class, or the "
            "network that it holds."
        )
    ours = {name: value for name, value in renamed.items() if name in target}
    unfit = [
        f"{name} (there {tuple(value.shape)} {value.dtype}, here {tuple(target[name].shape)} {target[name].dtype})"
        for name, value in ours.items()
        if value.shape != target[name].shape or _kind(value) != _kind(target[name])
    ]
    if unfit:
        raise SettingError(
            f"reinit: of another shape or type in the {type(built).__name__} that it gives: {_listed(unfit)}."
        )
    return {name: value.to(target[name].device, target[name].dtype) for name, value in ours.items()}


def _renamed(fresh: State, needed: list[str], known: set[str]) -> State | None:
    """`fresh` under the module's names: as they are, or without a prefix of theirs, or with one of the module's."""
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
    """Formats of one kind convert, as a module of one precision does into another."""
    return tensor.is_floating_point(), tensor.is_complex()


# ---------------------------------------------------------------------------- what is not drawn


def _trained(module: nn.Module) -> list[str]:
    return [stable_name(name) for name, weight in module.named_parameters() if weight.requires_grad]


def _not_trained(module: nn.Module) -> list[str]:
    """Frozen parameters, and the buffers beside them: the running statistics of a frozen backbone are part of it."""
    names = [name for name, weight in module.named_parameters() if not weight.requires_grad]
    for name, _ in module.named_buffers():
        owner = name.rpartition(".")[0]
        while not (weights := list(module.get_submodule(owner).parameters())) and owner:
            owner = owner.rpartition(".")[0]
        if weights and not any(weight.requires_grad for weight in weights):
            names.append(name)
    return [stable_name(name) for name in names]


def _copies(module: nn.Module, start: State) -> dict[str, str]:
    """Each tensor that starts as a copy of one that is drawn: a teacher of its student, cloned layers.

    It equals that one bit for bit, and is not constant; constants are copies where they lie beside one.
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
        alike = (one for one in same if one in trained or name in kept)  # buffers may part before the rewind point
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
    """Both names without what they end in alike: `teacher.` and `student.`, of `….0.weight`."""
    ours, theirs = copy.split("."), original.split(".")
    while ours and theirs and ours[-1] == theirs[-1]:
        ours.pop(), theirs.pop()
    return "".join(f"{part}." for part in ours), "".join(f"{part}." for part in theirs)


def _key(value: Tensor) -> tuple[object, ...]:
    """What copies have in common, quick to find."""
    return value.dtype, tuple(value.shape), tuple(value.reshape(-1)[:8].tolist())
