"""Where a layer's survivors stand, laid out for the kernels of training.c: by outputs, and by inputs."""

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

Indices = npt.NDArray[Any]
PAD = 64  # numbers beyond a buffer that whole vectors may read


class Layer(ctypes.Structure):
    """training.c's `Layer`."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "columns")),
        *((name, ctypes.c_void_p) for name in ("row_start", "row_index", "column_start", "column_index")),
        *((name, ctypes.c_void_p) for name in ("column_order", "weight", "bias", "weight_grad", "bias_grad")),
        ("relu", ctypes.c_int64),
    ]


class Conv(ctypes.Structure):
    """training.c's `Conv`."""

    _fields_ = [
        ("layer", Layer),
        *(
            (name, ctypes.c_int64)
            for name in (
                *("channels", "height", "width", "out_height", "out_width", "top", "left", "stride_y", "stride_x"),
                *("pitch", "plane", "before", "gplane", "length", "planes", "gplanes"),
            )
        ),
    ]


@dataclass(frozen=True)
class Pattern:
    """A layer's survivors by rows (outputs) and by columns (inputs); `starts` of rows and columns, int64.

    `row_index` and `column_index` (int32) say where the survivor's input, and the gradient of its output, lie;
    `column_order` which weight it is.
    """

    row_start: Indices
    row_index: Indices
    column_start: Indices
    column_index: Indices
    column_order: Indices

    @classmethod
    def of(cls, rows: Indices, columns: Indices, sizes: tuple[int, int], to: Indices, back: Indices) -> "Pattern":
        """Lay out survivors that are ordered by rows.

        Args:
            rows: each survivor's row.
            columns: each survivor's column.
            sizes: the numbers of rows and of columns.
            to: where its input lies.
            back: where the gradient of its output lies.
        """
        order = np.argsort(columns, kind="stable")
        return cls(
            _starts(rows, sizes[0]),
            to.astype(np.int32),
            _starts(columns, sizes[1]),
            back[order].astype(np.int32),
            order.astype(np.int32),
        )

    def fill(self, layer: Layer) -> None:
        """Point a kernel's structure here; this object must outlive it."""
        layer.rows, layer.columns = len(self.row_start) - 1, len(self.column_start) - 1
        for name in ("row_start", "row_index", "column_start", "column_index", "column_order"):
            setattr(layer, name, getattr(self, name).ctypes.data)


def _starts(places: Indices, size: int) -> Indices:
    return np.concatenate([[0], np.cumsum(np.bincount(places, minlength=size))]).astype(np.int64)


def linear_pattern(mask: Tensor) -> Pattern:
    """Lay out the survivors of a linear layer.

    Args:
        mask: (outputs, inputs).
    """
    rows, columns = mask.cpu().numpy().nonzero()
    return Pattern.of(rows, columns, (mask.shape[0], mask.shape[1]), columns, rows)


def conv_pattern(mask: Tensor, layer: nn.Conv1d | nn.Conv2d, height: int, width: int) -> tuple[Pattern, Conv]:
    """Lay out the survivors of a convolution for images of one size.

    A stride of s makes s x s `phases` of each input channel, planes of every s-th row and column: over these the
    convolution has no stride.

    Args:
        mask: (outputs, inputs a group, height, width) of the kernel.
        layer: its padding, stride, dilation and groups.
        height: of the input.
        width: of the input.
    """
    (stride_y, stride_x), (dilation_y, dilation_x) = _two(layer.stride, 1), _two(layer.dilation, 1)
    kernel_y, kernel_x = mask.shape[2:]
    top, bottom, left, right = _padding(layer, (dilation_y * (kernel_y - 1), dilation_x * (kernel_x - 1)))
    rows = -(-(height + top + bottom) // stride_y)
    pitch = -(-(width + left + right) // stride_x)
    out_height = (height + top + bottom - dilation_y * (kernel_y - 1) - 1) // stride_y + 1
    out_width = (width + left + right - dilation_x * (kernel_x - 1) - 1) // stride_x + 1
    plane, phases = _round(rows * pitch), stride_y * stride_x
    before = dilation_y * (kernel_y - 1) // stride_y * pitch + dilation_x * (kernel_x - 1) // stride_x
    gplane = _round(before + plane)
    out, channel, y, x = mask.cpu().numpy().nonzero()
    channel = channel + out // (mask.shape[0] // layer.groups) * mask.shape[1]
    y, x = y * dilation_y, x * dilation_x
    columns = channel * phases + y % stride_y * stride_x + x % stride_x
    offset = y // stride_y * pitch + x // stride_x
    count = layer.in_channels * phases
    pattern = Pattern.of(out, columns, (mask.shape[0], count), columns * plane + offset, out * gplane + before - offset)
    conv = Conv(
        channels=layer.in_channels,
        height=height,
        width=width,
        out_height=out_height,
        out_width=out_width,
        top=top,
        left=left,
        stride_y=stride_y,
        stride_x=stride_x,
        pitch=pitch,
        plane=plane,
        before=before,
        gplane=gplane,
        length=(out_height - 1) * pitch + out_width,
        planes=count * plane + _round(before) + PAD,
        gplanes=mask.shape[0] * gplane + PAD,
    )
    pattern.fill(conv.layer)
    return pattern, conv


def _two(values: tuple[int, ...], default: int) -> tuple[int, int]:
    """Return a setting of rows and columns; a convolution in one dimension has one row."""
    return (default, values[0]) if len(values) == 1 else (values[0], values[1])


def _padding(layer: nn.Conv1d | nn.Conv2d, reach: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the padding above, below, left and right; `reach`: from a kernel's first row and column to its last."""
    if layer.padding == "same":
        return reach[0] // 2, reach[0] - reach[0] // 2, reach[1] // 2, reach[1] - reach[1] // 2
    if isinstance(layer.padding, str):  # "valid"
        return 0, 0, 0, 0
    y, x = _two(layer.padding, 0)
    return y, y, x, x


def _round(size: int) -> int:
    return -(-size // 16) * 16
