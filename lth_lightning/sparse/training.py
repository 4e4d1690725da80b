"""Layers of which only survivors exist, trained by the kernels of training.c: their cost is their survivors'.

`thinned` swaps a module's linear and convolution layers in place; `densified` gives them back.
"""

import copy
import ctypes
import functools
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from lth_lightning.errors import SettingError
from lth_lightning.pruning.guard import owners
from lth_lightning.pruning.state import parameters_by_name
from lth_lightning.pruning.survivors import ATTRIBUTE, Survivors, restore, survivors_of, thin
from lth_lightning.sparse.deferred import Deferred, Then, computed, followed
from lth_lightning.sparse.native import library
from lth_lightning.sparse.pattern import PAD, Conv, Layer, Pattern, conv_pattern, linear_pattern
from lth_lightning.sparse.timing import in_turns

SOURCE = Path(__file__).with_name("training.c")
TYPES = (torch.float32, torch.float64)
TURNS = 5  # how often each way is timed
KERNEL, DENSE = "sparse", "dense"
HOOKS = ("_forward_hooks", "_backward_hooks", "_backward_pre_hooks")


@functools.cache
def training_kernels(dtype: torch.dtype) -> ctypes.CDLL:
    """Return the compiled training.c for float32 or float64.

    Raises:
        NoCompilerError: there is no C compiler.
    """
    kernels = ctypes.CDLL(str(library(SOURCE, dtype)))
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    for name, kinds in {
        "lth_features_forward": [pointer, number, pointer, number, pointer, number, pointer],
        "lth_features_backward": [pointer, number, pointer, number, pointer, pointer, pointer, number],
        "lth_planes_forward": [pointer, number, *[pointer] * 3, number, number, pointer],
        "lth_planes_backward": [pointer, number, *[pointer] * 6, number, number, *[pointer] * 3],
    }.items():
        getattr(kernels, name).argtypes, getattr(kernels, name).restype = kinds, None
    kernels.lth_step.argtypes, kernels.lth_step.restype = [pointer, pointer, pointer, number], ctypes.c_double
    kernels.lth_tile.restype = ctypes.c_int64
    return kernels


# ------------------------------------------------------------------------ linear layers


class LinearKernel:
    """Runs a linear layer of survivors.

    Args:
        mask: (outputs, inputs), 1 = survives.
        dtype: the weights'.
    """

    def __init__(self, mask: Tensor, dtype: torch.dtype) -> None:
        self.kernels = training_kernels(dtype)
        self.pattern: Pattern = linear_pattern(mask)
        self.layer = Layer()
        self.pattern.fill(self.layer)
        self.tile: int = self.kernels.lth_tile()
        self._scratch = torch.empty(2 * max(mask.shape) * self.tile, dtype=dtype)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, keep: bool) -> tuple[Tensor, Tensor]:
        """Return outputs (N, outputs) for inputs (N, inputs), and what `backward` needs."""
        count = len(x)
        tiles = -(-count // self.tile) if keep else 1
        acts = x.new_empty(max(tiles, 1) * (self.layer.rows + self.layer.columns) * self.tile)
        y = x.new_empty(count, self.layer.rows)
        self._point(weight, bias)
        self.kernels.lth_features_forward(
            ctypes.addressof(self.layer), 1, x.data_ptr(), count, acts.data_ptr(), keep, y.data_ptr()
        )
        return y, acts

    def backward(
        self, gy: Tensor, acts: Tensor, weight: Tensor, bias: Tensor | None, wants_input: bool
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Return the gradients of inputs, weights and biases."""
        gx = gy.new_empty(len(gy), self.layer.columns) if wants_input else None
        weight_grad, bias_grad = torch.zeros_like(weight), None if bias is None else torch.zeros_like(bias)
        self._point(weight, bias)
        self.layer.weight_grad = weight_grad.data_ptr()
        self.layer.bias_grad = _address(bias_grad)
        self.kernels.lth_features_backward(
            *(ctypes.addressof(self.layer), 1, gy.data_ptr(), len(gy), acts.data_ptr(), _address(gx)),
            *(self._scratch.data_ptr(), max(self.layer.rows, self.layer.columns)),
        )
        return gx, weight_grad, bias_grad

    def _point(self, weight: Tensor, bias: Tensor | None) -> None:
        self.layer.weight, self.layer.bias = weight.data_ptr(), _address(bias)


class _LinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, kernel: LinearKernel) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).contiguous()
        y, acts = kernel.forward(flat, weight, bias, keep=any(ctx.needs_input_grad))
        ctx.save_for_backward(weight, bias)
        ctx.acts, ctx.kernel, ctx.shape = acts, kernel, x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        weight, bias = ctx.saved_tensors
        flat = gy.reshape(-1, gy.shape[-1]).contiguous()
        gx, weight_grad, bias_grad = ctx.kernel.backward(flat, ctx.acts, weight, bias, ctx.needs_input_grad[0])
        return None if gx is None else gx.view(ctx.shape), weight_grad, bias_grad, None


# ------------------------------------------------------------------------ convolutions


class ConvKernel:
    """Runs a convolution of survivors; its layout follows the size of its images.

    Args:
        mask: (outputs, inputs a group, height, width), 1 = survives.
        layer: the convolution.
        dtype: the weights'.
    """

    def __init__(self, mask: Tensor, layer: nn.Conv1d | nn.Conv2d, dtype: torch.dtype) -> None:
        self.kernels, self._mask, self._layer, self._dtype = training_kernels(dtype), mask, layer, dtype
        self._planned: dict[tuple[int, int], tuple[Pattern, Conv, Tensor]] = {}  # by size: layout, order by columns
        self._scratch: dict[tuple[int, int, int], Tensor] = {}

    def size_of(self, x: Tensor) -> tuple[int, ...]:
        """Return the size of the outputs for images."""
        _, conv, _ = self._plan(x)
        return len(x), conv.layer.rows, conv.out_height, conv.out_width

    def _plan(self, x: Tensor) -> tuple[Pattern, Conv, Tensor]:
        size = (x.shape[2], x.shape[3])
        if size not in self._planned:
            pattern, conv = conv_pattern(self._mask, self._layer, *size)
            self._planned[size] = pattern, conv, torch.from_numpy(pattern.column_order).long()
        return self._planned[size]

    def _buffer(self, conv: Conv, thread: int) -> Tensor:
        """A thread's planes, gradients and results; what is padding there is 0 and stays so."""
        key = (conv.height, conv.width, thread)
        if key not in self._scratch:
            results = max(conv.layer.rows * conv.gplane, conv.layer.columns * conv.plane) + PAD
            self._scratch[key] = torch.zeros(conv.planes + conv.gplanes + results, dtype=self._dtype)
        return self._scratch[key]

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, then: Then, keep: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return outputs (N, outputs, height, width) for images (N, inputs, height, width), and which pixels pooling
        kept: what `backward` needs."""
        (_, conv, _), pools = self._plan(x), Then.POOL in then
        count, channels, *sides = self.size_of(x)
        y = x.new_empty(count, channels, *(side // 2 if pools else side for side in sides))
        which = torch.empty_like(y, dtype=torch.uint8) if pools and keep else None
        conv.layer.weight, conv.layer.bias = weight.data_ptr(), _address(bias)

        def run(thread: int, first: int, last: int) -> None:
            self.kernels.lth_planes_forward(
                *(ctypes.addressof(conv), then.value, x.data_ptr(), y.data_ptr(), _address(which)),
                *(first, last, self._buffer(conv, thread).data_ptr()),
            )

        _shared(len(x), run)
        return y, which

    def backward(
        self,
        x: Tensor,
        y: Tensor | None,
        which: Tensor | None,
        gy: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        then: Then,
        wants_input: bool,
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Return the gradients of inputs, weights and biases."""
        _, conv, column_order = self._plan(x)
        gx = torch.empty_like(x) if wants_input else None
        by_column = weight[column_order] if wants_input else None
        count = torch.get_num_threads()
        weight_grads = torch.zeros(count, *weight.shape, dtype=weight.dtype)
        bias_grads = None if bias is None else torch.zeros(count, *bias.shape, dtype=bias.dtype)

        def run(thread: int, first: int, last: int) -> None:
            self.kernels.lth_planes_backward(
                *(ctypes.addressof(conv), then.value, x.data_ptr(), _address(y), _address(which), gy.data_ptr()),
                *(_address(gx), _address(by_column), first, last, self._buffer(conv, thread).data_ptr()),
                *(weight_grads[thread].data_ptr(), None if bias_grads is None else bias_grads[thread].data_ptr()),
            )

        _shared(len(x), run)
        return gx, weight_grads.sum(0), None if bias_grads is None else bias_grads.sum(0)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="lth_sparse")


def _shared(images: int, run: Callable[[int, int, int], None]) -> None:
    """Share images among torch's number of threads, in equal parts."""
    threads = min(torch.get_num_threads(), images)
    if threads <= 1:
        run(0, 0, images)
        return
    bounds = [images * i // threads for i in range(threads + 1)]
    for done in [_pool(threads).submit(run, i, bounds[i], bounds[i + 1]) for i in range(threads)]:
        done.result()


class _ConvFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, kernel: ConvKernel, then: Then) -> Tensor:
        x = x.contiguous()
        y, which = kernel.forward(x, weight, bias, then, keep=any(ctx.needs_input_grad))
        ctx.save_for_backward(x, y if then == Then.RELU else None, which, weight, bias)
        ctx.kernel, ctx.then = kernel, then
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, y, which, weight, bias = ctx.saved_tensors
        wants_input = ctx.needs_input_grad[0]
        found = ctx.kernel.backward(x, y, which, gy.contiguous(), weight, bias, ctx.then, wants_input)
        return *found, None, None


# ------------------------------------------------------------------------ layers


class _Thin:
    """What the swapped layers share: a weight of which only survivors exist, and two ways to compute with it."""

    _parameters: dict[str, Any]

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Thin":
        twin = memo[id(self)] = self.__class__.__new__(self.__class__)
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        # torch copies a parameter without its attributes.
        twin._parameters["weight"].__dict__[ATTRIBUTE] = survivors_of(self._parameters["weight"])
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as the dense layer: kernels are of this process."""
        twin: Any = copy.deepcopy(self)
        densified(twin)
        return _itself, (twin,)

    @property
    def weight(self) -> Tensor:
        """The dense weight, for code that reads it; gradients flow to the survivors. A write to it is refused later."""
        stored = self._parameters["weight"]
        survivors: Any = survivors_of(stored)
        dense = survivors.whole(stored)
        survivors.handed_out = dense.detach(), dense.detach().clone()
        return dense

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc]
        stored = self._parameters["weight"]
        survivors = survivors_of(stored)
        assert survivors is not None
        destination[prefix + "weight"] = survivors.whole(stored if keep_vars else stored.detach())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        survivors, name = survivors_of(self._parameters["weight"]), prefix + "weight"
        assert survivors is not None
        if name in state_dict and state_dict[name].shape == survivors.shape:
            state_dict = {**state_dict, name: survivors.taken(state_dict[name])}
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]


def _itself(layer: nn.Module) -> nn.Module:
    return layer


class ThinLinear(_Thin, nn.Linear):  # type: ignore[override]
    """A linear layer of survivors."""

    def forward(self, x: Tensor) -> Tensor:
        return _computed(self, x)


class ThinConv1d(_Thin, nn.Conv1d):  # type: ignore[override]
    """A convolution of survivors, in one dimension."""

    def forward(self, x: Tensor) -> Tensor:
        return _computed(self, x)


class ThinConv2d(_Thin, nn.Conv2d):  # type: ignore[override]
    """A convolution of survivors."""

    def forward(self, x: Tensor) -> Tensor:
        return _computed(self, x)


THIN: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: ThinLinear,
    nn.Conv1d: ThinConv1d,
    nn.Conv2d: ThinConv2d,
}


class ThinSurvivors(Survivors):
    """Which entries of a layer's weight exist, with the way to compute with them.

    Args:
        mask: 1 = survives, in the weight's shape.
        layer: the layer, still dense.
        way: `sparse`, `dense`, or None: the faster at the first forward pass with gradients.
        agreed: turns this process's choice into the one of all processes.
    """

    def __init__(self, mask: Tensor, layer: nn.Module, way: str | None, agreed: Callable[[bool], bool] = bool) -> None:
        super().__init__(mask)
        self.way, self.times, self.agreed = way, (0.0, 0.0), agreed
        self.handed_out: tuple[Tensor, Tensor] | None = None  # a dense weight, and what it held
        dtype: Any = layer.weight.dtype
        self.kernel: LinearKernel | ConvKernel
        if isinstance(layer, nn.Linear):
            self.kernel = LinearKernel(mask, dtype)
        else:
            assert isinstance(layer, nn.Conv1d | nn.Conv2d)
            self.kernel = ConvKernel(mask if layer.weight.ndim == 4 else mask.unsqueeze(2), layer, dtype)


def _computed(layer: nn.Module, x: Tensor) -> Tensor:
    x = computed(x)
    weight, bias = layer._parameters["weight"], layer._parameters["bias"]
    assert weight is not None
    survivors: Any = survivors_of(weight)
    if survivors.handed_out is not None:
        _refuse_write(layer, *survivors.handed_out)
        survivors.handed_out = None
    if x.dtype != weight.dtype:
        raise RuntimeError(f"{type(layer).__name__}: expected {weight.dtype}, got {x.dtype}")

    def compute(then: Then) -> Tensor:
        if survivors.way is None and torch.is_grad_enabled():
            _choose(layer, survivors, x, weight, bias, then)
        run = _by_torch if survivors.way == DENSE else _by_kernel
        return run(layer, survivors, x, weight, bias, then)

    if isinstance(layer, nn.Conv2d) and survivors.way != DENSE and _may_wait(layer, x, weight):
        return Deferred(survivors.kernel.size_of(x), x, compute)
    return compute(Then.NOTHING)


def _may_wait(layer: nn.Module, x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution may be computed later.

    Gradients must be recorded, so that nobody may write to its input. The layer must have no hook, which may keep its
    output and ask for the gradient.
    """
    everywhere = vars(torch.nn.modules.module)
    hooked = any(getattr(layer, kind) or everywhere[f"_global{kind}"] for kind in HOOKS)
    return torch.is_grad_enabled() and weight.requires_grad and x.ndim == 4 and type(x) is Tensor and not hooked


def _refuse_write(layer: nn.Module, dense: Tensor, before: Tensor) -> None:
    if not torch.equal(dense, before):
        raise SettingError(
            f"lottery.engine: something has written to the weight of {layer.extra_repr()} ({type(layer).__name__}), "
            "which is lost: while it trains sparse, `layer.weight` is made of the survivors each time. Write to "
            "`module.parameters()`, which hold them, or set lottery.engine to dense."
        )


def _by_torch(layer: nn.Module, survivors: Any, x: Tensor, weight: Tensor, bias: Tensor | None, then: Then) -> Tensor:
    weight = survivors.whole(weight)
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    return followed(layer._conv_forward(x, weight, bias), then)  # type: ignore[operator]


def _by_kernel(layer: nn.Module, survivors: Any, x: Tensor, weight: Tensor, bias: Tensor | None, then: Then) -> Tensor:
    if isinstance(layer, nn.Linear):
        return _LinearFunction.apply(x, weight, bias, survivors.kernel)
    images = x if x.ndim == len(survivors.shape) else x.unsqueeze(0)
    if isinstance(layer, nn.Conv1d):
        y = _ConvFunction.apply(images.unsqueeze(2), weight, bias, survivors.kernel, then).squeeze(2)
    else:
        y = _ConvFunction.apply(images, weight, bias, survivors.kernel, then)
    return y if x.ndim == images.ndim else y.squeeze(0)


def _choose(
    layer: nn.Module, survivors: ThinSurvivors, x: Tensor, weight: Tensor, bias: Tensor | None, then: Then
) -> None:
    """Time both ways on this input, forward and backward, with what follows, in turns, and keep the faster."""
    x, weight = x.detach().requires_grad_(x.requires_grad), weight.detach().requires_grad_()
    bias = None if bias is None else bias.detach().requires_grad_()

    def run(way: Callable[..., Tensor]) -> None:
        y = way(layer, survivors, x, weight, bias, then)
        y.backward(y.detach())

    sparse, dense = in_turns([partial(run, way) for way in (_by_kernel, _by_torch)], TURNS, 0)
    survivors.times = sparse, dense
    survivors.way = KERNEL if survivors.agreed(sparse <= dense) else DENSE


def fits(module: nn.Module, name: str, weight: nn.Parameter) -> nn.Module | None:
    """Return the layer whose weight can be thinned: the only owner, of a kind and type that the kernels know."""
    held_by = owners(module, weight)
    if len(held_by) != 1 or type(held_by[0]) not in THIN or weight.dtype not in TYPES or weight.device.type != "cpu":
        return None
    layer = held_by[0]
    if layer._parameters.get("weight") is not weight or getattr(layer, "padding_mode", "zeros") != "zeros":
        return None
    return layer


def thinned(
    module: nn.Module,
    masks: Mapping[str, Tensor],
    optimizers: Iterable[Optimizer] = (),
    ways: Mapping[str, str] | None = None,
    agreed: Callable[[bool], bool] = bool,
) -> dict[str, ThinSurvivors]:
    """Let only survivors of a module's layers exist, from now on; layers that do not fit stay dense.

    Args:
        module: the network, dense; its linear and convolution layers are swapped in place.
        masks: 1 = survives, by names of parameters.
        optimizers: optimizers that may hold state for them.
        ways: by name, how to compute, where that is known (`ThinSurvivors`).
        agreed: as for `ThinSurvivors`.

    Returns:
        What was thinned, by name.

    Raises:
        NoCompilerError: there is no C compiler.
    """
    found: dict[str, ThinSurvivors] = {}
    for name, weight in parameters_by_name(module, masks).items():
        if (layer := fits(module, name, weight)) is not None:
            survivors = ThinSurvivors(masks[name], layer, (ways or {}).get(name), agreed)
            thin(weight, survivors, optimizers)
            layer.__class__ = THIN[type(layer)]
            found[name] = survivors
    return found


def densified(module: nn.Module, optimizers: Iterable[Optimizer] = ()) -> None:
    """Give all thinned layers of a module back as dense ones, with their values."""
    back = {thin: dense for dense, thin in THIN.items()}
    for layer in module.modules():
        if type(layer) in back:
            weight = layer._parameters["weight"]
            assert weight is not None
            layer.__class__ = back[type(layer)]
            restore(weight, optimizers)
