"""Pruning criteria: a score for each weight; the lowest are pruned. `gradient_criteria` has those with gradients."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lth_lightning.pruning.network_function import NetworkFunction
from lth_lightning.pruning.state import State

PRUNE_FROM = ("last_round", "dense", "initialisation")


@dataclass(frozen=True)
class Evidence:
    """The inputs of a criterion.

    Args:
        trained: the prunable weights by name, after training; for pruning at initialisation, the rewind point's.
        start: the same weights at the start of the round.
        generator: a CPU generator seeded by (run seed, round), for random criteria.
        network: the network as a function of its weights, with training data, for criteria that need gradients.
    """

    trained: Mapping[str, Tensor]
    start: Mapping[str, Tensor]
    generator: torch.Generator
    network: NetworkFunction | None = None


class Criterion(ABC):
    """Scores weights; the lowest are pruned first. Only surviving weights compete, whatever the others' scores.

    Attributes:
        prunes_from: the allowed values of `Pruning.prune_from`.
        steps: number of pruning steps; each scores the weights that the previous one left.

    Example:
        >>> class LargeInitLargeFinal(Criterion):
        ...     def scores(self, evidence):
        ...         return {name: trained.abs().minimum(evidence.start[name].abs())
        ...                 for name, trained in evidence.trained.items()}
    """

    prunes_from: ClassVar[tuple[str, ...]] = PRUNE_FROM
    steps: int = 1

    @abstractmethod
    def scores(self, evidence: Evidence) -> State:
        """Return a score for each entry of each weight in `evidence.trained`, in the weight's shape."""


class Magnitude(Criterion):
    """|w| after training: prunes the smallest (Han et al. 2015, arXiv:1506.02626; Frankle & Carbin 2019).

    At initialisation this is the large-init criterion of Zhou et al. 2019.
    """

    def scores(self, evidence: Evidence) -> State:
        return {name: weight.abs() for name, weight in evidence.trained.items()}


class MagnitudeIncrease(Criterion):
    """|w| after training − |w| before: prunes what grew least (Zhou et al. 2019, arXiv:1905.01067, section 2)."""

    prunes_from: ClassVar[tuple[str, ...]] = ("last_round", "dense")

    def scores(self, evidence: Evidence) -> State:
        return {name: weight.abs() - evidence.start[name].abs() for name, weight in evidence.trained.items()}


class Movement(Criterion):
    """|w after training − w before|: prunes what moved least (Zhou et al. 2019, arXiv:1905.01067, section 2)."""

    prunes_from: ClassVar[tuple[str, ...]] = ("last_round", "dense")

    def scores(self, evidence: Evidence) -> State:
        return {name: (weight - evidence.start[name]).abs() for name, weight in evidence.trained.items()}


class Random(Criterion):
    """A uniform random score for each weight: the uninformed baseline."""

    def scores(self, evidence: Evidence) -> State:
        return {
            name: torch.rand(weight.shape, generator=evidence.generator).to(weight.device)
            for name, weight in evidence.trained.items()
        }
