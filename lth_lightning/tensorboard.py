"""TensorBoard: a sub-run for each trained network, so that the rounds' learning curves lie over one another."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.loggers.logger import _DummyExperiment, rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.utils.tensorboard import SummaryWriter

from lth_lightning.files import failure_to_write
from lth_lightning.results import Row


class SubRunLogger(TensorBoardLogger):
    """A TensorBoardLogger that shows sub-runs and nothing else.

    Lightning opens the experiment before there is a network, which would show as an empty run; it logs the epoch
    beside every metric, which would be the first chart of all; and it writes an empty hparams.yaml a sub-run.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer of the sub-run; before there is one, something that swallows all calls."""
        return _DummyExperiment() if self._sub_dir is None else super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log everything but the epoch."""
        try:
            super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)
        except Exception as error:  # any: TensorBoard's thread fails first, and what it raises here says nothing of it
            if (failure := failure_to_write(error, Path(self.log_dir))) is not None:
                raise failure from error
            raise

    @rank_zero_only
    def save(self) -> None:
        """Flush; there are no hyperparameters to save."""
        self.experiment.flush()


def _loggers(trainer: L.Trainer) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def enter_sub_run(trainer: L.Trainer, name: str, step: int) -> None:
    """Let every TensorBoardLogger of the trainer write to the sub-run `name` from here on.

    Any TensorBoardLogger will do, a project's own too.

    Args:
        trainer: its loggers are changed in place.
        name: the sub-run's folder, and its name in TensorBoard's legend.
        step: the step that the network starts at, or goes on from; what a run that was killed has logged from there on
            is void.
    """
    for logger in _loggers(trainer):
        _close(logger)
        logger._sub_dir = name
        logger._kwargs["purge_step"] = step


def leave_sub_run(trainer: L.Trainer) -> None:
    """Let the loggers write to their own folder again."""
    for logger in _loggers(trainer):
        _close(logger)
        logger._sub_dir = None
        logger._kwargs.pop("purge_step", None)


def _close(logger: TensorBoardLogger) -> None:
    if logger._experiment is not None:
        logger._experiment.close()
        logger._experiment = None


class SummaryCurves:
    """Accuracy and early-stop step over rounds: one sub-run a variant, with the round as step.

    Args:
        trainer: its first TensorBoardLogger says where; without one nothing is written.
        past: rows that a resumed run has written already.
    """

    def __init__(self, trainer: L.Trainer, past: Sequence[Row]) -> None:
        loggers = _loggers(trainer)
        self._folder = Path(loggers[0].log_dir) if loggers and trainer.is_global_zero else None
        self._past = list(past)  # a copy: new rows come to the original
        self._writers: dict[str, SummaryWriter] = {}

    def add(self, row: Row) -> None:
        """Add the points of a trained network. Of several replicates the first stands for all."""
        if self._folder is None or row.replicate > 0:
            return
        writer = self._writers.get(row.variant) or self._open(row.variant)
        for tag, value in (
            ("rounds/test_acc", row.test_acc),
            ("rounds/val_acc", row.val_acc),
            ("rounds/early_stop_step", row.early_stop_step),
            ("rounds/early_stop_test_acc", row.early_stop_test_acc),
            ("rounds/density", row.density),
        ):
            if value is not None:
                writer.add_scalar(tag, value, row.round)
        writer.flush()

    def _open(self, variant: str) -> SummaryWriter:
        assert self._folder is not None
        done = [row.round for row in self._past if row.variant == variant]
        # A kill between a row and its checkpoint leaves a point that the resumed run will write again.
        purge = max(done, default=-1) + 1
        self._writers[variant] = SummaryWriter(str(self._folder / f"all rounds, {variant}"), purge_step=purge)
        return self._writers[variant]

    def close(self) -> None:
        """Flush and close the files."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
