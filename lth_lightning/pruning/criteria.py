"""Criteria: a score for each weight, and the lowest go. Those that need gradients are in `gradient_criteria`."""

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
    """What a criterion may look at.

    Args:
        trained: the prunable weights by name, as training left them; at initialisation the rewind point's.
        start: the same weights as the round started with them.
        generator: a CPU generator seeded by (run seed, round), for criteria that draw.
        network: the network as a function of its weights, with training data, for criteria that need gradients.
    """

    trained: Mapping[str, Tensor]
    start: Mapping[str, Tensor]
    generator: torch.Generator
    network: NetworkFunction | None = None


class Criterion(ABC):
    """Scores weights; the lowest go first. Only surviving weights are compared, whatever a score says.

    Attributes:
        prunes_from: what it may prune from (`Pruning.prune_from`).
        steps: in how many steps it prunes, with scores of what the last one left.

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
        """A score for each entry of each weight in `evidence.trained`, of the weight's shape."""


class Magnitude(Criterion):
    """|w| after training: the small ones go (Han et al. 2015, arXiv:1506.02626; Frankle & Carbin 2019).

    At initialisation it is the large-init criterion of Zhou et al. 2019.
    """

    def scores(self, evidence: Evidence) -> State:
        return {name: weight.abs() for name, weight in evidence.trained.items()}


class MagnitudeIncrease(Criterion):
    """|w| after training − |w| before it: what grew least goes (Zhou et al. 2019, arXiv:1905.01067, section 2)."""

    prunes_from: ClassVar[tuple[str, ...]] = ("last_round", "dense")

    def scores(self, evidence: Evidence) -> State:
        return {name: weight.abs() - evidence.start[name].abs() for name, weight in evidence.trained.items()}


class Movement(Criterion):
    """|w after training − w before it|: what moved least goes (Zhou et al. 2019, arXiv:1905.01067, section 2)."""

    prunes_from: ClassVar[tuple[str, ...]] = ("last_round", "dense")

    def scores(self, evidence: Evidence) -> State:
        return {name: (weight - evidence.start[name]).abs() for name, weight in evidence.trained.items()}


class Random(Criterion):
    """A uniform draw for each weight: what pruning does when it knows nothing."""

    def scores(self, evidence: Evidence) -> State:
        return {
            name: torch.rand(weight.shape, generator=evidence.generator).to(weight.device)
            for name, weight in evidence.trained.items()
        }
