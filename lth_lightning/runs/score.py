"""Score: the metric by which a run's networks are compared, as `lottery.score` names it, and how it is printed."""

import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from lth_lightning.errors import SettingError, unknown_name
from lth_lightning.files import replace_file
from lth_lightning.runs.rows import CurveRow, Evaluation, Row

MATCH_POINTS = 0.005
"""The default tolerance of a fraction: a network matches the dense one if it is at most half a point worse."""
MATCH_SHARE = 0.01
"""The default tolerance of any other score: a hundredth of the dense network's value."""

MODES = ("max", "min")
FRACTIONS = {
    *("acc", "accuracy", "top1", "top5", "f1", "f1_score", "fbeta", "precision", "recall", "sensitivity"),
    *("specificity", "iou", "miou", "jaccard", "dice", "auc", "auroc", "ap", "map", "average_precision"),
}
"""Scores that are printed in percent unless `percent` says otherwise, by their names in lower case."""
WORDS = {"acc": "accuracy"}
_VALIDATION = re.compile(r"val(?:id(?:ation)?)?([_/.\- ])(.+)")


@dataclass(frozen=True)
class Score:
    """The metric that counts: how a run's networks are compared, and what its report shows.

    Args:
        name: the validation metric as the module logs it: `val_f1`, `valid/mae`. The same metric on test data is
            looked for under the same name with `test` in place of `val` (`test_f1`), or under the same name if it does
            not begin with `val`. `metrics` maps other names: `{"test_f1": "f1_on_test"}`.
        mode: `max` if greater is better, `min` if less is.
        percent: whether it is a fraction in [0, 1], to be printed in percent. By default this depends on its name:
            accuracy, F1, IoU, AUC and the like are.
        tolerance: how much worse than the dense network a network may be and still match it, in the units in which
            the module logs the score. By default 0.005 (half a point) for a fraction, else 1 % of the dense network's.

    Raises:
        SettingError: a value out of range, or a loss that should be as great as possible.

    Example:
        >>> Score("val_f1").columns
        ('val_f1', 'test_f1', 'early_stop_test_f1')
        >>> Score("valid/mae", mode="min").logged
        {'val_mae': 'valid/mae', 'test_mae': 'test/mae'}
    """

    name: str = "val_acc"
    mode: str = "max"
    percent: bool | None = None
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.key:
            raise SettingError(f"lottery.score.name must name a metric, e.g. val_f1; got {self.name!r}.")
        if self.mode not in MODES:
            raise unknown_name("lottery.score.mode", self.mode, MODES)
        if self.key == "loss" and self.mode == "max":
            raise SettingError("lottery.score: val_loss is a loss; set mode to min.")
        if self.percent not in (None, True, False):
            raise SettingError(f"lottery.score.percent must be true, false or null; got {self.percent!r}.")
        number = isinstance(self.tolerance, int | float) and 0 <= self.tolerance < math.inf
        if self.tolerance is not None and not number:
            raise SettingError(
                f"lottery.score.tolerance must be a number of at least 0, or null; got {self.tolerance!r}."
            )

    @property
    def key(self) -> str:
        """The metric without `val`, as a part of a column's name: `f1`, `mae`."""
        found = _VALIDATION.fullmatch(self.name)
        return re.sub(r"\W+", "_", found[2] if found else self.name).strip("_")

    @property
    def is_own(self) -> bool:
        """Whether it has columns of its own; accuracy and loss have theirs in every run."""
        return self.key not in ("acc", "loss")

    @property
    def columns(self) -> tuple[str, str, str]:
        """Its columns in results.csv: on validation data, on test data, and on test data at the early stop."""
        return f"val_{self.key}", f"test_{self.key}", f"early_stop_test_{self.key}"

    @property
    def logged(self) -> dict[str, str]:
        """The module's names for its columns on validation and test data."""
        found = _VALIDATION.fullmatch(self.name)
        val, test, _ = self.columns
        return {val: self.name, test: f"test{found[1]}{found[2]}" if found else self.name}

    @property
    def is_fraction(self) -> bool:
        """Whether it is printed in percent."""
        return self.key.lower() in FRACTIONS if self.percent is None else self.percent

    @property
    def label(self) -> str:
        """Its name in words: `accuracy`, `f1`."""
        return WORDS.get(self.key, self.key.replace("_", " "))

    def value(self, row: Row | CurveRow | Evaluation, data: str) -> float | None:
        """The score of a network.

        Args:
            row: a row of results.csv, or a point of a learning curve.
            data: `val`, `test`, or for a row of results.csv also `early_stop_test`.

        Returns:
            The value, or None if it is not known; results.csv has no test loss at the early stop.
        """
        value: float | None = getattr(row, self.attribute(data), None)
        return value

    def attribute(self, data: str) -> str:
        """The attribute of `Row` and `CurveRow` that holds it."""
        return f"{data}_score" if self.is_own else f"{data}_{self.key}"

    # ------------------------------------------------------------------------------------- better, and as good

    def best(self, values: list[float]) -> float:
        """The best of several values."""
        return max(values) if self.mode == "max" else min(values)

    def allowance(self, dense: float) -> float:
        """How much worse than `dense` still matches it."""
        if self.tolerance is not None:
            return self.tolerance
        return MATCH_POINTS if self.is_fraction else MATCH_SHARE * abs(dense)

    def matches(self, value: float, dense: float) -> bool:
        """Whether a mean is at most `allowance` worse than the dense network's."""
        worse = dense - value if self.mode == "max" else value - dense
        rounding = 1e-9 * max(1.0, abs(dense))  # in floats 0.5047 - 0.005 > 0.4997
        return worse <= self.allowance(dense) + rounding

    # ------------------------------------------------------------------------------------- in print

    @property
    def unit(self) -> str:
        """What stands behind a value: ` %`, or nothing."""
        return " %" if self.is_fraction else ""

    def text(self, value: float) -> str:
        """A value without its unit: 0.9751 is 97.5 for a fraction, 41.2 is 41.20 otherwise."""
        return f"{100 * value:.1f}" if self.is_fraction else f"{value:#.4g}".rstrip(".")

    def gap(self, value: float) -> str:
        """A difference with its sign, in points for a fraction: +1.2; one that rounds to 0 has no sign."""
        text = f"{100 * value:+.1f}" if self.is_fraction else f"{value:+.3g}"
        return text.lstrip("+-") if float(text) == 0 else text.replace("-", "−")

    def size(self, value: float) -> str:
        """A difference without its sign: `1.2 points`, `0.031`."""
        return f"{100 * abs(value):.1f} points" if self.is_fraction else f"{abs(value):.3g}"


ACCURACY, LOSS = Score(), Score("val_loss", "min")


def known_score(rows: list[Row], given: Score | None) -> Score:
    """The score of a run: the one that was set, else accuracy, or the loss if no accuracy is known."""
    if given is not None:
        return given
    accuracies = (row.test_acc if row.test_acc is not None else row.val_acc for row in rows)
    return ACCURACY if any(value is not None for value in accuracies) or not rows else LOSS


# ------------------------------------------------------------------------------------- score.json


def write_score(path: Path, score: Score) -> None:
    """Write score.json, which a run has if its score was set."""
    replace_file(path, f"{json.dumps(asdict(score))}\n".encode())


def read_score(path: Path) -> Score | None:
    """Read a score.json; None if there is none.

    Raises:
        SettingError: the file cannot be read, or holds something else.
    """
    try:
        return Score(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise SettingError(f"cannot read {path}, which says by what score the run is judged ({error}).") from error
