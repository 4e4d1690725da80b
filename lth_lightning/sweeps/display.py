"""What a sweep shows: on a terminal one table that is redrawn, a line a run; elsewhere a line an event."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lth_lightning.consoles import can_redraw, duration
from lth_lightning.errors import SettingError
from lth_lightning.runs.folder import RESULTS
from lth_lightning.runs.rows import RANDOM_CONTROLS, NetworkKey, Row, network_key, read_rows
from lth_lightning.runs.score import known_score

REFRESH_SECONDS = 1.0


def name_of(network: NetworkKey) -> str:
    """A network's name within its round: `random_mask #2`."""
    _, variant, replicate = network
    return variant + (f" #{replicate + 1}" if replicate else "")


@dataclass
class Standing:
    """How far a run is, as its folder shows.

    Args:
        name: the run's name.
        folder: its folder.
        state: `waiting`, `training`, `done` or `failed`.
        networks: (round, variant, replicate) of each network, in training order; empty until the run is checked.
        message: why it failed.
        splits: whether its controls may be trained apart.
        apart: those that are, each `waiting`, `training` or `done`, until the run has gathered them.
        own_is_in_training: whether the fit that finds its tickets is.
    """

    name: str
    folder: Path
    state: str = "waiting"
    networks: Sequence[NetworkKey] = ()
    message: str = ""
    rows: list[Row] = field(default_factory=list)
    splits: bool = True
    apart: dict[NetworkKey, str] = field(default_factory=dict)
    own_is_in_training: bool = False
    _seen: int = 0
    _since: float = field(default_factory=time.monotonic)

    def begin(self, network: NetworkKey | None = None) -> None:
        """Note that a training starts or resumes: the run's own, or that of a control apart."""
        self.state = "training"
        if network is not None:
            self.apart[network] = "training"
        else:
            self.own_is_in_training, self._since = True, time.monotonic()

    def wait(self, network: NetworkKey | None = None) -> None:
        """Note that a training has ended before its end."""
        if network is not None:
            self.apart[network] = "waiting"
        else:
            self.own_is_in_training = False
        is_begun = self.own_is_in_training or "training" in self.apart.values()
        self.state = "training" if is_begun else "waiting"

    def look(self) -> None:
        """Read the results if they have changed."""
        path = self.folder / RESULTS
        try:
            changed = path.stat().st_mtime_ns
            if changed != self._seen:
                self.rows, self._seen, self._since = read_rows(path), changed, time.monotonic()
        except (OSError, SettingError):  # no network is trained yet
            return

    @property
    def trained(self) -> set[NetworkKey]:
        """The networks that are trained."""
        return {network_key(row) for row in self.rows} | {one for one, state in self.apart.items() if state == "done"}

    @property
    def own_networks(self) -> list[NetworkKey]:
        """The networks that the run's own fit has still to train or to leave apart."""
        there = self.trained
        return [one for one in self.networks if one not in there and one not in self.apart]

    @property
    def chain(self) -> list[NetworkKey]:
        """The networks to go that can only follow each other: all, or if it splits those that are not controls."""
        return [one for one in self.own_networks if not self.splits or one[1] not in RANDOM_CONTROLS]

    @property
    def has_controls(self) -> bool:
        """Whether it has controls to train."""
        return any(variant in RANDOM_CONTROLS for _, variant, _ in self.own_networks)

    @property
    def in_training(self) -> list[NetworkKey]:
        """The networks in training: its own first."""
        own = self.own_networks[:1] if self.own_is_in_training else []
        return own + [one for one, state in self.apart.items() if state == "training"]

    @property
    def current(self) -> str:
        """The networks in training: `round 3 of 12  ticket, 2: random_mask`."""
        if self.state != "training" or not (now := self.in_training):
            return "gathering controls" if self.own_is_in_training else self.state
        names: dict[int, list[str]] = {}
        for network in now:
            names.setdefault(network[0], []).append(name_of(network))
        (first, own), *others = names.items()
        text = f"round {first} of {self.networks[-1][0]}  {', '.join(own)}"
        return text + "".join(f"; {round}: {', '.join(theirs)}" for round, theirs in others)

    @property
    def score(self) -> str:
        """The score of the last ticket so far."""
        last = next((row for row in reversed(self.rows) if row.variant == "ticket"), None)
        if last is None:
            return ""
        score = known_score(self.rows, None)
        value = score.value(last, "test") if score.value(last, "test") is not None else score.value(last, "val")
        return "" if value is None else f"{score.text(value)}{score.unit}"

    @property
    def seconds_a_network(self) -> float | None:
        """The mean time of its trained networks; None if there are none yet."""
        trained = [row.seconds for row in self.rows if row.steps]
        return sum(trained) / len(trained) if trained else None

    def seconds_of_all(self, otherwise: float | None = None) -> float | None:
        """The time that its networks to go take, one after the other; None if not known.

        Args:
            otherwise: the time of a network, while none of its own is trained.
        """
        there = self.trained
        return self._seconds([one for one in self.networks if one not in there], otherwise)

    def seconds_left(self, otherwise: float | None = None) -> float | None:
        """The time until it is done, if it goes on as now: that of what can only follow each other, or of all its
        networks shared by those in training; `otherwise` as in `seconds_of_all`."""
        if (whole := self.seconds_of_all(otherwise)) is None:
            return None
        return max(self._seconds(self.chain, otherwise) or 0.0, whole / max(1, len(self.in_training)))

    def _seconds(self, networks: Sequence[NetworkKey], otherwise: float | None) -> float | None:
        if self.state in ("done", "failed"):
            return 0.0
        each = self.seconds_a_network or otherwise
        if each is None or not self.networks:
            return None
        to_go = sum(variant != "pruned_only" for _, variant, _ in networks)
        return max(0.0, to_go * each - (time.monotonic() - self._since if self.state == "training" else 0.0))


def seconds_left(standings: Sequence[Standing], workers: int) -> float | None:
    """The time until all runs are done: the longest run, or all of them shared by the workers."""
    known = [each for one in standings if (each := one.seconds_a_network) is not None]
    usual = sum(known) / len(known) if known else None
    lefts = [(one.seconds_of_all(usual), one.seconds_left(usual)) for one in standings]
    alone = [(whole, left) for whole, left in lefts if whole is not None and left is not None]
    if len(alone) < len(standings):
        return None
    return max([sum(whole for whole, _ in alone) / max(1, workers), *(left for _, left in alone)])


class SweepDisplay:
    """Shows a sweep while it runs.

    Args:
        console: where.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live = Live(console=console, auto_refresh=False) if can_redraw(console) else None
        self._due = 0.0

    def __enter__(self) -> "SweepDisplay":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str) -> None:
        """Print an event, where no table shows it."""
        if self._live is None:
            print(line, file=self.console.file, flush=True)

    def show(self, standings: Sequence[Standing], workers: int, at_once: bool = False) -> None:
        """Redraw the table, if it is time."""
        if self._live is None or (time.monotonic() < self._due and not at_once):
            return
        for one in standings:
            if one.state == "training":
                one.look()
        self._live.update(drawn(standings, workers, self.console.height), refresh=True)
        self._due = time.monotonic() + REFRESH_SECONDS


def drawn(standings: Sequence[Standing], workers: int, height: int = 50) -> Table:
    """The table: a line a run, those in training first if not all fit, and a line for the whole."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for header in ("run", "network", "networks", "ticket", "time left"):
        table.add_column(header, justify="right" if header in ("networks", "ticket", "time left") else "left")
    room = max(3, height - 5)
    order = ("training", "failed", "waiting", "done")
    shown = sorted(standings, key=lambda one: order.index(one.state))[:room] if len(standings) > room else standings
    for one in shown:
        left = one.seconds_left() if one.state == "training" else None
        dim = "dim" if one.state in ("waiting", "done") else "red" if one.state == "failed" else ""
        table.add_row(
            Text(one.name, style=dim),
            Text(one.current, style=dim),
            f"{len(one.trained)}/{len(one.networks)}" if one.networks else "",
            one.score,
            "" if left is None else duration(left),
        )
    counts = {state: sum(one.state == state for one in standings) for state in order}
    said = ", ".join(f"{counts[state]} {state}" for state in ("done", "training", "waiting", "failed") if counts[state])
    done, planned = sum(len(one.trained) for one in standings), sum(len(one.networks) for one in standings)
    left = seconds_left(standings, workers)
    table.add_row(
        Text(f"{len(standings)} runs", style="bold"), said, f"{done}/{planned}", "", duration(left) if left else ""
    )
    return table
