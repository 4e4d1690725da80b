"""MaskHooks: pruned weights, their gradients and their optimizer state stay at exactly 0, whoever touches them."""

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

    A weight is held from `enforce` on: what is there is set to 0, and what comes later is seen to.

    - After a gradient is accumulated it is masked. This is before unscaling, clipping and the step in automatic and
      manual optimization alike, and before DDP averages, so that pruned weights do not count in the clipping norm.
      A step inside backward (an optimizer a parameter) finds the gradient masked too.
    - Immediately before a step of any optimizer reads them, those made later included, weights are masked, and so are
      gradients and state that were written to. After the step everything is, unless it cannot have changed a 0: passes
      over the state would cost as much as the optimizer.
    - What `load_state_dict` brings is masked: into the optimizers given, and, where a module is given, into its layers.
    - A deep copy of such a module, and one that a process receives, holds its own weights.

    A write between two steps is undone by the next one, or by `settle`; `check` finds one that is not.

    Args:
        weights: the module whose weights are meant, by their names in the masks; or the weights by name. Only with a
            module is `load_state_dict` of a network seen at once, and a deep copy held.
        optimizers: those that have run before, or may load a state.
        watchful: mask weights before each forward pass too (of a step with a closure), whether or not a write to them
            was seen: one by `weight.data` cannot be. Worth its time where somebody acts between the steps.

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
        watchful: bool = False,
    ) -> None:
        self._source = weights
        self.watchful = watchful
        self._optimizers = list(optimizers)
        self._weights: dict[str, nn.Parameter] = {}
        self._handles: list[RemovableHandle] = []

    def enforce(self, masks: Masks) -> None:
        """Set what is pruned to 0 now and keep it there, until the next call or `remove`.

        Raises:
            SettingError: the masks do not fit the weights (`check_masks`), or name a weight that is not there.
        """
        by_name = isinstance(self._source, nn.Module)
        weights = parameters_by_name(self._source, masks) if by_name else dict(self._source)  # type: ignore[arg-type]
        check_masks(masks, weights)
        self.remove()
        self._weights = {name: weight for name, weight in weights.items() if not bool(masks[name].all())}
        for name, weight in self._weights.items():
            held = HeldMask(masks[name], self.watchful)
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
        """Let go of the weights; they stay as they are."""
        for weight in self._weights.values():
            if (held := held_by(weight)) is not None:
                held.let_go(weight)
        for handle in self._handles:
            handle.remove()
        self._weights.clear()
        self._handles.clear()

    def settle(self) -> None:
        """Mask the weights that somebody has written to since the last step."""
        for weight in self._weights.values():
            if (held := held_by(weight)) is not None:
                held.settle(weight)

    def check(self) -> None:
        """Make sure that what is pruned is 0: weights, gradients, and the state of the optimizers given.

        Raises:
            RevivedError: something is not; it names the weight.
        """
        if isinstance(self._source, nn.Module):
            now = parameters_by_name(self._source, self._weights)
            if replaced := [name for name, weight in self._weights.items() if now[name] is not weight]:
                raise RevivedError(
                    f"{replaced[0]} is another Parameter than the one that was pruned: something has put a new one in "
                    "its place, which no mask and no optimizer knows. Write to the Parameter in place (`copy_`)."
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
                f"{name}: {count} of its pruned weights {what} not 0. Something writes to it outside of an optimizer's "
                "step (a callback, a hook of the module, a wrapper around the optimizer), and would train another "
                "network than the ticket. Take that off, or let it leave zeros as they are."
            )

    def _belongings(self, weight: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
        yield "are", weight
        if weight.grad is not None and weight.grad.layout == torch.strided:
            yield "have a gradient that is", weight.grad
        for optimizer in self._optimizers:
            for value in tensors_like(weight, optimizer.state.get(weight)):
                yield f"have a state of {type(optimizer).__name__} that is", value
