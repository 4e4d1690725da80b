"""A mask as it is applied: to a weight, its gradients and its optimizer state, of any type, device and strides."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
HELD = "_lth_held"  # the attribute of a Parameter that holds its mask; a deep copy does not have it


class HeldMask:
    """A weight's mask, in the form that is fastest to apply: integers with all bits set where a weight is kept.

    `and` with them takes the time of a product, and `masked_fill_` forty times that; and unlike a product it gives +0.0
    where a gradient is infinite or NaN, as gradients are when a scaler overflows.
    """

    def __init__(self, mask: Tensor, watchful: bool = False) -> None:
        self.mask = mask
        self.watchful = watchful
        self._bits: dict[tuple[int, torch.device], Tensor] = {}
        self.handles: list[RemovableHandle] = []  # of all hooks that go when the weight is let go
        self._state: Any = None  # an optimizer's state of the weight that was 0 where it is pruned …
        self._state_versions: list[tuple[Tensor, int]] = []  # … when its tensors had counted so many writes
        self._version = -1  # of the weight when it was last masked; every write in place counts it up

    # ------------------------------------------------------------------------ take and let go

    def take(self, weight: nn.Parameter) -> None:
        """Hold the weight, in place of a mask that may hold it."""
        if (before := held_by(weight)) is not None:
            before.let_go(weight)
        self.clear_weight(weight)
        if weight.grad is not None:
            self._mask_gradient(weight)
        setattr(weight, HELD, self)
        if weight.requires_grad:
            self.handles = [
                weight.register_post_accumulate_grad_hook(self._mask_gradient),
                weight.register_post_accumulate_grad_hook(self.settle),  # for steps inside backward
            ]
            # First of all: an optimizer that steps inside backward is a hook too, and may have been there before.
            weight._post_accumulate_grad_hooks.move_to_end(self.handles[0].id, last=False)  # type: ignore[attr-defined]

    def let_go(self, weight: nn.Parameter) -> None:
        """Undo `take`."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        delattr(weight, HELD)

    # ------------------------------------------------------------------------ set to 0

    def clear(self, tensor: Tensor) -> None:
        """Set what is pruned of a tensor of the weight's shape to +0.0, in place; any dtype, device and strides."""
        tensor = tensor.detach()  # cheaper than a `no_grad`; it shares the version counter
        if tensor.element_size() > 8:  # complex128
            tensor = torch.view_as_real(tensor)
        bits = self._bits.get((tensor.element_size(), tensor.device))
        if bits is None or bits.shape != tensor.shape:
            bits = self._make_bits(tensor)
        tensor.view(bits.dtype).bitwise_and_(bits)

    def _make_bits(self, tensor: Tensor) -> Tensor:
        mask = self.mask if tensor.ndim == self.mask.ndim else self.mask.unsqueeze(-1).expand(tensor.shape)
        bits = torch.empty_like(tensor, dtype=INTEGERS[tensor.element_size()])  # of the same strides: one pass
        bits.copy_(mask).neg_()
        self._bits[tensor.element_size(), tensor.device] = bits
        return bits

    def clear_weight(self, weight: nn.Parameter) -> None:
        """Mask the weight, and note that it is."""
        self.clear(weight)
        self._version = weight._version

    def settle(self, weight: Tensor) -> None:
        """Mask the weight if it was, or may have been, written to since."""
        if self.watchful or weight._version != self._version:
            self.clear_weight(weight)  # type: ignore[arg-type]

    def _mask_gradient(self, weight: Tensor) -> None:
        gradient = weight.grad
        if gradient is None:  # a step inside backward has used and dropped it
            return
        if gradient.layout != torch.strided:
            weight.grad = gradient = self._sparse(gradient)
        else:
            self.clear(gradient)
        gradient.masked_at = gradient._version  # type: ignore[attr-defined]

    def _sparse(self, gradient: Tensor) -> Tensor:
        """A sparse gradient (`nn.Embedding(sparse=True)`) whose pruned entries are 0."""
        gradient = gradient.coalesce()
        kept = self.mask.to(gradient.device)[tuple(gradient.indices())]
        values = gradient.values().masked_fill(~kept, 0)
        with torch.sparse.check_sparse_tensor_invariants(False):  # or torch warns that nobody has said
            return torch.sparse_coo_tensor(gradient.indices(), values, gradient.shape, is_coalesced=True)

    def before_step(self, weight: nn.Parameter, optimizer: Optimizer) -> None:
        """Mask all that the step will read: what others did to it since may not be seen by any count."""
        self.clear_weight(weight)
        if not self._is_masked(weight.grad):
            self._mask_gradient(weight)
        if any(value._version != version for value, version in self._state_versions):
            self.clear_state(weight, optimizer.state.get(weight))

    def after_step(self, weight: nn.Parameter, optimizer: Optimizer, keeps_zeros: bool) -> None:
        """Mask what the step may have made other than 0."""
        state = optimizer.state.get(weight)
        if keeps_zeros and self._is_masked(weight.grad) and state is self._state:
            self._state_versions = [(value, value._version) for value, _ in self._state_versions]
            self._version = weight._version
            return
        self.clear_weight(weight)
        self._mask_gradient(weight)
        self.clear_state(weight, state)

    def clear_state(self, weight: Tensor, state: Any) -> None:
        """Mask an optimizer's state of the weight, and note that it is."""
        values = list(tensors_like(weight, state))
        for value in values:
            self.clear(value)
        self._state, self._state_versions = state, [(value, value._version) for value in values]

    @staticmethod
    def _is_masked(gradient: Tensor | None) -> bool:
        return gradient is None or getattr(gradient, "masked_at", None) == gradient._version

    def alive(self, tensor: Tensor) -> Tensor:
        """How many pruned entries of a tensor of the weight's shape are not 0, on its device."""
        return tensor.detach()[~self.mask.to(tensor.device)].count_nonzero()


def held_by(weight: Tensor) -> HeldMask | None:
    """The mask that holds a weight."""
    return weight.__dict__.get(HELD)


def tensors_like(weight: Tensor, state: Any) -> Iterator[Tensor]:
    """The numbers an entry in an optimizer's state, however deep they lie: tensors of the weight's shape.

    Integers are codes (of 8-bit optimizers), for which 0 need not mean 0.
    """
    if isinstance(state, Tensor):
        numbers = state.is_floating_point() or state.is_complex()
        if numbers and state.shape == weight.shape and state.layout == torch.strided:
            yield state
    elif isinstance(state, Mapping):
        for name, value in state.items():
            if name != "step_size":  # Rprop's: a learning rate an entry, which is never 0
                yield from tensors_like(weight, value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from tensors_like(weight, value)
