"""Writes a graph as one C99 file for small devices: tables of surviving weights and loops over them.

The file allocates nothing and needs no library but `math.h`. A sparse layer's tables hold how many weights of each row
survive, their values, and the gaps between their columns. A gap is one byte; 255 means "255 columns on, and no weight
yet". Values share one scratch array, as large as the values that are alive at once.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lth_lightning.errors import SettingError
from lth_lightning.sparse.gaps import as_bytes
from lth_lightning.sparse.graph import LAYERS, Graph, Step, names_in, planes

LEVELS = 127
"""The largest weight of a row, as a signed byte."""
TABLE_TYPES = {"u1": "uint8_t", "u2": "uint16_t", "u4": "uint32_t", "i1": "int8_t", "f4": "float"}


def c_source(graph: Graph, name: str = "network", *, int8: bool = False, comment: str = "") -> tuple[str, str]:
    """Return a C99 header and source of `int predict(const float *image, float *scores)`.

    It takes one sample, writes all scores, and returns the index of the largest (the first, if several are equal).

    Args:
        graph: what to compute, simplified and compacted; it does not change.
        name: the files' name without extension, which the source includes as `name.h`.
        int8: store each weight of a layer as a signed byte, with one factor a row. Sums stay float.
        comment: stands at the top of both files.

    Raises:
        SettingError: the graph has several inputs or outputs, or a step that only PyTorch runs.
    """
    _check(graph)
    steps = _without_selected_columns(graph)
    source, output = graph.inputs[0], next(names_in(graph.outputs))
    places = _Places(graph, steps, output)
    writer = _Writer(graph, places, int8)
    for step in steps:
        writer.write(step)
    if places.of(output) != "scores":
        writer.call("copy", places.of(output), "scores", places.size(output))
    opening = _comment(comment or "A pruned network.")
    sizes = places.size(source), places.size(output)
    return _header(name, opening, *sizes), _body(name, opening, writer, sizes[1])


def _check(graph: Graph) -> None:
    """Refuse what C source cannot express, in one sentence."""
    reasons = []
    if len(graph.inputs) != 1:
        reasons.append(f"{len(graph.inputs)} inputs")
    if (outputs := len(list(names_in(graph.outputs)))) != 1:
        reasons.append(f"{outputs} outputs")
    operators = dict.fromkeys(step.settings["target"] for step in graph.steps if step.kind == "torch")
    if any(step.kind == "linear" and len(graph.shapes[step.output]) != 2 for step in graph.steps):
        operators["aten.linear.default on more than two dimensions"] = None
    if operators:
        reasons.append(
            f"the operators {', '.join(operators)}" if len(operators) > 1 else f"the operator {next(iter(operators))}"
        )
    names = {*graph.inputs, *(step.output for step in graph.steps)}
    if not reasons and not all(_is_planes(graph, value) for value in names):
        reasons.append("values without channels or of unknown size")
    if reasons:
        raise SettingError(
            f"the network has {' and '.join(reasons)}, which C source cannot express: use `--to torch` instead."
        )


def _is_planes(graph: Graph, name: str) -> bool:
    try:
        planes(graph.shapes[name])
    except ValueError:
        return False
    return True


def _without_selected_columns(graph: Graph) -> list[Step]:
    """Let linear layers read the selected columns where they lie: that needs neither an index table nor a copy."""
    takers, returned = graph.consumers(), graph.returned()
    chosen: dict[str, Step] = {}
    steps: list[Step] = []
    for step in graph.steps:
        readers = takers[step.output]
        columns = len(graph.shapes[step.output]) == 2 and len(graph.shapes[step.inputs[0]]) == 2
        only_layers = all(reader.kind == "linear" and step.output not in reader.inputs[1:] for reader in readers)
        if step.kind == "select" and columns and only_layers and step.output not in returned:
            chosen[step.output] = step
        elif step.kind == "linear" and step.inputs[0] in chosen:
            select = chosen[step.inputs[0]]
            weight = step.tensors["weight"]
            wide = weight.new_zeros(len(weight), graph.shapes[select.inputs[0]][1] or 0)
            wide[:, select.tensors["index"]] = weight
            inputs = (select.inputs[0], *step.inputs[1:])
            steps.append(Step("linear", inputs, step.output, step.settings, {**step.tensors, "weight": wide}))
        else:
            steps.append(step)
    return steps


@dataclass(eq=False)
class _Block:
    """Memory that one or several values share: a flattened one, or the results of steps that work in place."""

    size: int
    born: int
    dies: int
    place: str = ""
    offset: int = 0


class _Places:
    """Where each value lies: in the arguments of `predict`, or in the scratch array."""

    def __init__(self, graph: Graph, steps: Sequence[Step], output: str) -> None:
        self._graph = graph
        source = graph.inputs[0]
        last = {name: number for number, step in enumerate(steps) for name in step.inputs}
        last[output] = len(steps)
        image = _Block(self.size(source), -1, last.get(source, -1), "image")
        self._blocks = {source: image}
        for number, step in enumerate(steps):
            block = self._reused(step, number, image) or _Block(self.size(step.output), number, number)
            block.dies = max(block.dies, last.get(step.output, number))
            self._blocks[step.output] = block
        if self._blocks[output] is not image:
            self._blocks[output].place = "scores"
        self.scratch = _arrange({id(block): block for block in self._blocks.values() if not block.place}.values())

    def size(self, name: str) -> int:
        """Return how many numbers a value has."""
        size = planes(self._graph.shapes[name])
        return size.channels * size.pixels

    def of(self, name: str) -> str:
        """Return the C expression for a value's address."""
        block = self._blocks[name]
        return block.place or (f"scratch + {block.offset}" if block.offset else "scratch")

    def _reused(self, step: Step, number: int, image: _Block) -> _Block | None:
        """The block of an input that the output can take: nothing reads it later, and each number is read first."""
        if step.kind == "flatten":
            return self._blocks[step.inputs[0]]
        if step.kind in ("affine", "unary", "binary"):
            name = step.inputs[0]
        elif step.kind in LAYERS and len(step.inputs) > 1:
            name = step.inputs[1]
            if self._blocks[name] is self._blocks[step.inputs[0]]:
                return None
        else:
            return None
        block = self._blocks[name]
        free = block is not image and block.dies <= number and block.size == self.size(step.output)
        return block if free else None


def _arrange(blocks: Iterable[_Block]) -> int:
    """Give each block the first place that is free while it is alive, the largest first; return the end of all."""
    placed: list[_Block] = []
    for block in sorted(blocks, key=lambda block: (-block.size, block.born)):
        others = [one for one in placed if one.born <= block.dies and block.born <= one.dies]
        for other in sorted(others, key=lambda one: one.offset):
            if other.offset < block.offset + block.size:
                block.offset = max(block.offset, other.offset + other.size)
        placed.append(block)
    return max((block.offset + block.size for block in placed), default=0)


class _Weights(NamedTuple):
    """A layer's weights as tables."""

    storage: str  # dense, gaps or indices
    counts: np.ndarray
    columns: np.ndarray  # gaps or indices
    values: np.ndarray
    scales: np.ndarray


def _stored(weight: np.ndarray, int8: bool) -> _Weights:
    """Choose the smallest tables for a matrix; dense ones where more than half of it survives, for speed."""
    scales = np.abs(weight).max(1, initial=0) / np.float32(LEVELS)
    if int8:
        by_row = np.where(scales > 0, scales, 1)[:, None]
        weight = np.rint(weight / by_row).clip(-LEVELS, LEVELS).astype(np.int8)
    rows, columns = weight.nonzero()
    counts = np.bincount(rows, minlength=len(weight))
    counts = counts.astype(np.uint16 if counts.max(initial=0) < 2**16 else np.uint32)
    values = weight[rows, columns]
    first = np.diff(rows, prepend=-1) != 0
    gaps = as_bytes(np.where(first, columns, np.diff(columns, prepend=0)))
    sparse = [("gaps", gaps)]
    if weight.shape[1] <= 2**16:
        sparse.append(("indices", columns.astype(np.uint16)))
    storage, table = min(sparse, key=lambda option: option[1].nbytes)
    if 2 * len(values) > weight.size or weight.nbytes <= values.nbytes + table.nbytes + counts.nbytes:
        return _Weights("dense", counts, table, weight.reshape(-1), scales)
    return _Weights(storage, counts, table, values, scales)


@dataclass
class _Writer:
    """Collects the tables, helpers and calls of the source, step by step."""

    graph: Graph
    places: _Places
    int8: bool
    tables: list[str] = field(default_factory=list)
    helpers: dict[str, str] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    _known: dict[tuple[str, bytes], str] = field(default_factory=dict)

    def write(self, step: Step) -> None:
        """Add what a step needs."""
        if step.kind in LAYERS:
            self._layer(step)
        elif step.kind == "affine":
            size = planes(self.graph.shapes[step.output])
            tables = [self._floats(key, step.tensors[key]) for key in ("scale", "shift")]
            self.call("affine", self._in(step), self._out(step), size.channels, size.pixels, *tables)
        elif step.kind == "unary":
            self._unary(step)
        elif step.kind == "binary":
            self._binary(step)
        elif step.kind == "pool":
            self._pool(step)
        elif step.kind == "concat":
            done = 0
            for name in step.inputs:
                self.call("copy", self.places.of(name), f"{self._out(step)} + {done}", self.places.size(name))
                done += self.places.size(name)
        elif step.kind == "select":
            pixels = planes(self.graph.shapes[step.inputs[0]]).pixels
            index = step.tensors["index"].numpy()
            wide = bool(index.max(initial=0) >= 2**16)
            table = self.table("index", index.astype(np.uint32 if wide else np.uint16))
            self.call("take_wide" if wide else "take", self._in(step), self._out(step), len(index), pixels, table)
        self._clamp(step)

    def call(self, helper: str, *arguments: object) -> None:
        """Call a helper, and define it if it is the first call."""
        self._define(helper, HELPERS[helper])
        self._call(helper, arguments)

    def table(self, name: str, values: np.ndarray) -> str:
        """Define a table, and return its name; equal tables are one."""
        kind = values.dtype.str[1:]
        key = kind, values.tobytes()
        if key not in self._known:
            self._known[key] = f"{name}_{len(self._known)}"
            numbers = [_float(value) for value in values] if kind == "f4" else [str(value) for value in values.tolist()]
            lines = _lines(numbers or ["0"])  # C has no tables of length 0
            size = max(len(values), 1)
            self.tables.append(f"static const {TABLE_TYPES[kind]} {self._known[key]}[{size}] = {{\n{lines}\n}};\n")
        return self._known[key]

    def _define(self, name: str, text: str) -> None:
        self.helpers.setdefault(name, text.strip() + "\n")

    def _call(self, helper: str, arguments: Iterable[object]) -> None:
        self.calls.append(f"    {helper}({', '.join(map(str, arguments))});")

    def _floats(self, name: str, values: Tensor) -> str:
        return self.table(name, _array(values).reshape(-1))

    def _in(self, step: Step, number: int = 0) -> str:
        return self.places.of(step.inputs[number])

    def _out(self, step: Step) -> str:
        return self.places.of(step.output)

    def _layer(self, step: Step) -> None:
        weight = _array(step.tensors["weight"])
        width = math.prod(weight.shape[1:])
        stored = _stored(weight.reshape(len(weight), width), self.int8)
        conv = step.kind == "conv"
        helper, text = _layer_helper(conv, stored, self.int8)
        if conv:
            self._define("conv_shape", CONV_SHAPE)
            self._define("add_plane", ADD_PLANE)
        self._define(helper, text)
        tables: list[object] = [width]
        if stored.storage != "dense":
            tables = [self.table("counts", stored.counts), self.table(stored.storage, stored.columns)]
        tables.append(self.table("weights", stored.values))
        if self.int8:
            tables.append(self.table("scales", stored.scales.astype(np.float32)))
        tables.append(self._floats("bias", step.tensors["bias"]))
        other = self._in(step, 1) if len(step.inputs) > 1 else "0"
        shape = f"&{self._conv_shape(step)}" if conv else len(weight)
        self._call(helper, [self._in(step), self._out(step), other, shape, *tables])

    def _conv_shape(self, step: Step) -> str:
        before, after = (planes(self.graph.shapes[name]) for name in (step.inputs[0], step.output))
        settings, weight = step.settings, step.tensors["weight"]
        numbers = [after.channels, after.height, after.width, before.height, before.width]
        numbers += [weight.shape[1], len(weight) // settings["groups"], *weight.shape[2:]]
        numbers += [*settings["stride"], *settings["padding"], *settings["dilation"]]
        name = f"shape_{len(self.calls)}"
        self.tables.append(f"static const conv_shape {name} = {{{', '.join(map(str, numbers))}}};\n")
        return name

    def _unary(self, step: Step) -> None:
        function, a, b = (step.settings[key] for key in ("function", "a", "b"))
        place, size = self._out(step), self.places.size(step.output)
        if function == "clamp":
            if self._in(step) != place:
                self.call("copy", self._in(step), place, size)
            self._bound(place, size, a, b)
            return
        parameters, _ = UNARY[function]
        self._define(function, _unary_helper(function))
        given = [_float(value) for _, value in zip(parameters, (a, b), strict=False)]
        self._call(f"apply_{function}", [self._in(step), place, size, *given])

    def _binary(self, step: Step) -> None:
        size = planes(self.graph.shapes[step.output])
        whole = [int(planes(self.graph.shapes[name]).pixels == size.pixels) for name in step.inputs]
        function = f"pairs_{step.settings['function']}"
        self._define(function, PAIRS.format(name=function, value=BINARY[step.settings["function"]]))
        operands = [self._in(step), self._in(step, 1), self._out(step)]
        self._call(function, [*operands, size.channels, size.pixels, *whole])

    def _pool(self, step: Step) -> None:
        before = planes(self.graph.shapes[step.inputs[0]])
        windows: list[object] = []
        for key in ("rows", "columns"):
            table = np.array(step.settings[key], np.uint16).reshape(-1)
            windows += [self.table("windows", table), len(step.settings[key])]
        arguments = [self._in(step), self._out(step), *before, *windows]
        if step.settings["function"] == "max":
            self.call("pool_max", *arguments)
            return
        factor = _array(step.tensors["factor"]).reshape(-1)
        alike = bool((factor == factor[0]).all())
        self.call("pool_sum", *arguments, self.table("factor", factor[:1] if alike else factor), int(not alike))

    def _clamp(self, step: Step) -> None:
        if "low" in step.settings:
            size = self.places.size(step.output)
            self._bound(self._out(step), size, step.settings["low"], step.settings["high"])

    def _bound(self, place: str, size: int, low: float, high: float) -> None:
        if low != -math.inf:
            self.call("at_least", place, size, _float(low))
        if high != math.inf:
            self.call("at_most", place, size, _float(high))


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()


def _float(value: float) -> str:
    """A float32 in C: the fewest digits that give the same number, and always with a point or an exponent."""
    if math.isfinite(value):
        return f"{np.float32(value)!s}f"
    return "NAN" if math.isnan(value) else "INFINITY" if value > 0 else "-INFINITY"


def _lines(numbers: Sequence[str], width: int = 110) -> str:
    lines, line = [], "   "
    for number in numbers:
        if len(line) + len(number) > width:
            lines.append(line)
            line = "   "
        line += f" {number},"
    return "\n".join([*lines, line])


def _comment(text: str) -> str:
    """A block comment, which the text cannot end and in which no other seems to begin."""
    text = text.replace("*/", "* /").replace("/*", "/ *")
    return "\n".join(["/*", *(f" * {line}".rstrip() for line in text.splitlines()), " */"])


def _header(name: str, opening: str, inputs: int, scores: int) -> str:
    guard = f"PREDICT_{re.sub('[^A-Za-z0-9]', '_', name).upper()}_H"
    return f"""{opening}
#ifndef {guard}
#define {guard}

#define PREDICT_INPUTS {inputs}
#define PREDICT_SCORES {scores}

#ifdef __cplusplus
extern "C" {{
#endif

/* Classify one sample. `image` holds PREDICT_INPUTS numbers, channel after channel and row after row, normalised as in
 * training. Writes PREDICT_SCORES numbers to `scores`, and returns the index of the largest. The memory it works in is
 * static: do not call it from two threads at once. */
int predict(const float *image, float *scores);

#ifdef __cplusplus
}}
#endif

#endif
"""


def _body(name: str, opening: str, writer: _Writer, scores: int) -> str:
    tables, calls = "\n".join(writer.tables), "\n".join(writer.calls)
    types = writer.helpers.get("conv_shape", "")  # before the tables that are of this type
    helpers = "\n".join(text for helper, text in writer.helpers.items() if helper != "conv_shape")
    scratch = f"static float scratch[{writer.places.scratch}];\n" if writer.places.scratch else ""
    code = "\n".join(part for part in (types, tables, scratch, helpers) if part)
    includes = [f'#include "{name}.h"', ""]
    if re.search(r"\b(erff|expf|expm1f|fabsf|log1pf|sqrtf|tanhf|INFINITY|NAN)\b", code + calls):
        includes.append("#include <math.h>")
    if re.search(r"\bu?int(8|16|32)_t\b", code):
        includes.append("#include <stdint.h>")
    opened = "\n".join(includes).rstrip()
    return f"""{opening}
{opened}

{code}
int predict(const float *image, float *scores)
{{
    int best = 0;
{calls}
    for (int i = 1; i < {scores}; i++)
        if (scores[i] > scores[best])
            best = i;
    return best;
}}
"""


def _layer_helper(conv: bool, stored: _Weights, int8: bool) -> tuple[str, str]:
    """The name and text of the function for a layer with such tables."""
    wide = stored.storage != "dense" and stored.counts.dtype == np.uint32
    parts = ["conv" if conv else "linear", stored.storage, *(["wide"] if wide else []), *(["int8"] if int8 else [])]
    name = "_".join(parts)
    parameters, walk = WALKS[stored.storage]
    parameters = parameters.replace("COUNT", "uint32_t" if wide else "uint16_t")
    parameters += ", const int8_t *weights, const float *scales" if int8 else ", const float *weights"
    scale = " * scales[row]" if int8 else ""
    use = f"add_plane(s, planes, y, column, *weights++{scale});" if conv else "sum += *weights++ * x[column];"
    text = (CONV if conv else LINEAR).replace("WALK", walk.replace("USE", use).strip())
    return name, text.replace("NAME", name).replace("TABLES", parameters).replace(" SCALE", scale)


def _unary_helper(function: str) -> str:
    parameters, value = UNARY[function]
    more = "".join(f", float {name}" for name in parameters)
    return f"""
static void apply_{function}(const float *from, float *to, int count{more})
{{
    for (int i = 0; i < count; i++) {{
        const float x = from[i];
        to[i] = {value};
    }}
}}
"""


UNARY = {
    "leaky": ("a", "x > 0.0f ? x : a * x"),
    "sigmoid": ("", "1.0f / (1.0f + expf(-x))"),
    "tanh": ("", "tanhf(x)"),
    "silu": ("", "x / (1.0f + expf(-x))"),
    "gelu": ("", "0.5f * x * (1.0f + erff(x * 0.70710678f))"),
    "gelu_tanh": ("", "0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)))"),
    "elu": ("ab", "b * (x > 0.0f ? x : a * expm1f(x))"),
    "hardsigmoid": ("", "x <= -3.0f ? 0.0f : x >= 3.0f ? 1.0f : (x + 3.0f) / 6.0f"),
    "hardswish": ("", "x <= -3.0f ? 0.0f : x >= 3.0f ? x : x * (x + 3.0f) / 6.0f"),
    "abs": ("", "fabsf(x)"),
    "neg": ("", "-x"),
    "exp": ("", "expf(x)"),
    "sqrt": ("", "sqrtf(x)"),
    "softplus": ("ab", "a * x > b ? x : log1pf(expf(a * x)) / a"),
}
"""The parameters that each function of `dense.FUNCTIONS` uses, and its value; clamping has helpers of its own."""
BINARY = {
    "add": "a + b",
    "sub": "a - b",
    "mul": "a * b",
    "div": "a / b",
    "maximum": "a > b ? a : b",
    "minimum": "a < b ? a : b",
}
PAIRS = """
/* x_whole and y_whole: whether x and y have all pixels, or one a channel. */
static void {name}(const float *x, const float *y, float *to, int channels, int pixels, int x_whole, int y_whole)
{{
    for (int i = 0; i < channels * pixels; i++) {{
        const float a = x[x_whole ? i : i / pixels], b = y[y_whole ? i : i / pixels];
        to[i] = {value};
    }}
}}
"""
WALKS = {
    "dense": (
        "int columns",
        """
        for (int column = 0; column < columns; column++)
            USE
""",
    ),
    "gaps": (
        "const COUNT *counts, const uint8_t *gaps",
        """
        int column = 0;
        for (int left = (int)*counts++; left > 0; left--) {
            for (; *gaps == 255; gaps++)
                column += 255;
            column += *gaps++;
            USE
        }
""",
    ),
    "indices": (
        "const COUNT *counts, const uint16_t *indices",
        """
        for (int left = (int)*counts++; left > 0; left--) {
            const int column = *indices++;
            USE
        }
""",
    ),
}
LINEAR = """
static void NAME(const float *x, float *y, const float *other, int rows,
    TABLES, const float *bias)
{
    for (int row = 0; row < rows; row++) {
        float sum = 0.0f;
        WALK
        y[row] = sum SCALE + bias[row] + (other ? other[row] : 0.0f);
    }
}
"""
CONV_SHAPE = """
typedef struct {
    int channels, height, width, in_height, in_width;
    int group_in, group_out, kernel_height, kernel_width;
    int stride_y, stride_x, pad_y, pad_x, dilation_y, dilation_x;
} conv_shape;
"""
ADD_PLANE = """
/* Add one weight's products to an output plane: column counts input channels, kernel rows and kernel columns. */
static void add_plane(const conv_shape *s, const float *x, float *y, int column, float weight)
{
    const int taps = s->kernel_height * s->kernel_width, tap = column % taps;
    const int dy = tap / s->kernel_width * s->dilation_y - s->pad_y;
    const int dx = tap % s->kernel_width * s->dilation_x - s->pad_x;
    int first = 0, end = s->width;
    x += column / taps * s->in_height * s->in_width;
    while (first < end && first * s->stride_x + dx < 0)
        first++;
    while (first < end && (end - 1) * s->stride_x + dx >= s->in_width)
        end--;
    for (int row = 0; row < s->height; row++) {
        const int from = row * s->stride_y + dy;
        if (from < 0 || from >= s->in_height)
            continue;
        for (int i = first; i < end; i++)
            y[row * s->width + i] += weight * x[from * s->in_width + i * s->stride_x + dx];
    }
}
"""
CONV = """
static void NAME(const float *x, float *y, const float *other, const conv_shape *s,
    TABLES, const float *bias)
{
    const int pixels = s->height * s->width, group = s->group_in * s->in_height * s->in_width;
    for (int row = 0; row < s->channels; row++, y += pixels) {
        const float *planes = x + row / s->group_out * group;
        for (int i = 0; i < pixels; i++)
            y[i] = bias[row] + (other ? other[row * pixels + i] : 0.0f);
        WALK
    }
}
"""
HELPERS = {
    "copy": """
static void copy(const float *x, float *y, int count)
{
    for (int i = 0; i < count; i++)
        y[i] = x[i];
}
""",
    "at_least": """
static void at_least(float *x, int count, float low)
{
    for (int i = 0; i < count; i++)
        if (x[i] < low)
            x[i] = low;
}
""",
    "at_most": """
static void at_most(float *x, int count, float high)
{
    for (int i = 0; i < count; i++)
        if (x[i] > high)
            x[i] = high;
}
""",
    "affine": """
static void affine(const float *x, float *y, int channels, int pixels, const float *scale, const float *shift)
{
    for (int i = 0; i < channels * pixels; i++)
        y[i] = x[i] * scale[i / pixels] + shift[i / pixels];
}
""",
    "take": """
static void take(const float *x, float *y, int count, int pixels, const uint16_t *index)
{
    for (int i = 0; i < count * pixels; i++)
        y[i] = x[index[i / pixels] * pixels + i % pixels];
}
""",
    "take_wide": """
static void take_wide(const float *x, float *y, int count, int pixels, const uint32_t *index)
{
    for (int i = 0; i < count * pixels; i++)
        y[i] = x[(int)index[i / pixels] * pixels + i % pixels];
}
""",
    "pool_max": """
static void pool_max(const float *x, float *y, int channels, int height, int width,
                     const uint16_t *rows, int out_height, const uint16_t *columns, int out_width)
{
    for (int channel = 0; channel < channels; channel++, x += height * width)
        for (int i = 0; i < out_height; i++)
            for (int j = 0; j < out_width; j++) {
                float largest = x[rows[2 * i] * width + columns[2 * j]];
                for (int row = rows[2 * i]; row < rows[2 * i + 1]; row++)
                    for (int column = columns[2 * j]; column < columns[2 * j + 1]; column++)
                        if (x[row * width + column] > largest)
                            largest = x[row * width + column];
                *y++ = largest;
            }
}
""",
    "pool_sum": """
static void pool_sum(const float *x, float *y, int channels, int height, int width,
                     const uint16_t *rows, int out_height, const uint16_t *columns, int out_width,
                     const float *factor, int factors)
{
    for (int channel = 0; channel < channels; channel++, x += height * width)
        for (int i = 0; i < out_height; i++)
            for (int j = 0; j < out_width; j++) {
                float sum = 0.0f;
                for (int row = rows[2 * i]; row < rows[2 * i + 1]; row++)
                    for (int column = columns[2 * j]; column < columns[2 * j + 1]; column++)
                        sum += x[row * width + column];
                *y++ = sum * factor[factors ? i * out_width + j : 0];
            }
}
""",
}
