"""Small data sets in the true file formats, so that tests read them through torchvision's own classes."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torchvision

CIFAR_TRAIN_FILES = [f"data_batch_{number}" for number in range(1, 6)]


def learnable_images(count: int, shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(count, *shape) uint8 noise around one picture a class, and the ten classes in turn."""
    pictures = np.random.default_rng(0).integers(0, 256, (10, *shape))
    targets = np.arange(count) % 10
    noise = np.random.default_rng(seed).normal(0, 40, (count, *shape))
    return (pictures[targets] + noise).clip(0, 255).astype(np.uint8), targets.astype(np.uint8)


def write_mnist(root: Path, n_train: int, n_test: int, name: str = "MNIST") -> None:
    """The four IDX files of MNIST, or of FashionMNIST, below `root`."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for part, count, seed in (("train", n_train, 1), ("t10k", n_test, 2)):
        images, targets = learnable_images(count, (28, 28), seed)
        for kind, values in (("images-idx3", images), ("labels-idx1", targets)):
            header = np.array([0x800 + values.ndim, *values.shape], dtype=">i4")
            (raw / f"{part}-{kind}-ubyte").write_bytes(header.tobytes() + values.tobytes())


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
