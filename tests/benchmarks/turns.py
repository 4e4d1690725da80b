"""Contestants in processes of their own that train in turns, so that a noisy machine is as noisy for each."""

import multiprocessing
import os
import pty
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

Report = dict[str, float]


class Turn:
    """A contestant's clock: it runs while it is the contestant's turn, and stands aside for what is timed by itself.

    Args:
        pipe: to who gives turns.
        steps: training steps a turn.
    """

    def __init__(self, pipe: Connection, steps: int) -> None:
        self._pipe, self._steps = pipe, steps
        self._done = 0
        self._seconds: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._part, self._since = "step", 0.0

    def wait(self) -> None:
        """Wait for the turn to begin."""
        self._pipe.recv()
        self._seconds.clear()
        self._counts.clear()
        self._since = time.perf_counter()

    def step(self) -> None:
        """A training step is done; with the last of a turn the others have theirs."""
        self._done += 1
        if self._done % self._steps:
            return
        self._change(self._part)
        report = {name: seconds / (self._counts[name] or self._steps) for name, seconds in self._seconds.items()}
        self._pipe.send({**report, "resident": memory("VmRSS")})
        self.wait()

    @contextmanager
    def aside(self, part: str) -> Iterator[None]:
        """Time what happens inside as another part of the turn, by how often it happens."""
        before = self._change(part)
        try:
            yield
        finally:
            self._change(before)
            self._counts[part] += 1

    def _change(self, part: str) -> str:
        now = time.perf_counter()
        self._seconds[self._part] += now - self._since
        before, self._part, self._since = self._part, part, now
        return before


def memory(field: str) -> float:
    """Bytes of this process, `VmRSS` (in use) or `VmHWM` (at most so far)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(float(line.split()[1]) for line in lines if line.startswith(field))


def give_turns(contestants: dict[str, tuple[Callable[[Turn], None], int]], turns: int) -> list[dict[str, Report]]:
    """Let contestants train in turns.

    Args:
        contestants: by name, what trains for as long as it is let, and the steps of its turn.
        turns: how many each has, after a first one that does not count.

    Returns:
        For each turn, seconds a step and of the parts that stood aside, and memory, by contestant.
    """
    context = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    processes = []
    for name, (contestant, steps) in contestants.items():
        pipes[name], theirs = context.Pipe()
        process = context.Process(target=_compete, args=(contestant, theirs, steps), daemon=True)
        process.start()
        theirs.close()
        processes.append(process)
    try:
        return [{name: _one_turn(pipe) for name, pipe in pipes.items()} for _ in range(turns + 1)][1:]
    finally:
        for process in processes:
            process.kill()


def _one_turn(pipe: Connection) -> Report:
    pipe.send("go")
    return pipe.recv()


def _compete(contestant: Callable[[Turn], None], pipe: Connection, steps: int) -> None:
    with terminal():
        contestant(Turn(pipe, steps))


@contextmanager
def terminal() -> Iterator[None]:
    """A terminal for standard output, so that progress is drawn as for a person; nobody reads it."""
    reader, writer = pty.openpty()
    os.environ.update(TERM="xterm", COLUMNS="100")
    os.environ.pop("CI", None)
    swallow = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(["cat"], stdin=reader, **swallow) as drain:
        os.close(reader)
        before = os.dup(1)
        os.dup2(writer, 1)
        os.close(writer)
        try:
            yield
        finally:
            os.dup2(before, 1)
            drain.kill()
