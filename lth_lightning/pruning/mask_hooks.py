"""MaskHooks: pruned weights, their gradients and their optimizer state stay at exactly 0."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lth_lightning.pruning.masks import Masks, check_masks

# Of these, each entry's step hangs on that entry alone: a weight that is 0, with a gradient and a state of 0, stays 0.
ENTRY_BY_ENTRY = (
    *(torch.optim.SGD, torch.optim.ASGD, torch.optim.Rprop, torch.optim.RMSprop, torch.optim.Adagrad),
    *(torch.optim.Adadelta, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adamax, torch.optim.NAdam),
    torch.optim.RAdam,
)


class MaskHooks:
    """Keep pruned weights and their gradients at exactly 0 while optimizers step.

    Two hooks, both only where a mask prunes something, so that a dense network pays nothing:

    - after a gradient is accumulated it is set to 0 where the mask prunes. This is before unscaling, clipping and
      the step in automatic and manual optimization alike, and before DDP averages, so pruned weights do not
      count in the clipping norm, and momentum and second moments of theirs stay 0;
    - after an optimizer's step so are its weights, where the step can have moved one: by an optimizer that moves a
      weight whose gradient is 0 (Muon's orthogonalisation, added noise), or if somebody changed the gradient since.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
        >>> hooks = MaskHooks({"weight": layer.weight}, [optimizer])
        >>> hooks.enforce({"weight": torch.tensor([[True, False]])})
        >>> layer(torch.ones(1, 2)).sum().backward(); _ = optimizer.step()
        >>> layer.weight[0, 1].item()
        0.0
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], optimizers: Iterable[Optimizer]) -> None:
        self._weights = dict(weights)
        self._optimizers = list(optimizers)
        self._handles: list[RemovableHandle] = []

    def enforce(self, masks: Masks) -> None:
        """Set pruned weights to 0 now and keep them there, until the next call or `remove`.

        Raises:
            SettingError: the masks do not fit the weights (`check_masks`).
        """
        check_masks(masks, self._weights)
        self.remove()
        bits = {
            id(weight): _bits(masks[name], weight)
            for name, weight in self._weights.items()
            if not bool(masks[name].all())
        }
        for name, weight in self._weights.items():
            if id(weight) in bits:
                with torch.no_grad():
                    weight.masked_fill_(~masks[name].to(weight.device), 0.0)
                self._handles.append(weight.register_post_accumulate_grad_hook(_gradient_hook(bits[id(weight)])))
        for optimizer in self._optimizers:
            owned = [p for group in optimizer.param_groups for p in group["params"] if id(p) in bits]
            if owned:
                hook = _step_hook([(weight, bits[id(weight)]) for weight in owned])
                self._handles.append(optimizer.register_step_post_hook(hook))

    def remove(self) -> None:
        """Take the hooks off; weights stay as they are."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _bits(mask: Tensor, weight: Tensor) -> Tensor:
    """Integers as wide as the weight's numbers: all bits set where it is kept, none where it is pruned.

    `and` with them takes the time of a product, and `masked_fill_` forty times that; and unlike a product it gives
    +0.0 where a gradient is infinite or NaN, as gradients are when a scaler overflows.
    """
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
    return -mask.to(weight.device, integer)


def _gradient_hook(bits: Tensor) -> Callable[[Tensor], None]:
    def mask_gradient(weight: Tensor) -> None:
        gradient = weight.grad
        assert gradient is not None
        gradient.detach().view(bits.dtype).bitwise_and_(bits)  # detached: cheaper than a `no_grad`
        gradient.masked_at = gradient._version  # type: ignore[attr-defined]

    return mask_gradient


def _step_hook(owned: list[tuple[Tensor, Tensor]]) -> Callable[..., None]:
    smallest_eps = max(torch.finfo(weight.dtype).tiny for weight, _ in owned)

    def mask_weights(optimizer: Optimizer, *_: Any) -> None:
        # A pass over all weights takes as long as that over all gradients, some 5 % of a LeNet's step each.
        moves_zeros = _moves_zeros(optimizer, smallest_eps)
        for weight, bits in owned:
            if moves_zeros or not _is_masked(weight.grad):
                weight.detach().view(bits.dtype).bitwise_and_(bits)

    return mask_weights


def _moves_zeros(optimizer: Optimizer, smallest_eps: float) -> bool:
    """Whether it may move a weight that is 0 and has a gradient and a state of 0.

    An `eps` that is 0, or no more than 0 in float16, makes it 0 / 0.
    """
    return type(optimizer) not in ENTRY_BY_ENTRY or any(
        group.get("eps", 1.0) < smallest_eps for group in optimizer.param_groups
    )


def _is_masked(gradient: Tensor | None) -> bool:
    """Whether a gradient is as its hook left it; every change in place counts up a tensor's version."""
    return gradient is None or getattr(gradient, "masked_at", None) == gradient._version
