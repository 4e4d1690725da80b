"""Saves and restores a moment between two batches, so that a resumed fit ends like one that never stopped.

Lightning saves weights, optimizers, schedules, callbacks and its counters as they are in the middle of a hook, so a
resumed fit repeats a schedule's step or skips a validation. A moment is therefore captured when nothing of the last
batch is pending. It also holds what Lightning leaves out: the generators, the place in stock DataLoaders, the running
means of logged values, accumulated gradients that have not been used yet, and what `module_state` adds to the weights.
"""

import warnings
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loops.fetchers import _DataLoaderIterDataFetcher
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from lightning.pytorch.trainer.states import RunningStage

from lth_lightning.errors import SettingError
from lth_lightning.seeding import generators, restore_generators
from lth_lightning.trainer import lost_attributes, module_state
from lth_lightning.trainer.processes import gathered

Moment = dict[str, Any]
META = ("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph", "add_dataloader_idx")


def after_each_batch(trainer: L.Trainer, then: Callable[[], None]) -> None:
    """Call `then` after each batch and everything that follows it: hooks, validation, schedules, logging.

    Lightning has no hook this late: validation and plateau schedules come after `on_train_batch_end`.
    """
    loop = trainer.fit_loop.epoch_loop
    finish = loop.on_advance_end

    def finish_and_then(data_fetcher: Any) -> None:
        finish(data_fetcher)
        then()

    loop.on_advance_end = finish_and_then  # type: ignore[method-assign]


def let_go(trainer: L.Trainer) -> None:
    """Undo `after_each_batch`, and an unfinished `restore` or `skip_at_start`."""
    for name in ("on_advance_end", "reset", "on_run_start"):
        trainer.fit_loop.epoch_loop.__dict__.pop(name, None)
    trainer.fit_loop.__dict__.pop("on_advance_start", None)


def is_inside_epoch(trainer: L.Trainer) -> bool:
    """Whether an epoch has begun and has more batches to come.

    False if `training_step` draws its own batches (`dataloader_iter`), as the number drawn is unknown.
    """
    if isinstance(trainer.fit_loop._data_fetcher, _DataLoaderIterDataFetcher):
        return False
    epoch: Any = trainer.fit_loop.epoch_progress.current
    loop = trainer.fit_loop.epoch_loop
    return epoch.ready == epoch.started == epoch.processed + 1 and not loop._is_training_done


def gradients_wait(trainer: L.Trainer) -> bool:
    """Whether gradients have been accumulated that no step has used yet."""
    return trainer.fit_loop._should_accumulate()


def checkpoint(trainer: L.Trainer) -> dict[str, Any]:
    """Return everything that Lightning saves of a fit: weights, optimizers, schedules, callbacks, counters."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


def is_between_batches(trainer: L.Trainer) -> bool:
    """Whether no batch, validation or end of an epoch is pending."""
    epoch, batch = trainer.fit_loop.epoch_progress.current, trainer.fit_loop.epoch_loop.batch_progress.current
    whole_epoch = epoch.ready == epoch.completed
    training = trainer.state.stage == RunningStage.TRAINING and batch.ready == batch.completed
    return training and (whole_epoch or is_inside_epoch(trainer))


def capture(trainer: L.Trainer, *, inside_epoch: bool) -> list[Moment]:
    """Return the moment of each process, in the order of ranks, as numbers, text and tensors only.

    Between epochs, generators and loader places are not needed, as each epoch sets its own.
    """
    moment: Moment = {
        "inside_epoch": inside_epoch,
        "known": {name: value.detach().cpu() for name, value in trainer._logger_connector._callback_metrics.items()},
        **module_state.capture_own(trainer),
    }
    if inside_epoch:
        moment |= {"generators": generators(), "means": _means(trainer), "gradients": _pending_gradients(trainer)}
    moments = gathered(trainer, moment)
    moments[0] |= module_state.capture(trainer)
    if trainer.is_global_zero:
        moments[0]["attributes"] = lost_attributes.fingerprints(trainer.lightning_module)
    return moments


def forget(trainer: L.Trainer) -> None:
    """Let a network that begins in a resumed fit begin as in any other: nothing of it is resumed."""
    trainer.fit_loop._resuming_from_checkpoint = False


def restore_weights(trainer: L.Trainer, moments: list[Moment]) -> None:
    """Restore parameters and buffers, to the first process's values on all: processes are compared next.

    Everything else follows with `restore`, such as frozen parameters: the masks' hooks need to be set before.
    """
    module_state.restore_tensors(trainer.lightning_module, moments[0], moments[0])


def _own(trainer: L.Trainer, moments: list[Moment]) -> Moment:
    return moments[min(trainer.global_rank, len(moments) - 1)]


def restore(trainer: L.Trainer, moments: list[Moment], enter_epoch: Callable[[int], None]) -> None:
    """Resume from a moment; call it in `on_train_start`.

    Args:
        trainer: a Trainer whose loops have been restored from the checkpoint.
        moments: the return value of `capture`.
        enter_epoch: moves the loaders to the epoch's place after the given number of batches.

    Raises:
        SettingError: another number of processes began the epoch.
    """
    moment = _own(trainer, moments)
    device = trainer.strategy.root_device
    trainer._logger_connector._callback_metrics.update({k: v.to(device) for k, v in moment["known"].items()})
    _before_the_first_epoch(trainer, moments)
    if not moment["inside_epoch"]:
        return
    if len(moments) != trainer.world_size:
        raise SettingError(
            f"ckpt_path: the checkpoint was saved inside an epoch, so resuming needs {len(moments)} processes as "
            f"before, got {trainer.world_size}. Set trainer.devices and trainer.num_nodes."
        )
    loop = trainer.fit_loop.epoch_loop

    def enter() -> None:  # in place of the first `loop.reset`, the last that Lightning does before the first batch
        del loop.__dict__["reset"]
        with warnings.catch_warnings():  # it warns about stock loaders, which `enter_epoch` moves to their place
            warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before", UserWarning)
            loop.reset()
        trainer.fit_loop.restarting = False  # or it skips a due validation and a plateau schedule's step
        enter_epoch(loop.batch_progress.current.completed)
        _restore_means(trainer, moment["means"])
        parameters = dict(trainer.lightning_module.named_parameters())
        for name, gradient in moment["gradients"].items():
            parameters[name].grad = gradient.to(parameters[name].device)
        restore_generators(moment["generators"])  # last, as everything else may draw

    loop.reset = enter  # type: ignore[method-assign]


def skip_batches(trainer: L.Trainer, count: int, uncounted: int = 0) -> None:
    """Draw `count` batches from the loaders and drop them; Lightning itself counts `uncounted` of them, as done."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    for _ in range(count):
        drawn: Any = next(fetcher)
        if isinstance(fetcher, _DataLoaderIterDataFetcher):  # it yields an iterator over batches
            next(drawn)
    fetcher.fetched = max(0, count - uncounted)


def skip_at_start(trainer: L.Trainer, count: int) -> None:
    """Drop the first `count` batches of the epoch that starts now, whose iterator Lightning has still to make."""
    loop = trainer.fit_loop.epoch_loop
    start = loop.on_run_start

    def start_and_skip(data_fetcher: Any) -> None:
        del loop.__dict__["on_run_start"]
        start(data_fetcher)
        skip_batches(trainer, count)

    loop.on_run_start = start_and_skip  # type: ignore[method-assign]


def _before_the_first_epoch(trainer: L.Trainer, moments: list[Moment]) -> None:
    """Restore the module after all hooks `on_train_start`, as it had passed them when the checkpoint was saved."""
    loop = trainer.fit_loop
    start = loop.on_advance_start

    def restore_and_start() -> None:
        del loop.__dict__["on_advance_start"]
        module_state.restore(trainer.lightning_module, moments[0], _own(trainer, moments))
        if trainer.is_global_zero and "attributes" in moments[0]:
            lost_attributes.warn(trainer.lightning_module, moments[0]["attributes"])
        start()

    loop.on_advance_start = restore_and_start  # type: ignore[method-assign]


# ------------------------------------------------------------------------ gradients and logged means


def _pending_gradients(trainer: L.Trainer) -> dict[str, torch.Tensor]:
    """Return the gradients that the next step may use: accumulated ones, or all in manual optimization."""
    module = trainer.lightning_module
    if module.automatic_optimization and not gradients_wait(trainer):
        return {}
    return {name: p.grad.detach().cpu() for name, p in module.named_parameters() if p.grad is not None}


def _means(trainer: L.Trainer) -> list[dict[str, Any]]:
    """Return the means that `self.log(..., on_epoch=True)` has gathered; metric objects keep their own states."""
    return [
        {
            "key": key,
            "meta": {name: getattr(result.meta, name) for name in META},
            "reduce": result.meta.reduce_fx.__name__,
            "sync": (result.meta.sync.should, result.meta.sync.rank_zero_only),
            "states": {name: value.detach().cpu() for name, value in result.metric_state.items()},
            "updates": result._update_count,
        }
        for key, result in trainer.fit_loop.epoch_loop._results.items()
        if result.is_tensor and result.meta.on_epoch and not result.has_reset
    ]


def _restore_means(trainer: L.Trainer, means: list[dict[str, Any]]) -> None:
    results = trainer.fit_loop.epoch_loop._results
    for saved in means:
        meta = _Metadata(**saved["meta"], reduce_fx=getattr(torch, saved["reduce"]))
        should, rank_zero_only = saved["sync"]
        meta.sync = _Sync(_should=should, fn=trainer.strategy.reduce, rank_zero_only=rank_zero_only)
        results[saved["key"]] = result = _ResultMetric(meta, is_tensor=True).to(trainer.strategy.root_device)
        for name, value in saved["states"].items():
            setattr(result, name, value.to(trainer.strategy.root_device))
        result._update_count = saved["updates"]
    trainer._logger_connector._first_loop_iter = False  # or the next `self.log` restarts its mean
