"""The known data sets, and how a data set is read: with a class of torchvision, or any class like it."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lth_lightning.data.splits import proportionate_order
from lth_lightning.errors import SettingError, unknown_name

Images = tuple[Tensor, Tensor]

QUICKSTART = "python train.py fit --config configs/quickstart.yaml"


class Digits:
    """scikit-learn's handwritten digits, 8x8 with values 0 to 16, with torchvision's interface; no download.

    The 1,797 images have no official test set. A fixed fifth of them (360), with proportionate classes, serves as one.

    Args:
        root: not used.
        train: the 1,437 training images, or the 360 test images.
        download: not used.
    """

    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        images, targets = _all_digits()
        order = proportionate_order(targets, torch.Generator().manual_seed(0))
        chosen = order[360:] if train else order[:360]
        self.data = images[chosen]
        self.targets = targets[chosen]


@functools.cache
def _all_digits() -> Images:
    """All 1,797 images, cached: scikit-learn takes 26 ms to read them, and a fit reads them twice."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return torch.as_tensor(digits.images).to(torch.uint8), torch.as_tensor(digits.target)


@dataclass(frozen=True)
class KnownDataset:
    """What is known of a data set before it is read, and the place of its files in `data_dir`."""

    path: str
    input_shape: tuple[int, int, int]
    num_classes: int
    folder: str = ""
    files: str = ""


_IDX_FILES = "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte"
_CIFAR_FILES = "data_batch_1 to data_batch_5, test_batch and batches.meta"

# By path, so that torchvision is imported only to read one of its data sets.
KNOWN = {
    "Digits": KnownDataset("lth_lightning.data.datasets.Digits", (1, 8, 8), 10),
    "MNIST": KnownDataset("torchvision.datasets.MNIST", (1, 28, 28), 10, "MNIST/raw", _IDX_FILES),
    "FashionMNIST": KnownDataset("torchvision.datasets.FashionMNIST", (1, 28, 28), 10, "FashionMNIST/raw", _IDX_FILES),
    "CIFAR10": KnownDataset("torchvision.datasets.CIFAR10", (3, 32, 32), 10, "cifar-10-batches-py", _CIFAR_FILES),
}


def dataset_class(name: str) -> Callable[..., Any]:
    """Find the class of a known data set or an import path.

    Raises:
        SettingError: the name is unknown, or the path cannot be imported.
    """
    path = KNOWN[name].path if name in KNOWN else name
    module, _, attribute = path.rpartition(".")
    if not module or path.startswith("."):
        raise unknown_name("data.dataset", name, KNOWN)
    try:
        made: Callable[..., Any] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SettingError(
            f"data.dataset: {path!r} cannot be imported ({error}); choose from {', '.join(KNOWN)}, or give the "
            "import path of a class such as torchvision.datasets.KMNIST."
        ) from error
    return made


def read_images(name: str, data_dir: str, train: bool, download: bool) -> Images:
    """Read the official training or test images of a data set; they are downloaded only if missing.

    Args:
        name: one of `KNOWN`, or an import path.
        data_dir: folder of the data sets.
        train: training or test images.
        download: whether to download missing files.

    Returns:
        Raw images (N, C, H, W), uint8 or as the class has them, and int64 targets (N,).

    Raises:
        SettingError: they are missing, cannot be downloaded, or are not images with a class number each.
    """
    dataset = _open(name, data_dir, train, download)
    try:
        images, targets = _as_images(dataset.data), _as_targets(dataset.targets)
    except (AttributeError, TypeError) as error:
        raise SettingError(
            f"data.dataset: {name} has no .data and .targets like torchvision's classes ({error}); give a class "
            f"that has them, or choose from {', '.join(KNOWN)}."
        ) from error
    if len(images) != len(targets):
        raise SettingError(f"data.dataset: {name} has {len(images)} images but {len(targets)} targets.")
    return images, targets


def _open(name: str, data_dir: str, train: bool, download: bool) -> Any:
    make = dataset_class(name)
    try:
        return make(data_dir, train=train, download=False)
    except Exception as error:  # any: damaged files make torchvision's decoders raise whatever they meet
        reasons = [error]
    if download:
        try:
            return make(data_dir, train=train, download=True)
        except Exception as error:
            reasons.append(error)
    raise SettingError(_how_to_get_the_files(name, data_dir, reasons)) from reasons[-1]


def _how_to_get_the_files(name: str, data_dir: str, reasons: list[Exception]) -> str:
    read, *downloaded = [f"{type(reason).__name__}: {' '.join(str(reason).split())}" for reason in reasons]
    why = f"reading: {read}; " + (f"downloading: {downloaded[0]}" if downloaded else "data.download is false")
    root = Path(data_dir).resolve()
    known = KNOWN.get(name)
    if known is None or not known.folder:
        return f"data.dataset: {name} could not be read from {root} ({why})."
    folder = root / known.folder
    lines = [f"data.dataset: {name} could not be read. Looked in {folder} for {known.files} ({why})."]
    if folder.is_dir() and any(folder.iterdir()):
        lines.append("The files there are damaged or incomplete: delete them first.")
    lines += [
        "To get them, run this where there is internet access:",
        f"    python -c \"from torchvision.datasets import {name}; {name}('data', download=True)\"",
        f"and copy data/{known.folder} from there to {folder}.",
    ]
    if name == "FashionMNIST":
        lines += [
            "Or install the package of Debian and Ubuntu:",
            "    sudo apt-get install dataset-fashion-mnist",
            f"    mkdir -p '{folder}' && for f in /usr/share/datasets/fashion-mnist/*.gz; do "
            f'gunzip -c "$f" > \'{folder}\'/"$(basename "$f" .gz)"; done',
        ]
    return "\n".join([*lines, f"To start without a download: {QUICKSTART}"])


def _as_images(data: Any) -> Tensor:
    """Convert torchvision's (N, H, W) or (N, H, W, C), or (N, C, H, W), to (N, C, H, W)."""
    images = torch.as_tensor(data)
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif images.ndim == 4 and not (images.shape[1] in (1, 3) and images.shape[3] not in (1, 3)):
        images = images.permute(0, 3, 1, 2)
    if images.ndim != 4 or len(images) == 0:
        raise SettingError(
            f"data.dataset: .data must have shape (images, height, width) or (images, height, width, "
            f"channels), got {tuple(images.shape)}."
        )
    return (images.float() if images.dtype == torch.float64 else images).contiguous()


def _as_targets(targets: Any) -> Tensor:
    classes = torch.as_tensor(np.asarray(targets))
    if classes.ndim != 1 or classes.is_floating_point() or len(classes) == 0 or int(classes.min()) < 0:
        raise SettingError(
            f"data.dataset: .targets must hold a class number from 0 on for each image, got shape "
            f"{tuple(classes.shape)} and type {classes.dtype}."
        )
    return classes.long()
