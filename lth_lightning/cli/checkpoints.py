"""Checks of the checkpoint that `--ckpt_path` names, before training, with errors in the user's vocabulary."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lth_lightning.errors import SettingError


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a Lightning checkpoint, with its tensors left on disk until they are used.

    Raises:
        SettingError: the file does not exist, or is not a complete checkpoint.
    """
    if not path.is_file():
        raise SettingError(f"ckpt_path: {path} does not exist.")
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not verify checksums
            damaged = archive.testzip()
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # any: a damaged file makes torch raise whatever it meets
        raise SettingError(
            f"ckpt_path: {path} is not a checkpoint, or is damaged ({type(error).__name__}). Start a new run."
        ) from error
    if damaged is not None:
        raise SettingError(f"ckpt_path: {path} is damaged: its checksum of {damaged} is wrong. Start a new run.")
    if not isinstance(checkpoint, dict) or not {"state_dict", "pytorch-lightning_version"} <= checkpoint.keys():
        raise SettingError(f"ckpt_path: {path} is not a Lightning checkpoint.")
    return checkpoint


def state_of_callback(checkpoint: dict[str, Any], name: str) -> dict[str, Any]:
    """The state of a callback in a checkpoint; empty if it has none."""
    callbacks = checkpoint.get("callbacks")
    state = callbacks.get(name) if isinstance(callbacks, dict) else None
    return state if isinstance(state, dict) else {}


def check_fits(checkpoint: dict[str, Any], module: nn.Module) -> None:
    """Refuse a checkpoint of another network.

    Raises:
        SettingError: parameters or buffers are missing, unexpected or of another shape; the error names some.
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
