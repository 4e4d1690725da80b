"""Files that are either there as a whole or not at all."""

import os
import tempfile
from pathlib import Path

from lth_lightning.errors import SettingError


def replace_file(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader, or a kill at any moment, finds the old file or the new one.

    Raises:
        SettingError: the folder cannot be written (full, gone, no permission); it names the file, and what
            stood there before is untouched.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as out:
            temporary = out.name
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's 0600 would hide results from a colleague
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise SettingError(f"cannot write {path}: {error.strerror or error}") from error
