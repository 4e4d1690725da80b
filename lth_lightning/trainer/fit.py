"""A fit as the lottery sees it: how long it is, where it stands, what its loaders give, and what cannot work in one."""

import itertools
import math
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    ModelCheckpoint,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch.utils.data.distributed import DistributedSampler

from lth_lightning.errors import SettingError
from lth_lightning.seeding import derive_seed

NEVER = 10**12  # a number of epochs that no fit reaches


SHARDED = (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)


def refuse_what_cannot_work(trainer: L.Trainer) -> None:
    """Name strategies and callbacks that a lottery cannot be right with.

    Raises:
        SettingError: there is one.
    """
    if isinstance(trainer.strategy, SHARDED):
        raise SettingError(
            f"trainer.strategy: {type(trainer.strategy).__name__} shards parameters: no process holds the whole "
            "weights that masks and rewind points are made of. Use ddp."
        )
    for callback in trainer.callbacks:
        if isinstance(callback, StochasticWeightAveraging):
            raise SettingError(
                "trainer.callbacks: StochasticWeightAveraging averages over the whole fit, across rounds, and takes "
                "the learning rate from the schedule. Use WeightAveraging or EMAWeightAveraging, which begin anew "
                "each round."
            )
        if isinstance(callback, BaseFinetuning):
            raise SettingError(
                f"trainer.callbacks: {type(callback).__name__} freezes weights and lets them be trained later, but "
                "which weights can be pruned is settled when the fit starts. Freeze them for good "
                "(requires_grad = False), or train all from the start, with a learning rate for each group."
            )


def refuse_to_share(trainer: L.Trainer, checkpoint: Path, networks: int) -> None:
    """Name a ModelCheckpoint that would overwrite the lottery's own file, or with one of so many networks another's.

    Raises:
        SettingError: there is one.
    """
    for callback in trainer.checkpoint_callbacks:
        if not isinstance(callback, ModelCheckpoint) or callback._enable_version_counter or callback.dirpath is None:
            continue
        names = {callback.CHECKPOINT_NAME_LAST if callback.save_last else None, callback.filename}
        if checkpoint.stem in names and Path(callback.dirpath).resolve() == checkpoint.parent.resolve():
            raise SettingError(
                f"trainer.callbacks: ModelCheckpoint would overwrite {checkpoint}, which the lottery goes on from. "
                "Give it a dirpath of its own."
            )
        if networks > 1 and (callback.save_top_k != 0 or callback.save_last):
            raise SettingError(
                "trainer.callbacks: ModelCheckpoint(enable_version_counter=False) would overwrite one network's files "
                "with the next one's. Leave it at True, and the files of later networks end in -v1, -v2, …"
            )


class FitLength(NamedTuple):
    """How long a fit is; -1 is no limit. `configure_optimizers` sees it: OneCycle and others plan by it."""

    epochs: int | None
    steps: int
    at_least_epochs: int | None = 0


ENDLESS = FitLength(-1, -1, NEVER)
"""Who sets this ends the fit; `should_stop` ends an epoch only."""


def length(trainer: L.Trainer) -> FitLength:
    """How long the trainer's fit is."""
    return FitLength(trainer.fit_loop.max_epochs, trainer.fit_loop.epoch_loop.max_steps, trainer.fit_loop.min_epochs)


def show_length(trainer: L.Trainer, length: FitLength) -> None:
    """Let the trainer's fit be, or seem, so long."""
    trainer.fit_loop.max_epochs, trainer.fit_loop.epoch_loop.max_steps, trainer.fit_loop.min_epochs = length


def may_stop(trainer: L.Trainer, length: FitLength) -> bool:
    """Whether the network has been trained for `trainer.min_epochs` and `trainer.min_steps`.

    Args:
        trainer: while a network is trained.
        length: the fit's as its user set it.
    """
    epochs = trainer.fit_loop.epoch_progress.current.processed
    return epochs >= (length.at_least_epochs or 0) and steps_done(trainer) >= (trainer.min_steps or 0)


def has_time_limit(trainer: L.Trainer) -> bool:
    """Whether there is a `Trainer(max_time=...)`."""
    return any(isinstance(callback, Timer) for callback in trainer.callbacks)


def leave_out_validation(trainer: L.Trainer) -> None:
    """Keep Lightning from validating after this batch only because it is to stop: where it is to go on one day, a
    learning curve must not have a point there that an uninterrupted one has not. Call it at the batch's end."""
    loop = trainer.fit_loop.epoch_loop
    trainer.should_stop = False
    loop._skip_next_val = not loop._should_check_val_fx(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]
    trainer.should_stop = True


def out_of_time(trainer: L.Trainer) -> bool:
    """Whether `Trainer(max_time=...)` has run out: by the clock of process 0, as for Lightning's Timer."""
    left = [callback.time_remaining() for callback in trainer.callbacks if isinstance(callback, Timer)]
    return trainer.strategy.broadcast(any(seconds is not None and seconds <= 0 for seconds in left))


def learning_rates(trainer: L.Trainer) -> list[list[float]]:
    """The learning rate of each group of each optimizer."""
    return [[float(group["lr"]) for group in optimizer.param_groups] for optimizer in trainer.optimizers]


def train_loaders(trainer: L.Trainer) -> list[Any]:
    """The training loaders, as the fit loop holds them."""
    loader = trainer.fit_loop._combined_loader
    assert loader is not None
    return list(loader.flattened)


def steps_per_epoch(trainer: L.Trainer) -> int | None:
    """Optimizer steps in a whole epoch, None for loaders without a length. Lightning steps on the last batch too."""
    batches = trainer.fit_loop.max_batches
    return None if math.isinf(batches) else math.ceil(batches / batches_per_step(trainer))


def loader_facts(trainer: L.Trainer) -> dict[str, str]:
    """How the training data are divided into steps, over all processes, in words: see `FreshFit.facts`."""
    sizes = [getattr(loader, "batch_size", None) for loader in train_loaders(trainer)]
    together = [size * trainer.world_size for size in sizes if isinstance(size, int)]
    return {
        "batches an epoch": str(trainer.fit_loop.max_batches),
        "examples a batch (batch size x processes)": str(together),
    }


def batches_per_step(trainer: L.Trainer) -> int:
    """Batches that make one optimizer step; in manual optimization every batch counts as a step."""
    return trainer.accumulate_grad_batches if trainer.lightning_module.automatic_optimization else 1


def steps_done(trainer: L.Trainer) -> int:
    """Optimizer steps (manual optimization: batches) since the network started."""
    if trainer.lightning_module.automatic_optimization:
        return trainer.global_step
    return trainer.fit_loop.epoch_loop.batch_progress.total.processed


def seed_loaders(trainer: L.Trainer, seed: int, epoch: int) -> None:
    """Make the order of stock loaders, where it hangs on generators or seeds of their own, a function of `seed` and
    `epoch`. Without either they draw from the global generators."""
    for i, loader in enumerate(train_loaders(trainer)):
        _set_sampler_epoch(loader, epoch)  # Lightning has set it before the counters of a new network were
        sampler = getattr(loader, "sampler", None)
        if isinstance(sampler, DistributedSampler):
            sampler.seed = derive_seed(seed, "sampler", i) % 2**31
        batches = getattr(loader, "batch_sampler", None)
        for owner in (loader, sampler, batches, getattr(batches, "sampler", None)):
            if isinstance(generator := getattr(owner, "generator", None), torch.Generator):
                generator.manual_seed(derive_seed(seed, "loader", i, epoch))
        if getattr(loader, "persistent_workers", False):
            loader._iterator = None  # workers that live on draw by all that they drew before: new ones start anew


def first_batches(trainer: L.Trainer, count: int) -> list[Any]:
    """The first batches of a pass of its own over the training data, as `training_step` gets them.

    Where the loaders stand afterwards is not where they stood: seek or seed them before they are trained with.

    Raises:
        SettingError: there are several training loaders, or fewer batches.
    """
    loaders = train_loaders(trainer)
    if len(loaders) != 1:
        raise SettingError(
            f"lottery.pruning.criterion: it scores by batches of the training data, and there are {len(loaders)} "
            "training loaders; give one, or choose a criterion that needs no data."
        )
    batches = []
    for batch in itertools.islice(iter(loaders[0]), count):
        converted = trainer.precision_plugin.convert_input(batch)
        before_transfer = trainer.lightning_module._on_before_batch_transfer(converted, dataloader_idx=0)
        batches.append(trainer.strategy.batch_to_device(before_transfer, dataloader_idx=0))
    if len(batches) < count:
        raise SettingError(
            f"lottery.pruning.criterion.batches: {count}, but an epoch has {len(batches)}; give {len(batches)} at most."
        )
    return batches


def renew_iterator(trainer: L.Trainer) -> None:
    """Have the loaders iterated anew where Lightning does not: its first iterator is made before any hook, so it
    would draw from the generators as they were before the epoch was seeded."""
    fit_loop = trainer.fit_loop
    if trainer.current_epoch == 0 or fit_loop.is_resuming:
        assert fit_loop._data_fetcher is not None
        iter(fit_loop._data_fetcher)


def settle_place(checkpoint: dict[str, Any], *, inside_epoch: bool) -> None:
    """Edit a checkpoint so that a resumed fit goes on where it was made.

    The loaders' own places go: who resumes brings them to theirs, and with both they would be twice as far. As made
    in `on_train_epoch_start`, the epoch counts as begun, and Lightning would go on in an epoch of no batches.
    """
    checkpoint["loops"]["fit_loop"]["state_dict"].pop("combined_loader", None)
    if inside_epoch:
        return
    progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]
    for tracker in (progress["total"], progress["current"]):
        tracker["ready"] = tracker["started"]
