"""Steps by the clock: how fast they come, and how long those to go will take."""

from collections import deque

RECENT = 20  # readings; a display that is drawn four times a second then shows the speed of the last 5 seconds


class Pace:
    """The speed of an experiment, by readings of the clock and of the steps that are done.

    The clock starts with the first reading, so that what comes before (the first step, which sets up devices or
    compiles) counts as little as steps of an earlier process. What comes between steps counts: evaluations, pruning,
    files.
    """

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None
        self._recent: deque[tuple[float, int]] = deque(maxlen=RECENT)

    def read(self, seconds: float, steps: int) -> None:
        """Note that `steps` steps are done at `seconds` on any clock that only goes forward."""
        self._first = self._first or (seconds, steps)
        self._recent.append((seconds, steps))

    @property
    def steps_per_second(self) -> float | None:
        """The speed over the last readings; None as long as there is none."""
        return _speed(self._recent[0], self._recent[-1]) if self._recent else None

    def seconds_for(self, steps: float) -> float | None:
        """How long so many steps take at the mean speed since the first reading; None as long as there is none."""
        speed = _speed(self._first, self._recent[-1]) if self._first else None
        return steps / speed if speed else None


def _speed(start: tuple[float, int], end: tuple[float, int]) -> float | None:
    seconds, steps = end[0] - start[0], end[1] - start[1]
    return steps / seconds if seconds > 0 and steps > 0 else None
