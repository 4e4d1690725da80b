"""The plan of an experiment: which networks are trained, and in which order."""

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
            SettingError: the text is not such a length.
        """
        match = re.fullmatch(r"(\d{1,15})(it|ep)|(\d{1,15}(?:\.\d{1,12})?)(%)", str(text).strip(), re.ASCII)
        amount, unit = [group for group in match.groups() if group is not None] if match else ("", "")
        if unit not in units:
            examples = {"it": "500it", "ep": "2ep", "%": "5%"}
            allowed = ", ".join(f"{examples[unit]} ({_UNITS[unit]})" for unit in units)
            raise SettingError(f"{setting} must be a number with a unit, e.g. {allowed}; got {text!r}.")
        return cls(Fraction(amount), unit)

    def steps(self, of_epochs: Callable[[int], int], round_steps: int | None = None) -> int:
        """Convert this length to optimizer steps.

        Args:
            of_epochs: returns the total steps of the first n epochs, which may differ in length.
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
        """The number of epochs, or None if the unit is not `ep`."""
        return int(self.amount) if self.unit == "ep" else None

    @property
    def own_steps(self) -> int | None:
        """The number of steps, or None if the unit is not `it`."""
        return int(self.amount) if self.unit == "it" else None

    def __str__(self) -> str:
        amount = Decimal(self.amount.numerator) / self.amount.denominator  # exact: `parse` takes 27 digits at most
        return f"{amount:f}{self.unit}"


CONTROLS = tuple(variant for variant in VARIANTS if variant != "ticket")


@dataclass(frozen=True)
class TrainedNetwork:
    """One network to train: its round, its variant (ticket or control), and the number of its replicate."""

    round: int
    variant: str
    replicate: int = 0

    @property
    def name(self) -> str:
        """Its name within the round: `ticket`, `random_mask #2`."""
        return self.variant + (f" #{self.replicate + 1}" if self.replicate else "")

    def title(self, density: float) -> str:
        """Return a name that reads well in a legend and sorts by round: `round 07 21.1% ticket`.

        TensorBoard breaks lines at the first space and truncates what does not fit before it.
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
    """Return the networks in training order: for each round, the ticket and then its controls.

    Only `pruned_only` comes before the ticket, because it shows the weights of the last round.

    Args:
        rounds: all rounds.
        controls: variants to train in addition to the ticket.
        control_rounds: rounds with controls; None means all but round 0, whose ticket is the dense network.
        replicates: number of networks per random control and round.
        found: whether this run finds its tickets, rather than reading them from files.

    Raises:
        SettingError: an unknown or repeated control, a control round that does not exist, replicates < 1, or
            `pruned_only` for tickets from files, which have no last round.
    """
    for control in controls:
        if control not in CONTROLS:
            raise unknown_name("lottery.controls", control, CONTROLS)
    if len(set(controls)) < len(controls):
        raise SettingError(f"lottery.controls: {list(controls)} names a control twice; set control_replicates instead.")
    if replicates < 1:
        raise SettingError(f"lottery.control_replicates must be at least 1, got {replicates}.")
    if not found and "pruned_only" in controls:
        raise SettingError("lottery.controls: pruned_only does not apply to lottery.tickets, which are not pruned.")
    possible = [round for round in rounds if round > 0 or not found]
    chosen = possible if control_rounds is None else control_rounds
    if odd := [round for round in chosen if round not in possible]:
        beyond = f"round {odd[0]} is beyond lottery.rounds {rounds[-1]}; raise that to {odd[0]}, or"
        reason = beyond if found and odd[0] > rounds[-1] else f"round {odd[0]} cannot have controls;"
        among = ", ".join(map(str, possible)) or "none, as only the dense round is trained"
        raise SettingError(f"lottery.control_rounds: {reason} choose from {among}.")
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
    """Return rounds 0 to the last, as given by `lottery.rounds` or by the number of densities.

    Raises:
        SettingError: neither is given, they contradict each other, or the number is negative.
    """
    if rounds is None and pruning.densities is None:
        raise SettingError("lottery.rounds is missing: set how often to prune, e.g. 10, or set pruning.densities.")
    if rounds is not None and rounds < 0:
        raise SettingError(f"lottery.rounds must be at least 0 (only the dense network), got {rounds}.")
    if pruning.densities is not None and rounds not in (None, len(pruning.densities)):
        raise SettingError(
            f"lottery.rounds is {rounds}, but pruning.densities has {len(pruning.densities)} entries, one per round. "
            "Leave out lottery.rounds (--lottery.rounds null)."
        )
    last = rounds if rounds is not None else len(pruning.densities or ())
    return list(range(last + 1))


def check_initialisation(pruning: Pruning, rewind: str, controls: Sequence[str]) -> None:
    """Refuse settings that need trained weights if masks are made at initialisation.

    Raises:
        SettingError: `rewind` is not `weights`, or the controls include `pruned_only`.
    """
    if pruning.prune_from != "initialisation":
        return
    if rewind != "weights":
        raise SettingError(
            f"lottery.rewind: {rewind} needs trained weights, but lottery.pruning.prune_from initialisation prunes "
            "before training. Set --lottery.rewind weights, or prune from dense."
        )
    if "pruned_only" in controls:
        raise SettingError(
            "lottery.controls: pruned_only needs trained weights, but lottery.pruning.prune_from initialisation prunes "
            "before training. Leave it out."
        )


def check_lengths(train_for: Length, rewind_to: Length) -> None:
    """Refuse lengths that are wrong whatever the length of an epoch.

    Raises:
        SettingError: a round has no steps, or the rewind point is not before its end.
    """
    if train_for.amount == 0:
        raise SettingError(f"lottery.train_for must be above 0, got {train_for}.")
    too_late = rewind_to.unit == train_for.unit and rewind_to.amount >= train_for.amount
    if too_late or (rewind_to.unit == "%" and rewind_to.amount >= 100):
        raise SettingError(f"lottery.rewind_to must be before the end of a round ({train_for}), got {rewind_to}.")


def steps_of_lengths(
    train_for: Length, rewind_to: Length, of_epochs: Callable[[int], int], latest_rewind_step: int
) -> tuple[int, int]:
    """Return the length of a round and the rewind point, in optimizer steps.

    Args:
        train_for: the length of a round.
        rewind_to: the rewind point.
        of_epochs: returns the total steps of the first n epochs.
        latest_rewind_step: the latest rewind step of tickets from files.

    Raises:
        SettingError: epochs cannot be counted, or the rewind point is not before the end of a round.
    """
    round_steps = train_for.steps(of_epochs)
    rewind_step = rewind_to.steps(of_epochs, round_steps)
    if (latest := max(rewind_step, latest_rewind_step)) >= round_steps:
        raise SettingError(
            f"lottery.rewind_to must be before the end of a round of {round_steps} steps ({train_for}), "
            f"got step {latest}."
        )
    return round_steps, rewind_step
