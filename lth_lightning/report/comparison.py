"""Runs of different experiments side by side: grouped by chosen settings, each group pooled over its seeds."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple
from itertools import combinations
from typing import Any

from lth_lightning.errors import SettingError, likeness
from lth_lightning.report.aggregate import PooledRuns
from lth_lightning.report.comparable import all_settings, brief, check_comparable, compared, key
from lth_lightning.report.reported import reported
from lth_lightning.report.statistics import statistic_columns, statistics
from lth_lightning.runs.rows import as_csv
from lth_lightning.runs.run import RunFiles, lookup, short
from lth_lightning.runs.settings import differences

GOES_ALONG = {"data.dataset": ("model.net.input_shape", "model.net.num_classes")}
"""Settings that change together with another setting."""


def experiments_of(runs: Sequence[RunFiles], keys: Sequence[str]) -> list[PooledRuns]:
    """Group the runs into experiments by their values of the settings `keys`, in the order of the runs.

    Args:
        runs: all runs of the comparison.
        keys: full names, from `full_names`.

    Raises:
        SettingError: the runs of an experiment are not comparable, other settings differ between experiments, or there
            is only one experiment.
    """
    found: dict[str, list[RunFiles]] = {}
    for run in runs:
        found.setdefault(json.dumps(_values(run, runs, keys)), []).append(run)
    groups = list(found.values())
    if len(groups) == 1:
        same = ", ".join(f"{name} {brief(lookup(all_settings(runs[0], runs), name))}" for name in keys)
        raise SettingError(f"--compare: all runs have the same {same}; there is nothing to compare.")
    for members in groups:
        check_comparable(members, among=runs, compared_by=keys)
    reported(runs)  # refuses different scores
    labels = _labels([_values(members[0], runs, keys) for members in groups], keys)
    _check_nothing_else_differs([members[0] for members in groups], runs, keys, labels)
    return [
        PooledRuns(members, label, tuple(_values(members[0], runs, keys)))
        for label, members in zip(labels, groups, strict=True)
    ]


def _values(run: RunFiles, runs: Sequence[RunFiles], keys: Sequence[str]) -> list[Any]:
    """The run's values of `keys`, without parts that do not count, such as the path of the data."""
    counts, everything = compared(run, runs), all_settings(run, runs)
    return [lookup(everything, name) if (value := lookup(counts, name)) is None else value for name in keys]


def _check_nothing_else_differs(
    firsts: Sequence[RunFiles], runs: Sequence[RunFiles], keys: Sequence[str], labels: Sequence[str]
) -> None:
    may = [*keys, *_going_along(keys)]
    others: dict[str, str] = {}
    for run, label in zip(firsts[1:], labels[1:], strict=True):
        for found in differences(compared(firsts[0], runs), compared(run, runs)):
            name = key(found)
            if not any(f"{name}.".startswith(f"{allowed}.") for allowed in may) and name not in others:
                others[name] = f"{name} is {brief(found.then)} in {labels[0]} and {brief(found.now)} in {label}"
    if others:
        raise SettingError(
            f"--compare: besides {', '.join(keys)}, runs also differ in: {'; '.join(others.values())}. Leave runs out, "
            f"or compare by these settings too: --compare {','.join([*keys, *others])}"
        )


def _going_along(keys: Sequence[str]) -> Iterator[str]:
    for name in keys:
        for prefix in ("", "tickets."):
            for cause, carried in GOES_ALONG.items():
                if f"{prefix}{cause}.".startswith(f"{name}."):
                    yield from (f"{prefix}{one}" for one in carried)


# ------------------------------------------------------------------------------------- names


def full_names(given: Sequence[str], runs: Sequence[RunFiles], asked_by: str = "--compare") -> list[str]:
    """Resolve the names given to `--compare`: full names, or last parts where unambiguous (`dataset`).

    Args:
        given: the names.
        runs: the runs that have such settings.
        asked_by: what was given the names; errors begin with it.

    Raises:
        SettingError: a setting is unknown (the error lists similar ones) or ambiguous, or a run has no config.yaml.
    """
    if unknown := next((run for run in runs if not run.settings), None):
        raise SettingError(f"{asked_by}: {unknown.path} has no config.yaml, so its settings are unknown. Leave it out.")
    there = list(dict.fromkeys(name for run in runs for name in _names(all_settings(run, runs))))
    return list(dict.fromkeys(_full_name(name.replace(".init_args", ""), there, asked_by) for name in given))


def _names(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in settings.items():
        if name in ("init_args", "class_path"):
            if isinstance(value, dict):
                yield from _names(value, prefix)
            continue
        yield prefix + name
        if isinstance(value, dict):
            yield from _names(value, f"{prefix}{name}.")


def _full_name(given: str, there: Sequence[str], asked_by: str) -> str:
    if given in there:
        return given
    ending = [name for name in there if name.endswith(f".{given}")]
    own = [name for name in ending if not name.startswith("tickets.")]
    if len(own or ending) == 1:
        return (own or ending)[0]
    if ending:
        raise SettingError(f"{asked_by}: {given!r} is ambiguous; choose from {', '.join(own or ending)}.")
    last = given.rpartition(".")[2]
    near = sorted(there, key=lambda name: -max(likeness(given, name), likeness(last, name.rpartition(".")[2])))
    raise SettingError(f"{asked_by}: no run has a setting {given!r}. Similar ones: {', '.join(near[:5])}.")


# ------------------------------------------------------------------------------------- labels


def _labels(values: Sequence[Sequence[Any]], keys: Sequence[str]) -> list[str]:
    """A short name per group: `FashionMNIST`, `tickets MNIST, SGD`. Equal names get the arguments that differ."""
    telling = [
        (name, [row[place] for row in values])
        for place, name in enumerate(keys)
        if len({json.dumps(row[place]) for row in values}) > 1
    ]
    labels = [", ".join(_label(name, column[row]) for name, column in telling) for row in range(len(values))]
    alike = [(one, other) for one, other in combinations(range(len(labels)), 2) if labels[one] == labels[other]]
    inner = {
        key(found)
        for one, other in alike
        for name, column in telling
        for found in differences(column[one], column[other], name)
    }
    mistakable = {row for pair in alike for row in pair}
    return [
        ", ".join([label, *(_label(name, lookup(_nested(keys, row), name)) for name in sorted(inner))])
        if place in mistakable
        else label
        for place, (label, row) in enumerate(zip(labels, values, strict=True))
    ]


def _nested(keys: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """Nested settings that hold only these values."""
    settings: dict[str, Any] = {}
    for name, value in zip(keys, values, strict=True):
        *parts, last = name.split(".")
        part = settings
        for one in parts:
            part = part.setdefault(one, {})
        part[last] = value
    return settings


def _label(name: str, value: Any) -> str:
    """A value in words. Names and classes are clear alone; other values need the setting's last part."""
    tickets = "tickets " if name.startswith("tickets.") else ""
    text = short(value)
    if isinstance(value, str) or (isinstance(value, dict) and "class_path" in value):
        path = str(text).split(".")
        return tickets + (path[-1] if all(part.isidentifier() for part in path) else str(text))
    last = name.rpartition(".")[2]
    if isinstance(value, dict):
        return tickets + last
    shown = "-".join(map(str, value)) if isinstance(value, list) else "not set" if text is None else text
    return f"{tickets}{last} {shown}"


# ------------------------------------------------------------------------------------- comparison.csv


def comparison_csv(experiments: Sequence[PooledRuns], keys: Sequence[str]) -> bytes:
    """The CSV with a `Statistic` per experiment, round and variant, after the experiment's label and settings."""
    columns = ["group", *keys, *statistic_columns(experiments[0])]
    rows = [
        (one.label, *map(_as_field, one.values), *astuple(statistic))
        for one in experiments
        for statistic in statistics(one)
    ]
    return as_csv(columns, rows)


def _as_field(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, dict | list) else value
