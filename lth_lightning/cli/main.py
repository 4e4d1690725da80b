"""The command line: what `python train.py` runs."""

import logging
import sys
import warnings
from collections.abc import Sequence

from lth_lightning import __version__
from lth_lightning.errors import DataError, DivergedError, RevivedError, SettingError, unknown_name

COMMANDS = ("fit", "validate", "test", "predict", "report")
HELP = """\
usage: python train.py COMMAND [--setting VALUE ...]

Find winning tickets: train, prune, rewind, repeat.

commands:
  fit        run an experiment: train a network, prune it, train the rest, and repeat, beside controls
  test       loss and accuracy of a ticket or checkpoint on the test images
  validate   the same on the validation images
  predict    the class of each of your images, or of each test image
  report     tables and figures from one run or many

examples:
  python train.py fit --config configs/quickstart.yaml
  python train.py fit --config configs/quickstart.yaml --lottery.rounds 5 --run_dir runs/mine
  python train.py test --config runs/mine/config.yaml --ckpt_path runs/mine/tickets/round_05.safetensors
  python train.py report runs/mine

`python train.py COMMAND --help` lists a command's settings.
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run one of `COMMANDS` and return the exit code.

    Args:
        args: the command line without the program's name; None for sys.argv.
    """
    given = list(sys.argv[1:] if args is None else args)
    try:
        return _run(given)
    except (SettingError, DivergedError, RevivedError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, SettingError) else 1


def _run(given: list[str]) -> int:
    command = given[0] if given else None
    if command in ("-h", "--help", "--version"):
        print(f"lth_lightning {__version__}" if command == "--version" else HELP.rstrip())
        return 0
    if command is None or command.startswith("-"):
        raise SettingError(f"the command comes first: python train.py {'|'.join(COMMANDS)} …; see --help.")
    if command not in COMMANDS:
        raise unknown_name("command", command, COMMANDS)
    if command == "report":
        from lth_lightning.report.command import main as report

        return report(given[1:])
    with warnings.catch_warnings():
        # Lightning 2.6 on torch 2.15; only Lightning can fix it.
        warnings.filterwarnings(
            "ignore", ".*LeafSpec", FutureWarning, module=r"lightning\.pytorch\.utilities\._pytree$"
        )
        # Lightning warns about arguments that are not sys.argv. `main(args)` passes them on purpose.
        warnings.filterwarnings("ignore", "LightningCLI's args parameter", UserWarning)
        from lth_lightning.cli.lightning_cli import LotteryCLI
        from lth_lightning.trainer.memory import keep_freed_memory

        keep_freed_memory()
        for name in ("lightning.pytorch", "lightning.fabric"):  # their notes on hardware and seeds would hide ours
            logging.getLogger(name).setLevel(logging.WARNING)
        LotteryCLI(given)
    return 0
