"""What a report leaves in its folder: report.md, report.html, figures and the same numbers as CSV.

Several runs are taken as repetitions of one experiment that differ by seed, and are pooled: means, with the least and
the greatest value, and paired differences. With `--compare` runs of different experiments stand side by side. Percent
appears only in text for persons; rows hold fractions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lth_lightning.errors import SettingError
from lth_lightning.files import make_folder, replace_file
from lth_lightning.report.aggregate import densities as density_of_round
from lth_lightning.report.comparable import check_comparable
from lth_lightning.report.comparison import Group, comparison_csv
from lth_lightning.report.comparison_table import comparison_sheet
from lth_lightning.report.conclusion import summary
from lth_lightning.report.page import comparison_page, experiment_page
from lth_lightning.report.paired_table import INTERVALS, paired_sheet
from lth_lightning.report.prunable_share import prunable_facts
from lth_lightning.report.sheet import markdown
from lth_lightning.report.statistics import Statistic, statistics
from lth_lightning.report.table import ACCURACIES, results_sheet
from lth_lightning.runs.rows import Row, as_csv
from lth_lightning.runs.run import Run, facts, pooled, title_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lth_lightning.report.pictures import Picture

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
    from lth_lightning.report import curve_figure, figures, pictures  # matplotlib: only who draws waits for it

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
    from lth_lightning.report.pictures import input_pictures

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
    settings = [f"- {label}: {value}" for label, value in (facts(runs) | prunable_facts(runs)).items()]
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
    from lth_lightning.report.figures import image_bytes

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
    from lth_lightning.report.comparison_figure import comparison_figure

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
