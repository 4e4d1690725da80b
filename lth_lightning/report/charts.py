"""The charts of a report as data, made once; `figures` (PNG, SVG) and the script of `page.html` draw them.

A chart has axes, a legend and series. The legend has one or two lists of entries. A series names one entry of each list
(`keys`), and their styles together give its look. Fractions stay fractions here; the drawing code prints percent.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Literal, NamedTuple

from lth_lightning.report.aggregate import Curve, PooledRuns, Spread, by_round, of_variant
from lth_lightning.report.learning_curves import chosen_rounds
from lth_lightning.report.reported import IN_WORDS, Reported
from lth_lightning.report.wording import counted, named, short_names, weights
from lth_lightning.runs.rows import VARIANTS, CurveRow
from lth_lightning.runs.run import RunFiles
from lth_lightning.runs.score import ACCURACY, LOSS, Score

Line = Literal["-", "--", ":"] | tuple[float, tuple[float, ...]]


class Style(NamedTuple):
    """How a series looks; None leaves it to another entry. Readable in black and white, and by the colour-blind.

    `ramp` replaces the colour: a position between dark (0) and light (1), which shows the order of many curves.
    """

    color: str | None = None
    marker: str | None = None
    line: Line | None = None
    ramp: float | None = None


NO_STYLE = Style()
STYLES = {
    "ticket": Style("#0072B2", "o", "-"),
    "random_reinit": Style("#D55E00", "s", (0, (5, 1.5))),
    "random_mask": Style("#009E73", "^", (0, (5, 1.5, 1, 1.5))),
    "pruned_only": Style("#CC79A7", "D", (0, (1, 1.5))),
}
# The first six colours of Okabe and Ito (2008), and the ink: black, or white on a dark page.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", None)
MARKERS = "osD^v<>pX*"


@dataclass(frozen=True)
class Axis:
    """What an axis measures, and how its values are printed (`percent`, `steps` or `number`)."""

    label: str
    unit: str = "number"
    log: bool = False
    falls: bool = False  # values decrease to the right
    zero: bool = False  # starts at 0
    whole: bool = False  # ticks at whole numbers only
    key: str = ""  # for learning curves: the attribute of `CurveRow` that holds it
    low: bool = False  # whether less is better


@dataclass(frozen=True)
class Entry:
    """A line of a legend: its meaning, and whether its series are shown at first."""

    label: str
    style: Style = NO_STYLE
    on: bool = True
    round: int | None = None
    density: float | None = None
    frames: bool = False  # whether its learning curves determine the vertical range


class Point(NamedTuple):
    """A round: its position, and the mean over its networks."""

    round: int
    density: float | None
    kept: int
    x: float
    value: Spread


@dataclass(frozen=True)
class Series:
    """A curve, or a horizontal `level` for the dense network, which has no position on the axis."""

    keys: tuple[int, ...]  # its entry in each list of the legend
    points: list[Point] = field(default_factory=list)
    level: Spread | None = None
    room: float | None = None  # how much it may widen the frame, as a share of its height; None: it is shown whole
    first_run: int = 0  # index of the experiment's first run among the chart's runs


@dataclass(frozen=True)
class LearningCurve:
    """The evaluations of one network; `keys` are its entries in the legend."""

    keys: tuple[int, int]
    run: int
    replicate: int
    curve: list[CurveRow]


@dataclass(frozen=True)
class Chart:
    """Series, or the learning curves of `networks`, which the drawing code pools for one of the `measures`."""

    runs: list[str]  # names
    x: Axis
    y: Axis  # for learning curves, the first measure
    legend: list[list[Entry]]
    series: list[Series] = field(default_factory=list)
    measures: list[Axis] = field(default_factory=list)
    networks: list[LearningCurve] = field(default_factory=list)
    prunable: int = 0  # weights of the dense network
    panels: list[list[int]] = field(default_factory=list)  # of a comparison: entries of the first list, by axes

    def style(self, keys: Iterable[int]) -> Style:
        """Combine the styles of these entries; later lists override earlier ones."""
        found = Style()
        for entries, key in zip(self.legend, keys, strict=True):
            said = {name: value for name, value in entries[key].style._asdict().items() if value is not None}
            found = found._replace(**said)
        return found


BAND, BARS = "band", "bars"
"""How the range from least to greatest is drawn."""

DENSITY = Axis("weights kept (%, log scale)", "percent", log=True, falls=True)
ROOM = {"random_mask": 0.5, "pruned_only": 0.0}
"""By how much of the frame's height the networks that fall to chance may widen it; beyond, they leave it."""
STOP = Axis("early stop (step of lowest validation loss)", "steps", zero=True)
LAYER = Axis("weights kept in the layer (%, log scale)", "percent", log=True)


def score_axis(reported: Reported) -> Axis:
    """The axis of scores at the end of training."""
    score = reported.score
    in_percent = " (%)" if score.is_fraction else ""
    label = f"{reported.label} at the end of training{in_percent}"
    return Axis(label, _unit(score), low=score.mode == "min")


def measures_of(score: Score) -> list[Axis]:
    """What learning curves can show: the score first, then accuracy and loss, on test data and on validation data."""
    found: dict[str, Score] = {}
    for one in (score, ACCURACY, LOSS):
        found.setdefault(one.key, one)
    return [
        Axis(f"{words} {one.label}", _unit(one), key=one.attribute(data), low=one.mode == "min")
        for one in found.values()
        for data, words in IN_WORDS.items()
    ]


def _unit(score: Score) -> str:
    return "percent" if score.is_fraction else "number"


def charts_of(experiment: PooledRuns, wanted: Sequence[float] | None = None) -> dict[str, Chart]:
    """Make the charts of an experiment that have data, by the names of their files.

    Args:
        experiment: the pooled runs.
        wanted: the densities whose learning curves are shown at first, as for `chosen_rounds`.

    Raises:
        SettingError: no round is near one of `wanted`.
    """
    found = {
        experiment.reported.file: _over_density(
            experiment, experiment.scores, experiment.dense_score, score_axis(experiment.reported)
        ),
        "early_stop": _over_density(experiment, experiment.early_stop, experiment.dense_stop, STOP),
        "curves": _learning_curves(experiment, wanted),
        "layers": _layers(experiment),
    }
    return {name: chart for name, chart in found.items() if chart}


def _over_density(
    experiment: PooledRuns, curves: Mapping[str, Curve], dense: Spread | None, axis: Axis
) -> Chart | None:
    """A figure at the end of training over density, per variant, with the dense network as a line."""
    legend = [Entry(f"{named(v)} ({counted(s.n for s in curve.values())})", STYLES[v]) for v, curve in curves.items()]
    series = [
        Series((place,), _points(experiment, curve), room=None if axis.zero else ROOM.get(variant))
        for place, (variant, curve) in enumerate(curves.items())
    ]
    if not series:
        return None
    if dense:
        series.append(Series((len(legend),), level=dense))
        legend.append(Entry(f"dense network (n = {dense.n})", Style(line="--")))
    if axis is STOP and experiment.ends:
        series.append(_end_of_training(experiment, len(legend)))
        legend.append(Entry("end of training", Style("#808080", line=":")))
    return Chart(_names(experiment.runs), DENSITY, axis, [legend], series, prunable=experiment.prunable)


def _end_of_training(experiment: PooledRuns, place: int) -> Series:
    """The step at which training ended: a level, or a curve if some networks were trained for fewer steps."""
    ends = {number: replace(end, each=()) for number, end in experiment.ends.items()}  # nothing to point at
    if len({(end.low, end.high) for end in ends.values()}) == 1:
        return Series((place,), level=next(iter(ends.values())))
    return Series((place,), _points(experiment, ends))


def frame(axis: Axis, series: Sequence[Series]) -> tuple[float, float]:
    """The vertical range of these series, without margins.

    Series that may leave it (`room`) widen it by at most this share, and only to the worse side: networks that fall to
    chance would press the others together.
    """
    low, high = extent([one for one in series if one.room is None] or series)
    bottom, top = low, high
    for one in series:
        if one.room is not None and one.points:
            least, greatest = extent([one])
            reach = one.room * (high - low)
            bottom = min(bottom, least if axis.low else max(least, low - reach))
            top = max(top, min(greatest, high + reach) if axis.low else greatest)
    return bottom, top


def extent(series: Iterable[Series]) -> tuple[float, float]:
    """The least and the greatest value of these series, over all networks."""
    values = [value for one in series for value in [*(point.value for point in one.points), one.level] if value]
    return min(value.low for value in values), max(value.high for value in values)


def leaving(chart: Chart) -> str:
    """A sentence for the caption on the curves that leave the frame; empty if none does."""
    gone = []
    for one in chart.series:
        if one.room is not None and one.points:
            low, high = frame(chart.y, chart.series)
            worst = (max if chart.y.low else min)(point.value.mean for point in one.points)
            if worst > high if chart.y.low else worst < low:
                name = chart.legend[0][one.keys[0]].label.partition(" (")[0]
                text = f"{100 * worst:.1f} %" if chart.y.unit == "percent" else f"{worst:.4g}"
                gone.append(f"{name} ({'up' if chart.y.low else 'down'} to {text})")
    return f"Not shown whole, because the other networks set the range: {', '.join(gone)}." if gone else ""


def _points(experiment: PooledRuns, curve: Curve) -> list[Point]:
    density = experiment.density
    return [Point(n, density[n], experiment.kept[n], density[n], value) for n, value in curve.items()]


def _layers(experiment: PooledRuns) -> Chart | None:
    """The density of each prunable layer of the tickets, over rounds."""
    tickets = [of_variant(run.layers, "ticket") for run in experiment.runs]
    sizes = {row.layer: row.size for row in chain(*tickets)}
    if not sizes:
        return None
    legend, series = [], []
    for place, (layer, short) in enumerate(zip(sizes, short_names(list(sizes)), strict=True)):
        rows = [[row for row in run if row.layer == layer] for run in tickets]
        curve = by_round(rows, lambda row: row.density or None)  # a log axis cannot show an empty layer: its curve ends
        points = [
            Point(n, experiment.density.get(n), round(value.mean * sizes[layer]), n, value)
            for n, value in curve.items()
        ]
        series.append(Series((place,), points))
        legend.append(Entry(f"{short} ({sizes[layer]:,})", layer_style(place, len(sizes))))
    return Chart(_names(experiment.runs), Axis("round", whole=True), LAYER, [legend], series)


def layer_style(place: int, of: int) -> Style:
    """The style of a layer: from dark (the first layer) to light, with its own marker and line."""
    lines = [style.line for style in STYLES.values()]
    return in_order(place, of)._replace(line=lines[place % len(lines)])


def in_order(place: int, of: int) -> Style:
    """The style of one of several ordered curves."""
    return Style(marker=MARKERS[place % len(MARKERS)], ramp=place / max(1, of - 1))


def comparison_chart(experiments: Sequence[PooledRuns]) -> Chart | None:
    """The score over density of several experiments: colour and marker by experiment, line by kind of network.

    None if no score is known.
    """
    kinds = {kind: STYLES[kind] for kind in ("ticket", "random_reinit")} | {"dense network": Style(line=":")}
    legend, series, first = [], [], 0
    for place, one in enumerate(experiments):
        found = {kind: curve for kind, curve in one.scores.items() if kind in kinds}
        for kind, curve in found.items():
            series.append(Series((place, list(kinds).index(kind)), _points(one, curve), first_run=first))
        if one.dense_score:
            series.append(Series((place, 2), level=one.dense_score, first_run=first))
        n = counted(value.n for value in found["ticket"].values()) if "ticket" in found else "n = 0"
        style = Style(COLORS[place % len(COLORS)], MARKERS[place % len(MARKERS)])
        legend.append(Entry(f"{one.label} ({n})", style))
        first += len(one.runs)
    if not any(one.points for one in series):
        return None
    lines = [Entry(named(kind), Style(line=style.line)) for kind, style in kinds.items()]
    names, axis = _names(chain(*(one.runs for one in experiments))), score_axis(experiments[0].reported)
    return Chart(names, DENSITY, axis, [legend, lines], series, panels=_panels(axis, series))


PANELS = "Experiments whose scores lie far apart have axes of their own."


def _panels(axis: Axis, series: Sequence[Series]) -> list[list[int]]:
    """The experiments that share a vertical axis, in the order of their first.

    Two do unless the gap between their tickets is wider than either's range: then both would be flat. The worst quarter
    of the densities is left aside, because at the sparsest all scores fall.
    """
    ranges = {}
    for one in series:
        if one.points and one.keys[1] == 0:
            means = sorted((point.value.mean for point in one.points), reverse=not axis.low)
            kept = means[: len(means) - len(means) // 4]
            ranges[one.keys[0]] = (min(kept), max(kept))
    found: list[list[int]] = []
    top, height = -math.inf, 0.0
    for place, (low, high) in sorted(ranges.items(), key=lambda item: item[1]):
        height = max(height, high - low)
        if not found or low - top > height:
            found.append([])
            height = high - low
        found[-1].append(place)
        top = max(top, high)
    rest = sorted({one.keys[0] for one in series} - ranges.keys())  # without tickets
    return sorted(sorted(panel) for panel in [[*found[0], *rest], *found[1:]]) if found else [rest]


def panels_of(chart: Chart) -> list[Chart]:
    """A comparison as one chart for each vertical axis, with the experiments that are drawn on it."""
    charts = []
    for panel in chart.panels:
        series = [
            replace(one, keys=(panel.index(one.keys[0]), *one.keys[1:])) for one in chart.series if one.keys[0] in panel
        ]
        legend = [[chart.legend[0][place] for place in panel], *chart.legend[1:]]
        charts.append(replace(chart, legend=legend, series=series, panels=[list(range(len(panel)))]))
    return charts


def _learning_curves(experiment: PooledRuns, wanted: Sequence[float] | None) -> Chart | None:
    """The learning curve of every network; `chosen_rounds` selects those shown at first."""
    found: dict[tuple[int, int, str, int], list[CurveRow]] = {}
    for place, run in enumerate(experiment.runs):
        for point in run.curves:
            found.setdefault((place, point.round, point.variant, point.replicate), []).append(point)
    points = list(chain(*found.values()))
    known = measures_of(experiment.reported.score)
    measures = [axis for axis in known if any(getattr(point, axis.key) is not None for point in points)]
    if not measures:
        return None
    rounds = sorted({point.round for point in points})
    variants = [variant for variant in VARIANTS if any(point.variant == variant for point in points)]
    density = {number: experiment.density.get(number) for number in rounds}
    sparse = {number: value for number, value in density.items() if value is not None and value < 1}
    measured = [point for point in points if getattr(point, measures[0].key) is not None]
    shown = chosen_rounds(measured, sparse, wanted)
    legend = [
        Entry(
            "dense network" if value == 1 else f"round {number}" if value is None else weights(value),
            in_order(list(sparse).index(number), len(sparse)) if number in sparse else NO_STYLE,
            on=number in shown or number not in sparse,
            round=number,
            density=value,
        )
        for number, value in density.items()
    ]
    lines = [
        Entry(named(v), Style(line=STYLES[v].line), on=v in ("ticket", "random_reinit"), frames=v == "ticket")
        for v in variants
    ]
    networks = [
        LearningCurve((rounds.index(number), variants.index(variant)), place, replicate, curve)
        for (place, number, variant, replicate), curve in found.items()
    ]
    x = Axis("training step of the round", "steps")
    names = _names(experiment.runs)
    return Chart(names, x, measures[0], [legend, lines], measures=measures, networks=networks)


def _names(runs: Iterable[RunFiles]) -> list[str]:
    """The names of runs in a chart: folder and seed."""
    return [f"{run.name}, seed {run.facts['seed']}" if "seed" in run.facts else run.name for run in runs]
