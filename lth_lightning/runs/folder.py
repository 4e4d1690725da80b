"""The folder of a run: what stands where in it, whose it is, and who may write there now."""

from collections.abc import Mapping
from pathlib import Path

from lth_lightning.errors import SettingError
from lth_lightning.files import check_unchanged, make_folder, remove_unfinished, replace_file
from lth_lightning.runs.lock import FolderLock

CONFIG, RESULTS, LAYERS, ENVIRONMENT, CURVES, TICKETS, CHECKPOINT, FIGURES = (
    "config.yaml",
    "results.csv",
    "layers.csv",
    "environment.json",
    "curves",
    "tickets",
    "checkpoints/last.ckpt",
    "figures",
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
        self.curves = path / CURVES
        self.tickets = path / TICKETS
        self.checkpoint = path / CHECKPOINT

    def ticket(self, round: int) -> Path:
        """The file of a round's ticket."""
        return self.tickets / f"round_{round:02d}.safetensors"

    def curve(self, round: int, variant: str, replicate: int) -> Path:
        """The file of a network's learning curve."""
        return self.curves / f"round_{round:02d}_{variant}_{replicate}.csv"

    @property
    def taken(self) -> bool:
        """Whether a run has left results here."""
        return self.results.exists() or self.checkpoint.exists() or any(self.tickets.glob("*.safetensors"))

    def claim(self) -> None:
        """Make sure that this run can write here, and that no other has; make its folders.

        Raises:
            SettingError: the folder holds a run, or cannot be written.
        """
        if self.taken:
            raise SettingError(
                f"run_dir: {self.path} already holds a run. Continue it with --ckpt_path last, or name another folder."
            )
        self.prepare()

    def prepare(self) -> None:
        """Make the folders that a run writes to, and clear them of what a kill has left half-written.

        Raises:
            WriteError: they cannot be made or written.
        """
        for folder in (self.path, self.curves, self.tickets, self.checkpoint.parent):
            make_folder(folder)
        for folder in (self.path, self.curves, self.tickets, self.checkpoint.parent, self.path / FIGURES):
            remove_unfinished(folder)
        probe = self.path / ".writable"
        replace_file(probe, b"")
        probe.unlink()

    def remove_empty_folders(self) -> None:
        """Undo `prepare` for a run that came to nothing."""
        for folder in (self.curves, self.tickets, self.checkpoint.parent):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def lock(self) -> FolderLock:
        """Be the one process that writes here, until `release` or the process's end.

        Raises:
            SettingError: another process is.
        """
        return FolderLock(self.path)

    def check_tickets(self, hashes: Mapping[int, str]) -> None:
        """Make sure that the tickets that a run has shown are still there, as they were.

        Args:
            hashes: `files.content_hash` of each round's ticket, from the run's checkpoint.

        Raises:
            SettingError: a ticket is gone or has changed; it names the file.
        """
        for round, known in hashes.items():
            check_unchanged(self.ticket(round), known)


def free_folder(wanted: Path) -> Path:
    """`wanted`, or the first of `wanted-1`, `wanted-2`, … that no run has taken."""
    folder, number = wanted, 0
    while RunFolder(folder).taken:
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder
