"""Which runs a sweep consists of: each combination of the values that `--vary` and `--seeds` give."""

import itertools
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lth_lightning.errors import SettingError
from lth_lightning.runs.folder import CONFIG

SEED, CONFIGS = "seed_everything", "config"
OWN = ("run_dir", "ckpt_path", "print_config", "trainer.fast_dev_run", "fast_dev_run")
"""Flags of `fit` that a sweep sets itself, or that make no sense for many runs."""
LONGEST = 100  # characters of a folder's name; file systems allow 255 bytes
_OPENING, _CLOSING = "[{(", "]})"


@dataclass(frozen=True)
class Training:
    """A run of a sweep: the name of its folder and the flags of `fit` that define it, without `--run_dir`."""

    name: str
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """What a sweep is asked for.

    Args:
        flags: the flags of `fit` that all runs share, configs included.
        seeds: the seeds; none for the settings' own.
        vary: the values of each setting that varies, as on the command line.
        sweep_dir: the folder; None for the next `runs/<config name>/sweep_<n>`.
        cpus, gpus: what a training takes; fractions share a GPU. By default a GPU where there is one and the settings
            may use it.
        max_parallel: the greatest number of trainings side by side.
        address: of a Ray cluster; None starts Ray on this machine.
        split_controls: whether controls are trained beside the tickets, where there is room.

    Raises:
        SettingError: a value out of range, or settings that contradict each other.
    """

    flags: Sequence[str]
    seeds: Sequence[int] = ()
    vary: Mapping[str, Sequence[str]] = field(default_factory=dict)
    sweep_dir: Path | None = None
    cpus: float = 1
    gpus: float | None = None
    max_parallel: int | None = None
    address: str | None = None
    split_controls: bool = True

    def __post_init__(self) -> None:
        given = {flag.partition("=")[0].removeprefix("--") for flag in self.flags if flag.startswith("--")}
        for name in OWN:
            if name in given or name in self.vary:
                way_out = {
                    "run_dir": "a sweep gives each run a folder of its own; set --sweep_dir.",
                    "ckpt_path": "a sweep resumes by itself when the same command is given again.",
                }.get(name, "applies to one run; use it with fit.")
                raise SettingError(f"--{name}: {way_out}")
        if self.seeds and SEED in self.vary:
            raise SettingError(f"--vary {SEED}: the seeds are given by --seeds. Leave one of the two out.")
        for name, values in self.vary.items():
            _check_once(f"--vary {name}", values)
        _check_once("--seeds", self.seeds)
        if not self.cpus > 0:
            raise SettingError(f"--cpus must be above 0, got {self.cpus:g}.")
        if self.gpus is not None and not self.gpus >= 0:
            raise SettingError(f"--gpus must be at least 0, got {self.gpus:g}.")
        if self.max_parallel is not None and self.max_parallel < 1:
            raise SettingError(f"--max_parallel must be at least 1, got {self.max_parallel}.")

    @property
    def varied(self) -> dict[str, Sequence[str]]:
        """The settings that vary, with their values; the seed last."""
        return {**self.vary, **({SEED: [str(seed) for seed in self.seeds]} if self.seeds else {})}

    @property
    def root(self) -> Path:
        """The folder of numbered sweeps of this experiment, runs/<config name>."""
        config = next(iter(_configs(self.flags)), None) or next(iter(self.vary.get(CONFIGS, ())), None)
        if config is None:
            return Path("runs/run")
        path = Path(config)
        return Path("runs") / (path.resolve().parent.name if path.name == CONFIG else path.stem)

    @property
    def accelerator(self) -> str:
        """What `trainer.accelerator` is set to where it does not vary; `auto` if nothing is said."""
        found = "auto"
        for config in _configs(self.flags):
            try:
                settings = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
                found = settings["trainer"]["accelerator"] or found
            except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
                continue  # whoever parses the settings reports it
        return next(iter(_values(self.flags, "trainer.accelerator")[-1:]), found)

    def trainings(self) -> list[Training]:
        """The runs, in the order in which they are begun: all seeds of a combination, then those of the next."""
        varied, flags = self.varied, list(self.flags)
        if CONFIGS in varied:  # before flags, which a later config would override
            configs = [flag for config in _configs(flags) for flag in (f"--{CONFIGS}", config)]
            flags = _without_configs(flags)
        else:
            configs = []
        shorts = dict(zip(varied, short_names(list(varied)), strict=True))
        labels = {name: _labels(values) for name, values in varied.items()}
        found: list[Training] = []
        for places in itertools.product(*(range(len(values)) for values in varied.values())):
            chosen = {name: varied[name][place] for name, place in zip(varied, places, strict=True)}
            own = [flag for name in varied if name != CONFIGS for flag in (f"--{name}", chosen[name])]
            config = [f"--{CONFIGS}", chosen[CONFIGS]] if CONFIGS in chosen else []
            parts = [f"{shorts[name]}={labels[name][place]}" for name, place in zip(varied, places, strict=True)]
            found.append(Training(_unique(",".join(parts) or "run", found), (*configs, *config, *flags, *own)))
        return found


def _check_once(setting: str, values: Sequence[Any]) -> None:
    if twice := next((value for value in values if list(values).count(value) > 1), None):
        raise SettingError(f"{setting}: {twice} is given twice. Give it once: a copy is not a repetition.")


def _configs(flags: Sequence[str]) -> list[str]:
    return _values(flags, CONFIGS) + _values(flags, "c", "-")


def _values(flags: Sequence[str], name: str, dashes: str = "--") -> list[str]:
    """The values of an option, given as `--name value` or `--name=value`."""
    found = []
    for flag, following in itertools.zip_longest(flags, flags[1:]):
        option, is_joined, value = flag.partition("=")
        if option == dashes + name and (is_joined or following is not None):
            found.append(value if is_joined else following)
    return found


def _without_configs(flags: Sequence[str]) -> list[str]:
    kept, rest = [], list(flags)
    while rest:
        option, is_joined, _ = (flag := rest.pop(0)).partition("=")
        if option not in (f"--{CONFIGS}", "-c"):
            kept.append(flag)
        elif not is_joined and rest:
            rest.pop(0)
    return kept


# ------------------------------------------------------------------------------------- names of folders


def short_names(names: Sequence[str]) -> list[str]:
    """The last part of each dotted name, or as many parts as tell it from the others; `seed` for the seed.

    >>> short_names(["model.optimizer.lr", "lottery.pruning.rate", "seed_everything"])
    ['lr', 'rate', 'seed']
    >>> short_names(["model.a.size", "data.a.size"])
    ['model.a.size', 'data.a.size']
    """
    parts = [["seed"] if name == SEED else name.replace(".init_args", "").split(".") for name in names]

    def ending(place: int, count: int) -> str:
        return ".".join(parts[place][-count:])

    found = []
    for place, own in enumerate(parts):
        others = [other for other in range(len(parts)) if other != place]
        counts = range(1, len(own) + 1)
        count = next((n for n in counts if all(ending(o, n) != ending(place, n) for o in others)), len(own))
        found.append(ending(place, count))
    return found


def _labels(values: Sequence[str]) -> list[str]:
    """A short name per value that a folder can have: a file's stem, a class's name, or the value's characters."""
    labels: list[str] = []
    for value in values:
        named = re.search(r"class_path[\"']?\s*:\s*[\"']?([\w.]+)", value)
        text = named[1].rpartition(".")[2] if named else value
        text = Path(text).stem if re.search(r"\.(ya?ml|json)$", text) else text
        label = re.sub(r"[^\w.+-]+", "_", text).strip("_.")[:40] or "empty"
        labels.append(label if label not in labels else f"{label}_{len(labels) + 1}")
    return labels


def _unique(name: str, found: Sequence[Training]) -> str:
    names = {training.name for training in found}
    short = name if len(name) <= LONGEST else f"{name[:LONGEST]}…"
    return short if short not in names else f"{short}_{len(found) + 1}"


# ------------------------------------------------------------------------------------- the command line's values


def seeds_of(text: str) -> list[int]:
    """Read `--seeds 1,2,3`.

    Raises:
        SettingError: not whole numbers.
    """
    parts = [part.strip() for part in text.strip("[]").split(",")]
    if not all(re.fullmatch(r"\d+", part, re.ASCII) for part in parts):
        raise SettingError(f"--seeds must be whole numbers separated by commas, e.g. 1,2,3; got {text!r}.")
    return [int(part) for part in parts]


def varied_of(text: str) -> tuple[str, list[str]]:
    """Read `--vary KEY=A,B`; commas inside brackets, braces and quotes do not separate values.

    >>> varied_of("lottery.controls=[random_reinit, random_mask],[]")
    ('lottery.controls', ['[random_reinit, random_mask]', '[]'])

    Raises:
        SettingError: no key, no values, or a bracket or quote that is not closed.
    """
    key, is_given, values = text.partition("=")
    key = key.strip().removeprefix("--")
    found = _split(values)
    if not key or not is_given or found is None or not all(found):
        raise SettingError(
            f"--vary must be a setting and its values, e.g. model.optimizer.lr=1e-3,1e-4 or "
            f"lottery.controls=[random_mask],[]; got {text!r}."
        )
    return key, found


def _split(text: str) -> list[str] | None:
    """Split at the outer commas; None if a bracket or quote is left open."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char in _OPENING:
            depth += 1
        elif char in _CLOSING:
            depth -= 1
        elif char == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += char
    return [part.strip() for part in parts] if depth == 0 and not quote else None


def as_flag(value: Any) -> str:
    """A value given in Python, as on the command line: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else str(value) if isinstance(value, Path) else json.dumps(value)


def command_for(program: str, training: Training, run_dir: Path) -> str:
    """The command that trains a run of a sweep alone, or resumes it."""
    return f"{program} {shlex.join(['fit', *fit_flags(training, run_dir)])}"


def fit_flags(training: Training, run_dir: Path) -> list[str]:
    """The flags of `fit` for a run of a sweep, which starts or resumes in `run_dir`."""
    return [*training.flags, "--run_dir", str(run_dir), "--ckpt_path", "last"]
