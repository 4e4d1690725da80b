"""Chooses a run's folder and locks it, so that no other process writes there; finds the checkpoint to resume from."""

import os
from pathlib import Path

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

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


def last_checkpoint(trainer: L.Trainer, wanted: str | os.PathLike[str] | None) -> Path | None:
    """Return the checkpoint of the run in a folder; None, and say so, if there is no run yet, or in a rehearsal.

    Args:
        trainer: the Trainer of the fit that is to be resumed.
        wanted: the run's folder.

    Raises:
        SettingError: the folder is not known, or its run has no checkpoint.
    """
    if trainer.fast_dev_run:
        return None
    if wanted is None:
        raise SettingError(
            'ckpt_path: "last" needs to know which run to resume. Set its folder, LotteryTicket(run_dir="runs/mine"), '
            "or give the path of its checkpoints/last.ckpt."
        )
    folder = RunFolder(local(wanted))
    if folder.checkpoint.is_file():
        return folder.checkpoint
    if folder.taken:
        raise SettingError(
            f"ckpt_path: there is a run in {folder.path}, but no {folder.checkpoint} to resume from. Start a new run "
            "in another run_dir."
        )
    rank_zero_info(f"Nothing to resume in {folder.path}: starting.")
    return None
