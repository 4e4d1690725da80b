"""What the rows say about the lottery ticket hypothesis, in words."""

from collections.abc import Sequence

from lth_lightning.results import Row, Spread, curves, dense_rows, densities, spread

MATCH_TOLERANCE = 0.005
"""A network matches the dense one when its mean test accuracy is at most this much lower: half a point."""


def summary(rows: Sequence[Row]) -> str:
    """What the rows say about the hypothesis, for or against it, in two sentences.

    A network *matches* the dense one when its mean test accuracy at the end of training is at most
    `MATCH_TOLERANCE` lower. The ticket is compared with its controls at the smallest density at which it matches
    and a control was trained; if it matches nowhere, at the density where it comes nearest. How far down a
    variant matches is the smallest density at which it does, even if it missed by chance at a larger one.
    `pruned_only` is no control: it is not trained.
    """
    sparse = [row for row in rows if row.density < 1]
    accuracy = curves(sparse, lambda row: row.test_acc)
    tickets = accuracy.get("ticket")
    if not tickets:
        return "No test accuracy of a sparse ticket is known, so there is nothing to conclude."
    density = densities(sparse)
    controls = {variant: curve for variant, curve in accuracy.items() if variant in ("random_reinit", "random_mask")}
    dense = spread(row.test_acc for row in dense_rows(rows))
    chosen = _round_to_compare(tickets, controls, density, dense)
    comparison = _comparison(
        density[chosen], tickets[chosen], {v: c[chosen] for v, c in controls.items() if chosen in c}
    )
    if dense is None:
        return f"{comparison}. No dense network was trained to compare with."
    reach = "; ".join(
        f"{_named(variant)} {_reach(curve, density, dense)}"
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
    matching = [number for number in candidates if dense is None or _matches(tickets[number], dense)]
    if matching:
        return min(matching, key=lambda number: density[number])
    return max(candidates, key=lambda number: tickets[number].mean)


def _comparison(density: float, ticket: Spread, controls: dict[str, Spread]) -> str:
    """The ticket against the controls of its round, by the means as they are printed."""
    text = (
        f"At {_weights(density)} of the weights the ticket has {percent(ticket.mean)} % test accuracy (n = {ticket.n})"
    )
    for variant, control in controls.items():
        gain = round(100 * ticket.mean, 1) - round(100 * control.mean, 1)
        verdict = f"{abs(gain):.1f} points {'more' if gain > 0 else 'less'} than" if gain else "as much as"
        text += f", {verdict} {_named(variant)} ({percent(control.mean)} %)"
    return text


def _matches(value: Spread, dense: Spread) -> bool:
    return value.mean >= dense.mean - MATCH_TOLERANCE - 1e-9  # 1e-9: in floats 0.5047 - 0.005 > 0.4997


def _reach(curve: dict[int, Spread], density: dict[int, float], dense: Spread) -> str:
    matching = [density[number] for number, value in curve.items() if _matches(value, dense)]
    return _weights(min(matching)) if matching else "none"


def _weights(density: float) -> str:
    return f"{100 * density:.3g} %"


def _named(variant: str) -> str:
    return variant.replace("_", " ")


def percent(fraction: float) -> str:
    """An accuracy as tables and sentences print it: 0.9751 is 97.5."""
    return f"{100 * fraction:.1f}"
