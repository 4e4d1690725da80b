"""The data: images in memory as tensors, split into training, validation and official test images."""

import os
from functools import cached_property
from typing import Any, Literal, get_args

import lightning as L
import torch
from torch import Tensor

from lth_lightning.data.datasets import KNOWN, Images, check_arguments, read_images
from lth_lightning.data.loader import TensorLoader
from lth_lightning.data.splits import balanced_order, proportionate_order
from lth_lightning.errors import SettingError, unknown_name
from lth_lightning.seeding import derive_seed

Scaling = Literal["standardise", "symmetric"]

VAL_SIZE = 5_000  # of MNIST's 60,000 and CIFAR-10's 50,000 training images, as in Frankle & Carbin 2019
SMALL_VAL_SHARE = 12  # with fewer than 50,000 images MNIST's proportion, one in twelve


class ImageDataModule(L.LightningDataModule):
    """Images for classification, read once, kept in memory as stored (uint8) and normalised batch by batch.

    The official test images are never used for training or validation. The validation images and those of a
    `train_size` depend only on `split_seed`, not on the run's seed. So the training images of a ticket are never
    validation images of another run.

    Args:
        dataset: `Digits` (needs no download), `MNIST`, `FashionMNIST`, `CIFAR10`, another class of
            torchvision.datasets (`EMNIST`, `SVHN`, `ImageFolder`), or the import path of a class like these.
        data_dir: folder of the data sets, in the layout of torchvision.
        batch_size: training images per step and process.
        val_size: number of validation images, taken from the training images in proportion to the classes.
            By default 5,000, or a twelfth of the training images if there are fewer than 50,000.
        train_size: number of training images, balanced over classes; smaller sets are subsets of larger ones. By
            default all images that are not for validation.
        augment: pad each training image by 4 zeros on each side, crop it at random, and mirror half of the images
            left to right, anew each epoch; usual for CIFAR10.
        eval_batch_size: validation and test images per batch and process; affects only memory and speed.
        split_seed: chooses the validation images and those of `train_size`.
        download: download the data set if it is not in `data_dir`.
        scaling: `standardise`: each channel of the training images has mean 0 and variance 1; `symmetric`: their
            darkest pixel is -1 and their brightest 1.
        dataset_args: further arguments of the data set's class, e.g. `{"split": "letters"}` for EMNIST; on the command
            line also `--data.dataset.split letters`.

    Attributes:
        normalisation: after `setup`, the `scaling`, the `mean` and `std` of each channel by which batches are
            (raw - mean) / std, and the `low`est and `high`est raw value of the training images.
        class_names: after `setup`, the names of the classes, or None if the data set has none.

    Raises:
        SettingError: a value is not allowed. Values that depend on the data are checked in `setup`.

    Example:
        >>> data = ImageDataModule("Digits", batch_size=32)
        >>> data.input_shape, data.num_classes
        ((1, 8, 8), 10)
        >>> data.setup()
        >>> images, targets = next(iter(data.train_dataloader()))
    """

    def __init__(
        self,
        dataset: str = "MNIST",
        data_dir: str = "data",
        *,
        batch_size: int = 60,
        val_size: int | None = None,
        train_size: int | None = None,
        augment: bool = False,
        eval_batch_size: int = 1000,
        split_seed: int = 0,
        download: bool = True,
        scaling: Scaling = "standardise",
        dataset_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        sizes = {
            "batch_size": batch_size,
            "eval_batch_size": eval_batch_size,
            "val_size": val_size,
            "train_size": train_size,
        }
        for name, size in sizes.items():
            if size is not None and size < 1:
                raise SettingError(f"data.{name}: {size} is not possible; must be a whole number of at least 1.")
        if scaling not in get_args(Scaling):
            raise unknown_name("data.scaling", scaling, get_args(Scaling))
        self.dataset = dataset
        self.data_dir = data_dir
        self.batch_size = batch_size
        self.val_size = val_size
        self.train_size = train_size
        self.augment = augment
        self.eval_batch_size = eval_batch_size
        self.split_seed = split_seed
        self.download = download
        self.scaling = scaling
        self.dataset_args = dict(dataset_args or {})
        self.normalisation: dict[str, Any] | None = None
        self.class_names: list[str] | None = None
        self._known = KNOWN.get(dataset)
        if self._known is None or dataset_args:
            check_arguments(dataset, self.dataset_args)  # reports a mistyped name now, not when the data are read
        self._read: dict[bool, Images] = {}
        self._splits: dict[str, tuple[Tensor, Tensor]] = {}

    @cached_property
    def num_classes(self) -> int:
        """Number of classes; known before `setup`, though data sets given by path must be read for it."""
        return self._known.num_classes if self._known else int(self._official(train=True).targets.max()) + 1

    @cached_property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image; known before `setup`, like `num_classes`."""
        if self._known:
            return self._known.input_shape
        channels, height, width = self._official(train=True).images.shape[1:]
        return channels, height, width

    def prepare_data(self) -> None:
        """Download missing data; Lightning calls this in one process per machine.

        Raises:
            SettingError: the data are missing and cannot be downloaded; the error says how to get them.
        """
        if not self._splits:
            for train in (True, False):
                self._official(train)

    def setup(self, stage: str | None = None) -> None:
        """Read and split the data once, for any stage: a test needs the scale of the training images.

        Raises:
            SettingError: the data cannot be read, or `val_size` or `train_size` does not fit them.
        """
        if self._splits:
            return
        images, targets, class_names = self._official(train=True)
        test_images, test_targets, test_names = self._official(train=False)
        for part in (images, test_images):
            if part.shape[1:] != self.input_shape:
                raise SettingError(
                    f"data.dataset: {self.dataset} holds images of shape {tuple(part.shape[1:])} where "
                    f"{self.input_shape} was expected."
                )
        if max(int(targets.max()), int(test_targets.max())) >= self.num_classes:
            raise SettingError(f"data.dataset: {self.dataset} holds targets beyond its {self.num_classes} classes.")
        if class_names and test_names and class_names != test_names:
            raise SettingError(
                f"data.dataset: {self.dataset} has other classes for training, {class_names}, than for testing, "
                f"{test_names}. Both need the same, in the same order."
            )
        chosen, validation = self._choose(targets)
        self._normalise = center, spread = _center_and_spread(images, self.scaling)
        self.normalisation = {
            "scaling": self.scaling,
            "mean": center.tolist(),
            "std": spread.tolist(),
            "low": images.min().item(),
            "high": images.max().item(),
        }
        if class_names is not None and len(class_names) >= self.num_classes:
            self.class_names = class_names[: self.num_classes]
        self._splits = {
            "train": (images[chosen], targets[chosen]),
            "val": (images[validation], targets[validation]),
            "test": (test_images, test_targets),
        }
        self._read.clear()

    def train_dataloader(self) -> TensorLoader:
        """The training images, shuffled with the seed of `seed_everything` (or 0) unless `seek` sets another."""
        loader = self._loader("train", self.batch_size, train=True)
        if self.trainer is not None:
            # Lightning restores a loader's state only in the middle of an epoch, and may ask for a new loader
            # in the middle of a fit. Neither may start again with the order of epoch 0.
            loader.seek(self.trainer.current_epoch)
        return loader

    def val_dataloader(self) -> TensorLoader:
        """The validation images: official training images that are not trained on."""
        return self._loader("val", self.eval_batch_size)

    def test_dataloader(self) -> TensorLoader:
        """The official test images."""
        return self._loader("test", self.eval_batch_size)

    def raw_test_images(self) -> tuple[Tensor, Tensor]:
        """The official test images as the data set stores them, (N, C, H, W), and their classes; after `setup`."""
        return self._splits["test"]

    def predict_dataloader(self) -> TensorLoader:
        """The official test images, in their order."""
        return self.test_dataloader()

    def _loader(self, split: str, batch_size: int, train: bool = False) -> TensorLoader:
        if not self._splits:
            raise RuntimeError("The data have not been read: call setup() first, as Trainer.fit does.")
        images, targets = self._splits[split]
        place: dict[str, Any] = {}
        if self.trainer is not None:
            if len(targets) < self.trainer.world_size:
                raise SettingError(
                    f"data: {len(targets)} {split} images are too few for {self.trainer.world_size} processes: use "
                    "more (data.train_size, data.val_size), or fewer trainer.devices."
                )
            place = {
                "rank": self.trainer.global_rank,
                "world_size": self.trainer.world_size,
                "device": self.trainer.strategy.root_device,
            }
        return TensorLoader(
            images,
            targets,
            batch_size,
            normalise=self._normalise,
            shuffle=train,
            augment=train and self.augment,
            seed=int(os.environ.get("PL_GLOBAL_SEED", "0")),  # where Lightning's seed_everything leaves it
            **place,
        )

    def _choose(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the training and the validation images among the official training images."""
        count = len(targets)
        default = VAL_SIZE if count >= 10 * VAL_SIZE else max(1, round(count / SMALL_VAL_SHARE))
        val_size = default if self.val_size is None else self.val_size
        if val_size >= count:
            raise SettingError(
                f"data.val_size: {val_size} is too large: {self.dataset} has {count} training images. "
                f"Choose a number from 1 to {count - 1}."
            )
        order = proportionate_order(targets, self._generator("validation"))
        validation, rest = order[:val_size].sort().values, order[val_size:].sort().values
        if self.train_size is None:
            return rest, validation
        if not self.num_classes <= self.train_size <= len(rest):
            raise SettingError(
                f"data.train_size: {self.train_size} is not possible: besides {val_size} validation images, "
                f"{self.dataset} has {len(rest)} training images of {self.num_classes} classes. "
                f"Choose a number from {self.num_classes} to {len(rest)}."
            )
        order = balanced_order(targets[rest], self._generator("train_size"))
        return rest[order[: self.train_size].sort().values], validation

    def _generator(self, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.split_seed, purpose))

    def _official(self, train: bool) -> Images:
        """The official training or test images, cached until `setup` has split them."""
        if train not in self._read:
            self._read[train] = read_images(self.dataset, self.data_dir, train, self.download, self.dataset_args)
        return self._read[train]


def _center_and_spread(images: Tensor, scaling: Scaling) -> tuple[Tensor, Tensor]:
    """The offset to subtract from raw values and the scale to divide by, per channel: (C,) float64 each."""
    if scaling == "symmetric":
        low, high = images.min().double(), images.max().double()
        channels = images.shape[1]
        center, spread = ((high + low) / 2).repeat(channels), ((high - low) / 2).repeat(channels)
    else:
        center, spread = channel_statistics(images)
    return center, spread.where(spread > 0, 1.0)  # a constant channel becomes 0


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel over all pixels.

    Args:
        images: (N, C, H, W), any type.

    Returns:
        (C,) float64 each, in the images' own units.
    """
    total = torch.zeros(2, images.shape[1], dtype=torch.float64)
    for part in torch.split(images, 64):  # in parts: as float64, all of CIFAR-10 is 1.2 GB, more than the cache holds
        values = part.double()
        total += torch.stack([values.sum((0, 2, 3)), values.square().sum((0, 2, 3))])
    mean, mean_square = total / images[:, 0].numel()
    return mean, (mean_square - mean.square()).clamp(min=0).sqrt()
