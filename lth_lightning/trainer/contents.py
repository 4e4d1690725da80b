"""Lists what an object holds, down to numbers and tensors, so that its states at two times can be compared."""

import functools
import hashlib
import random
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
from torch.utils.data import DataLoader, Dataset
from torchmetrics import Metric, MetricCollection

from lth_lightning.pruning.state import fingerprint

Contents = dict[str, str]
"""The value at each path (`slow[0]`, `base.defaults['lr']`), in words; a tensor by its hash."""

MOST = 10_000  # entries of a container that are compared; a longer one is compared by its length too
# Not followed: objects with their own life cycle, or that reset themselves.
LET_BE = (
    *(ModuleType, type, L.Trainer, L.LightningDataModule, L.Callback, Strategy, Logger, Metric, MetricCollection),
    *(DataLoader, Dataset, LightningOptimizer),
)
FOREIGN_ROOTS = (
    *("lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics", "torch", "jsonargparse"),
    *("logging", "threading"),
)


def contents(things: Mapping[str, Any], known: Mapping[int, Any], leave_out: Callable[[Any, str], bool]) -> Contents:
    """Return everything reachable from `things`: attributes, containers, nested objects and closures.

    Args:
        things: objects by the names that their paths begin with.
        known: objects not to follow because they are handled elsewhere (parameters, modules), by `id`.
        leave_out: whether to ignore an attribute, given its owner and its name.
    """
    return dict(_Walk(known, leave_out).leaves(things))


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

    def leaves(self, things: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        waiting = [*things.items()][::-1]
        while waiting:
            path, thing = waiting.pop()
            if id(thing) in self._known:
                continue
            if (words := _in_words(thing)) is not None:
                yield path, words
            elif id(thing) not in self._seen:
                self._seen[id(thing)] = thing
                parts, words = self._parts(thing)
                if words:
                    yield path, words
                waiting += [(path + name, part) for name, part in reversed(parts)]

    def _parts(self, thing: Any) -> tuple[list[tuple[str, Any]], str | None]:
        """Return the parts of `thing`, and words for `thing` itself or None."""
        parts: list[tuple[str, Any]] = []
        words = None
        if isinstance(thing, LET_BE):
            pass
        elif isinstance(thing, nn.Module):  # one that its owner hides from `modules()`
            parts = [(f".{name}", value) for name, value in (*thing.named_parameters(), *thing.named_buffers())]
        elif isinstance(thing, FunctionType):
            parts = self._closure(thing)
        elif isinstance(thing, MethodType):
            parts = [("", thing.__self__), ("", thing.__func__)]
        elif isinstance(thing, functools.partial):
            parts = [("()", thing.func), ("()", thing.args), ("()", thing.keywords)]
        elif isinstance(thing, Set):
            words = f"{len(thing)} entries: {sorted(map(_short, list(thing)[:MOST]))}"
        else:
            parts = [*_entries(thing), *self._attributes(thing)]
            words = f"{len(thing)} entries" if isinstance(thing, Mapping | SequenceABC) and len(thing) > MOST else None
        return parts, words

    def _attributes(self, thing: Any) -> list[tuple[str, Any]]:
        """Return the attributes to follow: none for `FOREIGN_ROOTS`, except optimizers, schedules and containers."""
        followed = isinstance(thing, Optimizer | LRScheduler | Mapping | SequenceABC)
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


def _short(thing: Any) -> str:
    return _in_words(thing) or type(thing).__qualname__


def _key(key: Any, position: int) -> str:
    return repr(key) if isinstance(key, str | int | float | bool | bytes | tuple) else str(position)
