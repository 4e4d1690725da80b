"""A report's charts as PNG and SVG, drawn with matplotlib; readable in black and white and by the colour-blind.

Only this module and `pictures` import matplotlib, so that nothing else waits for it.
"""

import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, StrMethodFormatter

from lth_lightning.report import charts
from lth_lightning.report.aggregate import Curve, Spread, by_round
from lth_lightning.report.charts import Chart, Series, Style, in_order, layer_style
from lth_lightning.report.wording import counted

LEGEND_WIDTH, HANDLE_WIDTH = 115, 9  # in characters


def figure_of(name: str, chart: Chart, title: str) -> Figure | None:
    """Draw a chart from `charts_of`, or the `comparison_chart`; None if it has nothing to show."""
    draw = {"curves": _learning_curves, "layers": _layers, "comparison": _comparison}
    return draw.get(name, _over_density)(chart, title)


def image_bytes(figure: Figure, kind: str) -> bytes:
    """The content of the figure's file, "png" or "svg"; the same rows give the same bytes."""
    out = io.BytesIO()
    with rc_context({"svg.hashsalt": "lth_lightning"}):
        figure.savefig(out, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    figure.set_layout_engine("none")  # done once; a second layout would take as long as drawing
    return out.getvalue()


# ------------------------------------------------------------------------------------- charts


def _over_density(chart: Chart, title: str) -> Figure:
    """Test accuracy, or early stop, over density, with the number of weights on the upper axis."""
    figure, axes = _frame(chart, title, width=7)
    for series, entry in zip(chart.series, chart.legend[0], strict=True):
        _draw(axes, series, chart.style(series.keys), entry.label)
    _density_axis(axes, chart)
    _count_axis(axes, chart.prunable)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    if chart.y.zero:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        axes.set_ylim(bottom=0)
    else:
        framed = [series for series in chart.series if not series.may_leave and series.points] or chart.series
        axes.set_ylim(*_padded(chart.y, _values(framed), _values(chart.series)))
    return figure


def _comparison(chart: Chart, title: str) -> Figure:
    """Ticket solid, random reinit dashed, dense network thin and dotted; colour and marker by experiment."""
    figure, axes = _frame(chart, title, width=8)
    for series in chart.series:
        _draw(axes, series, chart.style(series.keys), "")
    _density_axis(axes, chart)
    legend: dict[str, Line2D] = {}
    for place in sorted({place for place, kind in (one.keys for one in chart.series) if kind == 0}):
        entry = chart.legend[0][place]
        look: dict[str, Any] = {
            "color": entry.style.color or "black",
            "marker": entry.style.marker,
            "markerfacecolor": "white",
        }
        legend[entry.label] = Line2D([], [], **look)
    for kind in sorted({one.keys[1] for one in chart.series}):
        entry = chart.legend[1][kind]
        legend[entry.label] = Line2D([], [], color="0.3", linestyle=entry.style.line)
    columns = max(1, min(3, LEGEND_WIDTH // (HANDLE_WIDTH + max(map(len, legend)))))
    figure.legend(
        list(legend.values()), list(legend), loc="outside lower center", ncols=columns, frameon=False, handlelength=3.5
    )
    return figure


def _layers(chart: Chart, title: str) -> Figure:
    """The density of each layer over the rounds; layers that shrink equally share a curve."""
    groups = _alike(chart)
    legend_columns = math.ceil(len(groups) / 20)
    figure, axes = _frame(chart, title, width=5.2 + 2 * legend_columns)
    for number, (label, series) in enumerate(groups.items()):
        shown = f" {label}" if label.startswith("_") else label  # matplotlib hides labels such as _fc from legends
        _draw(axes, series, layer_style(number, len(groups)), shown, colormap=("viridis", 0, 0.85))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_yscale("log")
    _percent_ticks(axes.yaxis, [value.low for value in _values(groups.values())])
    figure.legend(loc="outside right upper", ncols=legend_columns, fontsize="small", title="layer (weights)")
    return figure


def _alike(chart: Chart) -> dict[str, Series]:
    """The layers' curves by label. Layers within 3 % of each other in every round (a line's width) share one curve."""
    groups: list[tuple[Series, list[str]]] = []
    for series, entry in zip(chart.series, chart.legend[0], strict=True):
        names = next((names for other, names in groups if _close(series, other)), None)
        if names is None:
            groups.append((series, names := []))
        names.append(entry.label)
    return {
        ",\n".join(names) if len(names) < 4 else f"{names[0]} …\n{names[-1]}: {len(names)} layers": series
        for series, names in groups
    }


def _close(one: Series, other: Series) -> bool:
    ours, theirs = ({point.round: point.value.mean for point in series.points} for series in (one, other))
    return ours.keys() == theirs.keys() and all(math.isclose(ours[n], theirs[n], rel_tol=0.03) for n in ours)


def _learning_curves(chart: Chart, title: str) -> Figure | None:
    """The score over the steps of a round: the dense network, tickets at a few densities, their random reinits dashed.

    As in figure 3 of Frankle & Carbin 2019 (arXiv:1803.03635). Means over runs and replicates, at the steps that all
    have. The vertical axis starts at the worse of two scores: the slowest ticket's after a tenth of its steps (all
    rise alike before), and the worst network's at the end.
    """
    entries = chart.legend[0]
    framed: list[Spread] = []
    values: list[Spread] = []
    chosen = [place for place, entry in enumerate(entries) if entry.on and (entry.density or 1) < 1]
    dense = [place for place, entry in enumerate(entries) if entry.density == 1]
    figure, axes = _frame(chart, title, width=7)
    for kind, variant in enumerate(chart.legend[1]):
        for place in [*dense, *chosen] if variant.on else []:
            if not (curve := _over_steps(chart, (place, kind))):
                continue
            style, label = Style("black", ""), entries[place].label if variant.frames else variant.label
            if place in chosen:
                style, label = in_order(chosen.index(place), len(chosen)), f"{variant.label} {entries[place].label}"
            _plot(
                axes, list(curve), list(curve.values()), style._replace(line=variant.style.line),
                f"{label} ({counted(value.n for value in curve.values())})", colormap=("plasma", 0.1, 0.72),
                band=0.12, markevery=max(1, len(curve) // 8), linewidth=1.4,
            )  # fmt: skip
            values += curve.values()
            last = max(curve)
            framed += [v for step, v in curve.items() if step == last or (variant.frames and step >= 0.1 * last)]
    if not values:
        return None
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_ylim(*_padded(chart.y, framed, values))
    figure.legend(loc="outside lower center", ncols=2, frameon=False, handlelength=3.5)
    return figure


def _over_steps(chart: Chart, keys: tuple[int, int]) -> Curve:
    """The chart's measure by step, at the steps at which all networks were evaluated."""
    curves = [network.curve for network in chart.networks if network.keys == keys]
    found = by_round(curves, lambda row: getattr(row, chart.y.key), lambda row: row.step)
    most = max((value.n for value in found.values()), default=0)
    return {step: value for step, value in found.items() if value.n == most}


# ------------------------------------------------------------------------------------- parts


def _frame(chart: Chart, title: str, width: float) -> tuple[Figure, Axes]:
    """An empty figure in our style; its caption in the report says that accuracies are those after training."""
    figure = Figure(figsize=(width, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize="medium", parse_math=False)  # a dollar in a folder's name does not start a formula
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(chart.x.label)
    unit = " (%)" if chart.y.key and chart.y.unit == "percent" else ""
    axes.set_ylabel(chart.y.label.replace(" at the end of training", "") + unit)
    text = {"steps": "{x:,.0f}", "number": "{x:g}"}.get(chart.y.unit, "")
    axes.yaxis.set_major_formatter(StrMethodFormatter(text) if text else _as_percent)
    return figure, axes


def _draw(axes: Axes, series: Series, style: Style, label: str, **looks: Any) -> None:
    """Draw a series: its curve, or its level as a thin line."""
    if series.level:
        color = style.color or "black"
        axes.axhline(series.level.mean, color=color, linestyle=style.line or "-", linewidth=1, label=label)
    else:
        _plot(axes, [point.x for point in series.points], _values([series]), style, label, **looks)


def _plot(
    axes: Axes, x: Sequence[float], values: Sequence[Spread], style: Style, label: str,
    colormap: tuple[str, float, float] = ("viridis", 0, 1), band: float = 0.15, **looks: Any,
) -> None:  # fmt: skip
    """Draw means as a line with markers, and the range from least to greatest as a band."""
    color = style.color or "black"
    if style.ramp is not None:
        name, start, length = colormap
        color = to_hex(colormaps[name](start + length * style.ramp))
    axes.plot(
        x, [value.mean for value in values], color=color, marker=style.marker, linestyle=style.line,
        markersize=5, markerfacecolor="white", label=label, **looks,
    )  # fmt: skip
    if any(value.n > 1 for value in values):
        low, high = [value.low for value in values], [value.high for value in values]
        axes.fill_between(x, low, high, color=color, alpha=band, linewidth=0)


def _values(series: Iterable[Series]) -> list[Spread]:
    return [point.value for one in series for point in one.points]


def _padded(axis: charts.Axis, framed: Iterable[Spread], values: Iterable[Spread]) -> tuple[float, float]:
    """The vertical range: from the worst of `framed` to the best of all `values`."""
    if axis.low:
        lowest, highest = min(value.low for value in values), max(value.high for value in framed)
    else:
        lowest, highest = min(value.low for value in framed), max(value.high for value in values)
    margin = 0.05 * (highest - lowest) or 0.01
    return lowest - margin, highest + margin


def _density_axis(axes: Axes, chart: Chart) -> None:
    """Make the x axis logarithmic in density, decreasing to the right as in the papers."""
    axes.set_xscale("log")
    axes.invert_xaxis()
    _percent_ticks(axes.xaxis, [point.x for series in chart.series for point in series.points])


def _count_axis(axes: Axes, prunable: int) -> None:
    """Add an upper axis with the number of weights, at the ticks of the density axis."""
    above = axes.secondary_xaxis("top")
    above.set_xlabel("number of weights kept", fontsize="small")
    above.xaxis.set_major_locator(FixedLocator(list(axes.get_xticks())))
    above.xaxis.set_minor_locator(NullLocator())
    above.xaxis.set_major_formatter(lambda density, position: weight_count(density * prunable))
    above.tick_params(labelsize="small", color="0.7")
    above.spines["top"].set_color("0.7")


def weight_count(weights: float) -> str:
    """A number of weights as printed at a tick: 1,965; 53.2K; 4.3M."""
    for least, size, unit in ((999_500, 1e6, "M"), (1e4, 1e3, "K")):
        if weights >= least:
            return f"{weights / size:.3g}{unit}"
    return f"{weights:,.0f}"


def _percent_ticks(axis: Axis, shown: Sequence[float]) -> None:
    """Set ticks at 100, 50, 20, 10 … percent; finer ones if fewer than three fall among the densities `shown`."""
    least = min(shown) * 0.95
    for digits in ((1, 2, 5), range(1, 10)):
        ticks = [digit * 10.0**exponent for exponent in range(-6, 1) for digit in digits]
        ticks = [tick for tick in ticks if least <= tick <= 1]
        if len(ticks) >= 3:
            break
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(_as_percent)


def _as_percent(fraction: float, position: float) -> str:
    """A fraction as printed at a tick, in percent."""
    return f"{100 * fraction:g}"
