"""Every shipped config is a test case: its settings are the published ones, and it runs on data of the true shape."""

import csv
import logging
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from conftest import assert_same, weekly
from dataset_files import accept_cifar10, write_cifar10, write_mnist

from lth_lightning import DiabetesData, LotteryTicket, Regressor, Ticket, prunable_weights
from lth_lightning.cli.lightning_cli import LotteryCLI
from lth_lightning.cli.main import main
from lth_lightning.pruning.criteria import Magnitude
from lth_lightning.pruning.pruning import Pruning
from lth_lightning.runs.rows import read_layers, read_rows

pytestmark = pytest.mark.usefixtures("plain_figures")

FOLDER = Path(__file__).parents[2] / "configs"
REGRESSION = FOLDER / "diabetes.yaml"
CONFIGS = sorted(set(FOLDER.glob("*.yaml")) - {REGRESSION})
BOTH = ("random_reinit", "random_mask")


@dataclass(frozen=True)
class Published:
    """What SCIENCE.md's table (Frankle & Carbin 2019, figure 2) says of an experiment, or, where it is ours, we say.

    `rates` are fractions pruned a round by the layer's name; the first name that is part of a weight's decides.
    `percents` are densities after so many rounds: the paper's where it prints them, or SCIENCE.md's.
    """

    dataset: str
    weights: int
    steps: int
    batch: int
    rates: dict[str, float]
    optimizer: dict[str, Any]
    percents: dict[int, float] = field(default_factory=dict)
    rounds: int = 20
    controls: tuple[str, ...] = BOTH
    control_rounds: tuple[int, ...] | None = None
    densities: tuple[float, ...] | None = None  # pruned from the dense network, in place of rates
    epochs: int | None = None  # that make up `steps`, where the config says so many epochs
    scaling: str = "standardise"
    val_check_interval: int | None = 100
    # Of the networks that are pruned globally, rewound late, and trained at a falling rate on augmented images:
    together: bool = False
    rewind_step: int = 0
    milestones: tuple[int, ...] = ()


def adam(lr: float) -> dict[str, Any]:
    return {"class": torch.optim.Adam, "lr": lr, "betas": (0.9, 0.999), "weight_decay": 0}


SGD: dict[str, Any] = {"class": torch.optim.SGD, "lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 1e-4}
LENET300: dict[str, Any] = {
    "weights": 266_200,
    "steps": 50_000,
    "batch": 60,
    "rates": {"output": 0.1, "fc": 0.2},
    "optimizer": adam(1.2e-3),
    "percents": {3: 51.28, 7: 21.07, 9: 13.52, 12: 6.95, 15: 3.58, 18: 1.85},
}
LENET5: dict[str, Any] = {
    "weights": 61_470,
    "steps": 20_000,
    "batch": 60,
    "rates": {"output": 0.1, "fc": 0.2, "conv": 0.1},
    "optimizer": adam(1.2e-3),
}
CONV: dict[str, Any] = {"dataset": "CIFAR10", "batch": 60, "rates": {"output": 0.1, "fc": 0.2, "conv": 0.1}}
MLP: dict[str, Any] = {"controls": ("random_reinit",)}
TUTORIAL: dict[str, Any] = {
    **MLP,
    "dataset": "MNIST",
    "weights": 784 * 128 + 128 * 64 + 64 * 10,
    "steps": 4 * 1_719,
    "epochs": 4,
    "batch": 32,
    "optimizer": adam(1e-3),
    "scaling": "symmetric",
    "val_check_interval": 200,
}
DEEP: dict[str, Any] = {
    "dataset": "CIFAR10",
    "optimizer": SGD,
    "rates": {"output": 0.0, "shortcut": 0.0, "conv": 0.2},
    "controls": ("random_reinit",),
    "together": True,
    "rewind_step": 1000,
    "val_check_interval": None,
}
PUBLISHED = {
    "quickstart": Published(
        dataset="Digits",
        weights=64 * 300 + 300 * 100 + 100 * 10,
        steps=400,
        batch=60,
        rounds=12,
        rates={"": 0.3},
        optimizer=adam(1.2e-3),
        percents={12: 1.4},
        val_check_interval=None,
    ),
    "mlp_fashion_mnist": Published(
        **MLP,
        dataset="FashionMNIST",
        weights=784 * 256 + 256 * 128 + 128 * 32 + 32 * 10,
        steps=20 * 430,
        epochs=20,
        batch=128,
        rounds=5,
        rates={"": 0.2},
        optimizer=adam(1e-5),
        val_check_interval=None,
    ),
    "mlp_mnist": Published(**TUTORIAL, rounds=6, rates={"": 0.4}, percents={1: 60, 2: 36, 3: 21.6, 6: 4.67}),
    "mlp_mnist_one_shot": Published(
        **{**TUTORIAL, "controls": ("pruned_only",)}, rounds=4, rates={}, densities=(0.6, 0.4, 0.2, 0.05)
    ),
    "generalisation_mnist": Published(
        **MLP,
        dataset="MNIST",
        weights=266_200,
        steps=1_000,
        batch=60,
        rounds=10,
        control_rounds=(2, 4, 6, 8, 10),
        rates={"": 0.2},
        optimizer=adam(1e-3),
    ),
    "lenet300_mnist": Published(dataset="MNIST", **LENET300),
    "lenet300_fashion_mnist": Published(dataset="FashionMNIST", **LENET300),
    "lenet5_mnist": Published(dataset="MNIST", **LENET5),
    "lenet5_fashion_mnist": Published(dataset="FashionMNIST", **LENET5),
    "conv2_cifar10": Published(
        **CONV, weights=4_300_992, steps=20_000, optimizer=adam(2e-4), percents={11: 8.81, 14: 4.57}
    ),
    "conv4_cifar10": Published(
        **CONV, weights=2_425_024, steps=25_000, optimizer=adam(3e-4), percents={11: 11.06, 12: 9.18}
    ),
    "conv6_cifar10": Published(
        **{**CONV, "rates": {"output": 0.1, "fc": 0.2, "conv": 0.15}},
        weights=2_261_184,
        steps=30_000,
        optimizer=adam(3e-4),
        percents={7: 26.61},  # the paper prints 26.4, for a network that it counts as 1.7M
    ),
    "resnet20_cifar10": Published(
        **DEEP,
        weights=270_256 + 640,
        steps=30_000,
        batch=128,
        rounds=15,
        milestones=(20_000, 25_000),
        percents={2: 64.4, 4: 41.7, 6: 27.1, 8: 17.8, 10: 11.8, 12: 8.0},  # the 3,200 that are never pruned count
    ),
    "vgg19_cifar10": Published(
        **DEEP,
        weights=20_018_880 + 5_120,
        steps=112_480,
        batch=64,
        milestones=(56_240, 84_360),  # epochs 80 and 120 of 160, each of 703 steps
        percents={4: 41.0, 8: 16.8, 12: 6.9, 19: 1.5},
    ),
}

every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.stem)
LIKE_ANOTHER = (
    *("conv2_cifar10", "conv4_cifar10", "conv6_cifar10", "lenet300_fashion_mnist", "lenet5_mnist"),
    *("lenet5_fashion_mnist", "vgg19_cifar10", "mlp_mnist", "mlp_fashion_mnist"),
)
"""Configs that run as lenet300 and mlp_mnist_one_shot on MNIST and resnet20 do; all are parsed and compared."""


@pytest.fixture(autouse=True)
def _as_from_a_shell(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lightning warns of pytest's arguments, jsonargparse of Lightning; and `main` sets the level of loggers."""
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MNIST, FashionMNIST and CIFAR-10 with 60 training images (5 of them validate) and 20 test images each."""
    root = tmp_path_factory.mktemp("data")
    write_mnist(root, n_train=60, n_test=20)
    write_mnist(root, n_train=60, n_test=20, name="FashionMNIST")
    write_cifar10(root, n_train_per_batch=12, n_test=20)
    return root


@pytest.fixture
def data_dir(written: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    accept_cifar10(written, monkeypatch)
    return written


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    """A folder that goes with the test: pytest keeps the last runs' folders, and VGG-19 leaves 600 MB."""
    yield tmp_path / "run"
    shutil.rmtree(tmp_path, ignore_errors=True)


def fit(config: Path, run_dir: Path, *settings: str) -> int:
    one_process = ("--trainer.accelerator", "cpu")  # however many GPUs there are
    return main(["fit", "--config", str(config), "--run_dir", str(run_dir), *one_process, *settings])


def large(config: Path) -> bool:
    """Whether a network more costs seconds: on disk and in masks, not in steps."""
    return PUBLISHED[config.stem].weights > 1_000_000


def last_round(config: Path) -> int:
    return 1 if large(config) else 2


def shortened(config: Path, data_dir: Path) -> list[str]:
    """One or two rounds of 4 steps, which is an epoch of the 55 training images or a third of one."""
    settings: dict[str, Any] = {
        "--data.data_dir": data_dir,
        "--data.batch_size": 4 if large(config) else 14,
        "--lottery.train_for": "4it",
        "--lottery.control_rounds": list(range(1, last_round(config) + 1)),
    }
    if PUBLISHED[config.stem].densities:
        settings["--lottery.pruning.densities"] = list(PUBLISHED[config.stem].densities[:2])
    else:
        settings["--lottery.rounds"] = last_round(config)
    text = config.read_text()
    if "rewind_to" in text:
        settings["--lottery.rewind_to"] = "2it"
    if "val_check_interval" in text:
        settings["--trainer.val_check_interval"] = 2
    return [str(word) for setting in settings.items() for word in setting]


def survivors(sizes: dict[str, int], expected: Published, round: int) -> dict[str, int]:
    """Each weight's survivors by the published rates, of exactly floor(rate x survivors) pruned; where layers are
    ranked together, of all of one rate, under the rate's name. In fractions, and without the code under test."""
    if expected.densities:
        gone = 1 - Fraction(str(expected.densities[round - 1])) if round else Fraction(0)
        return {name: size - floor(gone * size) for name, size in sizes.items()}
    kept: dict[str, int] = {}
    rates = {}
    for name, size in sizes.items():
        rate = next(rate for part, rate in expected.rates.items() if part in name)
        group = str(rate) if expected.together else name
        kept[group] = kept.get(group, 0) + size
        rates[group] = Fraction(str(rate))
    for _ in range(round):
        kept = {group: size - floor(rates[group] * size) for group, size in kept.items()}
    return kept


# ------------------------------------------------------------------------ what they say


def test_the_configs_that_the_project_promises_are_there() -> None:
    lenets = [f"{net}_{data}" for net in ("lenet300", "lenet5") for data in ("mnist", "fashion_mnist")]
    cifar10 = [f"{net}_cifar10" for net in ("conv2", "conv4", "conv6", "resnet20", "vgg19")]
    mlps = {"mlp_fashion_mnist", "mlp_mnist", "mlp_mnist_one_shot", "generalisation_mnist"}
    assert {config.stem for config in CONFIGS} >= {"quickstart", *lenets, *cifar10, *mlps}
    assert {config.stem for config in CONFIGS} == PUBLISHED.keys(), "a config whose settings no test states"


class Unstarted(LotteryCLI):
    """The command line up to where the fit would start: everything built, nothing read or trained."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


@every_config
def test_settings_are_the_published_ones(config: Path, tmp_path: Path) -> None:
    expected = PUBLISHED[config.stem]
    cli = Unstarted(args=["fit", "--config", str(config), "--run_dir", str(tmp_path / "run")])
    lottery = next(callback for callback in cli.trainer.callbacks if isinstance(callback, LotteryTicket))

    data = cli.datamodule
    assert (data.dataset, data.batch_size, data.augment) == (expected.dataset, expected.batch, expected.together)
    assert (data.val_size, data.train_size) == (None, None)  # 55K/5K and 45K/5K: tests/data/test_datamodule.py
    assert (data.scaling, cli.model.init) == (expected.scaling, "glorot_normal")

    chosen = cli.model.configure_optimizers()
    optimizer = chosen["optimizer"] if isinstance(chosen, dict) else chosen
    (group,) = optimizer.param_groups
    settings = {**group, "class": type(optimizer), "lr": group.get("initial_lr", group["lr"])}
    assert {key: settings[key] for key in expected.optimizer} == expected.optimizer
    assert cli.model.lr_scheduler_interval == ("step" if expected.milestones else "epoch")
    assert learning_rates(chosen, (0, *expected.milestones)) == pytest.approx(
        [expected.optimizer["lr"] * 0.1**drop for drop in range(len(expected.milestones) + 1)]
    )

    length = (expected.steps, "it") if expected.epochs is None else (expected.epochs, "ep")
    assert (lottery.train_for.amount, lottery.train_for.unit) == length
    assert lottery.rewind_to.steps(lambda epochs: epochs, expected.steps) == expected.rewind_step
    assert lottery.rewind == "weights"
    pruning = lottery.pruning
    assert pruning.scope == ("global" if expected.together else "layerwise")
    assert pruning.prune_from == ("dense" if expected.densities else "last_round")
    assert type(pruning.criterion) is Magnitude
    assert [(network.round, network.variant) for network in lottery.plan] == planned(
        expected, expected.rounds, expected.control_rounds or range(1, expected.rounds + 1)
    )
    if expected.val_check_interval:
        checks = (cli.trainer.val_check_interval, cli.trainer.check_val_every_n_epoch)
        assert checks == (expected.val_check_interval, None)

    sizes = {name: weight.numel() for name, weight in prunable_weights(cli.model).items()}
    assert sum(sizes.values()) == expected.weights
    ours = [pruning.density_after(sizes, number) for number in range(expected.rounds + 1)]
    assert ours == [sum(survivors(sizes, expected, n).values()) / expected.weights for n in range(expected.rounds + 1)]
    for number, percent in expected.percents.items():
        one_digit = percent == round(percent, 1)
        # Only whole weights go, which leaves up to 0.006 points more than powers of 0.8.
        assert 100 * ours[number] == pytest.approx(percent, abs=0.051 if one_digit else 0.006), f"round {number}"


def planned(expected: Published, rounds: int, control_rounds: Iterable[int]) -> list[tuple[int, str]]:
    """Rounds and variants in the order of training: `pruned_only` shows what training then changes."""
    before = [control for control in expected.controls if control == "pruned_only"]
    after = [control for control in expected.controls if control != "pruned_only"]
    plan = []
    for number in range(rounds + 1):
        here = number in control_rounds
        plan += [(number, variant) for variant in [*(before if here else []), "ticket", *(after if here else [])]]
    return plan


def learning_rates(chosen: Any, steps: tuple[int, ...]) -> list[float]:
    """The learning rate in force at each of `steps`, had every step been an optimizer's."""
    if not isinstance(chosen, dict):
        return [chosen.param_groups[0]["lr"]] * len(steps)
    optimizer, scheduler = chosen["optimizer"], chosen["lr_scheduler"]["scheduler"]
    rates = []
    optimizer.step()  # no gradients, nothing moves; the scheduler wants to have seen one
    for step in range(max(steps) + 1):
        if step in steps:
            rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    return rates


@every_config
def test_the_header_tells_source_command_cost_and_figures(config: Path) -> None:
    text = config.read_text()
    header = "\n".join(line for line in text.splitlines() if line.startswith("#"))
    assert text.startswith(header), "the header comes first"
    assert f"python train.py fit --config configs/{config.name}\n" in header
    assert "arXiv:" in header or "Ours: " in header
    assert "\n# Measured here" in header
    measured = " ".join(header.split("\n# Measured here")[1].split())
    assert " %" not in measured or re.search(r"\([^)]*\bthreads?\b[^)]*\)", measured), "figures say on how many threads"
    assert " %" not in measured or re.search(r"\bcommits? [0-9a-f]{7}\b", measured), "and of which commit"
    expected = PUBLISHED[config.stem]
    trained = [control for control in expected.controls if control != "pruned_only"]
    tickets, controls = expected.rounds + 1, len(expected.control_rounds or range(expected.rounds)) * len(trained)
    steps = expected.steps + (tickets + controls - 1) * (expected.steps - expected.rewind_step)
    assert re.search(rf"Trains {tickets + controls} networks \({tickets} tickets, .*; {steps:,} steps\)", header)


def options_in_readme() -> list[str]:
    """The right column of the table for those who come from another implementation, in configs/README.md: its code."""
    readme = (CONFIGS[0].parent / "README.md").read_text()
    table = readme.split("| there | here |")[1].split("\n\n")[0]
    return [setting for line in table.splitlines() for setting in re.findall(r"`(--.*?)`", line)]


@pytest.mark.parametrize("setting", options_in_readme())
def test_every_option_that_the_readme_translates_is_understood(setting: str, tmp_path: Path) -> None:
    mine = {"my_package.MyNetwork": "lth_lightning.models.LeNet300", "my_package.MyCriterion": "lth_lightning.Random"}
    for name, existing in mine.items():
        setting = setting.replace(name, existing)
    settings = shlex.split(setting.replace("runs/mine", str(tmp_path / "mine")))
    config = settings[1] if settings[0] == "--config" else "configs/lenet300_mnist.yaml"
    started = ["fit", "--config", str(CONFIGS[0].parents[1] / config), *settings[2 * (settings[0] == "--config") :]]
    if "--run_dir" not in started:
        started += ["--run_dir", str(tmp_path / "run")]
    Unstarted(args=started)


def test_the_readme_translates_every_option() -> None:
    flags = {word for setting in options_in_readme() for word in setting.split() if word.startswith("--")}
    assert len(flags) >= 18


# ------------------------------------------------------------------------ what they do


@pytest.mark.parametrize(
    "config",
    [pytest.param(one, marks=weekly if one.stem in LIKE_ANOTHER else ()) for one in CONFIGS],
    ids=lambda config: config.stem,
)
def test_rounds_run_and_leave_what_a_run_leaves(config: Path, data_dir: Path, run_dir: Path) -> None:
    expected, last = PUBLISHED[config.stem], last_round(config)
    assert fit(config, run_dir, *shortened(config, data_dir)) == 0

    rows = read_rows(run_dir / "results.csv")
    assert [(row.round, row.variant) for row in rows] == planned(expected, last, range(1, last + 1))
    rewind_step = 2 if expected.rewind_step else 0
    trained = [row for row in rows if row.variant != "pruned_only"]
    assert [row.steps for row in trained] == [4] + [4 - rewind_step] * (len(trained) - 1)
    assert [row.steps for row in rows if row.variant == "pruned_only"] == [0] * (len(rows) - len(trained))
    for row in trained:
        assert None not in (row.train_loss, row.val_loss, row.test_loss, row.early_stop_val_loss)
        assert 0 <= row.val_acc <= 1
        assert 0 <= row.test_acc <= 1
        assert 1 <= row.early_stop_step <= 4

    layers = read_layers(run_dir / "layers.csv")
    sizes = {layer.layer: layer.size for layer in layers}
    assert sum(sizes.values()) == expected.weights
    assert len(layers) == len(sizes) * len(rows)
    for row in rows:
        kept = survivors(sizes, expected, row.round)
        assert (row.kept, row.prunable) == (sum(kept.values()), expected.weights)
        here = {layer.layer: layer.kept for layer in layers if (layer.round, layer.variant) == (row.round, row.variant)}
        if expected.together:
            never = [name for name in sizes if "shortcut" in name or "output" in name]
            assert [here[name] for name in never] == [sizes[name] for name in never]
        else:
            assert here == kept

    tickets = sorted(path.name for path in (run_dir / "tickets").iterdir())
    assert tickets == [f"round_0{number}.safetensors" for number in range(last + 1)]
    ticket = Ticket.load(run_dir / "tickets" / tickets[-1])
    assert ticket.density == next(row.density for row in rows if row.round == last)
    assert (ticket.info["round"], ticket.info["rewind_step"]) == (last, rewind_step)

    settings = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert settings["data"]["dataset"] == expected.dataset
    assert expected.controls[0] in (run_dir / "report.md").read_text().replace(" ", "_")
    assert {path.suffix for path in (run_dir / "figures").iterdir()} >= {".png", ".svg"}
    assert (run_dir / "checkpoints" / "last.ckpt").stat().st_size
    curves = {folder.name[:8] for folder in (run_dir / "tensorboard").iterdir() if folder.is_dir()}
    assert {f"round 0{number}" for number in range(last + 1)} <= curves


def test_the_tutorials_counts_of_pruned_weights() -> None:
    """One-shot at 40 %: 40,140, 3,276 and 256 weights go. In 18 rounds at 20 % about 1,965 of 109,184 are left."""
    sizes = {"fc1": 784 * 128, "fc2": 128 * 64, "output": 64 * 10}
    one_shot = Pruning(densities=[0.6, 0.4, 0.2, 0.05], prune_from="dense")
    gone = [
        sizes[group.names[0]] - one_shot.kept(group, sizes[group.names[0]], 1) for group in one_shot.groups([*sizes])
    ]
    assert gone == [40_140, 3_276, 256]
    left = Pruning(rate=0.2).density_after(sizes, 18) * sum(sizes.values())
    assert left == pytest.approx(1_965, abs=10)


@pytest.mark.parametrize("stem", [pytest.param("quickstart", marks=weekly), "resnet20_cifar10"])
def test_a_run_is_repeated_from_its_config_yaml(stem: str, data_dir: Path, run_dir: Path) -> None:
    """ResNet-20 draws all that can be drawn: order, crops, mirrors; and has batch norm, momentum and a schedule."""
    config = next(config for config in CONFIGS if config.stem == stem)
    first, again = run_dir / "first", run_dir / "again"
    assert fit(config, first, *shortened(config, data_dir)) == 0
    L.seed_everything(99, verbose=False)
    assert main(["fit", "--config", str(first / "config.yaml"), "--run_dir", str(again)]) == 0

    assert without_seconds(first / "results.csv") == without_seconds(again / "results.csv")
    assert (first / "layers.csv").read_bytes() == (again / "layers.csv").read_bytes()
    assert (first / "config.yaml").read_text() == (again / "config.yaml").read_text()
    for number in range(3):
        name = f"tickets/round_{number:02d}.safetensors"
        ours, theirs = Ticket.load(first / name), Ticket.load(again / name)
        assert ours.info == theirs.info
        assert_same(ours.masks, theirs.masks)
        assert_same(ours.rewind_point, theirs.rewind_point)
        assert_same(ours.trained, theirs.trained)


def without_seconds(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def test_a_table_is_learned_and_judged_by_its_error(run_dir: Path) -> None:
    """Regression on scikit-learn's diabetes, by classes that the config names: no image, no accuracy."""
    settings = ("--lottery.rounds", "1", "--lottery.train_for", "20ep", "--lottery.controls", "[random_reinit]")
    assert fit(REGRESSION, run_dir, *settings) == 0
    with (run_dir / "results.csv").open(newline="") as file:
        dense, ticket, reinit = csv.DictReader(file)
    assert [dense["variant"], ticket["variant"], reinit["variant"]] == ["ticket", "ticket", "random_reinit"]
    data = DiabetesData()
    data.setup("test")
    inputs, targets = next(iter(data.test_dataloader()))
    module = Regressor(features=10, target_mean=152.1, target_std=77.1)
    Ticket.load(run_dir / "tickets/round_01.safetensors").apply(module, weights="trained")
    with torch.no_grad():
        error = float((module(inputs) - targets).abs().mean())
    assert float(ticket["test_mae"]) == pytest.approx(error, rel=1e-5)
    constant = float((targets - 152.1).abs().mean())
    assert error < 0.9 * constant  # it has learned something
    report = (run_dir / "report.md").read_text()
    assert "has a test mae of" in report and "% test mae" not in report
