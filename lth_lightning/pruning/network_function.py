"""NetworkFunction: a network as a function of its weights, called without side effects, for gradient criteria."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel

from lth_lightning.errors import SettingError
from lth_lightning.pruning.state import stable_name
from lth_lightning.seeding import preserved_generators, seed_global_generators

Batch = tuple[Tensor, Tensor]
"""Inputs and targets."""

CHECKPOINTING = (
    "lottery.pruning.criterion: activation checkpointing would repeat the forward pass with other weights than the "
    "criterion's. Turn it off in the module, or choose Magnitude."
)


@dataclass(frozen=True)
class NetworkFunction:
    """Calls `module` with other weights than its own.

    The module's parameters, gradients, buffers and modes (training or evaluation) do not change, nor do the global
    generators. Dropout draws the same at each call.

    Args:
        module: the network, or a LightningModule, whose `forward` is called.
        state: every parameter and buffer by `stable_name`; defaults for what a call leaves out.
        batches: returns a given number of training batches (inputs, targets), the same ones at each call.
        seed: the seed for dropout.

    Example:
        >>> state = {"weight": torch.ones(1, 2), "bias": torch.zeros(1)}
        >>> probe = NetworkFunction(nn.Linear(2, 1), state, batches=lambda count: [], seed=0)
        >>> probe({"weight": torch.full((1, 2), 3.0)}, torch.ones(1, 2)).item()
        6.0
    """

    module: nn.Module
    state: Mapping[str, Tensor]
    batches: Callable[[int], list[Batch]]
    seed: int

    @property
    def device(self) -> torch.device:
        """The device of the network, its weights, inputs and outputs."""
        return next(self.module.parameters()).device

    def __call__(self, weights: Mapping[str, Tensor], inputs: Tensor, *, evaluate: bool = False) -> Tensor:
        """Return the network's outputs for `inputs`, with a graph back to `weights`.

        Args:
            weights: parameters and buffers that replace those of `state`, by the same names. The others, and the
                inputs, are converted to their precision.
            inputs: one batch, without the targets.
            evaluate: run in evaluation mode, where batch norm uses its running statistics; otherwise each part of the
                network keeps its mode.

        Raises:
            SettingError: the module has no `forward` that turns a batch's inputs into a tensor, or it uses activation
                checkpointing.
        """
        dtype = next(iter(weights.values())).dtype
        others = {name: self._own(value, dtype) for name, value in self.state.items() if name not in weights}
        state = {**others, **weights}
        named = chain(self.module.named_parameters(), self.module.named_buffers())
        tensors = {name: state[stable_name(name)] for name, _ in named}
        with preserved_generators(), _modes(self.module, evaluate), _differentiable_twice():
            seed_global_generators(self.seed)
            try:
                with disable_saved_tensors_hooks(CHECKPOINTING):
                    outputs = torch.func.functional_call(self.module, tensors, (self._own(inputs, dtype),))
            except (NotImplementedError, TypeError) as error:
                raise self._not_callable(str(error)) from error
            except RuntimeError as error:
                if CHECKPOINTING not in str(error):
                    raise
                raise SettingError(CHECKPOINTING) from error
        if not isinstance(outputs, Tensor):
            raise self._not_callable(f"it returns {type(outputs).__name__}")
        return outputs

    def _own(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """Copy the value, as batch norm writes to its buffers."""
        return value.detach().to(self.device, dtype if value.is_floating_point() else value.dtype, copy=True)

    def _not_callable(self, why: str) -> SettingError:
        return SettingError(
            f"lottery.pruning.criterion: {type(self.module).__name__} must have a `forward` that turns a batch's "
            f"inputs into one tensor, e.g. class scores, to be pruned by its gradients ({why})."
        )


@contextmanager
def _differentiable_twice() -> Iterator[None]:
    """Turn off compiled code and fused attention kernels, which cannot be differentiated twice."""
    with torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def _modes(module: nn.Module, evaluate: bool) -> Iterator[None]:
    before = [(part, part.training) for part in module.modules()]
    if evaluate:
        module.eval()
    try:
        yield
    finally:
        for part, training in before:
            part.training = training
