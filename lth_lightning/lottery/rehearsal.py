"""A rehearsal, `Trainer(fast_dev_run=True)`: two rounds of two batches with everything that belongs to them (pruning,
controls, rewinding, tickets), in a temporary folder, so that nothing is kept."""

import dataclasses
import tempfile
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from lth_lightning.lottery.plan import Length, plan_networks
from lth_lightning.tickets.ticket import Ticket
from lth_lightning.tickets.transfer import GivenTickets
from lth_lightning.trainer import lengths

if TYPE_CHECKING:
    from lth_lightning.lottery.callback import LotteryTicket

ROUNDS = 2  # the dense network and one that is pruned
ONE_STEP = Length(Fraction(1), "it")


class Rehearsal:
    """Shortens a lottery's settings for one fit, if the Trainer asks for a rehearsal.

    Args:
        lottery: the callback; its own settings are back after `end`.
    """

    def __init__(self, lottery: "LotteryTicket") -> None:
        self._lottery = lottery
        self._before: dict[str, Any] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def begin(self, trainer: L.Trainer) -> None:
        """Shorten the rounds; do nothing in a fit that is no rehearsal.

        Raises:
            TicketError: a file of `lottery.tickets` cannot be read.
        """
        batches = lengths.shorten_to_rehearsal(trainer)
        if not batches:
            return
        lottery = self._lottery
        for name, value in self._settings(batches).items():
            self._before[name] = getattr(lottery, name)
            setattr(lottery, name, value)
        if not lottery.folder_is_locked and trainer.is_global_zero:  # else the command line's own temporary folder
            self._folder = tempfile.TemporaryDirectory(prefix="lth_rehearsal_", ignore_cleanup_errors=True)
            self._before["given_run_dir"], lottery.given_run_dir = lottery.given_run_dir, self._folder.name
        rank_zero_info(f"Rehearsal (fast_dev_run): {len(lottery.plan)} networks of {batches} batches; no file is kept.")

    def end(self) -> None:
        """Give the lottery its own settings back, and remove the files."""
        for name, value in self._before.items():
            setattr(self._lottery, name, value)
        self._before = {}
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _settings(self, batches: int) -> dict[str, Any]:
        lottery = self._lottery
        given, pruning = lottery.given, lottery.pruning
        rounds = list(dict.fromkeys(network.round for network in lottery.plan))[:ROUNDS]
        if pruning.densities is not None:
            pruning = dataclasses.replace(pruning, densities=pruning.densities[: ROUNDS - 1])
        return {
            "plan": plan_networks(rounds, lottery.controls, None, lottery.control_replicates, found=given is None),
            "control_rounds": None,
            "pruning": pruning,
            "train_for": Length(Fraction(_latest_rewind_step(given) + batches), "it"),
            "rewind_to": ONE_STEP if lottery.rewind_to.amount else lottery.rewind_to,
        }


def _latest_rewind_step(given: GivenTickets | None) -> int:
    """The latest step that tickets from files are trained from; their weights alone determine it."""
    if given is None or given.transfer != "mask_and_weights":
        return 0
    return max(int(Ticket.load(path).info.get("rewind_step", 0)) for path in given.files.values())
