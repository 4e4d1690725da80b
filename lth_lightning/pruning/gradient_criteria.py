"""Criteria for pruning at initialisation: what a weight is worth, told by gradients in place of training.

The baselines that lottery tickets are compared with (Frankle et al. 2021, arXiv:2009.08576). All three papers rank the
weights of all layers together: `Pruning(scope="global", prune_from="initialisation", criterion=SynFlow())`. They see
the network through `Evidence.network`. Their scores are signed as everywhere here: the lowest go.
"""

from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from lth_lightning.errors import SettingError
from lth_lightning.pruning.criteria import Criterion, Evidence
from lth_lightning.pruning.network_function import CHECKPOINTING, Batch, NetworkFunction
from lth_lightning.pruning.state import State


class _ByLoss(Criterion):
    """What SNIP and GraSP have in common: a loss, over some batches of the training data."""

    prunes_from: ClassVar[tuple[str, ...]] = ("initialisation",)

    def __init__(self, steps: int, batches: int) -> None:
        if batches < 1:
            raise SettingError(f"lottery.pruning.criterion.batches: {batches}; gradients need at least 1 batch.")
        self.steps = steps
        self.batches = batches

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch, a scalar: the mean cross-entropy. A subclass can put another in its place."""
        return F.cross_entropy(outputs, targets)

    def _loss(self, network: NetworkFunction, weights: State, batch: Batch) -> Tensor:
        inputs, targets = batch
        outputs = network(weights, inputs)
        try:
            return self.loss(self._scaled(outputs), targets)
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            raise SettingError(
                f"lottery.pruning.criterion: the loss of {type(self).__name__}, cross-entropy if a subclass has no "
                f"`loss(outputs, targets)` of its own, does not take outputs of shape {tuple(outputs.shape)} and "
                f"targets of shape {tuple(targets.shape)}: {error}"
            ) from error

    def _scaled(self, outputs: Tensor) -> Tensor:
        return outputs

    def _gradient(self, network: NetworkFunction, weights: State, batches: list[Batch]) -> list[Tensor]:
        """The gradient of the mean of the batches' losses, in the order of `weights`."""
        total = [torch.zeros_like(weight) for weight in weights.values()]
        for batch in batches:
            for so_far, gradient in zip(total, _derivative(self._loss(network, weights, batch), weights), strict=True):
                so_far.add_(gradient / len(batches))
        return total


class SNIP(_ByLoss):
    """|∂L/∂w · w|: how much the loss would feel the connection go (Lee et al. 2019, arXiv:1810.02340).

    It is |∂L/∂c| at c = 1, with a gate c on each connection, but for the paper's normalisation, which ranks nothing.

    Args:
        steps: in how many steps to prune, scored anew at each; the paper's is 1.
        batches: of the training data, for the gradient.
    """

    def __init__(self, steps: int = 1, batches: int = 1) -> None:
        super().__init__(steps, batches)

    def scores(self, evidence: Evidence) -> State:
        network = _network(self, evidence)
        weights = _leaves(network, evidence)
        gradient = self._gradient(network, weights, network.batches(self.batches))
        return _as_scores(evidence, [(g * w).abs() for g, w in zip(gradient, weights.values(), strict=True)])


class GraSP(_ByLoss):
    """w · Hg: first go the weights without which gradient flow |g|² gains most (Wang et al. 2020, arXiv:2002.07376).

    The paper's S(−w) = −w · Hg with the sign turned, as it removes the highest. g and H are the gradient and the
    Hessian of the loss by the prunable weights.

    Args:
        steps: in how many steps to prune, scored anew at each; the paper's is 1.
        batches: of the training data, for g and H alike.
        temperature: what class scores are divided by before the loss; 200 in the authors' code.
    """

    def __init__(self, steps: int = 1, batches: int = 1, temperature: float = 200.0) -> None:
        super().__init__(steps, batches)
        if not temperature > 0:
            raise SettingError(f"lottery.pruning.criterion.temperature: {temperature}; it is above 0.")
        self.temperature = temperature

    def scores(self, evidence: Evidence) -> State:
        network = _network(self, evidence)
        weights = _leaves(network, evidence)
        batches = network.batches(self.batches)
        g = self._gradient(network, weights, batches)
        hg = [torch.zeros_like(weight) for weight in weights.values()]
        for batch in batches:
            gradient = _derivative(self._loss(network, weights, batch), weights, create_graph=True)
            flow = torch.stack([(ours * its).sum() for ours, its in zip(g, gradient, strict=True)]).sum()
            _refuse_once_differentiable(flow)
            for so_far, product in zip(hg, _derivative(flow, weights), strict=True):
                so_far.add_(product / len(batches))
        return _as_scores(evidence, [w * product for w, product in zip(weights.values(), hg, strict=True)])

    def _scaled(self, outputs: Tensor) -> Tensor:
        return outputs / self.temperature


class SynFlow(Criterion):
    """∂R/∂|w| · |w|, R the sum of outputs for an input of ones: needs no data (Tanaka et al. 2020, arXiv:2006.05467).

    Every parameter and buffer is replaced by its absolute value, in evaluation mode (algorithm 1). In enough steps
    it empties a layer only where every mask of that density would (theorem 3, of `scope: global`). In float64, as
    products of many layers' weights leave the range of float32.

    Args:
        steps: in how many steps to prune, scored anew at each; the paper's is 100.
    """

    prunes_from: ClassVar[tuple[str, ...]] = ("initialisation",)

    def __init__(self, steps: int = 100) -> None:
        self.steps = steps

    def scores(self, evidence: Evidence) -> State:
        network = _network(self, evidence)
        inputs, _ = network.batches(1)[0]  # of the data only an example's shape
        if not inputs.is_floating_point():
            raise SettingError(
                f"lottery.pruning.criterion: SynFlow gives the network an input of ones, and this network's inputs are "
                f"{inputs.dtype}, of which ones mean something; choose another criterion."
            )

        def absolute(value: Tensor) -> Tensor:
            return value.detach().to(network.device, torch.float64).abs()

        ones = torch.ones(1, *inputs.shape[1:], dtype=torch.float64, device=network.device)
        weights = {name: absolute(weight).requires_grad_() for name, weight in evidence.trained.items()}
        others = {
            name: absolute(value)
            for name, value in network.state.items()
            if name not in weights and value.is_floating_point()
        }
        total = network({**others, **weights}, ones, evaluate=True).sum()
        flow = _derivative(total, weights)
        return _as_scores(evidence, [g * w for g, w in zip(flow, weights.values(), strict=True)])


def _network(criterion: Criterion, evidence: Evidence) -> NetworkFunction:
    if evidence.network is None:
        raise SettingError(
            f"{type(criterion).__name__} scores by gradients; its evidence needs a network (`NetworkFunction`)."
        )
    return evidence.network


def _leaves(network: NetworkFunction, evidence: Evidence) -> State:
    """The prunable weights as variables to differentiate by, in float32 or better."""
    dtype = reduce(torch.promote_types, (weight.dtype for weight in evidence.trained.values()), torch.float32)
    return {
        name: weight.detach().to(network.device, dtype, copy=True).requires_grad_()
        for name, weight in evidence.trained.items()
    }


def _derivative(value: Tensor, weights: State, *, create_graph: bool = False) -> tuple[Tensor, ...]:
    """By each weight; 0 for weights that the value does not hang on."""
    if not value.requires_grad:
        return tuple(torch.zeros_like(weight) for weight in weights.values())
    try:
        return torch.autograd.grad(
            value, list(weights.values()), create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if "torch.utils.checkpoint" in str(error):  # the kind that is a function of its own
            raise SettingError(CHECKPOINTING) from error
        raise SettingError(
            f"lottery.pruning.criterion: the network cannot be differentiated as the criterion needs it ({error}). "
            "Choose SNIP, which differentiates once, or Magnitude, which does not."
        ) from error


def _refuse_once_differentiable(gradient: Tensor) -> None:
    """PyTorch takes what a function's `once_differentiable` backward gives for a constant, and says nothing, where
    only some variables are differentiated by."""
    found, nodes = set(), [gradient.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in found:
            continue
        found.add(node)
        if "Error" in node.name():
            raise SettingError(
                "lottery.pruning.criterion: GraSP differentiates twice, and the network has a function of its own "
                "(torch.autograd.Function) that can be differentiated once only. Choose SNIP."
            )
        nodes += [following for following, _ in node.next_functions]


def _as_scores(evidence: Evidence, scores: list[Tensor]) -> State:
    return {
        name: score.detach().to(weight.device)
        for (name, weight), score in zip(evidence.trained.items(), scores, strict=True)
    }
