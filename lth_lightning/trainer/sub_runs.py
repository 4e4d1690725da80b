"""TensorBoard: a sub-run for each trained network, so that the rounds' learning curves lie over one another."""

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
        return fit.steps_done(self._trainer) if self._trainer and evaluating else batch + 1

    @rank_zero_only
    def save(self) -> None:
        """Flush; there are no hyperparameters to save."""
        self.experiment.flush()


def loggers_of(trainer: L.Trainer) -> list[TensorBoardLogger]:
    """The trainer's TensorBoardLoggers."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def default_folders(trainer: L.Trainer) -> Iterator[str]:
    """Where a run may go that was given no folder, in the order of preference.

    That is the folder which a logger has for this fit alone; otherwise runs/0, runs/1, … below `default_root_dir`. What
    other loggers call their folder is a store of all runs (MLflow), or the working directory (Weights & Biases).
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger | CSVLogger) and "://" not in str(logger.log_dir):
            own = Path(logger.log_dir).resolve()
            if own not in (Path(logger.save_dir or "").resolve(), Path.cwd()):
                return itertools.chain([logger.log_dir], (f"{logger.log_dir}-{n}" for n in itertools.count(1)))
    return (os.path.join(trainer.default_root_dir, "runs", str(n)) for n in itertools.count())


def network_writer(trainer: L.Trainer) -> SummaryWriter | None:
    """The writer of the sub-run of the network in training; None where nothing is to be written."""
    loggers = loggers_of(trainer)
    return loggers[0].experiment if loggers and trainer.is_global_zero else None


def goes_on(trainer: L.Trainer) -> bool:
    """Whether the sub-run of the network in training was begun by a run that this one resumes."""
    return any(logger._kwargs.get("purge_step") for logger in loggers_of(trainer))


def enter_sub_run(trainer: L.Trainer, name: str, step: int) -> None:
    """Let every TensorBoardLogger of the trainer write to the sub-run `name` from here on.

    Any TensorBoardLogger will do, a project's own too.

    Args:
        trainer: its loggers are changed in place.
        name: the sub-run's folder, and its name in TensorBoard's legend.
        step: the step that the network goes on from, 0 where it starts; what a run that was killed has logged of later
            steps is void.
    """
    for logger in loggers_of(trainer):
        _close(logger)
        logger._sub_dir = name
        logger._kwargs["purge_step"] = step
        if isinstance(logger, SubRunLogger):
            logger._trainer = trainer
            logger._kwargs["purge_step"] = step + 1 if step else 0  # a point at `step` is of what was done before


def leave_sub_run(trainer: L.Trainer) -> None:
    """Let the loggers write to their own folder again."""
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
