"""TensorBoard: a sub-run for each trained network, so that the rounds' learning curves lie over one another."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.loggers.logger import _DummyExperiment, rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.utils.tensorboard import SummaryWriter

from lth_lightning import fresh_fit
from lth_lightning.files import failure_to_write
from lth_lightning.results import Row


class SubRunLogger(TensorBoardLogger):
    """A TensorBoardLogger that shows sub-runs and nothing else.

    Lightning opens the experiment before there is a network, which would show as an empty run; it logs the epoch
    beside every metric, which would be the first chart of all; it writes an empty hparams.yaml a sub-run; and it puts
    what is known after n steps at n - 1, the number of the last batch. Here it stands at n, as in curves/.
    """

    _trainer: L.Trainer | None = None  # of the sub-run

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer of the sub-run; before there is one, something that swallows all calls."""
        return _DummyExperiment() if self._sub_dir is None else super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log everything but the epoch."""
        try:
            named = {name: value for name, value in metrics.items() if name != "epoch"}
            super().log_metrics(named, None if step is None else self._steps_done(step))
        except Exception as error:  # any: TensorBoard's thread fails first, and what it raises here says nothing of it
            if (failure := failure_to_write(error, Path(self.log_dir))) is not None:
                raise failure from error
            raise

    def _steps_done(self, batch: int) -> int:
        """Of an evaluation, which may come between epochs or between accumulated gradients, the very count."""
        evaluating = self._trainer is not None and self._trainer.evaluating
        return fresh_fit.steps_done(self._trainer) if self._trainer and evaluating else batch + 1

    @rank_zero_only
    def save(self) -> None:
        """Flush; there are no hyperparameters to save."""
        self.experiment.flush()


def _loggers(trainer: L.Trainer) -> list[TensorBoardLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def network_writer(trainer: L.Trainer) -> SummaryWriter | None:
    """The writer of the sub-run of the network in training; None where nothing is to be written."""
    loggers = _loggers(trainer)
    return loggers[0].experiment if loggers and trainer.is_global_zero else None


def goes_on(trainer: L.Trainer) -> bool:
    """Whether the sub-run of the network in training was begun by a run that this one resumes."""
    return any(logger._kwargs.get("purge_step") for logger in _loggers(trainer))


def enter_sub_run(trainer: L.Trainer, name: str, step: int) -> None:
    """Let every TensorBoardLogger of the trainer write to the sub-run `name` from here on.

    Any TensorBoardLogger will do, a project's own too.

    Args:
        trainer: its loggers are changed in place.
        name: the sub-run's folder, and its name in TensorBoard's legend.
        step: the step that the network goes on from, 0 where it starts; what a run that was killed has logged of later
            steps is void.
    """
    for logger in _loggers(trainer):
        _close(logger)
        logger._sub_dir = name
        logger._kwargs["purge_step"] = step
        if isinstance(logger, SubRunLogger):
            logger._trainer = trainer
            logger._kwargs["purge_step"] = step + 1 if step else 0  # a point at `step` is of what was done before


def leave_sub_run(trainer: L.Trainer) -> None:
    """Let the loggers write to their own folder again."""
    for logger in _loggers(trainer):
        _close(logger)
        logger._sub_dir = None
        logger._kwargs.pop("purge_step", None)
        if isinstance(logger, SubRunLogger):
            logger._trainer = None


def _close(logger: TensorBoardLogger) -> None:
    if logger._experiment is not None:
        logger._experiment.close()
        logger._experiment = None


class SummaryCurves:
    """Sub-runs with the round as step: accuracy and early-stop step over rounds, one sub-run a variant.

    Args:
        trainer: its first TensorBoardLogger says where; without one nothing is written.
        past: rows that a resumed run has written already.
    """

    def __init__(self, trainer: L.Trainer, past: Sequence[Row]) -> None:
        loggers = _loggers(trainer)
        self._folder = Path(loggers[0].log_dir) if loggers and trainer.is_global_zero else None
        self._past = list(past)  # a copy: new rows come to the original
        self._writers: dict[str, SummaryWriter] = {}
        self._begun: set[str] = set()

    def add(self, row: Row) -> None:
        """Add the points of a trained network. Of several replicates the first stands for all."""
        if (writer := self.of_variant(row.variant)) is None or row.replicate > 0:
            return
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

    def of_variant(self, variant: str) -> SummaryWriter | None:
        """The writer of a variant's sub-run; None where nothing is to be written."""
        done = [row.round for row in self._past if row.variant == variant]
        # A kill between a row and its checkpoint leaves a point that the resumed run will write again.
        return self.writer(f"all rounds, {variant}", max(done, default=-1) + 1)

    def of_all(self, void_from: int) -> SummaryWriter | None:
        """The writer of the sub-run for what is not a variant's: figures, text."""
        return self.writer("all rounds", void_from)

    def writer(self, name: str, void_from: int) -> SummaryWriter | None:
        """The writer of a sub-run, one a folder: TensorBoard would let a second one purge what the first wrote.

        Args:
            name: the sub-run's folder.
            void_from: what a run that was killed has written there of this step and later is void. It counts the first
                time only: what this fit has written is not.
        """
        if self._folder is not None and name not in self._writers:
            purge = None if name in self._begun else void_from
            self._writers[name] = SummaryWriter(str(self._folder / name), purge_step=purge)
            self._begun.add(name)
        return self._writers.get(name)

    def close(self) -> None:
        """Flush and close the files; a writer that is asked for later opens another."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
