"""Atomic file writes, content hashes, and errors for files that cannot be read or written."""

import errno
import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from lth_lightning.errors import SettingError, WriteError

UNFINISHED = ".unfinished"  # suffix of a file still being written, or left by a kill; such files are never read
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """Write `content` to `path` atomically: readers see the old file or the new one, even after a kill.

    The folder must exist; it is made when a run or a report starts. A folder that disappears later was moved or
    removed on purpose, and recreating it would leave a run without its beginning.

    Raises:
        WriteError: the file cannot be written (disk full, folder missing, no permission). The error names the
            file; the old file is left unchanged.
    """
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED, delete=False
        ) as out:
            temporary = out.name
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide results from a colleague
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> WriteError:
    """Return the error for a file that could not be written, with the file and the reason."""
    gone = error.errno in (errno.ENOENT, errno.ENOTDIR) and not path.parent.is_dir()
    return WriteError(
        f"cannot write {path}: {f'the folder {path.parent} does not exist' if gone else error.strerror or error}."
    )


def is_failure_to_write(error: BaseException | None, folder: Path) -> bool:
    """Whether `error` means a full disk, or that the output `folder` has disappeared."""
    return isinstance(error, OSError) and (
        error.errno in NO_SPACE or (error.errno == errno.ENOENT and not folder.is_dir())
    )


def failure_to_write(error: BaseException, folder: Path) -> SettingError | None:
    """Find the failed write behind `error`, which Lightning or a second failure may have hidden.

    Args:
        error: the exception that was finally raised.
        folder: the output folder; the error names it if the system does not say which file failed.

    Returns:
        The first `SettingError` in the chain, else an error for the first file that could not be written, else None.
    """
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.insert(0, link)
        link = link.__cause__ or link.__context__
    said = next((link for link in chain if isinstance(link, SettingError)), None)
    failed = next((link for link in chain if isinstance(link, OSError) and is_failure_to_write(link, folder)), None)
    return said or (cannot_write(Path(os.fsdecode(failed.filename or folder)), failed) if failed else None)


def make_folder(path: Path) -> None:
    """Make a folder and its parents if they do not exist.

    Raises:
        WriteError: the folder cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"cannot make the folder {path}: {error.strerror or error}.") from error


def content_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        SettingError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SettingError(f"cannot read {path}: {error.strerror or error}.") from error


def check_unchanged(path: Path, known_hash: str) -> None:
    """Refuse to resume a run if one of its files has changed.

    Args:
        path: the file.
        known_hash: its `content_hash`, from the run's checkpoint.

    Raises:
        SettingError: the file is missing, cannot be read, or has changed.
    """
    if not path.is_file():
        raise SettingError(f"{path} is missing, and resuming needs it. Restore it or start a new run.")
    if content_hash(path) != known_hash:
        raise SettingError(
            f"{path} has changed since the run wrote its checkpoint. Restore the old file or start a new run."
        )


def remove_unfinished(folder: Path) -> None:
    """Remove half-written files that a kill left in `folder`; call it only if no other process writes there."""
    for path in folder.glob(f"*{UNFINISHED}"):
        with suppress(OSError):
            path.unlink()
