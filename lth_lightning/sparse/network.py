"""The compiled network: runs each part of a graph by kernels or by PyTorch."""

import ctypes
import math
import os
import threading
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lth_lightning.sparse.dense import perform
from lth_lightning.sparse.graph import LAYERS, Graph, Shape, Step, filled
from lth_lightning.sparse.native import Kernels, kernels
from lth_lightning.sparse.plan import NATIVE, planned

TILE = 4  # vectors of images that a weight of a linear layer multiplies at once
PER_THREAD = 64  # images below which a second thread costs more than it gives


class Chain:
    """Steps that one call of the kernels runs, from tensors to tensors."""

    def __init__(
        self, graph: Graph, steps: Sequence[Step], outputs: Sequence[str], native: Kernels, group: int
    ) -> None:
        self.steps = list(steps)
        plan = planned(graph, steps, outputs, native.dtype)
        self.plan, self.native = plan, native
        self.inputs, self.outputs = plan.inputs, plan.outputs
        self.input_sizes = [tuple(graph.shapes[name]) for name in plan.inputs]
        rows = self.rows = any(step.kind == "linear" and len(graph.shapes[step.output]) > 2 for step in steps)
        self.lead = -1 if rows else 1
        tile = native.width * TILE
        self._program = np.array(
            [plan.values.ctypes.data, plan.operations.ctypes.data, len(plan.operations), plan.split, plan.scratch]
            + [group, tile],
            np.int64,
        )
        sizes = [
            [_numbers(shape[-1:] if rows else shape[1:]) for shape in shapes]
            for shapes in (self.input_sizes, plan.output_shapes)
        ]
        self._sizes = [np.array(numbers, np.int64) for numbers in sizes]
        self._arena = plan.pixels[0] * max(group, native.width), plan.pixels[1] * tile
        self._local = threading.local()
        self._pointers = ctypes.c_void_p * len(plan.inputs), ctypes.c_void_p * len(plan.outputs)
        self._fixed = (self._program.ctypes.data, self._sizes[0].ctypes.data, self._sizes[1].ctypes.data)
        self._shapes = [shape[-1:] if rows else shape[1:] for shape in plan.output_shapes]

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        dtype = self.native.dtype
        tensors = [x if x.is_contiguous() and x.dtype is dtype else x.to(dtype).contiguous() for x in tensors]
        lead = tensors[0].shape[: self.lead]
        count = lead[0] if self.lead == 1 else math.prod(lead)
        results = [torch.empty((*lead, *shape), dtype=dtype) for shape in self._shapes]  # type: ignore[misc]
        sources = self._pointers[0](*[x.data_ptr() for x in tensors])
        targets = self._pointers[1](*[x.data_ptr() for x in results])
        if count >= 2 * PER_THREAD and (threads := torch.get_num_threads()) > 1:
            self._shared(sources, targets, count, min(threads, count // PER_THREAD))
        else:
            self._run(sources, targets, 0, count)
        return results

    def _run(self, sources: Any, targets: Any, first: int, last: int) -> None:
        try:
            planes, features = self._local.addresses
        except AttributeError:
            planes, features = self._local.addresses = self._new_arenas()
        program, input_sizes, output_sizes = self._fixed
        self.native.run(program, sources, targets, input_sizes, output_sizes, planes, features, first, last)

    def _new_arenas(self) -> tuple[int, int]:
        arenas = [np.zeros(size * np.dtype(np.float64).itemsize + 64, np.uint8) for size in self._arena]
        self._local.arenas = arenas
        planes, features = (-(-arena.ctypes.data // 64) * 64 for arena in arenas)
        return planes, features

    def _shared(self, sources: Any, targets: Any, count: int, threads: int) -> None:
        """Give each thread whole tiles; the first share is this thread's."""
        tile = self.native.width * TILE
        tiles = -(-count // tile)
        ends = [min(tiles * (i + 1) // threads * tile, count) for i in range(threads)]
        others = [
            _pool().submit(self._run, sources, targets, first, last)
            for first, last in zip(ends, ends[1:], strict=False)
        ]
        self._run(sources, targets, 0, ends[0])
        for other in others:
            other.result()


_pools: dict[int, ThreadPoolExecutor] = {}


def _pool() -> ThreadPoolExecutor:
    """Threads that live on between calls; a forked process makes its own."""
    if os.getpid() not in _pools:
        _pools[os.getpid()] = ThreadPoolExecutor(max(os.cpu_count() or 1, 1), "sparse")
    return _pools[os.getpid()]


def _numbers(shape: Shape) -> int:
    return math.prod(size or 0 for size in shape)


class SparseNetwork(nn.Module):
    """A network for inference that costs what survives: it takes and gives the same tensors as the one it was made from.

    Args:
        graph: what it computes.
        dense: outputs of the layers that PyTorch runs; all others run in kernels.
        group: images side by side at a pixel.

    Raises:
        NoCompilerError: a layer is to run in kernels, and they cannot be compiled.
    """

    def __init__(self, graph: Graph, dense: Collection[str] = (), group: int | None = None) -> None:
        super().__init__()
        self.graph = graph
        self.dense = set(dense)
        self.dtype = dtype_of(graph)
        self.parts: list[Chain | Step] = []
        self._values: dict[str, Tensor] = graph.constants
        self._divide(group)
        only = self.parts[0] if len(self.parts) == 1 else None
        alone = isinstance(only, Chain) and only.inputs == graph.inputs and graph.outputs == {"value": only.outputs[0]}
        self._only = only if alone and isinstance(only, Chain) and only.lead == 1 else None
        self._tail = [shape[1:] for shape in (graph.shapes[name] for name in graph.inputs)]
        self.eval()

    def forward(self, *inputs: Tensor) -> Any:
        """Return what the network returned, for inputs of its shapes and any batch size."""
        if self._only is not None:
            x = inputs[0]
            if len(inputs) == 1 and x.shape[1:] == self._tail[0] and x.device.type == "cpu":
                return self._only(inputs)[0]
        self._check(inputs)
        values: dict[str, Any] = {**self._values, **dict(zip(self.graph.inputs, inputs, strict=True))}
        with torch.no_grad():
            for part in self.parts:
                if isinstance(part, Chain):
                    given = part([values[name] for name in part.inputs])
                    values.update(zip(part.outputs, given, strict=True))
                else:
                    perform(part, values)
        return filled(self.graph.outputs, values)

    def _check(self, inputs: Sequence[Tensor]) -> None:
        if len(inputs) != len(self._tail):
            raise ValueError(f"the network takes {len(self._tail)} inputs, got {len(inputs)}.")
        for x, name in zip(inputs, self.graph.inputs, strict=True):
            shape = self.graph.shapes[name]
            fits = len(x.shape) == len(shape) and all(a in (None, b) for a, b in zip(shape, x.shape, strict=True))
            if not fits or x.device.type != "cpu":
                wanted = ", ".join("N" if size is None else str(size) for size in shape)
                raise ValueError(
                    f"the network takes ({wanted}) on the CPU, got {tuple(x.shape)} on {x.device}. It was compiled for "
                    "inputs of this shape; compile it again for another."
                )

    def _divide(self, group: int | None) -> None:
        """Make a chain of each run of steps that kernels can do, where it holds a layer."""
        chains: list[list[Step]] = []
        for step in self.graph.steps:
            current = chains[-1] if chains and chains[-1][0].kind != "torch" else None
            if not self._native(step):
                chains.append([Step("torch", (), ""), step])
            elif current is not None and self._joins(step, current):
                current.append(step)
            else:
                chains.append([step])
        for number, steps in enumerate(chains):
            if steps[0].kind == "torch":
                self.parts.append(steps[1])
            elif not any(step.kind in LAYERS for step in steps):
                self.parts += steps
            else:
                later = {name for rest in chains[number + 1 :] for step in rest for name in step.inputs}
                later |= self.graph.returned()
                outputs = [step.output for step in steps if step.output in later]
                native = kernels(self.dtype)
                self.parts.append(Chain(self.graph, steps, outputs, native, group or native.width))

    def _native(self, step: Step) -> bool:
        if step.kind not in NATIVE or step.output in self.dense:
            return False
        shapes = [self.graph.shapes[name] for name in (*step.inputs, step.output)]
        if step.kind == "linear":
            return all(shape[-1] is not None for shape in shapes)
        return all(2 <= len(shape) <= 4 and shape[0] is None and None not in shape[1:] for shape in shapes)

    def _joins(self, step: Step, chain: list[Step]) -> bool:
        made = {one.output for one in chain}
        if not ({*step.inputs} & (made | {name for one in chain for name in one.inputs})):
            return False  # it may have another batch size
        rows = any(one.kind == "linear" and len(self.graph.shapes[one.output]) > 2 for one in chain)
        wide = step.kind == "linear" and len(self.graph.shapes[step.output]) > 2
        if rows or wide:
            return step.kind in ("linear", "unary") and rows and {*step.inputs} <= made
        return True


def dtype_of(graph: Graph) -> torch.dtype:
    """Return the type of a graph's weights."""
    return next((step.tensors["weight"].dtype for step in graph.layers()), torch.float32)
