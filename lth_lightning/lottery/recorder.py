"""Scores of the network in training: its evaluations, as the module logs them, its time, and its row in the end."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import lightning as L

from lth_lightning.lottery.plan import TrainedNetwork
from lth_lightning.pruning.masks import Masks, count_kept, count_prunable
from lth_lightning.runs.rows import CurveRow, Evaluation, LayerRow, Row, early_stop
from lth_lightning.seeding import preserved_generators
from lth_lightning.trainer import fit
from lth_lightning.trainer.evaluation import TestLoop, validate
from lth_lightning.trainer.processes import mean_over_processes

METRICS = ("train_loss", "val_loss", "val_acc", "test_loss", "test_acc")


class Recorder:
    """Of one network after the other.

    Args:
        names: the module's name for each of METRICS.
    """

    def __init__(self, names: dict[str, str]) -> None:
        self._names = names
        self._test_loop: TestLoop | None = None
        self.start_over()

    def start_over(self) -> None:
        """Begin a new network."""
        self._curve: list[Evaluation] = []
        self._seconds = 0.0
        self._since = time.monotonic()

    def attach(self, trainer: L.Trainer, with_test: bool, others: Sequence[L.Callback] = ()) -> None:
        """Get ready for a fit; `with_test`: evaluate the test data too, heard of by `others`."""
        self._test_loop = TestLoop(trainer, others) if with_test else None

    def record(self, trainer: L.Trainer) -> None:
        """Add a point to the learning curve, from what validation has just logged and the test data."""
        if self._test_loop is not None:
            self._test_loop.run(trainer)
        known = mean_over_processes(trainer, [self._metric(trainer, name) for name in METRICS[1:]])
        self._curve.append(Evaluation(fit.steps_done(trainer), *known))

    @property
    def last(self) -> Evaluation | None:
        """The last point of the learning curve."""
        return self._curve[-1] if self._curve else None

    def complete(self, trainer: L.Trainer) -> None:
        """Evaluate the weights as they are, between epochs, unless the last evaluation saw them."""
        if self._curve and self._curve[-1].step == fit.steps_done(trainer):
            return
        points = len(self._curve)
        validate(trainer)  # records by itself, in the callback's `on_validation_end`
        if len(self._curve) == points:
            with preserved_generators():
                self.record(trainer)

    def _metric(self, trainer: L.Trainer, name: str) -> float | None:
        value = trainer.callback_metrics.get(self._names[name])
        return None if value is None else float(value)

    def row(self, trainer: L.Trainer, network: TrainedNetwork, masks: Masks, first_step: int) -> Row:
        """The network's line in results.csv; `first_step` is the step it started at."""
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
        )

    def curve(self, network: TrainedNetwork) -> list[CurveRow]:
        """The network's learning curve so far, as lines of its file."""
        return [CurveRow(network.round, network.variant, network.replicate, **asdict(point)) for point in self._curve]

    @property
    def _elapsed(self) -> float:
        return self._seconds + time.monotonic() - self._since

    def state_dict(self) -> dict[str, Any]:
        """Numbers only."""
        return {"curve": [asdict(point) for point in self._curve], "seconds": self._elapsed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with a network."""
        self._curve = [Evaluation(**point) for point in state["curve"]]
        self._seconds, self._since = state["seconds"], time.monotonic()


def layer_rows(network: TrainedNetwork, masks: Masks) -> list[LayerRow]:
    """The network's lines in layers.csv."""
    return [
        LayerRow(network.round, network.variant, network.replicate, name, kept, mask.numel(), kept / mask.numel())
        for name, mask in masks.items()
        for kept in [int(mask.sum())]
    ]
