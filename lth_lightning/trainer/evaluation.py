"""Evaluation inside a fit, of validation and test data, that leaves training as it found it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
from lightning.pytorch.loops import _EvaluationLoop
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from lth_lightning.seeding import preserved_generators


def validate(trainer: L.Trainer) -> None:
    """Run the validation loop between epochs."""
    if trainer.enable_validation:
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True


def just_logged(trainer: L.Trainer) -> dict[str, Tensor]:
    """What the evaluation that has just ended has logged: `callback_metrics` hold what earlier ones did too."""
    results = trainer._results
    assert results is not None
    logged: dict[str, Tensor] = {}
    for loader in {result.meta.dataloader_idx for result in results.values()}:
        results.dataloader_idx = loader  # of several loaders it gives the metrics of one
        logged |= results.metrics(on_step=False)["callback"]
    results.dataloader_idx = None
    return logged


def guard_validation(trainer: L.Trainer) -> None:
    """Keep what validation draws (a shuffling loader, say) from changing what training draws next, and let it end
    before a SIGTERM is heard.

    Around the loop's `run`, as loaders draw before any hook.
    """
    loop = trainer.fit_loop.epoch_loop.val_loop
    run = loop.run

    def guarded() -> Any:
        with preserved_generators(), _deferred_sigterm(trainer):
            return run()

    loop.run = guarded  # type: ignore[method-assign]


@contextmanager
def _deferred_sigterm(trainer: L.Trainer) -> Iterator[None]:
    """Lightning would leave the validation; no checkpoint could be made there, and an epoch be lost."""
    if trainer.world_size > 1 or threading.current_thread() is not threading.main_thread():
        yield
        return
    connector = trainer._signal_connector
    before, handler = connector.received_sigterm, signal.getsignal(signal.SIGTERM)
    heard: list[Any] = []
    connector.received_sigterm = False
    signal.signal(signal.SIGTERM, lambda *args: heard.append(args))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
        connector.received_sigterm = before
        if heard and callable(handler):
            handler(*heard[0])


def unguard_validation(trainer: L.Trainer) -> None:
    """Undo `guard_validation`."""
    trainer.fit_loop.epoch_loop.val_loop.__dict__.pop("run", None)


class _KeepingLoop(_EvaluationLoop):
    """Keeps what it has logged, which Lightning drops at the end of a run."""

    logged: dict[str, Tensor] | None = None

    def _on_evaluation_end(self, *args: Any, **kwargs: Any) -> None:
        self.logged = just_logged(self.trainer)
        super()._on_evaluation_end(*args, **kwargs)


class TestLoop:
    """Runs Lightning's test loop inside a fit, which `Trainer.test` cannot do without destroying its state.

    The module's `test_step` does the work, so that any LightningModule's test metrics can be had.
    """

    __test__ = False  # not a test case of pytest's

    def __init__(self, trainer: L.Trainer) -> None:
        """Call it in `on_fit_start`, when strategy and data source are set."""
        self._outer = trainer.test_loop
        source = self._outer._data_source
        module = trainer.lightning_module
        self.available = is_overridden("test_step", module) and source.is_defined()
        if not self.available:
            return
        if trainer.datamodule is not None:
            trainer.datamodule.setup("test")
        # Fitting, not testing: loaders are made once and kept. No inference mode: its tensors cannot train.
        self._loop = _KeepingLoop(trainer, TrainerFn.FITTING, RunningStage.TESTING, verbose=False, inference_mode=False)
        self._loop._data_source = source

    def run(self, trainer: L.Trainer) -> dict[str, Tensor] | None:
        """Evaluate on the test data; gives the metrics, which `trainer.callback_metrics` have afterwards too, or None
        where there are no such data."""
        if not self.available:
            return None
        function, stage = trainer.state.fn, trainer.state.stage
        trainer.test_loop = self._loop
        trainer.state.fn, trainer.state.stage = TrainerFn.TESTING, RunningStage.TESTING
        try:
            self._loop.run()
            return self._loop.logged  # None if there was no batch
        finally:
            trainer.test_loop = self._outer
            trainer.state.fn, trainer.state.stage = function, stage
