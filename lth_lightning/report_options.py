"""The options of `python train.py report`."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_EXAMPLES = """\
examples:
  python train.py report runs/lenet/0
  python train.py report runs/lenet/0 runs/lenet/1 runs/lenet/2 --densities 0.51,0.21,0.036
  python train.py report runs/small/* runs/large/* --compare model.net.hidden
  python train.py report runs/*/* --compare data.dataset,tickets.data.dataset
"""


def parser() -> argparse.ArgumentParser:
    """What reads the command line of `train.py report`; runs may stand before and after the options."""
    parser = argparse.ArgumentParser(
        "train.py report",
        usage="python train.py report RUN [RUN …] [--compare KEY[,KEY…]] [--densities D[,D…]] [--out DIR]",
        description="Tables, statistics and figures from one run or many.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        type=Path,
        help="run folder. Several are pooled, as repetitions of one experiment that differ by seed; if anything else "
        "differs they are refused, and the settings named",
    )
    parser.add_argument(
        "--compare",
        metavar="KEY[,KEY…]",
        action="extend",
        type=_listed(str),
        help="lay experiments side by side that differ in these settings (and by seed), and in no others: names as in "
        "config.yaml, or their last parts where these say which. tickets.KEY is a setting of the run that "
        "lottery.tickets come from",
    )
    parser.add_argument(
        "--densities",
        metavar="D[,D…]",
        action="extend",
        type=_listed(_density),
        help="whose learning curves to show, as fractions (0.51,0.21,0.036); default: four spread over all",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="where report.md, report.html, figures/ and statistics.csv (or comparison.csv) go; default: the RUN, with "
        "several the folder 'report' beside the first, for a comparison 'comparison_KEY' in the folder that holds them "
        "all",
    )
    return parser


def _listed(parse: Callable[[str], T]) -> Callable[[str], list[T]]:
    """How argparse reads a list that is joined by commas."""

    def parsed(text: str) -> list[T]:
        return [parse(part.strip()) for part in text.split(",") if part.strip()]

    return parsed


def _density(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no density: give fractions above 0, up to 1; 0.51 is 51 %")
    return value
