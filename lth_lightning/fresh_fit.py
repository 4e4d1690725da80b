"""One `Trainer.fit`, many networks: every network finds the trainer as a fit of its own would.

All knowledge of Lightning's loops stands here, so that `lottery.py` can speak of rounds. The functions reset
counters that Lightning has no public way to reset; each was checked against Lightning 2.6.
"""

import copy
import itertools
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    ModelCheckpoint,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data.distributed import DistributedSampler

from lth_lightning.errors import SettingError
from lth_lightning.seeding import derive_seed
from lth_lightning.ticket import full_state, load_state

NEVER = 10**12  # a number of epochs that no fit reaches
DECISIVE = (  # attributes of the Trainer that change results
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "val_check_interval"),
    *("check_val_every_n_epoch", "limit_train_batches", "limit_val_batches", "limit_test_batches"),
)
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


def refuse_to_share(trainer: L.Trainer, checkpoint: Path) -> None:
    """Name a ModelCheckpoint that would overwrite the lottery's own file.

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


class FreshFit:
    """What a fit starts with and training changes: given back at the start of each network.

    Counters restart too (`global_step`, `current_epoch`, …), so that warm-ups, epoch-wise schedules, samplers
    and loggers in other people's modules behave in every round as they do in the first.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        """Copy the states of stopping callbacks. Call it in `setup`: a resumed fit restores them soon after."""
        self._stoppers = [
            (callback, copy.deepcopy(callback.state_dict()))
            for callback in trainer.callbacks
            if isinstance(callback, EarlyStopping)
        ]
        self._averages = [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]
        self._optimizers: list[Any] = []
        self._schedulers: list[Any] = []
        self._precision: Any = None
        self._whole_epoch: tuple[Any, Any, Any, Any] | None = None

    def capture(self, trainer: L.Trainer) -> None:
        """Copy the states of optimizers, schedulers and precision. Call it in `on_fit_start`, where they are new
        even in a resumed fit: the checkpoint's are restored after it."""
        self._optimizers = [copy.deepcopy(optimizer.state_dict()) for optimizer in trainer.optimizers]
        self._configs = list(trainer.lr_scheduler_configs)
        self._schedulers = [copy.deepcopy(config.scheduler.state_dict()) for config in self._configs]
        self._precision = copy.deepcopy(trainer.precision_plugin.state_dict())

    def restore(self, trainer: L.Trainer, step: int = 0, epoch: int = 0, batch: int = 0) -> None:
        """Make the trainer new, as if `step` optimizer steps in `batch` batches and `epoch` epochs lay behind it.

        Call it in `on_train_epoch_start`, with the weights that the network starts from in place.
        """
        for optimizer, state in zip(trainer.optimizers, self._optimizers, strict=True):
            optimizer.load_state_dict(copy.deepcopy(state))  # in place: with the CLI no new one can be made
        trainer.strategy.lr_scheduler_configs = list(self._configs)
        for config, state in zip(self._configs, self._schedulers, strict=True):
            config.scheduler.load_state_dict(copy.deepcopy(state))
        if self._precision:
            trainer.precision_plugin.load_state_dict(copy.deepcopy(self._precision))
        for parameter in trainer.lightning_module.parameters():
            parameter.grad = None
        for callback, state in self._stoppers:
            callback.load_state_dict(copy.deepcopy(state))
        for checkpoint in trainer.checkpoint_callbacks:
            if isinstance(checkpoint, ModelCheckpoint):
                checkpoint._last_global_step_saved = 0  # else it takes the same step of another round for saved
        self.restart_averages(trainer, step, epoch)
        self._restart_counters(trainer, step, epoch, batch)
        trainer.should_stop = False
        trainer._logger_connector.reset_metrics()  # no metric of the last network may pass for one of this

    def restart_averages(self, trainer: L.Trainer, step: int = 0, epoch: int = 0) -> None:
        """Let averaged weights (EMA) begin anew, with the weights as they are."""
        for callback in self._averages:
            average = callback._average_model
            assert average is not None
            load_state(average.module, full_state(trainer.lightning_module))
            average.n_averaged.zero_()
            callback._latest_update_step, callback._latest_update_epoch = step, epoch - 1

    def settle_averages(self, trainer: L.Trainer) -> None:
        """Make averaged weights the network's own: they are what such a training leads to."""
        for callback in self._averages:
            callback._copy_average_to_current(trainer.lightning_module)

    @contextmanager
    def averaged_weights(self, trainer: L.Trainer) -> Iterator[None]:
        """The averaged weights in the network's place, as in validation."""
        for callback in self._averages:
            callback._swap_models(trainer.lightning_module)
        try:
            yield
        finally:
            for callback in self._averages:
                callback._swap_models(trainer.lightning_module)

    def facts(self, trainer: L.Trainer) -> dict[str, str]:
        """All that decides what a network becomes and that a resumed fit could have changed, in words."""
        facts = {f"trainer.{name}": repr(getattr(trainer, name)) for name in DECISIVE}
        facts["trainer.precision"] = str(trainer.precision)
        for i, (optimizer, state) in enumerate(zip(trainer.optimizers, self._optimizers, strict=True)):
            facts[f"optimizer {i}"] = type(optimizer).__name__
            for j, group in enumerate(state["param_groups"]):
                values = {name: value for name, value in group.items() if name != "params"}
                facts |= {f"optimizer {i}, group {j}, {name}": repr(value) for name, value in values.items()}
        for i, (config, state) in enumerate(zip(self._configs, self._schedulers, strict=True)):
            facts[f"lr_scheduler {i}"] = f"{type(config.scheduler).__name__} by {config.interval}"
            plain = {name: value for name, value in state.items() if _is_plain(value)}
            facts |= {f"lr_scheduler {i}, {name}": repr(value) for name, value in plain.items()}
        for stopper, _ in self._stoppers:
            values = {name: getattr(stopper, name) for name in ("monitor", "mode", "patience", "min_delta")}
            facts |= {f"{type(stopper).__name__}, {name}": repr(value) for name, value in values.items()}
        facts |= {f"callback {type(average).__name__}": described(average) for average in self._averages}
        return facts

    def _restart_counters(self, trainer: L.Trainer, step: int, epoch: int, batch: int) -> None:
        fit_loop, epoch_loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
        for tracker in (fit_loop.epoch_progress.total, fit_loop.epoch_progress.current):
            tracker.reset()
            tracker.increment_by(epoch)
            tracker.ready += 1  # Lightning has counted the epoch that starts now
        for progress in (epoch_loop.batch_progress, epoch_loop.scheduler_progress, epoch_loop.val_loop.batch_progress):
            progress.reset()
        epoch_loop.batch_progress.total.increment_by(batch)
        steps = epoch_loop.automatic_optimization.optim_progress.optimizer.step
        for optimization in (steps, epoch_loop.manual_optimization.optim_step_progress):
            optimization.reset()
            optimization.total.increment_by(step)
        epoch_loop._batches_that_stepped = step
        if trainer.reload_dataloaders_every_n_epochs:
            fit_loop._last_train_dl_reload_epoch = epoch_loop.val_loop._last_val_dl_reload_epoch = -math.inf
            fit_loop.setup_data()

    def advance_schedulers(self, trainer: L.Trainer, step: int, epoch: int) -> None:
        """Bring new schedulers to where they stand after `step` steps and `epoch` whole epochs of training.

        ReduceLROnPlateau, which follows metrics, starts new.
        """
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ReduceLROnPlateau):
                continue
            with warnings.catch_warnings():  # torch warns of a schedule that moves before its optimizer: here it must
                warnings.simplefilter("ignore", UserWarning)
                for _ in range((step if config.interval == "step" else epoch) // config.frequency):
                    config.scheduler.step()

    def hold_learning_rates(self, trainer: L.Trainer, rates: list[list[float]]) -> None:
        """Set each optimizer's groups to `rates` and put the schedules to sleep, until `restore`."""
        trainer.strategy.lr_scheduler_configs = []
        for optimizer, groups in zip(trainer.optimizers, rates, strict=True):
            for group, rate in zip(optimizer.param_groups, groups, strict=True):
                group["lr"] = rate

    def limit_epoch(self, trainer: L.Trainer, already: int, batches: int) -> None:
        """Let the epoch that starts now, `already` batches of which are done, end after `batches` at the latest.

        Natively: validation, accumulation and epoch-wise schedules see an epoch of that length. Undone by the
        next call.
        """
        fit_loop = trainer.fit_loop
        loader = fit_loop._combined_loader
        assert loader is not None and loader.limits is not None
        if self._whole_epoch is not None and self._whole_epoch[0] is loader:
            _, loader.limits, fit_loop.max_batches, trainer.val_check_batch = self._whole_epoch
        self._whole_epoch = None
        if batches >= fit_loop.max_batches - already and not already:
            return
        self._whole_epoch = (loader, list(loader.limits), fit_loop.max_batches, trainer.val_check_batch)
        batches = int(min(batches, fit_loop.max_batches - already))
        loader.limits = [min(limit, batches) for limit in loader.limits]
        fit_loop.max_batches = batches
        if isinstance(trainer.val_check_interval, float) and trainer.val_check_batch is not None:
            trainer.val_check_batch = max(1, int(min(batches, trainer.val_check_batch)))


def described(thing: object) -> str:
    """An object in words: its class, and those of its settings that can be told, e.g. `Movement(window=3)`."""
    plain = {name: value for name, value in vars(thing).items() if name[0] != "_" and _is_plain(value)}
    return f"{type(thing).__qualname__}({', '.join(f'{name}={value!r}' for name, value in plain.items())})"


def _is_plain(value: Any) -> bool:
    """Whether its `repr` says all there is to it."""
    if isinstance(value, list | tuple):
        return all(_is_plain(entry) for entry in value)
    return value is None or isinstance(value, bool | int | float | str)


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


def end_epoch_here(trainer: L.Trainer) -> None:
    """Make the batch that is running the last of its epoch."""
    trainer.fit_loop.max_batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready


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
