"""A network as a function of its weights: what criteria that need gradients may ask of it, and leave no trace."""

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
    "lottery.pruning.criterion: activation checkpointing would repeat the way forward with other weights than the "
    "criterion's. Turn it off in the module, or choose Magnitude."
)


@dataclass(frozen=True)
class NetworkFunction:
    """Calls `module` with other weights than its own.

    Its parameters, gradients, buffers and modes (training or evaluation) stay as they are, and so do the global
    generators; dropout draws the same at each call.

    Args:
        module: the network; of a LightningModule its `forward` is meant.
        state: every parameter and buffer by `stable_name`, used where a call gives no others.
        batches: gives so many batches (inputs, targets) of the training data, the same ones at each call.
        seed: what dropout hangs on.

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
        """Where the network is, and so its weights, inputs and outputs."""
        return next(self.module.parameters()).device

    def __call__(self, weights: Mapping[str, Tensor], inputs: Tensor, *, evaluate: bool = False) -> Tensor:
        """What the network gives for `inputs`, with a graph back to `weights`.

        Args:
            weights: parameters and buffers in place of those of `state`, by the same names. What is left out, and the
                inputs, are taken in their precision.
            inputs: one batch, without the targets.
            evaluate: as in evaluation, where batch norm uses its running statistics; otherwise in the modes that the
                parts of the network are in.

        Raises:
            SettingError: the module has no `forward` that turns a batch's inputs into a tensor, or it checkpoints
                activations.
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
            raise self._not_callable(f"it gives {type(outputs).__name__}")
        return outputs

    def _own(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        """A copy, as batch norm writes into its buffers."""
        return value.detach().to(self.device, dtype if value.is_floating_point() else value.dtype, copy=True)

    def _not_callable(self, why: str) -> SettingError:
        return SettingError(
            f"lottery.pruning.criterion: {type(self.module).__name__} must have a `forward` that turns a batch's "
            f"inputs into one tensor, e.g. class scores, to be pruned by its gradients ({why})."
        )


@contextmanager
def _differentiable_twice() -> Iterator[None]:
    """Compiled code and the fused kernels of attention are not."""
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
