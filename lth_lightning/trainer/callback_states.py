"""Resets the state of other callbacks for each network, and leaves them in the last ticket's state after the fit."""

import copy
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, SpikeDetection

CHECKPOINT = (
    *("best_model_path", "best_model_score", "best_k_models", "kth_best_model_path", "kth_value", "current_score"),
    *("last_model_path", "_last_checkpoint_saved", "_last_global_step_saved", "_defer_save_until_validation"),
)


class CallbackStates:
    """The states of those Lightning callbacks that decide when to stop and which checkpoint is best.

    Args:
        trainer: the Trainer in `setup`, where callbacks are new even in a resumed fit.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        self.stoppers = [
            (callback, copy.deepcopy(callback.state_dict()))
            for callback in trainer.callbacks
            if isinstance(callback, EarlyStopping)
        ]
        self._checkpoints = [
            callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)
        ]
        self._spikes = [callback for callback in trainer.callbacks if isinstance(callback, SpikeDetection)]
        self._fresh = self._look()
        self.kept: list[dict[str, Any]] | None = None

    def restore(self) -> None:
        """Reset the callbacks. A ModelCheckpoint keeps the last network's files and writes the next to new names."""
        for callback, state in self.stoppers:
            callback.load_state_dict(copy.deepcopy(state))
        self._set(self._fresh)
        for spike in self._spikes:
            spike.running_mean.reset()
            spike.last_val = 0.0

    def keep(self) -> None:
        """Save the states of ModelCheckpoints after a ticket has been trained."""
        self.kept = self._look()

    def give_back(self) -> None:
        """Make `trainer.test(ckpt_path="best")` use the last ticket's best checkpoint, not a control's."""
        if self.kept is not None and len(self.kept) == len(self._checkpoints):
            self._set(self.kept)

    def _look(self) -> list[dict[str, Any]]:
        return [{name: copy.deepcopy(getattr(one, name)) for name in CHECKPOINT} for one in self._checkpoints]

    def _set(self, states: list[dict[str, Any]]) -> None:
        for callback, state in zip(self._checkpoints, states, strict=True):
            for name, value in state.items():
                setattr(callback, name, copy.deepcopy(value))
