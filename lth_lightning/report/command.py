"""The options of `python train.py report`."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from lth_lightning.errors import SettingError
from lth_lightning.report.aggregate import PooledRuns
from lth_lightning.report.charts import BAND, BARS
from lth_lightning.report.comparison import experiments_of, full_names
from lth_lightning.report.conclusion import summary
from lth_lightning.report.tables import comparison_tables, paired_table, results_table
from lth_lightning.report.writer import write_comparison, write_report
from lth_lightning.runs.run import RunFiles, read_all, title_of

T = TypeVar("T")

_EXAMPLES = """\
examples:
  python train.py report runs/lenet/0
  python train.py report runs/lenet/0 runs/lenet/1 runs/lenet/2 --densities 0.51,0.21,0.036
  python train.py report runs/lenet/* --errors bars --title ''
  python train.py report runs/small/* runs/large/* --compare model.net.hidden
  python train.py report runs/*/* --compare data.dataset,tickets.data.dataset
"""


def parser() -> argparse.ArgumentParser:
    """The argument parser of `train.py report`; runs may come before and after the options."""
    parser = argparse.ArgumentParser(
        "train.py report",
        usage="python train.py report RUN [RUN …] [--compare KEY[,KEY…]] [--densities D[,D…]] [--out DIR]\n"
        "       [--errors band|bars] [--title TEXT]",
        description="Tables, statistics and figures from one run or many.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        type=Path,
        help="run folder. Several are pooled as repetitions of one experiment that differ only by seed; if other "
        "settings differ, they are refused and the error names the settings",
    )
    parser.add_argument(
        "--compare",
        metavar="KEY[,KEY…]",
        action="extend",
        type=_listed(str),
        help="show experiments side by side that differ only in these settings (and by seed): names as in config.yaml, "
        "or their last parts where unambiguous. tickets.KEY is a setting of the run that lottery.tickets come from",
    )
    parser.add_argument(
        "--densities",
        metavar="D[,D…]",
        action="extend",
        type=_listed(_density),
        help="densities whose learning curves to show, as fractions (0.51,0.21,0.036); default: four spread over all",
    )
    parser.add_argument(
        "--errors",
        choices=(BAND, BARS),
        default=BAND,
        help="how the range from the least to the greatest of several networks is drawn; default: band",
    )
    parser.add_argument(
        "--title",
        metavar="TEXT",
        help="title of the figures, '' for none; default: network, data set and run",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="where report.md, report.html, figures/ and statistics.csv (or comparison.csv) go; default: the RUN; for "
        "several runs, the folder 'report' beside the first; for a comparison, 'comparison_KEY' in the folder that "
        "holds them all",
    )
    return parser


def _listed(parse: Callable[[str], T]) -> Callable[[str], list[T]]:
    """A type for argparse: a list joined by commas."""

    def parsed(text: str) -> list[T]:
        return [parse(part.strip()) for part in text.split(",") if part.strip()]

    return parsed


def _density(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a density: must be in (0, 1], e.g. 0.51 for 51 %")
    return value


# ------------------------------------------------------------------------------------- command


def main(args: Sequence[str]) -> int:
    """Run `train.py report`: print tables and conclusion, write the report, and print its location."""
    given = parser().parse_intermixed_args(args)
    console = Console(highlight=False, markup=False)
    written = _compare(given, console) if given.compare else _report(given, console)
    text, page, numbers, *figures = written
    console.print(f"\nReport: {text}\nIn a browser: {page}\nNumbers: {numbers}", soft_wrap=True)
    if figures:
        console.print(f"Figures: {figures[0].parent}", soft_wrap=True)
    return 0


def _report(given: argparse.Namespace, console: Console) -> list[Path]:
    runs = read_all(given.runs)
    out = given.out or report_folder(runs)
    written = write_report(runs, out, given.densities, title=given.title, errors=given.errors)
    experiment = PooledRuns(runs)
    console.print(results_table(experiment, title_of(runs), brief=True).rich())
    if pairs := paired_table(experiment, brief=True):
        console.print("", pairs.rich(), sep="\n")
    console.print(f"\n{summary(experiment)}")
    return written


def report_folder(runs: Sequence[RunFiles]) -> Path:
    """Where a report goes by default: into the run, or for several runs into the folder `report` beside the first."""
    return runs[0].path if len(runs) == 1 else runs[0].path.parent / "report"


def _compare(given: argparse.Namespace, console: Console) -> list[Path]:
    if given.densities:
        raise SettingError("--densities: a comparison shows no learning curves. Report on each experiment alone.")
    if stray := [run for run in given.runs if not run.exists()]:
        raise SettingError(
            f"report: the run folder {stray[0]} does not exist. To compare by several settings, join them by commas: "
            f"--compare {','.join([*given.compare, str(stray[0])])}"
        )
    runs = read_all(given.runs)
    keys = full_names(given.compare, runs)
    experiments = experiments_of(runs, keys)
    out = given.out or _common_folder(runs) / "_".join(["comparison", *keys])
    written = write_comparison(experiments, keys, out, title=given.title, errors=given.errors)
    for table in comparison_tables(experiments, f"Compared by {', '.join(keys)}"):
        console.print(table.rich(), "", sep="\n")
    console.print("\n\n".join(f"{one.label}: {summary(one)}" for one in experiments))
    return written


def _common_folder(runs: Sequence[RunFiles]) -> Path:
    """The nearest folder that holds all runs, relative to the working directory if it is below that."""
    common = Path(os.path.commonpath([run.path.resolve().parent for run in runs]))
    return common.relative_to(Path.cwd()) if common.is_relative_to(Path.cwd()) else common
