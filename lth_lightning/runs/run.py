"""Run folders read for a report: rows, learning curves, and all settings by their dotted names."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lth_lightning.errors import SettingError
from lth_lightning.runs.class_paths import named_as_today
from lth_lightning.runs.environment import Stretch, described, read_environment
from lth_lightning.runs.folder import ENVIRONMENT, SCORE
from lth_lightning.runs.rows import CurveRow, LayerRow, Row, in_order, read_curves, read_layers, read_rows
from lth_lightning.runs.score import Score, known_score, read_score

Settings = dict[str, Any]
"""The content of a config.yaml. If the run trains another run's tickets, `tickets` holds that run's, if known."""

SHOWN = {
    "data set": "data.dataset",
    "network": "model.net",
    "training a round": "lottery.train_for",
    "rewound to": "lottery.rewind_to",
    "tickets found on": "tickets.data.dataset",
    "seed": "seed_everything",
}
"""What report.md shows of a run, and the setting that holds it."""


@dataclass(frozen=True)
class RunFiles:
    """The content of a run folder: rows and curves in order, settings (none for a run in Python), environment."""

    path: Path
    rows: list[Row]
    layers: list[LayerRow] = field(default_factory=list)
    curves: list[CurveRow] = field(default_factory=list)
    settings: Settings = field(default_factory=dict)
    environment: list[Stretch] = field(default_factory=list)
    given_score: Score | None = None

    @classmethod
    def read(cls, path: Path) -> "RunFiles":
        """Read a run folder; all files but results.csv may be missing.

        Raises:
            SettingError: results.csv is missing or has no rows, or a file cannot be read.
        """
        results, layers, config = (path / name for name in ("results.csv", "layers.csv", "config.yaml"))
        if not results.is_file():
            raise SettingError(
                f"{path} is not a run folder: it has no results.csv. Give the folder that `fit` wrote to (its "
                "run_dir), which holds results.csv and config.yaml."
            )
        rows = in_order(read_rows(results))
        if not rows:
            raise SettingError(f"{results} has no rows yet; the first is written when round 0 ends.")
        return cls(
            path,
            rows,
            in_order(read_layers(layers)) if layers.is_file() else [],
            read_curves(path / "curves"),
            _read_settings(config) if config.is_file() else {},
            read_environment(path / ENVIRONMENT),
            read_score(path / SCORE),
        )

    @property
    def score(self) -> Score:
        """The score that the run is judged by: the one that was set, else accuracy, or the loss without accuracies."""
        return known_score(self.rows, self.given_score)

    @property
    def name(self) -> str:
        """The folder's name, preceded by its parent's if it is only a number: `quickstart/3`."""
        path = self.path.resolve()
        return f"{path.parent.name}/{path.name}" if path.name.isdigit() else path.name

    @property
    def facts(self) -> dict[str, str]:
        """The facts of `SHOWN` that the settings hold."""
        found = {label: short(lookup(self.settings, key)) for label, key in SHOWN.items()}
        for label, part in (("data set", "data"), ("network", "model")):  # classes of the user's own
            if found[label] is None and isinstance(own := self.settings.get(part), dict) and "class_path" in own:
                found[label] = short(own)
        return {label: value for label, value in found.items() if value is not None}


def _read_settings(config: Path, trained_from: tuple[Path, ...] = ()) -> Settings:
    """Read the settings of a config.yaml, and under `tickets` those of the run that its tickets come from.

    Args:
        config: the file.
        trained_from: the files that led here, so that runs that name each other do not recurse forever.
    """
    try:
        content = yaml.safe_load(named_as_today(config.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingError(f"cannot read {config}: {error}") from error
    if not isinstance(content, dict):
        raise SettingError(f"{config} holds no settings.")
    settings: Settings = json.loads(
        json.dumps(content, default=str)
    )  # as in a checkpoint: no dates, no numbers as keys
    settings.pop("tickets", None)
    if tickets := lookup(settings, "lottery.tickets"):
        found_by = _run_of_tickets(Path(str(tickets))) / "config.yaml"
        if found_by.is_file() and found_by not in trained_from:
            settings["tickets"] = _read_settings(found_by, (*trained_from, config.resolve()))
    return settings


def _run_of_tickets(path: Path) -> Path:
    """The run folder of RUN/tickets or RUN/tickets/round_07.safetensors, relative to the working directory."""
    return (path.resolve() if path.is_dir() else path.resolve().parent).parent


def lookup(settings: Any, key: str) -> Any:
    """Return the value under a dotted name, or None; `init_args` may be left out: `model.optimizer.lr`."""
    value = settings
    for name in key.split("."):
        if name == "init_args":
            continue
        if not isinstance(value, dict):
            return None
        value = (value.get("init_args") or value).get(name)
    return value


def short(value: Any) -> str | None:
    """A setting as a person reads it: the class's name for an object given by `class_path`; None if not set."""
    if isinstance(value, dict) and "class_path" in value:
        return str(value["class_path"]).rpartition(".")[2]
    return None if value is None else str(value)


def facts(runs: Sequence[RunFiles]) -> dict[str, str]:
    """The facts of `SHOWN`, each value once (`seed: 0, 1, 2`), and what the runs were computed on."""
    found = {label: list(dict.fromkeys(run.facts.get(label, "?") for run in runs)) for label in SHOWN}
    said = {label: ", ".join(values) for label, values in found.items() if values != ["?"]}
    computed_on = described([(run.name, run.environment) for run in runs])
    return said | ({"computed on": computed_on} if computed_on else {})


def title_of(runs: Sequence[RunFiles]) -> str:
    """Name the runs in one line: `LeNet300 on MNIST, 3 runs: lenet/1, lenet/2, lenet/3`."""
    names = [run.name for run in runs]
    listed = ", ".join(names) if len(names) <= 3 else f"{names[0]} … {names[-1]}"
    which = listed if len(names) == 1 else f"{len(names)} runs: {listed}"
    what = [runs[0].facts[label] for label in ("network", "data set") if label in runs[0].facts]
    return ", ".join([" on ".join(what), which]) if what else which


def read_all(folders: Sequence[Path]) -> list[RunFiles]:
    """Read each run once; a folder with only a report (among several, as in `report runs/lenet/*`) is skipped.

    Raises:
        SettingError: a folder is given twice, or is not a run.
    """
    if len(folders) > 1:
        folders = [folder for folder in folders if not _only_report(folder)] or folders
    twice = next((folder for folder in folders if [f.resolve() for f in folders].count(folder.resolve()) > 1), None)
    if twice:
        raise SettingError(f"report: {twice} was given twice. Give it once: a copy is not a repetition.")
    return [RunFiles.read(folder) for folder in folders]


def _only_report(folder: Path) -> bool:
    return (folder / "report.md").is_file() and not (folder / "results.csv").is_file()
