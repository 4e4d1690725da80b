"""What the curves of report.html show: pooled figures as JSON for `page.html`, which draws them.

A chart is its axes, its legend and its series. The legend has one or two lists of entries; a series names an entry of
each (`keys`), looks as they say together, and shows while all of them are on. Every point carries the networks it is
the mean of (`each`: value, number of the run, replicate), so that whoever points at it sees which runs these are.
Fractions stay fractions here; the page prints percent.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from lth_lightning.report.aggregate import dense_rows, densities, of_variant
from lth_lightning.report.conclusion import counted, named, short_names, weights
from lth_lightning.report.learning_curves import chosen_rounds
from lth_lightning.report.styles import COLORS, MARKERS, STYLES
from lth_lightning.runs.rows import VARIANTS, CurveRow, LayerRow, Row
from lth_lightning.runs.run import Run, pooled

Chart = dict[str, Any]

POINTS = 200
"""The most points of a learning curve that the page holds: more are nearer to each other than a screen can show."""
FEWEST = 30
ALL_POINTS = 60_000
"""Points of all learning curves of a page, about 2 MB, a file that can be mailed: many networks have fewer each."""
MEASURES = {
    "test_acc": ("test accuracy", "percent"),
    "val_acc": ("validation accuracy", "percent"),
    "test_loss": ("test loss", "number"),
    "val_loss": ("validation loss", "number"),
}
DENSITY = {"label": "weights kept (%, log scale)", "log": True, "falls": True, "unit": "percent"}
ACCURACY = {"label": "test accuracy at the end of training (%)", "unit": "percent"}
STOP = {"label": "early stop (step of lowest validation loss)", "unit": "steps", "zero": True}


class Network(NamedTuple):
    """A figure of one trained network, with the number of its run."""

    run: int
    row: Row | LayerRow
    value: float


def accuracy_chart(runs: Sequence[Run]) -> Chart | None:
    """Test accuracy at the end of training over density, per variant; None where none is known.

    The frame is that of the trained networks: `pruned_only`, which soon falls to chance, may leave it.
    """
    return _over_density(runs, lambda row: row.test_acc, ACCURACY)


def early_stop_chart(runs: Sequence[Run]) -> Chart | None:
    """The step of the lowest validation loss over density, per variant; None where none is known."""
    return _over_density(runs, lambda row: row.early_stop_step, STOP)


def _over_density(runs: Sequence[Run], figure: Callable[[Row], float | None], axis: Mapping[str, Any]) -> Chart | None:
    density = densities(pooled(runs))
    legend: list[Any] = []
    series: list[Any] = []
    for variant in VARIANTS:
        if points := _points(_networks(runs, variant, figure), lambda row: row.density, density):
            style = STYLES[variant]
            series.append({"keys": [len(legend)], "points": points, "may_leave": variant == "pruned_only"})
            legend.append(
                {
                    "label": f"{named(variant)} ({counted(point['n'] for point in points)})",
                    "color": style.color,
                    "marker": style.marker,
                    "dash": _dash(style.line),
                }
            )
    if not series:
        return None
    if dense := _dense(runs, figure):
        series.append({"keys": [len(legend)], "level": dense})
        legend.append({"label": f"dense network (n = {dense['n']})", "dash": _dash("--")})
    return _chart(runs, DENSITY, axis, [legend], series)


def layers_chart(runs: Sequence[Run]) -> Chart | None:
    """The density of each prunable layer of the tickets over the rounds; None where there is no ticket."""
    layers = [row for run in runs for row in of_variant(run.layers, "ticket")]
    sizes = {row.layer: row.size for row in layers}
    if not sizes:
        return None
    density, lines = densities(pooled(runs)), [style.line for style in STYLES.values()]
    legend: list[Any] = []
    series: list[Any] = []
    for place, (layer, short) in enumerate(zip(sizes, short_names(list(sizes)), strict=True)):
        found = [
            Network(number, row, row.density)
            for number, run in enumerate(runs)
            for row in of_variant(run.layers, "ticket")
            if row.layer == layer and row.density  # an empty layer has no place on a log axis: its curve ends
        ]
        series.append({"keys": [place], "points": _points(found, lambda row: row.round, density)})
        dash = _dash(lines[place % len(lines)])
        legend.append({"label": f"{short} ({sizes[layer]:,})", "dash": dash, **_in_order(place, len(sizes))})
    y = {"label": "weights kept in the layer (%, log scale)", "log": True, "unit": "percent"}
    return _chart(runs, {"label": "round", "unit": "number", "whole": True}, y, [legend], series)


def comparison_chart(groups: Mapping[str, Sequence[Run]]) -> Chart | None:
    """Test accuracy over density of several experiments: a colour and a marker a group, a line a kind of network.

    Args:
        groups: the runs of each group, by its label.

    Returns:
        The chart, or None where no test accuracy is known.
    """
    runs = [run for members in groups.values() for run in members]
    kinds = {"ticket": STYLES["ticket"].line, "random_reinit": STYLES["random_reinit"].line, "dense network": ":"}
    first = 0
    series: list[Any] = []
    legend: list[Any] = []
    for place, (label, members) in enumerate(groups.items()):
        density, n = densities(pooled(members)), [0]
        for kind, variant in enumerate(("ticket", "random_reinit")):
            found = _networks(members, variant, lambda row: row.test_acc, first)
            if points := _points(found, lambda row: row.density, density):
                series.append({"keys": [place, kind], "points": points})
                n = [point["n"] for point in points] if variant == "ticket" else n
        if dense := _dense(members, lambda row: row.test_acc, first):
            series.append({"keys": [place, 2], "level": dense})
        legend.append({"label": f"{label} ({counted(n)})", **_of_group(place)})
        first += len(members)
    if not any("points" in one for one in series):
        return None
    lines = [{"label": named(kind), "dash": _dash(line)} for kind, line in kinds.items()]
    return _chart(runs, DENSITY, ACCURACY, [legend, lines], series)


def curves_chart(runs: Sequence[Run], most: int = POINTS, wanted: Sequence[float] | None = None) -> Chart | None:
    """The learning curve of every network, for the page to pool and to choose from.

    Args:
        runs: repetitions of one experiment.
        most: points a curve keeps, see `thinned`.
        wanted: the densities to begin with, beside the dense network's, as for `chosen_rounds`.

    Returns:
        The chart, or None where there are no learning curves.
    """
    found: dict[tuple[int, int, str, int], list[CurveRow]] = {}
    for number, run in enumerate(runs):
        for point in run.curves:
            found.setdefault((number, point.round, point.variant, point.replicate), []).append(point)
    if not found:
        return None
    density = densities(pooled(runs))
    rounds = sorted({number for _, number, _, _ in found})
    variants = [variant for variant in VARIANTS if any(key[2] == variant for key in found)]
    measures = [
        name for name in MEASURES if any(getattr(p, name) is not None for curve in found.values() for p in curve)
    ]
    steps: dict[tuple[int, ...], int] = {}
    networks = []
    for (run_number, number, variant, replicate), curve in found.items():
        points = thinned(curve, most)
        values = {name: [_brief(getattr(point, name)) for point in points] for name in measures}
        place = steps.setdefault(tuple(point.step for point in points), len(steps))
        keys = [rounds.index(number), variants.index(variant)]
        networks.append({"keys": keys, "run": run_number, "replicate": replicate, "steps": place, **values})
    sparse = [number for number in rounds if density.get(number, 1) < 1]
    shown = chosen_rounds(list(chain(*found.values())), {number: density[number] for number in sparse}, wanted)
    legend = [
        {
            "label": _of_round(number, density),
            "on": number in shown or number not in sparse,
            "round": number,
            "density": _brief(density.get(number)),
            **(_in_order(sparse.index(number), len(sparse)) if number in sparse else {}),
        }
        for number in rounds
    ]
    lines = [
        {
            "label": named(variant),
            "dash": _dash(STYLES[variant].line),
            "on": variant in ("ticket", "random_reinit"),
            "frames": variant == "ticket",
        }
        for variant in variants
    ]
    axes = [{"key": name, "label": MEASURES[name][0], "unit": MEASURES[name][1]} for name in measures]
    x = {"label": "training step of the round", "unit": "steps"}
    chart = _chart(runs, x, axes[0] if axes else {}, [legend, lines], [])
    return chart | {"measures": axes, "steps": [list(one) for one in steps], "networks": networks}


def points_a_curve(networks: int) -> int:
    """How many points each learning curve of a page keeps that has this many of them."""
    return min(POINTS, max(FEWEST, ALL_POINTS // max(1, networks)))


def thinned(curve: Sequence[CurveRow], most: int = POINTS) -> list[CurveRow]:
    """At most `most` points of a learning curve: evenly spread ones, the first, the last, and each measure's best.

    The even ones stand at the same places in curves of the same length, so that they can be pooled.
    """
    if len(curve) <= most:
        return list(curve)
    best = set()
    for name in MEASURES:
        sign = 1 if name.endswith("loss") else -1
        values = [(getattr(point, name), place) for place, point in enumerate(curve)]
        known = [(sign * value, place) for value, place in values if value is not None and math.isfinite(value)]
        best |= {min(known)[1]} if known else set()
    apart = math.ceil((len(curve) - 1) / (most - len(MEASURES) - 1))
    return [curve[place] for place in sorted({*range(0, len(curve), apart), len(curve) - 1, *best})]


# ------------------------------------------------------------------------------------- parts of a chart


def _chart(
    runs: Sequence[Run], x: Mapping[str, Any], y: Mapping[str, Any], legend: list[Any], series: list[Any]
) -> Chart:
    return {"runs": [_run(run) for run in runs], "x": x, "y": y, "legend": legend, "series": series}


def _run(run: Run) -> str:
    """How the page names a run: by its folder and its seed."""
    return f"{run.name}, seed {run.facts['seed']}" if "seed" in run.facts else run.name


def _networks(
    runs: Sequence[Run], variant: str, figure: Callable[[Row], float | None], first: int = 0
) -> list[Network]:
    return _measured(
        ((number, row) for number, run in enumerate(runs, first) for row in of_variant(run.rows, variant)), figure
    )


def _dense(runs: Sequence[Run], figure: Callable[[Row], float | None], first: int = 0) -> dict[str, Any] | None:
    found = _measured(((number, row) for number, run in enumerate(runs, first) for row in dense_rows(run.rows)), figure)
    return _pooled(found) if found else None


def _measured(rows: Iterable[tuple[int, Row]], figure: Callable[[Row], float | None]) -> list[Network]:
    """Those for which the figure is known."""
    found = ((number, row, figure(row)) for number, row in rows)
    return [Network(number, row, value) for number, row, value in found if value is not None and math.isfinite(value)]


def _points(found: Iterable[Network], x: Callable[[Any], float], density: Mapping[int, float]) -> list[dict[str, Any]]:
    """A point a round, in their order."""
    rounds: dict[int, list[Network]] = {}
    for network in found:
        rounds.setdefault(network.row.round, []).append(network)
    return [
        {
            "round": number,
            "density": _brief(density.get(number)),
            "kept": networks[0].row.kept,
            "x": _brief(x(networks[0].row)),
            **_pooled(networks),
        }
        for number, networks in sorted(rounds.items())
    ]


def _pooled(found: Sequence[Network]) -> dict[str, Any]:
    values = [network.value for network in found]
    return {
        "y": _brief(math.fsum(values) / len(values)),
        "low": _brief(min(values)),
        "high": _brief(max(values)),
        "n": len(values),
        "each": [[_brief(network.value), network.run, network.row.replicate] for network in found],
    }


def _brief(value: float | None) -> float | None:
    """Five digits, which no screen can tell from more; whole numbers whole; None for what JSON has no number for."""
    if isinstance(value, int) or value is None or not math.isfinite(value):
        return value if isinstance(value, int) else None
    return round(value, 1) if abs(value) >= 10_000 else float(f"{value:.5g}")


def _of_round(number: int, density: Mapping[int, float]) -> str:
    if density.get(number) == 1:
        return "dense network"
    return weights(density[number]) if number in density else f"round {number}"


def _of_group(place: int) -> dict[str, Any]:
    color = COLORS[place % len(COLORS)]
    look = {"marker": MARKERS[place % len(MARKERS)]}
    return look if color == "#000000" else {"color": color, **look}  # without a colour: the ink, light or dark


def _in_order(place: int, of: int) -> dict[str, Any]:
    """A place on the page's ramp from dark to light, so that the order of many curves shows without colour too."""
    return {"ramp": _brief(place / max(1, of - 1)), "marker": MARKERS[place % len(MARKERS)]}


def _dash(line: str | tuple[int, tuple[float, ...]]) -> list[float]:
    """Matplotlib's line as lengths of dashes and gaps, in line widths; empty for a solid one."""
    return {"-": [], "--": [3.7, 1.6], ":": [1, 1.65]}[line] if isinstance(line, str) else list(line[1])
