"""How a network is trained: dense with masks, or sparse, where only the survivors of its layers exist."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lth_lightning.errors import SettingError, unknown_name
from lth_lightning.lottery.settings import from_given
from lth_lightning.pruning.masks import Masks, density
from lth_lightning.pruning.optimizer_hooks import ENTRY_BY_ENTRY
from lth_lightning.pruning.survivors import show_dense
from lth_lightning.sparse.fused import FusedStep, Link, can_step, chain_of, is_faster
from lth_lightning.sparse.training import DENSE, KERNEL, ThinSurvivors, densified, thinned, training_kernels
from lth_lightning.trainer import fit, processes

ENGINES = ("dense", "sparse")
PRECISIONS = ("32-true", "64-true")
# A network that keeps more of its weights was nowhere faster with kernels, so it is not even timed.
BREAK_EVEN, BREAK_EVEN_OF_STEPS = 0.7, 0.9  # layer by layer; where the whole step may be fused
STEP = "the whole step"  # the way of the fused step, among those of layers


@dataclass(frozen=True)
class Engine:
    """How networks are trained.

    Args:
        name: `dense`: whole weights, with masks, bit for bit what plain PyTorch gives; `sparse`: only survivors exist,
            equal up to the order of addition.
        below: with `sparse`, the density below which a layer uses sparse kernels. By default each layer is timed both
            ways when a network begins, and the faster one is used. Set it for runs that are to repeat bit for bit on
            another machine, or to try.
        fused: with `sparse`, run the whole step of a chain of linear layers and ReLU in one call.

    Raises:
        SettingError: an unknown name, or a density out of range.
    """

    name: str = "dense"
    below: float | None = None
    fused: bool = True

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise unknown_name("lottery.engine", self.name, ENGINES)
        if self.below is not None and not 0 <= self.below <= 1:
            raise SettingError(f"lottery.engine.below is a density, at least 0 and at most 1; got {self.below}.")

    @classmethod
    def of(cls, given: "Engine | Mapping[str, Any] | str") -> "Engine":
        """Return an engine that was given as such, by its settings, or by its name alone.

        Raises:
            SettingError: a setting is unknown, or its value out of range.
        """
        return from_given(cls, given, "lottery.engine")

    @property
    def is_sparse(self) -> bool:
        """Whether networks may be trained sparse."""
        return self.name == "sparse"

    def check(self, trainer: L.Trainer) -> None:
        """Refuse what cannot be trained sparse; call it in `on_fit_start`.

        Raises:
            SettingError: a GPU, a precision, an optimizer or a compiled module with which survivors alone cannot be
                trained, or no C compiler.
        """
        if not self.is_sparse:
            return
        device, module = trainer.strategy.root_device, trainer.lightning_module
        if device.type != "cpu":
            raise SettingError(
                f"lottery.engine: sparse kernels run on CPUs; on {device.type} unstructured sparsity gains nothing. "
                "Set trainer.accelerator to cpu, or lottery.engine to dense."
            )
        if trainer.precision not in PRECISIONS:
            raise SettingError(
                f"lottery.engine: sparse trains in precision {' or '.join(PRECISIONS)}, got {trainer.precision}."
            )
        for optimizer in trainer.optimizers:
            if type(optimizer) not in ENTRY_BY_ENTRY:
                known = ", ".join(sorted(kind.__name__ for kind in ENTRY_BY_ENTRY))
                raise SettingError(
                    f"lottery.engine: sparse needs an optimizer that steps each entry by itself ({known}); "
                    f"{type(optimizer).__name__} is not known to. Use one of them, or lottery.engine dense."
                )
        if compiled := [name for name, part in module.named_modules() if hasattr(part, "_orig_mod")]:
            raise SettingError(
                f"lottery.engine: sparse layers cannot be compiled, but {compiled[0] or 'the module'} is by "
                "torch.compile. Leave that out, or set lottery.engine to dense."
            )
        training_kernels(torch.float32)


class NetworkEngine:
    """Thins the layers of each network while it trains, and gives them back dense.

    Args:
        engine: the settings.
        trainer: a Trainer whose fit has started.
        ways: by layer, how this round's networks compute; grows when they are timed. A checkpoint holds it, so that a
            resumed network computes as it began.
        averages: returns the modules with averaged weights, which are thinned too.
    """

    def __init__(
        self, engine: Engine, trainer: L.Trainer, ways: dict[str, str], averages: Callable[[], Iterable[nn.Module]]
    ) -> None:
        self._engine, self._trainer, self._ways, self._averages = engine, trainer, ways, averages
        self._thin: dict[str, ThinSurvivors] = {}
        self._handles: list[Any] = []
        self._told: str | None = None
        self._round: int | None = None
        self._is_all_thin = False
        self._is_fused = False  # whether a step of this network was

    def begin(self, masks: Masks, round: int) -> Masks:
        """Thin the layers of a network that starts or is resumed; return the masks of those that stay dense: `masks`
        itself if all do."""
        if not self._engine.is_sparse:
            return masks
        if self._round not in (None, round):  # what was faster dense may be faster sparse at a lower density
            for name in [name for name, way in self._ways.items() if way == DENSE]:
                del self._ways[name]
        self._round = round
        wanted, ways = self._wanted(masks)
        module, optimizers = self._trainer.lightning_module, self._trainer.optimizers
        self._thin = thinned(module, wanted, optimizers, ways, self._agreed)
        for average in self._averages():
            thinned(average, {name: wanted[name] for name in self._thin}, (), ways, self._agreed)
        if not self._thin:
            return masks
        self._handles = [show_dense(optimizer) for optimizer in optimizers]
        processes.wrap_again(self._trainer)
        rest = {name: mask for name, mask in masks.items() if name not in self._thin}
        self._is_all_thin = all(bool(mask.all()) for mask in rest.values())
        return rest

    def _wanted(self, masks: Masks) -> tuple[Masks, Mapping[str, str]]:
        """Return the masks of the layers to thin, and the ways to compute with them as far as they are settled."""
        pruned = {name: mask for name, mask in masks.items() if not bool(mask.all())}
        below = self._engine.below
        if below is None:
            limit = BREAK_EVEN if self._chain is None else BREAK_EVEN_OF_STEPS
            return (pruned if density(masks) < limit else {}), self._ways
        settled = {name: KERNEL if float(mask.float().mean()) < below else DENSE for name, mask in pruned.items()}
        is_any = KERNEL in settled.values()
        self._ways[STEP] = KERNEL if is_any and DENSE not in settled.values() and self._engine.fused else DENSE
        return (pruned if is_any else {}), settled

    def end(self) -> str | None:
        """Make all layers dense again, with their values; return the engine that trained them."""
        if not self._engine.is_sparse:
            return None
        by_kernel = any(one.way == KERNEL for one in self._thin.values()) or self._is_fused
        is_sparse = bool(self._thin) and by_kernel
        self.close()
        return "sparse" if is_sparse else "dense"

    def close(self) -> None:
        """Make all layers dense again, whatever the network's state."""
        if self._thin:
            densified(self._trainer.lightning_module, self._trainer.optimizers)
            for average in self._averages():
                densified(average)
            for handle in self._handles:
                handle.remove()
            self._thin, self._handles, self._is_fused = {}, [], False
            processes.wrap_again(self._trainer)

    def _agreed(self, faster: bool) -> bool:
        """Return the first process's choice."""
        return bool(self._trainer.strategy.broadcast(faster))

    def note_ways(self) -> None:
        """Record, and print once a round, how the layers are computed; call it after a step."""
        if not self._thin:
            return
        known = {name: one.way for name, one in self._thin.items() if one.way is not None}
        self._ways.update(known)
        if not self._is_fused and len(known) < len(self._thin):
            return
        said = self._said()
        if said != self._told:
            self._told = said
            rank_zero_info(said)

    def _said(self) -> str:
        if self._is_fused:
            return f"round {self._round}: trained sparse, a step in one call of the kernels."
        parts = {KERNEL: [], DENSE: []}  # type: dict[str, list[str]]
        for name, one in self._thin.items():
            sparse, dense = one.times
            timed = f" ({sparse:.2f} ms, dense {dense:.2f} ms)" if sparse else ""
            parts[one.way or DENSE].append(name.removesuffix(".weight") + timed)
        sparse_ones = ", ".join(parts[KERNEL])
        dense_ones = f"; faster dense: {', '.join(parts[DENSE])}" if parts[DENSE] else ""
        return f"round {self._round}: trained sparse: {sparse_ones or 'no layer'}{dense_ones}."

    # ------------------------------------------------------------------------ the fused step

    def fused_step(self) -> Callable[[Any], Tensor | None] | None:
        """Return a function that trains on a batch and returns the loss, or None where no such step applies.

        It applies to a module whose own code is only the cross-entropy of a chain (marked `is_plain`). The function
        returns None for a batch that needs the usual step.
        """
        if not (self._thin and self._is_all_thin) or self._ways.get(STEP) == DENSE:
            return None
        module: Any = self._trainer.lightning_module
        optimizer, links = self._trainer.optimizers[0], self._chain
        if links is None or not can_step(optimizer) or not fit.has_only_known_layers(module):
            return None
        stepped = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
        if stepped != {id(weight) for link in links for weight in link.layer.parameters()}:
            return None
        step = FusedStep(links, optimizer)

        def run(batch: Any) -> Tensor | None:
            is_pair = isinstance(batch, list | tuple) and len(batch) == 2
            if not (is_pair and all(isinstance(part, Tensor) for part in batch)):
                return None
            if STEP not in self._ways:
                faster = is_faster(module.net, optimizer, *batch)
                self._ways[STEP] = KERNEL if faster else DENSE
            if self._ways[STEP] == DENSE or (loss := step(*batch)) is None:
                return None
            self._is_fused = True
            module.note_loss(loss, len(batch[1]))
            return loss

        return run

    @cached_property  # thinning swaps layers in place, so that one trace serves all networks
    def _chain(self) -> list[Link] | None:
        """The chain that the module trains by cross-entropy alone, if it may be stepped in one call."""
        module = self._trainer.lightning_module
        net = getattr(module, "net", None)
        is_off = not self._engine.fused or os.environ.get("LTH_FUSED_STEP") == "0"
        if is_off or not isinstance(net, nn.Module) or not _is_plain(module):
            return None
        return chain_of(net)


def _is_plain(module: L.LightningModule) -> bool:
    """Whether the module trains its `net` by cross-entropy and nothing else, in code marked so, not overridden."""
    names = ("training_step", "forward")
    return all(getattr(getattr(type(module), name), "is_plain", False) and name not in vars(module) for name in names)
