"""`fit(ckpt_path="last")` with a lottery: Lightning looks only for checkpoints of its own callbacks."""

import functools
from collections.abc import Callable
from typing import Any

from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector
from lightning.pytorch.trainer.states import TrainerFn


def let_callbacks_find_last() -> None:
    """Make `fit(ckpt_path="last")` ask the callback that has a method `last_checkpoint(trainer)`, if one has.

    It returns the path of its checkpoint, or None to start anew. Lightning settles the path before any hook, in a
    class of its own, so this changes that class, once; fits without such a callback run as before.
    """
    if not hasattr(_CheckpointConnector._parse_ckpt_path, "__wrapped__"):
        _CheckpointConnector._parse_ckpt_path = _asking_callbacks(  # type: ignore[method-assign]
            _CheckpointConnector._parse_ckpt_path
        )


def _asking_callbacks(own: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(own)
    def parse(self: _CheckpointConnector, state_fn: TrainerFn, ckpt_path: Any, **given: bool) -> Any:
        if state_fn == TrainerFn.FITTING and ckpt_path == "last":
            for callback in self.trainer.callbacks:
                if (find := getattr(callback, "last_checkpoint", None)) is not None:
                    return find(self.trainer)
        return own(self, state_fn, ckpt_path, **given)

    return parse
