"""Lays out a chain of steps for the kernels: where each value lies, and where each weight reads its input.

The kernels (`kernels.c`) run a list of operations over two arenas. In the first lie planes: a group of a few images
side by side at each pixel, so that a layer's input stays in the cache. In the second lie features, of a whole tile of
images, behind the last layer with pixels: one weight is then a multiply-add of four vectors. Values share memory when
they are not alive at the same time. Around planes lie zeros where a convolution pads. The input of a strided
convolution is split into its phases, so that the stride is 1 for kernels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lth_lightning.sparse.graph import LAYERS, Graph, Planes, Step, planes

KINDS = ("LOAD", "STORE", "ROWS", "PHASES", "FLATTEN", "MAX_POOL", "SUM_POOL", "AFFINE", "UNARY", "BINARY", "COPY")
UNARY = (
    *(
        "clamp",
        "leaky",
        "sigmoid",
        "tanh",
        "silu",
        "gelu",
        "gelu_tanh",
        "elu",
        "hardsigmoid",
        "hardswish",
        "abs",
        "neg",
    ),
    *("exp", "sqrt", "softplus"),
)
BINARY = ("add", "sub", "mul", "div", "maximum", "minimum")
VALUE = np.dtype(
    [(name, "i8") for name in ("base", "channels", "height", "width", "pitch", "plane", "pad", "features")]
)
OPERATION = np.dtype(
    [(name, "i8") for name in ("kind", "function", "in", "other", "out", "tensor", "count", "pooled")]
    + [(name, "f8") for name in ("low", "high")]
    + [(name, "u8") for name in ("start", "base", "offset", "index", "weight", "bias")]
)
MOST = 16  # vectors that a kernel sums at once
NEAR = 2**16  # pixels from a block's base that an offset can tell
CACHE = 14 * 2**10  # bytes of the first cache that a block of a layer's input may fill
PIECE = 12  # survivors of a row in a block: with fewer, more blocks cost more than they save
SLACK = 16  # pixels behind each value, which the last vector of a row may overwrite
NATIVE = (*LAYERS, "affine", "unary", "binary", "pool", "concat", "flatten", "select")


@dataclass(eq=False)
class _Value:
    """An activation in an arena."""

    size: Planes
    features: bool
    pad: int = 0
    pitch: int = 1
    born: int = -1
    dies: int = -1
    base: int = 0
    joined: "_Value | None" = None  # another of the same pitch

    def root(self) -> "_Value":
        return self if self.joined is None else self.joined.root()

    @property
    def plane(self) -> int:
        return 1 if self.features else (self.size.height + 2 * self.pad) * self.pitch + self.pad


@dataclass(eq=False)
class _Operation:
    """One operation of the kernels; arrays are filled in when all values have their places."""

    kind: str
    source: _Value | None
    out: _Value | None
    other: _Value | None = None
    pooled: _Value | None = None  # what takes the maxima of 2 x 2 pixels of `out`
    function: int = 0
    tensor: int = -1
    count: int = 0
    low: float = 0.0
    high: float = 0.0
    step: Step | None = None
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass
class Plan:
    """A program for the kernels, and the arrays that it points to.

    Args:
        inputs, outputs: names of the tensors that it takes and gives.
        operations, values: as in `kernels.c`.
        split: the first operation on all lanes of a tile.
        pixels: the size of each arena, in pixels.
        scratch: where pools keep a line, in the first arena.
        arrays: what the operations point to.
        operation_of: the number of each step's operation, by the step's id.
    """

    inputs: list[str]
    outputs: list[str]
    operations: np.ndarray
    values: np.ndarray
    split: int
    pixels: tuple[int, int]
    scratch: int
    arrays: list[np.ndarray]
    operation_of: dict[int, int]


def planned(
    graph: Graph, steps: Sequence[Step], outputs: Sequence[str], dtype: torch.dtype, group: int, tile: int
) -> Plan:
    """Lay out steps of a graph, all of kinds in `NATIVE`, as one program.

    Args:
        graph: the graph that they belong to.
        steps: the steps, in their order; what they take and do not give is the program's input.
        outputs: the values that the program gives.
        dtype: torch.float32 or torch.float64.
        group, tile: how many images lie side by side at a pixel, and at a feature, for the batch size that matters.
    """
    return _Planner(graph, steps, outputs, dtype, (group, tile)).plan()


class _Planner:
    def __init__(
        self,
        graph: Graph,
        steps: Sequence[Step],
        outputs: Sequence[str],
        dtype: torch.dtype,
        lanes: tuple[int, int],
    ) -> None:
        self.steps, self.outputs = list(steps), list(outputs)
        self.lanes = lanes
        self.shapes = graph.shapes
        self.dtype = np.float64 if dtype == torch.float64 else np.float32
        made = {step.output for step in steps}
        self.inputs = list(dict.fromkeys(name for step in steps for name in step.inputs if name not in made))
        self.last_axis = any(step.kind == "linear" and len(graph.shapes[step.output]) > 2 for step in steps)
        self.wide = self._first_wide()
        self.values: dict[tuple[str, bool], _Value] = {}
        self.loads: dict[str, tuple[int, np.ndarray, Planes]] = {}
        self.every: list[_Value] = []
        self.groups: list[_Operation] = []  # operations on a group of images
        self.tiles: list[_Operation] = []  # operations on a tile
        for number, name in enumerate(self.inputs):
            size = self._size(name)
            self.loads[name] = number, np.arange(size.channels), size

    def _size(self, name: str) -> Planes:
        shape = self.shapes[name]
        return Planes(shape[-1] or 0, 1, 1) if self.last_axis else planes(shape)

    def plan(self) -> Plan:
        for number, step in enumerate(self.steps):
            self._lay(step, number >= self.wide)
        for number, name in enumerate(self.outputs):
            features = (name, True) in self.values or name in self.loads
            self._add("STORE", self._value(name, features), None, features, tensor=number)
        return self._placed()

    def _first_wide(self) -> int:
        """The first step from which on every value has one pixel, without padding, if a layer is among them."""
        first = len(self.steps)
        for number in range(len(self.steps) - 1, -1, -1):
            step = self.steps[number]
            beyond = step.kind == "conv" and (
                step.tensors["weight"][0, :1].numel() > 1 or any(step.settings["padding"])
            )
            if beyond or any(self._size(name).pixels > 1 for name in (*step.inputs, step.output)):
                break
            first = number
        return first if any(step.kind in LAYERS for step in self.steps[first:]) else len(self.steps)

    def _new(self, size: Planes, features: bool) -> _Value:
        value = _Value(size, features)
        self.every.append(value)
        return value

    def _add(self, kind: str, source: _Value | None, out: _Value | None, features: bool, **more: Any) -> _Operation:
        operation = _Operation(kind, source, out, **more)
        (self.tiles if features else self.groups).append(operation)
        return operation

    def _value(self, name: str, features: bool) -> _Value:
        """Where a value lies in an arena; it is loaded, or brought over, if it does not lie there yet."""
        found = self.values.get((name, features))
        if found is None and name in self.loads:
            tensor, index, size = self.loads[name]
            found = self.values[name, features] = self._new(Planes(len(index), size.height, size.width), features)
            self._add("LOAD", None, found, features, tensor=tensor).arrays["index"] = index.astype(np.int32)
        elif found is None:
            before = self.values[name, not features]
            found = self.values[name, features] = self._new(before.size, features)
            self._add("FLATTEN", before, found, features=False)  # from groups to the tile
        return found

    def _lay(self, step: Step, wide: bool) -> None:
        if step.kind in ("flatten", "select") and step.inputs[0] in self.loads:
            self._load_otherwise(step)
        elif step.kind == "flatten":
            self._flatten(step, wide)
        elif step.kind == "concat":
            sources = [self._value(name, wide) for name in step.inputs]
            out = self.values[step.output, wide] = self._new(self._size(step.output), wide)
            start = 0
            for source in sources:
                self._add("COPY", source, out, wide, count=start)
                start += source.size.channels
        else:
            self._compute(step, wide)

    def _load_otherwise(self, step: Step) -> None:
        """Load an input as features, or only some of its channels."""
        tensor, index, size = self.loads[step.inputs[0]]
        if step.kind == "select":
            index = index[step.tensors["index"].numpy()]
        elif size.pixels > 1:
            index = (index[:, None] * size.pixels + np.arange(size.pixels)).reshape(-1)
            size = Planes(len(index), 1, 1)
        self.loads[step.output] = tensor, index, size

    def _compute(self, step: Step, wide: bool) -> None:
        source, *others = (self._value(name, wide) for name in step.inputs)
        other = others[0] if others else None
        if step.kind == "conv" and step.settings["stride"] != [1, 1]:
            source = self._phases(step, source, wide)
        out = self.values[step.output, wide] = self._new(self._size(step.output), wide)
        settings = step.settings
        self._pool_at_once(step, source, out)
        kind = "ROWS" if step.kind in LAYERS else step.kind.upper()
        if step.kind == "pool":
            kind = "MAX_POOL" if settings["function"] == "max" else "SUM_POOL"
        operation = self._add(kind, source, out, wide, other=other, step=step)
        if kind == "ROWS":
            source.pad = max(source.pad, *self._reach(step))
            for value in (source, other):  # rows of pixels can be one strip if they are equally far apart
                if value is not None and value.root() is not out.root():
                    value.root().joined = out.root()
        if "low" in settings:
            operation.function, operation.low, operation.high = 1, settings["low"], settings["high"]
        if step.kind == "unary":
            operation.function = UNARY.index(settings["function"])
            operation.low, operation.high = settings["a"], settings["b"]
        elif step.kind == "binary":
            operation.function = BINARY.index(settings["function"])
        elif kind == "MAX_POOL":
            operation.function = int(any(one.pooled is out for one in self.groups))

    def _pool_at_once(self, step: Step, source: _Value, out: _Value) -> None:
        """Let a convolution keep the maxima of its output alone, where nothing else takes it."""
        before = next((one for one in self.groups if one.kind == "ROWS" and one.out is source), None)
        if before is None or step.kind != "pool" or step.settings["function"] != "max":
            return
        pairs = [[[2 * i, 2 * i + 2] for i in range(size)] for size in (out.size.height, out.size.width)]
        name = step.inputs[0]
        takers = sum(name in one.inputs for one in self.steps) + (name in self.outputs)
        if takers == 1 and [step.settings["rows"], step.settings["columns"]] == pairs:
            before.pooled = out

    def _flatten(self, step: Step, wide: bool) -> None:
        size, name = self._size(step.inputs[0]), step.inputs[0]
        if size.pixels == 1:
            self.values[step.output, wide] = self._value(name, wide)
            return
        takers = [number for number, one in enumerate(self.steps) if step.output in one.inputs]
        into = bool(takers) and min(takers) >= self.wide
        source = self._value(name, features=False)
        out = self.values[step.output, into] = self._new(self._size(step.output), into)
        self._add("FLATTEN", source, out, features=False)

    def _phases(self, step: Step, source: _Value, wide: bool) -> _Value:
        """Split a strided convolution's input into the phases that its weights read."""
        down, across = step.settings["stride"]
        tops, lefts, used = _phases_read(step)
        out = self._size(step.output)
        bottom, right = out.height + max(top // down for top in tops), out.width + max(x // across for x in lefts)
        height = max(1, *(min(-(-(source.size.height - dy) // down), bottom) for dy, _ in used))
        width = max(1, *(min(-(-(source.size.width - dx) // across), right) for _, dx in used))
        split = self._new(Planes(source.size.channels * len(used), height, width), wide)
        above, before = -min(top // down for top in tops), -min(left // across for left in lefts)
        split.pad = max(0, bottom - height, right - width, above, before)
        channels = [(channel, dy, dx) for channel in range(source.size.channels) for dy, dx in used]
        operation = self._add("PHASES", source, split, wide, count=(down << 32) | across)
        operation.arrays["index"] = np.array(channels, np.int32).reshape(-1)
        return split

    def _reach(self, step: Step) -> tuple[int, int]:
        """How far beyond its input a layer reads."""
        if step.kind == "linear" or step.settings["stride"] != [1, 1]:
            return 0, 0
        return step.settings["padding"][0], step.settings["padding"][1]

    def _placed(self) -> Plan:
        operations = [*self.groups, *self.tiles]
        for number, operation in enumerate(operations):
            for value in (operation.source, operation.out, operation.other, operation.pooled):
                if value is not None:
                    value.born = number if value.born < 0 else value.born
                    value.dies = number
        for value in self.every:
            root = value.root()
            root.pitch = max(root.pitch, 1 if value.features else value.size.width + value.pad)
        for value in self.every:
            value.pitch = value.root().pitch if not value.features else 1
        pooled = [
            operation.source.size.width for operation in operations if "POOL" in operation.kind and operation.source
        ]
        sizes = [_allocate([value for value in self.every if value.features is features]) for features in (False, True)]
        scratch = sizes[0]
        rows = [operation.out.size.channels for operation in operations if operation.kind == "ROWS" and operation.out]
        sizes[0] += _rounded(max(*pooled, *(MOST * count for count in rows), 0, 0) + SLACK)
        numbers = {value: number for number, value in enumerate(self.every)}
        table = np.zeros(len(operations), OPERATION)
        arrays: list[np.ndarray] = []
        for row, operation in zip(table, operations, strict=True):
            row["kind"], row["function"] = KINDS.index(operation.kind), operation.function
            names = ("in", "other", "out", "pooled")
            for key, value in zip(
                names, (operation.source, operation.other, operation.out, operation.pooled), strict=True
            ):
                row[key] = -1 if value is None else numbers[value]
            row["tensor"], row["count"] = operation.tensor, operation.count
            row["low"], row["high"] = operation.low, operation.high
            tables = operation.arrays | self._tables(operation)
            if operation.kind == "ROWS":
                row["count"] = len(tables["base"]) // max(len(tables["bias"]), 1)
            for key, array in tables.items():
                arrays.append(np.ascontiguousarray(array))
                row[key] = arrays[-1].ctypes.data
        values = np.array(
            [
                (v.base, v.size.channels, v.size.height, v.size.width, v.pitch, v.plane, v.pad, v.features)
                for v in self.every
            ],
            VALUE,
        )
        own = {id(operation.step): number for number, operation in enumerate(operations) if operation.step is not None}
        return Plan(
            self.inputs,
            self.outputs,
            table,
            values,
            len(self.groups),
            (sizes[0], sizes[1]),
            scratch,
            arrays,
            own,
        )

    def _tables(self, operation: _Operation) -> dict[str, np.ndarray]:
        step, source = operation.step, operation.source
        if operation.kind == "FLATTEN":
            assert source is not None
            y, x = np.mgrid[: source.size.height, : source.size.width]
            pixels = (y * source.pitch + x).reshape(-1)
            return {"index": (np.arange(source.size.channels)[:, None] * source.plane + pixels).astype(np.int32)}
        if step is None or source is None:
            return {}
        if operation.kind == "ROWS":
            return _survivors(step, source, self.dtype, self.lanes[source.features])
        if step.kind == "affine":
            return {
                "weight": step.tensors["scale"].numpy().astype(self.dtype),
                "bias": step.tensors["shift"].numpy().astype(self.dtype),
            }
        if step.kind == "pool":
            windows = [*step.settings["rows"], *step.settings["columns"]]
            return {
                "index": np.array(windows, np.int32).reshape(-1),
                "weight": step.tensors["factor"].numpy().astype(self.dtype),
            }
        return {}


def _phases_read(step: Step) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """Where a convolution's kernel reads beside each stride, down and across, and the phases of the input in that."""
    s, (*_, height, width) = step.settings, step.tensors["weight"].shape
    tops = [k * s["dilation"][0] - s["padding"][0] for k in range(height)]
    lefts = [k * s["dilation"][1] - s["padding"][1] for k in range(width)]
    return tops, lefts, sorted({(top % s["stride"][0], left % s["stride"][1]) for top in tops for left in lefts})


def _survivors(step: Step, source: _Value, dtype: Any, lanes: int) -> dict[str, np.ndarray]:
    """Each row's surviving weights, block after block of the input, and where they read, in the order of memory."""
    weight = step.tensors["weight"].numpy()
    count, channels = weight.shape[:2]
    row, channel, *kernel = weight.nonzero()
    first, plane, pitch = np.zeros(count, np.int64), source.plane, source.pitch
    y, x = kernel if kernel else (np.zeros_like(row), np.zeros_like(row))
    low, span = (0, 0), (1, 1)  # the first pixel that a kernel reads, and how many from there, down and across
    if step.kind == "conv":
        s = step.settings
        first = np.arange(count) // (count // s["groups"]) * channels  # the first channel that each row could read
        y, x = (kernel[i] * s["dilation"][i] - s["padding"][i] for i in (0, 1))
        down, across = s["stride"]
        tops, lefts, used = _phases_read(step)
        if (down, across) != (1, 1):  # a phase is a channel
            lookup = np.zeros((down, across), np.int64)
            lookup[tuple(np.array(used).T)] = np.arange(len(used))
            channel = channel * len(used) + lookup[y % down, x % across]
            first, channels = first * len(used), channels * len(used)
            y, x = y // down, x // across
        low = tops[0] // down, lefts[0] // across
        span = tops[-1] // down - low[0] + 1, lefts[-1] // across - low[1] + 1
    y, x = y - low[0], x - low[1]
    # Blocks are made of units: a channel each, or a line of the kernel where offsets cannot reach all lines.
    near = (span[0] - 1) * pitch + span[1]
    lines = 1 if near <= NEAR else span[0]
    unit = channel * lines + (y if lines > 1 else 0)
    tile = (span[0] + 1) * (span[1] + 5) if lanes > 1 else span[0] * pitch + 100  # pixels that a tile reads, roughly
    fits = max(1, CACHE // ((tile if step.kind == "conv" else 1) * lanes * np.dtype(dtype).itemsize))
    blocks = max(1, min(-(-channels // fits), len(row) // max(count * PIECE, 1)))
    size = min(-(-channels // blocks), (NEAR - near) // plane + 1) if lines == 1 else 1
    size = max(size, 1)
    blocks = -(-channels * lines // size)
    starts = np.arange(blocks) * size
    bases = starts // lines * plane + starts % lines * pitch
    block = unit // size
    order = np.argsort(block * count + row, kind="stable")
    ends = np.bincount(block * count + row, minlength=blocks * count).cumsum()
    return {
        "start": np.concatenate([[0], ends]).astype(np.int64),
        "base": (bases[:, None] + first * plane + low[0] * pitch + low[1]).astype(np.int64).reshape(-1),
        "offset": (channel * plane + y * pitch + x - bases[block]).astype(np.uint16)[order],
        "weight": weight[weight != 0].astype(dtype)[order],
        "bias": step.tensors["bias"].numpy().astype(dtype),
    }


def _rounded(pixels: int) -> int:
    return math.ceil(pixels / 16) * 16


def _allocate(values: list[_Value]) -> int:
    """Give each value a place that no other needs while it lives, and return the pixels of all of them together."""
    placed: list[_Value] = []
    size = 0
    for value in sorted(values, key=lambda v: v.born):
        need = _rounded(value.size.channels * value.plane + SLACK)
        at = 0
        for other in sorted((v for v in placed if v.dies >= value.born), key=lambda v: v.base):
            if other.base - at >= need:
                break
            at = max(at, other.base + _rounded(other.size.channels * other.plane + SLACK))
        value.base = at
        placed.append(value)
        size = max(size, at + need)
    return size
