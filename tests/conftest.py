"""Small real experiments that the tests share: Digits, seconds long, on one thread."""

import base64
import csv
import functools
import gc
import itertools
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from lightning.fabric.utilities import registry
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lth_lightning import ImageClassifier, ImageDataModule, LotteryTicket, Ticket
from lth_lightning.data.loader import TensorLoader
from lth_lightning.lottery.plan import TrainedNetwork
from lth_lightning.models import MLP, ResNet
from lth_lightning.pruning.masks import Masks
from lth_lightning.pruning.state import State, full_state, load_state
from lth_lightning.seeding import derive_seed

for _name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(_name).setLevel(logging.ERROR)

# One thread here (below) and in every process that a test starts: the threads decide in which order sums are added.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

# Every Trainer asks for plugins, which reads the metadata of all packages: 20 ms.
registry.entry_points = functools.cache(registry.entry_points)

# The same examples in every run, however slow the machine.
hypothesis_settings.register_profile(
    "calm",
    max_examples=100 if "LTH_THOROUGH" in os.environ else 50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
hypothesis_settings.load_profile("calm")

HANGS = 600
"""Seconds after which a process counts as hanging: against that alone, as a busy machine may take its time."""

THOROUGH = "LTH_THOROUGH" in os.environ
"""Whether every combination is tested, as once a week; the usual run takes one of each kind, to stay short."""

weekly = pytest.mark.skipif(not THOROUGH, reason="weekly run: LTH_THOROUGH=1")
"""Marks what only tests more combinations of something that the usual run tests too."""

DIGITS = {"input_shape": (1, 8, 8), "num_classes": 10}


def pytest_collection_finish() -> None:
    """Leave what imports have made, half a million objects, out of every later search for garbage."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Let extension modules find all that is theirs as the process ends, or they tell of leaks."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of one test's seed may reach the next; sums in threads would differ in their last bit."""
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    monkeypatch.delenv("LTH_LIGHTNING_RUN_DIR", raising=False)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    os.environ.pop("PL_GLOBAL_SEED", None)


@pytest.fixture(autouse=True)
def _without_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Syncing is for power cuts, which no test can stage. A killed process keeps what it has written."""
    monkeypatch.setattr("os.fsync", lambda file: None)


PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def draw_plainly(patch: pytest.MonkeyPatch) -> None:
    """Replace the figures in files by a pixel: drawing them takes half the time of a small run."""
    patch.setattr("lth_lightning.report.figures.image_bytes", lambda figure, kind: PIXEL)


@pytest.fixture(scope="module")
def plain_figures() -> Iterator[None]:
    """For modules that look at no figure; those in tests/report and tests/display do."""
    with pytest.MonkeyPatch.context() as patch:
        draw_plainly(patch)
        yield


class ForeignModule(L.LightningModule):
    """Somebody's own module: dropout, batch norm, momentum, weight decay, a schedule, metrics by other names."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(216, 10)
        )

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.body(batch[0]), batch[1])

    def _evaluate(self, batch: tuple[Tensor, Tensor], split: str) -> None:
        logits = self.body(batch[0])
        self.log(f"{split}/ce", F.cross_entropy(logits, batch[1]))
        self.log(f"{split}/accuracy", (logits.argmax(1) == batch[1]).float().mean())

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "valid")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=True)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2), "interval": "epoch"}]


FOREIGN_METRICS = {
    "val_loss": "valid/ce",
    "val_acc": "valid/accuracy",
    "test_loss": "test/ce",
    "test_acc": "test/accuracy",
}


class ForeignData(L.LightningDataModule):
    """Stock, shuffling DataLoaders, validation included: they draw from the global generator."""

    def setup(self, stage: str) -> None:
        data = ImageDataModule(dataset="Digits", train_size=250, val_size=100)
        data.setup("fit")
        data.setup("test")
        self.splits = {
            "train": _as_dataset(data.train_dataloader()),
            "val": _as_dataset(data.val_dataloader()),
            "test": _as_dataset(data.test_dataloader()),
        }

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.splits["train"], batch_size=40, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.splits["val"], batch_size=60, shuffle=True)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.splits["test"], batch_size=200)


def _as_dataset(loader: Any) -> TensorDataset:
    images, targets = zip(*loader, strict=True)
    return TensorDataset(torch.cat(images), torch.cat(targets))


def mlp(**settings: Any) -> ImageClassifier:
    """A fully connected classifier of Digits."""
    settings.setdefault("optimizer", lambda parameters: torch.optim.Adam(parameters, lr=2e-3))
    settings.setdefault("init", "glorot_normal")
    return ImageClassifier(MLP([40, 20], **DIGITS), **DIGITS, **settings)


def resnet(**settings: Any) -> ImageClassifier:
    """A residual classifier of Digits, with batch norm, momentum, weight decay and a schedule."""
    settings.setdefault(
        "optimizer", lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3)
    )
    settings.setdefault("init", "glorot_normal")
    settings.setdefault("lr_scheduler", lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5))
    return ImageClassifier(ResNet(depth=8, width=4, **DIGITS), **DIGITS, **settings)


def digits(**settings: Any) -> ImageDataModule:
    """250 training images of Digits in batches of 40: 7 steps an epoch, the last batch partial."""
    return ImageDataModule(**{"dataset": "Digits", "train_size": 250, "val_size": 100, "batch_size": 40, **settings})


needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="kernels need a C compiler"
)


ARCHITECTURES: dict[
    str, tuple[Callable[[], L.LightningModule], Callable[[], L.LightningDataModule], dict[str, Any]]
] = {
    "mlp": (mlp, digits, {}),
    "resnet": (resnet, digits, {}),
    "foreign": (ForeignModule, ForeignData, {"metrics": FOREIGN_METRICS}),
}


@pytest.fixture(scope="module")
def shared_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, "Fit"]]:
    """A folder, and the runs of the module whose tests only read them."""
    return tmp_path_factory.mktemp("shared"), {}


@pytest.fixture(params=[pytest.param(name, marks=weekly if name == "resnet" else ()) for name in ARCHITECTURES])
def experiment(
    request: pytest.FixtureRequest, tmp_path: Path, shared_runs: tuple[Path, dict[str, "Fit"]]
) -> Callable[..., "Fit"]:
    """`experiment(rounds=2, …)` runs the lottery on one of ARCHITECTURES and returns what was seen.

    The residual network, whose steps take three times as long, has nothing that one of the others lacks.
    `experiment.shared(rounds=2, …)` does it once a module, for tests that only read.
    """
    module, data, settings = ARCHITECTURES[request.param]

    def run(folder: str | Path = "run", **given: Any) -> "Fit":
        torch.manual_seed(0)
        done = fit(module(), data(), tmp_path / folder, **{**settings, **given})
        done.make_module, done.make_data = module, data
        return done

    def shared(**given: Any) -> "Fit":
        folder, known = shared_runs
        key = f"{request.param}, {given}"
        if key not in known:
            known[key] = run(folder / str(len(known)), **given)
        return known[key]

    run.shared = shared  # type: ignore[attr-defined]
    run.val_loss = settings.get("metrics", {}).get("val_loss", "val_loss")  # type: ignore[attr-defined]
    return run


def of_experiments(usual: Collection[tuple[Any, ...]], **values: Collection[Any]) -> pytest.MarkDecorator:
    """Parametrize a test by `experiment` and more: each combination, but for those in `usual` once a week."""
    cases = itertools.product(ARCHITECTURES, *values.values())
    params = [pytest.param(*case, id="-".join(map(str, case)), marks=() if case in usual else weekly) for case in cases]
    return pytest.mark.parametrize(("experiment", *values), params, indirect=["experiment"])


class Witness(L.Callback):
    """Copies what each network starts with, and hears of its end."""

    def __init__(self) -> None:
        self.starts: list[State] = []
        self.titles: list[str] = []
        self.rates: list[float] = []
        self.momentum: list[int] = []

    def on_network_start(self, trainer: L.Trainer, module: L.LightningModule, network: Any, density: float) -> None:
        self.starts.append(copies(module))
        self.titles.append(network.title(density))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.momentum.append(len(trainer.optimizers[0].state))


class Fit:
    """A finished fit: the callback, the module, the trainer and what the witness saw."""

    def __init__(self, lottery: LotteryTicket, module: L.LightningModule, trainer: L.Trainer, witness: Witness) -> None:
        self.lottery, self.module, self.trainer, self.witness = lottery, module, trainer, witness
        self.rows = lottery.results
        self.make_module: Callable[[], L.LightningModule] = mlp
        self.make_data: Callable[[], L.LightningDataModule] = digits

    def start(self, round: int, variant: str = "ticket", replicate: int = 0) -> State:
        """What that network started from."""
        return self.witness.starts[self.lottery.plan.index(TrainedNetwork(round, variant, replicate))]

    def ticket(self, round: int) -> Ticket:
        return Ticket.load(self.lottery.folder.ticket(round))


def fit(
    module: L.LightningModule,
    data: Any,
    run_dir: Path,
    *,
    trainer: dict[str, Any] | None = None,
    ckpt_path: Path | None = None,
    callbacks: tuple[L.Callback, ...] = (),
    **lottery: Any,
) -> Fit:
    """One fit of the lottery, its files in `run_dir`."""
    settings: dict[str, Any] = {"rounds": 2, "train_for": "10it", "seed": 7, **lottery}
    callback, witness = LotteryTicket(run_dir=run_dir, **settings), Witness()
    fitter = make_trainer(callbacks=[callback, witness, *callbacks], **(trainer or {}))
    fitter.fit(module, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return Fit(callback, module, fitter, witness)


def make_trainer(**settings: Any) -> L.Trainer:
    """A quiet Trainer on the CPU."""
    return L.Trainer(
        **{
            "accelerator": "cpu",
            "max_epochs": -1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            **settings,
        }
    )


STEPS_PER_EPOCH = 7  # of ForeignData and digits()


def train_by_hand(
    run: "Fit", start: State, masks: Masks, first_step: int, last_step: int, order: int, clip: float | None = None
) -> State:
    """The reference for a round: a plain PyTorch loop, without Lightning's Trainer and without our callback.

    Args:
        run: the fit whose architecture, data and seed are meant.
        start: the weights to start from.
        masks: pruned weights are kept at 0 by multiplication, gradients too.
        first_step: the step of the schedule to start at; the epoch it lies in is entered in its middle.
        last_step: the step to stop after.
        order: the round whose order of the data is meant.
        clip: the norm that gradients are clipped to.
    """
    module, data = run.make_module(), run.make_data()
    data.setup("fit")
    load_state(module, start)
    module.train()
    optimizer, scheduler = _optimizer_and_scheduler(module)
    weights = {name: parameter for name, parameter in module.named_parameters() if name in masks}
    step, epoch = first_step, first_step // STEPS_PER_EPOCH
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a schedule that moves before its optimizer: here it must
        for _ in range(epoch if scheduler else 0):
            scheduler.step()
    while step < last_step:
        torch.manual_seed(derive_seed(run.lottery.seed_in_use, "epoch", order, epoch))
        loader = data.train_dataloader()
        if isinstance(loader, TensorLoader):
            seed = derive_seed(run.lottery.seed_in_use, "order", order)
            loader.seek(epoch, step - epoch * STEPS_PER_EPOCH, seed)
        if isinstance(module, ImageClassifier):
            module.train_loss.reset()
        for i, batch in zip(range(step, min(last_step, (epoch + 1) * STEPS_PER_EPOCH)), loader, strict=False):
            optimizer.zero_grad()
            module.training_step(batch, i).backward()
            for name, weight in weights.items():
                weight.grad *= masks[name]
            if clip is not None:
                nn.utils.clip_grad_norm_(module.parameters(), clip)
            optimizer.step()
            for name, weight in weights.items():
                weight.data *= masks[name]
            step += 1
        epoch += 1
        if scheduler and step == epoch * STEPS_PER_EPOCH:
            scheduler.step()
    return copies(module)


def _optimizer_and_scheduler(module: L.LightningModule) -> tuple[torch.optim.Optimizer, Any]:
    match module.configure_optimizers():
        case {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler}}:
            return optimizer, scheduler
        case [[optimizer], [{"scheduler": scheduler}]]:
            return optimizer, scheduler
        case optimizer:
            return optimizer, None


def copies(module: nn.Module) -> State:
    return {name: value.detach().clone() for name, value in full_state(module).items()}


def assert_same(ours: State, theirs: State) -> None:
    """Equal bit for bit, name by name."""
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


class Order(L.Callback):
    """The targets of every batch that a network saw."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def on_network_start(self, *_: Any) -> None:
        self.seen.append([])

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, _: int) -> None:
        self.seen[-1] += batch[1].tolist()


class Cut(L.Callback):
    """Ends a fit in the middle of its n-th batch, as a crash would."""

    def __init__(self, batch: int) -> None:
        self.left = batch

    def on_train_batch_end(self, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise RuntimeError("cut")


def assert_equal_runs(one: Path, other: Path) -> None:
    """In all but the seconds it took."""
    for name in ("results.csv", "layers.csv"):
        with open(one / name) as ours, open(other / name) as theirs:
            first, second = (
                [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(f)] for f in (ours, theirs)
            )
        assert first == second
    for folder in ("tickets", "curves"):
        names = sorted(path.name for path in (one / folder).iterdir())
        assert names == sorted(path.name for path in (other / folder).iterdir())
        for name in names:
            assert (one / folder / name).read_bytes() == (other / folder / name).read_bytes()


def assert_same_pages(one: Path, other: Path) -> None:
    """In TensorBoard, but for the time: the same tags in the same sub-runs, with the same steps and values. And there
    are no more files than in the other."""
    assert _pages(one) == _pages(other)
    assert _files(one) == _files(other)


def _pages(run: Path) -> dict[str, list[tuple[str, int, bytes]]]:
    found: dict[str, list[tuple[str, int, bytes]]] = {}
    for path in (run / "tensorboard").rglob("events.out.tfevents.*"):
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if not value.tag.startswith("figures/"):  # drawn as often as time allows
                    has_time = value.tag.startswith("_hparams_/session")
                    content = b"" if has_time else value.SerializeToString(deterministic=True)
                    found.setdefault(path.parent.name, []).append((value.tag, event.step, content))
    return {name: sorted(found[name]) for name in sorted(found)}


def _files(run: Path) -> list[str]:
    paths = [path for path in run.rglob("*") if "events.out" not in path.name and path.name != "log.txt"]
    return sorted(str(path.relative_to(run)) for path in paths)
