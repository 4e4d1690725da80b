"""One `Trainer.fit`, many networks: every network finds the trainer as a fit of its own would.

Counters are reset that Lightning has no public way to reset; each reset was checked against Lightning 2.6.
"""

import copy
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import (
    EarlyStopping,
    ModelCheckpoint,
    WeightAveraging,
)
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lth_lightning.pruning.state import full_state, load_state

DECISIVE = (  # attributes of the Trainer that change results
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "val_check_interval"),
    *("check_val_every_n_epoch", "limit_train_batches", "limit_val_batches", "limit_test_batches"),
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
