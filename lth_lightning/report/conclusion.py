"""What the rows say about the lottery ticket hypothesis, in words."""

from collections.abc import Iterable, Sequence

from lth_lightning.report.aggregate import Spread, curves, dense_rows, densities, spread
from lth_lightning.report.statistics import (
    MATCH_TOLERANCE,
    Difference,
    RunRows,
    matches,
    paired_differences,
    smallest_match,
)


def summary(runs: Sequence[RunRows]) -> str:
    """What the rows of the runs say about the hypothesis, for or against it, in two sentences.

    A network *matches* the dense one when its mean test accuracy at the end of training is at most
    `MATCH_TOLERANCE` lower. The ticket is compared with its controls at the smallest density at which it matches
    and a control was trained; if it matches nowhere, at the density where it comes nearest. How far down a
    variant matches is the smallest density at which it does, even if it missed by chance at a larger one.
    `pruned_only` is no control: it is not trained. With more than one run the difference is that of pairs, with its
    95 % interval; that the round was chosen by its result is not accounted for.
    """
    rows = [row for run in runs for row in run]
    sparse = [row for row in rows if row.density < 1]
    accuracy = curves(sparse, lambda row: row.test_acc)
    tickets = accuracy.get("ticket")
    if not tickets:
        return "No test accuracy of a sparse ticket is known, so there is nothing to conclude."
    density = densities(sparse)
    controls = {variant: curve for variant, curve in accuracy.items() if variant in ("random_reinit", "random_mask")}
    dense = spread(row.test_acc for row in dense_rows(rows))
    chosen = _round_to_compare(tickets, controls, density, dense)
    compared = {variant: curve[chosen] for variant, curve in controls.items() if chosen in curve}
    pairs = {variant: paired_differences(runs, "ticket", variant).get(chosen) for variant in compared}
    comparison = _comparison(density[chosen], tickets[chosen], compared, pairs)
    if dense is None:
        return f"{comparison}. No dense network was trained to compare with."
    reach = "; ".join(
        f"{named(variant)} {_reach(curve, density, dense)}"
        for variant, curve in {"ticket": tickets, **controls}.items()
    )
    return (
        f"{comparison}; the dense network has {percent(dense.mean)} %. The smallest density at which each was seen to "
        f"match the dense network (at most {100 * MATCH_TOLERANCE:g} points below it): {reach}."
    )


def _round_to_compare(
    tickets: dict[int, Spread], controls: dict[str, dict[int, Spread]], density: dict[int, float], dense: Spread | None
) -> int:
    """The round of `summary`'s comparison; without a dense network the sparsest one."""
    candidates = [number for number in tickets if any(number in curve for curve in controls.values())] or list(tickets)
    matching = [number for number in candidates if dense is None or matches(tickets[number].mean, dense.mean)]
    if matching:
        return min(matching, key=lambda number: density[number])
    return max(candidates, key=lambda number: tickets[number].mean)


def _comparison(
    density: float, ticket: Spread, controls: dict[str, Spread], pairs: dict[str, Difference | None]
) -> str:
    """The ticket against the controls of its round: by the means as they are printed, or by pairs if there are more."""
    text = (
        f"At {weights(density)} of the weights the ticket has {percent(ticket.mean)} % test accuracy (n = {ticket.n})"
    )
    for variant, control in controls.items():
        paired, facts = pairs[variant], f"{percent(control.mean)} %"
        gain = round(100 * ticket.mean, 1) - round(100 * control.mean, 1)
        if paired and paired.low is not None and paired.high is not None:
            gain = round(100 * paired.mean, 1)
            low, high = (paired.low, paired.high) if gain >= 0 else (-paired.high, -paired.low)
            facts += f"; 95 % interval {_points(low)} to {_points(high)}, n = {paired.n}"
        verdict = f"{abs(gain):.1f} points {'more' if gain > 0 else 'less'} than" if gain else "as much as"
        text += f", {verdict} {named(variant)} ({facts})"
    return text


def _reach(curve: dict[int, Spread], density: dict[int, float], dense: Spread) -> str:
    found = smallest_match(curve, density, dense)
    return "none" if found is None else weights(found)


def _points(fraction: float) -> str:
    return percent(fraction).replace("-", "−")


def weights(density: float) -> str:
    """A density as sentences and labels print it: 0.2107 is 21.1 %."""
    return f"{100 * density:.3g} %"


def named(variant: str) -> str:
    """A variant's name in words."""
    return variant.replace("_", " ")


def short_names(names: list[str]) -> list[str]:
    """The names without the dotted parts that all of them begin with (`model.net.`) or end in (`.weight`)."""
    parts = [name.split(".") for name in names]
    for end in (0, -1):
        while min(map(len, parts)) > 1 and len({part[end] for part in parts}) == 1:
            for part in parts:
                del part[end]
    return [".".join(part) for part in parts]


def counted(counts: Iterable[int]) -> str:
    """How many networks or runs figures stand for: "n = 3", or "n = 1 to 3" where they differ."""
    found = set(counts)
    return "n = " + " to ".join(map(str, sorted({min(found), max(found)})))


def percent(fraction: float) -> str:
    """An accuracy as tables and sentences print it: 0.9751 is 97.5."""
    return f"{100 * fraction:.1f}"
