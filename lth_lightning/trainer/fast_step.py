"""Lightning's training step, skipping hooks that nobody overrides.

Lightning 2.6 calls each hook of a step on each callback, one by one and in a profiler's context, even if it is not
overridden, and repeatedly looks up what does not change within an epoch. This takes some 400 µs per step, a third of
the arithmetic of LeNet-300-100. The fast step calls the same hooks in the same order, with the same counters, but only
where they are overridden. tests/trainer/test_fast_step.py compares the two.

LTH_FAST_STEP=0 in the environment turns it off. It also turns itself off if Lightning's source differs from the one it
was checked against: a new Lightning makes a step slow, never wrong.
"""

import functools
import hashlib
import inspect
import os
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loops.fetchers import _DataFetcher, _DataLoaderIterDataFetcher
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult, _AutomaticOptimization
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.optim import Optimizer

HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
WITHIN = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
TRANSFERS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
# Parts of a step that a module may override; then Lightning's own step is used.
OWN_WAYS = ("optimizer_step", "optimizer_zero_grad", "backward")
CAPTURE_CHECKS = ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check")  # new and old name


COPIED = (
    *(_TrainingEpochLoop.advance, _TrainingEpochLoop.on_advance_end, _TrainingEpochLoop._should_check_val_fx),
    *(_TrainingEpochLoop._should_check_val_epoch, _TrainingEpochLoop.update_lr_schedulers),
    *(_AutomaticOptimization.run, _AutomaticOptimization._optimizer_step, _AutomaticOptimization._make_closure),
    *(_AutomaticOptimization._make_step_fn, _AutomaticOptimization._make_zero_grad_fn),
    *(_AutomaticOptimization._make_backward_fn, _AutomaticOptimization._training_step, Closure.closure),
    *(Precision.optimizer_step, Precision._wrap_closure, Precision._after_closure, Precision._clip_gradients),
    *(Precision.pre_backward, Precision.backward, Precision.post_backward, L.LightningModule.optimizer_step),
)
CHECKED = {"d9aa9e08a946882f930842f393748e13534a51226ac04906c64855fa2bcc5bc5"}  # 2.6.6
"""SHA-256 of the source of all of `COPIED`, for each Lightning that the fast step was checked against."""


@functools.cache  # parsing it takes 25 ms
def source_hash(methods: tuple[Callable[..., Any], ...]) -> str:
    """Return the SHA-256 of the source of methods."""
    return hashlib.sha256("".join(inspect.getsource(method) for method in methods).encode()).hexdigest()


def is_own(thing: object, base: type, method: str) -> bool:
    """Whether `thing` overrides its base class's `method`."""
    return getattr(getattr(thing, method), "__func__", None) is not getattr(base, method)


def applies(trainer: L.Trainer) -> bool:
    """Whether the step is a standard one: one device, one optimizer, no scaling, profiling or module override.

    False if the fast step is switched off, or if Lightning's own step differs from the one it replaces.
    """
    if os.environ.get("LTH_FAST_STEP") == "0" or source_hash(COPIED) not in CHECKED:
        return False
    module, precision = trainer.lightning_module, trainer.precision_plugin
    unscaled = type(precision) is MixedPrecision and precision.scaler is None
    return (
        type(trainer.strategy) is SingleDeviceStrategy
        and trainer.strategy.model is module
        and (unscaled or type(precision) in (Precision, DoublePrecision, HalfPrecision))
        and type(trainer.profiler) is PassThroughProfiler
        and module.automatic_optimization
        and len(trainer.optimizers) == 1
        and not isinstance(trainer.fit_loop._data_fetcher, _DataLoaderIterDataFetcher)
        and not any(is_own(module, L.LightningModule, name) for name in OWN_WAYS)
    )


Fuse = Callable[[], Callable[[Any], Tensor | None] | None]
"""Returns a function that runs forward, backward and the optimizer's step on a batch and returns the loss, or None."""


def install(trainer: L.Trainer, fuse: Fuse) -> None:
    """Speed up the steps of a fit that has started, as far as possible.

    Args:
        trainer: a Trainer whose fit has started.
        fuse: called when an epoch starts in which nobody looks into a step. What it returns, if not None, runs the
            steps; where that returns None, the usual step is run.
    """
    leave_out_capture_checks(trainer)
    if applies(trainer):
        step, loop = FastStep(trainer, fuse), trainer.fit_loop.epoch_loop
        loop.advance, loop.on_advance_end = step.advance, step.on_advance_end  # type: ignore[method-assign]


def remove(trainer: L.Trainer) -> None:
    """Undo `install`."""
    for name in ("advance", "on_advance_end"):
        trainer.fit_loop.epoch_loop.__dict__.pop(name, None)
    for optimizer in trainer.optimizers:
        for name in CAPTURE_CHECKS:
            optimizer.__dict__.pop(name, None)


def leave_out_capture_checks(trainer: L.Trainer) -> None:
    """Skip each step's check for CUDA graph capture on a CPU, where nothing is captured. With a CUDA build of torch
    and Lightning imported, it searches the disk for the driver's library: 90 µs without a GPU."""
    if trainer.strategy.root_device.type != "cpu":
        return
    for optimizer in trainer.optimizers:
        for name in CAPTURE_CHECKS:
            if hasattr(optimizer, name):
                setattr(optimizer, name, _nothing)


def _nothing() -> None:
    pass


class FastStep:
    """Replaces `advance` and `on_advance_end` of Lightning's training loop.

    If something rare is due (a restart, accumulated gradients, validation, schedules), it calls Lightning's own.

    Args:
        trainer: a Trainer whose fit has started, and for which `applies` is true.
        fuse: as for `install`.
    """

    def __init__(self, trainer: L.Trainer, fuse: Fuse = lambda: None) -> None:
        loop = trainer.fit_loop.epoch_loop
        self._trainer, self._module, self._loop = trainer, trainer.lightning_module, loop
        self._usual_advance, self._usual_end = loop.advance, loop.on_advance_end
        self._attributes = self._module.__dict__  # avoids `nn.Module.__setattr__`, which takes 2 µs
        self._fuse = fuse
        self._look()

    def _look(self) -> None:
        """Look up what does not change within an epoch, above all which hooks are overridden."""
        trainer, module = self._trainer, self._module
        self._hooks = {name: self._heard(name) for name in HOOKS}
        holders = [holder for holder in (module, trainer.datamodule) if holder is not None]
        self._transfers = any(
            is_own(holder, L.LightningModule if holder is module else L.LightningDataModule, name)
            for holder in holders
            for name in TRANSFERS
        )
        self._takes_index = "batch_idx" in self._loop._build_kwargs(OrderedDict(), None, 0)
        self._clips = trainer.gradient_clip_val is not None or is_own(
            module, L.LightningModule, "configure_gradient_clipping"
        )
        precision = trainer.precision_plugin
        self._context = nullcontext if type(precision) is Precision else precision.train_step_context
        self._optimizer: Optimizer = trainer.optimizers[0]
        self._validates = self._loop._should_check_val_epoch()
        self._fused = None if self._clips or any(map(self._is_heard, WITHIN)) else self._fuse()

    def _is_heard(self, hook: str) -> bool:
        callbacks, own = self._hooks[hook]
        return bool(callbacks) or own is not None

    def _heard(self, hook: str) -> tuple[list[Callable[..., Any]], Callable[..., Any] | None]:
        callbacks = [getattr(one, hook) for one in self._trainer.callbacks if is_own(one, L.Callback, hook)]
        return callbacks, getattr(self._module, hook) if is_own(self._module, L.LightningModule, hook) else None

    def _call(self, hook: str, *args: Any) -> Any:
        """Call a hook of callbacks, then of the module, and return the module's value; `self.log` needs its name."""
        callbacks, own = self._hooks[hook]
        if not callbacks and own is None:
            return None
        outer, self._attributes["_current_fx_name"] = self._attributes["_current_fx_name"], hook
        for method in callbacks:
            method(self._trainer, self._module, *args)
        answer = own(*args) if own is not None else None
        self._attributes["_current_fx_name"] = outer
        return answer

    # ------------------------------------------------------------------------ the loop's methods

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Train on one batch."""
        trainer, loop, progress = self._trainer, self._loop, self._loop.batch_progress
        if progress.current.ready == 0:
            self._look()
        skips = loop.restarting and loop._should_check_val_fx(data_fetcher)  # a resumed fit may owe a validation
        if skips or trainer.accumulate_grad_batches != 1:
            self._usual_advance(data_fetcher)
            return
        loop.val_loop.restarting = False
        batch, _, _ = next(data_fetcher)
        index = progress.current.ready
        progress.is_last_batch = data_fetcher.done
        batch = self._on_device(batch)
        connector = trainer._logger_connector
        progress.increment_ready()
        connector.on_batch_start(batch)
        outputs = None
        if batch is None:
            loop._warning_cache.warn("train_dataloader yielded None. If this was on purpose, ignore this warning...")
        elif self._call("on_train_batch_start", batch, index) == -1:
            progress.increment_by(0, is_last_batch=True)
            progress.increment_processed()
            self._step_schedules()
            raise StopIteration
        else:
            progress.increment_started()
            outputs = self._optimise(batch, index)
        progress.increment_processed()
        self._step_schedules()
        self._call("on_train_batch_end", outputs, batch, index)
        connector.on_batch_end()
        progress.increment_completed()
        connector.update_train_step_metrics()

    def _on_device(self, batch: Any) -> Any:
        trainer = self._trainer
        batch = trainer.precision_plugin.convert_input(batch)
        if not self._transfers and _is_there(batch, trainer.strategy.root_device):
            return batch
        batch = self._module._on_before_batch_transfer(batch, dataloader_idx=0)
        return trainer.strategy.batch_to_device(batch, dataloader_idx=0)

    def _step_schedules(self) -> None:
        if self._trainer.lr_scheduler_configs:
            self._loop.update_lr_schedulers("step", update_plateau_schedulers=False)
            if self._loop._num_ready_batches_reached():
                self._loop.update_lr_schedulers("epoch", update_plateau_schedulers=False)

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        """Finish a batch; usually nothing is left to do."""
        if self._something_is_due():
            self._usual_end(data_fetcher)
        else:
            self._loop._batches_that_stepped += 1

    def _something_is_due(self) -> bool:
        trainer, progress = self._trainer, self._loop.batch_progress
        if (
            trainer.should_stop
            or trainer.received_sigterm
            or trainer.lr_scheduler_configs
            or trainer.accumulate_grad_batches != 1
            or self._loop._skip_next_val
            or trainer._val_check_time_interval is not None
        ):
            return True
        count = progress.total.ready if trainer.check_val_every_n_epoch is None else progress.current.ready
        every = trainer.val_check_batch
        return self._validates and (not isinstance(every, int) or count % every == 0)

    # ------------------------------------------------------------------------ in place of `_AutomaticOptimization.run`

    def _optimise(self, batch: Any, index: int) -> dict[str, Any]:
        """Run forward, backward and step; return `training_step`'s outputs with the loss detached."""
        progress = self._loop.automatic_optimization.optim_progress.optimizer
        if self._fused is not None and (loss := self._fused(batch)) is not None:
            for part in (progress.step, progress.zero_grad):
                part.increment_ready()
            progress.zero_grad.increment_started()
            for part in (progress.step, progress.zero_grad):
                part.increment_completed()
            return {"loss": loss}
        arguments = (batch, index) if self._takes_index else (batch,)
        closure = Closure(lambda: self._forward(arguments), self._backward, self._zero_grad)
        progress.step.increment_ready()
        self._optimizer.step(lambda: self._before_step(closure))  # type: ignore[arg-type, return-value]
        progress.step.increment_completed()
        result = closure.consume_result()
        return {} if result.loss is None else result.asdict()

    def _forward(self, arguments: tuple[Any, ...]) -> ClosureResult:
        outer, self._attributes["_current_fx_name"] = self._attributes["_current_fx_name"], "training_step"
        with self._context():
            outputs = self._module.training_step(*arguments)
        self._attributes["_current_fx_name"] = outer
        # Lightning divides the loss by 1, which adds a node to the graph.
        return (
            ClosureResult(outputs) if isinstance(outputs, Tensor) else ClosureResult.from_training_step_output(outputs)
        )

    def _zero_grad(self) -> None:
        progress = self._loop.automatic_optimization.optim_progress.optimizer.zero_grad
        progress.increment_ready()
        self._call("on_before_zero_grad", self._optimizer)
        progress.increment_started()
        self._optimizer.zero_grad()
        progress.increment_completed()

    def _backward(self, loss: Tensor) -> None:
        self._call("on_before_backward", loss)
        loss.backward()
        self._call("on_after_backward")

    def _before_step(self, closure: Closure) -> Tensor | None:
        loss = closure()
        self._call("on_before_optimizer_step", self._optimizer)
        if self._clips:
            trainer = self._trainer
            trainer.precision_plugin._clip_gradients(
                self._module,
                self._optimizer,
                trainer.gradient_clip_val,
                gradient_clip_algorithm=trainer.gradient_clip_algorithm,
            )
        return loss


def _is_there(batch: Any, device: torch.device) -> bool:
    """Whether the batch is a tuple or list of tensors that are all on the device."""
    return isinstance(batch, tuple | list) and all(type(part) is Tensor and part.device == device for part in batch)
