"""A worker's checks are those of `fit`, and one training leaves nothing to the next."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lth_lightning.errors import SettingError
from lth_lightning.runs.lock import FolderLock
from lth_lightning.sweeps import worker
from lth_lightning.sweeps.cluster import check_room

pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
FLAGS = ["--config", "quickstart", "--lottery.rounds", "1", "--lottery.train_for", "2it", "--ckpt_path", "last"]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[worker.Worker]:
    """A worker in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["lth"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    yield worker.Worker(str(tmp_path), "lth", threads=1, sees_gpus=False)
    gc.unfreeze()


def test_all_settings_are_checked_as_fit_does_and_nothing_is_left(here: worker.Worker, tmp_path: Path) -> None:
    flags = {name: [*FLAGS, "--run_dir", f"new/{name}"] for name in ("good", "rate", "net", "devices")}
    flags["rate"] += ["--lottery.pruning.rate", "2"]
    flags["net"] += ["--model.net", "LeNet"]
    flags["devices"] += ["--trainer.devices", "2"]
    good, rate, net, devices = here.check(list(flags.values()))
    controls = [(1, "random_reinit", 0), (1, "random_mask", 0)]
    assert good == worker.Checked(None, ((0, "ticket", 0), (1, "ticket", 0), *controls))
    assert rate.refused == "lottery.pruning.rate must be in [0, 1), got 2.0."
    assert net.refused is not None and "LeNet300" in net.refused
    assert devices.refused is not None and "a training of a sweep uses one device" in devices.refused
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--trainer.callbacks+", "EarlyStopping", "--trainer.callbacks.monitor", "val_loss"], None),
        (["--trainer.callbacks+", "ModelCheckpoint"], "trainer.callbacks: ModelCheckpoint may carry"),
        (["--trainer.max_time", "00:01:00:00"], "trainer.max_time is the time of one fit"),
        (["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "x"], "trainer.logger: another logger"),
        (["--lottery.engine", "sparse"], "set lottery.engine.below"),
    ],
)
def test_controls_that_other_processes_could_not_train_alike_stay_in_line(
    here: worker.Worker, flags: list[str], says: str | None
) -> None:
    (checked,) = here.check([[*FLAGS, "--run_dir", "new", *flags]])
    assert checked.refused is None
    assert checked.in_line is None if says is None else says in str(checked.in_line)


def test_a_training_leaves_nothing_to_the_next(here: worker.Worker, tmp_path: Path) -> None:
    before = dict(os.environ)
    flags = [*FLAGS, "--run_dir", "run", "--lottery.rounds", "0", "--trainer.deterministic", "true"]
    assert here.train([*flags, "--seed_everything", "7"], str(tmp_path / "run/log.txt")) == worker.Outcome()
    assert dict(os.environ) == before
    assert not torch.are_deterministic_algorithms_enabled()
    log = (tmp_path / "run/log.txt").read_text()
    assert log.startswith("$ lth fit --config quickstart")
    assert "Results, tickets and figures: run" in log


def test_what_a_training_is_refused_for_is_its_outcome_and_its_log(here: worker.Worker, tmp_path: Path) -> None:
    outcome = here.train([*FLAGS, "--run_dir", "run", "--lottery.train_for", "1x"], str(tmp_path / "run/log.txt"))
    assert outcome.error is not None and outcome.error.startswith("lottery.train_for must be a number with a unit")
    assert f"error: {outcome.error}" in (tmp_path / "run/log.txt").read_text()
    more = ["--run_dir", "timed", "--trainer.max_time", "00:00:00:00"]
    assert here.train([*FLAGS, *more], str(tmp_path / "timed/log.txt")).error == "stopped after 0 of 4 networks"


def test_it_waits_for_a_process_that_is_about_to_die(
    here: worker.Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = FolderLock(tmp_path)
    monkeypatch.setattr("time.sleep", lambda _: lock.release())
    worker._await_other_writer(tmp_path)
    FolderLock(tmp_path).release()


def test_a_machine_without_room_is_named() -> None:
    with pytest.raises(SettingError, match="--gpus: a training is to take 1, but no machine has more than 0"):
        check_room([{"CPU": 8}], 1, 1)
