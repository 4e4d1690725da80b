"""Learning curves at chosen densities, as in figure 3 of Frankle & Carbin 2019 (arXiv:1803.03635)."""

from collections.abc import Iterable, Mapping, Sequence

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from lth_lightning.report.aggregate import Spread, densities, of_variant, spread
from lth_lightning.report.conclusion import counted, named, weights
from lth_lightning.report.figures import Curve, as_percent, frame
from lth_lightning.report.learning_curves import chosen_rounds
from lth_lightning.report.styles import MARKERS, STYLES, Style
from lth_lightning.runs.rows import CurveRow, Row


def curves_figure(
    curves: Sequence[CurveRow], rows: Sequence[Row], title: str, wanted: Sequence[float] | None = None
) -> Figure | None:
    """Accuracy over the steps of a round: the dense network, tickets at a few densities, their random reinits dashed.

    Test accuracy, or validation accuracy where no test data were evaluated. Means over runs and replicates, at the
    steps that all have; the band goes from least to greatest.

    Args:
        curves: those of all runs.
        rows: those of all runs, which know the rounds' densities.
        title: above the figure.
        wanted: densities, as fractions, for each of which the nearest round is shown; by default `TICKETS` spread
            over those there are.

    Returns:
        The figure, or None where there are no learning curves.

    Raises:
        SettingError: no round is near a density that is wanted.
    """
    tested = any(row.test_acc is not None for row in curves)
    points = [row for row in curves if (row.test_acc if tested else row.val_acc) is not None]
    density = {number: value for number, value in densities(rows).items() if value < 1}
    chosen = chosen_rounds(points, density, wanted)
    if not points:
        return None
    by_step = {
        (number, variant): found
        for variant in ("ticket", "random_reinit")
        for number in [*(n for n, value in densities(rows).items() if value == 1), *chosen]
        if (found := _over_steps((row for row in of_variant(points, variant) if row.round == number), tested))
    }
    figure, axes = frame(title, width=7)
    for (number, variant), curve in by_step.items():
        place = chosen.index(number) if number in chosen else None
        _draw_curve(axes, curve, _style(place, len(chosen), variant), _label(density.get(number), variant, curve))
    axes.set_xlabel("training step of the round")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_ylabel(f"{'test' if tested else 'validation'} accuracy (%)")
    axes.yaxis.set_major_formatter(as_percent)
    axes.set_ylim(*_shown_range(by_step))
    figure.legend(loc="outside lower center", ncols=2, frameon=False, handlelength=3.5)
    return figure


def _over_steps(points: Iterable[CurveRow], tested: bool) -> Curve:
    """Accuracy by step, at the steps that all networks were evaluated at."""
    pooled: dict[int, list[float | None]] = {}
    for row in points:
        pooled.setdefault(row.step, []).append(row.test_acc if tested else row.val_acc)
    found = {step: value for step, values in sorted(pooled.items()) if (value := spread(values))}
    most = max((value.n for value in found.values()), default=0)
    return {step: value for step, value in found.items() if value.n == most}


def _style(place: int | None, of: int, variant: str) -> Style:
    """The dense network black; tickets from dark to light with a marker each, their reinits the same but dashed."""
    if place is None:
        return Style("black", "", STYLES[variant].line)
    color = to_hex(colormaps["plasma"](0.1 + 0.72 * place / max(1, of - 1)))
    return Style(color, MARKERS[place % len(MARKERS)], STYLES[variant].line)


def _draw_curve(axes: Axes, curve: Curve, style: Style, label: str) -> None:
    steps, values = list(curve), list(curve.values())
    axes.plot(
        steps, [value.mean for value in values], color=style.color, linestyle=style.line, marker=style.marker,
        markevery=max(1, len(steps) // 8), markersize=5, markerfacecolor="white", linewidth=1.4, label=label,
    )  # fmt: skip
    if any(value.n > 1 for value in values):
        low, high = [value.low for value in values], [value.high for value in values]
        axes.fill_between(steps, low, high, color=style.color, alpha=0.12, linewidth=0)


def _label(density: float | None, variant: str, curve: Curve) -> str:
    what = "dense network" if density is None and variant == "ticket" else named(variant)
    return f"{what}{f' {weights(density)}' if density else ''} ({counted(value.n for value in curve.values())})"


def _shown_range(curves: Mapping[tuple[int, str], Curve]) -> tuple[float, float]:
    """Down to where the slowest ticket is after a tenth of its steps, below which all rise alike, and to where the
    worst network ends."""
    early = [value.low for (_, variant), curve in curves.items() if variant == "ticket" for value in _after(curve, 0.1)]
    lowest = min(early + [list(curve.values())[-1].low for curve in curves.values()])
    highest = max(value.high for curve in curves.values() for value in curve.values())
    margin = 0.05 * (highest - lowest) or 0.01
    return lowest - margin, highest + margin


def _after(curve: Curve, share: float) -> list[Spread]:
    return [value for step, value in curve.items() if step >= share * max(curve)]
