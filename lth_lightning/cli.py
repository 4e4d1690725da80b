"""The command line: what `python train.py` runs."""

import logging
import sys
from collections.abc import Sequence

from lth_lightning.errors import SettingError


def main(args: Sequence[str] | None = None) -> int:
    """Run one command, `fit`, `validate`, `test`, `predict` or `report`, and return the exit code.

    Args:
        args: the command line without the program's name; None for the process's own.
    """
    given = list(sys.argv[1:] if args is None else args)
    try:
        if given[:1] == ["report"]:
            from lth_lightning import report  # noqa: PLC0415 (starts at once: no torch, no Lightning)

            return report.main(given[1:])
        from lth_lightning.fit_cli import LotteryCLI  # noqa: PLC0415 (takes seconds)

        for name in ("lightning.pytorch", "lightning.fabric"):  # their notes on hardware and seeds drown ours
            logging.getLogger(name).setLevel(logging.WARNING)
        LotteryCLI(None if args is None else given)
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
