"""Test accuracy over density, a colour an experiment: what a comparison shows."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lth_lightning.report.aggregate import by_round, dense_rows, densities, of_variant, spread
from lth_lightning.report.conclusion import counted, named
from lth_lightning.report.figures import as_percent, density_axis, draw, frame
from lth_lightning.report.styles import COLORS, MARKERS, STYLES, Style
from lth_lightning.runs.rows import Row

LINES: dict[str, Any] = {name: STYLES[name].line for name in ("ticket", "random_reinit")} | {"dense network": ":"}
LEGEND_WIDTH, HANDLE_WIDTH = 115, 9  # in letters


def comparison_figure(groups: Mapping[str, Sequence[Row]], title: str) -> Figure | None:
    """Ticket solid, random reinit dashed, the dense network a thin dotted line: a colour and a marker a group.

    Args:
        groups: the rows of each group's runs, by its label.
        title: above the figure.

    Returns:
        The figure, or None where no test accuracy is known.
    """
    figure, axes = frame(title, width=8)
    legend, shown, seen = [], [], set()
    for number, (label, rows) in enumerate(groups.items()):
        color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
        density = densities(rows)
        for variant in ("ticket", "random_reinit"):
            curve = by_round(of_variant(rows, variant), lambda row: row.test_acc)
            if curve:
                x = [density[place] for place in curve]
                style = Style(color, marker, STYLES[variant].line)
                draw(axes, x, list(curve.values()), style, f"{label}, {variant}")
                shown += x
                seen.add(variant)
                if variant == "ticket":
                    handle = Line2D([], [], color=color, marker=marker, markerfacecolor="white")
                    legend.append((handle, f"{label} ({counted(value.n for value in curve.values())})"))
        if dense := spread(row.test_acc for row in dense_rows(rows)):
            axes.axhline(dense.mean, color=color, linestyle=":", linewidth=1)
            seen.add("dense network")
    if not shown:
        return None
    legend += [(Line2D([], [], color="0.3", linestyle=LINES[kind]), named(kind)) for kind in LINES if kind in seen]
    axes.set_ylabel("test accuracy (%)")
    axes.yaxis.set_major_formatter(as_percent)
    density_axis(axes, shown)
    handles, labels = zip(*legend, strict=True)
    columns = max(1, min(3, LEGEND_WIDTH // (HANDLE_WIDTH + max(map(len, labels)))))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, handlelength=3.5)
    return figure
