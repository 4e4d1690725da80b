"""A comparison as a table, for the terminal and in Markdown: a line a round, the groups side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from lth_lightning.report.aggregate import Spread, by_round, densities, of_variant
from lth_lightning.report.conclusion import percent
from lth_lightning.report.paired_table import with_interval, with_margin
from lth_lightning.report.sheet import Cell, Sheet
from lth_lightning.report.statistics import Difference, RunRows, paired_differences

SIDE_BY_SIDE = 5
"""Groups that 80 columns hold; more go into a further table."""


@dataclass(frozen=True)
class Column:
    """A group's rounds: density, accuracy of ticket and random reinit, and their paired difference."""

    label: str
    n: int
    density: dict[int, float]
    ticket: dict[int, Spread]
    reinit: dict[int, Spread]
    gain: dict[int, Difference]

    @classmethod
    def of(cls, label: str, runs: Sequence[RunRows]) -> "Column":
        """The column of a group's runs."""
        rows = [row for run in runs for row in run]
        ticket, reinit = (
            by_round(of_variant(rows, variant), lambda row: row.test_acc) for variant in ("ticket", "random_reinit")
        )
        gain = paired_differences(runs, "ticket", "random_reinit")
        return cls(label, len(runs), densities(rows), ticket, reinit, gain)


def comparison_tables(groups: Mapping[str, Sequence[RunRows]], title: str = "") -> list[Table]:
    """The groups side by side for a terminal of 80 columns, five a table.

    In a cell: test accuracy of the ticket and of its random reinit, below them their paired difference with half its
    95 % interval, and the density where groups differ in it.

    Args:
        groups: the rows of each group's runs, by its label.
        title: above the first table.
    """
    columns = [Column.of(label, runs) for label, runs in groups.items()]
    parts = [columns[place : place + SIDE_BY_SIDE] for place in range(0, len(columns), SIDE_BY_SIDE)]
    shared = _shared_densities(columns)
    tables = []
    for place, part in enumerate(parts):
        result = Table(
            title=Text(title, style="bold") if title and place == 0 else None,
            caption=_LEGEND if place == len(parts) - 1 else None,
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        result.add_column("round", justify="right", no_wrap=True)
        result.add_column("density\n%", justify="right", no_wrap=True)
        for column in part:
            result.add_column(Text(f"{column.label}\nn = {column.n}"), justify="right", min_width=11)
        for number in _rounds(columns):
            cells = [_cell(column, number, number in shared) for column in part]
            result.add_row(str(number), shared.get(number, ""), *cells)
        tables.append(result)
    return tables


_LEGEND = (
    "\ntest accuracy %: ticket, random reinit\nbelow: their difference, paired by run\n±: 95 % interval, where n > 1"
)


def comparison_sheet(groups: Mapping[str, Sequence[RunRows]]) -> Sheet:
    """The same for report.md and report.html, a column a figure, with the ends of every interval and every n."""
    columns = [Column.of(label, runs) for label, runs in groups.items()]
    shared, rounds = _shared_densities(columns), _rounds(columns)
    own = ["density %"] if len(shared) < len(rounds) else []
    headers = ["round", *([] if own else ["density %"])]
    for column in columns:
        names = (*own, "ticket %", "random reinit %", "difference, points")
        headers += [f"{column.label}: {name}" for name in names]
    lines = []
    for number in rounds:
        line = [str(number), *([] if own else [shared[number]])]
        for column in columns:
            line += [_density(column, number)] if own else []
            line += [_accuracy(column.ticket, number), _accuracy(column.reinit, number)]
            line += [with_interval(column.gain[number]) if number in column.gain else ""]
        lines.append(list(map(Cell, line)))
    return Sheet(headers, lines)


def _rounds(columns: Sequence[Column]) -> list[int]:
    return sorted({number for column in columns for number in column.density})


def _shared_densities(columns: Sequence[Column]) -> dict[int, str]:
    """The rounds' densities in percent, but for the rounds in which those of the groups do not print the same."""
    printed = {number: {_density(column, number) for column in columns} - {""} for number in _rounds(columns)}
    return {number: texts.pop() for number, texts in printed.items() if len(texts) == 1}


def _cell(column: Column, number: int, shared: bool) -> Text:
    accuracies = " ".join(filter(None, [_accuracy(column.ticket, number), _accuracy(column.reinit, number)]))
    text = Text(accuracies)
    if number in column.gain:
        text.append(f"\n{with_margin(column.gain[number])}", style="dim")
    if not shared and number in column.density:
        text.append(f"\nat {_density(column, number)} %", style="dim")
    return text


def _accuracy(curve: Mapping[int, Spread], number: int) -> str:
    return percent(curve[number].mean) if number in curve else ""


def _density(column: Column, number: int) -> str:
    return f"{100 * column.density[number]:.2f}" if number in column.density else ""
