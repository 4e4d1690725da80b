"""TensorBoard's curves over rounds: accuracy, early stop and density, with the round as step."""

from collections.abc import Sequence
from pathlib import Path

import lightning as L
from torch.utils.tensorboard import SummaryWriter

from lth_lightning.runs.rows import Row
from lth_lightning.runs.score import Score, known_score
from lth_lightning.trainer.sub_runs import loggers_of


class SummaryCurves:
    """TensorBoard sub-runs with the round as step, one per variant: score and early-stop step over rounds.

    Args:
        trainer: its first TensorBoardLogger sets the folder; without one nothing is written.
        past: rows that a resumed run has already written.
        score: the run's score, if one is set.
    """

    def __init__(self, trainer: L.Trainer, past: Sequence[Row], score: Score | None = None) -> None:
        self._score = score
        loggers = loggers_of(trainer)
        self._folder = Path(loggers[0].log_dir) if loggers and trainer.is_global_zero else None
        self._past = list(past)  # a copy, as new rows are appended to the original
        self._writers: dict[str, SummaryWriter] = {}
        self._begun: set[str] = set()

    def add(self, row: Row) -> None:
        """Add the points of a trained network. Only the first of several replicates is shown."""
        if (writer := self.of_variant(row.variant)) is None or row.replicate > 0:
            return
        score = known_score([row], self._score)
        val, test, at_stop = score.columns
        for column, value in {
            test: score.value(row, "test"),
            val: score.value(row, "val"),
            "early_stop_step": row.early_stop_step,
            at_stop: score.value(row, "early_stop_test"),
            "density": row.density,
        }.items():
            if value is not None:
                writer.add_scalar(f"rounds/{column}", value, row.round)
        writer.flush()

    def of_variant(self, variant: str) -> SummaryWriter | None:
        """Return the writer of a variant's sub-run; None if nothing is to be written."""
        done = [row.round for row in self._past if row.variant == variant]
        # A kill between a row and its checkpoint leaves a point that the resumed run writes again.
        return self.writer(f"all rounds, {variant}", max(done, default=-1) + 1)

    def of_all(self, void_from: int) -> SummaryWriter | None:
        """Return the writer of the sub-run for what belongs to no variant: figures, text."""
        return self.writer("all rounds", void_from)

    def writer(self, name: str, void_from: int) -> SummaryWriter | None:
        """Return the writer of a sub-run, one per folder, as a second writer would purge what the first wrote.

        Args:
            name: the sub-run's folder.
            void_from: points from this step on, left by a killed run, are void. This applies only the first time, as
                later points are this fit's own.
        """
        if self._folder is not None and name not in self._writers:
            purge = None if name in self._begun else void_from
            self._writers[name] = SummaryWriter(str(self._folder / name), purge_step=purge)
            self._begun.add(name)
        return self._writers.get(name)

    def close(self) -> None:
        """Flush and close the files; a later call to `writer` opens a new one."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
