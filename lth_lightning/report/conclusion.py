"""What the results say about the lottery ticket hypothesis, in words."""

from lth_lightning.report.aggregate import Curve, PooledRuns, Spread
from lth_lightning.report.reported import Reported
from lth_lightning.report.statistics import Difference, paired_differences, smallest_match
from lth_lightning.report.wording import named, weights
from lth_lightning.runs.score import Score


def summary(experiment: PooledRuns) -> str:
    """Summarise in two sentences what an experiment says for or against the hypothesis.

    A network *matches* the dense one when its mean score at the end of training is at most `Score.allowance` worse.
    The ticket is compared with its controls at the smallest density at which it matches and a control was trained, or
    at the density of its best score if it matches nowhere. A variant's limit is the
    smallest density at which it matches, even if it missed by chance at a larger one. `pruned_only` is not a control
    because it is not trained. With more than one run the difference is paired, with its 95 % interval, which does not
    account for the choice of the round by its result.
    """
    density, dense, reported = experiment.density, experiment.dense_score, experiment.reported
    score = reported.score
    sparse = {
        variant: curve
        for variant, whole in experiment.scores.items()
        if (curve := {number: value for number, value in whole.items() if density[number] < 1})
    }
    tickets = sparse.get("ticket")
    if not tickets:
        return f"No {reported.label} of a sparse ticket is known, so there is nothing to conclude."
    controls = {variant: curve for variant, curve in sparse.items() if variant in ("random_reinit", "random_mask")}
    chosen = _round_to_compare(score, tickets, controls, density, dense)
    compared = {variant: curve[chosen] for variant, curve in controls.items() if chosen in curve}
    pairs = {variant: paired_differences(experiment, "ticket", variant).get(chosen) for variant in compared}
    comparison = _comparison(reported, density[chosen], tickets[chosen], compared, pairs)
    caveat = f" {reported.caveat}" if reported.caveat else ""
    if dense is None:
        return f"{comparison}. No dense network was trained to compare with.{caveat}"
    reaches = {
        variant: smallest_match(score, curve, density, dense)
        for variant, curve in {"ticket": tickets, **controls}.items()
    }
    reach = "; ".join(f"{named(variant)} {weights(least) if least else 'none'}" for variant, least in reaches.items())
    allowance = score.allowance(dense.mean)
    at_most = f"{100 * allowance:g} points" if score.is_fraction else f"{allowance:.3g}"
    side = "below" if score.mode == "max" else "above"
    return (
        f"{comparison}; the dense network has {score.text(dense.mean)}{score.unit}. The smallest density at which each "
        f"was seen to match the dense network (at most {at_most} {side} it): {reach}.{caveat}"
    )


def _round_to_compare(
    score: Score, tickets: Curve, controls: dict[str, Curve], density: dict[int, float], dense: Spread | None
) -> int:
    """Choose the round of `summary`'s comparison; without a dense network, the sparsest."""
    candidates = [number for number in tickets if any(number in curve for curve in controls.values())] or list(tickets)
    matching = [number for number in candidates if dense is None or score.matches(tickets[number].mean, dense.mean)]
    if matching:
        return min(matching, key=lambda number: density[number])
    best = score.best([tickets[number].mean for number in candidates])
    return next(number for number in candidates if tickets[number].mean == best)


def _comparison(
    reported: Reported, density: float, ticket: Spread, controls: dict[str, Spread], pairs: dict[str, Difference | None]
) -> str:
    """Compare the ticket with the controls of its round: by printed means, or by pairs if there are several runs."""
    score = reported.score
    value = f"{score.text(ticket.mean)}{score.unit}"
    has = f"{value} {reported.label}" if score.is_fraction else f"a {reported.label} of {value}"
    text = f"At {weights(density)} of the weights the ticket has {has} (n = {ticket.n})"
    for variant, control in controls.items():
        paired, facts = pairs[variant], f"{score.text(control.mean)}{score.unit}"
        gain = float(score.text(ticket.mean)) - float(score.text(control.mean))  # of what is printed
        gain = round(gain, 1) / 100 if score.is_fraction else gain
        if paired and paired.low is not None and paired.high is not None:
            gain = paired.mean if score.gap(paired.mean).strip("0.") else 0.0
            low, high = (paired.low, paired.high) if gain >= 0 else (-paired.high, -paired.low)
            facts += f"; 95 % interval {_printed(score, low)} to {_printed(score, high)}, n = {paired.n}"
        more = f"{score.size(gain)} {'more' if gain > 0 else 'less'} than"
        text += f", {more if gain else 'as much as'} {named(variant)} ({facts})"
    return text


def _printed(score: Score, value: float) -> str:
    return score.text(value).replace("-", "−")
