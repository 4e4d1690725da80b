"""One `Trainer.fit`, many networks: resets the Trainer for each network, as if it had its own fit.

Some counters have no public reset in Lightning; each reset here was checked against Lightning 2.6.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn

from lth_lightning.errors import SettingError
from lth_lightning.pruning.state import full_state, load_state
from lth_lightning.trainer import module_state
from lth_lightning.trainer.callback_states import CallbackStates, users_parts
from lth_lightning.trainer.contents import changed
from lth_lightning.trainer.metric_states import MetricStates
from lth_lightning.trainer.new_optimizers import NewOptimizers, settings_of
from lth_lightning.trainer.schedules import HeldRates
from lth_lightning.trainer.trainables import Trainables

DECISIVE = (  # Trainer attributes that affect results
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "val_check_interval"),
    *("check_val_every_n_epoch", "limit_train_batches", "limit_val_batches", "limit_test_batches"),
)


class FreshFit:
    """Captures what a fit starts with and training changes, and restores it at the start of each network.

    Counters restart too (`global_step`, `current_epoch`, …), so that warm-ups, epoch-wise schedules, samplers
    and loggers in any module behave in every round as they do in the first.

    Attributes:
        facts: in words, the settings that affect a network and that a resumed fit could have changed.
        rates: the learning rates that fine-tuning holds.
    """

    def __init__(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Copy the states of callbacks and metrics. Call it in `setup`, before a resumed fit restores them."""
        self._callbacks = CallbackStates(trainer)
        self._averages = [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]
        self._optimizers: NewOptimizers | None = None
        self._trainables: Trainables | None = None
        self._precision: Any = None
        self._whole_epoch: tuple[Any, Any, Any, Any] | None = None
        self._resumed: dict[str, Any] | None = None
        self._metrics = MetricStates([module])
        self._decisive: dict[str, Any] = {}
        self.facts: dict[str, str] = {}
        self.rates = HeldRates()
        self._resumed_averages: list[Any] = []
        self._loading = module_state.tolerate_changed_buffers(trainer, module)

    def capture(self, trainer: L.Trainer, prunable: Callable[[], Mapping[str, nn.Parameter]]) -> None:
        """Copy the states of optimizers, schedulers and precision. Call it in `on_fit_start`, where they are new
        even in a resumed fit, as the checkpoint is restored afterwards; a new fit calls it again at its first epoch.

        Args:
            trainer: a Trainer with its optimizers.
            prunable: returns the prunable weights at the time of the call.

        Raises:
            SettingError: an optimizer's steps cannot be hooked.
        """
        self._loading.remove()
        self.is_global_zero = trainer.is_global_zero
        self.release()
        self._optimizers = NewOptimizers(trainer)
        if not self.facts:
            self.facts = self._facts(trainer)
        self._trainables = Trainables(trainer, prunable)
        self._precision = copy.deepcopy(trainer.precision_plugin.state_dict())
        as_built, self._metrics = (
            self._metrics,
            MetricStates([trainer.lightning_module, *users_parts(trainer).values()]),
        )
        if self._resumed is not None:
            self._metrics.take_persistent(as_built)
        # `accumulate_grad_batches` is set when an epoch is entered.
        self._decisive = {name: getattr(trainer, name) for name in DECISIVE if name != "accumulate_grad_batches"}

    def take_resumed_start(self, trainer: L.Trainer) -> None:
        """Start later networks as the resumed fit started its own, hooks at its start included; after `capture`, once
        the settings are known to be the same. Fits of older versions did not save it."""
        if self._resumed and "start" in self._resumed:
            assert self._trainables is not None
            self.release()
            self._optimizers = NewOptimizers(trainer, self._resumed["start"])
            self._trainables.load_state_dict(self._resumed["trainables"])

    def restore(self, trainer: L.Trainer, step: int = 0, epoch: int = 0, batch: int = 0) -> bool:
        """Reset the trainer, as if it had done `step` optimizer steps in `batch` batches and `epoch` epochs.

        Call it in `on_train_epoch_start`, after loading the weights that the network starts from.

        Returns:
            Whether the optimizers are new objects, so that hooks into them must be set again.

        Raises:
            SettingError: optimizers or schedules keep state from the last network.
        """
        assert self._optimizers is not None and self._trainables is not None
        for name, value in self._decisive.items():
            setattr(trainer, name, value)
        self._metrics.restore()
        self._trainables.restore(trainer.lightning_module)
        self.rates.release()
        self._restart_counters(trainer, 0, 0, 0)
        self._lift_limit(trainer)
        renewed = self._optimizers.restore(trainer)
        self._trainables.note_groups(trainer)
        if self._precision:
            trainer.precision_plugin.load_state_dict(copy.deepcopy(self._precision))
        for parameter in trainer.lightning_module.parameters():
            parameter.grad = None
        self._callbacks.restore()
        self.restart_averages(trainer, step, epoch)
        self._restart_counters(trainer, step, epoch, batch)
        self._reload_loaders(trainer)
        trainer.should_stop = False
        trainer._logger_connector.reset_metrics()  # so that no metric of the last network is taken for this one's
        return renewed

    def check(self, trainer: L.Trainer) -> None:
        """Check that training has not changed which parameters exist and which are trained.

        Raises:
            SettingError: it has changed them.
        """
        assert self._trainables is not None
        self._trainables.check(trainer)

    def keep_ticket(self) -> None:
        """Save the states of ModelCheckpoints for the ticket that has just been trained."""
        self._callbacks.keep()

    def end(self, trainer: L.Trainer) -> None:
        """Leave averages and ModelCheckpoints in the last ticket's state; its weights are loaded already."""
        self.restart_averages(trainer)
        self._callbacks.give_back()

    def release(self) -> None:
        """Remove the hooks that this object set."""
        self._loading.remove()
        self.rates.release()
        if self._optimizers is not None:
            self._optimizers.release()

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed fit needs."""
        assert self._optimizers is not None and self._trainables is not None
        return {
            "checkpoints": self._callbacks.kept,
            "theirs": self._callbacks.theirs,
            "outside": self._optimizers.outside(),
            "start": self._optimizers.start,
            "trainables": self._trainables.state_dict(),
            "last_rates": self.rates.last,
            "averages": [full_state(average.module) for average in self._average_models()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self._callbacks.kept, self._callbacks.theirs = state["checkpoints"], state.get("theirs", {})
        self._resumed, self.rates.last = state, state.get("last_rates")
        self._resumed_averages = state.get("averages", [])  # older checkpoints have none

    def check_resumed(self, trainer: L.Trainer) -> None:
        """Check that resumed optimizers are complete; call it in `on_train_start` of a fit that resumes a network.

        Raises:
            SettingError: an optimizer differs from before, because its `state_dict` does not hold all of its state.
        """
        assert self._optimizers is not None
        if differ := changed((self._resumed or {}).get("outside", {}), self._optimizers.outside()):
            names = ", ".join(dict.fromkeys(type(optimizer).__name__ for optimizer in trainer.optimizers))
            raise SettingError(
                f"ckpt_path: {names} keeps {differ[0]} outside its state_dict, so the checkpoint does not hold it and "
                "the network in training cannot be resumed to the same result. Start a new run, or make the "
                "optimizer's state_dict hold all of its state."
            )

    def resume_averages(self) -> None:
        """Restore averaged weights with the dtypes that they had; Lightning keeps the new module's."""
        for average, state in zip(self._average_models(), self._resumed_averages, strict=False):
            load_state(average.module, state)

    def _average_models(self) -> list[Any]:
        return [callback._average_model for callback in self._averages]

    def averaged_modules(self) -> list[L.LightningModule]:
        """Return the modules that hold averaged weights."""
        return [average.module for average in self._average_models()]

    def restart_averages(self, trainer: L.Trainer, step: int = 0, epoch: int = 0) -> None:
        """Restart averaged weights (EMA) from the current weights."""
        for callback, average in zip(self._averages, self._average_models(), strict=True):
            load_state(average.module, full_state(trainer.lightning_module))
            average.n_averaged.zero_()
            callback._latest_update_step, callback._latest_update_epoch = step, epoch - 1

    def settle_averages(self, trainer: L.Trainer) -> None:
        """Copy averaged weights into the network, as they are the result of such training."""
        for callback in self._averages:
            callback._copy_average_to_current(trainer.lightning_module)

    @contextmanager
    def averaged_weights(self, trainer: L.Trainer) -> Iterator[None]:
        """Swap in the averaged weights, as in validation."""
        for callback in self._averages:
            callback._swap_models(trainer.lightning_module)
        try:
            yield
        finally:
            for callback in self._averages:
                callback._swap_models(trainer.lightning_module)

    def _facts(self, trainer: L.Trainer) -> dict[str, str]:
        facts = {f"trainer.{name}": repr(getattr(trainer, name)) for name in DECISIVE}
        facts["trainer.precision"] = str(trainer.precision)
        assert self._optimizers is not None
        for i, optimizer in enumerate(trainer.optimizers):
            facts[f"optimizer {i}"] = type(optimizer).__name__
            for j, group in enumerate(optimizer.param_groups):  # still new; not every `state_dict` has them
                values = settings_of(group)
                facts |= {f"optimizer {i}, group {j}, {name}": repr(value) for name, value in values.items()}
        for i, (config, state) in enumerate(zip(self._optimizers.configs, self._optimizers.schedules, strict=True)):
            facts[f"lr_scheduler {i}"] = f"{type(config.scheduler).__name__} by {config.interval}"
            plain = {name: value for name, value in state.items() if _is_plain(value)}
            facts |= {f"lr_scheduler {i}, {name}": repr(value) for name, value in plain.items()}
        for stopper, _ in self._callbacks.stoppers:
            values = {name: getattr(stopper, name) for name in ("monitor", "mode", "patience", "min_delta")}
            facts |= {f"{type(stopper).__name__}, {name}": repr(value) for name, value in values.items()}
        facts |= {f"callback {type(average).__name__}": described(average) for average in self._averages}
        return facts

    def _restart_counters(self, trainer: L.Trainer, step: int, epoch: int, batch: int) -> None:
        fit_loop, epoch_loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
        for tracker in (fit_loop.epoch_progress.total, fit_loop.epoch_progress.current):
            tracker.reset()
            tracker.increment_by(epoch)
            tracker.ready += 1  # Lightning has already counted the epoch that starts now
        for progress in (epoch_loop.batch_progress, epoch_loop.scheduler_progress, epoch_loop.val_loop.batch_progress):
            progress.reset()
        epoch_loop.batch_progress.total.increment_by(batch)
        steps = epoch_loop.automatic_optimization.optim_progress.optimizer.step
        for optimization in (steps, epoch_loop.manual_optimization.optim_step_progress):
            optimization.reset()
            optimization.total.increment_by(step)
        epoch_loop._batches_that_stepped = step

    def _reload_loaders(self, trainer: L.Trainer) -> None:
        if trainer.reload_dataloaders_every_n_epochs:
            fit_loop = trainer.fit_loop
            fit_loop._last_train_dl_reload_epoch = fit_loop.epoch_loop.val_loop._last_val_dl_reload_epoch = -math.inf
            fit_loop.setup_data()

    def limit_epoch(self, trainer: L.Trainer, already: int, batches: int, skipped: int = 0) -> None:
        """Make the epoch that starts now, with `already` batches done, end after at most `batches` more.

        The first `skipped` that the loaders yield are dropped.

        This sets Lightning's own limits, so validation, accumulation and epoch-wise schedules see an epoch of that
        length. The next call undoes it.
        """
        self._lift_limit(trainer)
        fit_loop = trainer.fit_loop
        loader = fit_loop._combined_loader
        assert loader is not None and loader.limits is not None
        if batches >= fit_loop.max_batches - already and not already:
            return
        self._note_whole_epoch(trainer)
        batches = int(min(batches, fit_loop.max_batches - already))
        loader.limits = [min(limit, batches + skipped) for limit in loader.limits]
        fit_loop.max_batches = batches
        if isinstance(trainer.val_check_interval, float) and trainer.val_check_batch is not None:
            trainer.val_check_batch = max(1, int(min(batches, trainer.val_check_batch)))

    def end_epoch_here(self, trainer: L.Trainer) -> None:
        """Make the current batch the last of its epoch, and validate after it, as Lightning does at a stop."""
        self._note_whole_epoch(trainer)
        trainer.fit_loop.max_batches = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        trainer.val_check_batch = 1

    def _note_whole_epoch(self, trainer: L.Trainer) -> None:
        loader = trainer.fit_loop._combined_loader
        assert loader is not None and loader.limits is not None
        if self._whole_epoch is None:
            self._whole_epoch = (loader, list(loader.limits), trainer.fit_loop.max_batches, trainer.val_check_batch)

    def _lift_limit(self, trainer: L.Trainer) -> None:
        loader = trainer.fit_loop._combined_loader
        if self._whole_epoch is not None and self._whole_epoch[0] is loader:
            _, loader.limits, trainer.fit_loop.max_batches, trainer.val_check_batch = self._whole_epoch
        self._whole_epoch = None


def described(thing: object) -> str:
    """Describe an object in words: its class and its plain settings, e.g. `Movement(window=3)`."""
    plain = {name: value for name, value in vars(thing).items() if name[0] != "_" and _is_plain(value)}
    return f"{type(thing).__qualname__}({', '.join(f'{name}={value!r}' for name, value in plain.items())})"


def _is_plain(value: Any) -> bool:
    """Whether the value's `repr` describes it completely."""
    if isinstance(value, list | tuple):
        return all(_is_plain(entry) for entry in value)
    return value is None or isinstance(value, bool | int | float | str)
