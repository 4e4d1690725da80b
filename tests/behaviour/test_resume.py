"""A run that is cut inside an epoch goes on there, to the same end; one that cannot is refused.

Tried, each cut inside an epoch and at the start of one, and compared byte for byte with a run that was not:

- Loaders, logged means, accumulated gradients, schedules, manual optimization, evaluations: `CASES`.
- Float64, with and without an average; buffers that grow, appear, become None or change dtype, persistent or not;
  evaluation mode and frozen weights; what `on_train_start` began; MinMaxMetric, MetricTracker, Running: `COMES_BACK`.
- Also by hand: bfloat16, torch.compile, shared buffers, metric collections and list states, EMA: the same bytes.
- Attributes that no checkpoint holds, of the module or of a metric: named. A layer that training creates: refused.
- SAM, whose inner momentum no `state_dict` holds: refused (tests/trainer/test_restart.py).
"""

import collections
import csv
import functools
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from conftest import (
    FOREIGN_METRICS,
    THOROUGH,
    Cut,
    ForeignData,
    ForeignModule,
    assert_equal_runs,
    assert_same,
    copies,
    digits,
    fit,
    mlp,
    resnet,
    weekly,
)
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint, Timer
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler
from torchmetrics import MeanMetric, MetricCollection, MetricTracker, MinMaxMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from torchmetrics.wrappers import Running

from lth_lightning import ImageDataModule, Pruning, SettingError

# ------------------------------------------------------------------------ inside an epoch


class Measured(ForeignModule):
    """Logs means and a torchmetric over the training epoch, draws dropout, follows a plateau inside the epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.hits = MulticlassAccuracy(10)
        self.register_buffer("drift", torch.zeros(()), persistent=False)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        logits = self.body(batch[0])
        self.drift += 0.01
        loss = F.cross_entropy(logits, batch[1], label_smoothing=float(self.drift) % 0.5)
        self.hits(logits, batch[1])
        self.log("loss", loss, on_step=False, on_epoch=True)
        self.log("worst", loss, on_step=False, on_epoch=True, reduce_fx="max")
        if batch_idx < 2:
            self.log("early", loss * batch_idx, on_step=False, on_epoch=True)
        return loss

    def on_train_epoch_end(self) -> None:
        known = self.trainer.callback_metrics
        self.log("train_all", known["loss"] + known["worst"] + known["early"] + self.hits.compute())
        self.hits.reset()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.7)
        schedule = {"scheduler": plateau, "monitor": "valid/ce", "interval": "step", "frequency": 2, "strict": False}
        return {"optimizer": optimizer, "lr_scheduler": schedule}


class Jittered(Dataset):
    """A set whose images are drawn anew whenever they are read, from the global generator, as transforms do."""

    def __init__(self, images: Tensor, targets: Tensor) -> None:
        self.images, self.targets = images, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.images[i] + 0.1 * torch.randn(self.images[i].shape), self.targets[i]


class JitteredData(ForeignData):
    def train_dataloader(self) -> DataLoader:
        return DataLoader(Jittered(*self.splits["train"].tensors), batch_size=40, shuffle=True)


class Stream(IterableDataset):
    """Without a length: Lightning draws a batch ahead."""

    def __init__(self, images: Tensor, targets: Tensor) -> None:
        self.examples = Jittered(images, targets)

    def __iter__(self) -> Any:
        return (self.examples[i] for i in torch.randperm(len(self.examples)).tolist())


class StreamData(ForeignData):
    def train_dataloader(self) -> DataLoader:
        return DataLoader(Stream(*self.splits["train"].tensors), batch_size=40)


class OwnGeneratorData(ForeignData):
    def train_dataloader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(5)
        return DataLoader(self.splits["train"], batch_size=40, shuffle=True, generator=generator)


class BatchSamplerData(ForeignData):
    """Its order hangs on a generator two samplers deep."""

    def train_dataloader(self) -> DataLoader:
        sampler = RandomSampler(self.splits["train"], generator=torch.Generator().manual_seed(5))
        return DataLoader(self.splits["train"], batch_sampler=BatchSampler(sampler, 40, drop_last=False))


class Placed:
    """A loader that keeps its own place, as torchdata's does."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches, self.place, self.loaded = batches, 0, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        self.place, self.loaded = self.loaded, 0
        for batch in self.batches[self.place :]:
            self.place += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"place": self.place}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.loaded = state["place"]


class PlacedData(ForeignData):
    def train_dataloader(self) -> Any:
        return Placed(list(DataLoader(self.splits["train"], batch_size=40)))


class WorkerData(ForeignData):
    """Its workers live on from epoch to epoch, and draw."""

    def train_dataloader(self) -> DataLoader:
        data = Jittered(*self.splits["train"].tensors)
        return DataLoader(data, batch_size=40, shuffle=True, num_workers=1, persistent_workers=True)


class Manual(ForeignModule):
    """Steps every second batch, by hand: gradients wait between two batches."""

    automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.manual_backward(F.cross_entropy(self.body(batch[0]), batch[1]))
        if batch_idx % 2:
            optimizer = self.optimizers()
            optimizer.step()
            optimizer.zero_grad()


class Patient(ForeignModule):
    """Its schedule follows a validation that is an epoch old every second time."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.7)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "valid/ce", "strict": False}}


class TwoLoaders(ForeignData):
    """Two of our own at once, of unlike lengths: the shorter one begins again."""

    def train_dataloader(self) -> dict[str, Any]:
        loaders = {}
        for name, size in (("first", 250), ("second", 90)):
            data = digits(train_size=size)
            data.setup("fit")
            loaders[name] = data.train_dataloader()
        return loaders


class Pairs(ForeignModule):
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return super().training_step(batch["first"], batch_idx) + super().training_step(batch["second"], batch_idx)


def augmented() -> ImageDataModule:
    return digits(augment=True)


CASES: dict[str, tuple[Callable[[], Any], Callable[[], Any], dict[str, Any], dict[str, Any]]] = {
    "mlp": (mlp, digits, {}, {}),
    "batch norm, schedule and augmentation": (resnet, augmented, {}, {"val_check_interval": 3}),
    "stock loader and dropout": (ForeignModule, ForeignData, {"metrics": FOREIGN_METRICS}, {}),
    "plateau inside the epoch and training metrics": (
        Measured,
        JitteredData,
        {"metrics": {**FOREIGN_METRICS, "train_loss": "train_all"}, "rewind_to": "4it"},
        {"val_check_interval": 2},
    ),
    "loader without a length": (
        ForeignModule,
        StreamData,
        {"metrics": FOREIGN_METRICS, "rewind_to": "0it"},
        {"val_check_interval": 4},
    ),
    "loader with a generator of its own": (ForeignModule, OwnGeneratorData, {"metrics": FOREIGN_METRICS}, {}),
    "a generator two samplers deep": (ForeignModule, BatchSamplerData, {"metrics": FOREIGN_METRICS}, {}),
    "a loader that keeps its own place": (ForeignModule, PlacedData, {"metrics": FOREIGN_METRICS}, {}),
    "accumulation": (resnet, digits, {"rewind_to": "3it"}, {"accumulate_grad_batches": 2}),
    "plateau that follows an older validation": (
        Patient,
        ForeignData,
        {"metrics": FOREIGN_METRICS, "rewind_to": "0it", "train_for": "24it"},
        {"check_val_every_n_epoch": 2},
    ),
    "manual optimization": (Manual, ForeignData, {"metrics": FOREIGN_METRICS}, {}),
    "two loaders": (Pairs, TwoLoaders, {"metrics": FOREIGN_METRICS, "rewind_to": "0it"}, {}),
    "evaluation by steps": (mlp, digits, {}, {"val_check_interval": 3, "check_val_every_n_epoch": None}),
}
LIKE_ANOTHER = ("a generator two samplers deep", "mlp")  # as one's own, as with evaluation by steps


@pytest.mark.filterwarnings("ignore:ReduceLROnPlateau conditioned on metric valid/ce which is not available")
@pytest.mark.parametrize("case", [pytest.param(one, marks=weekly if one in LIKE_ANOTHER else ()) for one in CASES])
def test_a_run_goes_on_inside_an_epoch_to_the_same_end(
    tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    make_module, make_data, lottery, trainer = CASES[case]
    every = (1 if THOROUGH else 3) + list(CASES).index(case) % 2
    settings: dict[str, Any] = {
        **{"rounds": 1, "train_for": "17it", "rewind_to": "5it", "controls": ["random_reinit"] if THOROUGH else []},
        **lottery,
    }

    def run(folder: str, **given: Any) -> Any:
        torch.manual_seed(0)
        return fit(make_module(), make_data(), tmp_path / folder, trainer=trainer, **settings, **given)

    whole = run("whole")
    checkpoint = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    places = []
    for batches in (4, 9, 8, 11) if THOROUGH else (12, 15):  # each beyond the place that it goes on from
        with pytest.raises(RuntimeError, match="cut"):
            run(
                "cut",
                ckpt_path=checkpoint if places else None,
                callbacks=(Cut(batches),),
                checkpoint_every_n_train_steps=every,
            )
        places.append(torch.load(checkpoint, weights_only=True)["callbacks"]["LotteryTicket"]["moment"][0])
    resumed = run("cut", ckpt_path=checkpoint, checkpoint_every_n_train_steps=every)
    assert any(place["inside_epoch"] for place in places)
    assert_equal_runs(whole.lottery.folder.path, resumed.lottery.folder.path)
    assert_same(copies(whole.module), copies(resumed.module))
    assert "the checkpoint does not hold" not in caplog.text


def test_a_run_without_a_seed_goes_on_with_the_one_it_had(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"seed": None, "controls": ["random_mask"]}
    whole = fit(mlp(), digits(), tmp_path / "whole", **settings)
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match="cut"):
        fit(mlp(), digits(), tmp_path / "cut", callbacks=(Cut(12),), **settings)
    torch.manual_seed(99)
    fit(mlp(), digits(), tmp_path / "cut", ckpt_path=tmp_path / "cut" / "checkpoints" / "last.ckpt", **settings)
    assert_equal_runs(whole.lottery.folder.path, tmp_path / "cut")


def test_workers_that_live_on_draw_alike_after_a_resume(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"metrics": FOREIGN_METRICS, "rounds": 1, "checkpoint_every_n_train_steps": 2}
    whole = fit(ForeignModule(), WorkerData(), tmp_path / "whole", **settings)
    for batches, checkpoint in ((13, None), (4, tmp_path / "cut" / "checkpoints" / "last.ckpt")):
        torch.manual_seed(0)
        with pytest.raises(RuntimeError, match="cut"):
            fit(
                ForeignModule(),
                WorkerData(),
                tmp_path / "cut",
                callbacks=(Cut(batches),),
                ckpt_path=checkpoint,
                **settings,
            )
    fit(ForeignModule(), WorkerData(), tmp_path / "cut", ckpt_path=checkpoint, **settings)
    assert_equal_runs(whole.lottery.folder.path, tmp_path / "cut")


class DrawsItself(ForeignModule):
    def training_step(self, dataloader_iter: Any) -> Tensor:
        batch, _, _ = next(dataloader_iter)
        return F.cross_entropy(self.body(batch[0]), batch[1])


@pytest.mark.filterwarnings("ignore:.*`dataloader_iter`")
def test_a_module_that_draws_its_batches_itself_goes_on_from_an_epochs_start(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"metrics": FOREIGN_METRICS, "rounds": 1, "train_for": "17it"}
    whole = fit(DrawsItself(), ForeignData(), tmp_path / "whole", **settings)
    torch.manual_seed(0)
    settings["checkpoint_every_n_train_steps"] = 1
    with pytest.raises(RuntimeError, match="cut"):
        fit(DrawsItself(), ForeignData(), tmp_path / "cut", callbacks=(Cut(12),), **settings)
    checkpoint = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    fit(DrawsItself(), ForeignData(), tmp_path / "cut", ckpt_path=checkpoint, **settings)
    assert_equal_runs(whole.lottery.folder.path, tmp_path / "cut")


class Kill(L.Callback):
    """What a scheduler does to a job, after the n-th batch, or in the n-th validation."""

    def __init__(self, after_batches: int = 0, in_validation: int = 0) -> None:
        self.batches, self.validations = after_batches, in_validation

    def on_train_batch_end(self, *_: Any) -> None:
        self.batches -= 1
        if self.batches == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_validation_start(self, *_: Any) -> None:
        self.validations -= 1
        if self.validations == 0:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(scope="module")
def uncut(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Any]:
    """`uncut(accumulate)`: the run that nobody stops."""
    return functools.cache(lambda accumulate: _foreign_run(tmp_path_factory.mktemp("uncut"), accumulate))


def _foreign_run(folder: Path, accumulate: int, **given: Any) -> Any:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"rounds": 1, "train_for": "17it", "metrics": FOREIGN_METRICS}
    trainer = {"accumulate_grad_batches": accumulate}
    return fit(ForeignModule(), ForeignData(), folder, trainer=trainer, **settings, **given)


@pytest.mark.parametrize(
    ("kill", "place", "accumulate"),
    [
        ({"after_batches": 3}, (0, 3), 1),
        ({"after_batches": 7}, (1, 0), 1),  # the last of an epoch
        ({"after_batches": 11}, (1, 4), 3),  # while gradients of two batches wait for their step
        ({"after_batches": 17}, (3, 0), 1),  # the last of a round
        ({"after_batches": 19}, (0, 2), 1),  # in the next network
        ({"in_validation": 2}, (2, 0), 1),  # which is brought to its end
    ],
)
def test_sigterm_leaves_a_checkpoint_of_that_very_batch(
    tmp_path: Path, kill: dict[str, int], place: tuple[int, int], accumulate: int, uncut: Callable[[int], Any]
) -> None:
    with pytest.raises(SystemExit):
        _foreign_run(tmp_path, accumulate, callbacks=(Kill(**kill),))
    checkpoint = tmp_path / "checkpoints" / "last.ckpt"
    progress = torch.load(checkpoint, weights_only=True)["loops"]["fit_loop"]
    epoch, batch = progress["epoch_progress"]["current"], progress["epoch_loop.batch_progress"]["current"]
    assert (epoch["processed"], batch["completed"] if epoch["ready"] > epoch["processed"] else 0) == place
    _foreign_run(tmp_path, accumulate, ckpt_path=checkpoint)
    assert_equal_runs(uncut(accumulate).lottery.folder.path, tmp_path)


def test_a_run_out_of_time_goes_on_at_the_batch_where_it_stopped(tmp_path: Path) -> None:
    class Clock(L.Callback):
        """Takes a while for the first batch, and lets Lightning's timer run out in the n-th."""

        def __init__(self, last: int | None) -> None:
            self.batches, self.last = 0, last

        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            self.batches += 1
            if self.batches == 1:
                time.sleep(0.2)
            if self.batches == self.last:
                (timer,) = (callback for callback in trainer.callbacks if isinstance(callback, Timer))
                timer._duration = 0.0

    settings: dict[str, Any] = {"rounds": 1, "train_for": "40it", "trainer": {"max_time": {"hours": 1}}}
    whole = fit(mlp(), digits(batch_size=7), tmp_path / "whole", **settings)
    torch.manual_seed(0)
    first, second = Clock(17), Clock(None)
    fit(mlp(), digits(batch_size=7), tmp_path / "cut", callbacks=(first,), **settings)
    checkpoint = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    fit(mlp(), digits(batch_size=7), tmp_path / "cut", callbacks=(second,), ckpt_path=checkpoint, **settings)
    assert (first.batches, second.batches) == (17, 80 - 17), "inside the first epoch, and no batch twice"
    assert_equal_runs(whole.lottery.folder.path, tmp_path / "cut")
    with open(tmp_path / "cut" / "results.csv") as file:
        assert float(next(csv.DictReader(file))["seconds"]) > 2 * 0.2, "both parts of round 0"


def test_time_that_is_up_before_a_resumed_run_begins_cuts_no_network_short(tmp_path: Path) -> None:
    """Lightning's timer counts all of a run, and says stop before the first batch."""
    whole = fit(mlp(), digits(), tmp_path / "whole", rounds=1)
    torch.manual_seed(0)
    hour, none = {"max_time": {"hours": 1}}, {"max_time": {"seconds": 0}}
    with pytest.raises(RuntimeError, match="cut"):
        fit(mlp(), digits(), tmp_path / "cut", rounds=1, trainer=hour, callbacks=(Cut(9),))
    checkpoint = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    for _ in range(2):
        assert not fit(mlp(), digits(), tmp_path / "cut", rounds=1, trainer=none, ckpt_path=checkpoint).rows
    fit(mlp(), digits(), tmp_path / "cut", rounds=1, trainer=hour, ckpt_path=checkpoint)
    assert_equal_runs(whole.lottery.folder.path, tmp_path / "cut")


def test_a_timer_by_epochs_ends_the_fit_and_not_the_network(tmp_path: Path) -> None:
    timer = Timer({"seconds": 0}, interval="epoch")
    run = fit(mlp(), digits(), tmp_path / "cut", train_for="21it", callbacks=(timer,))
    assert not run.rows
    torch.manual_seed(0)
    whole = fit(mlp(), digits(), tmp_path / "whole", train_for="21it")
    checkpoint = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    timer = Timer({"hours": 1}, interval="epoch")
    fit(mlp(), digits(), tmp_path / "cut", train_for="21it", callbacks=(timer,), ckpt_path=checkpoint)
    assert_equal_runs(whole.lottery.folder.path, tmp_path / "cut")


def test_sigterm_does_not_undo_an_early_stop(tmp_path: Path) -> None:
    class KillAtEpochsEnd(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.current_epoch == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    def stopper() -> EarlyStopping:
        return EarlyStopping("train_loss", patience=1, min_delta=100.0, check_on_train_epoch_end=True)

    settings: dict[str, Any] = {"rounds": 1, "train_for": "28it"}
    whole = fit(mlp(), digits(), tmp_path / "whole", callbacks=(stopper(),), **settings)
    torch.manual_seed(0)
    with pytest.raises(SystemExit):
        fit(mlp(), digits(), tmp_path / "cut", callbacks=(stopper(), KillAtEpochsEnd()), **settings)
    checkpoint = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    resumed = fit(mlp(), digits(), tmp_path / "cut", callbacks=(stopper(),), ckpt_path=checkpoint, **settings)
    assert [row.steps for row in resumed.rows] == [14, 14]
    assert_equal_runs(whole.lottery.folder.path, tmp_path / "cut")


# ------------------------------------------------------------------------ what a module is, beyond its weights


class Steady(ForeignModule):
    """A small one; its loss depends on what a subclass keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 10))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        logits = self.body(batch[0])
        return F.cross_entropy(logits + self.keep(logits.detach(), batch[1]), batch[1])

    def keep(self, logits: Tensor, targets: Tensor) -> Any:
        return 0.0


class Bank(Steady):
    """A buffer that grows with each batch."""

    def __init__(self, persistent: bool = True) -> None:
        super().__init__()
        self.register_buffer("bank", torch.zeros(0, 10), persistent=persistent)

    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.bank = torch.cat([self.bank, logits.mean(0, keepdim=True)])
        return self.bank.mean(0)


class Centre(Steady):
    """A buffer that is None until the first batch, then float64, and None again after the ninth of a network."""

    def __init__(self, persistent: bool = True) -> None:
        super().__init__()
        self.register_buffer("centre", None, persistent=persistent)
        self.register_buffer("first", torch.zeros(10), persistent=persistent)

    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.centre = logits.mean(0).double() if self.centre is None else (self.centre + logits.mean(0)) / 2
        if self.trainer.global_step == 3:
            self.first = None
        return self.centre.float() + (1.0 if self.first is None else 0.0)


class Late(Steady):
    """A buffer that its first batch registers, and that each network therefore starts without."""

    persistent = True

    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        if not hasattr(self, "centre"):
            self.register_buffer("centre", torch.ones(10), persistent=self.persistent)
        self.centre = 0.5 * self.centre + logits.mean(0)
        return self.centre


class LateUnsaved(Late):
    persistent = False


class Modes(Steady):
    """Batch norm in evaluation mode and a frozen layer, in every second epoch."""

    def on_train_epoch_start(self) -> None:
        self.body[2].train(self.current_epoch % 2 == 0)
        self.body[1].requires_grad_(self.current_epoch % 2 == 0)


class StartsOnce(Steady):
    """Its `on_train_start` begins something that training goes on with."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("age", torch.zeros(()))

    def on_train_start(self) -> None:
        self.age.zero_()
        self.body[2].eval()

    def on_train_batch_end(self, *_: Any) -> None:
        self.body[2].train()

    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.age += 1
        return self.age * torch.arange(10) / 100


class Extremes(Steady):
    def __init__(self) -> None:
        super().__init__()
        self.metric = MinMaxMetric(MulticlassAccuracy(10))

    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.metric.update(logits, targets)
        return sum(self.metric.compute().values()) * torch.arange(10) / 10


class Tracked(Extremes):
    def __init__(self) -> None:
        super().__init__()
        self.metric = MetricTracker(MetricCollection([MulticlassAccuracy(10), MulticlassF1Score(10)]), [True, True])

    def on_train_epoch_start(self) -> None:
        self.metric.increment()

    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.metric.update(logits, targets)
        best = self.metric.best_metric()
        return (best["MulticlassAccuracy"] + best["MulticlassF1Score"]) * torch.arange(10) / 10


class Recent(Extremes):
    def __init__(self) -> None:
        super().__init__()
        self.metric = Running(MeanMetric(), window=3)

    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        self.metric.update(logits)
        return self.metric.compute() * torch.arange(10)


VALIDATION = {name: FOREIGN_METRICS[name] for name in ("val_loss", "val_acc")}
COMES_BACK: dict[str, tuple[Callable[[], L.LightningModule], dict[str, Any]]] = {
    "float64": (Steady, {"precision": "64-true"}),
    "an average of float64": (Steady, {"precision": "64-true"}),
    "a buffer that grows": (Bank, {}),
    "a buffer that grows and is in no state_dict": (lambda: Bank(persistent=False), {}),
    "buffers that become None, something and float64": (Centre, {}),
    "such buffers in no state_dict": (lambda: Centre(persistent=False), {}),
    "a buffer that appears": (Late, {}),
    "a buffer that appears in no state_dict": (LateUnsaved, {}),
    "modes and frozen weights": (Modes, {}),
    "what on_train_start began": (StartsOnce, {}),
    "MinMaxMetric": (Extremes, {}),
    "MetricTracker": (Tracked, {}),
    "Running": (Recent, {}),
}


@pytest.mark.parametrize("case", COMES_BACK)
def test_all_that_a_module_was_comes_back(tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture) -> None:
    make, trainer = COMES_BACK[case]
    settings: dict[str, Any] = {"rounds": 1, "train_for": "9it", "evaluate_test": False, "trainer": trainer}

    def averages() -> list[L.Callback]:
        return [EMAWeightAveraging(decay=0.9)] if "average" in case else []

    def run(folder: str, *cut: L.Callback, **given: Any) -> Any:
        torch.manual_seed(0)
        data = digits(train_size=160, val_size=20)  # four batches
        callbacks = (*averages(), *cut)
        return fit(make(), data, tmp_path / folder, metrics=VALIDATION, callbacks=callbacks, **settings, **given)

    whole = run("whole")
    checkpoint = None
    for batches, every in ((7, 3), (9, None)):  # cut in the second epoch of each round; saved in it, or at its start
        with pytest.raises(RuntimeError, match="cut"):
            run("cut", Cut(batches), ckpt_path=checkpoint, checkpoint_every_n_train_steps=every)
        checkpoint = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    resumed = run("cut", ckpt_path=checkpoint)
    assert_equal_runs(whole.lottery.folder.path, tmp_path / "cut")
    assert_same(copies(whole.module), copies(resumed.module))
    assert "the checkpoint does not hold" not in caplog.text


def test_a_checkpoint_holds_weights_once_and_may_lack_what_older_versions_did_not_save(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"rounds": 1, "metrics": FOREIGN_METRICS, "checkpoint_every_n_train_steps": 2}
    whole = fit(ForeignModule(), ForeignData(), tmp_path / "whole", **settings)
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match="cut"):
        fit(ForeignModule(), ForeignData(), tmp_path / "cut", callbacks=(Cut(15),), **settings)
    path = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    size, checkpoint = path.stat().st_size, torch.load(path, weights_only=True)
    (moment,) = checkpoint["callbacks"]["LotteryTicket"]["moment"]
    for name in ("parameters", "persistent", "evaluating", "frozen", "attributes", "trackers"):
        del moment[name]
    torch.save(checkpoint, path)
    assert size - path.stat().st_size < 6_000 < sum(8 * weight.nbytes for weight in whole.module.parameters())
    fit(ForeignModule(), ForeignData(), tmp_path / "cut", ckpt_path=path, **settings)
    assert_equal_runs(whole.lottery.folder.path, tmp_path / "cut")


class Forgetful(Steady):
    """Keeps what training changes in plain attributes, and a list in its metric; saves one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.seen, self.saved, self.constant = 1.0, [0], 0, {"rate": 0.1}
        self.counts = Counted()

    def on_network_start(self, network: Any, density: float) -> None:
        self.scale, self.seen, self.saved = 1.0 + network.round, [], 0

    def keep(self, logits: Tensor, targets: Tensor) -> float:
        self.seen.append(len(targets))
        self.saved += 1
        self.counts.update(targets)
        return self.scale

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["saved"] = self.saved

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.saved = checkpoint["saved"]


class Counted(MeanMetric):
    """A metric that counts outside of its states, in a class that no checkpoint may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.times: collections.Counter[int] = collections.Counter()

    def update(self, values: Tensor) -> None:
        self.times.update(values.tolist())


class Grows(Steady):
    def keep(self, logits: Tensor, targets: Tensor) -> Tensor:
        if not hasattr(self, "late"):
            self.late = nn.BatchNorm1d(10, affine=False)
        return self.late(logits)


def test_a_layer_that_training_creates_is_named_at_the_resume(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"rounds": 0, "metrics": FOREIGN_METRICS}
    with pytest.raises(RuntimeError, match="cut"):
        fit(Grows(), ForeignData(), tmp_path, callbacks=(Cut(9),), **settings)
    with pytest.raises(SettingError, match="the checkpoint holds late.running_mean, but Grows has no late before"):
        fit(Grows(), ForeignData(), tmp_path, ckpt_path=tmp_path / "checkpoints" / "last.ckpt", **settings)


def test_attributes_that_no_checkpoint_holds_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings: dict[str, Any] = {"rounds": 1, "metrics": FOREIGN_METRICS}
    with pytest.raises(RuntimeError, match="cut"):
        fit(Forgetful(), ForeignData(), tmp_path, callbacks=(Cut(19),), **settings)
    caplog.clear()
    fit(Forgetful(), ForeignData(), tmp_path, ckpt_path=tmp_path / "checkpoints" / "last.ckpt", **settings)
    (words,) = [message for message in caplog.messages if "the checkpoint does not hold" in message]
    assert words.startswith(
        "Forgetful: the checkpoint does not hold scale (was 2.0, is 1.0), seen, counts.times. If a result depends on "
    )
    assert "on_save_checkpoint" in words


# ------------------------------------------------------------------------ what cannot be honest is refused


def changed(**settings: Any) -> Any:
    return lambda: resnet(**settings)


OTHERS: dict[str, tuple[Callable[[], Any], Callable[[], Any], dict[str, Any], str]] = {
    "length": (resnet, digits, {"train_for": "11it"}, r"lottery.train_for was 10it, is 11it\."),
    "seed": (resnet, digits, {"seed": 8}, r"seed was 7, is 8\."),
    "pruning": (resnet, digits, {"pruning": Pruning(rate=0.3)}, r"lottery.pruning.rate was 0.2, is 0.3\."),
    "controls": (resnet, digits, {"controls": ["random_mask"]}, r"lottery.controls was \[\], is \['random_mask'\]\."),
    "test data": (resnet, digits, {"evaluate_test": False}, r"lottery.evaluate_test was True, is False\."),
    "learning rate": (
        changed(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.06, momentum=0.9, weight_decay=1e-3)),
        digits,
        {},
        r"optimizer 0, group 0, lr was 0.05, is 0.06; .*group 0, initial_lr was 0.05, is 0.06",
    ),
    "optimizer": (
        changed(optimizer=torch.optim.Adam),
        digits,
        {},
        "optimizer 0 was SGD, is Adam",
    ),
    "schedule": (
        changed(lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.5)),
        digits,
        {},
        r"lr_scheduler 0, step_size was 2, is 3\.",
    ),
    "no schedule": (changed(lr_scheduler=None), digits, {}, "lr_scheduler 0 was StepLR by epoch, is not set"),
    "batch size": (resnet, lambda: digits(batch_size=41), {}, r"x processes\) was \[40\], is \[41\]\."),
    "data": (resnet, lambda: digits(train_size=300), {}, r"batches an epoch was 7, is 8\."),
    "clipping": (resnet, digits, {"trainer": {"gradient_clip_val": 1.0}}, r"gradient_clip_val was None, is 1.0"),
    "evaluation": (resnet, digits, {"trainer": {"val_check_interval": 2}}, r"val_check_interval was 1.0, is 2\."),
    "early stopping": (
        resnet,
        digits,
        {"callbacks": (EarlyStopping("val_loss"),)},
        "EarlyStopping, monitor was not set",
    ),
}


@pytest.fixture(scope="module")
def cut_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was cut in round 1."""
    folder = tmp_path_factory.mktemp("cut")
    with pytest.raises(RuntimeError, match="cut"):
        fit(resnet(), digits(), folder, callbacks=(Cut(12),))
    return folder


@pytest.mark.parametrize("other", OTHERS)
def test_a_resume_with_other_settings_is_refused_and_says_which(tmp_path: Path, cut_run: Path, other: str) -> None:
    run = Path(shutil.copytree(cut_run, tmp_path / "run"))
    module, data, settings, message = OTHERS[other]
    with pytest.raises(SettingError, match=message):
        fit(module(), data(), run, ckpt_path=run / "checkpoints" / "last.ckpt", **settings)
    for name in ("checkpoints/last.ckpt", "results.csv", "tickets/round_00.safetensors"):
        assert (run / name).read_bytes() == (cut_run / name).read_bytes()


def test_a_resume_with_the_same_settings_is_not(tmp_path: Path, cut_run: Path) -> None:
    run = Path(shutil.copytree(cut_run, tmp_path / "run"))
    assert len(fit(resnet(), digits(), run, ckpt_path=run / "checkpoints" / "last.ckpt").rows) == 3


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used")
@pytest.mark.parametrize(
    "moment", [{"every_n_train_steps": 3}, {"every_n_epochs": 1}, {"save_on_train_epoch_end": True}]
)
def test_a_checkpoint_of_another_callback_is_refused_to_go_on_from_and_can_be_tested(
    tmp_path: Path, moment: dict[str, Any]
) -> None:
    theirs = ModelCheckpoint(tmp_path / "theirs", save_last=True, **moment)
    run = fit(mlp(), digits(), tmp_path / "run", rounds=1, trainer={"enable_checkpointing": True}, callbacks=(theirs,))
    with pytest.raises(SettingError, match=r"another callback .*run/checkpoints/last\.ckpt"):
        fit(mlp(), digits(), tmp_path / "run", rounds=1, ckpt_path=Path(theirs.last_model_path))
    rows = list(run.rows)
    run.trainer.test(run.module, digits(), ckpt_path=theirs.last_model_path, weights_only=True, verbose=False)
    assert run.lottery.results == rows
