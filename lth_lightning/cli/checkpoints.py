"""What `--ckpt_path` names: checked before anything is trained, so that what is wrong is said in the user's words."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lth_lightning.errors import SettingError


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A Lightning checkpoint, its tensors left on disk until they are used.

    Raises:
        SettingError: no such file, or not a whole checkpoint.
    """
    if not path.is_file():
        raise SettingError(f"ckpt_path: there is no file {path}.")
    try:
        with zipfile.ZipFile(path) as archive:  # torch checks no checksums
            damaged = archive.testzip()
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # any: a damaged file makes torch raise whatever it meets
        raise SettingError(
            f"ckpt_path: {path} is no checkpoint, or is damaged ({type(error).__name__}): start a new run."
        ) from error
    if damaged is not None:
        raise SettingError(f"ckpt_path: {path} is damaged: {damaged} in it is not what was written. Start a new run.")
    if not isinstance(checkpoint, dict) or not {"state_dict", "pytorch-lightning_version"} <= checkpoint.keys():
        raise SettingError(f"ckpt_path: {path} is no checkpoint of Lightning's.")
    return checkpoint


def state_of_callback(checkpoint: dict[str, Any], name: str) -> dict[str, Any]:
    """What a callback has put into a checkpoint; empty if it has not."""
    callbacks = checkpoint.get("callbacks")
    state = callbacks.get(name) if isinstance(callbacks, dict) else None
    return state if isinstance(state, dict) else {}


def check_fits(checkpoint: dict[str, Any], module: nn.Module) -> None:
    """Refuse a checkpoint of another network.

    Raises:
        SettingError: parameters or buffers are missing, superfluous or of another shape; it names some.
    """
    theirs, ours = (
        {name: tuple(value.shape) for name, value in state.items()}
        for state in (checkpoint["state_dict"], module.state_dict())
    )
    misfits = [
        f"{name} ({theirs.get(name, 'missing')} in the checkpoint, {ours.get(name, 'missing')} in the network)"
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
    ]
    if misfits:
        more = f" and {len(misfits) - 3} more" if len(misfits) > 3 else ""
        raise SettingError(f"ckpt_path: the checkpoint is of another network: {'; '.join(misfits[:3])}{more}.")
