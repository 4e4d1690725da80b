"""Lightning's progress bars name the network in training, and are as before when the fit is over."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar
from torch.utils.data import DataLoader, IterableDataset

from tests.conftest import ForeignData, ForeignModule, digits, fit, mlp

FIT: dict[str, Any] = {"rounds": 1, "controls": ["random_reinit"]}


class Stream(IterableDataset):
    """Data without a length."""

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield torch.zeros(1, 8, 8), 0


class Endless(ForeignData):
    def train_dataloader(self) -> DataLoader:
        return DataLoader(Stream(), batch_size=4)


class AsksForTheLength(ForeignModule):
    """A module that reads the number of epochs before the lottery shortens the first one."""

    def configure_optimizers(self) -> Any:
        assert self.trainer.max_epochs == -1
        return super().configure_optimizers()


class Titles(L.Callback):
    """Notes what the bar says at the end of each batch."""

    def __init__(self, bar: ProgressBar) -> None:
        self.bar, self.seen = bar, {}

    def on_train_batch_end(self, *_: Any) -> None:
        if isinstance(self.bar, TQDMProgressBar):
            said = self.bar.train_progress_bar.desc
        else:
            assert self.bar.progress is not None
            said = self.bar.progress.tasks[self.bar.train_progress_bar_id].description  # type: ignore[attr-defined]
        self.seen[said.strip().removesuffix(":")] = None


def titles(bar: ProgressBar, module: L.LightningModule, data: Any, run_dir: Path, **settings: Any) -> list[str]:
    watch = Titles(bar)
    settings = {**FIT, "trainer": {"enable_progress_bar": True}, **settings}
    fit(module, data, run_dir, callbacks=(bar, watch), **settings)
    return list(watch.seen)


def test_tqdm_says_the_round(tmp_path: Path) -> None:
    bar = TQDMProgressBar()
    networks = ("round 0 ticket", "round 1 ticket", "round 1 random_reinit")
    wanted = [f"{network}, epoch {epoch}" for network in networks for epoch in (0, 1)]
    assert titles(bar, mlp(), digits(), tmp_path, train_for="2ep") == wanted
    assert "on_train_epoch_start" not in vars(bar)


def test_rich_says_the_round_and_its_last_epoch(tmp_path: Path) -> None:
    bar = RichProgressBar()
    found = titles(bar, mlp(), digits(), tmp_path, train_for="2ep")
    assert found[0] == "round 0 ticket, epoch 0/1" and found[-1] == "round 1 random_reinit, epoch 1/1"
    assert "_get_train_description" not in vars(bar)


def test_no_last_epoch_is_said_where_none_is_known(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "metrics": {"val_loss": "valid/ce", "val_acc": "valid/accuracy"},
        "evaluate_test": False,
    }
    trainer = {"enable_progress_bar": True, "val_check_interval": 4, "limit_val_batches": 1}
    found = titles(
        RichProgressBar(), AsksForTheLength(), Endless(), tmp_path, train_for="4it", trainer=trainer, **settings
    )
    assert found == ["round 0 ticket, epoch 0", "round 1 ticket, epoch 0", "round 1 random_reinit, epoch 0"]
