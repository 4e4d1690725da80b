"""Modules and data of the user's own on the command line, from configs and in a program of their own; rehearsals."""

import csv
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lth_lightning import LotteryCLI
from lth_lightning.cli.main import main
from lth_lightning.tickets.ticket import Ticket

pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter"),
    pytest.mark.usefixtures("plain_figures"),
]

OWN_PROJECT = '''
import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lth_lightning import ImageClassifier, ImageDataModule


class OwnModule(L.LightningModule):
    def __init__(self, width: int = 8, lr: float = 0.1):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
        nn.init.normal_(self.net[1].weight, std=0.02)  # what resetting the layers would not repeat
        self.lr = lr

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("val_loss", self.training_step(batch, _))

    def test_step(self, batch, _):
        self.log("test_loss", self.training_step(batch, _))

    def predict_step(self, batch, _):
        return self.net(batch[0]).argmax(1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.lr)


class Unoptimized(OwnModule):
    configure_optimizers = L.LightningModule.configure_optimizers


class OwnData(L.LightningDataModule):
    def __init__(self, examples: int = 40):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.images = TensorDataset(
            torch.randn(examples, 1, 8, 8, generator=generator), torch.arange(examples) % 10
        )

    def train_dataloader(self):
        return DataLoader(self.images, batch_size=20)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class WithLoaders(OwnModule):
    def train_dataloader(self):
        return OwnData().train_dataloader()

    val_dataloader = train_dataloader


class Smoothed(ImageClassifier):
    def __init__(self, *args, smoothing: float = 0.1, **kwargs):
        super().__init__(*args, **kwargs)
        self.smoothing = smoothing


class FewDigits(ImageDataModule):
    """Ours, with another default."""
'''
OWN = """
model: {class_path: own_project.OwnModule, init_args: {width: 6}}
data: {class_path: own_project.OwnData}
lottery: {rounds: 1, train_for: 3it, controls: [random_reinit]}
trainer: {accelerator: cpu, log_every_n_steps: 1}
"""
SHORT = ["--lottery.rounds", "1", "--lottery.train_for", "2it", "--quiet", "--run_dir", "run"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a module of the user's own, which no path in sys.path names yet."""
    here = tmp_path / "here"
    here.mkdir()
    (here / "own_project.py").write_text(OWN_PROJECT)
    (here / "own.yaml").write_text(OWN)
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield here
    sys.modules.pop("own_project", None)


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "results.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def test_a_config_names_ones_own_module_and_data(project: Path, capsys: Any) -> None:
    assert main(["fit", "--config", "own.yaml", "--model.lr", "0.2"]) == 0
    run = project / "runs/own/0"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"] == {"class_path": "own_project.OwnModule", "init_args": {"width": 6, "lr": 0.2}}
    assert config["data"] == {"class_path": "own_project.OwnData", "init_args": {"examples": 40}}
    assert [(row["round"], row["variant"], row["prunable"]) for row in rows(run)] == [
        ("0", "ticket", "444"),
        ("1", "ticket", "444"),
        ("1", "random_reinit", "444"),
    ]
    assert "OwnModule on OwnData" in capsys.readouterr().out

    assert main(["fit", "--config", "runs/own/0/config.yaml", "--quiet"]) == 0
    assert rows(project / "runs/own/1") == rows(run)

    capsys.readouterr()
    used = ["--config", "runs/own/0/config.yaml", "--ckpt_path", "runs/own/0/tickets/round_01.safetensors"]
    assert main(["predict", *used]) == 0
    assert len(capsys.readouterr().out.split()) == 40
    assert main(["test", *used]) == 0
    shown = next(line for line in capsys.readouterr().out.splitlines() if "test_loss" in line)
    assert float(shown.split("│")[2]) == pytest.approx(float(rows(run)[1]["test_loss"]), rel=1e-5)


@pytest.mark.parametrize(
    ("args", "prunable"),
    [
        (["--config", "quickstart", "--model", "own_project.OwnModule"], 64 * 8 + 80),
        (
            ["--config", "quickstart", "--data", "own_project.OwnData", "--model.input_shape", "[1,8,8]"],
            64 * 300 + 300 * 100 + 1000,
        ),
        (["--config", "quickstart", "--model", "own_project.Smoothed", "--data", "own_project.FewDigits"], 50_200),
        (["--model", "own_project.WithLoaders", "--trainer.log_every_n_steps", "1"], 64 * 8 + 80),
        (
            ["--config", "own.yaml", "--model", "own_project.Unoptimized", "--optimizer", "SGD", "--optimizer.lr", "1"],
            444,
        ),
    ],
)
def test_parts_are_replaced_one_by_one(project: Path, args: list[str], prunable: int) -> None:
    assert main(["fit", *args, *SHORT, "--lottery.controls", "[]"]) == 0
    assert [row["prunable"] for row in rows(project / "run")] == [str(prunable)] * 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--model", "own_project.Nope"], "model: own_project.Nope does not exist: module 'own_project' has no"),
        (["--model", "nowhere.Module"], "model: nowhere.Module cannot be imported: No module named 'nowhere'. A class"),
        (["--model", "LeNet300"], "model: 'LeNet300' is not an import path .* use --model.net LeNet300."),
        (["--model", "torch.nn.Linear"], "model: torch.nn.Linear is not a LightningModule. .* --model.net torch.nn.Li"),
        (["--data", "torch.nn.Linear"], "data: torch.nn.Linear is not a LightningDataModule. .* --data.dataset torch"),
        (["--model.widht", "3"], r"model \(own_project.OwnModule\): 'widht' is unknown; .* Did you mean 'width'\?"),
        (
            ["--model", "lth_lightning.ImageClassifier", "--model.net", "MLP"],
            "model.input_shape is missing: a data mod",
        ),
    ],
)
def test_mistakes_are_one_line(project: Path, args: list[str], message: str, capsys: Any) -> None:
    before = set(project.iterdir())
    assert main(["fit", "--config", "own.yaml", *args]) == 2
    error = capsys.readouterr().err
    assert re.match(f"error: {message}", error) and error.count("\n") == 1
    assert {path for path in project.iterdir() if path.name != "__pycache__"} == before


def test_a_program_of_ones_own(project: Path, capsys: Any) -> None:
    sys.path.insert(0, str(project))
    from own_project import OwnData, OwnModule

    args = ["fit", "--model.width", "5", *SHORT, "--trainer.log_every_n_steps", "1"]
    cli = LotteryCLI(OwnModule, OwnData, args=args, trainer_defaults={"accelerator": "cpu"})
    assert isinstance(cli.model, OwnModule) and isinstance(cli.datamodule, OwnData)
    assert Ticket.load(project / "run/tickets/round_01.safetensors").masks["net.1.weight"].shape == (5, 64)
    assert yaml.safe_load((project / "run/config.yaml").read_text())["model"] == {"width": 5, "lr": 0.1}
    for wrong, code in ((["fit", "--model.widht", "5"], 2), (["fti"], 2), (["--version"], 0)):
        with pytest.raises(SystemExit) as stop:
            LotteryCLI(OwnModule, OwnData, args=wrong)
        assert stop.value.code == code
    assert "--model.widht is not a setting. Did you mean --model.width?" in capsys.readouterr().err


@pytest.mark.parametrize("flag", [["--fast_dev_run"], ["--trainer.fast_dev_run", "true"]])
def test_a_rehearsal_does_everything_and_keeps_nothing(project: Path, flag: list[str], capsys: Any) -> None:
    before = {*project.iterdir(), *project.parent.iterdir()}
    settings = ["--lottery.rounds", "9", "--lottery.train_for", "5000it", "--lottery.control_rounds", "[7]"]
    assert main(["fit", "--config", "own.yaml", *flag, *settings, "--run_dir", "run", "--ckpt_path", "last"]) == 0
    out = capsys.readouterr().out
    assert "A rehearsal (fast_dev_run): two rounds of 2 batches" in out
    assert "This was a rehearsal: 3 networks" in out and "Nothing was kept" in out and "Results, tickets" not in out
    left = {path for path in {*project.iterdir(), *project.parent.iterdir()} if path.name != "__pycache__"}
    assert left == before


def test_a_rehearsal_refuses_what_the_experiment_would(project: Path, capsys: Any) -> None:
    before = {*project.iterdir(), *project.parent.iterdir()}
    assert main(["fit", "--config", "own.yaml", "--fast_dev_run", "--trainer.max_epochs", "5"]) == 2
    assert "trainer.max_epochs is 5" in capsys.readouterr().err
    assert {path for path in {*project.iterdir(), *project.parent.iterdir()} if path.name != "__pycache__"} == before
