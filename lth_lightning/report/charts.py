"""The charts of a report as data, made once; `figures` (PNG, SVG) and the script of `page.html` draw them.

A chart has axes, a legend and series. The legend has one or two lists of entries. A series names one entry of each list
(`keys`), and their styles together give its look. Fractions stay fractions here; the drawing code prints percent.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
    may_leave: bool = False  # whether it may leave the frame
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

    def style(self, keys: Iterable[int]) -> Style:
        """Combine the styles of these entries; later lists override earlier ones."""
        found = Style()
        for entries, key in zip(self.legend, keys, strict=True):
            said = {name: value for name, value in entries[key].style._asdict().items() if value is not None}
            found = found._replace(**said)
        return found


DENSITY = Axis("weights kept (%, log scale)", "percent", log=True, falls=True)
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
    """A figure at the end of training over density, per variant, with the dense network as a line.

    The trained networks set the frame. `pruned_only`, which soon falls to chance, may leave it.
    """
    legend = [Entry(f"{named(v)} ({counted(s.n for s in curve.values())})", STYLES[v]) for v, curve in curves.items()]
    series = [
        Series((place,), _points(experiment, curve), may_leave=variant == "pruned_only")
        for place, (variant, curve) in enumerate(curves.items())
    ]
    if not series:
        return None
    if dense:
        series.append(Series((len(legend),), level=dense))
        legend.append(Entry(f"dense network (n = {dense.n})", Style(line="--")))
    return Chart(_names(experiment.runs), DENSITY, axis, [legend], series, prunable=experiment.prunable)


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
    return Chart(names, DENSITY, axis, [legend, lines], series)


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
