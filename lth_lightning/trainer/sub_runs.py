"""TensorBoard sub-runs, one for each trained network, so that the rounds' learning curves share one chart."""

import itertools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.loggers.logger import _DummyExperiment, rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.utils.tensorboard import SummaryWriter

from lth_lightning.files import failure_to_write
from lth_lightning.trainer import fit


class SubRunLogger(TensorBoardLogger):
    """A TensorBoardLogger that shows only sub-runs.

    The stock logger opens the experiment before the first network, which shows as an empty run. It logs the epoch
    beside every metric, which becomes the first chart. It writes an empty hparams.yaml per sub-run. It logs values
    after n steps at n - 1, the last batch's number; this logger logs them at n, as in curves/.
    """

    _trainer: L.Trainer | None = None  # of the sub-run

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer of the sub-run; before the first one, a dummy that ignores all calls."""
        return _DummyExperiment() if self._sub_dir is None else super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log everything but the epoch."""
        try:
            named = {name: value for name, value in metrics.items() if name != "epoch"}
            super().log_metrics(named, None if step is None else self._steps_done(step))
        except Exception as error:  # TensorBoard's thread fails first, and any error raised here hides the reason
            if (failure := failure_to_write(error, Path(self.log_dir))) is not None:
                raise failure from error
            raise

    def _steps_done(self, batch: int) -> int:
        """Return the exact step in an evaluation, which may fall between accumulated gradients; else `batch` + 1."""
        evaluating = self._trainer is not None and self._trainer.evaluating
        return fit.steps_done(self._trainer) if self._trainer and evaluating else batch + 1

    @rank_zero_only
    def save(self) -> None:
        """Flush the writer, without saving hyperparameters."""
        self.experiment.flush()


def loggers_of(trainer: L.Trainer) -> list[TensorBoardLogger]:
    """Return the trainer's TensorBoardLoggers."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def default_folders(trainer: L.Trainer) -> Iterator[str]:
    """Yield the default folders for a run, in the order of preference.

    The first choice is a logger's folder for this fit alone, otherwise runs/0, runs/1, … below `default_root_dir`. The
    folder of other loggers is a store of all runs (MLflow) or the working directory (Weights & Biases).
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger | CSVLogger) and "://" not in str(logger.log_dir):
            own = Path(logger.log_dir).resolve()
            if own not in (Path(logger.save_dir or "").resolve(), Path.cwd()):
                return itertools.chain([logger.log_dir], (f"{logger.log_dir}-{n}" for n in itertools.count(1)))
    return (os.path.join(trainer.default_root_dir, "runs", str(n)) for n in itertools.count())


def network_writer(trainer: L.Trainer) -> SummaryWriter | None:
    """Return the writer of the sub-run of the network in training; None if nothing is to be written."""
    loggers = loggers_of(trainer)
    return loggers[0].experiment if loggers and trainer.is_global_zero else None


def is_resumed(trainer: L.Trainer) -> bool:
    """Whether the run that is resumed here began the sub-run of the network in training."""
    return any(logger._kwargs.get("purge_step") for logger in loggers_of(trainer))


def enter_sub_run(trainer: L.Trainer, name: str, step: int) -> None:
    """Make every TensorBoardLogger of the trainer write to the sub-run `name` from now on.

    This works for any TensorBoardLogger, including subclasses.

    Args:
        trainer: its loggers are changed in place.
        name: the sub-run's folder, and its name in TensorBoard's legend.
        step: the step that the network resumes from, 0 at its start; later points that a killed run has logged are
            void.
    """
    for logger in loggers_of(trainer):
        _close(logger)
        logger._sub_dir = name
        logger._kwargs["purge_step"] = step
        if isinstance(logger, SubRunLogger):
            logger._trainer = trainer
            logger._kwargs["purge_step"] = step + 1 if step else 0  # a point at `step` is from before the resume


def leave_sub_run(trainer: L.Trainer) -> None:
    """Make the loggers write to their own folders again."""
    for logger in loggers_of(trainer):
        _close(logger)
        logger._sub_dir = None
        logger._kwargs.pop("purge_step", None)
        if isinstance(logger, SubRunLogger):
            logger._trainer = None


def _close(logger: TensorBoardLogger) -> None:
    if logger._experiment is not None:
        logger._experiment.close()
        logger._experiment = None
