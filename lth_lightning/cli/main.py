"""The command line: what `lth`, `python -m lth_lightning` and `python train.py` run."""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from lth_lightning import __version__
from lth_lightning.cli.arguments import completed, named_parts, program, shipped_configs
from lth_lightning.cli.known_settings import check_names
from lth_lightning.errors import DataError, DivergedError, RevivedError, SettingError, unknown_name

COMMANDS = ("fit", "validate", "test", "predict", "report", "export", "sweep")
INTERRUPTED = 130  # the exit code of a program that Ctrl+C ends
HELP = """\
usage: {program} COMMAND [--setting VALUE ...]

Find winning tickets: train, prune, rewind, repeat.

commands:
  fit        run an experiment: train a network, prune it, train the rest, and repeat, beside controls
  test       loss and accuracy of a ticket or checkpoint on the test images
  validate   the same on the validation images
  predict    the class of each of your images, or of each test image
  report     tables and figures from one run or many
  export     what tickets cost when they run; files that run them elsewhere (torch, onnx, c)
  sweep      many runs side by side: seeds and settings, on all cores, GPUs and machines

configs (--config NAME, or a file of your own):
{configs}

examples:
  {program} fit --config quickstart
  {program} fit --config quickstart --lottery.rounds 5 --run_dir runs/mine
  {program} fit --config my.yaml --fast_dev_run      # a rehearsal: everything once, nothing kept
  {program} test --config runs/mine/config.yaml --ckpt_path runs/mine/tickets/round_05.safetensors
  {program} report runs/mine

`{program} COMMAND --help` lists a command's settings.
"""


class Refused(SystemExit):
    """The end of a command that has printed why it failed."""


def main(args: Sequence[str] | None = None) -> int:
    """Run one of `COMMANDS` and return the exit code.

    Args:
        args: the command line without the program's name; None for sys.argv.
    """
    given = list(sys.argv[1:] if args is None else args)
    try:
        with one_line_errors():
            if (code := answered(given)) is not None:
                return code
            meant = completed(given)
            check_names(meant[1:], named_parts(meant))
            with ready_to_import():
                try:
                    from lth_lightning.cli.lightning_cli import LotteryCLI
                except ModuleNotFoundError as error:
                    raise SettingError(
                        f"the package {error.name} is not installed in {sys.executable}. Install this project with all "
                        "that it needs: `uv sync`, or `pip install .` in its folder."
                    ) from error
            LotteryCLI(args=given)
    except Refused as refused:
        return int(refused.code or 0)
    return 0


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print errors that users can fix without a traceback, and end the command.

    Raises:
        Refused: with exit code 2 for a setting that is refused, 1 for a run that failed, 130 after Ctrl+C.
    """
    try:
        yield
    except (SettingError, DivergedError, RevivedError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise Refused(2 if isinstance(error, SettingError) else 1) from error
    except KeyboardInterrupt as error:
        print("Interrupted.", file=sys.stderr)
        raise Refused(INTERRUPTED) from error


def answered(given: list[str]) -> int | None:
    """Run what needs no trainer here (help, version, report, export, sweep) and return its exit code; None for others.

    Raises:
        SettingError: the command is missing or unknown.
    """
    command = given[0] if given else None
    if command in ("-h", "--help", "--version"):
        print(f"lth_lightning {__version__}" if command == "--version" else _help())
        return 0
    if command is None or command.startswith("-"):
        raise SettingError(f"the command comes first: {program()} {'|'.join(COMMANDS)} …; see --help.")
    if command not in COMMANDS:
        raise unknown_name("command", command, COMMANDS)
    if command == "report":
        from lth_lightning.report.command import main as report

        return report(given[1:])
    if command == "export":
        with ready_to_import():
            from lth_lightning.cli.export import main as export

        return export(given[1:])
    if command == "sweep":
        from lth_lightning.sweeps.command import main as sweep

        return sweep(given[1:])
    return None


def _help() -> str:
    names, lines = list(shipped_configs()), [""]
    for name in names:
        lines += [""] if len(lines[-1]) + len(name) > 96 else []
        lines[-1] += f"  {name}"
    return HELP.format(program=program(), configs="\n".join(lines)).rstrip()


@contextmanager
def ready_to_import() -> Iterator[None]:
    """Say on a terminal what takes seconds, and let Ctrl+C end it at once.

    A KeyboardInterrupt inside the import of an extension module can become any other exception.
    """
    shown = sys.stderr.isatty() and "lightning" not in sys.modules
    if shown:
        print("Loading PyTorch and Lightning …", end="", file=sys.stderr, flush=True)
    handles = threading.current_thread() is threading.main_thread()
    usual = signal.signal(signal.SIGINT, _end) if handles else None
    try:
        yield
    finally:
        if handles:
            signal.signal(signal.SIGINT, usual)
        if shown:
            print("\r\033[K" if os.environ.get("TERM") != "dumb" else "\n", end="", file=sys.stderr, flush=True)


def _end(*_: int | FrameType | None) -> None:
    os.write(2, b"\nInterrupted while loading.\n" if os.isatty(2) else b"Interrupted while loading.\n")
    os._exit(INTERRUPTED)
