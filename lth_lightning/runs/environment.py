"""environment.json: what a run was computed on. The bits of its results depend on it, and no setting says it.

Threads and processors add up in an order of their own, so the same settings and seed give other last digits on others;
training makes those digits grow. A run that is resumed elsewhere has several stretches, each with its first round.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lth_lightning.errors import SettingError
from lth_lightning.files import replace_file

SHOWN = ("threads", "processor", "instructions", "device", "torch", "lightning", "numpy", "lth_lightning")
"""What a report always says; the other facts it says where they differ."""


@dataclass(frozen=True)
class Stretch:
    """The rounds from `from_round` on, up to the next stretch, and what they were computed on, in words."""

    from_round: int
    facts: Mapping[str, str]


def write_environment(path: Path, stretches: Sequence[Stretch]) -> None:
    """Replace environment.json as a whole."""
    content = json.dumps([asdict(stretch) for stretch in stretches], indent=2, ensure_ascii=False)
    replace_file(path, f"{content}\n".encode())


def read_environment(path: Path) -> list[Stretch]:
    """The stretches of a run, in their order; none where there is no such file (a run of an older version).

    Raises:
        SettingError: the file cannot be read, or holds something else.
    """
    try:
        return [
            Stretch(int(one["from_round"]), {str(name): str(value) for name, value in one["facts"].items()})
            for one in json.loads(path.read_text(encoding="utf-8"))
        ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise SettingError(
            f"cannot read {path}, which says what the run was computed on ({error}). Restore it or remove it."
        ) from error


def changes(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """The facts that differ, with both values, in one line; empty where none does."""
    return "; ".join(
        f"{name} was {then.get(name, 'not recorded')}, is {now.get(name, 'not recorded')}"
        for name in dict.fromkeys([*then, *now])
        if then.get(name) != now.get(name)
    )


def described(environments: Sequence[tuple[str, Sequence[Stretch]]]) -> str | None:
    """One line on what runs were computed on; where they differ, each value with its runs.

    Args:
        environments: name and stretches of each run.

    Returns:
        The line, None where no run has recorded anything.
    """
    known = dict.fromkeys(name for _, stretches in environments for stretch in stretches for name in stretch.facts)
    parts = []
    for fact in sorted(known, key=lambda name: SHOWN.index(name) if name in SHOWN else len(SHOWN)):
        runs_by_value: dict[str, list[str]] = {}
        for run, stretches in environments:
            runs_by_value.setdefault(_over_rounds(stretches, fact), []).append(run)
        values = list(runs_by_value)
        if len(values) > 1:
            values = [f"{value} ({_listed(runs)})" for value, runs in runs_by_value.items()]
        if fact in SHOWN or len(values) > 1 or FROM in values[0]:
            parts.append(f"{fact} {' or '.join(values)}")
    return "; ".join(parts) or None


FROM = ", from round "


def _over_rounds(stretches: Sequence[Stretch], fact: str) -> str:
    """A fact's value, and from which rounds on it was another: `1, from round 3 on 2`."""
    text = last = None
    for stretch in stretches:
        value = stretch.facts.get(fact, "not recorded")
        if text is None:
            text = value
        elif value != last:
            text += f"{FROM}{stretch.from_round} on {value}"
        last = value
    return text or "not recorded"


def _listed(runs: Sequence[str]) -> str:
    return ", ".join(runs) if len(runs) <= 3 else f"{len(runs)} runs"
