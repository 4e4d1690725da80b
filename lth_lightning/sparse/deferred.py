"""A convolution's output that is not computed before it is known what follows: ReLU and pooling run within the kernel.

PyTorch's ReLU and max pooling take half of a step of Conv-4 at 2 % of the weights: each reads and writes all pixels.
"""

import enum
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map


class Then(enum.Flag):
    """What follows a convolution and runs with it; training.c's names."""

    NOTHING = 0
    RELU = 1
    POOL = 2  # the largest of each 2 x 2 pixels


RELUS = {F.relu, torch.relu, Tensor.relu}
RELUS_IN_PLACE = {torch.relu_, Tensor.relu_}
POOLS = {F.max_pool2d, torch.max_pool2d}
METADATA: set[Any] = {
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.__len__, Tensor.is_floating_point),
    *(
        getattr(Tensor, name).__get__
        for name in ("shape", "ndim", "dtype", "device", "layout", "is_sparse", "requires_grad")
    ),
}


class Deferred(Tensor):
    """An output (N, channels, height, width) that waits for what follows.

    A ReLU or a 2 x 2 max pooling is noted; whatever else touches it computes it. It is made only where gradients are
    recorded, and recorded they are, wherever it is computed.

    Args:
        size: of the output.
        like: the input, a dense tensor.
        compute: returns the output, followed by what is given.
        then: what follows already.
    """

    @staticmethod
    def __new__(
        cls, size: Sequence[int], like: Tensor, compute: Callable[[Then], Tensor], then: Then = Then.NOTHING
    ) -> "Deferred":
        return Tensor._make_wrapper_subclass(cls, size, dtype=like.dtype, device=like.device, requires_grad=True)

    def __init__(
        self, size: Sequence[int], like: Tensor, compute: Callable[[Then], Tensor], then: Then = Then.NOTHING
    ) -> None:
        self._like, self._version_before, self._compute, self._then = like, like._version, compute, then
        self._found: Tensor | None = None
        with torch._C.DisableTorchFunctionSubclass():
            self.register_hook(_refuse)

    def computed(self) -> Tensor:
        """Return the output.

        Raises:
            RuntimeError: the convolution's input was written to since.
        """
        if self._found is None:
            if self._like._version != self._version_before:
                raise RuntimeError(
                    "a convolution's input was modified by an in-place operation, but its gradient needs it. Make the "
                    "operation after it out of place (`x = x + y`, `nn.ReLU(inplace=False)`)."
                )
            with torch.enable_grad():
                self._found = self._compute(self._then)
        return self._found

    def _followed(self, then: Then, size: Sequence[int]) -> "Deferred":
        twin = Deferred(size, self._like, self._compute, self._then | then)
        twin._version_before = self._version_before
        return twin

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        one = args[0] if args else None
        if isinstance(one, Deferred) and one._found is None:
            if func in METADATA:
                with torch._C.DisableTorchFunctionSubclass():
                    return func(*args, **kwargs)
            if func in RELUS_IN_PLACE or (func in RELUS and kwargs.get("inplace")):
                one._then |= Then.RELU
                return one
            if func in RELUS:
                return one._followed(Then.RELU, one.shape)
            if func in POOLS and Then.POOL not in one._then and _is_two_by_two(*args, **kwargs):
                return one._followed(Then.POOL, (*one.shape[:2], one.shape[2] // 2, one.shape[3] // 2))
        return func(*tree_map(computed, args), **tree_map(computed, kwargs))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Serve code that does not ask Python first; a gradient that would be lost there is refused."""
        return func(*tree_map(computed, args), **tree_map(computed, kwargs or {}))


def computed(x: Any) -> Any:
    """Return a deferred output computed, and anything else as it is."""
    return x.computed() if isinstance(x, Deferred) else x


def followed(y: Tensor, then: Then) -> Tensor:
    """Run in PyTorch what follows."""
    if Then.POOL in then:
        y = F.max_pool2d(y, 2)
    return F.relu(y) if Then.RELU in then else y


def _is_two_by_two(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> bool:
    def are(sizes: Any, value: int) -> bool:
        return sizes in (value, (value, value), [value, value], (value,), [value])

    return (
        not (ceil_mode or return_indices)
        and are(kernel_size, 2)
        and (stride is None or stride == [] or are(stride, 2))
        and are(padding, 0)
        and are(dilation, 1)
        and x.ndim == 4
        and min(x.shape[2:]) >= 2
    )


def _refuse(_: Tensor) -> None:
    raise RuntimeError(
        "lottery.engine: the output of a sparse convolution went straight into a custom autograd.Function or a "
        "scripted module, where its gradient would be lost. Pass `x.clone()` there, or set lottery.engine to dense."
    )
