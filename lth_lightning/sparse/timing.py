"""The stopwatch: what is compared takes turns."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

ROUNDS = 7
AT_LEAST = 2e-3  # seconds of a measurement: shorter ones measure the clock


def in_turns(calls: Sequence[Callable[[], Any]], rounds: int = ROUNDS, at_least: float = AT_LEAST) -> list[float]:
    """Return the median milliseconds of each call; they take turns, so that what disturbs one disturbs all.

    Args:
        calls: what to time.
        rounds: turns of each.
        at_least: seconds of a turn, in which a call is repeated.
    """
    repeats = []
    for call in calls:
        call()
        start = time.perf_counter()
        call()
        repeats.append(max(1, int(at_least / max(time.perf_counter() - start, 1e-7))))
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, count, found in zip(calls, repeats, times, strict=True):
            start = time.perf_counter()
            for _ in range(count):
                call()
            found.append(1e3 * (time.perf_counter() - start) / count)
    return [statistics.median(found) for found in times]
