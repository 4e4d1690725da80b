"""Writes a report: report.md, report.html, figures, and the same numbers as CSV.

Several runs count as repetitions of one experiment that differ by seed, and are pooled into means with the least and
the greatest value, and paired differences. `--compare` shows different experiments side by side. Percent appears only
in text for readers; rows hold fractions.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lth_lightning.errors import SettingError
from lth_lightning.files import make_folder, replace_file
from lth_lightning.report.aggregate import PooledRuns
from lth_lightning.report.charts import BAND, BARS, PANELS, Chart, charts_of, comparison_chart, leaving
from lth_lightning.report.comparable import check_comparable
from lth_lightning.report.comparison import comparison_csv
from lth_lightning.report.conclusion import summary
from lth_lightning.report.page import comparison_page, experiment_page
from lth_lightning.report.prunable_share import prunable_facts
from lth_lightning.report.reported import Reported
from lth_lightning.report.statistics import statistic_columns, statistics
from lth_lightning.report.tables import about_pairs, about_results, comparison_table, paired_table, results_table
from lth_lightning.runs.rows import as_csv
from lth_lightning.runs.run import RunFiles, facts, title_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lth_lightning.report.pictures import Picture

CAPTIONS = {
    "accuracy": "{score} at the end of training. {Range}: least to greatest of n networks.",
    "score": "{score} at the end of training. {Range}: least to greatest of n networks.",
    "early_stop": "The step of the lowest validation loss: the lower, the sooner the network has learned. A network on "
    "the dotted line, where training ends, was still learning.",
    "curves": "Learning curves: mean, and {range} from least to greatest, of n networks.",
    "layers": "What pruning leaves of each layer of the ticket.",
    "looks": "What the ticket looks at: how many of the first layer's weights each pixel keeps, round by round.",
    "comparison": "{score} at the end of training. {Range}: least to greatest of n networks.",
}
"""Captions of the figures; `{score}` is the reported score, in words, `{range}` how ranges are drawn."""


# ------------------------------------------------------------------------------------- one experiment


def figures_of(
    experiment: PooledRuns,
    charts: Mapping[str, Chart],
    title: str | None = None,
    *,
    errors: str = BAND,
    card: bool = False,
) -> "dict[str, Figure]":
    """Draw the figures that have data, by the names of their files.

    Args:
        experiment: the pooled runs.
        charts: its charts, from `charts_of`.
        title: the title of each; empty for none; by default the network, the data and the run.
        errors: how the range over several networks is drawn, `band` or `bars`.
        card: whether to draw them for a small card in place of a page, without titles.

    Raises:
        TicketError: a ticket cannot be read.
    """
    from lth_lightning.report import figures, pictures  # matplotlib is slow to import

    title = title_of(experiment.runs) if title is None else title
    found = {name: figures.figure_of(name, chart, title, errors=errors, card=card) for name, chart in charts.items()}
    found["looks"] = pictures.looks_figure(_looked_at(experiment.runs), experiment.density, title, card=card)
    return {name: figure for name, figure in found.items() if figure}


def _looked_at(runs: Sequence[RunFiles]) -> "dict[int, Picture]":
    """The pictures of the runs' tickets by round: the mean over the runs that have one."""
    from lth_lightning.report.pictures import input_pictures

    found = [input_pictures(run.path, run.layers) for run in runs]
    rounds = sorted({number for pictures in found for number in pictures})
    known = {number: [pictures[number] for pictures in found if number in pictures] for number in rounds}
    return {number: np.mean(pictures, axis=0) for number, pictures in known.items()}


def write_report(
    runs: Sequence[RunFiles],
    out: Path,
    densities: Sequence[float] | None = None,
    *,
    title: str | None = None,
    errors: str = BAND,
) -> list[Path]:
    """Write report.md, report.html, statistics.csv (see `Statistic`) and figures/*.png, *.svg, *.pdf into `out`.

    Figures without data are left out.

    Args:
        runs: repetitions of one experiment.
        out: the folder.
        densities: the densities whose learning curves are shown, as fractions; by default some spread over all.
        title: the title of the figures; empty for none; by default the network, the data and the run.
        errors: how the range over several networks is drawn, `band` or `bars`.

    Returns:
        The files written, report.md first.

    Raises:
        SettingError: the runs cannot be pooled, no round is near one of `densities`, a ticket cannot be read, or
            `out` cannot be written.
    """
    check_comparable(runs)
    if densities and not any(run.curves for run in runs):
        raise SettingError(f"--densities: {runs[0].path} has no learning curves (curves/): an older version wrote it.")
    experiment = PooledRuns(runs)
    charts = charts_of(experiment, densities)
    shown = figures_of(experiment, charts, title, errors=errors)
    parts = [
        f"# {title_of(runs)}",
        _facts(runs),
        summary(experiment),
        *_shown(shown, experiment.reported, charts, errors),
        *_tables(experiment),
    ]
    columns = statistic_columns(experiment)
    texts = {
        "report.md": _text(parts),
        "report.html": experiment_page(experiment, charts, title_of(runs), errors),
        "statistics.csv": as_csv(columns, map(astuple, statistics(experiment))),
    }
    return _write(out, texts, shown)


def _facts(runs: Sequence[RunFiles]) -> str:
    settings = [f"- {label}: {value}" for label, value in (facts(runs) | prunable_facts(runs)).items()]
    return "\n".join([*settings, *(f"- run folder: `{run.path}`" for run in runs)])


def _tables(experiment: PooledRuns) -> list[str]:
    pairs = paired_table(experiment)
    about = about_results(experiment.reported)
    paired = [about_pairs(experiment.reported), pairs.markdown()] if pairs else []
    return [about, results_table(experiment).markdown(), *paired]


def _shown(names: Iterable[str], reported: Reported, charts: Mapping[str, Chart], errors: str) -> list[str]:
    label, drawn = reported.label[0].upper() + reported.label[1:], "bars" if errors == BARS else "band"
    captions = {name: CAPTIONS[name].format(score=label, range=drawn, Range=drawn.capitalize()) for name in names}
    for name in captions:
        more = leaving(charts[name]) if name in charts else ""
        more = PANELS if name in charts and len(charts[name].panels) > 1 else more
        captions[name] += f" {more}" if more else ""
    return [f"![{caption}](figures/{name}.png)\n\n*{caption}*" for name, caption in captions.items()]


def _text(parts: Sequence[str]) -> bytes:
    return ("\n\n".join(parts) + "\n").encode()


def _write(out: Path, texts: Mapping[str, bytes], drawn: "Mapping[str, Figure]") -> list[Path]:
    from lth_lightning.report.figures import FILES, image_bytes

    contents = dict(texts)
    for name, figure in drawn.items():
        for kind in FILES:
            contents[f"figures/{name}.{kind}"] = image_bytes(figure, kind)
    make_folder(out / "figures" if drawn else out)
    for name, content in contents.items():
        replace_file(out / name, content)
    return [out / name for name in contents]


# ------------------------------------------------------------------------------------- experiments side by side


def write_comparison(
    experiments: Sequence[PooledRuns],
    keys: Sequence[str],
    out: Path,
    *,
    title: str | None = None,
    errors: str = BAND,
) -> list[Path]:
    """Write report.md, report.html, comparison.csv (see `comparison_csv`) and the figure into `out`.

    Args:
        experiments: from `experiments_of`, grouped by the settings `keys`.
        keys: full names of settings.
        out: the folder.
        title: the title of the figure; empty for none; by default what is compared.
        errors: how the range over several networks is drawn, `band` or `bars`.

    Returns:
        The files written, report.md first.

    Raises:
        SettingError: `out` cannot be written.
    """
    from lth_lightning.report.figures import figure_of

    heading, chart = f"Compared by {', '.join(keys)}", comparison_chart(experiments)
    figure = figure_of("comparison", chart, heading if title is None else title, errors=errors) if chart else None
    shown = {"comparison": figure} if figure else {}
    charts = {"comparison": chart} if chart else {}
    conclusions = [f"- **{one.label}** (n = {len(one.runs)}): {summary(one)}" for one in experiments]
    parts = [
        f"# {heading}",
        "\n".join(conclusions),
        *_shown(shown, experiments[0].reported, charts, errors),
        comparison_table(experiments).markdown(),
        about_pairs(experiments[0].reported),
    ]
    for one in experiments:
        parts += [f"## {one.label}", _facts(one.runs), summary(one), *_tables(one)]
    texts = {
        "report.md": _text(parts),
        "report.html": comparison_page(experiments, chart, heading, errors),
        "comparison.csv": comparison_csv(experiments, keys),
    }
    return _write(out, texts, shown)
