"""environment.json: what a run was computed on. The bits of its results depend on it, and no setting records it.

The order of floating-point sums depends on the threads and the processor. So the same settings and seed differ in the
last digits, and training amplifies the difference. A run resumed elsewhere has several stretches.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lth_lightning.errors import SettingError
from lth_lightning.files import replace_file

SHOWN = ("threads", "processor", "instructions", "device", "torch", "lightning", "numpy", "lth_lightning")
"""The facts that a report always shows; it shows the others only where they differ."""


@dataclass(frozen=True)
class Stretch:
    """The rounds from `from_round` up to the next stretch, and what they were computed on, in words."""

    from_round: int
    facts: Mapping[str, str]


def write_environment(path: Path, stretches: Sequence[Stretch]) -> None:
    """Replace environment.json as a whole."""
    content = json.dumps([asdict(stretch) for stretch in stretches], indent=2, ensure_ascii=False)
    replace_file(path, f"{content}\n".encode())


def read_environment(path: Path) -> list[Stretch]:
    """Read the stretches of a run, in order; empty if the file does not exist (a run of an older version).

    Raises:
        SettingError: the file cannot be read, or has other content.
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
            f"cannot read {path}, which records what the run was computed on ({error}). Restore it or remove it."
        ) from error


def changes(then: Mapping[str, str], now: Mapping[str, str]) -> str:
    """The facts that differ, with both values, in one line; empty if none differs."""
    return "; ".join(
        f"{name} was {then.get(name, 'not recorded')}, is {now.get(name, 'not recorded')}"
        for name in dict.fromkeys([*then, *now])
        if then.get(name) != now.get(name)
    )


def described(environments: Sequence[tuple[str, Sequence[Stretch]]]) -> str | None:
    """Describe in one line what runs were computed on; where they differ, each value with its runs.

    Args:
        environments: name and stretches of each run.

    Returns:
        The line, or None if no run has recorded anything.
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
    """A fact's value, and the rounds at which it changed: `1, from round 3 on 2`."""
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
