"""The numbers of a learning curve: the names that a module logs them by, and whether they can be right."""

import math
from collections.abc import Collection, Iterable, Mapping

from torch import Tensor

from lth_lightning.errors import SettingError, likeness

METRICS = ("train_loss", "val_loss", "val_acc", "test_loss", "test_acc")
ROUNDING = 1e-4  # by which a mean of float32 fractions may leave [0, 1]


def number(metric: str, logged_as: str, value: Tensor) -> float:
    """A metric's value as a number.

    Raises:
        SettingError: it is not one number.
    """
    if value.numel() != 1 or value.is_complex():
        raise SettingError(
            f"lottery.metrics: {metric} is logged as {logged_as}, which is a tensor of shape {list(value.shape)} and "
            f"type {value.dtype}; log one real number."
        )
    return float(value)


def check_accuracy(metric: str, logged_as: str, value: float | None) -> None:
    """Look whether an accuracy can be a fraction.

    Raises:
        SettingError: it is outside of [0, 1].
    """
    if metric.endswith("_acc") and value is not None and (value < -ROUNDING or value > 1 + ROUNDING):
        percent = " It looks like a percentage: log it divided by 100." if 0 < value <= 100 + ROUNDING else ""
        raise SettingError(
            f"lottery.metrics: {metric} is logged as {logged_as}, with the value {value:.6g}; accuracies are fractions "
            f"in [0, 1].{percent} A metric that is not an accuracy (a perplexity, say) must not be named as one: "
            f"choose another for {metric}, or log one that lies in [0, 1]."
        )


def check_logged(missing: Mapping[str, str], logged: Collection[str], asked: Collection[str], where: str) -> str | None:
    """Look at the metrics that nothing has logged where each of them is needed.

    Args:
        missing: the names that they should have been logged by, by our names.
        logged: the names of all that was logged there.
        asked: those of our names that somebody has given a name for.
        where: what should have logged them: `the first validation`.

    Returns:
        What to say if nobody asked for any of them, None if none is missing.

    Raises:
        SettingError: one was asked for.
    """
    named = {metric: name for metric, name in missing.items() if metric in asked}
    there = f"logged there: {', '.join(sorted(logged))}" if logged else "nothing was logged there"
    if named:
        names = ", ".join(f"{metric} ({name!r})" for metric, name in named.items())
        raise SettingError(
            f"lottery.metrics: {where} has not logged {names}; {there}. Every evaluation must log what it is asked "
            f"for.{_loaders(named.values(), logged)}"
        )
    if not missing:
        return None
    example = next(iter(missing))
    nearest = max(sorted(logged), key=lambda name: likeness(name, missing[example]), default="its name")
    return (
        f"{where} has not logged {', '.join(missing.values())}; {there}. results.csv leaves {', '.join(missing)} "
        f'empty. If it is logged by another name, say so: metrics={{"{example}": "{nearest}"}} (on the command line '
        f"--lottery.metrics).{_loaders(missing.values(), logged)}"
    )


def _loaders(names: Iterable[str], logged: Iterable[str]) -> str:
    """Lightning adds the loader's number where there are several."""
    several = [name for name in sorted(logged) if any(name.startswith(f"{wanted}/dataloader_idx_") for wanted in names)]
    return f" There are several loaders: choose one by its whole name, e.g. {several[0]!r}." if several else ""


def not_numbers(step: int, values: Mapping[str, float | None]) -> str | None:
    """What to say of values that are NaN or infinite."""
    odd = [f"{name} is {value}" for name, value in values.items() if value is not None and not math.isfinite(value)]
    if not odd:
        return None
    return f"step {step}: {', '.join(odd)}. Look for values that are not finite in the data or in the metric."
