"""The folder of a sweep: sweep.json, which names its runs and those that are done, and a folder a run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lth_lightning.errors import SettingError
from lth_lightning.files import make_folder, replace_file
from lth_lightning.runs.folder import RESULTS
from lth_lightning.runs.lock import FolderLock
from lth_lightning.sweeps.combinations import Request, Training

SWEEP, LOG, SPLITS = "sweep.json", "log.txt", ".controls_apart"


class SweepFolder:
    """A sweep's folder.

    Args:
        path: the folder; it need not exist yet.

    Raises:
        SettingError: its sweep.json cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._runs: dict[str, dict[str, Any]] = _read(path / SWEEP)

    def run(self, training: Training) -> Path:
        """The folder of a run."""
        return self.path / training.name

    def is_done(self, training: Training) -> bool:
        """Whether a run has been trained to its end, and its results are still there."""
        done = self._runs.get(training.name, {}).get("state") == "done"
        return done and (self.run(training) / RESULTS).is_file()

    @property
    def splits(self) -> Path:
        """The file whose existence asks running fits to leave their controls apart."""
        return self.path / SPLITS

    def let_split(self, wanted: bool) -> None:
        """Make that file, or remove it."""
        if wanted and not self.splits.exists():
            self.splits.touch()
        elif not wanted:
            self.splits.unlink(missing_ok=True)

    def open(self) -> FolderLock:
        """Make the folder and lock it.

        Raises:
            SettingError: the folder cannot be made, or another process runs this sweep.
        """
        make_folder(self.path)
        try:
            return FolderLock(self.path)
        except SettingError as error:
            raise SettingError(
                f"sweep_dir: another process runs the sweep in {self.path}. Wait for it, or stop it first."
            ) from error

    def note(self, training: Training, state: str, message: str | None = None) -> None:
        """Record a run's state: `waiting`, `done` or `failed`, with the reason."""
        entry = {"flags": list(training.flags), "state": state} | ({"message": message} if message else {})
        self._runs[training.name] = entry
        content = json.dumps({"runs": self._runs}, indent=2, ensure_ascii=False)
        replace_file(self.path / SWEEP, f"{content}\n".encode())

    def holds(self, trainings: Sequence[Training]) -> bool:
        """Whether these are exactly the runs of this sweep."""
        there = {name: tuple(run["flags"]) for name, run in self._runs.items()}
        return bool(there) and there == {training.name: training.flags for training in trainings}


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
        return {str(name): {"flags": list(run["flags"]), "state": str(run["state"])} for name, run in runs.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise SettingError(
            f"cannot read {path}, which records the runs of the sweep ({error}). Restore it, or choose another "
            "--sweep_dir."
        ) from error


def folder_for(request: Request, trainings: Sequence[Training]) -> SweepFolder:
    """The folder that was asked for, or the last sweep of the very same runs, or a new number."""
    if request.sweep_dir is not None:
        return SweepFolder(request.sweep_dir)
    numbered = {
        int(path.name.removeprefix("sweep_")): path
        for path in request.root.glob("sweep_*")
        if path.name.removeprefix("sweep_").isdecimal()
    }
    for number in sorted(numbered, reverse=True):
        folder = SweepFolder(numbered[number])
        if folder.holds(trainings):
            return folder
    return SweepFolder(request.root / f"sweep_{max(numbered, default=-1) + 1}")
