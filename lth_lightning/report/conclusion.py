"""What the results say about the lottery ticket hypothesis, in words."""

from lth_lightning.report.aggregate import Curve, PooledRuns, Spread
from lth_lightning.report.statistics import MATCH_TOLERANCE, Difference, matches, paired_differences, smallest_match
from lth_lightning.report.wording import named, percent, weights


def summary(experiment: PooledRuns) -> str:
    """Summarise in two sentences what an experiment says for or against the hypothesis.

    A network *matches* the dense one when its mean test accuracy at the end of training is at most
    `MATCH_TOLERANCE` lower. The ticket is compared with its controls at the smallest density at which it matches
    and a control was trained, or at the density of its best accuracy if it matches nowhere. A variant's limit is the
    smallest density at which it matches, even if it missed by chance at a larger one. `pruned_only` is not a control
    because it is not trained. With more than one run the difference is paired, with its 95 % interval, which does not
    account for the choice of the round by its result.
    """
    density, dense = experiment.density, experiment.dense_accuracy
    sparse = {
        variant: curve
        for variant, whole in experiment.accuracy.items()
        if (curve := {number: value for number, value in whole.items() if density[number] < 1})
    }
    tickets = sparse.get("ticket")
    if not tickets:
        return "No test accuracy of a sparse ticket is known, so there is nothing to conclude."
    controls = {variant: curve for variant, curve in sparse.items() if variant in ("random_reinit", "random_mask")}
    chosen = _round_to_compare(tickets, controls, density, dense)
    compared = {variant: curve[chosen] for variant, curve in controls.items() if chosen in curve}
    pairs = {variant: paired_differences(experiment, "ticket", variant).get(chosen) for variant in compared}
    comparison = _comparison(density[chosen], tickets[chosen], compared, pairs)
    if dense is None:
        return f"{comparison}. No dense network was trained to compare with."
    reaches = {
        variant: smallest_match(curve, density, dense) for variant, curve in {"ticket": tickets, **controls}.items()
    }
    reach = "; ".join(f"{named(variant)} {weights(least) if least else 'none'}" for variant, least in reaches.items())
    return (
        f"{comparison}; the dense network has {percent(dense.mean)} %. The smallest density at which each was seen to "
        f"match the dense network (at most {100 * MATCH_TOLERANCE:g} points below it): {reach}."
    )


def _round_to_compare(
    tickets: Curve, controls: dict[str, Curve], density: dict[int, float], dense: Spread | None
) -> int:
    """Choose the round of `summary`'s comparison; without a dense network, the sparsest."""
    candidates = [number for number in tickets if any(number in curve for curve in controls.values())] or list(tickets)
    matching = [number for number in candidates if dense is None or matches(tickets[number].mean, dense.mean)]
    if matching:
        return min(matching, key=lambda number: density[number])
    return max(candidates, key=lambda number: tickets[number].mean)


def _comparison(
    density: float, ticket: Spread, controls: dict[str, Spread], pairs: dict[str, Difference | None]
) -> str:
    """Compare the ticket with the controls of its round: by printed means, or by pairs if there are several runs."""
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


def _points(fraction: float) -> str:
    return percent(fraction).replace("-", "−")
