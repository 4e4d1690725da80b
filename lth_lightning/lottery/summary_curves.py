"""What TensorBoard shows over rounds, with the round as step."""

from collections.abc import Sequence
from pathlib import Path

import lightning as L
from torch.utils.tensorboard import SummaryWriter

from lth_lightning.runs.rows import Row
from lth_lightning.runs.score import Score, known_score
from lth_lightning.trainer.sub_runs import loggers_of, network_writer, remove_void_points

WEIGHTS = "surviving weights"
"""The first part of the histograms' tags; the last part is the variant."""


class SummaryCurves:
    """A point per network for score and early-stop step, and a sub-run `all rounds` for what belongs to no round.

    The points stand in the sub-runs of their rounds, one in each. So TensorBoard draws points: a curve through them
    would be smoothed, and show scores that nobody has measured.

    Args:
        trainer: its first TensorBoardLogger sets the folder; without one nothing is written.
        past: rows that a resumed run has already written.
        score: the run's score, if one is set.
    """

    def __init__(self, trainer: L.Trainer, past: Sequence[Row], score: Score | None = None) -> None:
        self._score = score
        loggers = loggers_of(trainer)
        self._folder = Path(loggers[0].log_dir) / "all rounds" if loggers and trainer.is_global_zero else None
        self._past = {(row.round, row.variant) for row in past}
        self._writer: SummaryWriter | None = None
        self._begun = False

    def add(self, trainer: L.Trainer, name: str, row: Row) -> None:
        """Add the points of the network that has just been trained; `name` is its name within the round."""
        if (writer := network_writer(trainer)) is None:
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
                writer.add_scalar(f"rounds/{column}/{name}", value, row.round)
        writer.flush()

    def of_all(self, void_from: int) -> SummaryWriter | None:
        """Return the writer of the sub-run for what belongs to no round: figures, text, histograms over rounds.

        Args:
            void_from: what a killed run has left of this round and later ones is void, but for the histograms of
                finished networks. This applies only the first time, as later points are this fit's own.
        """
        if self._folder is None:
            return None
        if self._writer is None:
            if not self._begun:
                remove_void_points(self._folder, lambda tag, at: at < void_from or self._is_past(tag, at))
            self._writer, self._begun = SummaryWriter(str(self._folder)), True
        return self._writer

    def _is_past(self, tag: str, at: int) -> bool:
        return tag.startswith(WEIGHTS) and (at, tag.rpartition("/")[2]) in self._past

    def close(self) -> None:
        """Flush and close the file; a later call to `of_all` opens a new one."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None
