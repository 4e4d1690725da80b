"""The callback in searches of other people: Optuna and Ray Tune build a Trainer and a LotteryTicket for each trial.

Each trial gets a folder of its own and the results of a fit alone, one after the other or in processes. Threads of one
process share PyTorch's generators; there a second fit is refused.
"""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import HANGS, assert_equal_runs, digits, fit, make_trainer, mlp, weekly

from lth_lightning import LotteryTicket, SettingError

optuna = pytest.importorskip("optuna")
optuna.logging.set_verbosity(optuna.logging.WARNING)

RATES = [1e-3, 1e-2]
PROCESS = """
import sys
sys.path[:0] = {path}
import optuna
from test_other_peoples_sweeps import objective
study = optuna.load_study(study_name="processes", storage="sqlite:///trials.db")
study.optimize(objective, n_trials=1)
"""


def module(rate: float) -> Any:
    torch.manual_seed(0)
    return mlp(optimizer=lambda parameters: torch.optim.Adam(parameters, lr=rate))


def objective(trial: Any) -> float:
    """A trial as somebody would write it: nothing names a folder."""
    lottery = LotteryTicket(rounds=1, train_for="10it", controls=["random_reinit", "random_mask"], seed=7)
    trainer = make_trainer(callbacks=[lottery])
    trainer.fit(module(trial.suggest_categorical("rate", RATES)), datamodule=digits())
    trial.set_user_attr("folder", str(lottery.folder.path.resolve()))
    value = lottery.results[-1].val_loss
    assert value is not None
    return value


def study(**given: Any) -> Any:
    return optuna.create_study(sampler=optuna.samplers.GridSampler({"rate": RATES}), **given)


def assert_as_alone(trials: list[Any], tmp_path: Path) -> None:
    assert sorted(trial.params["rate"] for trial in trials) == RATES
    assert len({trial.user_attrs["folder"] for trial in trials}) == 2
    for trial in trials:
        alone = tmp_path / f"alone_{trial.number}"
        fit(module(trial.params["rate"]), digits(), alone, rounds=1, controls=["random_reinit", "random_mask"])
        assert_equal_runs(Path(trial.user_attrs["folder"]), alone)


def test_trials_one_after_the_other_are_as_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = study()
    found.optimize(objective, n_trials=2)
    assert_as_alone(found.trials, tmp_path)


class InAnotherThread(L.Callback):
    """Starts a second fit in a thread while the first one trains, as n_jobs=2 does."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.errors = folder, list[BaseException]()

    def on_train_start(self, *_: Any) -> None:
        thread = threading.Thread(target=self.run)
        thread.start()
        thread.join()

    def run(self) -> None:
        try:
            fit(module(1e-3), digits(), self.folder, rounds=0)
        except SettingError as error:
            self.errors.append(error)


def test_a_second_fit_in_another_thread_is_refused_as_they_share_generators(tmp_path: Path) -> None:
    second = InAnotherThread(tmp_path / "second")
    fit(module(1e-3), digits(), tmp_path / "first", rounds=0, callbacks=(second,))
    assert ["another thread of this process trains a lottery" in str(error) for error in second.errors] == [True]
    assert not (tmp_path / "second").exists()
    second.run()  # when the first has ended
    assert (tmp_path / "second/results.csv").exists()


@weekly
def test_trials_in_processes_are_as_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = study(study_name="processes", storage="sqlite:///trials.db")
    for rate in RATES:
        found.enqueue_trial({"rate": rate})
    tests = Path(__file__).parents[1]
    code = PROCESS.format(path=[str(tests), str(tests / "behaviour")])
    processes = [subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path) for _ in RATES]
    assert [process.wait(HANGS) for process in processes] == [0, 0]
    assert_as_alone(found.trials, tmp_path)


@weekly
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_tunes_trials_are_as_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tune = pytest.importorskip("ray.tune", exc_type=ImportError)
    import ray

    tests = Path(__file__).parents[1]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (tests, tests / "behaviour", *sys.path))))
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    try:
        found = tune.Tuner(
            tune_trial,
            param_space={"rate": tune.grid_search(RATES)},
            run_config=tune.RunConfig(storage_path=str(tmp_path / "tune"), verbose=0),
        ).fit()
    finally:
        ray.shutdown()
    assert not found.errors
    assert len({result.metrics["folder"] for result in found}) == 2
    for i, result in enumerate(found):
        alone = tmp_path / f"alone_{i}"
        fit(module(result.config["rate"]), digits(), alone, rounds=1, controls=["random_reinit", "random_mask"])
        assert_equal_runs(Path(result.metrics["folder"]), alone)


def tune_trial(config: dict[str, Any]) -> dict[str, Any]:
    """A trial of Ray Tune, which runs it in a thread of a process of its own."""
    torch.set_num_threads(1)
    study = optuna.create_study()
    study.enqueue_trial({"rate": config["rate"]})
    study.optimize(objective, n_trials=1)
    return {"loss": study.best_value, "folder": study.best_trial.user_attrs["folder"]}
