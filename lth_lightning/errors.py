"""Errors in the user's words: which setting, what was given, what is allowed, the way out."""

from collections.abc import Iterable
from difflib import get_close_matches


class SettingError(ValueError):
    """A setting that cannot be honoured. The command line prints it without a traceback."""


class TicketError(SettingError):
    """A ticket file that cannot be read, or that does not fit the network it is meant for."""


def unknown_name(setting: str, given: str, allowed: Iterable[str]) -> SettingError:
    """The error for a name that is none of `allowed`: it lists them, the nearest one first in mind."""
    names = sorted(allowed)
    nearest = get_close_matches(given.lower(), [name.lower() for name in names], n=1, cutoff=0.4)
    hint = next((f" Did you mean {name!r}?" for name in names if nearest and name.lower() == nearest[0]), "")
    return SettingError(f"{setting}: {given!r} is unknown; there is {', '.join(names)}.{hint}")
