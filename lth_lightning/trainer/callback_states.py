"""Resets the state of other callbacks for each network, and leaves them in the last ticket's state after the fit."""

import copy
import os
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, SpikeDetection

CHECKPOINT = (
    *("best_model_path", "best_model_score", "best_k_models", "kth_best_model_path", "kth_value", "current_score"),
    *("last_model_path", "_last_checkpoint_saved", "_last_global_step_saved", "_defer_save_until_validation"),
)
STATE = ("state_dict", "load_state_dict")


class CallbackStates:
    """The states of those Lightning callbacks that decide when to stop and which checkpoint is best.

    Args:
        trainer: the Trainer in `setup`, where callbacks are new even in a resumed fit.
    """

    def __init__(self, trainer: L.Trainer) -> None:
        self._trainer = trainer
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
        self.theirs: dict[str, Any] | None = None

    def restore(self) -> None:
        """Reset the callbacks. A ModelCheckpoint keeps the last network's files and writes the next to new names.

        The first call, when everything has been set up, saves the states of callbacks and data modules that have
        methods of their own for that; later calls load them.
        """
        stateful = {name: part for name, part in users_parts(self._trainer).items() if _saves_itself(part)}
        if self.theirs is None:
            self.theirs = {name: copy.deepcopy(part.state_dict()) for name, part in stateful.items()}
        else:
            for name in stateful.keys() & self.theirs.keys():
                stateful[name].load_state_dict(copy.deepcopy(self.theirs[name]))
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
        """Make `trainer.test(ckpt_path="best")`, and "last", use the last ticket's checkpoint, not a control's."""
        if self.kept is not None and len(self.kept) == len(self._checkpoints):
            self._set(self.kept)
            for state in self.kept if self._trainer.is_global_zero else ():
                if os.path.lexists(state["last_model_path"]):  # "last" is the file that was modified last
                    os.utime(state["last_model_path"], follow_symlinks=os.utime not in os.supports_follow_symlinks)

    def _look(self) -> list[dict[str, Any]]:
        return [{name: copy.deepcopy(getattr(one, name)) for name in CHECKPOINT} for one in self._checkpoints]

    def _set(self, states: list[dict[str, Any]]) -> None:
        for callback, state in zip(self._checkpoints, states, strict=True):
            for name, value in state.items():
                setattr(callback, name, copy.deepcopy(value))


def users_parts(trainer: L.Trainer) -> dict[str, Any]:
    """Return the callbacks and the data module that are neither Lightning's nor this package's, by a unique name."""
    parts = [part for part in (*trainer.callbacks, trainer.datamodule) if is_users(type(part))]
    names = [type(part).__qualname__.rpartition(".")[2] for part in parts]
    unique = [f"{name} {i}" if names.count(name) > 1 else name for i, name in enumerate(names)]
    return dict(zip(unique, parts, strict=True))


def is_users(kind: type) -> bool:
    """Whether a class is from outside Lightning and this package."""
    return kind.__module__.split(".")[0] not in ("lightning", "lth_lightning", "builtins")


def _saves_itself(part: Any) -> bool:
    """Whether its class, or a base class that is not Lightning's, has both `state_dict` and `load_state_dict`."""
    definers = [next(kind for kind in type(part).__mro__ if name in vars(kind)) for name in STATE]
    return all(map(is_users, definers))
