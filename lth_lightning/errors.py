"""Errors in the user's vocabulary: the setting, what was given, what is allowed and the fix."""

from collections.abc import Iterable
from difflib import SequenceMatcher


class SettingError(ValueError):
    """A setting cannot be honoured. The command line prints this error without a traceback."""


class TicketError(SettingError):
    """A ticket file cannot be read, or does not fit the network it is applied to."""


class DivergedError(RuntimeError):
    """A loss or a weight is NaN or infinite. The command line prints this error without a traceback."""


class RevivedError(RuntimeError):
    """A pruned weight is not 0 any more. The command line prints this error without a traceback."""


class DataError(RuntimeError):
    """The data contain NaN or infinite values. The command line prints this error without a traceback."""


class WriteError(SettingError):
    """A file cannot be written: the disk is full, the folder is missing, or permission is denied."""


def unknown_name(setting: str, given: str, allowed: Iterable[str]) -> SettingError:
    """Return the error for a name that is not in `allowed`; it lists the allowed names and suggests the nearest."""
    names = sorted(allowed)
    nearest = max(names, key=lambda name: likeness(given, name), default="")
    hint = f" Did you mean {nearest!r}?" if likeness(given, nearest) >= 0.5 else ""
    return SettingError(f"{setting}: {given!r} is unknown; choose from {', '.join(names)}.{hint}")


def likeness(given: str, name: str) -> float:
    """Return how likely `given` is a typo of `name`, from 0 to 1; swapped letters (`Adma`) count half."""
    a, b = given.lower(), name.lower()
    in_order = SequenceMatcher(None, a, b).ratio()
    in_any_order = SequenceMatcher(None, sorted(a), sorted(b)).ratio()
    return (in_order + in_any_order) / 2
