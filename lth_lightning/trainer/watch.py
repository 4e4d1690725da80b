"""Watch: warns of attributes that modules, callbacks and data carry from network to network, as none is restored."""

import functools
import logging
import re
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import RunningStage
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader
from torchmetrics import Metric, MetricCollection

from lth_lightning.trainer import bars
from lth_lightning.trainer.callback_states import is_users, users_parts
from lth_lightning.trainer.contents import FOREIGN_ROOTS, TRUNCATED, Contents, changed, contents
from lth_lightning.trainer.restart import FreshFit

log = logging.getLogger(__name__)

# Attributes that nn.Module and LightningModule use themselves; `_hparams` is the user's.
NOT_THE_USERS = {*vars(nn.Module()), *vars(L.LightningModule())} | {
    "_hparams_name",
    "_hparams_initial",
    "_compiler_ctx",
}


def own_attributes(module: nn.Module) -> Contents:
    """Return the contents of the attributes of a module, its submodules and their classes.

    Parameters and buffers, which `load_state` restores, are left out, as are optimizers, which are new, and metrics.
    """
    things: dict[str, Any] = {}
    known = {id(thing): thing for thing in [*module.parameters(), *module.buffers()]}
    for prefix, part in module.named_modules():
        known[id(part)] = part
        if isinstance(part, Metric | MetricCollection):
            continue
        own = {name: value for name, value in vars(part).items() if name not in NOT_THE_USERS}
        things |= {f"{prefix}.{name}" if prefix else name: value for name, value in own.items()}
    for kind in {base for part in module.modules() for base in type(part).__mro__}:
        if kind.__module__.split(".")[0] not in (*FOREIGN_ROOTS, "builtins", "abc", "typing"):
            own = {name: value for name, value in vars(kind).items() if not name.startswith("__") and _holds(value)}
            things |= {f"{kind.__qualname__}.{name}": value for name, value in own.items()}
    things = {name: value for name, value in things.items() if not isinstance(value, Optimizer | LRScheduler)}
    return contents(things, known, _is_new)


def _is_new(owner: Any, name: str) -> bool:
    """Whether an attribute's owner is new for each network."""
    return isinstance(owner, Optimizer | LRScheduler)


CALLBACK, DATA, LOADER = "callback ", "data module ", "train loader"
ADVICE = {
    CALLBACK: "a callback's in its on_network_start(trainer, module, network, density), or give it state_dict and "
    "load_state_dict",
    DATA: "the data module's in the module's or a callback's on_network_start",
    LOADER: "those of the training data in the module's or a callback's on_network_start, or let random numbers come "
    "from torch's global generator, which is seeded for each epoch",
}
"""What to do about attributes whose paths begin with these words; other paths are the module's."""


def others_attributes(trainer: L.Trainer) -> Contents:
    """Return the contents of the attributes of other people's callbacks, the data module and the training data."""
    things: dict[str, Any] = {}
    for key, part in users_parts(trainer).items():
        owner = DATA if part is trainer.datamodule else CALLBACK
        things |= {f"{owner}{key}.{name}": value for name, value in _users_attributes(part)}
    loader = trainer.fit_loop._combined_loader
    loaders = [] if loader is None else loader.flattened
    for i, one in enumerate(loaders):
        if not is_users(type(one)) or hasattr(one, "seek"):  # its order is set for each epoch
            continue
        owner = LOADER if len(loaders) == 1 else f"{LOADER} {i}"
        if isinstance(one, DataLoader):
            things |= {f"{owner}.{name}": getattr(one, name) for name in PARTS_OF_LOADERS}
        else:
            things[owner] = one
    seeded = [owner for one in loaders for owner in _seeded(one)]

    def is_set(owner: Any, name: str) -> bool:
        is_seeded = any(owner is one for one in seeded) and (name in ("generator", "seed") or "epoch" in name)
        return _is_new(owner, name) or is_seeded

    module = trainer.lightning_module
    known = {id(one): one for one in (*module.modules(), *module.parameters(), *module.buffers())}
    return contents(things, known, is_set, data=True)


PARTS_OF_LOADERS = ("dataset", "sampler", "batch_sampler", "collate_fn")


def _seeded(loader: Any) -> Iterator[Any]:
    """Yield the samplers that `fit.seed_loaders` and Lightning set at each epoch."""
    batches = getattr(loader, "batch_sampler", None)
    for sampler in (getattr(loader, "sampler", None), batches, getattr(batches, "sampler", None)):
        if isinstance(getattr(sampler, "generator", None), torch.Generator) or hasattr(sampler, "set_epoch"):
            yield sampler


def _users_attributes(part: Any) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of a callback or data module and of its class, except those that Lightning's classes use."""
    theirs = _lightnings_names(part.__class__) | (set(bars.SAID) if isinstance(part, ProgressBar) else set())
    of_class = {
        name: value
        for kind in reversed(type(part).__mro__)
        if is_users(kind)
        for name, value in vars(kind).items()
        if not name.startswith("__") and _holds(value)
    }
    for name, value in {**of_class, **vars(part)}.items():
        if name not in theirs:
            yield name, value


@functools.cache
def _lightnings_names(kind: type) -> frozenset[str]:
    names = {"trainer"}
    for base in kind.__mro__:
        if base.__module__.startswith("lightning."):
            for value in vars(base).values():
                function = getattr(value, "fget", None) or getattr(value, "__func__", value)
                names |= set(getattr(getattr(function, "__code__", None), "co_names", ()))
    return frozenset(names)


def _differing(first: Contents, now: Contents) -> set[str]:
    """Return the paths that differ, except where a callback has only added to its lists and dicts, as those record."""

    is_partial = TRUNCATED in first or TRUNCATED in now

    def counts(path: str) -> bool:
        of_data = "[" in path or path.startswith(tuple(ADVICE))
        if path == TRUNCATED or (is_partial and of_data and not (path in first and path in now)):
            return False
        is_record = "[" in path and path not in first
        return not (path.startswith(CALLBACK) and (is_record or RECORDED.match(now.get(path, ""))))

    return set(filter(counts, changed(first, now)))


RECORDED = re.compile(r"\d+ entries")


def _holds(value: Any) -> bool:
    """Whether a class's attribute is data, rather than a method, a property or a nested class."""
    return not callable(value) and not hasattr(value, "__get__")


class Watch(L.Callback):
    """Notifies the module of its networks, and warns of state that is carried from one to the next.

    Attributes at the start of each network are compared with those at the start of the first. A module may fill a list
    and empty it itself, before training or before evaluation. So the attributes are compared just before the first
    batch of training, validation and testing, and only what differs at each of them is reported. Attributes that an
    `on_network_start` sets, the module's or a callback's, are not reported.

    Args:
        fresh: checks, at each epoch's first batch, that the parameters are those that the fit started with.
    """

    def __init__(self, fresh: FreshFit) -> None:
        self._fresh = fresh
        self._first: dict[str, Contents] = {}  # of the first network, by stage
        self._told: set[str] = set()
        self._set_by_hooks: set[str] = set()
        self._before: Contents | None = None
        self._start_over()

    def _start_over(self) -> None:
        self._looked: set[str] = set()
        self._differing: set[str] | None = None

    def before_hooks(self, trainer: L.Trainer) -> None:
        """Note the attributes if an `on_network_start` may set some; call it before any of them."""
        actors = [trainer.lightning_module, *users_parts(trainer).values()]
        has_hooks = any(hasattr(actor, "on_network_start") for actor in actors)
        self._before = _attributes(trainer) if has_hooks else None

    def on_network_start(self, trainer: L.Trainer, module: L.LightningModule, network: Any, density: float) -> None:
        """Call the module's `on_network_start`, if it has one, unless the network is resumed."""
        self._start_over()
        tell = getattr(module, "on_network_start", None)
        if tell is not None and not trainer.fit_loop.is_resuming:
            tell(network, density)
        if self._before is not None:
            self._set_by_hooks |= set(changed(self._before, _attributes(trainer)))

    def on_network_end(self, trainer: L.Trainer, module: L.LightningModule, row: Any) -> None:
        """Call the module's `on_network_end`, if it has one."""
        if (tell := getattr(module, "on_network_end", None)) is not None:
            tell(row)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Compare after everything that the epoch's start has changed."""
        if batch_idx == 0 or "train" not in self._looked:
            self._fresh.check(trainer)
            self._look(trainer, "train")

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Compare after everything that the validation's start has changed."""
        if trainer.state.stage == RunningStage.VALIDATING:  # not in the sanity check
            self._look(trainer, "validate")

    def on_test_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Compare after everything that the test's start has changed."""
        self._look(trainer, "test")

    def _look(self, trainer: L.Trainer, stage: str) -> None:
        if stage in self._looked:
            return
        self._looked.add(stage)
        now, module = _attributes(trainer), trainer.lightning_module
        if stage not in self._first:
            self._first[stage] = now
            return
        first = self._first[stage]
        differing = _differing(first, now) - self._set_by_hooks
        self._differing = differing if self._differing is None else self._differing & differing
        if self._looked >= self._first.keys():
            self._tell(module, self._differing, now)
        elif stage == "train":  # what differed at the first evaluations' starts is not reset there either
            evaluations = [self._first[other] for other in self._first if other != stage]
            lasting = {
                path for path in differing if path in first and all(one.get(path) != first[path] for one in evaluations)
            }
            self._tell(module, lasting, now)

    def _tell(self, module: L.LightningModule, paths: set[str], now: Contents) -> None:
        first = self._first["train"]
        words: dict[str, str] = {}
        for path in sorted(paths):
            name = re.split(r"[\[(]", path)[0]  # the container, which may have a thousand entries
            words[name] = f" ({_short(first.get(path))}, now {_short(now.get(path))})" if name == path else ""
        new = [name + said for name, said in words.items() if name not in self._told]
        self._told |= words.keys()
        if new and self._fresh.is_global_zero:
            log.warning(
                "%s: training has changed %s%s. Attributes are not restored, so this network does not start as the "
                "first did. Set %s.",
                type(module).__name__,
                ", ".join(new[:5]),
                f" and {len(new) - 5} more" if len(new) > 5 else "",
                "; ".join(_advice(new)),
            )


def _attributes(trainer: L.Trainer) -> Contents:
    return own_attributes(trainer.lightning_module) | others_attributes(trainer)


def _advice(names: list[str]) -> list[str]:
    of_others = [advice for owner, advice in ADVICE.items() if any(name.startswith(owner) for name in names)]
    if all(name.startswith(tuple(ADVICE)) for name in names):
        return of_others
    return ["them in the module's on_network_start(network, density), or register them as buffers", *of_others]


def _short(words: str | None) -> str:
    if words is None:
        return "not there"
    return words if len(words) <= 40 else words[:37] + "..."
