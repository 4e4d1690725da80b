"""The tables of a report: results, paired differences, experiments side by side, every network, every setting.

Tables with a line per round come in two forms: complete for a page, or `brief` for a terminal of 80 columns.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from lth_lightning.report.aggregate import Curve, PooledRuns, Spread
from lth_lightning.report.reported import Reported
from lth_lightning.report.statistics import DENSE, FEWEST, Difference, paired_differences, speed_ups
from lth_lightning.report.table import Cell, Table
from lth_lightning.report.wording import counted, named
from lth_lightning.runs.run import RunFiles
from lth_lightning.runs.score import Score

# ------------------------------------------------------------------------------------- results

_STOP = "stop: early stop, the step of the lowest validation loss"
_LEGEND = {
    "random_reinit": "random reinit: the ticket's mask, fresh weights",
    "random_mask": "random mask: the ticket's weights, another mask",
    "pruned_only": "pruned only: not trained after pruning",
}


def about_results(reported: Reported) -> str:
    """What the reader of the results table must know."""
    of_many = {"acc": f"{reported.label[:-1]}ies", "loss": f"{reported.label}es"}
    values = of_many.get(reported.score.key, f"values of {reported.label}")
    return (
        f"{values[0].upper()}{values[1:]} are those at the end of training, the best of each round in bold. Where "
        "several networks were pooled, the range from least to greatest stands in brackets."
    )


def results_table(experiment: PooledRuns, title: str = "", *, brief: bool = False) -> Table:
    """A line per round, the ticket beside its controls: the score at the end of training, and early stop.

    If several networks were pooled, a brief table omits the kept weights and the ranges of early stops.
    """
    scores, stop, rounds = experiment.scores, experiment.early_stop, list(experiment.density)
    reported, score = experiment.reported, experiment.reported.score
    best = {
        number: _best(score, [curve[number].mean for curve in scores.values() if number in curve]) for number in rounds
    }
    ranges = any(value.n > 1 for curve in chain(scores.values(), stop.values()) for value in curve.values())
    columns = {
        "round": [Cell(str(number)) for number in rounds],
        _header("density %", brief): [Cell(_density(experiment, number)) for number in rounds],
        _header("weights kept", brief): [Cell(f"{experiment.kept[number]:,}") for number in rounds],
    }
    if brief and ranges:
        columns.popitem()
    for variant, curve in scores.items():
        short = "\n".join([reported.short + score.unit, *variant.split("_")])
        header = short if brief else f"{named(variant)} {reported.label}{score.unit}"
        columns[header] = [_ranged(curve.get(number), score.text, best[number]) for number in rounds]
    for variant, curve in stop.items():
        header = "\n".join(["stop", *variant.split("_")]) if brief else f"{named(variant)} early-stop step"
        cells = [_ranged(curve.get(number), "{:,.0f}".format) for number in rounds]
        columns[header] = [Cell(cell.text) for cell in cells] if brief else cells
    legend = [f"{reported.short}: {reported.label} after training, the best of a round in bold\n{_STOP}"]
    legend += [text for variant, text in _LEGEND.items() if variant in scores or variant in stop]
    return _table(columns, legend=legend, title=title, gap=0 if ranges else 1)


def _best(score: Score, means: list[float]) -> str:
    """The best mean as printed (what prints equal counts as equal); empty if there is only one."""
    return score.text(score.best(means)) if len(means) > 1 else ""


def _ranged(value: Spread | None, text: Callable[[float], str], best: str = "") -> Cell:
    if value is None:
        return Cell()
    mean, ends = text(value.mean), f"{text(value.low)}–{text(value.high)}"
    return Cell(mean, ends if value.n > 1 else "", mean == best)


# ------------------------------------------------------------------------------------- paired differences

AGAINST = ("random_reinit", "random_mask", DENSE)
TIMED = ("ticket", "random_reinit", "random_mask")


def about_pairs(reported: Reported) -> str:
    """What the reader of the table of paired differences must know."""
    are = "are in points, paired by run" if reported.score.is_fraction else "are paired by run"
    return (
        f"Differences of {reported.label} at the end of training {are}, with the 95 % interval of "
        f"Student's t from {FEWEST} runs on (n); each interval stands for itself, whatever the number of comparisons. "
        "A speed-up is the dense network's early-stop step over this network's, paired by run: geometric mean, least "
        "to greatest. Who still learns when training ends has its early stop there."
    )


def paired_table(experiment: PooledRuns, *, brief: bool = False) -> Table | None:
    """Ticket minus control, ticket minus dense network, and speed-ups; a line per round that has a pair.

    A brief table has half the interval's width in place of its ends, and n in its legend. None without pairs.
    """
    differences = {control: paired_differences(experiment, "ticket", control) for control in AGAINST}
    speeds = {variant: speed_ups(experiment, variant) for variant in TIMED}
    curves: list[Mapping[int, Difference | Spread]] = [*differences.values(), *speeds.values()]
    rounds = sorted(set(chain(*curves)))
    if not rounds:
        return None
    columns = {
        "round": [Cell(str(number)) for number in rounds],
        _header("density %", brief): [Cell(_density(experiment, number)) for number in rounds],
    }
    score = experiment.reported.score
    points = ", points" if score.is_fraction else ""
    for control, found in differences.items():
        other = "dense network" if control == DENSE else named(control)
        header = "\n".join(["ticket −", *control.split("_")]) if brief else f"ticket − {other}{points}"
        columns |= {header: [_gain(score, found, number, brief) for number in rounds]} if found else {}
    for variant, speed in speeds.items():
        header = "\n".join(["faster", *variant.split("_")]) if brief else f"speed-up {named(variant)}"
        columns |= {header: [_times(speed.get(number), brief) for number in rounds]} if speed else {}
    counts = {value.n for curve in curves for value in curve.values()}
    plus_minus = "; ±: 95 % interval" if max(counts) >= FEWEST else ""
    legend = [
        f"ticket −: its {experiment.reported.label} less the other's{points.replace(', ', ', in ')}",
        *(["faster: early stop, how many times sooner than the dense one's"] if any(speeds.values()) else []),
        counted(counts)
        + (", paired by run" if max(counts) > 1 else "")
        + (plus_minus if max(counts) >= FEWEST else ""),
    ]
    return _table(columns, legend=legend)


def _gain(score: Score, found: Mapping[int, Difference], number: int, brief: bool) -> Cell:
    """For a fraction in points: `+1.2 (+0.8 to +1.6, n = 3)`, or brief `+1.2 ±0.4`."""
    if (value := found.get(number)) is None:
        return Cell()
    mean = score.gap(value.mean)
    if brief:
        return Cell(mean + (f" ±{score.gap(value.margin).lstrip('+')}" if value.margin is not None else ""))
    interval = "" if value.low is None or value.high is None else f"{score.gap(value.low)} to {score.gap(value.high)}, "
    return Cell(mean, f"{interval}n = {value.n}")


def _times(value: Spread | None, brief: bool) -> Cell:
    if value is None:
        return Cell()
    ends = "" if brief or value.n == 1 else f"{value.low:.1f}–{value.high:.1f}, n = {value.n}"
    return Cell(f"{value.mean:.1f}×", ends)


# ------------------------------------------------------------------------------------- experiments side by side

SIDE_BY_SIDE = 5
"""Experiments that 80 columns hold; more go into a further table."""


def comparison_table(experiments: Sequence[PooledRuns]) -> Table:
    """A line per round and a column per figure and experiment, with the ends of every interval and every n."""
    rounds, shared = _shared_densities(experiments)
    columns = {"round": [Cell(str(number)) for number in rounds]}
    own = len(shared) < len(rounds)  # then each experiment has a column of its densities
    if not own:
        columns["density %"] = [Cell(shared[number]) for number in rounds]
    for one in experiments:
        gains, score = paired_differences(one, "ticket", "random_reinit"), one.reported.score
        unit, points = score.unit, ", points" if score.is_fraction else ""
        if own:
            columns[f"{one.label}: density %"] = [Cell(_density(one, number)) for number in rounds]
        for variant in ("ticket", "random_reinit"):
            cells = [Cell(_score(one, variant, number)) for number in rounds]
            columns[f"{one.label}: {named(variant)}{unit}"] = cells
        columns[f"{one.label}: difference{points}"] = [_gain(score, gains, number, False) for number in rounds]
    return _table(columns)


def comparison_tables(experiments: Sequence[PooledRuns], title: str) -> list[Table]:
    """The comparison for a terminal of 80 columns, five experiments per table.

    A cell shows the scores of the ticket and of its random reinit. Below are their paired difference with half
    its 95 % interval, and the density if experiments differ in it.
    """
    rounds, shared = _shared_densities(experiments)
    tables = []
    for place in range(0, len(experiments), SIDE_BY_SIDE):
        columns = {
            "round": [Cell(str(number)) for number in rounds],
            "density\n%": [Cell(shared.get(number, "")) for number in rounds],
        }
        for one in experiments[place : place + SIDE_BY_SIDE]:
            gains = paired_differences(one, "ticket", "random_reinit")
            cells = [_side(one, gains, number, number in shared) for number in rounds]
            columns[f"{one.label}\nn = {len(one.runs)}"] = cells
        legend = _sides(experiments[0].reported) if place + SIDE_BY_SIDE >= len(experiments) else ()
        tables.append(_table(columns, legend=legend, title=title if place == 0 else "", label_width=11))
    return tables


def _sides(reported: Reported) -> tuple[str, ...]:
    return (
        f"{reported.label}{reported.score.unit}: ticket, random reinit",
        "below: their difference, paired by run",
        f"±: 95 % interval, where n is at least {FEWEST}",
    )


def _shared_densities(experiments: Sequence[PooledRuns]) -> tuple[list[int], dict[int, str]]:
    """All rounds, and the densities in percent of the rounds in which all experiments print the same density."""
    rounds = sorted({number for one in experiments for number in one.density})
    printed = {number: {_density(one, number) for one in experiments} - {""} for number in rounds}
    return rounds, {number: texts.pop() for number, texts in printed.items() if len(texts) == 1}


def _side(experiment: PooledRuns, gain: Mapping[int, Difference], number: int, shared: bool) -> Cell:
    scores = [_score(experiment, variant, number) for variant in ("ticket", "random_reinit")]
    density = "" if shared or number not in experiment.density else f"at {_density(experiment, number)} %"
    difference = _gain(experiment.reported.score, gain, number, True).text
    return Cell(" ".join(filter(None, scores)), "\n".join(filter(None, [difference, density])))


def _score(experiment: PooledRuns, variant: str, number: int) -> str:
    curve: Curve = experiment.scores.get(variant, {})
    return experiment.reported.score.text(curve[number].mean) if number in curve else ""


# ------------------------------------------------------------------------------------- networks, settings


def networks_table(runs: Sequence[RunFiles], score: Score) -> Table:
    """A line per trained network, run by run."""
    label, unit = score.label, score.unit
    headers = [
        "run", "round", "variant", "replicate", "density %", "weights kept", "steps", f"validation {label}{unit}",
        f"test {label}{unit}", "early-stop step", f"test {label} at early stop{unit}",
    ]  # fmt: skip

    def text(value: float | None) -> str:
        return "" if value is None else score.text(value)

    lines = [
        [
            run.name, str(row.round), named(row.variant), str(row.replicate), f"{100 * row.density:.2f}",
            f"{row.kept:,}", f"{row.steps:,}", text(score.value(row, "val")), text(score.value(row, "test")),
            "" if row.early_stop_step is None else f"{row.early_stop_step:,}",
            text(score.value(row, "early_stop_test")),
        ]
        for run in runs for row in run.rows
    ]  # fmt: skip
    return Table(headers, [list(map(Cell, line)) for line in lines])


def settings_table(runs: Sequence[RunFiles]) -> Table:
    """A line per setting, named as its flag; if runs differ in it, all values in the order of the runs."""
    flat = [dict(_flat(run.settings)) for run in runs]
    names = list(dict.fromkeys(name for settings in flat for name in settings))
    values = {name: list(dict.fromkeys(settings.get(name, "not set") for settings in flat)) for name in names}
    return Table(["setting", "value"], [[Cell(name), Cell(" · ".join(values[name]))] for name in names])


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if name == "class_path":
            yield prefix.removesuffix("."), str(value)
        elif isinstance(value, dict) and value:
            yield from _flat(value, prefix if name == "init_args" else f"{prefix}{name}.")
        else:
            yield prefix + name, value if isinstance(value, str) else json.dumps(value)


# ------------------------------------------------------------------------------------- parts


def _table(columns: Mapping[str, Sequence[Cell]], **rest: Any) -> Table:
    """A table from its columns, by their headers."""
    return Table(list(columns), [list(line) for line in zip(*columns.values(), strict=True)], **rest)


def _header(text: str, brief: bool) -> str:
    return text.replace(" ", "\n") if brief else text


def _density(experiment: PooledRuns, number: int) -> str:
    return f"{100 * experiment.density[number]:.2f}" if number in experiment.density else ""
