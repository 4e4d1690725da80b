"""DiabetesData: a table in place of images, for regression; embedded in scikit-learn, so that nothing is downloaded."""

import lightning as L
import torch
from sklearn.datasets import load_diabetes
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lth_lightning.errors import SettingError

ROWS, TEST_ROWS = 442, 88


class DiabetesData(L.LightningDataModule):
    """Ten measurements of 442 patients, and how far their diabetes progressed within a year (25 to 346).

    Efron et al. 2004, "Least angle regression". 88 rows are for testing, and `val_size` for validation, drawn by
    `split_seed`. Batches are inputs (N, 10), each column with mean 0 and standard deviation 1 over the training rows,
    and targets (N,) in the original units.

    Args:
        batch_size: rows per batch.
        val_size: validation rows.
        split_seed: the seed of the split.

    Raises:
        SettingError: a batch without rows, or a split that leaves none for training or validation.
    """

    def __init__(self, batch_size: int = 32, val_size: int = 66, split_seed: int = 0) -> None:
        super().__init__()
        if batch_size < 1:
            raise SettingError(f"data.batch_size must be at least 1, got {batch_size}.")
        if not 1 <= val_size < ROWS - TEST_ROWS:
            raise SettingError(f"data.val_size must be from 1 to {ROWS - TEST_ROWS - 1}, got {val_size}.")
        self.batch_size, self.val_size, self.split_seed = batch_size, val_size, split_seed

    def setup(self, stage: str) -> None:
        inputs, targets = (
            torch.tensor(part, dtype=torch.float32) for part in load_diabetes(return_X_y=True, scaled=False)
        )
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(self.split_seed))
        test, val, train = order.split([TEST_ROWS, self.val_size, ROWS - TEST_ROWS - self.val_size])
        mean, deviation = inputs[train].mean(0), inputs[train].std(0)
        self._parts: dict[str, tuple[Tensor, Tensor]] = {
            name: ((inputs[rows] - mean) / deviation, targets[rows])
            for name, rows in (("train", train), ("val", val), ("test", test))
        }

    def train_dataloader(self) -> DataLoader:
        """Shuffled batches."""
        return DataLoader(TensorDataset(*self._parts["train"]), batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """One batch, in order."""
        return self._whole("val")

    def test_dataloader(self) -> DataLoader:
        """One batch, in order."""
        return self._whole("test")

    def _whole(self, name: str) -> DataLoader:
        return DataLoader(TensorDataset(*self._parts[name]), batch_size=ROWS)
