"""The metrics of a learning curve: the names that a module logs them under, and checks of their values."""

import math
from collections.abc import Collection, Iterable, Mapping

from torch import Tensor

from lth_lightning.errors import SettingError, likeness, unknown_name
from lth_lightning.runs.score import Score

METRICS = ("train_loss", "val_loss", "val_acc", "test_loss", "test_acc")
ACCURACIES = ("val_acc", "test_acc")
ROUNDING = 1e-4  # how far a mean of float32 fractions may be outside [0, 1]


class Metrics:
    """The metrics that a run records: those of every run, and those of its score.

    Args:
        score: the score, if one is set.
        given: the module's names for some of them.

    Attributes:
        names: the module's name for each.
        fields: the field of a learning curve's points that holds it; all but `train_loss` have one.
        asked: those that the user has named; a run that does not log them is stopped. The value is the setting's name.
        fractions: those that must lie in [0, 1].
        optional: those that a module may leave out without a word, as the run has another score.

    Raises:
        SettingError: a name in `given` is unknown.
    """

    def __init__(self, score: Score | None, given: Mapping[str, str]) -> None:
        own = score.logged if score is not None else {}
        known = dict.fromkeys([*METRICS, *own])
        if odd := sorted(given.keys() - known):
            raise unknown_name("lottery.metrics", odd[0], list(known))
        self.names = {name: given.get(name, own.get(name, name)) for name in known}
        self.fields = {name: name for name in METRICS[1:]}
        self.asked = dict.fromkeys(given, "lottery.metrics")
        self.fractions, self.optional = set(ACCURACIES), set()
        if score is None:
            return
        val, test, _ = score.columns
        self.fields |= {val: score.attribute("val"), test: score.attribute("test")}
        self.asked = {val: "lottery.score"} | self.asked
        if score.columns[:2] == ACCURACIES and not score.is_fraction:
            self.fractions = set()
        elif score.is_fraction:
            self.fractions |= {val, test}
        if val not in ACCURACIES:
            self.optional = set(ACCURACIES) - given.keys()


def number(metric: str, logged_as: str, value: Tensor) -> float:
    """Convert a metric's value to a number.

    Raises:
        SettingError: the value is not a single real number.
    """
    if value.numel() != 1 or value.is_complex():
        raise SettingError(
            f"lottery.metrics: {metric} is logged as {logged_as}, which must be one real number, got a tensor of shape "
            f"{list(value.shape)} and type {value.dtype}."
        )
    return float(value)


def check_fraction(metric: str, logged_as: str, value: float | None) -> None:
    """Check a metric that must be a fraction.

    Raises:
        SettingError: the value is outside [0, 1].
    """
    if value is None or not (value < -ROUNDING or value > 1 + ROUNDING):  # NaN is told of elsewhere
        return
    percent = " It looks like a percentage: log it divided by 100." if 0 < value <= 100 + ROUNDING else ""
    if metric in ACCURACIES:
        raise SettingError(
            f"lottery.metrics: {metric} is logged as {logged_as}, with the value {value:.6g}; accuracies must be "
            f"fractions in [0, 1].{percent} Do not use a metric that is not an accuracy (a perplexity, say) as "
            f"{metric}: name it in lottery.score, or log an accuracy in [0, 1]."
        )
    raise SettingError(
        f"lottery.score: {metric} is logged as {logged_as}, with the value {value:.6g}; a score in percent must be a "
        f"fraction in [0, 1].{percent} If it is not a fraction, set lottery.score.percent to false."
    )


def check_logged(
    missing: Mapping[str, str], logged: Collection[str], asked: Mapping[str, str], where: str
) -> str | None:
    """Handle metrics that were not logged where they are needed.

    Args:
        missing: by our names, the names under which they should have been logged.
        logged: all names that were logged there.
        asked: those of our names that the user has asked for, with the setting that does so.
        where: what should have logged them: `the first validation`.

    Returns:
        A warning if the user asked for none of the missing metrics, None if none is missing.

    Raises:
        SettingError: the user asked for one of them.
    """
    named = {metric: name for metric, name in missing.items() if metric in asked}
    there = f"logged there: {', '.join(sorted(logged))}" if logged else "nothing was logged there"
    if named:
        names = ", ".join(f"{metric} ({name!r})" for metric, name in named.items())
        raise SettingError(
            f"{asked[next(iter(named))]}: {where} has not logged {names}; {there}. Every evaluation must log the "
            f"metrics asked for.{_loaders(named.values(), logged)}"
        )
    if not missing:
        return None
    example = next(iter(missing))
    nearest = max(sorted(logged), key=lambda name: likeness(name, missing[example]), default="its name")
    return (
        f"{where} has not logged {', '.join(missing.values())}; {there}. results.csv leaves {', '.join(missing)} "
        f'empty. If the module logs it under another name, set metrics={{"{example}": "{nearest}"}} (on the command '
        f"line --lottery.metrics).{_loaders(missing.values(), logged)}"
    )


def _loaders(names: Iterable[str], logged: Iterable[str]) -> str:
    """Suggest a full name if there are several loaders, as Lightning then appends each loader's number."""
    several = [name for name in sorted(logged) if any(name.startswith(f"{wanted}/dataloader_idx_") for wanted in names)]
    return f" There are several loaders: choose one by its whole name, e.g. {several[0]!r}." if several else ""


def not_numbers(step: int, values: Mapping[str, float | None]) -> str | None:
    """Return a warning about NaN or infinite values, or None."""
    odd = [f"{name} is {value}" for name, value in values.items() if value is not None and not math.isfinite(value)]
    if not odd:
        return None
    return f"step {step}: {', '.join(odd)}. Check the data and the metric for values that are not finite."
