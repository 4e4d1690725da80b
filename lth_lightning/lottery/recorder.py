"""Recorder: the evaluations of the network in training as the module logs them, its time, and its final row."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import lightning as L
from torch import Tensor

from lth_lightning.lottery.metrics import Metrics, check_fraction, check_logged, not_numbers, number
from lth_lightning.lottery.plan import TrainedNetwork
from lth_lightning.pruning.masks import Masks, count_kept, count_prunable
from lth_lightning.runs.rows import CurveRow, Evaluation, LayerRow, Row, early_stop
from lth_lightning.seeding import preserved_generators
from lth_lightning.trainer import fit
from lth_lightning.trainer.evaluation import TestLoop, just_logged, validate
from lth_lightning.trainer.processes import gathered, mean_over_processes

log = logging.getLogger(__name__)


class Recorder:
    """Records one network after the other.

    Args:
        metrics: the metrics to record.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._looked_at: set[str] = set()  # those of `train`, `val`, `test` whose metric names are settled
        self._evaluated: set[str] = set()  # the names that validation and test log
        self._test_loop: TestLoop | None = None
        self.start_over()

    def start_over(self) -> None:
        """Begin a new network."""
        self._curve: list[Evaluation] = []
        self._told_of_nan = False
        self._seconds = 0.0
        self._since = time.monotonic()

    def attach(self, trainer: L.Trainer, with_test: bool, others: Sequence[L.Callback] = ()) -> None:
        """Prepare for a fit, and warn of what it will not evaluate.

        Args:
            trainer: a Trainer whose fit has started.
            with_test: whether to evaluate the test data too.
            others: the callbacks to call in a test.
        """
        self._test_loop = TestLoop(trainer, others) if with_test else None
        if not trainer.enable_validation:
            self._tell_of_no_validation(
                trainer, "no validation_step, no data for it, or trainer.limit_val_batches is 0"
            )
        asked = sorted(name for name in self._metrics.asked if _kind(name) == "test")
        if asked and self._test_loop is not None and not self._test_loop.available:
            _tell(trainer, f"lottery.metrics names {', '.join(asked)}, but the module has no test_step or test data.")

    def record(self, trainer: L.Trainer) -> None:
        """Add a point to the learning curve: the validation just logged, and the test data.

        Values logged by training or an earlier evaluation are ignored, as they are not of this network at this step.

        Raises:
            SettingError: a metric that the user asked for is not logged, or a value cannot be right.
        """
        logged: dict[str, Mapping[str, Tensor]] = {}
        if trainer.validating:
            logged["val"] = just_logged(trainer)
        if self._test_loop is not None and (tested := self._test_loop.run(trainer)) is not None:
            logged["test"] = tested
        self._evaluated |= set().union(*logged.values())
        fields = self._metrics.fields
        own = [self._number(name, logged.get(_kind(name), {})) for name in fields]
        known = dict(zip(fields, mean_over_processes(trainer, own), strict=True))
        self._look_at(trainer, known, logged)
        step = fit.steps_done(trainer)
        if not self._told_of_nan and (odd := not_numbers(step, known)) is not None:
            self._told_of_nan = True
            _tell(trainer, odd)
        self._curve.append(Evaluation(step, **{fields[name]: value for name, value in known.items()}))

    def look_at_training(self, trainer: L.Trainer) -> None:
        """Check that `train_loss` is logged; call it after an epoch, whose end may log it.

        Raises:
            SettingError: the user asked for it, but it is not logged.
        """
        if "train" not in self._looked_at:
            (train_loss,) = mean_over_processes(trainer, [self._metric(trainer, "train_loss")])
            logged = {name: value for name, value in trainer.callback_metrics.items() if name not in self._evaluated}
            self._look_at(trainer, {"train_loss": train_loss}, {"train": logged})

    def _look_at(
        self, trainer: L.Trainer, known: Mapping[str, float | None], logged: Mapping[str, Mapping[str, Tensor]]
    ) -> None:
        names, asked = self._metrics.names, self._metrics.asked
        for name, value in known.items():
            if name in self._metrics.fractions:
                check_fraction(name, names[name], value)
        for kind in sorted(logged.keys() - self._looked_at):  # in the same order on all processes
            wanted = [name for name in known if _kind(name) == kind and name not in self._metrics.optional]
            missing = {name: names[name] for name in wanted if known[name] is None}
            there = set().union(*gathered(trainer, set(logged[kind]))) if missing else ()
            words = check_logged(missing, there, asked, _WHERE[kind])
            if words is not None:
                _tell(trainer, words)
            self._looked_at.add(kind)

    def _tell_of_no_validation(self, trainer: L.Trainer, why: str) -> None:
        if "val" not in self._looked_at:
            self._looked_at.add("val")
            _tell(trainer, f"nothing is validated: {why}. results.csv leaves val_* and early_stop_* empty.")

    @property
    def last(self) -> Evaluation | None:
        """The last point of the learning curve."""
        return self._curve[-1] if self._curve else None

    def complete(self, trainer: L.Trainer) -> None:
        """Evaluate the final weights, between epochs, unless the last evaluation was at this step."""
        if self._curve and self._curve[-1].step == fit.steps_done(trainer):
            return
        points = len(self._curve)
        validate(trainer)  # calls `record`, in the callback's `on_validation_end`
        if len(self._curve) == points:
            if trainer.enable_validation:
                self._tell_of_no_validation(trainer, "the validation data have no batch")
            with preserved_generators():
                self.record(trainer)

    def _metric(self, trainer: L.Trainer, name: str) -> float | None:
        return self._number(name, trainer.callback_metrics)

    def _number(self, name: str, logged: Mapping[str, Tensor]) -> float | None:
        logged_as = self._metrics.names[name]
        value = logged.get(logged_as)
        return None if value is None else number(name, logged_as, value)

    def row(
        self, trainer: L.Trainer, network: TrainedNetwork, masks: Masks, first_step: int, engine: str | None = None
    ) -> Row:
        """Return the network's row of results.csv; `first_step` is the step it started at."""
        last = self._curve[-1]
        steps = fit.steps_done(trainer) - first_step
        best = early_stop(self._curve) if steps else None
        (train_loss,) = mean_over_processes(trainer, [self._metric(trainer, "train_loss")])
        kept, prunable = count_kept(masks), count_prunable(masks)
        return Row(
            round=network.round,
            variant=network.variant,
            replicate=network.replicate,
            density=kept / prunable,
            kept=kept,
            prunable=prunable,
            steps=steps,
            seconds=round(self._elapsed, 3),
            train_loss=train_loss,
            val_loss=last.val_loss,
            val_acc=last.val_acc,
            test_loss=last.test_loss,
            test_acc=last.test_acc,
            early_stop_step=best.step if best else None,
            early_stop_val_loss=best.val_loss if best else None,
            early_stop_test_acc=best.test_acc if best else None,
            val_score=last.val_score,
            test_score=last.test_score,
            early_stop_test_score=best.test_score if best else None,
            engine=engine,
        )

    def curve(self, network: TrainedNetwork) -> list[CurveRow]:
        """Return the network's learning curve so far, as rows of its file."""
        return [CurveRow(network.round, network.variant, network.replicate, **asdict(point)) for point in self._curve]

    @property
    def _elapsed(self) -> float:
        return self._seconds + time.monotonic() - self._since

    def state_dict(self) -> dict[str, Any]:
        """Return the learning curve and the seconds, as numbers only."""
        return {"curve": [asdict(point) for point in self._curve], "seconds": self._elapsed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume a network."""
        self._curve = [Evaluation(**point) for point in state["curve"]]
        self._seconds, self._since = state["seconds"], time.monotonic()


def layer_rows(network: TrainedNetwork, masks: Masks) -> list[LayerRow]:
    """Return the network's rows of layers.csv."""
    return [
        LayerRow(network.round, network.variant, network.replicate, name, kept, mask.numel(), kept / mask.numel())
        for name, mask in masks.items()
        for kept in [int(mask.sum())]
    ]


_WHERE = {"train": "training, in its first epoch,", "val": "the first validation", "test": "the first test"}


def _kind(metric: str) -> str:
    return metric.partition("_")[0]


def _tell(trainer: L.Trainer, words: str) -> None:
    if trainer.is_global_zero:
        log.warning("%s", words)
