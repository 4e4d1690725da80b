"""The numbers of a learning curve: metrics are what the module logs by their names, and are looked at when first due.

What was tried, and what comes of it:

| the module | verdict |
| --- | --- |
| logs a metric by another name, and `metrics=` does not name it | said once, with what is logged; empty column |
| does not log a metric that `metrics=` names | stopped after the first validation, test, or training epoch |
| logs a named one only every k-th validation, or in on_train_epoch_end | stopped: each point of a curve needs it |
| logs an unnamed one only every k-th validation | the other points are empty, not what an earlier one has |
| logs validation and test metrics by one name | each its own |
| has several loaders (`/dataloader_idx_0`) | the message names one |
| logs it on some processes only | known |
| logs nothing when sanity checking | the sanity check counts for nothing |
| logs an accuracy in percent, a negative or unbounded one, also late | stopped there: fractions in [0, 1] |
| logs a vector (a torchmetrics metric per class) | stopped: one real number |
| logs NaN or infinity | said once a network; `early_stop` passes over them |
| has no validation_step, no or empty validation data | said once |
| has no test_step, no test data | silent; said if a test_ metric is named |
"""

import logging
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import FOREIGN_METRICS, ForeignData, ForeignModule, digits, fit, mlp
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torchmetrics import Accuracy

from lth_lightning import SettingError
from lth_lightning.lottery.metrics import check_fraction, check_logged, number
from lth_lightning.runs.rows import read_curves


class Says(ForeignModule):
    """Logs a given metric in each validation, or what else it is told to."""

    def __init__(self, value: Any = None) -> None:
        super().__init__()
        self.value, self.validations = value, 0

    def on_validation_epoch_end(self) -> None:
        self.validations += not self.trainer.sanity_checking
        value = self.value(self) if callable(self.value) else self.value
        if value is not None:
            self.log("mine", torch.as_tensor(value))


def said(caplog: pytest.LogCaptureFixture, words: str) -> int:
    return sum(words in record.message for record in caplog.records)


# ------------------------------------------------------------------------ names


def test_names_that_nobody_asked_for_are_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = fit(ForeignModule(), ForeignData(), tmp_path, rounds=1)
    assert (
        said(caplog, "the first validation has not logged val_loss, val_acc; logged there: valid/accuracy, valid/ce")
        == 1
    )
    assert said(caplog, 'metrics={"val_loss": "valid/ce"} (on the command line --lottery.metrics)') == 1
    assert said(caplog, "the first test has not logged test_loss, test_acc; logged there: test/accuracy, test/ce") == 1
    assert said(caplog, "training, in its first epoch, has not logged train_loss; nothing was logged there") == 1
    assert all(row.val_acc is row.test_acc is row.train_loss is None for row in run.rows)


def test_a_module_that_logs_everything_is_told_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit(mlp(), digits(), tmp_path, rounds=1)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"val_acc": "acc"}, r"the first validation has not logged val_acc \('acc'\); .*: valid/accuracy, valid/ce\."),
        (
            {"test_loss": "test_loss"},
            r"the first test has not logged test_loss \('test_loss'\); .*: test/accuracy, test",
        ),
        ({"train_loss": "ce"}, r"training, in its first epoch, has not logged train_loss \('ce'\); nothing was"),
    ],
)
def test_a_name_that_was_asked_for_and_is_not_there_stops_the_dense_network(
    tmp_path: Path, metrics: dict[str, str], words: str
) -> None:
    with pytest.raises(SettingError, match=f"lottery.metrics: {words}"):
        fit(ForeignModule(), ForeignData(), tmp_path, train_for="70it", metrics=metrics)
    assert (tmp_path / "checkpoints" / "last.ckpt").exists()
    assert not list((tmp_path / "tickets").glob("*"))


def test_a_point_of_a_curve_holds_nothing_older_than_itself(tmp_path: Path) -> None:
    """`trainer.callback_metrics` would give the last value that was ever logged."""

    class Seldom(ForeignModule):
        validations = 0

        def on_validation_epoch_end(self) -> None:
            self.validations += 1
            if self.validations % 2:
                self.log("val_loss", 0.25 if self.validations == 1 else 0.125)

    run = fit(Seldom(), ForeignData(), tmp_path, rounds=0, train_for="28it")
    assert [point.val_loss for point in read_curves(run.lottery.folder.path / "curves")] == [0.25, None, 0.125, None]


def test_one_name_for_validation_and_test_is_two_metrics(tmp_path: Path) -> None:
    class Same(ForeignModule):
        def _evaluate(self, batch: tuple[Tensor, Tensor], split: str) -> None:
            self.log("loss", {"valid": 2.0, "test": 3.0}[split])

    run = fit(Same(), ForeignData(), tmp_path, rounds=0, metrics={"val_loss": "loss", "test_loss": "loss"})
    assert (run.rows[0].val_loss, run.rows[0].test_loss) == (2.0, 3.0)


def test_one_of_several_loaders_has_to_be_chosen(tmp_path: Path) -> None:
    class Two(ForeignData):
        def val_dataloader(self) -> Any:
            return [DataLoader(self.splits[split], batch_size=60) for split in ("val", "test")]

    class Numbered(ForeignModule):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self._evaluate(batch, "valid")

    for folder, (name, works) in enumerate([("valid/ce", False), ("valid/ce/dataloader_idx_1", True)]):
        settings: dict[str, Any] = {"rounds": 0, "metrics": {"val_loss": name}}
        if works:
            assert fit(Numbered(), Two(), tmp_path / str(folder), **settings).rows[0].val_loss is not None
        else:
            with pytest.raises(SettingError, match="several loaders: choose .* 'valid/ce/dataloader_idx_0'"):
                fit(Numbered(), Two(), tmp_path / str(folder), **settings)


def test_the_sanity_check_decides_nothing(tmp_path: Path) -> None:
    module = Says(lambda self: None if self.trainer.sanity_checking else 0.5)
    settings: dict[str, Any] = {"rounds": 0, "metrics": {"val_acc": "mine"}, "trainer": {"num_sanity_val_steps": 2}}
    assert fit(module, ForeignData(), tmp_path, **settings).rows[0].val_acc == 0.5


def test_a_metric_of_each_class_is_refused(tmp_path: Path) -> None:
    class ByClass(ForeignModule):
        def __init__(self) -> None:
            super().__init__()
            self.score = Accuracy("multiclass", num_classes=10, average="none")

        def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            self.score(self.body(batch[0]), batch[1])
            self.log("by_class", self.score, logger=False)

    with pytest.raises(SettingError, match=r"val_acc is logged as by_class, .* got a tensor of shape \[10\]"):
        fit(ByClass(), ForeignData(), tmp_path, metrics={"val_acc": "by_class"})


# ------------------------------------------------------------------------ values


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            87.5,
            r"val_acc is logged as mine, with the value 87\.5; .* fractions in \[0, 1\]\. It looks like a percentage",
        ),
        (-0.5, r"value -0\.5; accuracies must be fractions in \[0, 1\]\. Do not use a metric that is not an accuracy"),
        (412.0, r"value 412; accuracies must be fractions in \[0, 1\]\. Do not use a metric .* \(a perplexity, say\)"),
        (lambda self: 0.9 * self.validations, r"value 1\.8; accuracies"),
        (math.inf, "value inf; accuracies"),
    ],
)
def test_an_accuracy_is_a_fraction(tmp_path: Path, value: Any, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        fit(Says(value), ForeignData(), tmp_path, train_for="70it", metrics={"val_acc": "mine"})


def test_rounding_makes_no_percentage() -> None:
    for value in (0.0, 1.0, 1.0000001, -1e-7, math.nan, None):
        check_fraction("val_acc", "acc", value)


def test_a_metric_is_one_real_number() -> None:
    assert number("val_loss", "ce", torch.tensor([2])) == 2.0
    assert number("val_acc", "acc", torch.tensor(True)) == 1.0
    for value in (torch.zeros(10), torch.zeros((), dtype=torch.complex64)):
        with pytest.raises(SettingError, match="val_acc is logged as acc, which must be one real number"):
            number("val_acc", "acc", value)


def test_values_that_are_not_finite_are_told_of_and_do_not_stop_a_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = Says(lambda self: [1.0, math.nan, 2.0, math.nan][(self.validations - 1) % 4])
    run = fit(module, ForeignData(), tmp_path, rounds=1, train_for="28it", metrics={"val_loss": "mine"})
    assert said(caplog, "step 14: val_loss is nan. Check the data and the metric for values") == 2
    assert [row.early_stop_step for row in run.rows] == [7, 7]


def test_what_is_not_logged_is_said_in_few_words() -> None:
    assert check_logged({}, ["a"], {"val_loss": "lottery.metrics"}, "x") is None
    words = check_logged({"val_acc": "val_acc"}, ["acc/dataloader_idx_0", "val_acc/dataloader_idx_0"], {}, "x")
    assert words is not None and words.endswith("by its whole name, e.g. 'val_acc/dataloader_idx_0'.")


# ------------------------------------------------------------------------ no evaluation


class NoValidation(ForeignData):
    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Subset(self.splits["val"], []))


@pytest.mark.filterwarnings("ignore:Total length of `.*` across ranks is zero")
@pytest.mark.parametrize(
    ("data", "trainer", "words"),
    [
        (ForeignData, {"limit_val_batches": 0}, "nothing is validated: no validation_step, no data"),
        (NoValidation, {}, "nothing is validated: the validation data have no batch"),
    ],
)
def test_networks_without_validation_are_tested_when_they_end(
    tmp_path: Path, data: type[ForeignData], trainer: dict[str, Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = fit(ForeignModule(), data(), tmp_path, rounds=1, metrics=FOREIGN_METRICS, trainer=trainer)
    assert said(caplog, f"{words}") == 1
    assert said(caplog, "has not logged val_loss") == 0
    for row in run.rows:
        assert row.test_acc is not None
        assert row.val_loss is row.early_stop_step is None


class TwoSplits(L.LightningDataModule):
    setup = ForeignData.setup
    train_dataloader = ForeignData.train_dataloader
    val_dataloader = ForeignData.val_dataloader


def test_a_test_that_was_asked_for_and_cannot_be_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    words = "lottery.metrics names test_acc, test_loss, but the module has no test_step or test data"
    settings: dict[str, Any] = {"metrics": FOREIGN_METRICS, "rounds": 0}
    assert fit(ForeignModule(), TwoSplits(), tmp_path / "a", evaluate_test=False, **settings).rows[0].test_acc is None
    assert said(caplog, words) == 0
    assert fit(ForeignModule(), TwoSplits(), tmp_path / "b", **settings).rows[0].test_acc is None
    assert said(caplog, words) == 1
