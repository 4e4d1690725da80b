"""The folder of a run: what stands where in it, and whose it is."""

from pathlib import Path

from lth_lightning.errors import SettingError
from lth_lightning.files import replace_file

RESULTS, LAYERS, TICKETS, CHECKPOINT = "results.csv", "layers.csv", "tickets", "checkpoints/last.ckpt"


class RunFolder:
    """Names of a run's files.

    Args:
        path: the folder; it need not exist yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results = path / RESULTS
        self.layers = path / LAYERS
        self.tickets = path / TICKETS
        self.checkpoint = path / CHECKPOINT

    def ticket(self, round: int) -> Path:
        """The file of a round's ticket."""
        return self.tickets / f"round_{round:02d}.safetensors"

    @property
    def taken(self) -> bool:
        """Whether a run has left results here."""
        return any(path.exists() for path in (self.results, self.checkpoint, self.tickets))

    def claim(self) -> None:
        """Make sure that this run can write here, and that no other has.

        Raises:
            SettingError: the folder holds a run, or cannot be written.
        """
        if self.taken:
            raise SettingError(
                f"run_dir: {self.path} already holds a run. Continue it with --ckpt_path last, or name another folder."
            )
        probe = self.path / ".writable"
        replace_file(probe, b"")
        probe.unlink()


def free_folder(wanted: Path) -> Path:
    """`wanted`, or the first of `wanted-1`, `wanted-2`, … that no run has taken."""
    folder, number = wanted, 0
    while RunFolder(folder).taken:
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    return folder
