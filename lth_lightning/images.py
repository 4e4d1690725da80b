"""Images as tensors (N, channels, height, width), raw: as a data set stores them, from arrays and from files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lth_lightning.errors import SettingError

Shape = tuple[int, int, int]
"""(channels, height, width) of an image."""


def as_tensor(values: Any) -> Tensor:
    """Convert an array to a tensor of a type that torch computes with: wide integers and doubles become float32.

    16-bit images (uint16) become int32: torch cannot select or pad uint16.

    Raises:
        TypeError: the values are not numbers.
    """
    if not isinstance(values, Tensor):
        array = np.asarray(values)
        if array.dtype.kind not in "buif":
            raise TypeError(f"expected numbers, got an array of {array.dtype}")
        values = torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))
    if values.dtype == torch.bool:
        return values.to(torch.uint8)
    if values.dtype == torch.uint16:
        return values.to(torch.int32)
    if values.dtype in (torch.float64, torch.int64, torch.uint32, torch.uint64):
        return values.float()
    return values


def as_images(data: Any, setting: str) -> Tensor:
    """Convert (N, H, W), (N, H, W, C) or (N, C, H, W) to a contiguous (N, C, H, W).

    Args:
        data: the images, an array or a tensor.
        setting: what an error names.

    Raises:
        SettingError: another shape.
        TypeError: the values are not numbers.
    """
    images = as_tensor(data)
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif images.ndim == 4 and not (images.shape[1] in (1, 3) and images.shape[3] not in (1, 3)):
        images = images.permute(0, 3, 1, 2)
    if images.ndim != 4 or len(images) == 0:
        raise SettingError(
            f"{setting} must have shape (images, height, width) or (images, height, width, channels), "
            f"got {tuple(images.shape)}."
        )
    return images.contiguous()


def of_shape(data: Any, shape: Shape, setting: str) -> Tensor:
    """Convert one image or many, channels first or last, to (N, C, H, W), where (C, H, W) is known.

    Raises:
        SettingError: the images have another shape, or are not numbers.
    """
    try:
        images = as_tensor(data)
    except TypeError as error:
        raise SettingError(f"{setting}: {error}.") from error
    channels, height, width = shape
    last = (height, width, channels)
    for given, order in ((shape, (0, 1, 2, 3)), (last, (0, 3, 1, 2)), ((height, width), None)):
        if tuple(images.shape[-len(given) :]) == given and images.ndim - len(given) in (0, 1):
            many = images if images.ndim > len(given) else images.unsqueeze(0)
            if order is not None:
                return many.permute(order).contiguous()
            if channels == 1:
                return many.unsqueeze(1).contiguous()
    raise SettingError(
        f"{setting}: the network takes images of shape {shape} (channels, height, width), got an array of shape "
        f"{tuple(images.shape)}. Give (images, height, width) for gray images, or (images, height, width, channels)."
    )


def read_image_files(path: Path, shape: Shape, *, resize: bool = False) -> tuple[list[str], Tensor]:
    """Read an image file, all image files below a folder, or a .npy file, in the form of a data set's images.

    Image files become gray or coloured as `shape` has 1 or 3 channels. 16-bit gray files keep their values.

    Args:
        path: the file or folder; other files in the folder are ignored.
        shape: (channels, height, width).
        resize: whether to resize image files of another size (bilinear, ignoring the aspect ratio).

    Returns:
        The names (paths in the folder, or numbers from 0 for a .npy file), and the images (N, C, H, W), raw.

    Raises:
        SettingError: nothing is there, a file cannot be read, or an image has another shape.
    """
    if path.suffix == ".npy" and path.is_file():
        try:
            array = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise SettingError(f"images: {path} is not a .npy file of numbers, or is damaged: {error}.") from error
        images = of_shape(array, shape, f"images: {path}")
        return [str(number) for number in range(len(images))], images
    files = _image_files(path)
    pictures = [_picture(file, shape, resize) for file in files]
    kinds = sorted({str(picture.dtype) for picture in pictures})
    if len(kinds) > 1:
        raise SettingError(f"images: {path} holds images of {' and '.join(kinds)}; give them in one type.")
    names = [file.relative_to(path).as_posix() if path.is_dir() else file.name for file in files]
    return names, of_shape(np.stack(pictures), shape, f"images: {path}")


def _image_files(path: Path) -> list[Path]:
    from PIL import Image

    if path.is_file():
        return [path]
    if not path.is_dir():
        raise SettingError(
            f"images: {path} does not exist; give a folder of image files, an image file or a .npy file."
        )
    known = Image.registered_extensions()
    if files := sorted(file for file in path.rglob("*") if file.suffix.lower() in known and file.is_file()):
        return files
    raise SettingError(f"images: {path} holds no image files (.png, .jpg, …).")


def _picture(file: Path, shape: Shape, resize: bool) -> np.ndarray:
    """Read an image file as (H, W) or (H, W, 3)."""
    from PIL import Image

    channels, height, width = shape
    if channels not in (1, 3):
        raise SettingError(
            f"images: the network takes {channels} channels, which image files do not have. Give a .npy file."
        )
    try:
        with Image.open(file) as opened:
            image = opened.copy()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise SettingError(f"images: {file} is not an image, or is damaged: {error}.") from error
    if image.has_transparency_data and int(np.asarray(image.convert("RGBA"))[:, :, 3].min()) < 255:
        raise SettingError(f"images: {file} has transparent pixels, whose colour is not known. Flatten it first.")
    if not is_deep(image):
        image = image.convert("L" if channels == 1 else "RGB")
    elif channels != 1:
        raise SettingError(f"images: {file} is gray with {image.mode} pixels, but the network takes coloured images.")
    if image.size != (width, height):
        if not resize:
            raise SettingError(
                f"images: {file} is {image.height} x {image.width} pixels (height x width), but the network takes "
                f"{height} x {width}. Crop or resize it, or ask for resizing (resize=True; --resize true)."
            )
        if is_deep(image):
            whole = np.asarray(image)
            enlarged = Image.fromarray(whole.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
            return np.asarray(enlarged).round().astype(whole.dtype)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image)


def is_deep(image: Any) -> bool:
    """Whether a PIL image has gray values of more than 8 bits, which its conversion to 8 would cut off at 255."""
    return image.mode.startswith(("I", "F"))


def memory_format_for(net: nn.Module) -> torch.memory_format:
    """The layout of a network's images: on a CPU, convolutions of channels-last images take two thirds of the time."""
    convolves = any(isinstance(layer, _ConvNd) for layer in net.modules())
    return torch.channels_last if convolves else torch.contiguous_format


def scale_of(mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> tuple[Tensor, Tensor]:
    """Return factor and shift, (C, 1, 1) float32, by which `raw * factor + shift` equals (raw - mean) / std.

    Args:
        mean: of each channel, in the units of raw values.
        std: likewise.
    """
    center, spread = (torch.as_tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (mean, std))
    return (1 / spread).float(), (-center / spread).float()
