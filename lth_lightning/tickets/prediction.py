"""What a ticket's network says about images: their normalisation, and the class of each."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lth_lightning.errors import SettingError, TicketError
from lth_lightning.images import Shape, memory_format_for, of_shape, read_image_files, scale_of

BATCH = 1000
EIGHT_BITS = 255


class Prediction(NamedTuple):
    """The likeliest class of an image, and its probability.

    `file` is the path in the folder, or the image's number in an array; `label` is the class's name, or its number.
    """

    file: str
    label: str
    probability: float


class Normalised(nn.Module):
    """A network that takes images as its data set stores them, and normalises them as its training images were.

    Args:
        net: the network, from normalised images (N, channels, height, width) to class scores.
        normalisation: the facts that a ticket records, as `ImageDataModule.normalisation`: `mean` and `std` of each
            channel, the `low`est and `high`est raw value.
        input_shape: (channels, height, width) of an image.
        class_names: the names of the classes, if known.
    """

    factor: Tensor
    shift: Tensor

    def __init__(
        self,
        net: nn.Module,
        normalisation: Mapping[str, Any],
        input_shape: Sequence[int],
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        channels, height, width = input_shape
        self.input_shape: Shape = (channels, height, width)
        self.class_names = None if class_names is None else list(class_names)
        self.low, self.high = float(normalisation["low"]), float(normalisation["high"])
        factor, shift = scale_of(normalisation["mean"], normalisation["std"])
        self.register_buffer("factor", factor)
        self.register_buffer("shift", shift)
        self._layout = memory_format_for(net)  # as in training: equal bits

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores (N, classes) for raw images (N, channels, height, width), of any type.

        Raises:
            SettingError: images of another size, or whose values cannot be raw ones (divided by 255, or normalised).
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != self.input_shape:
            raise SettingError(
                f"images must have shape (images, {', '.join(map(str, self.input_shape))}), got {tuple(images.shape)}."
            )
        self._check_values(images)
        raw = images.to(torch.float32)
        normalised = raw * self.factor + self.shift  # in this order, as in training: equal bits
        return self.net(normalised.contiguous(memory_format=self._layout))

    def _check_values(self, images: Tensor) -> None:
        """Refuse values on another scale, on which the network would guess without saying so."""
        surely_raw = images.dtype == torch.uint8 and self.low <= 0 and 2 * self.high >= EIGHT_BITS
        if surely_raw or torch.compiler.is_compiling() or torch.jit.is_tracing() or len(images) == 0:
            return
        low, high = float(images.min()), float(images.max())
        span = self.high - self.low
        far = low < self.low - span or high > self.high + span
        divided = images.is_floating_point() and self.low <= low and high <= 1 < self.high / 4
        if far or divided or low < 0 <= self.low:
            raise SettingError(
                f"images must have the data set's raw values, {self.low:g} to {self.high:g}, got {low:g} to {high:g}. "
                "Do not divide or normalise them first: this module normalises them (its `.net` takes normalised ones)."
            )


@torch.no_grad()
def predictions(
    network: Normalised, images: str | os.PathLike[str] | np.ndarray | Tensor, *, resize: bool = False
) -> list[Prediction]:
    """Classify image files, or raw images in memory.

    Args:
        network: the network, in eval mode.
        images: a folder of image files, an image file, a .npy file; or an array of one image or many, with values and
            size as in the network's data set, channels first or last.
        resize: whether to resize image files of another size.

    Raises:
        SettingError: no images, or not ones that the network takes; the error says which it takes.
    """
    if isinstance(images, str | os.PathLike):
        names, raw = read_image_files(Path(images), network.input_shape, resize=resize)
    else:
        raw = of_shape(images, network.input_shape, "images")
        names = [str(number) for number in range(len(raw))]
    device = network.factor.device
    parts = [network(part.to(device)).softmax(dim=1).max(dim=1) for part in raw.split(BATCH)]
    labels = [label for part in parts for label in part.indices.tolist()]
    likely = [probability for part in parts for probability in part.values.tolist()]
    named = network.class_names or {label: str(label) for label in labels}
    return [Prediction(name, named[label], p) for name, label, p in zip(names, labels, likely, strict=True)]


def normalised(net: nn.Module, facts: Mapping[str, Any]) -> Normalised:
    """Put a network behind the normalisation that `facts` record: `normalisation`, `input_shape`, `classes`.

    Raises:
        TicketError: the facts do not hold the normalisation.
    """
    if not facts.get("normalisation") or not facts.get("input_shape"):
        raise TicketError(
            "the ticket does not record how its training images were normalised: it was written by an earlier version, "
            "or its data are not an ImageDataModule's. Normalise the images as in training, and call to_module()."
        )
    return Normalised(net, facts["normalisation"], facts["input_shape"], facts.get("classes"))
