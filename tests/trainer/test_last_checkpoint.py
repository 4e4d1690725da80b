"""`fit(ckpt_path="last")` in Python: it starts, it resumes, and it says what it cannot do."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lth_lightning import LotteryTicket, SettingError
from tests.conftest import Fit, assert_equal_runs, digits, fit, make_trainer, mlp

SETTINGS: dict[str, Any] = {"rounds": 2, "train_for": "10it"}


class Interrupt(L.Callback):
    """Ends the fit like a crash when that network starts."""

    def __init__(self, round: int) -> None:
        self.round = round

    def on_network_start(self, trainer: L.Trainer, module: L.LightningModule, network: Any, density: float) -> None:
        if network.round == self.round:
            raise RuntimeError("interrupted")


def run(folder: Path, **given: Any) -> Fit:
    torch.manual_seed(0)
    return fit(mlp(), digits(), folder, **SETTINGS, **given)


def test_the_same_command_starts_and_resumes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = run(tmp_path / "whole")
    rank_zero = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    with caplog.at_level(logging.INFO, rank_zero.name), pytest.raises(RuntimeError, match="interrupted"):
        run(tmp_path / "cut", ckpt_path="last", callbacks=(Interrupt(1),))
    assert f"Nothing to resume in {tmp_path / 'cut'}: starting." in caplog.text
    caplog.clear()
    resumed = run(tmp_path / "cut", ckpt_path="last")
    assert "Nothing to resume" not in caplog.text
    assert resumed.trainer.ckpt_path == resumed.lottery.folder.checkpoint
    assert_equal_runs(whole.lottery.folder.path, resumed.lottery.folder.path)


def test_a_callback_resumes_the_run_that_it_began(tmp_path: Path) -> None:
    lottery = LotteryTicket(**SETTINGS)
    trainer = {"default_root_dir": tmp_path}
    with pytest.raises(RuntimeError, match="interrupted"):
        make_trainer(callbacks=[lottery, Interrupt(2)], **trainer).fit(mlp(), datamodule=digits())
    make_trainer(callbacks=[lottery], **trainer).fit(mlp(), datamodule=digits(), ckpt_path="last", weights_only=True)
    assert [row.round for row in lottery.results] == [0, 1, 2]
    assert lottery.folder.path == tmp_path / "runs" / "0"
    assert not (tmp_path / "runs" / "1").exists()


def test_it_must_be_known_which_run(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r'ckpt_path: "last" needs to know which run .* LotteryTicket\(run_dir='):
        make_trainer(callbacks=[LotteryTicket(**SETTINGS)]).fit(mlp(), datamodule=digits(), ckpt_path="last")
    (tmp_path / "tickets").mkdir()
    (tmp_path / "tickets" / "round_00.safetensors").touch()
    with pytest.raises(SettingError, match=r"there is a run in .*, but no .*last\.ckpt to resume from"):
        run(tmp_path, ckpt_path="last")


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_fit_without_a_lottery_resumes_as_lightning_does(tmp_path: Path) -> None:
    def trainer(epochs: int) -> L.Trainer:
        saving = ModelCheckpoint(tmp_path, save_last=True)
        return make_trainer(max_epochs=epochs, callbacks=[saving], enable_checkpointing=True)

    trainer(1).fit(mlp(), datamodule=digits())
    second = trainer(2)
    second.fit(mlp(), datamodule=digits(), ckpt_path="last", weights_only=True)
    assert second.ckpt_path == str(tmp_path / "last.ckpt")
    assert second.global_step == 14
