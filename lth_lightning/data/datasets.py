"""The known data sets, and how a data set is read: with a class of torchvision, or any class like it."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lth_lightning.data.splits import proportionate_order
from lth_lightning.errors import SettingError, unknown_name
from lth_lightning.images import as_images, is_deep


class Images(NamedTuple):
    """Raw images (N, C, H, W), int64 targets (N,), and the names of the classes if the data set has any."""

    images: Tensor
    targets: Tensor
    class_names: list[str] | None = None


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
        images, targets, self.classes = _all_digits()
        order = proportionate_order(targets, torch.Generator().manual_seed(0))
        chosen = order[360:] if train else order[:360]
        self.data = images[chosen]
        self.targets = targets[chosen]


@functools.cache
def _all_digits() -> Images:
    """All 1,797 images, cached: scikit-learn takes 26 ms to read them, and a fit reads them twice."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    names = [str(name) for name in digits.target_names]
    return Images(torch.as_tensor(digits.images).to(torch.uint8), torch.as_tensor(digits.target), names)


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

AS_A_STRING = "give the class's name or import path, and its arguments in data.dataset_args, e.g. {split: letters}"

# By path, so that torchvision is imported only to read one of its data sets.
KNOWN = {
    "Digits": KnownDataset("lth_lightning.data.datasets.Digits", (1, 8, 8), 10),
    "MNIST": KnownDataset("torchvision.datasets.MNIST", (1, 28, 28), 10, "MNIST/raw", _IDX_FILES),
    "FashionMNIST": KnownDataset("torchvision.datasets.FashionMNIST", (1, 28, 28), 10, "FashionMNIST/raw", _IDX_FILES),
    "CIFAR10": KnownDataset("torchvision.datasets.CIFAR10", (3, 32, 32), 10, "cifar-10-batches-py", _CIFAR_FILES),
}


def dataset_class(name: str) -> Callable[..., Any]:
    """Find the class of a known data set, of another one of torchvision by its name alone, or of an import path.

    Raises:
        SettingError: the name is unknown, or the path cannot be imported.
    """
    if "class_path" in name:
        raise SettingError(f"data.dataset: {AS_A_STRING}, got {name}")
    path = KNOWN[name].path if name in KNOWN else name
    module, _, attribute = path.rpartition(".")
    try:
        if not module and isinstance(found := getattr(import_module("torchvision.datasets"), name, None), type):
            return found
        if not module or path.startswith("."):
            raise unknown_name("data.dataset", name, KNOWN)
        made: Callable[..., Any] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SettingError(
            f"data.dataset: {path!r} cannot be imported ({error}); choose from {', '.join(KNOWN)}, or give the "
            "import path of a class such as torchvision.datasets.KMNIST."
        ) from error
    return made


# ------------------------------------------------------------------------ a data set's arguments


def check_arguments(name: str, arguments: Mapping[str, Any]) -> None:
    """Check that a data set's class takes `arguments` and needs no others, before its files are looked for.

    Raises:
        SettingError: the class is unknown, does not take an argument, or needs one more.
    """
    make = dataset_class(name)
    allowed, any_other = _parameters(make)
    ours = {"root", "download", *_of_split(make, name, ".", train=True)}
    if taken := sorted(ours & arguments.keys()):
        raise SettingError(
            f"data.dataset_args: {', '.join(taken)} cannot be given: the data module fills it in for the training and "
            f"the test images. {_what_it_takes(make, name)}"
        )
    strangers = sorted(arguments.keys() - allowed.keys())
    if strangers and not any_other:
        free = [argument for argument in allowed if argument not in ours]
        unknown = unknown_name("data.dataset_args", strangers[0], free) if free else ""
        none = f"data.dataset_args: {strangers[0]!r} is unknown; {name} takes none."
        raise SettingError(f"{unknown or none} {_what_it_takes(make, name)}")
    needed = [p.name for p in allowed.values() if p.default is p.empty and p.name not in ours | arguments.keys()]
    if needed:
        options = " ".join(f"--data.dataset.{argument} VALUE" for argument in needed)
        raise SettingError(
            f"data.dataset: {name} needs {', '.join(needed)}; add {options}. {_what_it_takes(make, name)}"
        )


def _parameters(make: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """Return the parameters of a class or function by name, and whether it takes any other.

    A constructor with `**kwargs` passes them to its base class, as torchvision's EMNIST does to MNIST.
    """
    found: dict[str, inspect.Parameter] = {}
    makers: list[Callable[..., Any]] = [make]
    if isinstance(make, type):
        makers = [vars(kind)["__init__"] for kind in make.__mro__ if "__init__" in vars(kind)]
    for maker in makers:
        parameters = list(inspect.signature(maker).parameters.values())[isinstance(make, type) :]
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        found |= {p.name: p for p in named if p.name not in found}
        if not any(p.kind == p.VAR_KEYWORD for p in parameters):
            return found, False
    return found, True


def _of_split(make: Callable[..., Any], name: str, data_dir: str, *, train: bool) -> dict[str, Any]:
    """Return the arguments that choose the training or the test images, and the folder of the files.

    `train=` where the class takes it, or else `split=`; a class with neither (ImageFolder) reads a folder, and its
    training and test images lie in the folders train and test (or val) of `data_dir`.
    """
    allowed, any_other = _parameters(make)
    root = (
        "root"
        if "root" in allowed or any_other
        else next((p.name for p in allowed.values() if p.default is p.empty), None)
    )
    where = {} if root is None else {root: data_dir}
    if "train" in allowed or (any_other and "split" not in allowed):
        return {**where, "train": train}
    if "split" in allowed:
        return {**where, "split": "train" if train else "test"}
    if root is None:
        raise SettingError(
            f"data.dataset: {name} takes neither train= nor split= nor a folder, so it has no training and test images "
            f"to tell apart. {_what_it_takes(make, name)}"
        )
    folders = ["train"] if train else ["test", "val"]
    there = next((folder for folder in folders if (Path(data_dir) / folder).is_dir()), folders[0])
    return {root: str(Path(data_dir) / there)}


def _what_it_takes(make: Callable[..., Any], name: str) -> str:
    """Return the signature, with the names of what `**kwargs` passes on and without annotations."""
    allowed, any_other = _parameters(make)
    shown = [p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in allowed.values()]
    return f"Its arguments: {name.rpartition('.')[2]}({', '.join([*shown, *['**kwargs'] * any_other])})."


# ------------------------------------------------------------------------ reading


def read_images(
    name: str, data_dir: str, train: bool, download: bool, arguments: Mapping[str, Any] | None = None
) -> Images:
    """Read the official training or test images of a data set; they are downloaded only if missing.

    The class holds all images in `.data` and their classes in `.targets` or `.labels`, or yields (image, class) for
    each number from 0, as torchvision's ImageFolder does.

    Args:
        name: one of `KNOWN`, another class of torchvision.datasets, or an import path.
        data_dir: folder of the data sets.
        train: training or test images.
        download: whether to download missing files.
        arguments: further arguments of the class.

    Returns:
        Images as the class has them (uint8, or int32 for 16 bits).

    Raises:
        SettingError: they are missing, cannot be downloaded, or are not images with a class number each.
    """
    dataset = _open(name, data_dir, train, download, arguments or {})
    try:
        data, targets = (dataset.data, _labels(dataset)) if hasattr(dataset, "data") else _items(dataset, name)
        images, classes = as_images(data, "data.dataset: .data"), _as_targets(targets)
    except (AttributeError, TypeError) as error:
        raise SettingError(
            f"data.dataset: {name} has no .data and .targets (or .labels) like torchvision's classes, and no items "
            f"(image, class) ({error}); give a class that has them, or choose from {', '.join(KNOWN)}."
        ) from error
    if len(images) != len(classes):
        raise SettingError(f"data.dataset: {name} has {len(images)} images but {len(classes)} targets.")
    names = getattr(dataset, "classes", None)
    if not (isinstance(names, list | tuple) and all(isinstance(one, str) for one in names)):
        names = None
    return Images(images, classes, None if names is None else list(names))


def _labels(dataset: Any) -> Any:
    return dataset.targets if hasattr(dataset, "targets") else dataset.labels


def _items(dataset: Any, name: str) -> tuple[np.ndarray, list[int]]:
    """Read a data set image by image."""
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise TypeError(f"{type(dataset).__name__} cannot be indexed")
    files: Sequence[Any] | None = getattr(dataset, "samples", None)
    cuts_off = bool(files) and _loads_as_torchvision(dataset)
    pictures: list[np.ndarray] = []
    targets = []
    for number in range(len(dataset)):
        which = files[number][0] if files else f"image {number}"
        try:
            image, target = dataset[number]
            if cuts_off and (deep := _deep(Path(which))) is not None:
                image = deep
        except (OSError, SyntaxError) as error:
            raise SettingError(f"data.dataset: {name} cannot read {which}: {error}.") from error
        pictures.append(_array(image))
        targets.append(target)
        if pictures[-1].shape != pictures[0].shape:
            first = files[0][0] if files else "image 0"
            raise SettingError(
                f"data.dataset: all images must have one size, but {name} has {pictures[0].shape} (height, width, "
                f"channels) in {first} and {pictures[-1].shape} in {which}. Resize the files first."
            )
    if not pictures:
        raise SettingError(f"data.dataset: {name} holds no images.")
    return np.stack(pictures), targets


def _loads_as_torchvision(dataset: Any) -> bool:
    """Whether files are read by torchvision's loader and not transformed; it cuts 16-bit values off at 255."""
    from torchvision.datasets.folder import default_loader

    return getattr(dataset, "loader", None) is default_loader and getattr(dataset, "transform", None) is None


def _deep(file: Path) -> np.ndarray | None:
    """Return the values of an image file of more than 8 bits, or None for others."""
    from PIL import Image

    if not file.is_file() or file.suffix.lower() not in (".png", ".tif", ".tiff", ".pgm"):
        return None
    with Image.open(file) as image:
        return np.asarray(image) if is_deep(image) else None


def _array(image: Any) -> np.ndarray:
    """Return an item's image as an array: of a tensor (C, H, W), of a PIL image (H, W) or (H, W, C)."""
    if getattr(image, "mode", None) in ("P", "1", "RGBA", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    array = np.asarray(image)
    return array.transpose(1, 2, 0) if isinstance(image, Tensor) and array.ndim == 3 else array


def _open(name: str, data_dir: str, train: bool, download: bool, given: Mapping[str, Any]) -> Any:
    check_arguments(name, given)
    make = dataset_class(name)
    arguments = {**_of_split(make, name, data_dir, train=train), **given}
    allowed, any_other = _parameters(make)
    downloads = "download" in allowed or any_other
    try:
        return make(**arguments, **({"download": False} if downloads else {}))
    except Exception as error:  # any: damaged files make torchvision's decoders raise whatever they meet
        reasons = [error]
    if download and downloads:
        try:
            return make(**arguments, download=True)
        except Exception as error:
            reasons.append(error)
    known = KNOWN.get(name)
    if known is not None and known.folder:
        raise SettingError(_how_to_get_the_files(name, known, data_dir, _why(reasons))) from reasons[-1]
    call = ", ".join(f"{argument}={value!r}" for argument, value in arguments.items())
    why = _why(reasons) if downloads else _why(reasons).removesuffix("; data.download is false")
    raise SettingError(
        f"data.dataset: {name}({call}) failed ({why}). {_what_it_takes(make, name)} The folder is data.data_dir, other "
        "arguments are given by data.dataset_args (--data.dataset.NAME VALUE)."
    ) from reasons[-1]


def _why(reasons: Sequence[Exception]) -> str:
    """Say why reading and, if it was tried, downloading failed."""
    read, *downloaded = [f"{type(reason).__name__}: {' '.join(str(reason).split())}" for reason in reasons]
    if downloaded == [read]:
        return read
    return f"reading: {read}; " + (f"downloading: {downloaded[0]}" if downloaded else "data.download is false")


def _how_to_get_the_files(name: str, known: KnownDataset, data_dir: str, why: str) -> str:
    folder = Path(data_dir).resolve() / known.folder
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


def _as_targets(targets: Any) -> Tensor:
    classes = torch.as_tensor(np.asarray(targets))
    if classes.ndim != 1 or classes.is_floating_point() or len(classes) == 0 or int(classes.min()) < 0:
        raise SettingError(
            f"data.dataset: .targets must hold a class number from 0 on for each image, got shape "
            f"{tuple(classes.shape)} and type {classes.dtype}."
        )
    return classes.long()
