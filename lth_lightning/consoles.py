"""What consoles can show, and lengths of time in print; without Lightning, for commands that do not load it."""

import os

from rich.console import Console


def in_ci() -> bool:
    """Whether this is continuous integration, whose logs are read later, even if it emulates a terminal."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def can_redraw(console: Console) -> bool:
    """Whether the console can redraw lines. FORCE_COLOR does not make a pipe a terminal."""
    return console.is_terminal and not console.is_dumb_terminal and console.file.isatty() and not in_ci()


def duration(seconds: float) -> str:
    """Format seconds as `0:07`, `2:05:09` or `3 d 4 h`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
