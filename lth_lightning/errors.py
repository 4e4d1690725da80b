"""Errors in the user's words: which setting, what was given, what is allowed, the way out."""

from collections.abc import Iterable
from difflib import SequenceMatcher


class SettingError(ValueError):
    """A setting that cannot be honoured. The command line prints it without a traceback."""


class TicketError(SettingError):
    """A ticket file that cannot be read, or that does not fit the network it is meant for."""


class DivergedError(RuntimeError):
    """A loss or a weight that is NaN or infinite. The command line prints it without a traceback."""


class RevivedError(RuntimeError):
    """A pruned weight that is no longer 0. The command line prints it without a traceback."""


class DataError(RuntimeError):
    """Data that hold NaN or infinite values. The command line prints it without a traceback."""


class WriteError(SettingError):
    """A file that cannot be written: the disk is full, the folder is gone, or nobody may write there."""


def unknown_name(setting: str, given: str, allowed: Iterable[str]) -> SettingError:
    """The error for a name that is none of `allowed`: it lists them, and says which is nearest."""
    names = sorted(allowed)
    nearest = max(names, key=lambda name: likeness(given, name), default="")
    hint = f" Did you mean {nearest!r}?" if likeness(given, nearest) >= 0.5 else ""
    return SettingError(f"{setting}: {given!r} is unknown; choose from {', '.join(names)}.{hint}")


def likeness(given: str, name: str) -> float:
    """How likely `given` is a mistyped `name`, from 0 to 1; swapped letters (`Adma`) count half."""
    a, b = given.lower(), name.lower()
    in_order = SequenceMatcher(None, a, b).ratio()
    in_any_order = SequenceMatcher(None, sorted(a), sorted(b)).ratio()
    return (in_order + in_any_order) / 2
