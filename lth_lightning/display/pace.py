"""Training speed, and the time left."""

from collections import deque

RECENT = 20  # readings; a display drawn four times a second then shows the speed of the last 5 seconds


class Pace:
    """The speed of an experiment, from readings of the clock and of the number of steps done.

    The clock starts with the first reading. So neither the time before it counts (the first step, which sets up devices
    or compiles), nor the steps of an earlier process. Time between steps counts: evaluations, pruning, writing files.
    """

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None
        self._recent: deque[tuple[float, int]] = deque(maxlen=RECENT)

    def read(self, seconds: float, steps: int) -> None:
        """Record that `steps` steps are done at `seconds` on a monotonic clock."""
        self._first = self._first or (seconds, steps)
        self._recent.append((seconds, steps))

    @property
    def steps_per_second(self) -> float | None:
        """The speed over the last readings; None if not known yet."""
        return _speed(self._recent[0], self._recent[-1]) if self._recent else None

    def seconds_for(self, steps: float) -> float | None:
        """The time for so many steps at the mean speed since the first reading; None if not known yet."""
        speed = _speed(self._first, self._recent[-1]) if self._first else None
        return steps / speed if speed else None


def _speed(start: tuple[float, int], end: tuple[float, int]) -> float | None:
    seconds, steps = end[0] - start[0], end[1] - start[1]
    return steps / seconds if seconds > 0 and steps > 0 else None
