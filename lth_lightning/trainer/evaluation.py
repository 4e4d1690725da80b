"""Evaluates validation and test data inside a fit without affecting training."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.loops import _EvaluationLoop
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

from lth_lightning.errors import SettingError
from lth_lightning.pruning.state import copied, full_state, load_state
from lth_lightning.seeding import preserved_generators


def validate(trainer: L.Trainer) -> None:
    """Run the validation loop between epochs."""
    if trainer.enable_validation:
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True


def just_logged(trainer: L.Trainer) -> dict[str, Tensor]:
    """Return what the evaluation that just ended has logged; `callback_metrics` also hold earlier values."""
    results = trainer._results
    assert results is not None
    logged: dict[str, Tensor] = {}
    for loader in {result.meta.dataloader_idx for result in results.values()}:
        results.dataloader_idx = loader  # `metrics` returns those of one loader
        logged |= results.metrics(on_step=False)["callback"]
    results.dataloader_idx = None
    return logged


def guard_validation(trainer: L.Trainer, afterwards: Callable[[], None]) -> None:
    """Keep validation's random draws (a shuffling loader, say) from affecting training, and defer SIGTERM until its
    end.

    This wraps the loop's `run`, as loaders draw before any hook.

    Args:
        trainer: a Trainer whose fit has started.
        afterwards: called when the last hook of a validation has run.
    """
    loop = trainer.fit_loop.epoch_loop.val_loop
    run = loop.run

    def guarded() -> Any:
        with preserved_generators(), _deferred_sigterm(trainer):
            try:
                return run()
            finally:
                afterwards()

    loop.run = guarded  # type: ignore[method-assign]


@contextmanager
def _deferred_sigterm(trainer: L.Trainer) -> Iterator[None]:
    """Defer SIGTERM: Lightning would abort the validation, where no checkpoint is possible, and lose an epoch."""
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
    """An evaluation loop that keeps its logged metrics, which Lightning drops at the end of a run."""

    logged: dict[str, Tensor] | None = None

    def _on_evaluation_end(self, *args: Any, **kwargs: Any) -> None:
        self.logged = just_logged(self.trainer)
        super()._on_evaluation_end(*args, **kwargs)


class _TestFace:
    """The state of a callback or module after `setup("test")`, swapped in while the test data are evaluated.

    `Trainer.test` calls `setup("test")` before any test hook. Many callbacks and modules create there what those hooks
    need, and many store the stage. For a test inside a fit, new attributes stay, changed attributes change back
    between tests, and the trained layers remain the same objects.
    """

    def __init__(self, part: L.Callback | L.LightningModule) -> None:
        self._part = part
        self._test: dict[str, Any] | None = None
        self._made: set[str] = set()  # attributes that did not exist before

    @contextmanager
    def shown(self, trainer: L.Trainer) -> Iterator[None]:
        """Swap in the test state for one test. Callbacks are set up for each test, as they collect its results."""
        if self._test is None or isinstance(self._part, L.Callback):
            self._fit = self._set_up(trainer)
        else:
            self._swap(self._test)
        try:
            yield
        finally:
            self._test = self._swap(self._fit)

    def _set_up(self, trainer: L.Trainer) -> dict[str, Any]:
        """Call `setup("test")` and return the old values of the attributes that it has changed."""
        part, before, registered = self._part, dict(vars(self._part)), _registered(self._part)
        if isinstance(part, L.Callback):
            part.setup(trainer, trainer.lightning_module, "test")
        else:
            part.setup("test")
        for known, now in registered:
            now.update(known)
        self._made |= vars(part).keys() - before.keys()
        kept = {name: value for name, value in before.items() if name not in self._made}
        return {name: value for name, value in kept.items() if vars(part).get(name, _GONE) is not value}

    def _swap(self, values: dict[str, Any]) -> dict[str, Any]:
        """Set the attributes to `values` and return their old values."""
        attributes = vars(self._part)
        before = {name: attributes.get(name, _GONE) for name in values}
        attributes.update(values)
        for name in [name for name, value in values.items() if value is _GONE]:
            del attributes[name]
        return before


@contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Give weights, buffers, gradients' switches and modes back after a test: test data must not affect training."""
    before = copied(full_state(module))
    trained = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    modes = {name: part.training for name, part in module.named_modules()}
    try:
        yield
    finally:
        load_state(module, before)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(trained[name])
        for name, part in module.named_modules():
            part.training = modes.get(name, part.training)


_GONE = object()  # stands for a missing attribute, which has become a submodule, say


def _registered(part: object) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return copies of a module's parameters, buffers and submodules, each with the original."""
    if not isinstance(part, nn.Module):
        return []
    return [(dict(those), those) for those in (part._parameters, part._buffers, part._modules)]


class TestLoop:
    """Runs Lightning's test loop inside a fit, where `Trainer.test` would destroy the fit's state.

    It calls the module's `test_step`, so the test metrics of any LightningModule are available.
    """

    __test__ = False  # not a pytest test case

    def __init__(self, trainer: L.Trainer, others: Sequence[L.Callback] = ()) -> None:
        """Call it in `on_fit_start`, when strategy and data source are set.

        Args:
            trainer: the Trainer, with the test loop.
            others: the callbacks to call in tests.

        Raises:
            SettingError: the module's `setup("test")` adds weights to it.
        """
        self._outer = trainer.test_loop
        source = self._outer._data_source
        module = trainer.lightning_module
        self.available = is_overridden("test_step", module) and source.is_defined()
        if not self.available:
            return
        if trainer.datamodule is not None:
            trainer.datamodule.setup("test")
        told = [callback for callback in others if not isinstance(callback, BaseFinetuning)]  # its setup would freeze
        parts: list[L.Callback | L.LightningModule] = [*told, module]
        self._faces = [_TestFace(part) for part in parts]
        known = module.state_dict().keys()
        with self._as_a_test(trainer):  # now, so that a failure comes before training
            pass
        if new := [name for name in module.state_dict() if name not in known]:
            raise SettingError(
                f'lottery.evaluate_test: {type(module).__name__}.setup("test") adds {new[0]} to the network, so a '
                "checkpoint would have it but a resumed fit would not. Create it in `__init__`, or set evaluate_test "
                "to false."
            )
        module.to(trainer.strategy.root_device)  # for metrics created in `setup`, say
        # FITTING, not TESTING, so that loaders are made once and kept. Tensors of inference mode could not train.
        self._loop = _KeepingLoop(trainer, TrainerFn.FITTING, RunningStage.TESTING, verbose=False, inference_mode=False)
        self._loop._data_source = source

    def run(self, trainer: L.Trainer) -> dict[str, Tensor] | None:
        """Evaluate the test data and return the metrics, which are then in `trainer.callback_metrics` too; None
        without test data."""
        if not self.available:
            return None
        trainer.test_loop = self._loop
        try:
            with _unchanged(trainer.lightning_module), self._as_a_test(trainer):
                self._loop.run()
            return self._loop.logged  # None if the data had no batch
        finally:
            trainer.test_loop = self._outer

    @contextmanager
    def _as_a_test(self, trainer: L.Trainer) -> Iterator[None]:
        """Put trainer, callbacks and module in the state of `Trainer.test`."""
        function, stage = trainer.state.fn, trainer.state.stage
        trainer.state.fn, trainer.state.stage = TrainerFn.TESTING, RunningStage.TESTING
        try:
            with ExitStack() as shown:
                for face in self._faces:
                    shown.enter_context(face.shown(trainer))
                yield
        finally:
            trainer.state.fn, trainer.state.stage = function, stage
