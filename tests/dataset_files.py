"""Small data sets in the true file formats, so that tests read them through torchvision's own classes."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torchvision
from PIL import Image

CIFAR_TRAIN_FILES = [f"data_batch_{number}" for number in range(1, 6)]


def learnable_images(count: int, shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(count, *shape) uint8 noise around one picture a class, and the ten classes in turn."""
    pictures = np.random.default_rng(0).integers(0, 256, (10, *shape))
    targets = np.arange(count) % 10
    noise = np.random.default_rng(seed).normal(0, 40, (count, *shape))
    return (pictures[targets] + noise).clip(0, 255).astype(np.uint8), targets.astype(np.uint8)


def write_mnist(root: Path, n_train: int, n_test: int, name: str = "MNIST") -> None:
    """The four IDX files of MNIST, or of FashionMNIST, below `root`."""
    for part, count, seed in (("train", n_train, 1), ("t10k", n_test, 2)):
        write_idx(root / name / "raw" / part, *learnable_images(count, (28, 28), seed))


def write_idx(start: Path, images: np.ndarray, targets: np.ndarray) -> None:
    """The two IDX files of images and targets whose paths begin with `start`."""
    start.parent.mkdir(parents=True, exist_ok=True)
    for kind, values in (("images-idx3", images), ("labels-idx1", targets)):
        header = np.array([0x800 + values.ndim, *values.shape], dtype=">i4")
        Path(f"{start}-{kind}-ubyte").write_bytes(header.tobytes() + values.tobytes())


def write_emnist_letters(root: Path, n_train: int, n_test: int) -> None:
    """EMNIST's letters, whose targets are 1 (a) to 26 (z); here only a to j."""
    for part, count, seed in (("train", n_train, 1), ("test", n_test, 2)):
        images, targets = learnable_images(count, (28, 28), seed)
        write_idx(root / "EMNIST/raw" / f"emnist-letters-{part}", images, targets + 1)


def write_svhn(root: Path, n_train: int, n_test: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """SVHN's two Matlab files, images (32, 32, 3, N) and labels (N, 1) of which 10 means the digit 0.

    torchvision's SVHN expects their checksums from then on.
    """
    root.mkdir(parents=True, exist_ok=True)
    expected = {}
    for part, count, seed in (("train", n_train, 1), ("test", n_test, 2)):
        images, targets = learnable_images(count, (32, 32, 3), seed)
        labels = np.where(targets == 0, 10, targets).reshape(-1, 1)
        file = root / f"{part}_32x32.mat"
        scipy.io.savemat(file, {"X": images.transpose(1, 2, 3, 0), "y": labels})
        expected[part] = ["", file.name, hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", expected)


def write_image_folder(root: Path, images: np.ndarray, targets: np.ndarray, names: list[str]) -> None:
    """A PNG an image in a folder a class, as torchvision's ImageFolder reads them."""
    for number, (image, target) in enumerate(zip(images, targets, strict=True)):
        file = root / names[target] / f"{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)


def write_cifar10(root: Path, n_train_per_batch: int, n_test: int) -> None:
    """CIFAR-10's five training batches, test batch and list of classes below `root`."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for seed, name in enumerate([*CIFAR_TRAIN_FILES, "test_batch"]):
        images, targets = learnable_images(n_test if name == "test_batch" else n_train_per_batch, (3072,), seed)
        (folder / name).write_bytes(pickle.dumps({"data": images, "labels": targets.tolist()}))
    names = {"label_names": [f"class {number}" for number in range(10)]}
    (folder / "batches.meta").write_bytes(pickle.dumps(names))


def accept_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision's CIFAR10 expect the checksums of the files that lie below `root` now."""
    folder = root / "cifar-10-batches-py"

    def checksum(name: str) -> str:
        return hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest()

    cifar10 = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar10, "train_list", [[name, checksum(name)] for name in CIFAR_TRAIN_FILES])
    monkeypatch.setattr(cifar10, "test_list", [["test_batch", checksum("test_batch")]])
    monkeypatch.setattr(cifar10, "meta", {**cifar10.meta, "md5": checksum("batches.meta")})
