"""MaskHooks: keeps pruned weights, their gradients and their optimizer state at exactly 0, whatever writes to them."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lth_lightning.errors import RevivedError
from lth_lightning.pruning.guard import Guard, owners
from lth_lightning.pruning.held_mask import HeldMask, held_by, tensors_like
from lth_lightning.pruning.masks import Masks, check_masks
from lth_lightning.pruning.optimizer_hooks import check_optimizer, clear_state_of, watch_optimizers
from lth_lightning.pruning.state import parameters_by_name


class MaskHooks:
    """Keep pruned weights, their gradients and their optimizer state at exactly 0.

    `enforce` sets pruned entries to 0 and keeps them at 0 from then on:

    - A gradient is masked as soon as it is accumulated. This is before unscaling, clipping and the step in automatic
      and manual optimization alike, and before DDP averages, so pruned weights do not count in the clipping norm.
      A step inside backward (one optimizer per parameter) sees the masked gradient too.
    - Immediately before a step of any optimizer, even one created later, weights are masked, and so are gradients and
      state that were written to. Everything is masked after the step, unless the step cannot have changed a 0: passes
      over the state would cost as much as the optimizer.
    - What `load_state_dict` loads into the given optimizers, or into the layers of a given module, is masked.
    - A deep copy of such a module, or a copy sent to another process, holds its own weights.

    The next step, or `settle`, undoes a write between two steps; `check` finds one that was not undone.

    Args:
        weights: a module whose parameters the masks name, or the weights by name. Only with a module are a network's
            `load_state_dict` masked at once and its deep copies held.
        optimizers: optimizers that have already stepped, or that may load a state.
        before_forward: mask weights before the forward pass of each step with a closure, whether or not a write was
            detected; writes to `weight.data` cannot be. Worth a pass over the weights if other code acts there.
        before_step: the same after the forward pass, before each step. False saves a pass where no code can write to
            `weight.data` in forward and backward.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
        >>> hooks = MaskHooks(layer, [optimizer])
        >>> hooks.enforce({"weight": torch.tensor([[True, False]])})
        >>> layer(torch.ones(1, 2)).sum().backward(); _ = optimizer.step()
        >>> layer.weight[0, 1].item()
        0.0
    """

    def __init__(
        self,
        weights: nn.Module | Mapping[str, nn.Parameter],
        optimizers: Iterable[Optimizer] = (),
        *,
        before_forward: bool = False,
        before_step: bool = True,
    ) -> None:
        self._source = weights
        self._always = before_forward, before_step
        self._optimizers = list(optimizers)
        self._weights: dict[str, nn.Parameter] = {}
        self._handles: list[RemovableHandle] = []

    def enforce(self, masks: Masks) -> None:
        """Set pruned weights to 0 now and keep them at 0 until the next call or `remove`.

        Raises:
            SettingError: the masks do not fit the weights (`check_masks`), or name a weight that does not exist.
        """
        by_name = isinstance(self._source, nn.Module)
        weights = parameters_by_name(self._source, masks) if by_name else dict(self._source)  # type: ignore[arg-type]
        check_masks(masks, weights)
        self.remove()
        self._weights = {name: weight for name, weight in weights.items() if not bool(masks[name].all())}
        for name, weight in self._weights.items():
            held = HeldMask(masks[name], *self._always)
            held.take(weight)
            guard = Guard(weight, held)
            held.handles += [layer.register_load_state_dict_post_hook(guard) for layer in owners(self._source, weight)]
        if self._weights:
            watch_optimizers()
            for optimizer in self._optimizers:
                check_optimizer(optimizer)
                clear_state_of(optimizer)
                if hasattr(optimizer, "_optimizer_load_state_dict_post_hooks"):
                    self._handles.append(optimizer.register_load_state_dict_post_hook(clear_state_of))

    def remove(self) -> None:
        """Release the weights; their values do not change."""
        for weight in self._weights.values():
            if (held := held_by(weight)) is not None:
                held.let_go(weight)
        for handle in self._handles:
            handle.remove()
        self._weights.clear()
        self._handles.clear()

    def settle(self, *, seen: bool = True) -> None:
        """Mask the weights that were written to since the last step.

        Args:
            seen: whether to rely on version counters, which do not show a write to `weight.data`. If not, weights are
                also masked before the next step, after hooks that are called later.
        """
        for weight in self._weights.values():
            if (held := held_by(weight)) is not None:
                held.settle(weight) if seen else held.distrust(weight)

    def check(self) -> None:
        """Check that pruned weights, their gradients and their state in the given optimizers are 0.

        Raises:
            RevivedError: one is not 0; the error names the weight.
        """
        if isinstance(self._source, nn.Module):
            now = parameters_by_name(self._source, self._weights)
            if replaced := [name for name, weight in self._weights.items() if now[name] is not weight]:
                raise RevivedError(
                    f"{replaced[0]} is another Parameter than the one that was pruned. Something has replaced it, and "
                    "the new one has no mask and no optimizer. Write to the Parameter in place (`copy_`)."
                )
        found = {
            (name, what): held.alive(value)
            for name, weight in self._weights.items()
            if (held := held_by(weight)) is not None
            for what, value in self._belongings(weight)
        }
        if found and any(
            counts := torch.stack([count.to("cpu", non_blocking=False) for count in found.values()]).tolist()
        ):
            (name, what), count = next((key, count) for key, count in zip(found, counts, strict=True) if count)
            raise RevivedError(
                f"{name}: {count} of its pruned weights {what} not 0. Something writes to it outside an optimizer's "
                "step (a callback, a hook of the module, a wrapper around the optimizer), so the network in training "
                "is not the ticket. Remove that code, or make it keep zeros."
            )

    def _belongings(self, weight: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
        yield "are", weight
        if weight.grad is not None and weight.grad.layout == torch.strided:
            yield "have a gradient that is", weight.grad
        for optimizer in self._optimizers:
            for value in tensors_like(weight, optimizer.state.get(weight)):
                yield f"have a state of {type(optimizer).__name__} that is", value
