"""A graph as an ONNX model: the compacted network, dense, for any runtime. Its batch dimension is free."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lth_lightning.errors import SettingError
from lth_lightning.sparse.graph import Graph, Shape, Step, names_in, regular

OPSET = 17
IR_VERSION = 8  # what runtimes of 2022 and later read
UNARY = {
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "hardswish": "HardSwish",
    "abs": "Abs",
    "neg": "Neg",
    "exp": "Exp",
    "sqrt": "Sqrt",
}
BINARY = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "maximum": "Max", "minimum": "Min"}


def onnx_model(graph: Graph, name: str = "network") -> Any:
    """Return the graph as an `onnx.ModelProto`, checked by `onnx.checker`.

    Raises:
        SettingError: onnx is not installed, or the graph has operators that only PyTorch runs.
    """
    try:
        import onnx
    except ImportError as error:
        raise SettingError("ONNX files need the package onnx: pip install 'lth_lightning[export]'.") from error
    if foreign := sorted({step.settings["target"] for step in graph.steps if step.kind == "torch"}):
        raise SettingError(f"the network uses {', '.join(foreign)}, which no ONNX file can hold here; use --to torch.")
    model = _Writer(graph, onnx).model(name)
    onnx.checker.check_model(model, full_check=True)
    return model


def onnx_runtime(graph: Graph) -> Callable[[Tensor], Any]:
    """Return the graph as ONNX Runtime runs it, on the CPU with PyTorch's number of threads.

    Raises:
        ImportError: ONNX Runtime is not installed.
        SettingError: as in `onnx_model`.
    """
    return _session(onnx_model(graph).SerializeToString())


def onnx_file(path: Path) -> Callable[[Tensor], Any]:
    """Return an ONNX file as ONNX Runtime runs it, likewise.

    Raises:
        ImportError: ONNX Runtime is not installed.
    """
    return _session(path.read_bytes())


def _session(model: bytes) -> Callable[[Tensor], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x.numpy()})


class _Writer:
    def __init__(self, graph: Graph, onnx: Any) -> None:
        self.graph, self.onnx = graph, onnx
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.type = graph.dtype

    def model(self, name: str) -> Any:
        helper, graph = self.onnx.helper, self.graph
        kinds: dict[str, Callable[[Step], object]] = {
            "linear": self._linear,
            "conv": self._conv,
            "affine": self._affine,
            "unary": self._unary,
            "binary": lambda step: self._add(BINARY[step.settings["function"]], step.inputs, step.output),
            "pool": self._pool,
            "concat": lambda step: self._add("Concat", step.inputs, step.output, axis=1),
            "flatten": self._flatten,
            "select": self._select,
        }
        for step in graph.steps:
            kinds[step.kind](step)
        number = self.onnx.TensorProto.DOUBLE if self.type == torch.float64 else self.onnx.TensorProto.FLOAT
        inputs, outputs = (
            [helper.make_tensor_value_info(one, number, self._shape(graph.shapes[one])) for one in names]
            for names in (graph.inputs, names_in(graph.outputs))
        )
        made = helper.make_graph(self.nodes, name, inputs, outputs, self.weights)
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(made, opset_imports=[opset], ir_version=IR_VERSION, producer_name="lth_lightning")

    def _shape(self, shape: Shape) -> list[int | str]:
        return ["N" if size is None else size for size in shape]

    def _add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def _weight(self, value: Tensor | np.ndarray | list[int], name: str) -> str:
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        name = f"{name}_{len(self.weights)}"
        self.weights.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def _number(self, value: float) -> str:
        return self._weight(torch.tensor(value, dtype=self.type), "number")

    def _finish(self, step: Step, made: str) -> None:
        """Add a layer's second input, and clamp."""
        clamps = "low" in step.settings
        if len(step.inputs) > 1:
            made = self._add("Add", [made, step.inputs[1]], step.output if not clamps else f"{step.output}.sum")
        if clamps:
            self._clamp(made, step.output, step.settings["low"], step.settings["high"])

    def _before(self, step: Step) -> str:
        """The name of a layer's own result: its output, unless more follows."""
        return f"{step.output}.own" if len(step.inputs) > 1 or "low" in step.settings else step.output

    def _clamp(self, source: str, output: str, low: float, high: float) -> None:
        if (low, high) == (0, math.inf):
            self._add("Relu", [source], output)
        else:
            bounds = ["" if math.isinf(bound) else self._number(bound) for bound in (low, high)]
            self._add("Clip", [source, *bounds], output)

    def _linear(self, step: Step) -> None:
        weight, bias = step.tensors["weight"], self._weight(step.tensors["bias"], "bias")
        made = self._before(step)
        if len(self.graph.shapes[step.output]) == 2:
            self._add("Gemm", [step.inputs[0], self._weight(weight, "weight"), bias], made, transB=1)
        else:
            turned = self._weight(weight.t(), "weight")
            self._add("Add", [self._add("MatMul", [step.inputs[0], turned], f"{step.output}.product"), bias], made)
        self._finish(step, made)

    def _conv(self, step: Step) -> None:
        s, weight = step.settings, step.tensors["weight"]
        flat = len(self.graph.shapes[step.output]) == 3
        keep = slice(1, None) if flat else slice(None)
        made = self._before(step)
        self._add(
            "Conv",
            [step.inputs[0], self._weight(weight.squeeze(2) if flat else weight, "weight"),
             self._weight(step.tensors["bias"], "bias")],
            made,
            strides=s["stride"][keep],
            pads=s["padding"][keep] * 2,
            dilations=s["dilation"][keep],
            group=s["groups"],
            kernel_shape=list(weight.shape[2:])[keep],
        )  # fmt: skip
        self._finish(step, made)

    def _affine(self, step: Step) -> None:
        by_channel = (-1, *([1] * (len(self.graph.shapes[step.output]) - 2)))
        scale, shift = (self._weight(step.tensors[name].reshape(by_channel), name) for name in ("scale", "shift"))
        made = self._before(step)
        self._add("Add", [self._add("Mul", [step.inputs[0], scale], f"{step.output}.scaled"), shift], made)
        self._finish(step, made)

    def _unary(self, step: Step) -> None:
        s, x, y = step.settings, step.inputs[0], step.output
        function, a, b = s["function"], s["a"], s["b"]
        if function in UNARY:
            self._add(UNARY[function], [x], y)
        elif function == "clamp":
            self._clamp(x, y, a, b)
        elif function == "leaky":
            self._add("LeakyRelu", [x], y, alpha=a)
        elif function == "hardsigmoid":
            self._add("HardSigmoid", [x], y, alpha=1 / 6, beta=0.5)
        elif function == "elu":
            self._add("Mul", [self._add("Elu", [x], f"{y}.elu", alpha=a), self._number(b)], y)
        elif function == "silu":
            self._add("Mul", [x, self._add("Sigmoid", [x], f"{y}.gate")], y)
        elif function == "softplus":
            scaled = self._add("Mul", [x, self._number(a)], f"{y}.scaled")
            soft = self._add("Div", [self._add("Softplus", [scaled], f"{y}.soft"), self._number(a)], f"{y}.curve")
            self._add("Where", [self._add("Greater", [scaled, self._number(b)], f"{y}.linear"), x, soft], y)
        else:
            self._gelu(x, y, exact=function == "gelu")

    def _gelu(self, x: str, y: str, exact: bool) -> None:
        if exact:
            inner = self._add("Mul", [x, self._number(math.sqrt(0.5))], f"{y}.scaled")
        else:
            cube = self._add("Mul", [self._add("Mul", [x, x], f"{y}.square"), x], f"{y}.cube")
            part = self._add("Mul", [cube, self._number(0.044715)], f"{y}.part")
            total = self._add("Add", [x, part], f"{y}.total")
            inner = self._add("Mul", [total, self._number(math.sqrt(2 / math.pi))], f"{y}.scaled")
        gate = self._add("Erf" if exact else "Tanh", [inner], f"{y}.gate")
        half = self._add("Mul", [x, self._number(0.5)], f"{y}.half")
        self._add("Mul", [half, self._add("Add", [gate, self._number(1.0)], f"{y}.weight")], y)

    def _pool(self, step: Step) -> None:
        s, x, y = step.settings, step.inputs[0], step.output
        largest = s["function"] == "max"
        height, width = (size or 0 for size in self.graph.shapes[x][2:])
        if (down := regular(s["rows"], height)) and (across := regular(s["columns"], width)):
            lengths, strides = ([one, other] for one, other in zip(down, across, strict=True))
            made = y if largest else f"{y}.mean"
            self._add("MaxPool" if largest else "AveragePool", [x], made, kernel_shape=lengths, strides=strides)
            if not largest:
                self._scale(made, y, step.tensors["factor"] * math.prod(lengths))
            return
        lines = self._reduced(x, y, s["rows"], 2, largest)
        made = self._reduced(lines, f"{y}.columns", s["columns"], 3, largest)
        if largest:
            self._add("Identity", [made], y)
        else:
            self._scale(made, y, step.tensors["factor"])

    def _scale(self, source: str, output: str, factor: Tensor) -> None:
        self._add("Mul", [source, self._weight(factor, "factor")], output)

    def _reduced(self, x: str, name: str, windows: list[list[int]], axis: int, largest: bool) -> str:
        parts = []
        for number, (first, end) in enumerate(windows):
            bounds = [self._weight(np.array([bound], np.int64), "bound") for bound in (first, end, axis)]
            part = self._add("Slice", [x, *bounds], f"{name}.window{axis}.{number}")
            reduced = f"{part}.reduced"
            if largest:
                self._add("ReduceMax", [part], reduced, axes=[axis], keepdims=1)
            else:
                self._add("ReduceSum", [part, bounds[2]], reduced, keepdims=1)
            parts.append(reduced)
        return self._add("Concat", parts, f"{name}.reduced{axis}", axis=axis)

    def _flatten(self, step: Step) -> None:
        sizes = self._weight(np.array([-1, *step.settings["sizes"]], np.int64), "sizes")
        self._add("Reshape", [step.inputs[0], sizes], step.output)

    def _select(self, step: Step) -> None:
        self._add("Gather", [step.inputs[0], self._weight(step.tensors["index"], "index")], step.output, axis=1)
