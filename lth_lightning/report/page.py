"""report.html: the report as one file, to open in a browser or send by mail, without internet access or a server.

Tables and text are plain HTML, which also displays without JavaScript. `page.html` holds the styles, and the script
that draws the curves.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from html import escape
from importlib import resources
from typing import Any

from lth_lightning.report.aggregate import PooledRuns, Spread
from lth_lightning.report.charts import Axis, Chart, Entry, Line, Series, charts_of
from lth_lightning.report.conclusion import summary
from lth_lightning.report.prunable_share import prunable_facts
from lth_lightning.report.reported import Reported
from lth_lightning.report.tables import (
    about_pairs,
    about_results,
    comparison_table,
    networks_table,
    paired_table,
    results_table,
    settings_table,
)
from lth_lightning.runs.rows import CurveRow
from lth_lightning.runs.run import facts

HINT = (
    "Point at a curve to see round, density, variant, run and seed, or tab to the chart and press the arrow keys. "
    "Names below a chart hide and show curves; a column's name sorts its table."
)
BANDS = "Band: least to greatest of n networks."
SOONER = "The step of the lowest validation loss: the lower, the sooner the network has learned."
POOLED = "Of several networks the mean, a band from least to greatest, and each network as a thin line."
WORDS = {
    "accuracy": ("Accuracy over density", BANDS),
    "score": ("{Score} over density", BANDS),
    "early_stop": ("Early stop over density", f"{SOONER} {BANDS}"),
    "curves": ("Learning curves", POOLED),
    "layers": ("Layers", "What pruning leaves of each layer of the ticket."),
    "comparison": ("{Score} over density, side by side", BANDS),
}
"""Titles and captions of the charts, by their names; `{Score}` is the score in words."""
POINTS = 200
"""The most points that the page holds of a learning curve: a screen cannot resolve more."""
FEWEST = 30
ALL_POINTS = 60_000
"""The most points of all learning curves of a page (about 2 MB, small enough to mail), shared by its networks."""


Part = str | tuple[str, Chart]
"""HTML, or a chart with its name."""


def experiment_page(experiment: PooledRuns, charts: Mapping[str, Chart], title: str) -> bytes:
    """Render the page of one experiment, with its charts from `charts_of`."""
    return _page(title, list(_experiment(experiment, charts)), experiment.reported)


def comparison_page(experiments: Sequence[PooledRuns], comparison: Chart | None, title: str) -> bytes:
    """Render the page of several experiments: first the comparison, with the `comparison_chart`, then each one."""
    parts: list[Part] = [_listed({f"{one.label} (n = {len(one.runs)})": summary(one) for one in experiments})]
    parts += [("comparison", comparison)] if comparison else []
    reported = experiments[0].reported
    parts += [comparison_table(experiments).html("Side by side"), _paragraph(about_pairs(reported), "note")]
    for one in experiments:
        parts += [f"<h2>{escape(one.label)}</h2>", *_experiment(one, charts_of(one))]
    return _page(title, parts, reported)


def _page(title: str, parts: Sequence[Part], reported: Reported) -> bytes:
    label = reported.score.label
    words = {name: (text.format(Score=label[0].upper() + label[1:]), about) for name, (text, about) in WORDS.items()}
    charts = [part for part in parts if not isinstance(part, str)]
    points, numbers = points_a_curve([chart for _, chart in charts]), iter(range(len(charts)))
    body = [part if isinstance(part, str) else _figure(next(numbers), *words[part[0]]) for part in parts]
    drawn = [{**as_json(chart, points), "title": words[name][0]} for name, chart in charts]
    filled = {
        "title": escape(title),
        "body": "\n".join([*([_paragraph(HINT, "note")] if charts else []), *body]),
        # so that no name can end the script element
        "charts": json.dumps(drawn, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    template = resources.files("lth_lightning.report").joinpath("page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: filled[found[1]], template).encode()


def _figure(number: int, title: str, caption: str) -> str:
    return (
        f'<figure data-chart="{number}"><h3>{escape(title)}</h3><figcaption>{escape(caption)}</figcaption>'
        "<noscript><p>The curves need JavaScript; the tables do not.</p></noscript></figure>"
    )


def _experiment(experiment: PooledRuns, charts: Mapping[str, Chart]) -> Iterator[Part]:
    """Facts, conclusion, curves, tables and settings of an experiment."""
    yield _listed(facts(experiment.runs) | prunable_facts(experiment.runs))
    yield _paragraph(summary(experiment), "conclusion")
    yield from charts.items()
    yield results_table(experiment).html("Results by round")
    yield _paragraph(about_results(experiment.reported), "note")
    if pairs := paired_table(experiment):
        yield pairs.html("Differences and speed-ups, paired by run")
        yield _paragraph(about_pairs(experiment.reported), "note")
    networks = networks_table(experiment.runs, experiment.reported.score)
    yield _folded("Every trained network", networks.html("Every trained network"))
    if any(run.settings for run in experiment.runs):
        yield _folded("Settings", settings_table(experiment.runs).html("Settings", "text"))


def _paragraph(text: str, kind: str) -> str:
    return f'<p class="{kind}">{escape(text)}</p>'


def _listed(lines: Mapping[str, str]) -> str:
    """Names with their facts, as a description list."""
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in lines.items()) + "</dl>"


def _folded(name: str, table: str) -> str:
    """A long table that opens at a click."""
    return f"<details><summary>{name}</summary>\n{table}</details>"


# ------------------------------------------------------------------------------------- charts


def as_json(chart: Chart, points: int = POINTS) -> dict[str, Any]:
    """Convert a chart to JSON for the page's script, which draws it; unset fields are left out.

    Every point carries the networks that it is the mean of (`each`: value, number of the run, replicate), so that the
    page can name them when a reader points at it. The page pools learning curves, for the measure that is chosen.

    Args:
        chart: the chart.
        points: the most points a learning curve keeps; see `thinned`.
    """
    axes = {"x": _given(asdict(chart.x)), "y": _given(asdict(chart.y))}
    legend = [[_entry(entry) for entry in entries] for entries in chart.legend]
    result = {"runs": chart.runs, **axes, "legend": legend, "series": [_series(one) for one in chart.series]}
    if not chart.networks:
        return result
    steps: dict[tuple[int, ...], int] = {}
    networks = []
    for network in chart.networks:
        kept = thinned(network.curve, chart.measures, points)
        place = steps.setdefault(tuple(point.step for point in kept), len(steps))
        values = {axis.key: [_brief(getattr(point, axis.key)) for point in kept] for axis in chart.measures}
        who = {"keys": network.keys, "run": network.run, "replicate": network.replicate}
        networks.append({**who, "steps": place, **values})
    measures = [_given(asdict(axis)) for axis in chart.measures]
    return result | {"measures": measures, "steps": list(steps), "networks": networks}


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None and value is not False and value != ""}


def _entry(entry: Entry) -> dict[str, Any]:
    style = entry.style
    dash = None if style.line is None else _dash(style.line)
    look = {"color": style.color, "marker": style.marker, "ramp": _brief(style.ramp), "dash": dash}
    meaning = {"round": entry.round, "density": _brief(entry.density)}
    hidden = {} if entry.on else {"on": False}
    return _given({"label": entry.label, **look, **meaning, "frames": entry.frames}) | hidden


def _dash(line: Line) -> list[float]:
    """Convert a line style of matplotlib to lengths of dashes and gaps, in line widths; empty for a solid line."""
    return {"-": [], "--": [3.7, 1.6], ":": [1, 1.65]}[line] if isinstance(line, str) else list(line[1])


def _series(series: Series) -> dict[str, Any]:
    if series.level:
        return {"keys": series.keys, "level": _pooled(series.level, series.first_run)}
    points = [
        {"round": p.round, "density": _brief(p.density), "kept": p.kept, "x": _brief(p.x)}
        | _pooled(p.value, series.first_run)
        for p in series.points
    ]
    return {"keys": series.keys, "points": points, "may_leave": series.may_leave}


def _pooled(value: Spread, first_run: int) -> dict[str, Any]:
    each = [[_brief(one.value), first_run + one.run, one.replicate] for one in value.each]
    ends = {"y": _brief(value.mean), "low": _brief(value.low), "high": _brief(value.high)}
    return {**ends, "n": value.n, "each": each}


def _brief(value: float | None) -> float | None:
    """Round to five digits, enough for any screen; integers stay as they are; None for NaN and infinity."""
    if isinstance(value, int) or value is None or not math.isfinite(value):
        return value if isinstance(value, int) else None
    return round(value, 1) if abs(value) >= 10_000 else float(f"{value:.5g}")


def points_a_curve(charts: Iterable[Chart]) -> int:
    """How many points each learning curve keeps on a page with these charts."""
    return min(POINTS, max(FEWEST, ALL_POINTS // max(1, sum(len(chart.networks) for chart in charts))))


def thinned(curve: Sequence[CurveRow], measures: Sequence[Axis], most: int = POINTS) -> list[CurveRow]:
    """Keep at most `most` points of a learning curve: evenly spaced ones, the first, the last, each measure's best.

    The evenly spaced points have the same positions in curves of equal length, so that they can be pooled.
    """
    if len(curve) <= most:
        return list(curve)
    best = set()
    for axis in measures:
        sign = 1 if axis.low else -1
        values = [(getattr(point, axis.key), place) for place, point in enumerate(curve)]
        known = [(sign * value, place) for value, place in values if value is not None and math.isfinite(value)]
        best |= {min(known)[1]} if known else set()
    apart = math.ceil((len(curve) - 1) / (most - len(measures) - 1))
    return [curve[place] for place in sorted({*range(0, len(curve), apart), len(curve) - 1, *best})]
