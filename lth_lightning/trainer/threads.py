"""Warns of fits in several threads of one process: they share the random generators, so none can be repeated."""

import logging
import threading

log = logging.getLogger(__name__)

_in_training: set[int] = set()  # threads
_lock = threading.Lock()


def enter() -> None:
    """Note that a fit starts in this thread, and warn if another thread trains."""
    own = threading.get_ident()
    with _lock:
        _in_training.intersection_update({thread.ident or own for thread in threading.enumerate()})
        others = _in_training - {own}
        _in_training.add(own)
    if others:
        log.warning(
            "another fit runs in a thread of this process (n_jobs=2, say). Fits in threads share the random generators "
            "of PyTorch, NumPy and Python, so the results of both depend on how they take turns. Run them in processes."
        )


def leave() -> None:
    """Note that the fit in this thread has ended."""
    with _lock:
        _in_training.discard(threading.get_ident())
