"""Chooses a run's folder and locks it, so that no other process writes there."""

import os
from pathlib import Path

import lightning as L

from lth_lightning.errors import SettingError
from lth_lightning.files import make_folder
from lth_lightning.lottery.checkpoint import Progress
from lth_lightning.runs.folder import RunFolder, local, take_folder
from lth_lightning.runs.lock import FolderLock
from lth_lightning.trainer.sub_runs import default_folders


def claim(
    trainer: L.Trainer, progress: Progress, wanted: str | os.PathLike[str] | None, locked: bool
) -> tuple[RunFolder, FolderLock | None]:
    """Return this run's folder, the same on all ranks, and its lock.

    Args:
        trainer: its loggers determine the folder if none is given.
        progress: the progress; a resumed run already has a folder with tickets.
        wanted: the folder that the user asked for.
        locked: whether the caller has locked it already.

    Raises:
        SettingError: the folder holds another run or is locked, or a ticket of the resumed run is missing.
    """
    chosen = wanted or (progress.folder if progress.resumed else None)
    lock = None
    if trainer.is_global_zero:
        folder = RunFolder(local(chosen)) if chosen else take_folder(map(local, default_folders(trainer)))
        make_folder(folder.path)
        lock = None if locked else folder.lock()
        try:
            if progress.resumed:
                folder.check_tickets(progress.ticket_hashes)
                folder.prepare()
            else:
                folder.claim()
        except SettingError:
            if lock is not None:
                lock.release()
            folder.remove_empty_folders()
            raise
        chosen = folder.path
    return RunFolder(Path(trainer.strategy.broadcast(str(chosen)))), lock
