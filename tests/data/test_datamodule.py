"""The data module: the right images in the right split, at the right scale, and errors that help."""

import urllib.error
import urllib.request
from collections import Counter
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import lightning as L
import numpy as np
import pytest
import torch
from dataset_files import accept_cifar10, write_cifar10, write_mnist
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lth_lightning.data.datamodule import ImageDataModule, channel_statistics
from lth_lightning.data.datasets import QUICKSTART
from lth_lightning.data.loader import TensorLoader
from lth_lightning.errors import SettingError

HERE = "test_datamodule"


class Numbered:
    """120 training and 40 test images of 4 classes, 60 % of them class 0; each image holds its own number.

    The layout of its images is that of `shape`, which subclasses change.
    """

    shape: tuple[int, ...] = (4, 6)
    train_targets: Any = np.array([0] * 72 + [1] * 24 + [2] * 18 + [3] * 6)

    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        numbers = np.arange(120) if train else np.arange(120, 160)
        self.data: Any = np.broadcast_to(numbers.reshape(-1, *[1] * len(self.shape)), (len(numbers), *self.shape))
        self.data = self.data.astype(np.uint8)
        self.targets: Any = self.train_targets if train else [0, 1, 2, 3] * 10


class ChannelsLast(Numbered):
    shape = (4, 6, 3)


class ChannelsFirst(Numbered):
    shape = (3, 4, 6)


class FloatingPoint(Numbered):
    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        super().__init__(root, train)
        self.data = torch.from_numpy(self.data.astype(np.float64) / 7)


class OneBlankChannel(ChannelsLast):
    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        super().__init__(root, train)
        self.data[..., 2] = 7


class NoTargets(Numbered):
    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        super().__init__(root, train)
        del self.targets


class TooFewTargets(Numbered):
    train_targets: Any = (0, 1, 2)


class TwoTargetsEach(Numbered):
    train_targets = np.zeros((120, 2), dtype=int)


def ready(dataset: str = f"{HERE}.Numbered", **settings: Any) -> ImageDataModule:
    data = ImageDataModule(dataset, **settings)
    data.prepare_data()
    data.setup()
    return data


def loaders(data: ImageDataModule) -> dict[str, TensorLoader]:
    return {"train": data.train_dataloader(), "val": data.val_dataloader(), "test": data.test_dataloader()}


def numbers(data: ImageDataModule, split: str) -> list[int]:
    """Which images of `Numbered` are in a split: undo the scaling with the known mean and deviation of 0 … 119."""
    images = torch.cat([x for x, _ in loaders(data)[split]])[:, 0, 0, 0].double()
    raw = images * np.arange(120).std() + np.arange(120).mean()
    return [round(number) for number in raw.tolist()]


def assert_refused(data: ImageDataModule, *words: str) -> str:
    def start() -> None:
        data.prepare_data()
        data.setup()

    with pytest.raises(SettingError) as caught:
        start()
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


# Splits


@pytest.mark.parametrize("val_size", [1, 10, 60, 119])
def test_every_training_image_trains_or_validates_and_test_images_do_neither(val_size: int) -> None:
    data = ready(val_size=val_size)
    train, validation = numbers(data, "train"), numbers(data, "val")
    assert sorted(train + validation) == list(range(120))
    assert len(validation) == val_size
    assert numbers(data, "test") == list(range(120, 160))


def test_validation_has_each_class_in_proportion_and_depends_on_the_split_seed_alone() -> None:
    L.seed_everything(1, verbose=False)
    data = ready(val_size=20)
    assert Counter(torch.cat([y for _, y in data.val_dataloader()]).tolist()) == {0: 12, 1: 4, 2: 3, 3: 1}
    L.seed_everything(2, verbose=False)
    assert numbers(ready(val_size=20, train_size=30), "val") == numbers(data, "val")
    assert numbers(ready(val_size=20, split_seed=1), "val") != numbers(data, "val")


def test_a_train_size_is_balanced_as_far_as_possible_and_part_of_every_larger_one() -> None:
    sizes = [4, 10, 50, 100]
    modules = [ready(val_size=20, train_size=size) for size in sizes]
    sets = [set(numbers(data, "train")) for data in modules]
    assert [len(chosen) for chosen in sets] == sizes
    assert sets[0] < sets[1] < sets[2] < sets[3] == set(range(120)) - set(numbers(modules[0], "val"))
    counts = [sorted(np.bincount(Numbered.train_targets[list(chosen)]).tolist()) for chosen in sets]
    assert counts[:2] == [[1, 1, 1, 1], [2, 2, 3, 3]]
    assert counts[2] == [5, 15, 15, 15], "class 3 has no more than 5"


@pytest.mark.parametrize(("count", "expected"), [(12, 1), (120, 10), (1437, 120), (49_999, 4167), (60_000, 5000)])
def test_validation_is_5000_or_a_twelfth(monkeypatch: pytest.MonkeyPatch, count: int, expected: int) -> None:
    def start(self: Numbered, root: str, train: bool = True, download: bool = False) -> None:
        self.data, self.targets = np.zeros((count, 1, 1), np.uint8), np.arange(count) % 4

    monkeypatch.setattr(Numbered, "__init__", start)
    assert sum(len(y) for _, y in ready().val_dataloader()) == expected


def test_digits_has_a_fixed_test_set_with_each_class_in_proportion() -> None:
    digits = load_digits()
    modules = [ready("Digits", split_seed=seed, scaling="symmetric") for seed in (0, 1)]
    ((images, targets),), ((same_images, same_targets),) = (data.test_dataloader() for data in modules)
    assert torch.equal(images, same_images)
    assert torch.equal(targets, same_targets)
    np.testing.assert_allclose(np.bincount(targets), np.bincount(digits.target) / 5, atol=1)
    sizes = {name: sum(len(y) for _, y in loader) for name, loader in loaders(modules[0]).items()}
    assert sizes == {"train": 1317, "val": 120, "test": 360}

    batches = [batch for loader in loaders(modules[0]).values() for batch in loader]
    read = [(x.numpy().tobytes(), int(y)) for images, targets in batches for x, y in zip(images, targets, strict=True)]
    scaled = (digits.images / 8 - 1).astype(np.float32)
    assert Counter(read) == Counter((x.tobytes(), y) for x, y in zip(scaled, digits.target, strict=True))


# Files, shapes and scales


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
@pytest.mark.parametrize("scaling", ["standardise", "symmetric"])
def test_mnist_files_are_read_and_scaled(tmp_path: Path, name: str, scaling: Any) -> None:
    write_mnist(tmp_path, 60, 20, name)
    data = ready(name, data_dir=str(tmp_path), scaling=scaling, val_size=10)
    assert (data.input_shape, data.num_classes) == ((1, 28, 28), 10)

    def read(part: str, kind: str, header: int) -> np.ndarray:
        return np.fromfile(tmp_path / name / "raw" / f"{part}-{kind}-ubyte", np.uint8)[header:]

    raw = read("train", "images-idx3", 16).astype(np.float64)
    center, spread = (raw.mean(), raw.std()) if scaling == "standardise" else (127.5, 127.5)
    ((images, targets),) = data.test_dataloader()
    expected = (read("t10k", "images-idx3", 16).reshape(20, 1, 28, 28) - center) / spread
    np.testing.assert_allclose(images.numpy(), expected, atol=1e-5)
    assert targets.tolist() == read("t10k", "labels-idx1", 8).tolist()


def test_cifar_files_are_read_and_each_channel_is_standardised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar10(tmp_path, 20, 30)
    accept_cifar10(tmp_path, monkeypatch)
    data = ready("CIFAR10", data_dir=str(tmp_path), val_size=10)
    assert (data.input_shape, data.num_classes) == ((3, 32, 32), 10)
    folder = tmp_path / "cifar-10-batches-py"
    batches = [np.load(folder / f"data_batch_{n}", allow_pickle=True)["data"] for n in range(1, 6)]
    raw = np.concatenate(batches).reshape(-1, 3, 1024).astype(np.float64)
    test = np.load(folder / "test_batch", allow_pickle=True)
    expected = (test["data"].reshape(-1, 3, 1024) - raw.mean((0, 2))[:, None]) / raw.std((0, 2))[:, None]
    ((images, targets),) = data.test_dataloader()
    np.testing.assert_allclose(images.numpy(), expected.reshape(-1, 3, 32, 32), atol=1e-5)
    assert targets.tolist() == test["labels"]


def test_statistics_are_those_of_numpy() -> None:
    images = np.random.default_rng(0).integers(0, 256, (700, 2, 5, 3)).astype(np.uint8)
    mean, std = channel_statistics(torch.from_numpy(images))
    np.testing.assert_allclose(mean.numpy(), images.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std.numpy(), images.std((0, 2, 3)), rtol=1e-12)


def test_a_channel_without_contrast_becomes_zero() -> None:
    for images, _ in ready(f"{HERE}.OneBlankChannel").test_dataloader():
        assert not images[:, 2].any()
        assert images[:, :2].isfinite().all()


@pytest.mark.parametrize(
    ("name", "shape"),
    [("Numbered", (1, 4, 6)), ("ChannelsLast", (3, 4, 6)), ("ChannelsFirst", (3, 4, 6)), ("FloatingPoint", (1, 4, 6))],
)
def test_a_class_by_path_works_in_every_layout(name: str, shape: tuple[int, int, int]) -> None:
    data = ImageDataModule(f"{HERE}.{name}")
    assert (data.input_shape, data.num_classes) == (shape, 4), "known before setup"
    data.setup()
    for loader in loaders(data).values():
        for images, targets in loader:
            assert images.shape[1:] == shape
            assert images.dtype == torch.float32
            assert targets.dtype == torch.int64
    assert numbers(data, "test") == list(range(120, 160)), "the scale of the raw values does not matter"


def test_the_known_data_sets_tell_their_shape_without_files(tmp_path: Path) -> None:
    shapes = {"Digits": (1, 8, 8), "MNIST": (1, 28, 28), "FashionMNIST": (1, 28, 28), "CIFAR10": (3, 32, 32)}
    for name, shape in shapes.items():
        data = ImageDataModule(name, data_dir=str(tmp_path / "nowhere"))
        assert (data.input_shape, data.num_classes) == (shape, 10)


def test_only_training_images_are_augmented() -> None:
    plain, augmented = ready(val_size=20), ready(val_size=20, augment=True)
    for split, loader in loaders(plain).items():
        changed = [torch.equal(a, b) for (a, _), (b, _) in zip(loader, loaders(augmented)[split], strict=True)]
        assert all(changed) == (split != "train")


def test_processes_share_each_split() -> None:
    ranks = [ready(val_size=21, batch_size=8) for _ in range(2)]
    for rank, data in enumerate(ranks):
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = Mock(global_rank=rank, world_size=2, strategy=strategy, current_epoch=0)
    for split, images in {"train": 99, "val": 21, "test": 40}.items():
        shares = [numbers(data, split) for data in ranks]
        assert len(set(chain(*shares))) == len(list(chain(*shares))) == images
        assert abs(len(shares[0]) - len(shares[1])) <= 1


# Without a network


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No address answers; the list tells which were asked for."""
    asked: list[str] = []

    def refuse(request: Any, *args: Any, **kwargs: Any) -> None:
        asked.append(getattr(request, "full_url", request))
        raise urllib.error.URLError("Temporary failure in name resolution")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return asked


@pytest.mark.parametrize(
    "words",
    [
        ("MNIST", "MNIST/raw", "train-images-idx3-ubyte"),
        ("FashionMNIST", "FashionMNIST/raw", "dataset-fashion-mnist", "/usr/share/datasets/fashion-mnist/"),
        ("CIFAR10", "cifar-10-batches-py", "data_batch_1"),
    ],
)
@pytest.mark.parametrize("download", [True, False])
def test_without_files_or_network_the_error_says_where_they_belong_and_how_to_get_them(
    tmp_path: Path, no_network: list[str], words: tuple[str, ...], download: bool
) -> None:
    name, folder, *rest = words
    data = ImageDataModule(name, data_dir=str(tmp_path), download=download)
    reason = "name resolution" if download else "data.download is false"
    how = f"{name}('data', download=True)"
    assert "delete them" not in assert_refused(data, str(tmp_path / folder), how, QUICKSTART, reason, *rest)
    assert bool(no_network) == download


def damage_mnist(root: Path, monkeypatch: pytest.MonkeyPatch, keep: int) -> str:
    write_mnist(root, 60, 20)
    file = root / "MNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:keep])
    return "MNIST"


def damage_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch, keep: int) -> str:
    write_cifar10(root, 20, 20)
    file = root / "cifar-10-batches-py" / "data_batch_3"
    whole = file.read_bytes()
    file.write_bytes(whole[:keep])
    accept_cifar10(root, monkeypatch)  # even where the checksum is right
    return "CIFAR10"


@pytest.mark.parametrize("damage", [damage_mnist, damage_cifar10])
@pytest.mark.parametrize("keep", [0, 3, 1000])
def test_half_a_file_is_reported_as_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: list[str], damage: Any, keep: int
) -> None:
    name = damage(tmp_path, monkeypatch, keep)
    assert_refused(ImageDataModule(name, data_dir=str(tmp_path)), name, str(tmp_path), "delete them", QUICKSTART)


def test_a_wrong_checksum_is_reported(tmp_path: Path, no_network: list[str]) -> None:
    write_cifar10(tmp_path, 20, 20)
    assert_refused(ImageDataModule("CIFAR10", data_dir=str(tmp_path)), "corrupted", "name resolution", "delete them")


def test_files_that_are_there_need_no_network(tmp_path: Path, no_network: list[str]) -> None:
    write_mnist(tmp_path, 60, 20)
    ready("MNIST", data_dir=str(tmp_path), download=True)
    assert no_network == []


# Wrong settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dataset": "FashonMNIST"}, ["data.dataset", "'FashonMNIST'", "Did you mean 'FashionMNIST'", "CIFAR10"]),
        ({"dataset": "torchvision.datasets.MINST"}, ["data.dataset", "torchvision.datasets.MINST", "Digits"]),
        ({"dataset": "nowhere.at.all"}, ["data.dataset", "nowhere.at.all"]),
        ({"dataset": ".relative.Path"}, ["data.dataset", ".relative.Path"]),
        ({"scaling": "standard"}, ["data.scaling", "'standard'", "standardise", "symmetric"]),
        ({"batch_size": 0}, ["data.batch_size: 0"]),
        ({"eval_batch_size": -5}, ["data.eval_batch_size: -5"]),
        ({"val_size": 0}, ["data.val_size: 0"]),
        ({"train_size": 0}, ["data.train_size: 0"]),
    ],
)
def test_an_impossible_setting_is_refused_at_once(settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SettingError) as caught:
        ImageDataModule(**settings)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"val_size": 120}, ["data.val_size: 120", "120 training images", "1 to 119"]),
        ({"val_size": 20, "train_size": 101}, ["data.train_size: 101", "20 validation", "100 training", "4 to 100"]),
        ({"train_size": 3}, ["data.train_size: 3", "4 classes", "4 to 110"]),
        ({"dataset": f"{HERE}.NoTargets"}, ["data.dataset", "NoTargets", "targets", "MNIST"]),
        ({"dataset": f"{HERE}.TooFewTargets"}, ["data.dataset", "120 images", "3 targets"]),
        ({"dataset": f"{HERE}.TwoTargetsEach"}, ["data.dataset", ".targets", "(120, 2)"]),
        ({"dataset": "torchvision.datasets.SVHN"}, ["data.dataset", "SVHN", "train"]),
    ],
)
def test_what_does_not_fit_the_data_is_refused_before_training(settings: dict[str, Any], words: list[str]) -> None:
    assert_refused(ImageDataModule(**{"dataset": f"{HERE}.Numbered", **settings}), *words)


# Under Lightning


class Recorder(L.LightningModule):
    """Learns nothing; remembers the targets of every batch it trains on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[list[float]] = []
        self.evaluated = Counter[str]()

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        self.seen.append(batch[0][:, 0, 0, 0].tolist())
        return self.weight.sum()

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.evaluated["val"] += len(batch[1])

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.evaluated["test"] += len(batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, **settings: Any) -> L.Trainer:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"accelerator": "cpu", "enable_checkpointing": False, "num_sanity_val_steps": 0}
    return L.Trainer(default_root_dir=folder, **quiet | settings)


def test_a_fit_sees_new_orders_each_epoch_and_all_of_each_split(tmp_path: Path) -> None:
    L.seed_everything(5, verbose=False)
    data, module = ready(batch_size=32), Recorder()
    fit = trainer(tmp_path, max_epochs=3, reload_dataloaders_every_n_epochs=1)
    fit.fit(module, datamodule=data)
    fit.test(module, datamodule=data)
    assert [len(batch) for batch in module.seen] == [32, 32, 32, 14] * 3
    orders = [tuple(chain(*module.seen[start : start + 4])) for start in (0, 4, 8)]
    assert len(set(orders)) == 3
    assert len({frozenset(order) for order in orders}) == 1
    assert module.evaluated == {"val": 30, "test": 40}
    L.seed_everything(6, verbose=False)
    other = Recorder()
    trainer(tmp_path, max_epochs=1).fit(other, datamodule=ready(batch_size=32))
    assert other.seen != module.seen[:4], "the order hangs on seed_everything"


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("step", [1, 3, 4, 5, 8, 11])
def test_a_fit_resumed_by_lightning_sees_what_was_left(tmp_path: Path, step: int) -> None:
    L.seed_everything(5, verbose=False)
    checkpoint = L.pytorch.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    whole = Recorder()
    first = trainer(tmp_path, max_epochs=3, callbacks=[checkpoint], enable_checkpointing=True)
    first.fit(whole, datamodule=ready(batch_size=32, augment=True))
    resumed = Recorder()
    second = trainer(tmp_path, max_epochs=3)
    second.fit(resumed, datamodule=ready(batch_size=32, augment=True), ckpt_path=tmp_path / f"step={step}.ckpt")
    assert resumed.seen == whole.seen[step:]
