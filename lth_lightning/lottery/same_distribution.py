"""Tests whether a tensor of weights comes from the same distribution as fresh draws, as far as one sample shows.

Each check compares one tensor with two or more fresh draws of it. A false alarm would refuse a valid experiment, and
a network has thousands of tensors, so the limits are six standard errors wide, and wider for small tensors.
"""

from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor

SIGMAS = 6.0
EMPIRICAL = 8.0  # standard deviations estimated from a few draws, so wider
FEW = 16
KOLMOGOROV = 3.3  # the two-sample statistic times sqrt(n / 2) exceeds this once in a billion
MOST = 1 << 15  # entries compared: enough to detect a spread that is off by 4 %
NEVER_BY_CHANCE = 2.0**-22  # the probability that two float32 draws are equal


def difference(start: Tensor, draws: list[Tensor]) -> str | None:
    """Describe how `start` differs from fresh draws of the same tensor; None if it does not.

    Args:
        start: the weights that training starts with.
        draws: two or more independent draws of the same shape; a single number needs more.
    """
    if all(torch.equal(draws[0], draw) for draw in draws[1:]):
        return None if torch.equal(start, draws[0]) else _words(start, draws[0])
    if all(_one_value(draw) for draw in draws):  # one number, repeated
        differs = not _one_value(start) or _place(start, draws)
    else:
        differs = _one_value(start) or _spread(start, draws) or _fixed_entries(start, draws)
    return _words(start, draws[0]) if differs else None


def is_same_throughout(draws: list[Tensor]) -> bool:
    """Whether all draws are equal and not a pattern (zeros, an identity), so the weights were loaded."""
    first = draws[0]
    return all(torch.equal(first, draw) for draw in draws) and _real(first).unique().numel() > max(
        2, first.numel() // 8
    )


def _real(tensor: Tensor) -> Tensor:
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).detach().reshape(-1)


def _sample(tensor: Tensor) -> Tensor:
    """Take at most `MOST` entries in double precision, at an odd stride, as an even one may hit a single column."""
    flat = _real(tensor)
    return flat[:: 1 if flat.numel() <= MOST else (flat.numel() // MOST) | 1].double().cpu()


def _one_value(tensor: Tensor) -> bool:
    return bool((tensor == tensor.reshape(-1)[:1]).all())


def _place(start: Tensor, draws: list[Tensor]) -> bool:
    """Whether a single number is 0 or 1 where draws are random, or is far outside their range."""
    ours, drawn = _sample(start)[0], torch.stack([_sample(draw)[0] for draw in draws])
    middle, reach = (drawn.max() + drawn.min()) / 2, (drawn.max() - drawn.min()) / 2
    return float(ours) in (0.0, 1.0) or not float((ours - middle).abs()) <= 8 * float(reach)


def _spread(start: Tensor, draws: list[Tensor]) -> bool:
    """Whether the mean, the standard deviation or the whole distribution function differs.

    The limits assume independent entries. With more than two draws, their observed variation counts too; it is larger
    if each row has its own scale, say.
    """
    ours, *fresh = [_sample(tensor) for tensor in (start, *draws)]
    n = ours.numel()
    kurtosis = max(3.0, *(float(_standardised(tensor).pow(4).mean()) for tensor in (ours, *fresh[:2])))
    wide = SIGMAS * (1 + 10 / n)
    near = [torch.cat([ours, *fresh])] if n < FEW else [ours, fresh[0]]  # a few may be close together by chance
    spread = max(float(_scale(tensor)) for tensor in near)
    return (
        _outside(ours, fresh, lambda tensor: tensor.mean(), wide * spread * sqrt(2 / n))
        or _outside(ours, fresh, lambda tensor: _scale(tensor).log(), wide * sqrt((kurtosis - 1) / (2 * n)))
        or _outside(ours, fresh[1:], lambda tensor: _distance(tensor, fresh[0]), KOLMOGOROV * sqrt(2 / n), of_two=True)
    )


def _outside(
    ours: Tensor, fresh: list[Tensor], measure: Callable[[Tensor], Tensor], limit: float, of_two: bool = False
) -> bool:
    """Whether a measure of our tensor is outside what chance allows; a measure `of_two` is already a distance."""
    here, there = measure(ours), measure(fresh[0])
    if float(here if of_two else (here - there).abs()) <= limit:
        return False
    if len(fresh) < 3:
        return True
    known = torch.stack([measure(draw) for draw in fresh])
    return not float((here - known.mean()).abs()) <= EMPIRICAL * float(known.std())


def _scale(tensor: Tensor) -> Tensor:
    return tensor.std(correction=0).clamp_min(1e-300)


def _standardised(draw: Tensor) -> Tensor:
    return (draw - draw.mean()) / _scale(draw)


def _distance(one: Tensor, other: Tensor) -> Tensor:
    """Return the Kolmogorov-Smirnov distance: the largest difference of two distribution functions."""
    one, other = one.sort().values, other.sort().values
    both = torch.cat([one, other])
    below = [torch.searchsorted(draw, both, right=True) / draw.numel() for draw in (one, other)]
    return (below[0] - below[1]).abs().max()


def _fixed_entries(start: Tensor, draws: list[Tensor]) -> bool:
    """Whether entries that are constant in every draw (a padding row's zeros) differ here, or the reverse.

    Entries that are randomly 0 (a sparse initialisation) are only counted. Half precision is skipped, as it has so few
    numbers that draws are equal by chance.
    """
    ours, *fresh = (_real(tensor) for tensor in (start, *draws))
    if ours.element_size() < 4:
        return False
    chance = ours.numel() * NEVER_BY_CHANCE
    slack = 2 + chance + SIGMAS * sqrt(chance)
    zeros = [tensor == 0 for tensor in fresh]
    if all(torch.equal(zeros[0], other) for other in zeros[1:]):
        if int(((ours == 0) != zeros[0]).count_nonzero()) > slack:
            return True
    else:
        here, there = int((ours == 0).count_nonzero()), int(zeros[0].count_nonzero())
        if abs(here - there) > slack + SIGMAS * sqrt(here + there):
            return True
    fixed = torch.stack([tensor == fresh[0] for tensor in fresh[:-1]]).all(dim=0)
    # Entries of few values agree by chance: as often as they part in the last draw, they may part here.
    here, by_chance = (int(((tensor != fresh[0]) & fixed).count_nonzero()) for tensor in (ours, fresh[-1]))
    return here - by_chance > slack + SIGMAS * sqrt(here + by_chance)


def _words(start: Tensor, drawn: Tensor) -> str:
    return f"{_in_words(start)} at the start, {_in_words(drawn)} drawn anew"


def _in_words(tensor: Tensor) -> str:
    values = _sample(tensor)
    if _one_value(tensor):
        return f"all {float(values[0]):.3g}" if values.numel() > 1 else f"{float(values[0]):.3g}"
    mean, spread = float(values.mean()), float(values.std(correction=0))
    return f"spread {spread:.3g}" + (f" around {mean:.3g}" if abs(mean) > spread else "")
