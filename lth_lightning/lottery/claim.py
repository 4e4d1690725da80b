"""The folder of a run: which one it is, and that nobody else writes there."""

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
    """The folder of this run, the same on all ranks, and its lock.

    Args:
        trainer: its loggers say where the run goes if nobody else does.
        progress: of a resumed run, which has a folder and tickets in it.
        wanted: the folder that was asked for.
        locked: whether the caller has locked it already.

    Raises:
        SettingError: it holds another run, another process writes there, or a ticket of the resumed run is missing.
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
