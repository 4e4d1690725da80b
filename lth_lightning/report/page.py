"""report.html: the report as one file that needs no network and no server, to look at in a browser or to mail.

Tables and words are plain HTML, which a previewer without JavaScript shows too; `page.html` holds the looks, and
the script that draws the curves.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any

from lth_lightning.report.charts import (
    Chart,
    accuracy_chart,
    comparison_chart,
    curves_chart,
    early_stop_chart,
    layers_chart,
    points_a_curve,
)
from lth_lightning.report.comparison_table import comparison_sheet
from lth_lightning.report.conclusion import named, percent, summary
from lth_lightning.report.paired_table import INTERVALS, paired_sheet
from lth_lightning.report.prunable_share import prunable_facts
from lth_lightning.report.sheet import Cell, Sheet, html
from lth_lightning.report.table import ACCURACIES, results_sheet
from lth_lightning.runs.run import Run, facts, pooled

HINT = (
    "Point at a curve to see round, density, variant, run and seed, or tab to the chart and press the arrow keys. "
    "Names below a chart hide and show curves; a column's name sorts its table."
)
BANDS = "Band: least to greatest of n networks."
SOONER = "The step of the lowest validation loss: the lower, the sooner the network has learned."
POOLED = "Of several networks the mean, a band from least to greatest, and each network as a thin line."


@dataclass(frozen=True)
class Figure:
    """A chart and its words."""

    chart: Chart
    title: str
    caption: str


Part = str | Figure
"""HTML, or a chart."""


def experiment_page(runs: Sequence[Run], title: str, wanted: Sequence[float] | None = None) -> bytes:
    """The page of repetitions of one experiment.

    Args:
        runs: the repetitions.
        title: of the page.
        wanted: the densities whose learning curves show at first, as for `chosen_rounds`.
    """
    return _page(title, list(_experiment(runs, _points([runs]), wanted)))


def comparison_page(groups: Mapping[str, Sequence[Run]], title: str) -> bytes:
    """The page of several experiments: side by side, then each by itself.

    Args:
        groups: the runs of each experiment, by its label.
        title: of the page.
    """
    by_run = {label: [run.rows for run in runs] for label, runs in groups.items()}
    parts: list[Part] = [_listed({f"{label} (n = {len(rows)})": summary(rows) for label, rows in by_run.items()})]
    if chart := comparison_chart(groups):
        parts.append(Figure(chart, "Accuracy over density, side by side", BANDS))
    parts += [html(comparison_sheet(by_run), "Side by side"), _paragraph(INTERVALS, "note")]
    points = _points(groups.values())
    for label, runs in groups.items():
        parts += [f"<h2>{escape(label)}</h2>", *_experiment(runs, points)]
    return _page(title, parts)


def _points(groups: Iterable[Sequence[Run]]) -> int:
    """How many points the page has room for in each learning curve."""
    return points_a_curve(sum(len(run.rows) for runs in groups for run in runs))


def _page(title: str, parts: Sequence[Part]) -> bytes:
    figures = [part for part in parts if isinstance(part, Figure)]
    numbers = iter(range(len(figures)))
    body = [_figure(next(numbers), part) if isinstance(part, Figure) else part for part in parts]
    charts = [figure.chart | {"title": figure.title} for figure in figures]
    filled = {
        "title": escape(title),
        "body": "\n".join([*([_paragraph(HINT, "note")] if figures else []), *body]),
        # no name in it can end the script element
        "charts": json.dumps(charts, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    template = resources.files("lth_lightning.report").joinpath("page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: filled[found[1]], template).encode()


def _figure(number: int, figure: Figure) -> str:
    return (
        f'<figure data-chart="{number}"><h3>{escape(figure.title)}</h3>'
        f"<figcaption>{escape(figure.caption)}</figcaption>"
        "<noscript><p>The curves need JavaScript; the tables do not.</p></noscript></figure>"
    )


def _experiment(runs: Sequence[Run], points: int, wanted: Sequence[float] | None = None) -> Iterator[Part]:
    """Facts, conclusion, curves, tables and settings of repetitions of one experiment."""
    by_run = [run.rows for run in runs]
    yield _listed(facts(runs) | prunable_facts(runs))
    yield _paragraph(summary(by_run), "conclusion")
    charts = {
        ("Accuracy over density", BANDS): accuracy_chart(runs),
        ("Early stop over density", f"{SOONER} {BANDS}"): early_stop_chart(runs),
        ("Learning curves", POOLED): curves_chart(runs, points, wanted),
        ("Layers", "What pruning leaves of each layer of the ticket."): layers_chart(runs),
    }
    yield from (Figure(chart, *words) for words, chart in charts.items() if chart)
    yield html(results_sheet(pooled(runs)), "Results by round")
    yield _paragraph(ACCURACIES, "note")
    if pairs := paired_sheet(by_run):
        yield html(pairs, "Differences and speed-ups, paired by run")
        yield _paragraph(INTERVALS, "note")
    yield _folded("Every trained network", html(networks_sheet(runs), "Every trained network"))
    if any(run.settings for run in runs):
        yield _folded("Settings", html(settings_sheet(runs), "Settings", "text"))


def _paragraph(text: str, kind: str) -> str:
    return f'<p class="{kind}">{escape(text)}</p>'


def _listed(lines: Mapping[str, str]) -> str:
    """Names with what is said of them."""
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in lines.items()) + "</dl>"


def _folded(name: str, table: str) -> str:
    """A long table that opens at a click."""
    return f"<details><summary>{name}</summary>\n{table}</details>"


# ------------------------------------------------------------------------------------- tables


def networks_sheet(runs: Sequence[Run]) -> Sheet:
    """A line a trained network, run by run; accuracies in percent."""
    headers = [
        "run", "round", "variant", "replicate", "density %", "weights kept", "steps", "validation accuracy %",
        "test accuracy %", "early-stop step", "test accuracy at early stop %",
    ]  # fmt: skip
    lines = [
        [
            run.name, str(row.round), named(row.variant), str(row.replicate), f"{100 * row.density:.2f}",
            f"{row.kept:,}", f"{row.steps:,}", _percent(row.val_acc), _percent(row.test_acc),
            "" if row.early_stop_step is None else f"{row.early_stop_step:,}", _percent(row.early_stop_test_acc),
        ]
        for run in runs for row in run.rows
    ]  # fmt: skip
    return Sheet(headers, [list(map(Cell, line)) for line in lines])


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else percent(fraction)


def settings_sheet(runs: Sequence[Run]) -> Sheet:
    """A line a setting, by its name as a flag; where runs differ in it, the values in their order."""
    flat = [dict(_flat(run.settings)) for run in runs]
    names = list(dict.fromkeys(name for settings in flat for name in settings))
    values = {name: list(dict.fromkeys(settings.get(name, "not set") for settings in flat)) for name in names}
    return Sheet(["setting", "value"], [[Cell(name), Cell(" · ".join(values[name]))] for name in names])


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if name == "class_path":
            yield prefix.removesuffix("."), str(value)
        elif isinstance(value, dict) and value:
            yield from _flat(value, prefix if name == "init_args" else f"{prefix}{name}.")
        else:
            yield prefix + name, value if isinstance(value, str) else json.dumps(value)
