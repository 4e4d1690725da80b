"""Watch: warns of attributes that a module carries from network to network, as they are not restored."""

import logging
import re
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import RunningStage
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric, MetricCollection

from lth_lightning.trainer.contents import FOREIGN_ROOTS, Contents, changed, contents
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
    return contents(things, known, lambda owner, name: isinstance(owner, Optimizer | LRScheduler))


def _holds(value: Any) -> bool:
    """Whether a class's attribute is data, rather than a method, a property or a nested class."""
    return not callable(value) and not hasattr(value, "__get__")


class Watch(L.Callback):
    """Notifies the module of its networks, and warns of state that the module carries from one to the next.

    The module's attributes at the start of each network are compared with those at the start of the first. A module
    may fill a list and empty it itself, before training or before evaluation. So the attributes are compared just
    before the first batch of training, validation and testing, and only what differs at each of them is reported.
    Attributes that the module's own `on_network_start` sets are not reported.

    Args:
        fresh: checks, at each epoch's first batch, that the parameters are those that the fit started with.
    """

    def __init__(self, fresh: FreshFit) -> None:
        self._fresh = fresh
        self._first: dict[str, Contents] = {}  # of the first network, by stage
        self._told: set[str] = set()
        self._set_by_module: set[str] = set()
        self._start_over()

    def _start_over(self) -> None:
        self._looked: set[str] = set()
        self._differing: set[str] | None = None

    def on_network_start(self, trainer: L.Trainer, module: L.LightningModule, network: Any, density: float) -> None:
        """Call the module's `on_network_start`, if it has one, unless the network is resumed."""
        self._start_over()
        tell = getattr(module, "on_network_start", None)
        if tell is not None and not trainer.fit_loop.is_resuming:
            before = own_attributes(module)
            tell(network, density)
            self._set_by_module |= set(changed(before, own_attributes(module)))

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
            self._look(pl_module, "train")

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Compare after everything that the validation's start has changed."""
        if trainer.state.stage == RunningStage.VALIDATING:  # not in the sanity check
            self._look(pl_module, "validate")

    def on_test_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Compare after everything that the test's start has changed."""
        self._look(pl_module, "test")

    def _look(self, module: L.LightningModule, stage: str) -> None:
        if stage in self._looked:
            return
        self._looked.add(stage)
        now = own_attributes(module)
        if stage not in self._first:
            self._first[stage] = now
            return
        first = self._first[stage]
        differing = set(changed(first, now)) - self._set_by_module
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
                "first did. Set them in the module's on_network_start(network, density), or register them as buffers.",
                type(module).__name__,
                ", ".join(new[:5]),
                f" and {len(new) - 5} more" if len(new) > 5 else "",
            )


def _short(words: str | None) -> str:
    if words is None:
        return "not there"
    return words if len(words) <= 40 else words[:37] + "..."
