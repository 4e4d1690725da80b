"""`python train.py report RUN [RUN …]`: tables, statistics and figures from one run or many.

Several runs are taken as repetitions of one experiment that differ by seed, and are pooled: means, with the least and
the greatest value, and paired differences. With `--compare` runs of different experiments stand side by side. Percent
appears only in text for persons; rows hold fractions.
"""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from lth_lightning.comparable import check_comparable
from lth_lightning.comparison import Group, comparison_csv, full_names, group_runs
from lth_lightning.comparison_table import comparison_sheet, comparison_tables
from lth_lightning.conclusion import summary
from lth_lightning.errors import SettingError
from lth_lightning.files import make_folder, replace_file
from lth_lightning.paired_table import INTERVALS, paired_sheet, paired_table
from lth_lightning.report_options import parser
from lth_lightning.report_page import comparison_page, experiment_page
from lth_lightning.results import Row, as_csv
from lth_lightning.results import densities as density_of_round
from lth_lightning.runs import Run, facts, pooled, read_all, title_of
from lth_lightning.sheet import markdown
from lth_lightning.statistics import Statistic, statistics
from lth_lightning.tables import ACCURACIES, results_sheet, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lth_lightning.pictures import Picture

__all__ = ["Run", "drawn", "main", "summary", "table", "title_of", "write_comparison", "write_report"]

CAPTIONS = {
    "accuracy": "Test accuracy at the end of training. Band: least to greatest of n networks.",
    "early_stop": "The step of the lowest validation loss: the lower, the sooner the network has learned.",
    "curves": "Learning curves: mean, and band from least to greatest, of n networks.",
    "layers": "What pruning leaves of each layer of the ticket.",
    "looks": "What the ticket looks at: how many of the first layer's weights each pixel keeps, round by round.",
    "comparison": "Test accuracy at the end of training. Band: least to greatest of n networks.",
}


# ------------------------------------------------------------------------------------- one experiment


def drawn(runs: Sequence[Run], densities: Sequence[float] | None = None) -> "dict[str, Figure]":
    """The figures that have something to show, by their files' names; arguments as for `write_report`.

    Raises:
        SettingError: the runs cannot be pooled, no round is near one of `densities`, or a ticket cannot be read.
    """
    from lth_lightning import curve_figure, figures, pictures  # matplotlib: only who draws waits for it

    check_comparable(runs)
    rows, title = pooled(runs), title_of(runs)
    curves, layers = [row for run in runs for row in run.curves], [row for run in runs for row in run.layers]
    if densities and not curves:
        raise SettingError(f"--densities: {runs[0].path} has no learning curves (curves/), it is of an older version.")
    found = {
        "accuracy": figures.accuracy_figure(rows, title),
        "early_stop": figures.early_stop_figure(rows, title),
        "curves": curve_figure.curves_figure(curves, rows, title, densities),
        "layers": figures.layers_figure(layers, title),
        "looks": pictures.looks_figure(_looked_at(runs), density_of_round(rows), title),
    }
    return {name: figure for name, figure in found.items() if figure}


def _looked_at(runs: Sequence[Run]) -> "dict[int, Picture]":
    """The pictures of the runs' tickets, by round: the mean over those runs that have one of that round."""
    from lth_lightning.pictures import input_pictures

    found = [input_pictures(run.path, run.layers) for run in runs]
    rounds = sorted({number for pictures in found for number in pictures})
    known = {number: [pictures[number] for pictures in found if number in pictures] for number in rounds}
    return {number: np.mean(pictures, axis=0) for number, pictures in known.items()}


def write_report(runs: Sequence[Run], out: Path, densities: Sequence[float] | None = None) -> list[Path]:
    """Write report.md, report.html, statistics.csv (see `Statistic`) and figures/*.png, *.svg into `out`.

    Figures with nothing to show are left out.

    Args:
        runs: repetitions of one experiment.
        out: the folder.
        densities: those whose learning curves are shown, as fractions; by default some spread over all.

    Returns:
        The files written, report.md first.

    Raises:
        SettingError: the runs cannot be pooled, no round is near one of `densities`, a ticket cannot be read, or
            `out` cannot be written.
    """
    shown = drawn(runs, densities)
    by_run = [run.rows for run in runs]
    parts = [
        f"# {title_of(runs)}",
        _facts(runs),
        summary(by_run),
        *_shown(shown),
        *_tables(runs, pooled(runs)),
    ]
    texts = {
        "report.md": _text(parts),
        "report.html": experiment_page(runs, title_of(runs), densities),
        "statistics.csv": _statistics_csv(by_run),
    }
    return _write(out, texts, shown)


def _facts(runs: Sequence[Run]) -> str:
    settings = [f"- {label}: {value}" for label, value in facts(runs).items()]
    return "\n".join([*settings, *(f"- run folder: `{run.path}`" for run in runs)])


def _tables(runs: Sequence[Run], rows: Sequence[Row]) -> list[str]:
    pairs = paired_sheet([run.rows for run in runs])
    return [ACCURACIES, markdown(results_sheet(rows)), *([INTERVALS, markdown(pairs)] if pairs else [])]


def _shown(names: Mapping[str, object]) -> list[str]:
    return [f"![{CAPTIONS[name]}](figures/{name}.png)\n\n*{CAPTIONS[name]}*" for name in names]


def _statistics_csv(runs: Sequence[Sequence[Row]]) -> bytes:
    return as_csv([field.name for field in fields(Statistic)], map(astuple, statistics(runs)))


def _text(parts: Sequence[str]) -> bytes:
    return ("\n\n".join(parts) + "\n").encode()


def _write(out: Path, texts: Mapping[str, bytes], drawn: "Mapping[str, Figure]") -> list[Path]:
    from lth_lightning.figures import image_bytes

    contents = dict(texts)
    for name, figure in drawn.items():
        for kind in ("png", "svg"):
            contents[f"figures/{name}.{kind}"] = image_bytes(figure, kind)
    make_folder(out / "figures" if drawn else out)
    for name, content in contents.items():
        replace_file(out / name, content)
    return [out / name for name in contents]


# ------------------------------------------------------------------------------------- experiments side by side


def write_comparison(groups: Sequence[Group], keys: Sequence[str], out: Path) -> list[Path]:
    """Write report.md, report.html, comparison.csv (see `comparison_csv`) and the figure into `out`.

    Args:
        groups: from `group_runs`, by the settings `keys`.
        keys: full names of settings.
        out: the folder.

    Returns:
        The files written, report.md first.

    Raises:
        SettingError: `out` cannot be written.
    """
    from lth_lightning.comparison_figure import comparison_figure

    title = f"Compared by {', '.join(keys)}"
    figure = comparison_figure({group.label: pooled(group.runs) for group in groups}, title)
    shown = {"comparison": figure} if figure else {}
    sheet = comparison_sheet(_by_run(groups))
    parts = [f"# {title}", _conclusions(groups), *_shown(shown), markdown(sheet), INTERVALS]
    for group in groups:
        parts += [
            f"## {group.label}",
            _facts(group.runs),
            summary(_rows(group)),
            *_tables(group.runs, pooled(group.runs)),
        ]
    texts = {
        "report.md": _text(parts),
        "report.html": comparison_page({group.label: group.runs for group in groups}, title),
        "comparison.csv": comparison_csv(groups, keys),
    }
    return _write(out, texts, shown)


def _conclusions(groups: Sequence[Group]) -> str:
    return "\n".join(f"- **{group.label}** (n = {len(group.runs)}): {summary(_rows(group))}" for group in groups)


def _rows(group: Group) -> list[list[Row]]:
    return [run.rows for run in group.runs]


def _by_run(groups: Sequence[Group]) -> dict[str, list[list[Row]]]:
    return {group.label: _rows(group) for group in groups}


# ------------------------------------------------------------------------------------- command


def main(args: Sequence[str]) -> int:
    """`train.py report`: print tables and conclusion, write the report, say where it lies."""
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
    out = given.out or (runs[0].path if len(runs) == 1 else runs[0].path.parent / "report")
    written = write_report(runs, out, given.densities)
    by_run = [run.rows for run in runs]
    console.print(table(pooled(runs), title_of(runs)))
    if pairs := paired_table(by_run):
        console.print("", pairs, sep="\n")
    console.print(f"\n{summary(by_run)}")
    return written


def _compare(given: argparse.Namespace, console: Console) -> list[Path]:
    if given.densities:
        raise SettingError("--densities: a comparison shows no learning curves. Report on each experiment alone.")
    if stray := [run for run in given.runs if not run.exists()]:
        raise SettingError(
            f"report: there is no run folder {stray[0]}. Several settings to compare by are joined by commas: "
            f"--compare {','.join([*given.compare, str(stray[0])])}"
        )
    runs = read_all(given.runs)
    keys = full_names(given.compare, runs)
    groups = group_runs(runs, keys)
    out = given.out or _common_folder(runs) / "_".join(["comparison", *keys])
    written = write_comparison(groups, keys, out)
    for one in comparison_tables(_by_run(groups), f"Compared by {', '.join(keys)}"):
        console.print(one, "", sep="\n")
    console.print("\n\n".join(f"{group.label}: {summary(_rows(group))}" for group in groups))
    return written


def _common_folder(runs: Sequence[Run]) -> Path:
    """The nearest folder that holds all the runs, seen from the working directory if it is below that."""
    common = Path(os.path.commonpath([run.path.resolve().parent for run in runs]))
    return common.relative_to(Path.cwd()) if common.is_relative_to(Path.cwd()) else common
