"""Refuses a second fit in another thread of the process: they would share the random generators."""

import threading

from lth_lightning.errors import SettingError

_in_training: set[int] = set()  # threads
_lock = threading.Lock()


def enter() -> None:
    """Note that a fit starts in this thread.

    Raises:
        SettingError: another thread of this process trains.
    """
    own = threading.get_ident()
    with _lock:
        _in_training.intersection_update({thread.ident for thread in threading.enumerate()})
        if _in_training - {own}:
            raise SettingError(
                "another thread of this process trains a lottery (Optuna's n_jobs=2, say). PyTorch has one random "
                "generator for all threads, so the weights and controls of both would depend on how they take turns. "
                "Start several processes instead."
            )
        _in_training.add(own)


def leave() -> None:
    """Note that the fit in this thread has ended."""
    with _lock:
        _in_training.discard(threading.get_ident())
