"""What loggers are told of networks, so that each network's learning curve can be told apart.

In TensorBoard each round is a sub-run, and the variant is a part of the tag: `val_acc/ticket`. So 20 rounds are 21
sub-runs, which its pages show at first (of more than 40 they show none), and a variant's chart overlays the rounds.

Other loggers have no sub-runs. They get `round_07/ticket/val_acc`, the round as a metric, and steps that go on from
network to network, as Weights & Biases drops what goes back.
"""

import io
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from lightning.fabric.loggers.logger import _DummyExperiment, rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter

from lth_lightning.files import failure_to_write, make_folder, replace_file
from lth_lightning.trainer import fit

HPARAMS = "_hparams_/"  # a row of the hparams page: its start, and at the end of the round its end
AT_THE_END = ("rounds/", "layers/")  # tags that are written when a network is finished, with the round as step


class Place(NamedTuple):
    """A network, as loggers name it."""

    round: int
    folder: str  # of TensorBoard's sub-run: `round 07 21.1%`
    name: str  # within the round: `ticket`, `random_mask #2`
    steps_before: int  # of all earlier networks
    begins_round: bool  # whether it is the first of its round, at its start


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


def enter_sub_run(trainer: L.Trainer, place: Place, step: int, done: Callable[[str], bool]) -> None:
    """Make the trainer's loggers name the metrics of a network from now on. This works for any logger.

    Args:
        trainer: its loggers are changed in place.
        place: the network.
        step: the step that it resumes from, 0 at its start; later points that a killed run has logged are void.
        done: whether a network of this round is finished, by its name.
    """
    for logger in trainer.loggers:
        if not isinstance(logger, TensorBoardLogger):
            _rename(logger, lambda name: f"round_{place.round:02d}/{_plain(place.name)}/{name}", place)
            continue
        _rename(logger, lambda name: f"{name}/{place.name}", None)
        if logger._sub_dir == place.folder:
            continue
        _close(logger)
        logger._sub_dir = place.folder
        if isinstance(logger, SubRunLogger):
            logger._trainer = trainer
        if trainer.is_global_zero:
            own = step + 1 if isinstance(logger, SubRunLogger) and step else step  # where its next point will be

            def kept(tag: str, at: int, until: int = own) -> bool:
                if tag.startswith(HPARAMS):
                    return not place.begins_round and not tag.endswith("session_end_info")
                name = tag.rpartition("/")[2]
                return done(name) or (name == place.name and at < until and not tag.startswith(AT_THE_END))

            remove_void_points(Path(logger.log_dir), kept)


def leave_sub_run(trainer: L.Trainer) -> None:
    """Make TensorBoardLoggers write to their own folders again; only before a next fit, or an empty run would show."""
    for logger in loggers_of(trainer):
        _close(logger)
        logger._sub_dir = None
        if isinstance(logger, SubRunLogger):
            logger._trainer = None


def name_metrics_as_they_come(trainer: L.Trainer) -> None:
    """Make loggers leave the names of metrics alone again."""
    for logger in trainer.loggers:
        logger.__dict__.pop("log_metrics", None)


def _rename(logger: Logger, name_of: Callable[[str], str], place: Place | None) -> None:
    """Make a logger log each metric under another name; with a `place`, at steps that go on over networks."""
    log_metrics = type(logger).log_metrics.__get__(logger)

    def renamed(metrics: Mapping[str, float], step: int | None = None) -> None:
        named = {name_of(name): value for name, value in metrics.items() if name != "epoch"}
        if place is None:
            log_metrics(named, step)
        else:
            log_metrics({**named, "round": place.round}, step=None if step is None else place.steps_before + step)

    logger.log_metrics = renamed  # type: ignore[method-assign]


def _plain(name: str) -> str:
    """A network's name in the letters that every logger allows: `random_mask_2`."""
    return name.replace(" #", "_")


def remove_void_points(folder: Path, kept: Callable[[str, int], bool]) -> None:
    """Remove points from the event files of a sub-run that a killed process has left, and that will be written again.

    TensorBoard's own way (`purge_step`) removes the points of all tags, but other networks of the round are finished.

    Args:
        folder: the sub-run's folder; it need not exist.
        kept: whether to keep a point, by its tag and step.
    """
    for path in sorted(folder.glob("events.out.tfevents.*")):
        events, void = [], False
        for event in LegacyEventFileLoader(str(path)).Load():
            values = [value for value in event.summary.value if kept(value.tag, event.step)]
            void |= len(values) < len(event.summary.value)
            if len(values) < len(event.summary.value):
                del event.summary.value[:]
                event.summary.value.extend(values)
            if values or not event.HasField("summary"):
                events.append(event)
        if void:
            _write_events(path, events)


def copy_points(sources: Sequence[tuple[Path, str]], target: Path) -> None:
    """Copy the points of networks from the sub-runs of other folders, in the order given, into one file of a sub-run.

    Args:
        sources: the folders, each with the name of the network whose points to copy.
        target: the sub-run's folder. A second call replaces the file.
    """
    files = [(path, name) for folder, name in sources for path in sorted(folder.glob("events.out.tfevents.*"))]
    events: list[Any] = []
    for path, name in files:
        for event in LegacyEventFileLoader(str(path)).Load():
            values = [value for value in event.summary.value if value.tag.rpartition("/")[2] == name]
            if not event.HasField("summary") and not events:  # the version of the format, with which each file begins
                events.append(event)
            elif values:
                del event.summary.value[:]
                event.summary.value.extend(values)
                events.append(event)
    if files:
        make_folder(target)
        _write_events(target / files[0][0].name, events)


def _write_events(path: Path, events: Sequence[Any]) -> None:
    content = io.BytesIO()
    writer = RecordWriter(content)
    for event in events:
        writer.write(event.SerializeToString())
    replace_file(path, content.getvalue())


def _close(logger: TensorBoardLogger) -> None:
    if logger._experiment is not None:
        logger._experiment.close()
        logger._experiment = None
