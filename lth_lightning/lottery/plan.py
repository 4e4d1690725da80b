"""The plan of an experiment: which networks are trained, in which order."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from lth_lightning.errors import SettingError, unknown_name
from lth_lightning.pruning.pruning import Pruning
from lth_lightning.runs.rows import VARIANTS

_UNITS = {"it": "optimizer steps", "ep": "passes over the training data", "%": "percent of train_for"}


@dataclass(frozen=True)
class Length:
    """A length of training: `amount` in the unit `it` (optimizer steps), `ep` (epochs) or `%` (of a round)."""

    amount: Fraction
    unit: str

    @classmethod
    def parse(cls, text: str, setting: str, units: tuple[str, ...]) -> "Length":
        """Read `text`, the value given for `setting`, where only `units` are allowed.

        Raises:
            SettingError: the text is no such length.
        """
        match = re.fullmatch(r"(\d{1,15})(it|ep)|(\d{1,15}(?:\.\d{1,12})?)(%)", str(text).strip(), re.ASCII)
        amount, unit = [group for group in match.groups() if group is not None] if match else ("", "")
        if unit not in units:
            examples = {"it": "500it", "ep": "2ep", "%": "5%"}
            allowed = ", ".join(f"{examples[unit]} ({_UNITS[unit]})" for unit in units)
            raise SettingError(f"{setting}: {text!r} is not a length; write a number and its unit: {allowed}.")
        return cls(Fraction(amount), unit)

    def steps(self, of_epochs: Callable[[int], int], round_steps: int | None = None) -> int:
        """This length in optimizer steps.

        Args:
            of_epochs: the steps of the first so many epochs, which need not all have as many.
            round_steps: the length of a round, which `%` refers to.
        """
        if self.unit == "it":
            return int(self.amount)
        if self.unit == "ep":
            return of_epochs(int(self.amount))
        assert round_steps is not None
        return int(self.amount * round_steps / 100)

    @property
    def epochs(self) -> int | None:
        """How many, where it is given in epochs."""
        return int(self.amount) if self.unit == "ep" else None

    @property
    def own_steps(self) -> int | None:
        """How many, where it is given in steps."""
        return int(self.amount) if self.unit == "it" else None

    def __str__(self) -> str:
        amount = Decimal(self.amount.numerator) / self.amount.denominator  # exact: `parse` takes 27 digits at most
        return f"{amount:f}{self.unit}"


CONTROLS = tuple(variant for variant in VARIANTS if variant != "ticket")


@dataclass(frozen=True)
class TrainedNetwork:
    """One network to train: the round, what it is in that round, and which of several alike."""

    round: int
    variant: str
    replicate: int = 0

    @property
    def name(self) -> str:
        """What it is in its round: `ticket`, `random_mask #2`."""
        return self.variant + (f" #{self.replicate + 1}" if self.replicate else "")

    def title(self, density: float) -> str:
        """A name that reads well in a legend and sorts by round: `round 07 21.1% ticket`.

        TensorBoard breaks it at the first space, and cuts off what does not fit before.
        """
        return f"round {self.round:02d} {100 * density:.3g}% {self.name}"


def plan_networks(
    rounds: Sequence[int],
    controls: Sequence[str],
    control_rounds: Sequence[int] | None,
    replicates: int,
    *,
    found: bool,
) -> list[TrainedNetwork]:
    """The networks in the order of training: round by round, the ticket and then its controls.

    Only `pruned_only` comes before the ticket: it shows the weights as the last round left them.

    Args:
        rounds: the rounds there are.
        controls: variants to train beside the ticket.
        control_rounds: rounds that have controls; None: all but round 0, whose ticket is the dense network.
        replicates: how many networks of each random control a round.
        found: whether tickets are found here, and not read from files.

    Raises:
        SettingError: an unknown or repeated control, a round that there is not, replicates < 1, or
            `pruned_only` for tickets from files, where there is no last round.
    """
    for control in controls:
        if control not in CONTROLS:
            raise unknown_name("lottery.controls", control, CONTROLS)
    if len(set(controls)) < len(controls):
        raise SettingError(f"lottery.controls: {list(controls)} names a control twice; see control_replicates.")
    if replicates < 1:
        raise SettingError(f"lottery.control_replicates: {replicates}; a control needs at least 1.")
    if not found and "pruned_only" in controls:
        raise SettingError("lottery.controls: pruned_only prunes a round's trained weights; tickets are not pruned.")
    possible = [round for round in rounds if round > 0 or not found]
    chosen = possible if control_rounds is None else control_rounds
    if odd := [round for round in chosen if round not in possible]:
        raise SettingError(
            f"lottery.control_rounds: there is no round {odd[0]} to control; "
            f"rounds are {', '.join(map(str, possible)) or 'only the dense one'}."
        )
    plan = []
    for round in rounds:
        here = controls if round in chosen else ()
        plan += [TrainedNetwork(round, "pruned_only")] if "pruned_only" in here else []
        plan += [TrainedNetwork(round, "ticket")]
        plan += [
            TrainedNetwork(round, control, i) for control in here if control != "pruned_only" for i in range(replicates)
        ]
    return plan


def planned_rounds(rounds: int | None, pruning: Pruning) -> list[int]:
    """Rounds 0 to the last, as said by `lottery.rounds` or by how many densities there are.

    Raises:
        SettingError: neither says it, they contradict each other, or the number is negative.
    """
    if rounds is None and pruning.densities is None:
        raise SettingError("lottery.rounds is missing: how often to prune, e.g. 10 (or give pruning.densities).")
    if rounds is not None and rounds < 0:
        raise SettingError(f"lottery.rounds: {rounds} is negative; 0 trains only the dense network.")
    if pruning.densities is not None and rounds not in (None, len(pruning.densities)):
        raise SettingError(
            f"lottery.rounds is {rounds}, but pruning.densities has {len(pruning.densities)} entries, one a round; "
            "leave out lottery.rounds (--lottery.rounds null)."
        )
    last = rounds if rounds is not None else len(pruning.densities or ())
    return list(range(last + 1))


def check_initialisation(pruning: Pruning, rewind: str, controls: Sequence[str]) -> None:
    """Refuse what needs trained weights where masks are made without any.

    Raises:
        SettingError: another way to rewind than `weights`, or the control `pruned_only`.
    """
    if pruning.prune_from != "initialisation":
        return
    if rewind != "weights":
        raise SettingError(
            f"lottery.rewind: {rewind} goes on from the weights that were pruned, and with lottery.pruning.prune_from "
            "initialisation they are not trained; set --lottery.rewind weights, or prune from dense."
        )
    if "pruned_only" in controls:
        raise SettingError(
            "lottery.controls: pruned_only shows trained weights as pruning leaves them, and with "
            "lottery.pruning.prune_from initialisation none are trained before; leave it out."
        )


def check_lengths(train_for: Length, rewind_to: Length) -> None:
    """Refuse what can be seen to be wrong without knowing the length of an epoch.

    Raises:
        SettingError: a round of no steps, or a rewind point that is not before its end.
    """
    if train_for.amount == 0:
        raise SettingError(f"lottery.train_for: a round of {train_for} trains nothing.")
    too_late = rewind_to.unit == train_for.unit and rewind_to.amount >= train_for.amount
    if too_late or (rewind_to.unit == "%" and rewind_to.amount >= 100):
        raise SettingError(f"lottery.rewind_to: {rewind_to} is not before the end of a round of {train_for}.")


def steps_of_lengths(
    train_for: Length, rewind_to: Length, of_epochs: Callable[[int], int], latest_rewind_step: int
) -> tuple[int, int]:
    """A round and its rewind point in optimizer steps.

    Args:
        train_for: a round.
        rewind_to: the rewind point.
        of_epochs: the steps of the first so many epochs.
        latest_rewind_step: of tickets from files.

    Raises:
        SettingError: epochs cannot be counted, or the rewind point is not before the end of a round.
    """
    round_steps = train_for.steps(of_epochs)
    rewind_step = rewind_to.steps(of_epochs, round_steps)
    if (latest := max(rewind_step, latest_rewind_step)) >= round_steps:
        raise SettingError(
            f"lottery.rewind_to: the rewind point is step {latest}, not before the end of a round of "
            f"{round_steps} steps ({train_for})."
        )
    return round_steps, rewind_step
