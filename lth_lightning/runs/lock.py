"""One writer at a time: two processes that write to the same run would ruin it."""

import os
import sys
from contextlib import suppress
from pathlib import Path

from lth_lightning.errors import SettingError
from lth_lightning.files import cannot_write

if sys.platform != "win32":
    import fcntl

LOCK = ".lock"


class FolderLock:
    """An exclusive lock on a run's folder; the kernel releases it when the process ends, even by a kill.

    On Windows, and on file systems without locks, nothing is locked.

    Args:
        folder: an existing folder.

    Raises:
        SettingError: another process holds the lock.
        WriteError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._descriptor = None if sys.platform == "win32" else self._acquire()

    def _acquire(self) -> int | None:
        while True:
            try:
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise cannot_write(self._path, error) from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(descriptor)
                raise SettingError(
                    f"run_dir: another process is writing to this run, {self._path.parent}. Wait for it or "
                    "stop it, then resume with --ckpt_path last."
                ) from error
            except OSError:  # a file system without locks
                os.close(descriptor)
                self._remove()
                return None
            if self._is_ours(descriptor):
                return descriptor
            os.close(descriptor)  # its holder has just removed the file, so a lock on it would protect nothing

    def _is_ours(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self._path.stat())
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Release the lock; a second call does nothing."""
        if self._descriptor is not None:
            if self._is_ours(self._descriptor):
                self._remove()  # while it is still held
            os.close(self._descriptor)
            self._descriptor = None

    def _remove(self) -> None:
        with suppress(OSError):
            self._path.unlink()
