"""A report's charts as PNG and SVG, drawn with matplotlib; readable in black and white and by the colour-blind.

Only this module and `pictures` import matplotlib, so that nothing else waits for it.
"""

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, NullLocator, StrMethodFormatter

from lth_lightning.report.aggregate import Curve, Spread, by_round
from lth_lightning.report.charts import BAND, BARS, Chart, Series, Style, frame, in_order, layer_style, panels_of
from lth_lightning.report.wording import counted

LEGEND_WIDTH, HANDLE_WIDTH = 115, 9  # in characters
CARD = (3.02, 2.15)
"""Inches at 100 dpi: an image in the smallest card of TensorBoard's time series, whose scaling skips pixels."""
CARD_LOOK: Any = {
    **{"font.size": 7, "lines.linewidth": 1, "lines.markersize": 3, "axes.linewidth": 0.6, "figure.dpi": 100},
    **{"legend.labelspacing": 0.2, "legend.columnspacing": 0.9, "legend.handletextpad": 0.4, "legend.borderpad": 0},
    **{"figure.constrained_layout.h_pad": 0.02, "figure.constrained_layout.w_pad": 0.02, "axes.titlepad": 3},
}
PRINT_LOOK: Any = {"font.size": 10, "lines.linewidth": 1.5, "lines.markersize": 5, "figure.dpi": 150}
FILES: dict[str, dict[str, Any]] = {
    "png": {},
    "svg": {"metadata": {"Date": None}},
    "pdf": {"metadata": {"CreationDate": None}},
}
"""The kinds of files, and what `savefig` needs so that they hold no time."""
EM = 0.62
"""The width of a digit, in heights of the font."""


@dataclass(frozen=True)
class Look:
    """How a figure is drawn: its title, the range from least to greatest as a band or as bars, and for which size."""

    title: str = ""
    errors: str = BAND
    card: bool = False

    @property
    def text(self) -> float:
        """The height of its letters, in points."""
        return float((CARD_LOOK if self.card else PRINT_LOOK)["font.size"])


def figure_of(name: str, chart: Chart, title: str = "", *, errors: str = BAND, card: bool = False) -> Figure | None:
    """Draw a chart.

    Args:
        name: the chart's name, as in `charts_of`; or `comparison`, for a `comparison_chart`.
        chart: the chart.
        title: the title; without one there is none.
        errors: whether the range from the least to the greatest of several networks is a `band` or `bars`.
        card: whether to draw it for a card of 302 × 215 pixels, without a title, in place of a page.

    Returns:
        The figure, or None if the chart has nothing to show.
    """
    draw = {"curves": _learning_curves, "layers": _layers, "comparison": _comparison}
    with rc_context(CARD_LOOK if card else PRINT_LOOK):
        return draw.get(name, _over_density)(chart, Look("" if card else title, errors, card))


def image_bytes(figure: Figure, kind: str) -> bytes:
    """The content of the figure's file, of one of the kinds of `FILES`; the same rows give the same bytes."""
    out = io.BytesIO()
    with rc_context({"svg.hashsalt": "lth_lightning", "pdf.fonttype": 42}):  # publishers refuse type 3
        figure.savefig(out, format=kind, dpi="figure", **FILES[kind])
    figure.set_layout_engine("none")  # done once; a second layout would take as long as drawing
    return out.getvalue()


# ------------------------------------------------------------------------------------- charts


def _over_density(chart: Chart, look: Look) -> Figure:
    """Test accuracy, or early stop, over density, with the number of weights on the upper axis."""
    figure, (axes,) = _frame(chart, look, width=7)
    for series, entry in zip(chart.series, chart.legend[0], strict=True):
        label = _name(entry.label) if look.card else entry.label
        _draw(axes, series, chart.style(series.keys), label, look)
    _density_axis(axes, chart, look, chart.prunable)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    if chart.y.zero:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], nbins=5 if look.card else "auto"))
        axes.set_ylim(bottom=0)
    else:
        axes.set_ylim(*_with_margin(*frame(chart.y, chart.series)))
    return figure


def _comparison(chart: Chart, look: Look) -> Figure:
    """Ticket solid, random reinit dashed, dense network thin and dotted; colour and marker by experiment.

    Experiments whose scores do not overlap have axes of their own, side by side: on one axis each would be flat.
    """
    panels = panels_of(chart)
    figure, all_axes = _frame(chart, look, width=max(8, 4.5 * len(panels)), panels=len(panels))
    for axes, panel in zip(all_axes, panels, strict=True):
        for series in panel.series:
            _draw(axes, series, panel.style(series.keys), "", look)
        _density_axis(axes, panel, look, panels=len(panels))
    legend: dict[str, Line2D] = {}
    for place in sorted({place for place, kind in (one.keys for one in chart.series) if kind == 0}):
        entry = chart.legend[0][place]
        looks: dict[str, Any] = {
            "color": entry.style.color or "black",
            "marker": entry.style.marker,
            "markerfacecolor": "white",
        }
        legend[entry.label] = Line2D([], [], **looks)
    for kind in sorted({one.keys[1] for one in chart.series}):
        entry = chart.legend[1][kind]
        legend[entry.label] = Line2D([], [], color="0.3", linestyle=entry.style.line)
    columns = max(1, min(3, LEGEND_WIDTH // (HANDLE_WIDTH + max(map(len, legend)))))
    figure.legend(
        list(legend.values()), list(legend), loc="outside lower center", ncols=columns, frameon=False, handlelength=3.5
    )
    return figure


def _layers(chart: Chart, look: Look) -> Figure:
    """The density of each layer over the rounds; layers that shrink equally share a curve."""
    groups = _alike(chart)
    legend_columns = math.ceil(len(groups) / 20)
    figure, (axes,) = _frame(chart, look, width=5.2 + 2 * legend_columns)
    for number, (names, series) in enumerate(groups):
        style = layer_style(number, len(groups))
        _draw(axes, series, style, _layers_label(names, look), look, colormap=("viridis", 0, 0.85))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_yscale("log")
    _percent_ticks(axes.yaxis, [point.value.low for _, series in groups for point in series.points])
    handles, labels = axes.get_legend_handles_labels()
    if look.card:
        few = range(len(groups)) if len(groups) <= 6 else (0, -1)  # the colours between them are in order
        shown = [handles[place] for place in few], [labels[place] for place in few]
        figure.legend(*shown, loc="outside lower center", ncols=3 if len(groups) > 3 else 2, frameon=False)
    else:
        figure.legend(loc="outside right upper", ncols=legend_columns, fontsize="small", title="layer (weights)")
    return figure


def _layers_label(names: Sequence[str], look: Look) -> str:
    if look.card:
        label = _name(names[0]) if len(names) == 1 else f"{_name(names[0])} … {_name(names[-1])}"
    else:
        label = ",\n".join(names) if len(names) < 4 else f"{names[0]} …\n{names[-1]}: {len(names)} layers"
    return f" {label}" if label.startswith("_") else label  # matplotlib hides labels such as _fc from legends


def _alike(chart: Chart) -> list[tuple[list[str], Series]]:
    """The layers' labels by curve. Layers within 3 % of each other in every round (a line's width) share one curve."""
    groups: list[tuple[list[str], Series]] = []
    for series, entry in zip(chart.series, chart.legend[0], strict=True):
        names = next((names for names, other in groups if _close(series, other)), None)
        if names is None:
            groups.append((names := [], series))
        names.append(entry.label)
    return groups


def _close(one: Series, other: Series) -> bool:
    ours, theirs = ({point.round: point.value.mean for point in series.points} for series in (one, other))
    return ours.keys() == theirs.keys() and all(math.isclose(ours[n], theirs[n], rel_tol=0.03) for n in ours)


def _learning_curves(chart: Chart, look: Look) -> Figure | None:
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
    figure, (axes,) = _frame(chart, look, width=7)
    for kind, variant in enumerate(chart.legend[1]):
        for place in [*dense, *chosen] if variant.on else []:
            if not (curve := _over_steps(chart, (place, kind))):
                continue
            style, label = Style("black", ""), entries[place].label if variant.frames else variant.label
            if place in chosen:
                style, label = in_order(chosen.index(place), len(chosen)), f"{variant.label} {entries[place].label}"
            _plot(
                axes, list(curve), list(curve.values()), style._replace(line=variant.style.line),
                f"{label} ({counted(value.n for value in curve.values())})", look, colormap=("plasma", 0.1, 0.72),
                band=0.12, every=max(1, len(curve) // 8), linewidth=0.9 if look.card else 1.4,
            )  # fmt: skip
            values += curve.values()
            last = max(curve)
            framed += [v for step, v in curve.items() if step == last or (variant.frames and step >= 0.1 * last)]
    if not values:
        return None
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    if chart.y.low:
        lowest, highest = min(value.low for value in values), max(value.high for value in framed)
    else:
        lowest, highest = min(value.low for value in framed), max(value.high for value in values)
    axes.set_ylim(*_with_margin(lowest, highest))
    if look.card:
        axes.xaxis.set_major_locator(MaxNLocator(5))
        _short_legend(figure, axes, chart)
    else:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, handlelength=3.5)
    return figure


def _short_legend(figure: Figure, axes: Axes, chart: Chart) -> None:
    """The tickets of a figure of learning curves; of the other kinds of networks, only the line."""
    kinds = {variant.label: variant.style.line for variant in chart.legend[1] if variant.on and not variant.frames}
    handles, labels = axes.get_legend_handles_labels()
    shown = {
        _name(label).removeprefix("ticket "): handle
        for handle, label in zip(handles, labels, strict=True)
        if not any(label.startswith(kind) for kind in kinds)
    }
    for kind, line in kinds.items():
        if any(label.startswith(kind) for label in labels):
            shown[kind] = Line2D([], [], color="0.3", linestyle=line)
    figure.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=3, frameon=False)


def _over_steps(chart: Chart, keys: tuple[int, int]) -> Curve:
    """The chart's measure by step, at the steps at which all networks were evaluated."""
    curves = [network.curve for network in chart.networks if network.keys == keys]
    found = by_round(curves, lambda row: getattr(row, chart.y.key), lambda row: row.step)
    most = max((value.n for value in found.values()), default=0)
    return {step: value for step, value in found.items() if value.n == most}


# ------------------------------------------------------------------------------------- parts


def _frame(chart: Chart, look: Look, width: float, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """An empty figure in our style; its caption in the report says that accuracies are those after training."""
    figure = Figure(figsize=CARD if look.card else (width, 4.6), layout="constrained")
    unit = " (%)" if chart.y.key and chart.y.unit == "percent" else ""
    label = chart.y.label.replace(" at the end of training", "") + unit
    text = {"steps": "{x:,.0f}", "number": "{x:g}"}.get(chart.y.unit, "")
    all_axes: list[Axes] = list(figure.subplots(1, panels, squeeze=False)[0])
    if look.title:
        write = figure.suptitle if panels > 1 else all_axes[0].set_title
        write(look.title, fontsize="medium", parse_math=False)  # a dollar in a folder's name does not start a formula
    all_axes[0].set_ylabel("" if look.card else label)
    for axes in all_axes:
        axes.grid(color="0.9", linewidth=0.8 * look.text / 10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.set_major_formatter(StrMethodFormatter(text) if text else _as_percent)
        axes.set_xlabel(chart.x.label)
        if look.card:
            axes.tick_params(labelsize=look.text, length=2, width=0.6, pad=2)
            axes.xaxis.labelpad = 1
            short = f"{_name(label)} (%)" if "(%" in label else _name(label)
            axes.set_title(short, loc="left", fontsize=look.text)  # beside the axis it would not fit
            axes.yaxis.set_major_locator(MaxNLocator(5))
    return figure, all_axes


def _name(label: str) -> str:
    """A label without what stands in brackets behind it."""
    return label.partition(" (")[0]


def _draw(axes: Axes, series: Series, style: Style, label: str, look: Look, **looks: Any) -> None:
    """Draw a series: its curve, or its level as a thin line."""
    if series.level:
        color, width = style.color or "black", look.text / 10
        axes.axhline(series.level.mean, color=color, linestyle=style.line or "-", linewidth=width, label=label)
    else:
        values = [point.value for point in series.points]
        _plot(axes, [point.x for point in series.points], values, style, label, look, **looks)


def _plot(
    axes: Axes, x: Sequence[float], values: Sequence[Spread], style: Style, label: str, look: Look,
    colormap: tuple[str, float, float] = ("viridis", 0, 1), band: float = 0.15, every: int = 1, **looks: Any,
) -> None:  # fmt: skip
    """Draw means as a line with `every` so many points a marker, and the range from least to greatest."""
    color = style.color or "black"
    if style.ramp is not None:
        name, start, length = colormap
        color = to_hex(colormaps[name](start + length * style.ramp))
    axes.plot(
        x, [value.mean for value in values], color=color, marker=style.marker, linestyle=style.line,
        markerfacecolor="white", label=label, markevery=every, **looks,
    )  # fmt: skip
    if not any(value.n > 1 for value in values):
        return
    if look.errors == BARS:
        lengths = [[max(0.0, v.mean - v.low) for v in values], [max(0.0, v.high - v.mean) for v in values]]
        means, width = [value.mean for value in values], 0.1 * look.text
        axes.errorbar(x, means, lengths, fmt="none", ecolor=color, elinewidth=width, capsize=3, errorevery=every)
    else:
        low, high = [value.low for value in values], [value.high for value in values]
        axes.fill_between(x, low, high, color=color, alpha=band, linewidth=0)


def _with_margin(low: float, high: float) -> tuple[float, float]:
    margin = 0.05 * (high - low) or 0.01
    return low - margin, high + margin


# ------------------------------------------------------------------------------------- the axis of densities


def _density_axis(axes: Axes, chart: Chart, look: Look, prunable: int = 0, panels: int = 1) -> None:
    """Make the x axis logarithmic in density, decreasing to the right as in the papers.

    Ticks stand at the densities that were trained; labels at as many of them as there is room for. If `prunable` is
    given, the number of weights stands above them.
    """
    axes.set_xscale("log")
    axes.invert_xaxis()
    trained = sorted({point.x for series in chart.series for point in series.points}, reverse=True)
    prunable = 0 if look.card else prunable
    texts = [_density_text(density) for density in trained]
    widest = [max(len(text), len(weight_count(density * prunable)) if prunable else 0) for density, text in
              zip(trained, texts, strict=True)]  # fmt: skip
    width = axes.figure.get_figwidth() * 72 / panels - 6 * look.text  # type: ignore[union-attr]
    labelled = apart(trained, [(characters + 1) * EM * look.text for characters in widest], width)
    axes.xaxis.set_major_locator(FixedLocator(labelled))
    axes.xaxis.set_minor_locator(FixedLocator([density for density in trained if density not in labelled]))
    axes.xaxis.set_major_formatter(lambda density, position: _density_text(density))
    axes.xaxis.set_minor_formatter(NullFormatter())
    if prunable:
        _count_axis(axes, prunable, labelled)


def apart(densities: Sequence[float], widths: Sequence[float], room: float) -> list[float]:
    """Choose densities whose labels do not overlap on a logarithmic axis: the first, and each that has room.

    Args:
        densities: falling, in (0, 1].
        widths: of the labels, with the gap to the next one.
        room: the width of the axis, in the same unit.
    """
    span = math.log(densities[0] / densities[-1]) if len(densities) > 1 else 1.0
    scale = room / 1.1 / (span or 1.0)  # matplotlib leaves a twentieth free at either end
    chosen: list[float] = []
    end = -math.inf
    for density, width in zip(densities, widths, strict=True):
        middle = math.log(densities[0] / density) * scale
        if middle - width / 2 >= end:
            chosen.append(density)
            end = middle + width / 2
    return chosen


def _count_axis(axes: Axes, prunable: int, labelled: Sequence[float]) -> None:
    """Add an upper axis with the number of weights, at the ticks of the density axis that have a label."""
    above = axes.secondary_xaxis("top")
    above.set_xlabel("number of weights kept", fontsize="small")
    above.xaxis.set_major_locator(FixedLocator(list(labelled)))
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


def _density_text(density: float) -> str:
    """A density as printed at a tick, in percent: 51.3."""
    return f"{100 * density:.3g}"


def _percent_ticks(axis: Axis, shown: Iterable[float]) -> None:
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
