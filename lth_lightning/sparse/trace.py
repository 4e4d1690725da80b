"""Reads a module's graph: what it computes in eval mode, as steps (`graph`). Its class does not matter.

`torch.export` gives the graph in ATen operators, free of side effects, for any batch size. Each operator that kernels
know becomes a step of its own kind; all others stay operators that PyTorch runs. What depends on weights alone (a
parametrization, say) is computed here, once.
"""

import math
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.utils import _pytree as pytree

from lth_lightning.errors import SettingError
from lth_lightning.sparse.graph import Graph, Shape, Step, names_in, without_unused

UNARY: dict[str, Callable[..., tuple[str, float, float]]] = {
    "relu": lambda: ("clamp", 0.0, math.inf),
    "relu6": lambda: ("clamp", 0.0, 6.0),
    "hardtanh": lambda low=-1.0, high=1.0: ("clamp", low, high),
    "clamp": lambda low=None, high=None: (
        "clamp",
        -math.inf if low is None else low,
        math.inf if high is None else high,
    ),
    "clamp_min": lambda low: ("clamp", low, math.inf),
    "leaky_relu": lambda slope=0.01: ("leaky", slope, 0.0),
    "sigmoid": lambda: ("sigmoid", 0.0, 0.0),
    "tanh": lambda: ("tanh", 0.0, 0.0),
    "silu": lambda: ("silu", 0.0, 0.0),
    "gelu": lambda approximate="none": ("gelu" if approximate == "none" else "gelu_tanh", 0.0, 0.0),
    "elu": lambda alpha=1.0, scale=1.0, input_scale=1.0: ("elu", alpha, scale) if input_scale == 1 else _unknown(),
    "selu": lambda: ("elu", 1.6732632423543772, 1.0507009873554805),
    "hardsigmoid": lambda: ("hardsigmoid", 0.0, 0.0),
    "hardswish": lambda: ("hardswish", 0.0, 0.0),
    "abs": lambda: ("abs", 0.0, 0.0),
    "neg": lambda: ("neg", 0.0, 0.0),
    "exp": lambda: ("exp", 0.0, 0.0),
    "sqrt": lambda: ("sqrt", 0.0, 0.0),
    "softplus": lambda beta=1.0, threshold=20.0: ("softplus", beta, threshold),
}
"""By ATen's name: the function, and its parameters from the operator's further arguments."""
BINARY = ("add", "sub", "mul", "div", "maximum", "minimum")
RESHAPES = ("view", "reshape", "flatten", "_unsafe_view", "squeeze", "unsqueeze")
UNCHANGED = ("clone", "detach", "alias", "contiguous", "lift_fresh_copy", "_to_copy", "to")
DROPOUTS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "native_dropout")
SYMBOLIC = {operator.mul: "mul", operator.add: "add", operator.sub: "sub", operator.floordiv: "floordiv"}
RELAXED = {"aten.view.default": "aten.reshape.default"}
"""A view may need the copy that `UNCHANGED` takes away."""
LITERALS = (torch.dtype, torch.layout, torch.memory_format, torch.device)


class _NotOursError(Exception):
    """An operator that no kernel computes in this form."""


def _unknown() -> Any:
    raise _NotOursError


@torch.no_grad()
def trace(module: nn.Module, example: Tensor | Sequence[Tensor]) -> Graph:
    """Read what `module` computes in eval mode, for inputs of the example's shapes and any batch size.

    The module is left as it was.

    Args:
        module: any module whose `forward` takes tensors, with the batch first.
        example: one input, or several in a tuple. Values do not matter.

    Raises:
        SettingError: `torch.export` cannot read the module's graph; the error gives the line, if it is known.
    """
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    inputs = tuple(torch.cat([x, x]) if x.ndim and len(x) == 1 else x for x in inputs)  # a batch of 1 is taken as fixed
    dynamic = tuple({0: torch.export.Dim.DYNAMIC} if x.ndim else {} for x in inputs)
    with _evaluated(module), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(module, inputs, dynamic_shapes=dynamic, strict=False)
            program = program.run_decompositions({})
        except Exception as error:  # a module's forward may fail in any way
            raise _cannot_trace(module, error) from error
    return _Reader(program).graph()


@contextmanager
def _evaluated(module: nn.Module) -> Iterator[None]:
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode


def _cannot_trace(module: nn.Module, error: Exception) -> SettingError:
    """The error in one line: what went wrong, and the last line of user code that was running."""
    frames, step = [], error.__traceback__
    while step is not None:
        frames.append((step.tb_frame.f_code.co_filename, step.tb_lineno))
        step = step.tb_next
    package = str(torch.__path__[0])
    own = [
        (file, line) for file, line in frames if not file.startswith((package, __file__)) and not file.startswith("<")
    ]
    where = f" at {own[-1][0]}, line {own[-1][1]}" if own else ""
    what = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return SettingError(
        f"{type(module).__name__} cannot be compiled: its graph cannot be read{where}: {what} Compile a module without "
        "this line (a part of it, say), or use it dense."
    )


class _Reader:
    """Turns an exported program into a `Graph`, node by node."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        self.program = program
        self.steps: list[Step] = []
        self.shapes: dict[str, Shape] = {}
        self.known: dict[str, Any] = {}  # values that depend on weights alone
        self.same: dict[str, str] = {}  # values that are other values
        self.constants: dict[str, Tensor] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self.normalised: set[str] = set()  # ATen's batch normalisation gives a tuple, whose first part is ours

    def graph(self) -> Graph:
        nodes = self.program.graph
        nodes.eliminate_dead_code()
        signature = self.program.graph_signature
        given = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        given |= signature.inputs_to_lifted_tensor_constants
        everything = {**self.program.state_dict, **self.program.constants}
        inputs: list[str] = []
        for node in nodes.nodes:
            if node.op == "placeholder" and node.name in given:
                self.known[node.name] = everything[given[node.name]].detach()
            elif node.op == "placeholder":
                inputs.append(node.name)
                self._describe(node, node.name)
            elif node.op == "call_function" and not _is_check(node):
                self._read(node)
        returned = self._returned(next(node for node in nodes.nodes if node.op == "output"))
        graph = Graph(inputs, returned, self.steps, self.shapes, self.constants)
        return without_unused(graph)

    def _returned(self, node: Node) -> Any:
        signature = self.program.graph_signature
        kinds = signature.output_specs
        leaves = [
            self._argument(value)
            for value, spec in zip(node.args[0], kinds, strict=True)  # type: ignore[arg-type]
            if spec.kind.name == "USER_OUTPUT"
        ]
        return _plain(pytree.tree_unflatten(leaves, self.program.call_spec.out_spec))

    def _describe(self, node: Node, name: str) -> None:
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            sizes = tuple(size if isinstance(size, int) else None for size in value.shape)
            self.shapes[name] = sizes
            self.dtypes[name] = value.dtype

    def _argument(self, value: Any) -> Any:
        """An argument of an operator as plain data."""
        if isinstance(value, Node):
            name = self._name(value)
            if name in self.known and not isinstance(self.known[name], Tensor):
                return self.known[name]
            if name in self.known:
                self.constants[name] = self.known[name]
            return {"value": name}
        if isinstance(value, list | tuple):
            return [self._argument(part) for part in value]
        if isinstance(value, LITERALS):
            return {"torch": str(value).removeprefix("torch.")}
        if isinstance(value, dict):
            return {key: self._argument(part) for key, part in value.items()}
        return value

    def _name(self, node: Node) -> str:
        return self.same.get(node.name, node.name)

    def _read(self, node: Node) -> None:
        sources = list(node.all_input_nodes)
        if all(self._name(source) in self.known for source in sources):
            self.known[node.name] = _computed(node, {source: self.known[self._name(source)] for source in sources})
            return
        self._describe(node, node.name)
        try:
            self._read_ours(node)
        except _NotOursError:
            if node.target in SYMBOLIC:
                target = SYMBOLIC[node.target]
            elif node.target is operator.getitem:
                target = "getitem"
            else:
                target = RELAXED.get(str(node.target), str(node.target))
            arguments = {"args": self._argument(list(node.args)), "kwargs": self._argument(dict(node.kwargs))}
            inputs = tuple(name for name in names_in(arguments) if name not in self.constants)
            self._add("torch", inputs, node, {"target": target, **arguments})

    def _add(self, kind: str, inputs: Sequence[str], node: Node, settings: dict[str, Any], **tensors: Tensor) -> None:
        self.steps.append(Step(kind, tuple(inputs), node.name, settings, tensors))

    def _read_ours(self, node: Node) -> None:
        """Add the step of a kind of its own that `node` is.

        Raises:
            _NotOursError: it is not one.
        """
        if node.target is operator.getitem:
            source, index = node.args
            if isinstance(source, Node) and source.name in self.normalised and index == 0:
                self.same[node.name] = self._name(source)
                return
            raise _NotOursError
        if not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace != "aten":
            raise _NotOursError
        name = node.target._opname
        if self.dtypes.get(node.name) not in (torch.float32, torch.float64) and name not in NORMS:
            raise _NotOursError
        if not node.args or not isinstance(node.args[0], Node | list | tuple):
            raise _NotOursError
        if name in UNARY:
            function, a, b = UNARY[name](*node.args[1:], **node.kwargs)
            self._add("unary", [self._value(node.args[0])], node, {"function": function, "a": float(a), "b": float(b)})
        elif name in DROPOUTS and _training(node):
            raise _NotOursError
        else:
            self._reader_of(name)(node)

    def _reader_of(self, name: str) -> Callable[[Node], None]:
        readers: list[tuple[Sequence[str], Callable[[Node], None]]] = [
            ((*UNCHANGED, *DROPOUTS), self._unchanged),
            (RESHAPES, self._reshape),
            (("linear",), self._linear),
            (("conv1d", "conv2d"), self._convolution),
            (NORMS, self._normalisation),
            (BINARY, self._binary),
            (("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "mean"), self._pool),
            (("cat", "concat"), self._concat),
        ]
        for names, reader in readers:
            if name in names:
                return reader
        raise _NotOursError

    def _value(self, node: Any) -> str:
        """The name of an operand that is a value of the network.

        Raises:
            _NotOursError: it is a constant, a number, or has another type than the result.
        """
        if not isinstance(node, Node) or self._name(node) in self.known:
            raise _NotOursError
        name = self._name(node)
        if self.dtypes.get(name) not in (torch.float32, torch.float64) or name not in self.shapes:
            raise _NotOursError
        return name

    def _constant(self, node: Any) -> Tensor:
        if isinstance(node, int | float) and not isinstance(node, bool):
            return torch.tensor(float(node), dtype=torch.float64)
        if not isinstance(node, Node) or not isinstance(self.known.get(self._name(node)), Tensor):
            raise _NotOursError
        return self.known[self._name(node)]

    def _planes(self, name: str) -> Shape:
        """The shape of a value with channels.

        Raises:
            _NotOursError: it has none: (N, C), (N, C, L) and (N, C, H, W) do.
        """
        shape = self.shapes[name]
        if not 2 <= len(shape) <= 4 or shape[0] is not None or None in shape[1:]:
            raise _NotOursError
        return shape

    def _unchanged(self, node: Node) -> None:
        source = self._value(node.args[0])
        if self.dtypes[source] != self.dtypes[node.name] or self.shapes[source] != self.shapes[node.name]:
            raise _NotOursError
        if node.kwargs.get("device", torch.device("cpu")) != torch.device("cpu"):
            raise _NotOursError
        self.same[node.name] = source

    def _reshape(self, node: Node) -> None:
        source = self._value(node.args[0])
        old, new = self._planes(source), self._planes(node.name)
        one_pixel = all(size == 1 for size in new[2:]) and len(new) in (2, 4)
        if not one_pixel or math.prod(old[1:]) != new[1]:  # type: ignore[arg-type]
            raise _NotOursError
        self._add("flatten", [source], node, {"sizes": list(new[1:])})

    def _linear(self, node: Node) -> None:
        source, weight = self._value(node.args[0]), self._constant(node.args[1])
        bias = self._bias(node, 2, weight)
        if len(self.shapes[source]) < 2 or weight.ndim != 2:
            raise _NotOursError
        self._add("linear", [source], node, {}, weight=weight.clone(), bias=bias)

    def _bias(self, node: Node, place: int, weight: Tensor) -> Tensor:
        given = node.args[place] if len(node.args) > place else node.kwargs.get("bias")
        return weight.new_zeros(len(weight)) if given is None else self._constant(given).clone()

    def _convolution(self, node: Node) -> None:
        source, weight = self._value(node.args[0]), self._constant(node.args[1])
        self._planes(source)
        flat = weight.ndim == 3  # one dimension: planes of height 1
        rest: list[Any] = [*node.args[3:], *([None] * 4)]
        stride, padding, dilation = (_pair(rest[i], default, flat) for i, default in ((0, 1), (1, 0), (2, 1)))
        settings = {"stride": stride, "padding": padding, "dilation": dilation, "groups": rest[3] or 1}
        if isinstance(rest[1], str) or node.kwargs:
            raise _NotOursError
        weight = weight.unsqueeze(2) if flat else weight
        self._add("conv", [source], node, settings, weight=weight.clone(), bias=self._bias(node, 2, weight))

    def _normalisation(self, node: Node) -> None:
        """Batch normalisation by running statistics: a factor and a shift a channel."""
        source = self._value(node.args[0])
        self._planes(source)
        if node.target._opname == "batch_norm" and node.args[5]:  # type: ignore[union-attr]
            raise _NotOursError
        mean, variance = self._constant(node.args[3]), self._constant(node.args[4])
        eps = float(node.args[-1] if node.target._opname != "batch_norm" else node.args[7])  # type: ignore[union-attr,arg-type]
        factor = (variance.double() + eps).rsqrt()
        if node.args[1] is not None:
            factor = factor * self._constant(node.args[1])
        shift = -mean.double() * factor
        if node.args[2] is not None:
            shift = shift + self._constant(node.args[2])
        dtype = self.dtypes[source]
        self.shapes[node.name], self.dtypes[node.name] = self.shapes[source], dtype
        self.normalised.add(node.name)
        self._add("affine", [source], node, {}, scale=factor.to(dtype), shift=shift.to(dtype))

    def _binary(self, node: Node) -> None:
        function = node.target._opname  # type: ignore[union-attr]
        if len(node.args) != 2 or node.kwargs:
            raise _NotOursError
        left, right = node.args
        known = [not isinstance(side, Node) or self._name(side) in self.known for side in (left, right)]
        if not any(known):
            self._pairwise(node, function, self._value(left), self._value(right))
            return
        if function in ("maximum", "minimum") or (known[0] and function in ("sub", "div")):
            raise _NotOursError
        source, constant = (self._value(right), left) if known[0] else (self._value(left), right)
        self._affine(node, function, source, self._constant(constant))

    def _pairwise(self, node: Node, function: str, left: str, right: str) -> None:
        shapes = [self.shapes[name] for name in (left, right)]
        if self.dtypes[left] != self.dtypes[right]:
            raise _NotOursError
        if shapes[0] != shapes[1]:
            if not all(len(shape) == 4 for shape in shapes) or shapes[0][:2] != shapes[1][:2]:
                raise _NotOursError
            if shapes[0][2:] == (1, 1) and function in ("add", "mul"):
                left, right = right, left  # the one with one pixel a channel comes second
            elif shapes[1][2:] != (1, 1):
                raise _NotOursError
        self._add("binary", [left, right], node, {"function": function})

    def _affine(self, node: Node, function: str, source: str, constant: Tensor) -> None:
        shape, dtype = self._planes(source), self.dtypes[source]
        if self.dtypes[node.name] != dtype or self.shapes[node.name] != shape:
            raise _NotOursError
        channels = shape[1]
        assert channels is not None
        by_channel = constant.reshape(constant.shape[1:] if constant.ndim == len(shape) else constant.shape)
        if constant.numel() != 1 and tuple(by_channel.shape) != (channels, *([1] * (len(shape) - 2))):
            raise _NotOursError
        value = constant.reshape(-1).double().expand(channels)
        one, zero = torch.ones(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
        factor, shift = {
            "add": (one, value),
            "sub": (one, -value),
            "mul": (value, zero),
            "div": (1 / value, zero),
        }[function]
        self._add("affine", [source], node, {}, scale=factor.to(dtype), shift=shift.to(dtype))

    def _pool(self, node: Node) -> None:
        name, source = node.target._opname, self._value(node.args[0])  # type: ignore[union-attr]
        shape = self._planes(source)
        if len(shape) != 4 or node.kwargs.get("dtype") is not None:
            raise _NotOursError
        sizes = [size for size in shape[2:] if size is not None]
        windows: list[list[list[int]]]
        if name == "mean":
            dims: Any = node.args[1] if len(node.args) > 1 else None
            if not isinstance(dims, list | tuple) or sorted(dim % 4 for dim in dims) != [2, 3]:
                raise _NotOursError
            windows = [[[0, size]] for size in sizes]
            factor = _one_over(*windows)
        elif name == "adaptive_avg_pool2d":
            out: Any = node.args[1]
            windows = [
                [[i * size // n, -(-(i + 1) * size // n)] for i in range(n)] for size, n in zip(sizes, out, strict=True)
            ]
            factor = _one_over(*windows)
        else:
            counts = [size for size in self.shapes[node.name][2:] if size is not None]
            windows, factor = _pooling(name, sizes, counts, [*node.args[1:], *([None] * 6)])
        if any(end <= first for axis in windows for first, end in axis):
            raise _NotOursError
        function = "max" if name == "max_pool2d" else "sum"
        settings = {"function": function, "rows": windows[0], "columns": windows[1]}
        step = Step("pool", (source,), node.name, settings, {"factor": factor.to(self.dtypes[source])})
        self.steps.append(step)
        if len(self.shapes[node.name]) == 2:  # the mean without `keepdim`
            step.output += "_pooled"
            self.shapes[step.output] = (*shape[:2], 1, 1)
            self._add("flatten", [step.output], node, {"sizes": [shape[1]]})

    def _concat(self, node: Node) -> None:
        parts = node.args[0]
        dim = node.args[1] if len(node.args) > 1 else 0
        assert isinstance(parts, list | tuple)
        sources = [self._value(part) for part in parts]
        shapes = [self._planes(source) for source in sources]
        if not isinstance(dim, int) or dim % len(shapes[0]) != 1 or len({shape[2:] for shape in shapes}) != 1:
            raise _NotOursError
        self._add("concat", sources, node, {})


NORMS = ("_native_batch_norm_legit_no_training", "batch_norm")


def _is_check(node: Node) -> bool:
    return not node.users and "assert" in str(node.target)


def _training(node: Node) -> bool:
    train = node.args[2] if len(node.args) > 2 else node.kwargs.get("train", True)
    return bool(train)


def _computed(node: Node, known: dict[Node, Any]) -> Any:
    arguments = torch.fx.map_arg(node.args, lambda source: known[source])
    return node.target(*arguments, **torch.fx.map_arg(node.kwargs, lambda source: known[source]))  # type: ignore[operator]


def _pair(given: Any, default: int, flat: bool) -> list[int]:
    """A setting for height and width, from ATen's list of one or two numbers."""
    values = (
        [default] if given is None or isinstance(given, str) else [given] if isinstance(given, int) else list(given)
    )
    if any(not isinstance(value, int) for value in values):
        raise _NotOursError
    if flat:
        return [default, values[0]]
    return values * 2 if len(values) == 1 else values


def _pooling(
    name: str, sizes: list[int], counts: list[int], arguments: list[Any]
) -> tuple[list[list[list[int]]], Tensor]:
    """The windows of max or average pooling in both directions, and the factor of each window's sum.

    Args:
        sizes, counts: height and width of the input and of the output.
        arguments: ATen's, from the kernel's size on, filled up with None.

    Raises:
        _NotOursError: the windows have holes.
    """
    kernel = _pair(arguments[0], 1, flat=False)
    stride = _pair(arguments[1] or kernel, 1, flat=False)
    padding = _pair(arguments[2], 0, flat=False)
    if name == "max_pool2d" and _pair(arguments[3], 1, flat=False) != [1, 1]:
        raise _NotOursError
    axes = list(zip(sizes, counts, kernel, stride, padding, strict=True))
    windows = [[[max(i * s - p, 0), min(i * s - p + k, size)] for i in range(n)] for size, n, k, s, p in axes]
    if name == "max_pool2d":
        return windows, torch.ones(counts, dtype=torch.float64)
    padded, divisor = arguments[4] is not False, arguments[5]
    counted = [[[i * s - p, min(i * s - p + k, size + p)] for i in range(n)] for size, n, k, s, p in axes]
    factor = _one_over(*(counted if padded else windows))
    return windows, factor if divisor is None else torch.full_like(factor, 1 / divisor)


def _one_over(rows: list[list[int]], columns: list[list[int]]) -> Tensor:
    """One over the number of pixels of each window."""
    down, across = (torch.tensor([b - a for a, b in axis], dtype=torch.float64) for axis in (rows, columns))
    return 1 / (down[:, None] * across)


def _plain(structure: Any) -> Any:
    """A network's outputs as JSON: {"tuple": […]} for a tuple, {"value": name} for a tensor.

    Raises:
        SettingError: it returns objects of a class of its own.
    """
    if isinstance(structure, tuple):
        return {"tuple": [_plain(part) for part in structure]}
    if isinstance(structure, list):
        return [_plain(part) for part in structure]
    if isinstance(structure, dict) and type(structure) is dict:
        return structure if structure.keys() == {"value"} else {key: _plain(part) for key, part in structure.items()}
    if structure is None or isinstance(structure, bool | int | float | str):
        return structure
    raise SettingError(
        f"the module returns a {type(structure).__name__}, which a compiled network cannot give. Compile a module that "
        "returns tensors, in tuples, lists or dicts."
    )
