"""TensorBoard's curves over rounds: accuracy, early stop and density, with the round as step."""

from collections.abc import Sequence
from pathlib import Path

import lightning as L
from torch.utils.tensorboard import SummaryWriter

from lth_lightning.runs.rows import Row
from lth_lightning.trainer.sub_runs import loggers_of


class SummaryCurves:
    """Sub-runs with the round as step: accuracy and early-stop step over rounds, one sub-run a variant.

    Args:
        trainer: its first TensorBoardLogger says where; without one nothing is written.
        past: rows that a resumed run has written already.
    """

    def __init__(self, trainer: L.Trainer, past: Sequence[Row]) -> None:
        loggers = loggers_of(trainer)
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
