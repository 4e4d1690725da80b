"""The folder of a run: the names of its files, whether it is taken, and who may write to it."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from lth_lightning.errors import SettingError
from lth_lightning.files import cannot_write, check_unchanged, make_folder, remove_unfinished, replace_file
from lth_lightning.runs.lock import FolderLock

CONFIG, RESULTS, LAYERS, ENVIRONMENT, SCORE, CURVES, TICKETS, BEST, CHECKPOINT, FIGURES, CONTROLS = (
    "config.yaml",
    "results.csv",
    "layers.csv",
    "environment.json",
    "score.json",
    "curves",
    "tickets",
    "best",
    "checkpoints/last.ckpt",
    "figures",
    "controls",
)


class RunFolder:
    """Names of a run's files.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results = path / RESULTS
        self.layers = path / LAYERS
        self.environment = path / ENVIRONMENT
        self.score = path / SCORE
        self.curves = path / CURVES
        self.tickets = path / TICKETS
        self.checkpoint = path / CHECKPOINT
        self.controls = path / CONTROLS

    def ticket(self, round: int) -> Path:
        """The file of a round's ticket."""
        return self.tickets / f"round_{round:02d}.safetensors"

    def best(self, round: int, variant: str = "ticket", replicate: int = 0) -> Path:
        """The file of a network with its best weights, which `lottery.keep: best` asks for."""
        which = "" if variant == "ticket" else f"_{variant}_{replicate}"
        return self.path / BEST / f"round_{round:02d}{which}.safetensors"

    def curve(self, round: int, variant: str, replicate: int) -> Path:
        """The file of a network's learning curve."""
        return self.curves / f"round_{round:02d}_{variant}_{replicate}.csv"

    def control(self, round: int, variant: str, replicate: int) -> "RunFolder":
        """The folder of a control that is trained apart: a run of one network, until its own run gathers it."""
        return RunFolder(self.controls / f"round_{round:02d}_{variant}_{replicate}")

    @property
    def is_gatherable(self) -> bool:
        """Whether this is the folder of a control that has been trained apart, to its end: it then removes its
        checkpoint."""
        return self.results.exists() and not self.checkpoint.exists()

    @property
    def taken(self) -> bool:
        """Whether the folder holds a run's results."""
        return self.results.exists() or self.checkpoint.exists() or any(self.tickets.glob("*.safetensors"))

    def claim(self) -> None:
        """Check that the folder is free and can be written, and make the run's folders.

        Raises:
            SettingError: the folder holds a run, or cannot be written.
        """
        if self.taken:
            raise SettingError(
                f"run_dir: {self.path} already holds a run. Resume it with --ckpt_path last, or choose another folder."
            )
        self.prepare()

    def prepare(self) -> None:
        """Make the folders that a run writes to, and remove files that a killed process left half-written.

        Raises:
            WriteError: a folder cannot be made or written.
        """
        for folder in (self.path, self.curves, self.tickets, self.checkpoint.parent):
            make_folder(folder)
        written = (self.curves, self.tickets, self.checkpoint.parent, self.path / FIGURES, self.path / BEST)
        for folder in (self.path, *written):
            remove_unfinished(folder)
        probe = self.path / ".writable"
        replace_file(probe, b"")
        probe.unlink()

    def remove_empty_folders(self) -> None:
        """Undo `prepare` for a run that never started. tickets/ goes last: it marks the folder as taken."""
        for folder in (self.curves, self.checkpoint.parent, self.tickets):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def lock(self) -> FolderLock:
        """Lock the folder for this process, until `release` or until the process ends.

        Raises:
            SettingError: another process holds the lock.
        """
        return FolderLock(self.path)

    def check_tickets(self, hashes: Mapping[int, str]) -> None:
        """Check that the tickets of a run still exist and have not changed.

        Args:
            hashes: `files.content_hash` of each round's ticket, from the run's checkpoint.

        Raises:
            SettingError: a ticket is missing or has changed; the error names the file.
        """
        for round, known in hashes.items():
            check_unchanged(self.ticket(round), known)


def local(path: str | os.PathLike[str]) -> Path:
    """Return the path if it is local.

    Raises:
        SettingError: it is a URL such as `s3://…`, which as a path would become a local folder.
    """
    if "://" in os.fspath(path):
        raise SettingError(f"run_dir: {path} is not a folder of this machine, and the lottery writes to no other.")
    return Path(path)


def take_folder(candidates: Iterable[Path]) -> RunFolder:
    """Take the first folder that no run has taken.

    Two runs that ask at once, in two processes or two threads, get two folders: only one of them can make tickets/.

    Raises:
        WriteError: a folder cannot be made.
    """
    for path in candidates:
        folder = RunFolder(path)
        if folder.taken:
            continue
        make_folder(path)
        try:
            folder.tickets.mkdir()
        except FileExistsError:
            continue
        except OSError as error:
            raise cannot_write(folder.tickets, error) from error
        return folder
    raise ValueError("no candidate is left")
