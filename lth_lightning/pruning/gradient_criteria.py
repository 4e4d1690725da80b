"""Criteria for pruning at initialisation: gradients, not training, score the weights.

Lottery tickets are compared with these baselines (Frankle et al. 2021, arXiv:2009.08576). All three papers rank the
weights of all layers together: `Pruning(scope="global", prune_from="initialisation", criterion=SynFlow())`. The
criteria call the network through `Evidence.network`. As for all criteria here, the lowest scores are pruned.
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
    """Base of SNIP and GraSP: a loss over some batches of the training data."""

    prunes_from: ClassVar[tuple[str, ...]] = ("initialisation",)

    def __init__(self, steps: int, batches: int) -> None:
        if batches < 1:
            raise SettingError(f"lottery.pruning.criterion.batches must be at least 1, got {batches}.")
        self.steps = steps
        self.batches = batches

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar: the mean cross-entropy unless a subclass overrides it."""
        return F.cross_entropy(outputs, targets)

    def _loss(self, network: NetworkFunction, weights: State, batch: Batch) -> Tensor:
        inputs, targets = batch
        outputs = network(weights, inputs)
        try:
            return self.loss(self._scaled(outputs), targets)
        except (IndexError, RuntimeError, TypeError, ValueError) as error:
            raise SettingError(
                f"lottery.pruning.criterion: the loss of {type(self).__name__}, cross-entropy unless a subclass "
                f"overrides `loss(outputs, targets)`, does not accept outputs of shape {tuple(outputs.shape)} and "
                f"targets of shape {tuple(targets.shape)}: {error}"
            ) from error

    def _scaled(self, outputs: Tensor) -> Tensor:
        return outputs

    def _gradient(self, network: NetworkFunction, weights: State, batches: list[Batch]) -> list[Tensor]:
        """Return the gradient of the batches' mean loss, in the order of `weights`."""
        total = [torch.zeros_like(weight) for weight in weights.values()]
        for batch in batches:
            for so_far, gradient in zip(total, _derivative(self._loss(network, weights, batch), weights), strict=True):
                so_far.add_(gradient / len(batches))
        return total


class SNIP(_ByLoss):
    """|∂L/∂w · w|: how sensitive the loss is to removing a connection (Lee et al. 2019, arXiv:1810.02340).

    This is |∂L/∂c| at c = 1, with a gate c on each connection, without the paper's rank-preserving normalisation.

    Args:
        steps: number of pruning steps, with new scores at each; the paper uses 1.
        batches: number of training batches for the gradient.
    """

    def __init__(self, steps: int = 1, batches: int = 1) -> None:
        super().__init__(steps, batches)

    def scores(self, evidence: Evidence) -> State:
        network = _network(self, evidence)
        weights = _leaves(network, evidence)
        gradient = self._gradient(network, weights, network.batches(self.batches))
        return _as_scores(evidence, [(g * w).abs() for g, w in zip(gradient, weights.values(), strict=True)])


class GraSP(_ByLoss):
    """w · Hg: prunes the weights whose removal raises gradient flow |g|² most (Wang et al. 2020, arXiv:2002.07376).

    This is the paper's S(−w) = −w · Hg with the opposite sign, as the paper removes the highest. g and H are the
    gradient and the Hessian of the loss with respect to the prunable weights.

    Args:
        steps: number of pruning steps, with new scores at each; the paper uses 1.
        batches: number of training batches for both g and H.
        temperature: divisor of the class scores before the loss; 200 in the authors' code.
    """

    def __init__(self, steps: int = 1, batches: int = 1, temperature: float = 200.0) -> None:
        super().__init__(steps, batches)
        if not temperature > 0:
            raise SettingError(f"lottery.pruning.criterion.temperature must be above 0, got {temperature}.")
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
    """∂R/∂|w| · |w|, R the sum of outputs for an input of ones; needs no data (Tanaka et al. 2020, arXiv:2006.05467).

    Every parameter and buffer is replaced by its absolute value, in evaluation mode (algorithm 1). With enough steps
    and `scope: global`, it empties a layer only if every mask of that density would (theorem 3). The arithmetic is in
    float64, as products of many layers' weights exceed the range of float32.

    Args:
        steps: number of pruning steps, with new scores at each; the paper uses 100.
    """

    prunes_from: ClassVar[tuple[str, ...]] = ("initialisation",)

    def __init__(self, steps: int = 100) -> None:
        self.steps = steps

    def scores(self, evidence: Evidence) -> State:
        network = _network(self, evidence)
        inputs, _ = network.batches(1)[0]  # only for the shape of an example
        if not inputs.is_floating_point():
            raise SettingError(
                f"lottery.pruning.criterion: SynFlow feeds the network an input of ones, so inputs must be floating "
                f"point, got {inputs.dtype}. Choose another criterion."
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
            f"{type(criterion).__name__} scores by gradients, so `Evidence.network` must be a `NetworkFunction`."
        )
    return evidence.network


def _leaves(network: NetworkFunction, evidence: Evidence) -> State:
    """Return the prunable weights as leaf tensors that require gradients, in float32 or better."""
    dtype = reduce(torch.promote_types, (weight.dtype for weight in evidence.trained.values()), torch.float32)
    return {
        name: weight.detach().to(network.device, dtype, copy=True).requires_grad_()
        for name, weight in evidence.trained.items()
    }


def _derivative(value: Tensor, weights: State, *, create_graph: bool = False) -> tuple[Tensor, ...]:
    """Differentiate with respect to each weight; the result is 0 for weights that the value does not depend on."""
    if not value.requires_grad:
        return tuple(torch.zeros_like(weight) for weight in weights.values())
    try:
        return torch.autograd.grad(
            value, list(weights.values()), create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if "torch.utils.checkpoint" in str(error):  # reentrant checkpointing, a torch.autograd.Function
            raise SettingError(CHECKPOINTING) from error
        raise SettingError(
            f"lottery.pruning.criterion: the network cannot be differentiated as the criterion needs it ({error}). "
            "Choose SNIP, which differentiates once, or Magnitude, which does not."
        ) from error


def _refuse_once_differentiable(gradient: Tensor) -> None:
    """Refuse `once_differentiable` functions: PyTorch silently treats their gradients as constants here, where only
    some variables are differentiated."""
    found, nodes = set(), [gradient.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None or node in found:
            continue
        found.add(node)
        if "Error" in node.name():
            raise SettingError(
                "lottery.pruning.criterion: GraSP differentiates twice, but the network has a torch.autograd.Function "
                "that is `once_differentiable`. Choose SNIP."
            )
        nodes += [following for following, _ in node.next_functions]


def _as_scores(evidence: Evidence, scores: list[Tensor]) -> State:
    return {
        name: score.detach().to(weight.device)
        for (name, weight), score in zip(evidence.trained.items(), scores, strict=True)
    }
