"""Pruning: which weights are pruned before a round is trained. Tensors in, masks out.

Three questions are kept apart. *How many* (`rate`, `rates`, `densities`) is arithmetic on layer sizes and known before
training. *Against what* (`scope`, `prune_from`) decides which weights compete. *Which* is the `Criterion`: a score for
each weight, and the lowest are pruned. Criteria that need gradients are in `gradient_criteria.py`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from fractions import Fraction

import torch
from torch import Tensor

from lth_lightning.errors import SettingError, unknown_name
from lth_lightning.pruning.criteria import PRUNE_FROM, Criterion, Evidence, Magnitude
from lth_lightning.pruning.masks import Masks, count_kept, count_prunable, masked
from lth_lightning.pruning.state import State

SCOPES = ("layerwise", "global")


@dataclass(frozen=True)
class Competitors:
    """Weights that are ranked together and lose the same fraction per round."""

    names: tuple[str, ...]
    rate: float


@dataclass(frozen=True)
class Pruning:
    """Which weights are pruned before a round is trained.

    Args:
        rate: fraction of the surviving weights pruned per round, in [0, 1).
        rates: fractions by glob over parameter names, in place of `rate`, e.g. `{"*.output.weight": 0.1}`;
            0 = never. The first glob that matches a name decides.
        densities: densities to reach after round 1, 2, …, each in (0, 1) and decreasing, in place of rounds and
            rate: `[0.6, 0.36]`. Weights that `rates` sets to 0 are not pruned.
        prune_from: `last_round` (iterative: rank the weights trained in the last round), `dense` (one-shot: every
            round's mask comes from the dense network's trained weights) or `initialisation` (also one-shot, from the
            rewind point's weights, before any training).
        scope: `layerwise` (rank each weight matrix alone) or `global` (rank all matrices with the same rate
            together).
        criterion: which weights to prune; `Magnitude`, `MagnitudeIncrease`, `Movement`, `Random`; at initialisation
            `SNIP`, `GraSP`, `SynFlow`; or any subclass of `Criterion`.

    Raises:
        SettingError: a value out of range; the error names the setting, what was given and what is allowed.
    """

    rate: float = 0.2
    rates: dict[str, float] = field(default_factory=dict)
    densities: list[float] | None = None
    prune_from: str = "last_round"
    scope: str = "layerwise"
    criterion: Criterion = field(default_factory=Magnitude)

    def __post_init__(self) -> None:
        for setting, rate in {"rate": self.rate, **{f"rates[{glob!r}]": r for glob, r in self.rates.items()}}.items():
            if not 0 <= rate < 1:
                raise SettingError(f"lottery.pruning.{setting} must be in [0, 1), got {rate}.")
        if self.densities is not None:
            self._check_densities(self.densities)
        for setting, given, allowed in (
            ("scope", self.scope, SCOPES),
            ("prune_from", self.prune_from, PRUNE_FROM),
        ):
            if given not in allowed:
                raise unknown_name(f"lottery.pruning.{setting}", given, allowed)
        self._check_criterion(type(self.criterion).__name__, self.criterion.prunes_from)

    def _check_criterion(self, name: str, allowed: Sequence[str]) -> None:
        if (steps := self.criterion.steps) < 1:
            raise SettingError(f"lottery.pruning.criterion.steps ({name}) must be at least 1, got {steps}.")
        if self.prune_from not in allowed:
            raise SettingError(
                f"lottery.pruning.prune_from: {name} prunes from {' or '.join(allowed)}, not from {self.prune_from}; "
                f"set --lottery.pruning.prune_from {allowed[0]}, or choose another criterion."
            )

    def _check_densities(self, densities: Sequence[float]) -> None:
        falling = all(after < before for before, after in zip([1.0, *densities], densities, strict=False))
        if not densities or not falling or densities[-1] <= 0:
            raise SettingError(
                "lottery.pruning.densities must be in (0, 1) and decrease from round to round, e.g. "
                f"[0.6, 0.36, 0.216]; got {list(densities)}."
            )
        if odd := [glob for glob, rate in self.rates.items() if rate != 0]:
            raise SettingError(
                "lottery.pruning.rates: with lottery.pruning.densities a rate can only be 0 (never prune), but "
                f"{odd[0]!r} has {self.rates[odd[0]]}. Leave out one of the two settings."
            )

    def groups(self, names: Sequence[str]) -> list[Competitors]:
        """Group the weights that compete with each other, in the order of `names`.

        Raises:
            SettingError: a glob of `rates` matches none of `names`.
        """
        for glob in self.rates:
            if not any(fnmatchcase(name, glob) for name in names):
                raise SettingError(
                    f"lottery.pruning.rates: {glob!r} matches no prunable weight; choose from {', '.join(names)}."
                )
        rate_of = {
            name: next((rate for glob, rate in self.rates.items() if fnmatchcase(name, glob)), self.rate)
            for name in names
        }
        if self.densities is not None:  # every prunable weight has the same target, whatever `rate` is
            rate_of = {name: rate if name in self._frozen(names) else 1.0 for name, rate in rate_of.items()}
        if self.scope == "layerwise":
            return [Competitors((name,), rate) for name, rate in rate_of.items()]
        return [
            Competitors(tuple(name for name in names if rate_of[name] == rate), rate)
            for rate in dict.fromkeys(rate_of.values())
        ]

    def _frozen(self, names: Sequence[str]) -> set[str]:
        return {name for name in names if any(fnmatchcase(name, glob) for glob in self.rates)}

    def kept(self, group: Competitors, size: int, round: int) -> int:
        """Return how many of a group's `size` weights survive `round` prunings.

        Each round prunes exactly floor(rate · survivors), with the rate as the decimal it is written as: 0.29 of 100
        is 29, though 0.29 * 100 is 28.999999999999996. As rate < 1, at least one weight survives.
        """
        if round == 0 or group.rate == 0:
            return size
        if self.densities is not None:
            return size - math.floor((1 - _as_written(self.densities[round - 1])) * size)
        for _ in range(round):
            size -= math.floor(_as_written(group.rate) * size)
        return size

    def density_after(self, sizes: Mapping[str, int], round: int) -> float:
        """Return the density after `round` prunings of weights with these sizes, known before any training.

        Example:
            >>> lenet = {"fc1.weight": 235200, "fc2.weight": 30000, "output.weight": 1000}
            >>> round(Pruning(rate=0.2, rates={"output.weight": 0.1}).density_after(lenet, 7), 4)
            0.2107
        """
        kept = [self.kept(group, sum(sizes[name] for name in group.names), round) for group in self.groups(list(sizes))]
        return sum(kept) / sum(sizes.values())

    def check(self, sizes: Mapping[str, int], rounds: int) -> None:
        """Refuse, before any training, a plan whose later rounds would prune nothing.

        Raises:
            SettingError: no weight is prunable, a glob matches no weight, or a round would prune nothing.
        """
        if not sum(sizes.values()):
            raise SettingError("nothing to prune: the network has no prunable weight.")
        if rounds and self.density_after(sizes, 1) == 1:
            raise SettingError(
                f"nothing to prune: lottery.pruning.rate {self.rate} and lottery.pruning.rates {self.rates} amount to "
                "less than one weight of each layer. Raise one of them."
            )
        for round in range(1, rounds + 1):
            if self.density_after(sizes, round) == self.density_after(sizes, round - 1):
                raise SettingError(
                    f"nothing left to prune in round {round}: at density "
                    f"{self.density_after(sizes, round):.4g} the rates amount to less than one weight of each layer. "
                    f"Set lottery.rounds to at most {round - 1}, or raise lottery.pruning.rate."
                )

    def prune(self, masks: Masks, evidence: Evidence, round: int) -> Masks:
        """Return the masks of `round`, pruned from the masks that `evidence` was trained with.

        A criterion with several steps scores the survivors anew at each step and prunes the same fraction in each
        (Tanaka et al. 2020, arXiv:2006.05467, algorithm 1). Of equal scores the earlier weight is pruned first, by
        name order and then by position, so exactly as many weights remain as `kept` says, on every device.

        Args:
            masks: the current masks (all True for pruning from `dense` or `initialisation`); not modified.
            evidence: the trained weights, by the names of `masks`.
            round: 1 for the first pruning.

        Raises:
            SettingError: a score is missing, NaN or of another shape.
        """
        pruned, steps, groups = masks, self.criterion.steps, self.groups(list(masks))
        for step in range(1, steps + 1):
            if step > 1:
                evidence = replace(evidence, trained=masked(evidence.trained, pruned))
            scores = self.scores(pruned, evidence)
            for group in groups:
                given = {name: masks[name] for name in group.names}
                left = self.kept(group, count_prunable(given), round)
                count = _on_the_way(count_kept(given), left, step / steps)
                pruned = pruned | _keep_highest({name: pruned[name] for name in group.names}, scores, count)
        return pruned

    def scores(self, masks: Masks, evidence: Evidence) -> State:
        """Return the criterion's scores of the surviving weights: (n,) by name, in the order of positions.

        Raises:
            SettingError: a score is missing, NaN or of another shape.
        """
        scores = self.criterion.scores(evidence)
        return {name: _survivor_scores(scores, name, mask) for name, mask in masks.items()}


def _on_the_way(before: int, after: int, part: float) -> int:
    """Return the survivors after this fraction of the steps from `before` to `after`, at the same rate per step."""
    return max(after, round(before ** (1 - part) * after**part))


def _keep_highest(masks: Masks, scores: Mapping[str, Tensor], count: int) -> Masks:
    """Return masks that keep the `count` survivors with the highest scores; `scores` are the survivors'."""
    survivors = {name: mask.flatten().nonzero().squeeze(1) for name, mask in masks.items()}
    ranked = torch.cat([scores[name] for name in masks])
    goes = lowest(ranked, len(ranked) - count)
    pruned = {}
    for (name, mask), part in zip(masks.items(), goes.split([len(s) for s in survivors.values()]), strict=True):
        flat = mask.flatten().clone()  # in the order of positions, whatever the mask's memory layout
        flat[survivors[name][part]] = False
        pruned[name] = flat.view(mask.shape)
    return pruned


def lowest(scores: Tensor, count: int) -> Tensor:
    """Mark the `count` lowest of `scores` (n,) in a bool (n,); of equal scores, the earlier position first.

    Selecting by the count-th value takes a tenth of a sort's time on 20M weights.
    """
    if count <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(count).values
    chosen = scores < threshold
    ties = (scores == threshold).nonzero().squeeze(1)
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen


def _as_written(rate: float) -> Fraction:
    return Fraction(repr(float(rate)))


def _survivor_scores(scores: Mapping[str, Tensor], name: str, mask: Tensor) -> Tensor:
    if name not in scores or scores[name].shape != mask.shape:
        given = tuple(scores[name].shape) if name in scores else "none"
        raise SettingError(
            f"lottery.pruning.criterion: the scores of {name} must have shape {tuple(mask.shape)}, got {given}."
        )
    survivors = scores[name][mask]
    if bool(survivors.isnan().any()):
        raise SettingError(f"lottery.pruning.criterion: the scores of {name} contain NaN and cannot be ranked.")
    return survivors
