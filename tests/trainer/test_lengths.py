"""Lengths of rounds: `Nep` is N passes over the data, `Nit` N optimizer steps, whatever the Trainer is told beside.

What was tried, and what comes of it:

| setting | verdict |
| --- | --- |
| Trainer(accumulate_grad_batches=n), epochs shorter than n too | right |
| GradientAccumulationScheduler; rewinding to an epoch, into one, resumed inside one | right |
| ... with manual optimization | refused by Lightning in `on_train_start` |
| a callback or module that sets trainer.accumulate_grad_batches | refused at the first batch of another number |
| on_train_batch_start returns -1 | `Nep`: N passes; `Nit`: N steps; a rewind point behind it: refused when reached |
| max_epochs, max_steps, estimated_stepping_batches, in any hook, dense, rewound, resumed | the round's |
| ... of loaders without a length, in steps | max_epochs is -1, as in Lightning |
| loaders without a length: `Nep`, or rewinding to `Nep` | refused in `on_train_start` |
| loaders without a length: rewinding behind their first pass | refused when reached |
| val_check_interval: a time | refused: evaluations would lie at other steps each time |
| val_check_interval longer than a cut epoch, check_val_every_n_epoch than a round | right: evaluated at the end |
| limit_train_batches=0, training data without a batch | refused; Lightning would end the fit without a word |
| limit_val_batches=0, no validation_step, no validation data | said once: empty columns |
| overfit_batches with a DataLoader | right |
| overfit_batches with ImageDataModule, whose loader shuffles anew | refused in `on_train_start` |
| inference_mode, reload_dataloaders_every_n_epochs | right |
| reload_dataloaders_every_n_epochs, data of another size | in steps from step 0 right, else refused when reloaded |
| configure_optimizers gives None or [], manual optimization too | refused in `on_fit_start` |
| barebones | refused in `setup` |
| max_time shorter than a round | right: saved, to be resumed |
| Lightning's progress bars | `Epoch 0/1`, where it was `Epoch 0/-2` |
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import Cut, ForeignData, ForeignModule, assert_equal_runs, digits, fit, make_trainer, mlp, weekly
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lth_lightning import LotteryTicket, SettingError
from lth_lightning.trainer.lengths import Epochs, Place

# ------------------------------------------------------------------------ how steps fall into epochs


def steps_by_hand(batches: int, per_step: dict[int, int], epochs: int) -> Iterator[tuple[int, int]]:
    """Where training stands after each step: batch by batch, as Lightning does it."""
    for epoch in range(epochs):
        size = per_step[max(first for first in per_step if first <= epoch)]
        for batch in range(1, batches + 1):
            if batch == batches:
                yield epoch + 1, 0
            elif batch % size == 0:
                yield epoch, batch


@pytest.mark.parametrize("batches", [1, 3, 7, 8])
@pytest.mark.parametrize("per_step", [{0: 1}, {0: 4}, {0: 1, 1: 4}, {0: 3, 2: 1, 4: 9}])
def test_steps_fall_into_epochs_as_counted_by_hand(batches: int, per_step: dict[int, int]) -> None:
    epochs = Epochs(batches, per_step)
    places = [(0, 0), *steps_by_hand(batches, per_step, 7)]
    for step, (epoch, batch) in enumerate(places):
        assert epochs.place(step) == Place(epoch, batch)
        assert epochs.batches_before(step) == epoch * batches + batch
        assert epochs.epochs(step) == epoch + (batch > 0)
    for count in range(8):
        assert epochs.steps(count) == places.index((count, 0))


# ------------------------------------------------------------------------ accumulation that varies


class Passes(L.Callback):
    """(epoch, batches, steps) of each epoch of each network."""

    def __init__(self) -> None:
        self.seen: list[list[tuple[int, int, int]]] = []

    def on_network_start(self, *_: Any) -> None:
        self.seen.append([])

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.batches, self.step = 0, trainer.global_step

    def on_train_batch_end(self, *_: Any) -> None:
        self.batches += 1

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.seen[-1].append((trainer.current_epoch, self.batches, trainer.global_step - self.step))


# 7 batches an epoch: 7 steps, then 2 an epoch.
@pytest.mark.parametrize(
    ("lengths", "dense", "rewound"),
    [
        (("3ep", "0it"), [(0, 7, 7), (1, 7, 2), (2, 7, 2)], [(0, 7, 7), (1, 7, 2), (2, 7, 2)]),
        (("3ep", "2ep"), [(0, 7, 7), (1, 7, 2), (2, 7, 2)], [(2, 7, 2)]),
        (("3ep", "8it"), [(0, 7, 7), (1, 7, 2), (2, 7, 2)], [(1, 3, 1), (2, 7, 2)]),
        (("10it", "1ep"), [(0, 7, 7), (1, 7, 2), (2, 4, 1)], [(1, 7, 2), (2, 4, 1)]),
    ],
)
def test_accumulation_that_grows_leaves_rounds_as_long_as_they_were_asked_for(
    tmp_path: Path, lengths: tuple[str, str], dense: list[Any], rewound: list[Any]
) -> None:
    passes, accumulation = Passes(), GradientAccumulationScheduler({1: 4})
    train_for, rewind_to = lengths
    settings: dict[str, Any] = {
        "rounds": 1,
        "train_for": train_for,
        "rewind_to": rewind_to,
        "controls": ["random_mask"],
    }
    run = fit(mlp(), digits(), tmp_path, callbacks=(accumulation, passes), **settings)
    assert passes.seen == [dense, rewound, rewound]
    assert [row.steps for row in run.rows] == [sum(steps for *_, steps in seen) for seen in passes.seen]
    assert [run.lottery.experiment.planned_steps(network) for network in run.lottery.plan] == [
        row.steps for row in run.rows
    ]
    assert run.trainer.accumulate_grad_batches == 1


@pytest.mark.parametrize("cut_at", [pytest.param(9, marks=weekly), 14, pytest.param(16, marks=weekly), 26])
def test_a_resumed_run_accumulates_as_if_it_had_not_stopped(tmp_path: Path, cut_at: int) -> None:
    settings: dict[str, Any] = {"rounds": 1, "train_for": "2ep", "checkpoint_every_n_train_steps": 1}

    def run(folder: str, *more: L.Callback, **rest: Any) -> None:
        torch.manual_seed(0)
        accumulation = GradientAccumulationScheduler({0: 2, 1: 3})
        fit(mlp(), digits(), tmp_path / folder, callbacks=(accumulation, *more), **settings, **rest)

    run("whole")
    with pytest.raises(RuntimeError, match="cut"):
        run("cut", Cut(cut_at))
    run("cut", ckpt_path=tmp_path / "cut" / "checkpoints" / "last.ckpt")
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_another_accumulation_is_another_run(tmp_path: Path) -> None:
    def run(**settings: Any) -> None:
        accumulation = GradientAccumulationScheduler({0: settings.pop("every")})
        fit(mlp(), digits(), tmp_path, rounds=0, train_for="2ep", callbacks=(accumulation,), **settings)

    run(every=2)
    with pytest.raises(SettingError, match=r"by first epoch was \{0: 2\}, is \{0: 3\}"):
        run(every=3, ckpt_path=tmp_path / "checkpoints" / "last.ckpt")


class Accumulates(L.Callback):
    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        trainer.accumulate_grad_batches = 1 + trainer.current_epoch


def test_accumulation_that_nobody_could_foresee_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"accumulate_grad_batches must be 1 in epoch 1, got 2.*GradientAcc"):
        fit(mlp(), digits(), tmp_path, train_for="3ep", callbacks=(Accumulates(),))


@pytest.mark.filterwarnings("ignore:.*`on_train_batch_start` is overridden")
def test_an_epoch_is_one_even_if_the_module_leaves_it_early(tmp_path: Path) -> None:
    class Leaves(ForeignModule):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 4 else None

    passes = Passes()
    fit(Leaves(), ForeignData(), tmp_path / "a", rounds=1, train_for="3ep", callbacks=(passes,))
    assert passes.seen == [[(0, 4, 4), (1, 4, 4), (2, 4, 4)]] * 2
    with pytest.raises(
        SettingError, match="step 9 was expected after 2 batches of epoch 1, but came after 1 .* epoch 2"
    ):
        fit(Leaves(), ForeignData(), tmp_path / "b", rounds=1, train_for="20it", rewind_to="9it")


# ------------------------------------------------------------------------ what the trainer says


class Plans(ForeignModule):
    """Notes in every hook what it could plan by."""

    def __init__(self) -> None:
        super().__init__()
        self.noted: dict[str, set[tuple[Any, ...]]] = {}

    def _note(self, hook: str) -> None:
        trainer = self.trainer
        shown = (trainer.max_epochs, trainer.max_steps, trainer.estimated_stepping_batches)
        self.noted.setdefault(hook, set()).add(shown)

    def configure_optimizers(self) -> Any:
        self._note("configure_optimizers")
        return super().configure_optimizers()

    def on_fit_start(self) -> None:
        self._note("on_fit_start")

    def on_train_start(self) -> None:
        self._note("on_train_start")

    def on_train_epoch_start(self) -> None:
        self._note("on_train_epoch_start")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self._note("training_step")
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._note("validation_step")
        super().validation_step(batch, batch_idx)


HOOKS = ("configure_optimizers", "on_fit_start", "on_train_start", "on_train_epoch_start", "training_step")


class Stream(IterableDataset[Any]):
    """A data set without a length."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Any]:
        return (self.data[i] for i in range(len(self.data)))


class StreamedData(ForeignData):
    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Stream(self.splits["train"]), batch_size=40)


@pytest.mark.parametrize(
    ("train_for", "rewind_to", "accumulation", "shown"),
    [
        ("10it", "0it", None, (2, 10, 10)),
        ("3ep", "9it", None, (3, 21, 21)),
        ("3ep", "1ep", {1: 4}, (3, 11, 11)),
        ("10it", "3it", {0: 2}, (3, 10, 10)),
    ],
)
def test_the_trainer_shows_a_rounds_lengths_wherever_it_is_asked(
    tmp_path: Path, train_for: str, rewind_to: str, accumulation: dict[int, int] | None, shown: tuple[int, int, int]
) -> None:
    def run(folder: str, *more: L.Callback, **rest: Any) -> tuple[Plans, L.Trainer]:
        torch.manual_seed(0)
        module = Plans()
        callbacks = (GradientAccumulationScheduler(accumulation), *more) if accumulation else more
        settings: dict[str, Any] = {"rounds": 1, "train_for": train_for, "rewind_to": rewind_to, **rest}
        try:
            done = fit(module, ForeignData(), tmp_path / folder, callbacks=callbacks, **settings)
        except RuntimeError:
            return module, make_trainer()
        return module, done.trainer

    module, trainer = run("whole")
    assert module.noted == {hook: {shown} for hook in (*HOOKS, "validation_step")}
    assert type(trainer) is L.Trainer
    assert (trainer.max_epochs, trainer.max_steps) == (-1, -1)
    run("cut", Cut(12))
    module, _ = run("cut", ckpt_path=tmp_path / "cut" / "checkpoints" / "last.ckpt")
    assert module.noted == {hook: {shown} for hook in (*HOOKS, "validation_step")}
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_loaders_without_a_length_count_in_steps(tmp_path: Path) -> None:
    module = Plans()
    fit(module, StreamedData(), tmp_path / "a", rounds=1, train_for="10it", rewind_to="20%")
    assert set().union(*module.noted.values()) == {(-1, 10, 10)}
    for number, lengths in enumerate([("2ep", "0it"), ("20it", "1ep")]):
        with pytest.raises(SettingError, match="no length to count epochs by"):
            fit(ForeignModule(), StreamedData(), tmp_path / str(number), train_for=lengths[0], rewind_to=lengths[1])
    with pytest.raises(SettingError, match="step 9 was expected after 9 batches of epoch 0, but came after 2 batches"):
        fit(ForeignModule(), StreamedData(), tmp_path / "b", train_for="20it", rewind_to="9it")


# ------------------------------------------------------------------------ settings beside a round


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"val_check_interval": "00:00:10:00"}, r"must not be a time, got 600 s.* a fraction of an epoch"),
        ({"limit_train_batches": 0}, "limit_train_batches must be above 0"),
        ({"barebones": True}, "barebones cannot be used with a lottery"),
    ],
)
def test_settings_without_whole_rounds_are_refused_before_training(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingError, match=words):
        fit(mlp(), digits(), tmp_path, trainer={"enable_model_summary": None, "num_sanity_val_steps": None, **settings})
    assert not (tmp_path / "results.csv").exists()


@pytest.mark.filterwarnings("ignore:.*configure_optimizers` returned `None`")
@pytest.mark.parametrize(("automatic", "given"), list(itertools.product([True, False], [None, []])))
def test_a_module_without_optimizers_is_refused(tmp_path: Path, automatic: bool, given: Any) -> None:
    class Still(ForeignModule):
        def configure_optimizers(self) -> Any:
            return given

    module = Still()
    module.automatic_optimization = automatic
    with pytest.raises(SettingError, match=r"Still\.configure_optimizers returns no optimizer"):
        fit(module, ForeignData(), tmp_path)


@pytest.mark.filterwarnings("ignore:Total length of `.*` across ranks is zero")
def test_training_data_without_a_batch_are_an_error(tmp_path: Path) -> None:
    class Empty(ForeignData):
        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(self.splits["train"], batch_size=1000, drop_last=True)

    with pytest.raises(SettingError, match="training data have no batch"):
        fit(ForeignModule(), Empty(), tmp_path)


STEPS: dict[str, tuple[dict[str, Any], str, list[int], int]] = {
    "overfit": ({"overfit_batches": 3}, "3ep", [9, 9], 3),
    "rarely evaluated": ({"check_val_every_n_epoch": 10}, "3ep", [21, 21], 1),
    "evaluated later than the last epoch is cut": ({"val_check_interval": 5}, "9it", [9, 9], 2),
    "evaluated by steps over epochs": ({"val_check_interval": 5, "check_val_every_n_epoch": None}, "9it", [9, 9], 2),
    "without inference mode": ({"inference_mode": False}, "9it", [9, 9], 2),
    "loaders made anew": ({"reload_dataloaders_every_n_epochs": 1}, "2ep", [14, 14], 2),
    "epochs shorter than a step": ({"accumulate_grad_batches": 10}, "3ep", [3, 3], 3),
}


@pytest.mark.filterwarnings("ignore:You requested to overfit")
@pytest.mark.parametrize("name", STEPS)
def test_rounds_are_whole_and_evaluated_when_they_end(tmp_path: Path, name: str) -> None:
    settings, train_for, steps, points = STEPS[name]
    run = fit(
        ForeignModule(), ForeignData(), tmp_path, trainer=settings, rounds=1, train_for=train_for, metrics=FOREIGN
    )
    assert [row.steps for row in run.rows] == steps
    assert all(row.val_acc is not None and row.test_acc is not None for row in run.rows)
    assert [len(path.read_text().splitlines()) - 1 for path in sorted((tmp_path / "curves").iterdir())] == [points] * 2


@pytest.mark.parametrize("lengths", [("3ep", "0it"), ("12it", "5it")])
def test_training_data_that_grow_are_refused_where_epochs_are_counted(tmp_path: Path, lengths: tuple[str, str]) -> None:
    class Grows(ForeignData):
        loads = 0

        def train_dataloader(self) -> DataLoader[Any]:
            self.loads += 1
            return DataLoader(self.splits["train"], batch_size=80 if self.loads < 3 else 40, shuffle=True)

    settings: dict[str, Any] = {"trainer": {"reload_dataloaders_every_n_epochs": 1}}
    with pytest.raises(SettingError, match="have 7 batches in epoch 1, but had 4 when first loaded"):
        fit(ForeignModule(), Grows(), tmp_path, train_for=lengths[0], rewind_to=lengths[1], **settings)


def test_overfitting_is_refused_where_batches_would_change_with_the_epoch(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"overfit_batches is .* data\.train_size"):
        fit(mlp(), digits(), tmp_path, trainer={"overfit_batches": 2})


FOREIGN = {"val_loss": "valid/ce", "val_acc": "valid/accuracy", "test_acc": "test/accuracy"}


def test_a_second_fit_of_a_trainer_and_a_failed_one_leave_it_as_it_was(tmp_path: Path) -> None:
    trainer = make_trainer(callbacks=[LotteryTicket(train_for="1ep", rounds=0, run_dir=tmp_path, rewind_to="0it")])
    trainer.fit(mlp(), digits())
    with pytest.raises(SettingError):
        trainer.fit(mlp(), digits())  # into the same folder
    assert type(trainer) is L.Trainer
    assert (trainer.max_epochs, trainer.max_steps, trainer.min_epochs) == (-1, -1, 0)
