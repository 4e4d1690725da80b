"""A fit as the lottery uses it: its length, its progress and its data loaders."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.fabric.utilities.data import _set_sampler_epoch, sized_len
from lightning.pytorch.callbacks import GradientAccumulationScheduler, Timer
from torch.utils.data.distributed import DistributedSampler

from lth_lightning.errors import SettingError
from lth_lightning.seeding import derive_seed
from lth_lightning.trainer.lengths import epochs_of
from lth_lightning.trainer.watch import Watch

NEVER = 10**12  # a number of epochs that no fit reaches


class FitLength(NamedTuple):
    """How long the loops of a fit run; -1 means no limit. `lengths.show_round` sets the length that users see."""

    epochs: int | None
    steps: int
    at_least_epochs: int | None = 0


ENDLESS = FitLength(-1, -1, NEVER)
"""A length without an end, for a fit that the lottery ends itself; with it, `should_stop` only ends an epoch."""


def length(trainer: L.Trainer) -> FitLength:
    """Return the length of the trainer's fit."""
    return FitLength(trainer.fit_loop.max_epochs, trainer.fit_loop.epoch_loop.max_steps, trainer.fit_loop.min_epochs)


def show_length(trainer: L.Trainer, length: FitLength) -> None:
    """Set the length of the trainer's loops."""
    trainer.fit_loop.max_epochs, trainer.fit_loop.epoch_loop.max_steps, trainer.fit_loop.min_epochs = length


def may_stop(trainer: L.Trainer, length: FitLength) -> bool:
    """Whether the network has been trained for `trainer.min_epochs` and `trainer.min_steps`.

    Args:
        trainer: the Trainer, while it trains a network.
        length: the fit's length as the user set it.
    """
    epochs = trainer.fit_loop.epoch_progress.current.processed
    return epochs >= (length.at_least_epochs or 0) and steps_done(trainer) >= (trainer.min_steps or 0)


def least_facts(trainer: L.Trainer, length: FitLength) -> dict[str, str]:
    """What keeps a network from being stopped early, in words; `length` as its user set it: see `FreshFit.facts`."""
    least = {"trainer.min_epochs": length.at_least_epochs, "trainer.min_steps": trainer.min_steps}
    return {name: str(value) for name, value in least.items() if value}


def has_time_limit(trainer: L.Trainer) -> bool:
    """Whether `Trainer(max_time=...)` is set."""
    return any(isinstance(callback, Timer) for callback in trainer.callbacks)


def leave_out_validation(trainer: L.Trainer) -> None:
    """Keep Lightning from validating after this batch only because it is about to stop: a resumed run's learning curve
    must not have a point that an uninterrupted one lacks. Call it at the end of the batch."""
    loop = trainer.fit_loop.epoch_loop
    trainer.should_stop = False
    loop._skip_next_val = not loop._should_check_val_fx(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]
    trainer.should_stop = True


def out_of_time(trainer: L.Trainer) -> bool:
    """Whether `Trainer(max_time=...)` has run out, by the clock of process 0 as in Lightning's Timer."""
    left = [callback.time_remaining() for callback in trainer.callbacks if isinstance(callback, Timer)]
    return trainer.strategy.broadcast(any(seconds is not None and seconds <= 0 for seconds in left))


def train_loaders(trainer: L.Trainer) -> list[Any]:
    """Return the training loaders of the fit loop."""
    loader = trainer.fit_loop._combined_loader
    assert loader is not None
    return list(loader.flattened)


def restarts_loaders(trainer: L.Trainer) -> bool:
    """Whether a shorter training loader starts over before the longest has ended."""
    loader = trainer.fit_loop._combined_loader
    assert loader is not None
    lengths = {sized_len(one) for one in loader.flattened}
    return loader._mode == "max_size_cycle" and len(lengths) > 1


def loader_facts(trainer: L.Trainer) -> dict[str, str]:
    """Describe how the training data are divided into steps, over all processes, as in `FreshFit.facts`."""
    sizes = [getattr(loader, "batch_size", None) for loader in train_loaders(trainer)]
    together = [size * trainer.world_size for size in sizes if isinstance(size, int)]
    facts = {
        "batches an epoch": str(trainer.fit_loop.max_batches),
        "examples a batch (batch size x processes)": str(together),
    }
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks):
        facts["batches a step, by first epoch"] = str(epochs_of(trainer).per_step)
    return facts


def steps_done(trainer: L.Trainer) -> int:
    """Return the optimizer steps (manual optimization: batches) since the network started."""
    if trainer.lightning_module.automatic_optimization:
        return trainer.global_step
    return trainer.fit_loop.epoch_loop.batch_progress.total.processed


def seed_loaders(trainer: L.Trainer, seed: int, epoch: int) -> None:
    """Make the order of stock loaders with their own generators or seeds a function of `seed` and `epoch`. Other
    loaders draw from the global generators."""
    for i, loader in enumerate(train_loaders(trainer)):
        _set_sampler_epoch(loader, epoch)  # Lightning set it before a new network's counters were reset
        sampler = getattr(loader, "sampler", None)
        if isinstance(sampler, DistributedSampler):
            sampler.seed = derive_seed(seed, "sampler", i) % 2**31
        batches = getattr(loader, "batch_sampler", None)
        for owner in (loader, sampler, batches, getattr(batches, "sampler", None)):
            if isinstance(generator := getattr(owner, "generator", None), torch.Generator):
                generator.manual_seed(derive_seed(seed, "loader", i, epoch))
        if getattr(loader, "persistent_workers", False):
            loader._iterator = None  # start new workers, as persistent ones depend on all their earlier draws


def first_batches(trainer: L.Trainer, count: int) -> list[Any]:
    """Return the first batches of a separate pass over the training data, as `training_step` receives them.

    This moves the loaders; seek or seed them before training.

    Raises:
        SettingError: the fit has several training loaders, or fewer batches.
    """
    loaders = train_loaders(trainer)
    if len(loaders) != 1:
        raise SettingError(
            f"lottery.pruning.criterion: it scores by training batches and needs one training loader, got "
            f"{len(loaders)}. Return one loader, or choose a criterion that needs no data."
        )
    batches = []
    for batch in itertools.islice(iter(loaders[0]), count):
        converted = trainer.precision_plugin.convert_input(batch)
        before_transfer = trainer.lightning_module._on_before_batch_transfer(converted, dataloader_idx=0)
        batches.append(trainer.strategy.batch_to_device(before_transfer, dataloader_idx=0))
    if len(batches) < count:
        raise SettingError(
            f"lottery.pruning.criterion.batches must be at most {len(batches)}, the batches of an epoch; got {count}."
        )
    return batches


def renew_iterator(trainer: L.Trainer) -> None:
    """Recreate the loaders' iterator if Lightning does not: it makes the first one before any hook, so that one would
    draw from the generators as they were before the epoch was seeded."""
    fit_loop = trainer.fit_loop
    if trainer.current_epoch == 0 or fit_loop.is_resuming:
        assert fit_loop._data_fetcher is not None
        iter(fit_loop._data_fetcher)


def settle_place(checkpoint: dict[str, Any], *, inside_epoch: bool) -> None:
    """Edit a checkpoint so that a fit resumes at the point where it was saved.

    The loaders' own positions are removed: resuming sets them, and both together would skip twice as far. In a
    checkpoint from `on_train_epoch_start` the epoch counts as begun, so Lightning would resume in an empty epoch.
    """
    checkpoint["loops"]["fit_loop"]["state_dict"].pop("combined_loader", None)
    if inside_epoch:
        return
    progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]
    for tracker in (progress["total"], progress["current"]):
        tracker["ready"] = tracker["started"]


class _First(L.Callback):
    """A callback whose `on_train_epoch_start` and `on_network_start` run before all others."""

    def __init__(self, between_epochs: Callable[[L.Trainer, L.LightningModule], None], watch: Watch) -> None:
        self._between_epochs, self._watch = between_epochs, watch

    def on_network_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._watch.before_hooks(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._between_epochs(trainer, pl_module)


def call_first_and_last(
    trainer: L.Trainer,
    between_epochs: Callable[[L.Trainer, L.LightningModule], None],
    watch: Watch,
    lottery: L.Callback,
) -> None:
    """Make `watch` and `lottery` run after all other callbacks, and `between_epochs` before them when an epoch starts.

    Thus these two see what the others did to a batch, and the others see the next network's epoch.
    """
    others = [one for one in trainer.callbacks if one is not lottery and not isinstance(one, _First | Watch)]
    # A new list, as Lightning iterates over the old one.
    trainer.callbacks = [_First(between_epochs, watch), *others, watch, lottery]


def call_as_before(trainer: L.Trainer) -> None:
    """Undo `call_first_and_last`."""
    trainer.callbacks = [one for one in trainer.callbacks if not isinstance(one, _First | Watch)]


def time_is_up(trainer: L.Trainer) -> bool:
    """Whether the request to stop comes from `Trainer(max_time=...)`."""
    return trainer.should_stop and out_of_time(trainer)


BEFORE_FORWARD = ("on_train_batch_start", "on_train_batch_end")
"""Hooks between two steps in which other code could write to weights."""
WITHIN_STEP = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
"""Hooks between the forward pass and the optimizer's step in which it could."""


def others_act(trainer: L.Trainer, hooks: Sequence[str]) -> bool:
    """Whether code outside Lightning and this package overrides one of `hooks`."""
    actors = (trainer.lightning_module, *trainer.callbacks)
    return any(_is_others(getattr(actor, hook, None)) for actor in actors for hook in hooks)


KNOWN = ("torch.", "torchvision.", "torchmetrics.", "lightning.", "lth_lightning.")


def has_only_known_layers(module: L.LightningModule) -> bool:
    """Whether all layers, the module itself included, are of torch, Lightning or this package, and neither they nor
    their parameters have hooks.

    Their code never writes to `weight.data`.
    """
    return all(
        type(part).__module__.startswith(KNOWN)
        and not (part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks)
        for part in module.modules()
    ) and not any(weight._backward_hooks or weight._post_accumulate_grad_hooks for weight in module.parameters())


def _is_others(hook: Any) -> bool:
    """Whether a hook is from outside Lightning and this package, even if set on an object (LambdaCallback)."""
    return hook is not None and not hook.__module__.startswith(("lightning.", "lth_lightning."))
