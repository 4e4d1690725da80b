"""Regressor: a LightningModule that maps rows of a table to a number."""

from collections.abc import Sequence
from itertools import pairwise

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from lth_lightning.errors import SettingError


class Regressor(L.LightningModule):
    """Trains a fully connected network with the mean squared error of standardised targets.

    Logs `train_loss`, and loss and mean absolute error (`val_mae`, `test_mae`), the latter in the targets' own units.

    Args:
        features: columns of the table.
        hidden: widths of the hidden layers.
        target_mean: mean of the targets.
        target_std: standard deviation of the targets.
        optimizer: the optimizer.

    Raises:
        SettingError: no features, a width below 1, or a standard deviation that is not positive.
    """

    def __init__(
        self,
        features: int,
        hidden: Sequence[int] = (64, 32),
        target_mean: float = 0.0,
        target_std: float = 1.0,
        optimizer: OptimizerCallable = torch.optim.Adam,
    ) -> None:
        super().__init__()
        widths = [features, *hidden, 1]
        if min(widths) < 1:
            raise SettingError(f"model: features and each width in hidden must be at least 1, got {widths[:-1]}.")
        if not target_std > 0:
            raise SettingError(f"model.target_std must be positive, got {target_std}.")
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.net = nn.Sequential(*layers[:-1], nn.Flatten(0))
        self.target_mean, self.target_std = target_mean, target_std
        self.optimizer = optimizer

    def forward(self, inputs: Tensor) -> Tensor:
        """Return predictions (N,) in the targets' units for rows (N, features)."""
        return self.net(inputs) * self.target_std + self.target_mean

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return self.optimizer(self.parameters())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return a batch's mean squared error, in squared standard deviations of the targets."""
        loss = self._loss(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(batch[1]))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log `val_loss` and `val_mae`."""
        self._evaluate(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log `test_loss` and `test_mae`."""
        self._evaluate(batch, "test")

    def _evaluate(self, batch: tuple[Tensor, Tensor], split: str) -> None:
        inputs, targets = batch
        outputs = self.net(inputs)
        error = (outputs * self.target_std + self.target_mean - targets).abs().mean()
        values = {f"{split}_loss": self._loss(outputs, targets), f"{split}_mae": error}
        self.log_dict(values, batch_size=len(targets), sync_dist=True)

    def _loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, (targets - self.target_mean) / self.target_std)
