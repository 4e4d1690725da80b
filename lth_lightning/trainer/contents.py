"""Lists what an object holds, down to numbers and tensors, so that its states at two times can be compared.

Data (datasets, samplers and whatever they hold) may be as large as the disk: of them only small things, and a sample
of large ones, are listed, up to `MOST_OF_DATA` things.
"""

import functools
import hashlib
import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Set
from collections.abc import Sequence as SequenceABC
from types import FunctionType, MethodType, ModuleType, UnionType
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler
from torchmetrics import Metric

from lth_lightning.pruning.state import fingerprint

Contents = dict[str, str]
"""The value at each path (`slow[0]`, `base.defaults['lr']`), in words; a tensor by its hash."""

MOST = 10_000  # entries of a container that are compared; a longer one is compared by its length too
MOST_OF_DATA = 500  # things listed of data
SAMPLE, ENTRIES = 1_000, 30  # of a large tensor, and of a container, of data
TRUNCATED = "(and more)"
"""The path that contents have if data had more than `MOST_OF_DATA` things; other paths may then be missing."""
# Not followed: objects with their own life cycle, or that reset themselves.
LET_BE = (
    *(ModuleType, type, L.Trainer, L.LightningDataModule, L.Callback, Strategy, Logger, DataLoader),
    LightningOptimizer,
)
FOREIGN_ROOTS = (
    *("lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics", "torch", "jsonargparse"),
    *("logging", "threading"),
)


def contents(
    things: Mapping[str, Any], known: Mapping[int, Any], leave_out: Callable[[Any, str], bool], *, data: bool = False
) -> Contents:
    """Return everything reachable from `things`: attributes, containers, nested objects and closures.

    Args:
        things: objects by the names that their paths begin with.
        known: objects not to follow because they are handled elsewhere (parameters, modules), by `id`.
        leave_out: whether to ignore an attribute, given its owner and its name.
        data: whether to treat the objects as data.
    """
    return dict(_Walk(known, leave_out).leaves(things, data))


def changed(before: Contents, now: Contents) -> list[str]:
    """Return the paths at which two contents differ, in order."""
    return [path for path in {**before, **now} if before.get(path) != now.get(path)]


def is_torchs_own(optimizer: object) -> bool:
    """Whether this is one of torch's own optimizers, whose `state_dict` holds all of their state."""
    return type(optimizer).__module__.startswith("torch.optim.")


class _Walk:
    def __init__(self, known: Mapping[int, Any], leave_out: Callable[[Any, str], bool]) -> None:
        self._known, self._leave_out = known, leave_out
        self._seen: dict[int, Any] = {}  # keeps visited objects alive, so that no `id` is reused

    def leaves(self, things: Mapping[str, Any], data: bool) -> Iterator[tuple[str, str]]:
        waiting = [] if data else [*things.items()][::-1]
        of_data = deque(things.items() if data else ())
        while waiting:
            path, thing = waiting.pop()
            if id(thing) in self._known:
                continue
            if (words := _in_words(thing)) is not None:
                yield path, words
            elif isinstance(thing, Dataset | Sampler):
                of_data.append((path, thing))
            elif id(thing) not in self._seen:
                self._seen[id(thing)] = thing
                parts, words = self._parts(thing)
                if words:
                    yield path, words
                waiting += [(path + name, part) for name, part in reversed(parts)]
        yield from self._leaves_of_data(of_data)

    def _leaves_of_data(self, waiting: deque[tuple[str, Any]]) -> Iterator[tuple[str, str]]:
        """Yield the leaves of data, the nearest first."""
        for _ in range(MOST_OF_DATA):
            if not waiting:
                return
            path, thing = waiting.popleft()
            if id(thing) in self._known:
                continue
            if (words := _in_few_words(thing)) is not None:
                yield path, words
            elif id(thing) not in self._seen:
                self._seen[id(thing)] = thing
                if isinstance(thing, CONTAINERS):
                    yield path, f"{len(thing)} entries"
                    parts = _first_entries(thing)
                elif isinstance(thing, Mapping | SequenceABC | Set):  # indexing a dataset may draw random numbers
                    parts = self._attributes(thing)
                else:
                    parts, _ = self._parts(thing)
                waiting += [(path + name, part) for name, part in parts]
        if waiting:
            yield TRUNCATED, ""

    def _parts(self, thing: Any) -> tuple[list[tuple[str, Any]], str | None]:
        """Return the parts of `thing`, and words for `thing` itself or None."""
        parts: list[tuple[str, Any]] = []
        words = None
        if isinstance(thing, LET_BE):
            pass
        elif isinstance(thing, nn.Module):  # one that its owner hides from `modules()`
            states = [(name, one.metric_state) for name, one in thing.named_modules() if isinstance(one, Metric)]
            named = (*thing.named_parameters(), *thing.named_buffers(), *states)
            parts = [(f".{name}" if name else "", value) for name, value in named]
        elif isinstance(thing, FunctionType):
            parts = self._closure(thing)
        elif isinstance(thing, MethodType):
            parts = [("", thing.__self__), ("", thing.__func__)]
        elif isinstance(thing, functools.partial):
            parts = [("()", thing.func), ("()", thing.args), ("()", thing.keywords)]
        elif isinstance(thing, Set):
            words = f"{len(thing)} entries: {sorted(map(_short, list(thing)[:MOST]))}"
        elif _saves_state(thing):
            parts = _entries(thing.state_dict())
        else:
            parts = [*_entries(thing), *self._attributes(thing)]
            words = f"{len(thing)} entries" if isinstance(thing, Mapping | SequenceABC) and len(thing) > MOST else None
        return parts, words

    def _attributes(self, thing: Any) -> list[tuple[str, Any]]:
        """Return the attributes to follow: none for `FOREIGN_ROOTS`, except optimizers, schedules, containers and
        data."""
        followed = isinstance(thing, Optimizer | LRScheduler | Mapping | SequenceABC | Dataset | Sampler)
        if not followed and type(thing).__module__.split(".")[0] in FOREIGN_ROOTS:
            return []
        return [(f".{name}", value) for name, value in attributes(thing) if not self._leave_out(thing, name)]

    def _closure(self, function: FunctionType) -> list[tuple[str, Any]]:
        """Return a function's closure variables; none for torch's own functions."""
        if function.__module__ is None or function.__module__.split(".")[0] in FOREIGN_ROOTS:
            return []
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        return [(f"({name})", cell.cell_contents) for name, cell in cells if _is_filled(cell)]


def attributes(thing: Any) -> list[tuple[str, Any]]:
    """Return an object's own attributes by name, including those in `__slots__`."""
    slots = [name for base in type(thing).__mro__ for name in _slots(base) if hasattr(thing, name)]
    return [*getattr(thing, "__dict__", {}).items(), *((name, getattr(thing, name)) for name in slots)]


def _has_slots(thing: Any) -> bool:
    return any(_slots(base) for base in type(thing).__mro__)


def _slots(base: type) -> tuple[str, ...]:
    names = vars(base).get("__slots__", ())
    names = (names,) if isinstance(names, str) else tuple(names)
    return tuple(name for name in names if not name.startswith("__"))  # such names are mangled


def _is_filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _saves_state(thing: Any) -> bool:
    """Whether it is an object of torch (a GradScaler, say) that says itself what its state is."""
    others = isinstance(thing, Optimizer | LRScheduler | Dataset | Sampler)
    return type(thing).__module__.startswith("torch.") and not others and hasattr(thing, "load_state_dict")


CONTAINERS = (list, tuple, dict, set, frozenset, deque)


def _first_entries(container: Any) -> list[tuple[str, Any]]:
    first = itertools.islice(container.items() if isinstance(container, dict) else enumerate(container), ENTRIES)
    if isinstance(container, set | frozenset):  # their order is not that of an earlier time
        return []
    return [(f"[{_key(key, i)}]", value) for i, (key, value) in enumerate(first)]


def _entries(container: Any) -> list[tuple[str, Any]]:
    if isinstance(container, Mapping):
        return [(f"[{_key(key, i)}]", container[key]) for i, key in enumerate(list(container)[:MOST])]
    if isinstance(container, SequenceABC):
        return [(f"[{i}]", container[i]) for i in range(min(len(container), MOST))]
    return []


def _hash(value: Any) -> str:
    """Return a hash that, unlike Python's own, is the same in every process."""
    return hashlib.sha256(value if isinstance(value, bytes) else repr(value).encode()).hexdigest()[:16]


def _tensor(value: Tensor) -> str:
    if value.layout != torch.strided or value.is_meta or value.is_quantized:
        return f"tensor {value.layout} {tuple(value.shape)}"
    return f"tensor {value.dtype} {tuple(value.shape)} {fingerprint({'': value})[:16]}"


WORDS: tuple[tuple[type | UnionType, Callable[[Any], str]], ...] = (
    (type(None) | bool | int | float | complex | str | bytes, repr),
    (Tensor, _tensor),
    (torch.Generator, lambda thing: _tensor(thing.get_state())),
    (np.ndarray, lambda thing: f"array {thing.dtype} {thing.shape} {_hash(thing.tolist())}"),
    (random.Random, lambda thing: f"generator {_hash(thing.getstate())}"),
    (np.random.Generator, lambda thing: f"generator {_hash(thing.bit_generator.state)}"),
    (np.random.RandomState, lambda thing: f"generator {_hash([str(part) for part in thing.get_state()])}"),
)
"""How to put an object without parts in words, by type."""


def _in_words(thing: Any) -> str | None:
    """Describe an object without parts; None for one with parts or of unknown type."""
    for kind, say in WORDS:
        if isinstance(thing, kind):
            return say(thing)
    if hasattr(thing, "__dict__") or isinstance(thing, Mapping | Set | SequenceABC | MethodType) or _has_slots(thing):
        return None
    words = repr(thing)  # a path, a date, a NumPy number, an `itertools.count`
    return None if " at 0x" in words else words


PLAIN_MODULES = ("builtins", "itertools", "numpy", "datetime", "pathlib", "decimal", "fractions")


def _in_few_words(thing: Any) -> str | None:
    """As `_in_words`, in a time that does not grow with the object."""
    if isinstance(thing, str | bytes) and len(thing) > SAMPLE:
        return f"{len(thing)} long, {_hash(thing[:SAMPLE])}"
    if isinstance(thing, Tensor) and thing.numel() > SAMPLE:
        sampled = thing.layout == torch.strided and not thing.is_meta and thing.is_contiguous()
        sample = _tensor(thing.detach().view(-1)[:: thing.numel() // SAMPLE]) if sampled else ""
        return f"tensor {tuple(thing.shape)} {sample}"
    if isinstance(thing, np.ndarray) and thing.size > SAMPLE:
        sampled = thing.flags.c_contiguous and not isinstance(thing, np.memmap) and thing.dtype != object
        sample = _hash(thing.reshape(-1)[:: thing.size // SAMPLE].tobytes()) if sampled else ""
        return f"array {thing.dtype} {thing.shape} {sample}"
    known = any(isinstance(thing, kind) for kind, _ in WORDS)
    return _in_words(thing) if known or type(thing).__module__ in PLAIN_MODULES else None


def _short(thing: Any) -> str:
    return _in_words(thing) or type(thing).__qualname__


def _key(key: Any, position: int) -> str:
    return repr(key) if isinstance(key, str | int | float | bool | bytes | tuple) else str(position)
