"""The papers' figures, drawn from rows; readable in black and white and by the colour-blind.

Nothing but this module and those of single figures (`curve_figure.py`, `comparison_figure.py`, `pictures.py`) imports
matplotlib, so that whoever draws nothing does not wait for it.
"""

import io
import math
from collections.abc import Sequence

from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, StrMethodFormatter

from lth_lightning.report.aggregate import Spread, by_round, curves, dense_rows, densities, of_variant, spread
from lth_lightning.report.conclusion import counted, short_names
from lth_lightning.report.styles import MARKERS, STYLES, Style
from lth_lightning.runs.rows import LayerRow, Row

Curve = dict[int, Spread]
"""What was measured, by round."""


def accuracy_figure(rows: Sequence[Row], title: str) -> Figure | None:
    """Test accuracy at the end of training over density, per variant; the dense network is a line.

    The frame is that of the trained networks: `pruned_only`, which soon falls to chance, may leave it.

    Returns:
        The figure, or None where no test accuracy is known.
    """
    found = curves(rows, lambda row: row.test_acc)
    if not found:
        return None
    figure, axes = _over_density(rows, found, spread(row.test_acc for row in dense_rows(rows)), title)
    axes.set_ylabel("test accuracy (%)")
    axes.yaxis.set_major_formatter(as_percent)
    framed = {variant: curve for variant, curve in found.items() if variant != "pruned_only"} or found
    lowest = min(value.low for curve in framed.values() for value in curve.values())
    highest = max(value.high for curve in found.values() for value in curve.values())
    margin = 0.05 * (highest - lowest) or 0.01
    axes.set_ylim(lowest - margin, highest + margin)
    return figure


def early_stop_figure(rows: Sequence[Row], title: str) -> Figure | None:
    """The step of the lowest validation loss over density, per variant: how soon each has learned.

    Returns:
        The figure, or None where no such step is known.
    """
    found = curves(rows, lambda row: row.early_stop_step)
    if not found:
        return None
    figure, axes = _over_density(rows, found, spread(row.early_stop_step for row in dense_rows(rows)), title)
    axes.set_ylabel("early stop (step of lowest validation loss)")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.set_ylim(bottom=0)
    return figure


def layers_figure(layers: Sequence[LayerRow], title: str) -> Figure | None:
    """The density of each prunable layer of the tickets over the rounds; layers that shrink alike share a curve.

    Returns:
        The figure, or None where there is no ticket.
    """
    tickets = of_variant(layers, "ticket")
    if not tickets:
        return None
    groups = _alike(tickets)
    legend_columns = math.ceil(len(groups) / 20)
    figure, axes = frame(title, width=5.2 + 2 * legend_columns)
    for number, (label, curve) in enumerate(groups.items()):
        shown = f" {label}" if label.startswith("_") else label  # matplotlib leaves names like _fc out of legends
        draw(axes, list(curve), list(curve.values()), _layer_style(number, len(groups)), shown)
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylabel("weights kept in the layer (%, log scale)")
    axes.set_yscale("log")
    percent_ticks(axes.yaxis, [value.low for curve in groups.values() for value in curve.values()])
    figure.legend(loc="outside right upper", ncols=legend_columns, fontsize="small", title="layer (weights)")
    return figure


def image_bytes(figure: Figure, kind: str) -> bytes:
    """The figure as the content of a file of this kind, "png" or "svg"; the same rows give the same bytes."""
    out = io.BytesIO()
    with rc_context({"svg.hashsalt": "lth_lightning"}):
        figure.savefig(out, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    figure.set_layout_engine("none")  # it stands now; to lay it out again for the next kind takes as long as to draw it
    return out.getvalue()


def frame(title: str, width: float) -> tuple[Figure, Axes]:
    """An empty figure in the house's look."""
    figure = Figure(figsize=(width, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize="medium", parse_math=False)  # a dollar in a folder's name begins no formula
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _over_density(
    rows: Sequence[Row], found: dict[str, Curve], dense: Spread | None, title: str
) -> tuple[Figure, Axes]:
    """A curve a variant over a density axis that falls to the right, and the dense network's mean as a line."""
    figure, axes = frame(title, width=7)
    density = densities(rows)
    for variant, curve in found.items():
        label = f"{variant.replace('_', ' ')} ({counted(value.n for value in curve.values())})"
        draw(axes, [density[number] for number in curve], list(curve.values()), STYLES[variant], label)
    if dense:
        axes.axhline(dense.mean, color="black", linestyle="--", linewidth=1, label=f"dense network (n = {dense.n})")
    density_axis(axes, list(density.values()))
    _count_axis(axes, rows[0].prunable)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure, axes


def draw(axes: Axes, x: Sequence[float], values: Sequence[Spread], style: Style, label: str) -> None:
    """Means as a line with markers, and from least to greatest as a band."""
    means = [value.mean for value in values]
    axes.plot(
        x, means, color=style.color, marker=style.marker, linestyle=style.line,
        markersize=5, markerfacecolor="white", label=label,
    )  # fmt: skip
    if any(value.n > 1 for value in values):
        low, high = [value.low for value in values], [value.high for value in values]
        axes.fill_between(x, low, high, color=style.color, alpha=0.15, linewidth=0)


def _alike(tickets: Sequence[LayerRow]) -> dict[str, Curve]:
    """The layers' curves by label. Layers within 3 % of each other in every round, a line's width, are one curve."""
    sizes = {row.layer: row.size for row in tickets}
    groups: list[tuple[Curve, list[str]]] = []
    for layer, short in zip(sizes, short_names(list(sizes)), strict=True):
        # a layer pruned to nothing has no place on a log axis: its curve ends
        curve = by_round([row for row in tickets if row.layer == layer], lambda row: row.density or None)
        group = next((names for other, names in groups if _close(curve, other)), None)
        if group is None:
            groups.append((curve, group := []))
        group.append(f"{short} ({sizes[layer]:,})")
    return {
        ",\n".join(names) if len(names) < 4 else f"{names[0]} …\n{names[-1]}: {len(names)} layers": curve
        for curve, names in groups
    }


def _close(one: Curve, other: Curve) -> bool:
    return one.keys() == other.keys() and all(math.isclose(one[n].mean, other[n].mean, rel_tol=0.03) for n in one)


def _layer_style(number: int, of: int) -> Style:
    """From dark (the first layer) to light, so that the order of many layers shows without colour too."""
    lines = [style.line for style in STYLES.values()]
    color = to_hex(colormaps["viridis"](0.85 * number / max(1, of - 1)))
    return Style(color, MARKERS[number % len(MARKERS)], lines[number % len(lines)])


def density_axis(axes: Axes, shown: Sequence[float]) -> None:
    """A logarithmic density axis that falls to the right, like the papers', around the densities `shown`."""
    axes.set_xlabel("weights kept (%, log scale)")
    axes.set_xscale("log")
    axes.invert_xaxis()
    percent_ticks(axes.xaxis, shown)


def _count_axis(axes: Axes, prunable: int) -> None:
    """Above the density axis, how many weights that is; the ticks are the same."""
    above = axes.secondary_xaxis("top")
    above.set_xlabel("number of weights kept", fontsize="small")
    above.xaxis.set_major_locator(FixedLocator(list(axes.get_xticks())))
    above.xaxis.set_minor_locator(NullLocator())
    above.xaxis.set_major_formatter(lambda density, position: weight_count(density * prunable))
    above.tick_params(labelsize="small", color="0.7")
    above.spines["top"].set_color("0.7")


def weight_count(weights: float) -> str:
    """A number of weights as a tick prints it: 1,965; 53.2K; 4.3M."""
    for least, size, unit in ((999_500, 1e6, "M"), (1e4, 1e3, "K")):
        if weights >= least:
            return f"{weights / size:.3g}{unit}"
    return f"{weights:,.0f}"


def percent_ticks(axis: Axis, shown: Sequence[float]) -> None:
    """Ticks at 100, 50, 20, 10 … percent, finer where fewer than three of them fall among the densities `shown`."""
    least = min(shown) * 0.95
    for digits in ((1, 2, 5), range(1, 10)):
        ticks = [digit * 10.0**exponent for exponent in range(-6, 1) for digit in digits]
        ticks = [tick for tick in ticks if least <= tick <= 1]
        if len(ticks) >= 3:
            break
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(as_percent)


def as_percent(fraction: float, position: float) -> str:
    """A fraction as a tick in percent."""
    return f"{100 * fraction:g}"
