"""The command `sweep`: its own flags; all others are those of `fit`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from lth_lightning.cli.arguments import program
from lth_lightning.errors import SettingError
from lth_lightning.sweeps.combinations import Request, seeds_of, varied_of
from lth_lightning.sweeps.sweep import run_sweep

HELP = """\
usage: {program} sweep --config FILE [--seeds N,N,…] [--vary KEY=A,B …] [--setting VALUE ...]

Run an experiment for several seeds and settings side by side, on all cores and GPUs of a machine or of a Ray cluster.
The same command again goes on where it was.

options:
  --seeds N,N,…        the seeds: `--seeds 1,2,3`
  --vary KEY=A,B       the values of a setting; may be given several times, all combinations are run. A value may be a
                       list: `--vary lottery.controls=[random_mask],[]`. `--vary config=A.yaml,B.yaml` varies configs
  --sweep_dir DIR      the folder for all runs, by default runs/<config name>/sweep_<n>
  --cpus N             CPU cores (and threads) of a training, by default 1
  --gpus N             GPUs of a training; 0.25 lets four share one. By default 1 where there are GPUs and the settings
                       may use them, else 0
  --max_parallel N     the most trainings side by side; by default as many as there is room for
  --split_controls true|false
                       whether controls are trained beside the tickets wherever a place is free, as soon as the ticket
                       of their round lies on disk (default true); the results are the same either way
  --address ADDRESS    a Ray cluster: auto, HOST:PORT or ray://HOST:PORT. By default Ray is started on this machine
  any flag of fit      `{program} fit --help` lists them

examples:
  {program} sweep --config quickstart --seeds 1,2,3,4,5
  {program} sweep --config quickstart --seeds 1,2,3 --vary model.optimizer.lr=1e-3,1e-4 --lottery.rounds 5
"""
FLAGS = ("--seeds", "--vary", "--sweep_dir", "--cpus", "--gpus", "--max_parallel", "--split_controls", "--address")


def main(args: Sequence[str]) -> int:
    """Run `train.py sweep` and return the exit code: 1 if a run has failed.

    Raises:
        SettingError: a setting is refused, and nothing is trained.
    """
    if {"-h", "--help"} & set(args):
        print(HELP.format(program=program()).rstrip())
        return 0
    done = run_sweep(read(args), Console(highlight=False))
    return int(any(run.standing.state != "done" for run in done.runs))


def read(args: Sequence[str]) -> Request:
    """Read the flags.

    Raises:
        SettingError: a flag has no value, or one that is not allowed.
    """
    rest, fit, given, vary = list(args), [], dict[str, str](), dict[str, list[str]]()
    while rest:
        arg = rest.pop(0)
        flag, is_joined, value = arg.partition("=")
        if flag not in FLAGS:
            fit.append(arg)
            continue
        if not is_joined:
            if not rest:
                raise SettingError(f"{flag} needs a value; see `{program()} sweep --help`.")
            value = rest.pop(0)
        if flag == "--vary":
            key, values = varied_of(value)
            vary[key] = [*vary.get(key, []), *values]
        else:
            given[flag] = value
    return Request(
        fit,
        seeds_of(given["--seeds"]) if "--seeds" in given else [],
        vary,
        Path(given["--sweep_dir"]) if "--sweep_dir" in given else None,
        _number({"--cpus": "1", **given}, "--cpus", float),
        _number(given, "--gpus", float),
        _number(given, "--max_parallel", int),
        given.get("--address"),
        _truth(given, "--split_controls"),
    )


def _truth(given: dict[str, str], flag: str) -> bool:
    """The value of a flag that is true or false; true if it is not given."""
    value = given.get(flag, "true").lower()
    if value not in ("true", "false"):
        raise SettingError(f"{flag} must be true or false, got {given[flag]!r}.")
    return value == "true"


def _number(given: dict[str, str], flag: str, kind: type) -> Any:
    """The value of a flag as a number; None if it is not given."""
    if flag not in given:
        return None
    try:
        return kind(given[flag])
    except ValueError as error:
        what = "a whole number" if kind is int else "a number"
        raise SettingError(f"{flag} must be {what}, got {given[flag]!r}.") from error
