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
from typing import Any, NamedTuple

from lth_lightning.report.aggregate import PooledRuns, Spread
from lth_lightning.report.charts import (
    BAND,
    BARS,
    PANELS,
    Axis,
    Chart,
    Entry,
    Line,
    Series,
    charts_of,
    leaving,
    panels_of,
)
from lth_lightning.report.conclusion import answer, summary
from lth_lightning.report.exported import ABOUT, exported_figure, exported_rows, exported_table
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
RANGE = "{Range}: least to greatest of n networks."
SOONER = (
    "The step of the lowest validation loss: the lower, the sooner the network has learned. A network on the dotted "
    "line, where training ends, was still learning."
)
POOLED = "Of several networks the mean, {range} from least to greatest, and each network as a thin line."
WORDS = {
    "accuracy": ("Accuracy over density", RANGE),
    "score": ("{Score} over density", RANGE),
    "early_stop": ("Early stop over density", f"{SOONER} {RANGE}"),
    "curves": ("Learning curves", POOLED),
    "layers": ("Layers", "What pruning leaves of each layer of the ticket."),
    "comparison": ("{Score} over density, side by side", RANGE),
}
"""Titles and captions of the charts, by their names; `{Score}` is the score, `{range}` how ranges are drawn."""
DRAWN = {BAND: ("Band", "a band"), BARS: ("Bars", "bars")}
LONG_WORD = 13
"""A table must not be wider than the page: it shows two experiments side by side, or one if a word of a label is longer
than this, because each of their columns is headed by the label."""
POINTS = 200
"""The most points that the page holds of a learning curve: a screen cannot resolve more."""
FEWEST = 30
ALL_POINTS = 60_000
"""The most points of all learning curves of a page (about 2 MB, small enough to mail), shared by its networks."""


class Part(NamedTuple):
    """A part of the page: HTML, or a chart with its caption. One with a title is listed in the contents."""

    html: str = ""
    title: str = ""
    chart: Chart | None = None
    caption: str = ""
    is_experiment: bool = False  # whether it is the heading of one


def experiment_page(experiment: PooledRuns, charts: Mapping[str, Chart], title: str, errors: str = BAND) -> bytes:
    """Render the page of one experiment, with its charts from `charts_of`; ranges are drawn as `errors` says."""
    reported = experiment.reported
    first = [_paragraph(answer(experiment), "answer")]
    return _page(title, first, list(_experiment(experiment, charts, reported, errors)), errors)


def comparison_page(
    experiments: Sequence[PooledRuns], comparison: Chart | None, title: str, errors: str = BAND
) -> bytes:
    """Render the page of several experiments: first the comparison, with the `comparison_chart`, then each one."""
    reported = experiments[0].reported
    first = [_listed({f"{one.label} (n = {len(one.runs)})": answer(one) for one in experiments}, "answer")]
    panels = panels_of(comparison) if comparison else []
    parts = [Part('<div class="panels">')] if len(panels) > 1 else []
    for panel in panels:
        which = ", ".join(entry.label.partition(" (n = ")[0] for entry in panel.legend[0])
        parts.append(_chart("comparison", panel, reported, errors, which if len(panels) > 1 else ""))
    parts += [Part("</div>"), Part(_paragraph(PANELS, "note"))] if len(panels) > 1 else []
    abreast = 1 if any(len(word) > LONG_WORD for one in experiments for word in one.label.split()) else 2
    for place in range(0, len(experiments), abreast):
        table = comparison_table(experiments[place : place + abreast])
        parts.append(Part(table.html("Side by side", "numbers beside"), "" if place else "Side by side"))
    parts.append(Part(_paragraph(about_pairs(reported), "note")))
    for one in experiments:
        parts.append(Part(f"<h2>{escape(one.label)}</h2>", one.label, is_experiment=True))
        parts += _experiment(one, charts_of(one), reported, errors)
    return _page(title, first, parts, errors)


def _page(title: str, first: Sequence[str], parts: Sequence[Part], errors: str) -> bytes:
    charts = [(part.chart, part.title) for part in parts if part.chart]
    points, numbers = points_a_curve([chart for chart, _ in charts]), iter(range(len(charts)))
    body = []
    for place, part in enumerate(parts):
        content = _figure(next(numbers), part.title, part.caption) if part.chart else part.html
        body.append(f'<div id="part{place}">{content}</div>' if part.title else content)
    bars = {"bars": True} if errors == BARS else {}
    drawn = [{**as_json(chart, points), "title": title, **bars} for chart, title in charts]
    filled = {
        "title": escape(title),
        "body": "\n".join([*first, _contents(parts), *([_paragraph(HINT, "note")] if charts else []), *body]),
        # so that no name can end the script element
        "charts": json.dumps(drawn, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    template = resources.files("lth_lightning.report").joinpath("page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: filled[found[1]], template).encode()


def _contents(parts: Sequence[Part]) -> str:
    """Links to the parts that have a title; a line for each experiment."""
    lines: list[list[str]] = [[]]
    for place, part in enumerate(parts):
        if part.is_experiment:
            lines.append([])
        if part.title:
            lines[-1].append(f'<a href="#part{place}">{escape(part.title)}</a>')
    items = "".join(f"<li>{' '.join(line)}</li>" for line in lines if line)
    return f'<nav aria-label="Contents"><ul>{items}</ul></nav>'


def _figure(number: int, title: str, caption: str) -> str:
    return (
        f'<figure data-chart="{number}"><h3>{escape(title)}</h3><figcaption>{escape(caption)}</figcaption>'
        "<noscript><p>The curves need JavaScript; the tables do not.</p></noscript></figure>"
    )


def _chart(name: str, chart: Chart, reported: Reported, errors: str, which: str = "") -> Part:
    """A chart with its title and caption; `which` names the experiments on it if there are others."""
    label, (drawn, a_drawn) = reported.score.label, DRAWN[errors]
    title, caption = WORDS[name]
    title = title.format(Score=label[0].upper() + label[1:])
    caption = " ".join(filter(None, [caption.format(Range=drawn, range=a_drawn), leaving(chart)]))
    return Part(title=f"{title.partition(' over')[0]}: {which}" if which else title, chart=chart, caption=caption)


def _experiment(experiment: PooledRuns, charts: Mapping[str, Chart], reported: Reported, errors: str) -> Iterator[Part]:
    """Facts, conclusion, curves, tables and settings of an experiment."""
    yield Part(_listed(facts(experiment.runs) | prunable_facts(experiment.runs)))
    yield Part(_paragraph(summary(experiment), "conclusion"), "Conclusion")
    for name, chart in charts.items():
        yield _chart(name, chart, reported, errors)
    yield Part(results_table(experiment).html("Results by round"), "Results by round")
    yield Part(_paragraph(about_results(experiment.reported), "note"))
    if pairs := paired_table(experiment):
        title = "Differences and speed-ups, paired by run"
        yield Part(pairs.html(title), "Differences and speed-ups")
        yield Part(_paragraph(about_pairs(experiment.reported), "note"))
    for run in experiment.runs:
        if rows := exported_rows(run.path):
            title = f"Tickets that run: {run.path.name}" if len(experiment.runs) > 1 else "Tickets that run"
            yield Part(exported_table(rows).html(title), title)
            several = len({row["ticket"] for row in rows}) > 1
            yield Part(_paragraph(ABOUT, "note") + (exported_figure(run.path) if several else ""))
    networks = networks_table(experiment.runs, experiment.reported.score)
    yield Part(_folded("Every trained network", networks.html("Every trained network")), "Every trained network")
    if any(run.settings for run in experiment.runs):
        yield Part(_folded("Settings", settings_table(experiment.runs).html("Settings", "text")), "Settings")


def _paragraph(text: str, kind: str) -> str:
    return f'<p class="{kind}">{escape(text)}</p>'


def _listed(lines: Mapping[str, str], kind: str = "facts") -> str:
    """Names with their facts, as a description list."""
    return (
        f'<dl class="{kind}">'
        + "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in lines.items())
        + "</dl>"
    )


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
    return {"keys": series.keys, "points": points, "room": series.room}


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
