"""The compiled network: runs each part of a graph by kernels or by PyTorch."""

import ctypes
import math
import os
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lth_lightning.sparse.dense import perform
from lth_lightning.sparse.file import read
from lth_lightning.sparse.graph import LAYERS, Graph, Shape, Step, filled
from lth_lightning.sparse.native import Kernels, NoCompilerError, kernels
from lth_lightning.sparse.plan import NATIVE, planned

TILE = 64  # images that a weight of a linear layer multiplies at once
ALIGNED = 64  # bytes
PER_THREAD = 64  # images below which a second thread costs more than it gives


class Chain:
    """Steps that one call of the kernels runs, from tensors to tensors.

    Args:
        graph: the graph that the steps belong to.
        steps: the steps, all of kinds that kernels can do.
        outputs: the values that the chain gives.
        native: the kernels.
        group: images side by side at a pixel.
        batch_size: the batch size that matters.
    """

    def __init__(
        self,
        graph: Graph,
        steps: Sequence[Step],
        outputs: Sequence[str],
        native: Kernels,
        group: int,
        batch_size: int,
    ) -> None:
        self.steps, self.native, self.group, self.tile = list(steps), native, group, TILE
        lanes = min(group, batch_size), min(TILE, batch_size)
        self.plan = plan = planned(graph, steps, outputs, native.dtype, *lanes)
        self.inputs, self.outputs = plan.inputs, plan.outputs
        self.lead = -1 if any(_on_last_axis(graph, step) for step in steps) else 1  # dimensions of the batch
        self._program = np.array(
            [
                *(plan.values.ctypes.data, plan.operations.ctypes.data),
                *(len(plan.operations), plan.split, plan.scratch, group, self.tile),
            ],
            np.int64,
        )
        given, made = ([self._sample(graph.shapes[name]) for name in names] for names in (self.inputs, self.outputs))
        self._shapes = made
        self._known = {torch.Size((n, *given[0])): (n, *made[0]) for n in range(1, 2 * PER_THREAD)}
        self._sizes = [np.array([math.prod(shape) for shape in shapes], np.int64) for shapes in (given, made)]
        self._local = threading.local()
        self._pointers = ctypes.c_void_p * len(given), ctypes.c_void_p * len(made)

    def _sample(self, shape: Shape) -> tuple[int, ...]:
        return tuple(size for size in shape[self.lead :] if size is not None)

    def __call__(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the chain's outputs for its inputs."""
        dtype = self.native.dtype
        tensors = [x if x.is_contiguous() and x.dtype is dtype else x.to(dtype).contiguous() for x in tensors]
        lead = tensors[0].shape[: self.lead]
        results = [torch.empty((*lead, *shape), dtype=dtype) for shape in self._shapes]
        sources = self._pointers[0](*[x.data_ptr() for x in tensors])
        targets = self._pointers[1](*[x.data_ptr() for x in results])
        count = lead.numel()
        if count >= 2 * PER_THREAD and (threads := torch.get_num_threads()) > 1:
            self._shared(sources, targets, count, min(threads, count // PER_THREAD))
        else:
            self._run(sources, targets, 0, count)
        return results

    def one(self, x: Tensor) -> Tensor | None:
        """The same for a chain from one tensor to one, with less work in Python; None if this way does not fit."""
        shape = self._known.get(x.shape)
        if shape is None or not x.is_cpu or x.dtype is not self.native.dtype or not x.is_contiguous():
            return None
        result = torch.empty(*shape, dtype=x.dtype)
        self.native.apply(self._address(), x.data_ptr(), result.data_ptr(), shape[0])
        return result

    def _run(self, sources: Any, targets: Any, first: int, last: int) -> None:
        self.native.run(self._address(), sources, targets, first, last)

    def _address(self) -> int:
        """Where this thread's call lies: with arenas of its own, so that threads can share a network."""
        try:
            return self._local.address
        except AttributeError:
            local, plan = self._local, self.plan
            numbers = plan.pixels[0] * max(self.group, self.native.width), plan.pixels[1] * self.tile
            size = self.native.dtype.itemsize
            local.arenas = [np.zeros(number * size + ALIGNED, np.uint8) for number in numbers]
            starts = [-(-arena.ctypes.data // ALIGNED) * ALIGNED for arena in local.arenas]
            fixed = [self._program.ctypes.data, *(sizes.ctypes.data for sizes in self._sizes)]
            local.call = np.array([*fixed, *starts], np.int64)
            local.address = local.call.ctypes.data
            return local.address

    def alone(self, step: Step, count: int) -> Callable[[], None]:
        """Return a call of one layer's operation alone, on a batch of `count`, for measuring its time.

        It works on what the last run of this thread left in the arenas.
        """
        plan = self.plan
        number = plan.operation_of[id(step)]
        self._address()
        program, call = self._program.copy(), self._local.call.copy()
        program[1] = plan.operations[number : number + 1].ctypes.data
        program[2], program[3] = 1, int(number < plan.split)
        call[0] = program.ctypes.data
        run, kept = self.native.run, (program, call)
        return lambda: run(kept[1].ctypes.data, None, None, 0, count)

    def _shared(self, sources: Any, targets: Any, count: int, threads: int) -> None:
        """Give each thread whole tiles; the first share is this thread's."""
        tiles = -(-count // self.tile)
        ends = [min(tiles * (i + 1) // threads * self.tile, count) for i in range(threads)]
        others = [_pool().submit(self._run, sources, targets, first, last) for first, last in pairwise(ends)]
        self._run(sources, targets, 0, ends[0])
        for other in others:
            other.result()


_pools: dict[int, ThreadPoolExecutor] = {}


def _pool() -> ThreadPoolExecutor:
    """Threads that live on between calls; a forked process makes its own."""
    if os.getpid() not in _pools:
        _pools[os.getpid()] = ThreadPoolExecutor(max(os.cpu_count() or 1, 1), "sparse")
    return _pools[os.getpid()]


def _on_last_axis(graph: Graph, step: Step) -> bool:
    """Whether a step is a linear layer over the last of several dimensions: all before it are its batch."""
    return step.kind == "linear" and len(graph.shapes[step.output]) > 2


class SparseNetwork(nn.Module):
    """A network for inference that costs what survives. It takes and gives the tensors of the one it was made from.

    Args:
        graph: what it computes.
        dense: outputs of the layers that PyTorch runs; all others run in kernels.
        group: images side by side at a pixel.
        batch_size: the batch size that matters; it takes any.
        device: the kind of device that its inputs must lie on.

    Raises:
        NoCompilerError: a layer is to run in kernels, and they cannot be compiled.
    """

    def __init__(
        self,
        graph: Graph,
        dense: Collection[str] = (),
        group: int | None = None,
        batch_size: int = TILE,
        device: str = "cpu",
    ) -> None:
        super().__init__()
        self._given = (graph, dense, group, batch_size, device)
        self.graph = graph
        self.dense = set(dense)
        self.device = device
        self.dtype = graph.dtype
        self.parts: list[Chain | Step] = []
        self._values: dict[str, Tensor] = graph.constants
        self._divide(group, batch_size)
        only = self.parts[0] if len(self.parts) == 1 else None
        alone = isinstance(only, Chain) and only.inputs == graph.inputs and graph.outputs == {"value": only.outputs[0]}
        self._only = only if alone and isinstance(only, Chain) and only.lead == 1 else None
        self.eval()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles hold the graph; the kernels are loaded, or compiled, where they are opened."""
        return SparseNetwork, self._given, {name: value for name, value in vars(self).items() if name == "choice"}

    def forward(self, *inputs: Tensor) -> Any:
        """Return what the network returned, for inputs of its shapes and any batch size."""
        if self._only is not None and len(inputs) == 1 and (result := self._only.one(inputs[0])) is not None:
            return result
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
        if len(inputs) != len(self.graph.inputs):
            raise ValueError(f"the network takes {len(self.graph.inputs)} inputs, got {len(inputs)}.")
        for x, name in zip(inputs, self.graph.inputs, strict=True):
            shape = self.graph.shapes[name]
            fits = len(x.shape) == len(shape) and all(a in (None, b) for a, b in zip(shape, x.shape, strict=True))
            if not fits or x.device.type != self.device:
                wanted = ", ".join("N" if size is None else str(size) for size in shape)
                raise ValueError(
                    f"the network takes ({wanted}) on {self.device}, got {tuple(x.shape)} on {x.device}. "
                    "It was compiled for inputs of this shape; compile it again for another."
                )

    def _divide(self, group: int | None, batch_size: int) -> None:
        """Make a chain of each run of steps that kernels can do, where it holds a layer."""
        runs: list[Step | list[Step]] = []
        for step in self.graph.steps:
            current = runs[-1] if runs else None
            if not self._native(step):
                runs.append(step)
            elif isinstance(current, list) and self._joins(step, current):
                current.append(step)
            else:
                runs.append([step])
        needed = self.graph.returned()
        for run in reversed(runs):
            steps = run if isinstance(run, list) else [run]
            if isinstance(run, list) and any(step.kind in LAYERS for step in run):
                native = kernels(self.dtype)
                outputs = [step.output for step in run if step.output in needed]
                self.parts.append(Chain(self.graph, run, outputs, native, group or native.width, batch_size))
            else:
                self.parts += reversed(steps)
            needed |= {name for step in steps for name in step.inputs}
        self.parts.reverse()

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
        rows = any(_on_last_axis(self.graph, one) for one in chain)
        wide = _on_last_axis(self.graph, step)
        if rows or wide:
            return step.kind in ("linear", "unary") and rows and {*step.inputs} <= made
        return True


def load(path: str | Path) -> SparseNetwork:
    """Open a network that `train.py export --to torch` wrote; without a compiler, it runs dense.

    Raises:
        SettingError: the file cannot be read.
    """
    graph = read(path)
    try:
        return SparseNetwork(graph)
    except NoCompilerError:
        return SparseNetwork(graph, dense=[step.output for step in graph.layers()])
