"""The results as a table, for the terminal and in Markdown: a line a round, the ticket beside its controls."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from lth_lightning.report.aggregate import Spread, curves
from lth_lightning.report.conclusion import percent
from lth_lightning.report.sheet import Cell, Sheet
from lth_lightning.runs.rows import Row, in_order

ACCURACIES = (
    "Test accuracies are those at the end of training, the best of each round in bold. Where several networks were "
    "pooled, the range from least to greatest stands in brackets."
)


@dataclass(frozen=True)
class Column:
    """A column of the results table: what it measures, of which variant, and a cell a round."""

    measure: str
    variant: str
    cells: list[Cell]


def table(rows: Sequence[Row], title: str = "") -> Table:
    """The results for a terminal of 80 columns: a line a round, the ticket beside its controls.

    Accuracies are those on the test data at the end of training. Where several networks were pooled their range
    stands below the mean, and to make room the kept weights and the range of the early-stop step are left to
    report.md.
    """
    columns = _columns(rows)
    ranges = any(cell.range for column in columns for cell in column.cells)
    columns = [column for column in columns if not (ranges and column.measure == _KEPT)]
    variants = {column.variant for column in columns}
    result = Table(
        title=Text(title, style="bold") if title else None,
        caption="\n".join(["", *(text for name, text in _LEGEND.items() if name in variants)]),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 0 if ranges else 1, 0, 0),
    )
    headers = [_terminal_header(column) for column in columns]
    for header in headers:
        lines = header + [""] * (max(map(len, headers)) - len(header))
        result.add_column("\n".join(lines), justify="right", no_wrap=True)
    for cells in zip(*(column.cells for column in columns), strict=True):
        result.add_row(*(_terminal_cell(cell, column) for cell, column in zip(cells, columns, strict=True)))
    return result


_KEPT, _ACCURACY, _STOP = "weights kept", "test accuracy %", "early-stop step"

_LEGEND = {
    "ticket": "acc.: test accuracy after training, the best of a round in bold\n"
    "stop: early stop, the step of the lowest validation loss",
    "random_reinit": "random reinit: the ticket's mask, fresh weights",
    "random_mask": "random mask: the ticket's weights, another mask",
    "pruned_only": "pruned only: not trained after pruning",
}


def _columns(rows: Sequence[Row]) -> list[Column]:
    """The columns that have a value."""
    rounds = {row.round: row for row in in_order(rows)}
    columns = [
        Column("round", "", [Cell(str(number)) for number in rounds]),
        Column("density %", "", [Cell(f"{100 * row.density:.2f}") for row in rounds.values()]),
        Column(_KEPT, "", [Cell(f"{row.kept:,}") for row in rounds.values()]),
    ]
    accuracy = curves(rows, lambda row: row.test_acc)
    best = {number: _best(number, list(accuracy.values())) for number in rounds}
    for variant, curve in accuracy.items():
        cells = [_cell(curve.get(number), percent, best[number]) for number in rounds]
        columns.append(Column(_ACCURACY, variant, cells))
    for variant, curve in curves(rows, lambda row: row.early_stop_step).items():
        columns.append(Column(_STOP, variant, [_cell(curve.get(number), _steps) for number in rounds]))
    return columns


def _best(number: int, variants: Sequence[dict[int, Spread]]) -> str:
    """The round's greatest mean, as it is printed (equal to the eye is equal); empty if there is no contest."""
    means = [curve[number].mean for curve in variants if number in curve]
    return percent(max(means)) if len(means) > 1 else ""


def _cell(value: Spread | None, text: Callable[[float], str], best: str = "") -> Cell:
    if value is None:
        return Cell()
    span = f"{text(value.low)}–{text(value.high)}" if value.n > 1 else ""
    return Cell(text(value.mean), span, text(value.mean) == best)


def _steps(steps: float) -> str:
    return f"{steps:,.0f}"


def _terminal_header(column: Column) -> list[str]:
    short = {_ACCURACY: "acc. %", _STOP: "stop"}.get(column.measure)
    return [short, *column.variant.split("_")] if short else column.measure.split(" ")


def _terminal_cell(cell: Cell, column: Column) -> Text:
    text = Text(cell.text, style="bold" if cell.best else "")
    if cell.range and column.measure == _ACCURACY:
        text.append(f"\n{cell.range}", style="not bold dim")
    return text


def results_sheet(rows: Sequence[Row]) -> Sheet:
    """The results for report.md and report.html: as `table`, with every range, in brackets."""
    columns = _columns(rows)
    headers = [" ".join([column.variant.replace("_", " "), column.measure]).strip() for column in columns]
    return Sheet(headers, [list(cells) for cells in zip(*(column.cells for column in columns), strict=True)])
