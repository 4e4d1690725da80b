"""Data sets like torchvision's, from small files in the true formats: their arguments, their splits, their errors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_files import learnable_images, write_emnist_letters, write_image_folder, write_svhn
from PIL import Image

from lth_lightning import ImageDataModule, SettingError
from lth_lightning.data.datasets import Images, read_images

LETTERS = {"split": "letters"}
FOLDER = "torchvision.datasets.ImageFolder"


def both(name: str, root: Path, arguments: dict[str, Any] | None = None) -> tuple[Images, Images]:
    """The training and the test images."""
    train, test = (read_images(name, str(root), train, False, arguments) for train in (True, False))
    return train, test


@pytest.mark.parametrize("name", ["EMNIST", "torchvision.datasets.EMNIST"])
def test_emnist_takes_a_split_of_its_own_beside_train_and_test(tmp_path: Path, name: str) -> None:
    write_emnist_letters(tmp_path, 60, 20)
    train, test = both(name, tmp_path, LETTERS)
    assert (train.images.shape, test.images.shape) == ((60, 1, 28, 28), (20, 1, 28, 28))
    np.testing.assert_array_equal(test.images[:, 0], learnable_images(20, (28, 28), 2)[0])
    assert test.targets.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10] * 2
    data = ImageDataModule(name, str(tmp_path), dataset_args=LETTERS)
    assert (data.num_classes, data.input_shape) == (11, (1, 28, 28))
    data.setup()
    assert data.class_names == ["N/A", *"abcdefghij"]


def test_svhn_is_split_by_split_and_labelled_by_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_svhn(tmp_path, 30, 20, monkeypatch)
    train, test = both("SVHN", tmp_path)
    for ours, count, seed in ((train, 30, 1), (test, 20, 2)):
        images, targets = learnable_images(count, (32, 32, 3), seed)
        np.testing.assert_array_equal(ours.images, images.transpose(0, 3, 1, 2))
        assert ours.targets.tolist() == targets.tolist()


@pytest.mark.parametrize("test_folder", ["test", "val"])
def test_an_image_folder_is_read_from_its_two_folders(tmp_path: Path, test_folder: str) -> None:
    names = list("abcdefghij")
    for folder, count, seed in (("train", 40, 1), (test_folder, 20, 2)):
        write_image_folder(tmp_path / folder, *learnable_images(count, (6, 5, 3), seed), names)
    train, test = both(FOLDER, tmp_path)
    assert train.class_names == test.class_names == names
    images, targets = learnable_images(20, (6, 5, 3), 2)
    order = np.argsort(targets, kind="stable")  # class by class
    np.testing.assert_array_equal(test.images, images[order].transpose(0, 3, 1, 2))
    assert test.targets.tolist() == targets[order].tolist()


def test_16_bit_pngs_keep_their_values_and_are_scaled_by_them(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2**16, (30, 4, 4)).astype(np.uint16)
    values[0, 0, :2] = 0, 2**16 - 1
    for folder in ("train", "test"):
        write_image_folder(tmp_path / folder, values, np.arange(30) % 3, ["x", "y", "z"])
    data = ImageDataModule(FOLDER, str(tmp_path), val_size=3, eval_batch_size=30)
    assert data.input_shape == (1, 4, 4)
    data.setup()
    assert data.normalisation is not None
    raw = values.astype(float)
    np.testing.assert_allclose(data.normalisation["mean"], raw.mean(), rtol=1e-9)
    np.testing.assert_allclose(data.normalisation["std"], raw.std(), rtol=1e-9)
    assert (data.normalisation["low"], data.normalisation["high"]) == (0, 2**16 - 1)
    ((images, _),) = data.test_dataloader()
    order = np.argsort(np.arange(30) % 3, kind="stable")
    np.testing.assert_allclose(images[:, 0], (raw[order] - raw.mean()) / raw.std(), atol=1e-4)


class BigEndian16:
    """16-bit images as IDX files and some detectors store them."""

    def __init__(self, root: str, train: bool = True) -> None:
        self.data = np.arange(40 * 9, dtype=">u2").reshape(40, 3, 3) * 180
        self.labels = list(range(4)) * 10


def test_16_bit_arrays_train_with_augmentation_and_need_no_download_argument() -> None:
    data = ImageDataModule("test_datasets.BigEndian16", augment=True, batch_size=36)
    data.setup()
    images, targets = next(iter(data.train_dataloader()))
    assert images.dtype == torch.float32 and images.isfinite().all() and len(targets) == 36
    assert data.normalisation is not None and data.normalisation["high"] == 359 * 180


class Palette:
    """Items (image, class) without arrays: a gray tensor, or a palette image, whose numbers are no colours."""

    def __init__(self, root: str, train: bool = True, kind: str = "palette") -> None:
        self.kind = kind

    def __len__(self) -> int:
        return 8

    def __getitem__(self, number: int) -> tuple[Any, int]:
        if number >= 8:
            raise IndexError
        colour = Image.new("RGB", (3, 2), (10, 200, 30))
        gray = torch.full((1, 2, 3), 7, dtype=torch.uint8)
        return (colour.quantize(2) if self.kind == "palette" else gray), number % 2


@pytest.mark.parametrize(("kind", "pixel"), [("palette", [10, 200, 30]), ("gray", [7])])
def test_items_become_images_of_their_colours(kind: str, pixel: list[int]) -> None:
    images, targets, _ = read_images("test_datasets.Palette", ".", True, False, {"kind": kind})
    assert images.shape == (8, len(pixel), 2, 3) and targets.tolist() == [0, 1] * 4
    assert images[3, :, 1, 2].tolist() == pixel


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("EMNIST", {}, ["EMNIST needs split; add --data.dataset.split VALUE", "EMNIST(root, split, train=True"]),
        ("SVHN", {"split": "extra"}, ["data.dataset_args: split cannot be given", "SVHN(root, split='train'"]),
        ("MNIST", {"split": "letters"}, ["data.dataset_args: 'split' is unknown", "MNIST(root, train=True"]),
        ("KMNIST", {"download": True}, ["data.dataset_args: download cannot be given"]),
        ("FakeData", {}, ["neither train= nor split= nor a folder", "FakeData(size=1000"]),
        ("EMNISTT", {}, ["'EMNISTT' is unknown"]),
    ],
)
def test_arguments_that_a_class_does_not_take_are_refused_at_once_with_its_signature(
    name: str, arguments: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(SettingError) as caught:
        ImageDataModule(name, dataset_args=arguments)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_value_that_a_class_refuses_is_shown_with_what_it_allows_and_its_signature(tmp_path: Path) -> None:
    with pytest.raises(SettingError) as caught:
        both("EMNIST", tmp_path, {"split": "leters"})
    words = ["split='leters'", "Valid values are", "letters", "EMNIST(root, split, train=True", str(tmp_path)]
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=rf"ImageFolder\(root='{tmp_path}/train'\) failed"):
        both(FOLDER, tmp_path)


def test_images_of_two_sizes_are_refused_with_both_files(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "train", np.zeros((2, 4, 4), np.uint8), np.arange(2), ["a", "b"])
    Image.new("L", (5, 4)).save(tmp_path / "train/b/wide.png")
    with pytest.raises(SettingError, match=r"one size.*\(4, 4, 3\).*000.png.*\(4, 5, 3\).*wide.png"):
        both(FOLDER, tmp_path)


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "train/a").mkdir(parents=True)
    (tmp_path / "train/a/broken.png").write_bytes(b"no image")
    with pytest.raises(SettingError, match="cannot read .*broken.png"):
        both(FOLDER, tmp_path)


def test_other_classes_for_testing_are_refused(tmp_path: Path) -> None:
    """A missing folder would shift the numbers of all classes after it."""
    images = np.zeros((6, 4, 4), np.uint8)
    write_image_folder(tmp_path / "train", images, np.arange(6) % 3, ["a", "b", "c"])
    write_image_folder(tmp_path / "test", images, np.arange(6) % 2, ["a", "c"])
    with pytest.raises(SettingError, match=r"\['a', 'b', 'c'\], than for testing, \['a', 'c'\]"):
        ImageDataModule(FOLDER, str(tmp_path)).setup()
