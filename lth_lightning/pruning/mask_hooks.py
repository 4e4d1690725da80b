"""MaskHooks: pruned weights, their gradients and their optimizer state stay at exactly 0, whoever touches them."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from lth_lightning.errors import RevivedError, SettingError
from lth_lightning.pruning.masks import Masks, check_masks
from lth_lightning.pruning.state import parameters_by_name

# In these, each entry's step depends on that entry alone: a state of 0 stays 0 as long as the gradient is 0.
ENTRY_BY_ENTRY = (
    *(torch.optim.SGD, torch.optim.ASGD, torch.optim.Rprop, torch.optim.RMSprop, torch.optim.Adagrad),
    *(torch.optim.Adadelta, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam),
)
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
HELD = "_lth_held"  # the attribute of a Parameter that holds its mask; a deep copy does not have it


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
            HeldMask(masks[name], self.watchful).take(weight, _owners(self._source, weight))
        if self._weights:
            _watch_optimizers()
            for optimizer in self._optimizers:
                _clear_state(optimizer)
                self._handles.append(optimizer.register_load_state_dict_post_hook(_clear_state))

    def remove(self) -> None:
        """Let go of the weights; they stay as they are."""
        for weight in self._weights.values():
            if (held := _held(weight)) is not None:
                held.let_go(weight)
        for handle in self._handles:
            handle.remove()
        self._weights.clear()
        self._handles.clear()

    def settle(self) -> None:
        """Mask the weights that somebody has written to since the last step."""
        for weight in self._weights.values():
            if (held := _held(weight)) is not None:
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
            if (held := _held(weight)) is not None
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
            for value in _tensors_like(weight, optimizer.state.get(weight)):
                yield f"have a state of {type(optimizer).__name__} that is", value


class HeldMask:
    """A weight's mask, in the form that is fastest to apply: integers with all bits set where a weight is kept.

    `and` with them takes the time of a product, and `masked_fill_` forty times that; and unlike a product it gives +0.0
    where a gradient is infinite or NaN, as gradients are when a scaler overflows.
    """

    def __init__(self, mask: Tensor, watchful: bool = False) -> None:
        self.mask = mask
        self.watchful = watchful
        self._bits: dict[tuple[int, torch.device], Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self._state: Any = None  # an optimizer's state of the weight that was 0 where it is pruned …
        self._state_versions: list[tuple[Tensor, int]] = []  # … when its tensors had counted so many writes
        self._version = -1  # of the weight when it was last masked; every write in place counts it up

    # ------------------------------------------------------------------------ take and let go

    def take(self, weight: nn.Parameter, owners: Iterable[nn.Module] = ()) -> None:
        """Hold the weight, in place of a mask that may hold it; `owners` are the layers that it is a parameter of."""
        if (before := _held(weight)) is not None:
            before.let_go(weight)
        self.clear_weight(weight)
        if weight.grad is not None:
            self._mask_gradient(weight)
        setattr(weight, HELD, self)
        if weight.requires_grad:
            self._handles = [
                weight.register_post_accumulate_grad_hook(self._mask_gradient),
                weight.register_post_accumulate_grad_hook(self.settle),  # for steps inside backward
            ]
            # First of all: an optimizer that steps inside backward is a hook too, and may have been there before.
            weight._post_accumulate_grad_hooks.move_to_end(self._handles[0].id, last=False)  # type: ignore[attr-defined]
        guard = _Guard(weight, self)
        self._handles += [layer.register_load_state_dict_post_hook(guard) for layer in owners]

    def let_go(self, weight: nn.Parameter) -> None:
        """Undo `take`."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
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
        values = list(_tensors_like(weight, state))
        for value in values:
            self.clear(value)
        self._state, self._state_versions = state, [(value, value._version) for value in values]

    @staticmethod
    def _is_masked(gradient: Tensor | None) -> bool:
        return gradient is None or getattr(gradient, "masked_at", None) == gradient._version

    def alive(self, tensor: Tensor) -> Tensor:
        """How many pruned entries of a tensor of the weight's shape are not 0, on its device."""
        return tensor.detach()[~self.mask.to(tensor.device)].count_nonzero()


class _Guard:
    """Masks a layer's weight after `load_state_dict`.

    It is part of the layer: where that is copied, or sent to another process, the guard comes along and holds the new
    weight, so that a copy does not train dense.
    """

    def __init__(self, weight: nn.Parameter, held: HeldMask) -> None:
        self._weight, self._held = weight, held

    def __call__(self, layer: nn.Module, _: Any) -> None:
        if not self._holds:
            return
        if not any(self._weight is own for own in layer._parameters.values()):
            raise RevivedError(
                f"{type(layer).__name__}.load_state_dict(assign=True) has put another Parameter in the place of one "
                "that is pruned, which no mask and no optimizer knows. Load without `assign`."
            )
        self._held.clear_weight(self._weight)

    @property
    def _holds(self) -> bool:
        """Not if the weight was let go, and this guard is left over in a copy of its layer."""
        return _held(self._weight) is self._held

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Guard":
        weight = copy.deepcopy(self._weight, memo)
        return _guard(weight, self._held.mask) if self._holds else _Guard(weight, self._held)

    def __reduce__(self) -> tuple[Any, ...]:
        mask = self._held.mask
        return (_guard, (self._weight, mask)) if self._holds else (_Guard, (self._weight, HeldMask(mask)))


def _guard(weight: nn.Parameter, mask: Tensor) -> _Guard:
    """Hold the weight of a copied layer."""
    held = HeldMask(mask)
    held.take(weight)
    _watch_optimizers()
    return _Guard(weight, held)


def _owners(source: nn.Module | Mapping[str, nn.Parameter], weight: nn.Parameter) -> list[nn.Module]:
    layers = source.modules() if isinstance(source, nn.Module) else ()
    return [layer for layer in layers if any(weight is own for own in layer._parameters.values())]


# ------------------------------------------------------------------------ optimizers


_watching: list[RemovableHandle] = []


def _watch_optimizers() -> None:
    """See each step of each optimizer of this process, those made later included, from the first held weight on.

    An optimizer that holds no such weight pays a look at its parameters.
    """
    if not _watching:
        _watching.append(register_optimizer_step_pre_hook(_before_step))
        _watching.append(register_optimizer_step_post_hook(_after_step))


def _before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
    """See to all that the step reads, immediately before it does: with a closure, as in Lightning, that is after it."""
    held = [
        (mask, weight)
        for group in optimizer.param_groups
        for weight in group["params"]
        if (mask := _held(weight)) is not None
    ]
    if not held:
        return None

    def settle() -> None:
        for mask, weight in held:
            mask.before_step(weight, optimizer)

    closure = args[1] if len(args) > 1 else kwargs.get("closure")
    if not callable(closure):
        settle()
        return None
    for mask, weight in held:
        mask.settle(weight)  # for the forward pass

    def settled_closure() -> Any:
        loss = closure()
        settle()
        return loss

    if len(args) > 1:
        return (args[0], settled_closure, *args[2:]), kwargs
    return args, {**kwargs, "closure": settled_closure}


def _after_step(optimizer: Optimizer, *_: Any) -> None:
    keeps_zeros: bool | None = None
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if (held := _held(weight)) is not None:
                if keeps_zeros is None:
                    keeps_zeros = _keeps_zeros(optimizer)
                held.after_step(weight, optimizer, keeps_zeros)
    if keeps_zeros is not None and isinstance(optimizer, LBFGS):
        _clear_history(optimizer)


def _clear_state(optimizer: Optimizer) -> None:
    """Set the state of pruned weights to 0, of the optimizers inside it too (Lookahead's base, say)."""
    for weight in list(optimizer.state):
        if isinstance(weight, Tensor) and (held := _held(weight)) is not None:
            held.clear_state(weight, optimizer.state[weight])
    if isinstance(optimizer, LBFGS):
        _clear_history(optimizer)
    for inner in vars(optimizer).values():
        if isinstance(inner, Optimizer) and inner is not optimizer:
            _clear_state(inner)


def _clear_history(optimizer: LBFGS) -> None:
    """LBFGS keeps directions as vectors over all parameters, under the first of them."""
    state = optimizer.state.get(optimizer._params[0], {})
    flat = [state.get("d"), state.get("prev_flat_grad"), *(state.get("old_dirs") or []), *(state.get("old_stps") or [])]
    for vector in flat:
        if not isinstance(vector, Tensor):
            continue
        parts = vector.split([weight.numel() for weight in optimizer._params])
        for weight, part in zip(optimizer._params, parts, strict=True):
            if (held := _held(weight)) is not None:
                held.clear(part.view(weight.shape))


def _keeps_zeros(optimizer: Optimizer) -> bool:
    """Whether its step leaves a state of 0 where the gradient is 0. An `eps` of 0, also in float16, makes it 0 / 0."""
    return type(optimizer) in ENTRY_BY_ENTRY and all(
        group.get("eps", 1.0) >= max((torch.finfo(p.dtype).tiny for p in group["params"]), default=0.0)
        for group in optimizer.param_groups
    )


def _tensors_like(weight: Tensor, state: Any) -> Iterator[Tensor]:
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
                yield from _tensors_like(weight, value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _tensors_like(weight, value)


def _held(weight: Tensor) -> HeldMask | None:
    return weight.__dict__.get(HELD)


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose steps no hook can see.

    Raises:
        SettingError: its class does not call `torch.optim.Optimizer.__init__`.
    """
    if not hasattr(optimizer, "_optimizer_step_post_hooks"):
        name = type(optimizer).__name__
        raise SettingError(
            f"configure_optimizers: {name} does not call torch.optim.Optimizer.__init__, so its steps cannot be seen "
            f"and pruned weights could come back. Call super().__init__(params, defaults) in {name}."
        )
