"""What a report compares networks by: the runs' score, on test data, or on validation data without test data."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lth_lightning.errors import SettingError
from lth_lightning.runs.rows import Row
from lth_lightning.runs.run import RunFiles
from lth_lightning.runs.score import Score

IN_WORDS = {"test": "test", "val": "validation"}


@dataclass(frozen=True)
class Reported:
    """A score, and the data that it is reported on (`test` or `val`)."""

    score: Score
    data: str

    def value(self, row: Row) -> float | None:
        """The reported value of a network at the end of training."""
        return self.score.value(row, self.data)

    @property
    def label(self) -> str:
        """Its name in words: `test accuracy`, `validation mae`."""
        return f"{IN_WORDS[self.data]} {self.score.label}"

    @property
    def column(self) -> str:
        """Its column in results.csv and statistics.csv: `test_acc`."""
        return f"{self.data}_{self.score.key}"

    @property
    def file(self) -> str:
        """The name of its chart over density, and of that chart's files."""
        return "accuracy" if self.score.key == "acc" else "score"

    @property
    def short(self) -> str:
        """Its name in a narrow column's header: `acc.`, `mae`."""
        return "acc." if self.score.key == "acc" else self.score.key

    @property
    def caveat(self) -> str:
        """A sentence to add where the reader would expect test data; empty if there are any."""
        if self.data == "test":
            return ""
        return "No test data were evaluated: scores are those of the validation data, which early stops were chosen on."


def reported(runs: Sequence[RunFiles]) -> Reported:
    """What to compare the networks of these runs by.

    Raises:
        SettingError: the runs are judged by different scores.
    """
    scores = {run.path: run.score for run in runs}
    first = next(iter(scores))
    other = next((path for path, score in scores.items() if score != scores[first]), None)
    if other is not None:
        raise SettingError(
            f"report: {first} is judged by {scores[first]}, {other} by {scores[other]}. Report on each alone, or set "
            "the same lottery.score."
        )
    score = scores[first]
    tested = any(score.value(row, "test") is not None for row in _rows(runs))
    return Reported(score, "test" if tested or not _has_validation(score, runs) else "val")


def _has_validation(score: Score, runs: Iterable[RunFiles]) -> bool:
    return any(score.value(row, "val") is not None for row in _rows(runs))


def _rows(runs: Iterable[RunFiles]) -> Iterable[Row]:
    return (row for run in runs for row in run.rows)
