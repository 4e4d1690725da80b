"""What the results say about the lottery ticket hypothesis, in words."""

from collections.abc import Mapping, Sequence

from lth_lightning.report.aggregate import Curve, PooledRuns, Spread
from lth_lightning.report.reported import Reported
from lth_lightning.report.statistics import Difference, paired_differences, smallest_match
from lth_lightning.report.wording import counted, named, weights
from lth_lightning.runs.rows import RANDOM_CONTROLS
from lth_lightning.runs.score import MATCH_SHARE, Score


def answer(experiment: PooledRuns) -> str:
    """Say in one sentence from which density on the ticket beats each control, and which control beats it where.

    One network beats another at a density if the 95 % interval of their paired difference excludes 0; with fewer runs
    than an interval takes, if it is better by more than `Score.allowance`. "From x on" means at x and at every sparser
    density that both were trained at.
    """
    tickets, controls = _sparse(experiment)
    if not tickets:
        return f"No {experiment.reported.label} of a sparse ticket is known, so there is nothing to conclude."
    reach = _sparsest_match(experiment, tickets)
    pairs = {variant: paired_differences(experiment, "ticket", variant) for variant in controls}
    known = {variant: found for variant, found in pairs.items() if found}
    if not known:
        return (
            f"No control was trained, so it is open whether the ticket owes its score to its starting weights{reach}."
        )
    beats, beaten, nowhere = {}, {}, []
    for variant, found in known.items():
        signs = {n: _sign(experiment, one, controls[variant][n].mean) for n, one in found.items()}
        order = sorted(found, key=lambda number: -experiment.density[number])
        stretch = [experiment.density[number] for number in order]
        won, lost = ([signs[number] == sign for number in order] for sign in (1, -1))
        if any(won):
            beats[named(variant)] = _where(stretch, won)
        else:
            nowhere.append(named(variant))
        if any(lost):
            beaten[named(variant)] = _where(stretch, lost)
    text = f"The ticket beats {_joined(beats)}" if beats else f"The ticket beats {' and '.join(nowhere)} at no density"
    text += f", but {' and '.join(nowhere)} at none" if beats and nowhere else ""
    text += "".join(f"; {variant} beats it {where}" for variant, where in beaten.items())
    return f"{text}{reach} ({_criterion(experiment, list(known.values()))})."


def _sparse(experiment: PooledRuns) -> tuple[Curve, dict[str, Curve]]:
    """The scores of sparse tickets, and of their controls."""
    sparse = {
        variant: curve
        for variant, whole in experiment.scores.items()
        if (curve := {number: value for number, value in whole.items() if experiment.density[number] < 1})
    }
    return sparse.get("ticket", {}), {variant: sparse[variant] for variant in RANDOM_CONTROLS if variant in sparse}


def _sparsest_match(experiment: PooledRuns, tickets: Curve) -> str:
    if (dense := experiment.dense_score) is None:
        return ""
    least = smallest_match(experiment.reported.score, tickets, experiment.density, dense)
    if least is None:
        return "; no ticket matches the dense network"
    return f"; the sparsest ticket that matches the dense network keeps {weights(least)}"


def _sign(experiment: PooledRuns, found: Difference, control: float) -> int:
    """1 where the ticket beats the control, -1 where the control beats it, else 0."""
    score, dense = experiment.reported.score, experiment.dense_score
    better = 1 if score.mode == "max" else -1
    if found.low is not None and found.high is not None:
        return better * ((found.low > 0) - (found.high < 0))
    least = score.allowance(dense.mean if dense else control) + 1e-9  # in floats 0.975 - 0.97 > 0.005
    return better * ((found.mean > least) - (found.mean < -least))


def _where(densities: Sequence[float], holds: Sequence[bool]) -> str:
    """Where something holds, of falling densities: `from 24 % on`, `from 51.2 % to 24 %`, `at 24 % only`."""
    there = [density for density, one in zip(densities, holds, strict=True) if one]
    places = [place for place, one in enumerate(holds) if one]
    start = len(holds) - next((n for n, one in enumerate(reversed(holds)) if not one), len(holds))
    if len(holds) - start > 1:
        return f"from {weights(densities[start])} of the weights on"
    if len(places) == 1:
        return f"at {weights(there[0])} of the weights" + (" only" if len(holds) > 1 else "")
    if places[-1] - places[0] == len(places) - 1:
        return f"from {weights(there[0])} to {weights(there[-1])} of the weights"
    return f"at {len(places)} of {len(holds)} densities, between {weights(there[0])} and {weights(there[-1])}"


def _joined(beats: Mapping[str, str]) -> str:
    """`random reinit and random mask from 24 % on`, or each with its own density."""
    first, *others = beats.values()
    if all(where == first for where in others):
        return f"{' and '.join(beats)} {first}"
    return " and ".join(f"{variant} {where}" for variant, where in beats.items())


def _criterion(experiment: PooledRuns, pairs: Sequence[Mapping[int, Difference]]) -> str:
    """What counts as beating, and the number of runs."""
    found = [one for curve in pairs for one in curve.values()]
    score, dense = experiment.reported.score, experiment.dense_score
    if score.tolerance is None and not score.is_fraction and dense is None:
        least = f"{100 * MATCH_SHARE:g} %"
    else:
        least = score.size(score.allowance(dense.mean if dense else 0.0))
    rules = []
    if any(one.low is not None for one in found):
        rules.append("that the 95 % interval of the paired differences excludes 0")
    if any(one.low is None for one in found):
        rules.append(f"better by more than {least}")
    return f"{counted(one.n for one in found)}; “beats” means {', or without an interval '.join(rules)}"


def summary(experiment: PooledRuns) -> str:
    """Summarise in two sentences what an experiment says for or against the hypothesis.

    A network *matches* the dense one when its mean score at the end of training is at most `Score.allowance` worse.
    The ticket is compared with its controls at the smallest density at which it matches and a control was trained, or
    at the density of its best score if it matches nowhere. A variant's limit is the smallest density at which it
    matches, even if it missed by chance at a larger one. With more than one run the difference is paired; from `FEWEST`
    on it has its 95 % interval, which does not account for the choice of the round by its result.
    """
    density, dense, reported = experiment.density, experiment.dense_score, experiment.reported
    score = reported.score
    tickets, controls = _sparse(experiment)
    if not tickets:
        return f"No {reported.label} of a sparse ticket is known, so there is nothing to conclude."
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
        if paired and paired.n > 1:
            gain = paired.mean if score.gap(paired.mean).strip("0.") else 0.0
            facts += f"; {_interval(score, paired, 1 if gain >= 0 else -1)}, n = {paired.n}"
        more = f"{score.size(gain)} {'more' if gain > 0 else 'less'} than"
        text += f", {more if gain else 'as much as'} {named(variant)} ({facts})"
    return text


def _interval(score: Score, paired: Difference, sign: int) -> str:
    if paired.low is None or paired.high is None:
        return "paired"
    low, high = sorted((sign * paired.low, sign * paired.high))
    return f"95 % interval {_printed(score, low)} to {_printed(score, high)}"


def _printed(score: Score, value: float) -> str:
    return score.text(value).replace("-", "−")
