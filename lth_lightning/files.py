"""Files that are either there as a whole or not at all."""

import errno
import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from lth_lightning.errors import SettingError, WriteError

UNFINISHED = ".unfinished"  # what ends so is being written, or was when a kill came; nobody reads it
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def replace_file(path: Path, content: bytes | memoryview) -> None:
    """Write `content` to `path` so that a reader, or a kill at any moment, finds the old file or the new one.

    The folder must exist: whoever starts a run or a report makes its folders. One that vanishes later was moved or
    removed on purpose, and making it anew would leave a run without its beginning.

    Raises:
        WriteError: the folder cannot be written (full, gone, no permission); it names the file, and what
            stood there before is untouched.
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
    """The error for a file that could not be written: it names the file and the reason."""
    gone = error.errno in (errno.ENOENT, errno.ENOTDIR) and not path.parent.is_dir()
    return WriteError(
        f"cannot write {path}: {f'there is no folder {path.parent}' if gone else error.strerror or error}."
    )


def is_failure_to_write(error: BaseException | None, folder: Path) -> bool:
    """Whether the disk is full, or `folder`, to which all is written, has vanished."""
    return isinstance(error, OSError) and (
        error.errno in NO_SPACE or (error.errno == errno.ENOENT and not folder.is_dir())
    )


def failure_to_write(error: BaseException, folder: Path) -> SettingError | None:
    """The failure that led to `error`, which hides it if Lightning, or another file's failure, came between.

    Args:
        error: what was raised in the end.
        folder: where all is written; named where the system does not say which file it was.

    Returns:
        The first error that says what is wrong, else one for the first file that could not be written; None if
            there is neither.
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
    """Make a folder, and those above it, unless they are there.

    Raises:
        WriteError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"cannot make the folder {path}: {error.strerror or error}.") from error


def content_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        SettingError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise SettingError(f"cannot read {path}: {error.strerror or error}.") from error


def check_unchanged(path: Path, known_hash: str) -> None:
    """Refuse to go on with a run whose file is not what it was.

    Args:
        path: the file.
        known_hash: its `content_hash`, from the run's checkpoint.

    Raises:
        SettingError: the file is gone, cannot be read, or has changed.
    """
    if not path.is_file():
        raise SettingError(f"{path} is gone; the run that is to go on needs it. Put it back, or start a new run.")
    if content_hash(path) != known_hash:
        raise SettingError(
            f"{path} has changed since the run that is to go on knew it. Put the old one back, or start a new run."
        )


def remove_unfinished(folder: Path) -> None:
    """Remove what a kill has left half-written in `folder`; call it only where nobody else writes."""
    for path in folder.glob(f"*{UNFINISHED}"):
        with suppress(OSError):
            path.unlink()
