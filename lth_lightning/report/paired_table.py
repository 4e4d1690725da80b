"""The statistics as a table, for the terminal and in Markdown: paired differences and speed-ups, a line a round."""

from collections.abc import Callable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from lth_lightning.report.aggregate import Spread, densities
from lth_lightning.report.conclusion import counted, named, percent
from lth_lightning.report.sheet import Cell, Sheet
from lth_lightning.report.statistics import DENSE, Difference, RunRows, paired_differences, speed_ups
from lth_lightning.runs.rows import Row

AGAINST = ("random_reinit", "random_mask", DENSE)
TIMED = ("ticket", "random_reinit", "random_mask")
INTERVALS = (
    "Differences of test accuracy at the end of training are in points, paired by run, with the 95 % interval of "
    "Student's t for n runs; each interval stands for itself, whatever the number of comparisons. A speed-up is the "
    "dense network's early-stop step over this network's, paired by run: geometric mean, least to greatest. Who still "
    "learns when training ends has its early stop there."
)


def paired_table(runs: Sequence[RunRows]) -> Table | None:
    """Ticket less control and ticket less dense network, and speed-ups, for a terminal of 80 columns.

    Args:
        runs: the rows, run by run.

    Returns:
        The table, or None where there is no pair.
    """
    differences, speeds = _found(runs)
    if not differences and not speeds:
        return None
    curves: list[dict[int, Difference] | dict[int, Spread]] = [*differences.values(), *speeds.values()]
    counts = {value.n for curve in curves for value in curve.values()}
    legend = [
        "ticket −: its test accuracy less the other's, in points",
        *(["faster: early stop, how many times sooner than the dense one's"] if speeds else []),
        f"{counted(counts)}{', paired by run; ±: 95 % interval' if max(counts) > 1 else ''}",
    ]
    result = Table(
        caption="\n".join(["", *legend]),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    headers = [
        "round\n \n ", "density\n%\n ",
        *(f"ticket −\n{_in_lines(control)}" for control in differences),
        *(f"faster\n{_in_lines(variant)}" for variant in speeds),
    ]  # fmt: skip
    for header in headers:
        result.add_column(header, justify="right", no_wrap=True)
    for line in _lines(runs, differences, speeds, with_margin, _times):
        result.add_row(*map(Text, line))
    return result


def paired_sheet(runs: Sequence[RunRows]) -> Sheet | None:
    """The same for report.md and report.html, with the ends of every interval and every n; None without a pair."""
    differences, speeds = _found(runs)
    if not differences and not speeds:
        return None
    headers = [
        "round", "density %",
        *(f"ticket − {_other(control)}, points" for control in differences),
        *(f"speed-up {named(variant)}" for variant in speeds),
    ]  # fmt: skip
    lines = _lines(runs, differences, speeds, with_interval, _times_and_range)
    return Sheet(headers, [list(map(Cell, line)) for line in lines])


def _found(runs: Sequence[RunRows]) -> tuple[dict[str, dict[int, Difference]], dict[str, dict[int, Spread]]]:
    differences = {control: paired_differences(runs, "ticket", control) for control in AGAINST}
    speeds = {variant: speed_ups(runs, variant) for variant in TIMED}
    return {c: curve for c, curve in differences.items() if curve}, {v: curve for v, curve in speeds.items() if curve}


def _lines(
    runs: Sequence[RunRows],
    differences: dict[str, dict[int, Difference]],
    speeds: dict[str, dict[int, Spread]],
    difference_text: Callable[[Difference], str],
    speed_text: Callable[[Spread], str],
) -> list[list[str]]:
    """A line a round in which there is a pair."""
    rows: list[Row] = [row for run in runs for row in run]
    density = densities(rows)
    curves: list[dict[int, Difference] | dict[int, Spread]] = [*differences.values(), *speeds.values()]
    return [
        [
            str(number),
            f"{100 * density[number]:.2f}",
            *(difference_text(curve[number]) if number in curve else "" for curve in differences.values()),
            *(speed_text(curve[number]) if number in curve else "" for curve in speeds.values()),
        ]
        for number in sorted({number for curve in curves for number in curve})
    ]


def with_margin(value: Difference) -> str:
    """In points, as far as there are pairs with half the interval: `+1.2 ±0.4`."""
    return points(value.mean) + (f" ±{percent(value.margin)}" if value.margin is not None else "")


def with_interval(value: Difference) -> str:
    """In points, with the interval and n: `+1.2 (+0.8 to +1.6, n = 3)`."""
    if value.low is None or value.high is None:
        return f"{points(value.mean)} (n = {value.n})"
    return f"{points(value.mean)} ({points(value.low)} to {points(value.high)}, n = {value.n})"


def points(fraction: float) -> str:
    """A difference of accuracies with its sign: 0.012 is +1.2; what rounds to none has no sign."""
    text = f"{100 * fraction:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def _times(value: Spread) -> str:
    return f"{value.mean:.1f}×"


def _times_and_range(value: Spread) -> str:
    return f"{_times(value)} ({value.low:.1f}–{value.high:.1f}, n = {value.n})" if value.n > 1 else _times(value)


def _other(control: str) -> str:
    return "dense network" if control == DENSE else named(control)


def _in_lines(variant: str) -> str:
    return "\n".join([*variant.split("_"), " "][:2])
