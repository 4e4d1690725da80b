"""Other people's parts beside the lottery: each is right, or refused by name before anything is trained.

What was tried, by hand too (lth_lightning/trainer/README.md has the list for users):

- every callback of Lightning 2.6: `VERDICTS` below, each a fit here;
- the package pytorch-lightning: its Trainer, module, callback, logger and data module, each mixed with `lightning`;
- the loggers: TensorBoard, CSV; MLFlow and Weights & Biases (offline), twice each and one logger twice;
- the strategies: ddp_spawn, ddp_fork, ddp_notebook with two processes on the CPU (tests/behaviour/test_processes.py);
  ddp_find_unused_parameters_true;
- `setup("test")` of callbacks and modules: what it makes, what it notes, what it rebuilds, what it adds;
- copies that no optimizer trains: AveragedModel, a target network, a frozen teacher, a copy in a buffer; with the
  default rule, a rule that names them, tickets from files, a resume, random_mask and random_reinit;
- a frozen parameter of -inf, an attribute named `masks`;
- `torch.inference_mode` around a fit and around a module's making; `torch.no_grad`;
- `torch.compile` of a network and `LightningModule.compile`; a LightningModule in another; validate and test before
  and after a fit; barebones, detect_anomaly, profilers, fast_dev_run (a rehearsal);
- attention, recurrent layers, checkpointing and functions of one's own under the criteria that use gradients:
  tests/pruning/test_gradient_criteria.py.
"""

import copy
import functools
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import pytorch_lightning
import torch
import torchmetrics
from conftest import (
    FOREIGN_METRICS,
    Cut,
    ForeignData,
    ForeignModule,
    assert_same,
    digits,
    fit,
    make_trainer,
    mlp,
    weekly,
)
from lightning.pytorch import callbacks, loggers
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lth_lightning import LotteryTicket, Pruning, SettingError
from lth_lightning.errors import DivergedError
from lth_lightning.pruning.state import full_state
from lth_lightning.runs.rows import read_rows

# ------------------------------------------------------------------------ every callback of Lightning's


class Writer(callbacks.BasePredictionWriter):
    def write_on_batch_end(self, *_: Any) -> None:
        raise AssertionError("nothing is predicted")


def throughput() -> callbacks.ThroughputMonitor:
    return callbacks.ThroughputMonitor(batch_size_fn=lambda batch: len(batch[0]))


ALONE = "trains as without it"
VERDICTS: dict[str, tuple[Callable[[Path], Any] | None, str]] = {
    "Callback": (lambda _: callbacks.Callback(), ALONE),
    "Checkpoint": (lambda _: callbacks.Checkpoint(), ALONE),
    "BasePredictionWriter": (lambda _: Writer(), ALONE),
    "DeviceStatsMonitor": (lambda _: callbacks.DeviceStatsMonitor(cpu_stats=False), ALONE),
    "EarlyStopping": (lambda _: callbacks.EarlyStopping("val_loss", patience=99), ALONE),
    "LambdaCallback": (lambda _: callbacks.LambdaCallback(on_train_start=lambda *_: None), ALONE),
    "LearningRateMonitor": (lambda _: callbacks.LearningRateMonitor(), ALONE),
    "ModelCheckpoint": (lambda path: callbacks.ModelCheckpoint(path / "theirs", monitor="val_loss"), ALONE),
    "ModelSummary": (lambda _: callbacks.ModelSummary(), ALONE),
    "OnExceptionCheckpoint": (lambda path: callbacks.OnExceptionCheckpoint(path / "theirs"), ALONE),
    "ProgressBar": (lambda _: callbacks.ProgressBar(), ALONE),
    "RichModelSummary": (lambda _: callbacks.RichModelSummary(), ALONE),
    "RichProgressBar": (lambda _: callbacks.RichProgressBar(), ALONE),
    "SpikeDetection": (lambda path: callbacks.SpikeDetection(exclude_batches_path=path / "spikes"), ALONE),
    "ThroughputMonitor": (lambda _: throughput(), ALONE),
    "Timer": (lambda _: callbacks.Timer("00:01:00:00"), ALONE),
    "TQDMProgressBar": (lambda _: callbacks.TQDMProgressBar(), ALONE),
    "BatchSizeFinder": (lambda _: callbacks.BatchSizeFinder(), "BatchSizeFinder trains inside this fit"),
    "LearningRateFinder": (lambda _: callbacks.LearningRateFinder(), "LearningRateFinder trains inside this fit"),
    "ModelPruning": (lambda _: callbacks.ModelPruning("l1_unstructured", amount=0.3), "ModelPruning puts its own"),
    "StochasticWeightAveraging": (lambda _: callbacks.StochasticWeightAveraging(0.1), "averages over the whole fit"),
    "EMAWeightAveraging": (None, "tests/behaviour/test_guests.py"),
    "WeightAveraging": (None, "tests/behaviour/test_guests.py"),
    "BaseFinetuning": (None, "groups of parameters that come later are a topic of their own"),
    "BackboneFinetuning": (None, "groups of parameters that come later are a topic of their own"),
    "GradientAccumulationScheduler": (None, "lengths are a topic of their own"),
}


def test_there_is_a_verdict_for_every_callback() -> None:
    assert VERDICTS.keys() == set(callbacks.__all__)


def quick_run(folder: Path, *more: L.Callback, **trainer: bool) -> Any:
    off = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    settings: dict[str, Any] = {"logger": CSVLogger(folder.parent), "log_every_n_steps": 1, **off, **trainer}
    torch.manual_seed(0)
    return fit(mlp(), digits(), folder, rounds=1, train_for="8it", trainer=settings, callbacks=more)


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without any callback of somebody else's."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("without") / "run"
    quick_run(folder)
    return folder


@pytest.mark.parametrize("name", [name for name, (make, _) in VERDICTS.items() if make])
@pytest.mark.filterwarnings("ignore:When using the `ThroughputMonitor`")
@pytest.mark.filterwarnings("ignore:.*fit.ckpt_path")  # OnExceptionCheckpoint looks for one of its own
def test_a_callback_leaves_training_as_it_is_or_is_refused(
    name: str, without: Path, tmp_path: Path, capsys: Any, caplog: pytest.LogCaptureFixture
) -> None:
    make, verdict = VERDICTS[name]
    assert make is not None
    theirs = make(tmp_path)
    trainer = {
        "enable_progress_bar": isinstance(theirs, callbacks.ProgressBar),
        "enable_model_summary": isinstance(theirs, callbacks.ProgressBar | callbacks.ModelSummary),
        "enable_checkpointing": isinstance(theirs, callbacks.Checkpoint),
    }
    if verdict is not ALONE:
        with pytest.raises(SettingError, match=f"trainer.callbacks: {name} .*{verdict.removeprefix(name + ' ')}"):
            quick_run(tmp_path / "refused", theirs, **trainer)
        assert not (tmp_path / "refused").exists()
        return
    quick_run(tmp_path / "with", theirs, **trainer)
    assert not [record for record in caplog.records if record.name == "lth_lightning.trainer.watch"]
    for round in ("00", "01"):
        ours, alone = (folder / f"tickets/round_{round}.safetensors" for folder in (tmp_path / "with", without))
        assert ours.read_bytes() == alone.read_bytes()


class Tunable(ForeignModule):
    lr = 0.1

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


@pytest.mark.filterwarnings("ignore")  # of Tuner's
def test_what_the_refusal_of_the_finders_says_to_do_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lottery = LotteryTicket(rounds=1, train_for="3it", run_dir=tmp_path / "run", metrics=FOREIGN_METRICS)
    module = Tunable()
    with pytest.raises(SettingError, match="with a Trainer without the lottery"):
        Tuner(make_trainer(callbacks=[lottery])).lr_find(module, datamodule=ForeignData(), num_training=4)
    Tuner(make_trainer(enable_checkpointing=True)).lr_find(
        module, datamodule=ForeignData(), num_training=30, early_stop_threshold=None
    )
    assert module.lr != 0.1
    make_trainer(callbacks=[lottery]).fit(module, ForeignData())
    assert f"'optimizer 0, group 0, lr': '{module.lr!r}'" in str(lottery.settings)


# ------------------------------------------------------------------------ pytorch-lightning


BOTH = r"is from the package `{}`, but its Trainer is from `{}`: .* Import everything from `lightning.pytorch` and"


def fit_with(tmp_path: Path, module: Any = None, data: Any = None, **trainer: Any) -> None:
    lottery = LotteryTicket(rounds=1, train_for="1it", run_dir=tmp_path / "run")
    trainer["callbacks"] = [lottery, *trainer.get("callbacks", [])]
    make_trainer(**trainer).fit(module or mlp(), datamodule=data or digits())


def test_objects_of_pytorch_lightning_are_refused(tmp_path: Path) -> None:
    """Those of the user's own classes too, whose base class alone is of that package."""

    class Module(pytorch_lightning.LightningModule):
        pass

    class Data(pytorch_lightning.LightningDataModule):
        pass

    class Callback(pytorch_lightning.Callback):
        pass

    parts: list[dict[str, Any]] = [
        {"callbacks": [pytorch_lightning.callbacks.EarlyStopping("val_loss")]},
        {"callbacks": [Callback()]},
        {"logger": pytorch_lightning.loggers.CSVLogger(tmp_path)},
        {"logger": [CSVLogger(tmp_path), pytorch_lightning.loggers.TensorBoardLogger(tmp_path)]},
        {"module": Module()},
        {"data": Data()},
    ]
    for part in parts:
        with pytest.raises(SettingError, match=BOTH.format("pytorch-lightning", "lightning")):
            fit_with(tmp_path, **part)
    assert not (tmp_path / "run").exists()


def test_a_trainer_of_pytorch_lightning_is_refused(tmp_path: Path) -> None:
    class Module(pytorch_lightning.LightningModule):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            raise AssertionError("nothing is trained")

        def configure_optimizers(self) -> None:
            return None

    lottery = LotteryTicket(rounds=1, train_for="1it", run_dir=tmp_path / "run")
    settings: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu", "max_epochs": -1}
    loader = ForeignData()
    loader.setup("fit")
    for given, module, named in (([lottery], Module(), "LotteryTicket"), ([], mlp(), "ImageClassifier")):
        with pytest.raises(SettingError, match=f"{named} " + BOTH.format("lightning", "pytorch-lightning")):
            pytorch_lightning.Trainer(callbacks=given, **settings).fit(module, loader.train_dataloader())
    appended = pytorch_lightning.Trainer(**settings)
    appended.callbacks.append(lottery)
    with pytest.raises(SettingError, match="LotteryTicket " + BOTH.format("lightning", "pytorch-lightning")):
        appended.fit(Module(), loader.train_dataloader())


# ------------------------------------------------------------------------ setup("test")


class Gathers(L.Callback):
    """Makes in `setup("test")` what its test hooks need, and notes the stage there."""

    late: Any = None

    def __init__(self) -> None:
        self.replaced: Any = None
        self.sizes: list[int] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.stage = stage
        if stage == "test":
            self.new: list[int] = []
            self.replaced = []

    def on_train_batch_end(self, *_: Any) -> None:
        assert (self.stage, self.replaced) == ("fit", None)

    def on_test_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        assert self.stage == "test"
        self.new.append(len(batch[0]))
        self.replaced.append(len(batch[0]))

    def on_test_end(self, *_: Any) -> None:
        self.sizes.append(sum(self.replaced))


def test_a_callback_is_set_up_for_each_test_as_trainer_test_would(tmp_path: Path) -> None:
    gathers = Gathers()
    fit(mlp(), digits(), tmp_path, rounds=1, train_for="7it", callbacks=(gathers,))
    assert gathers.sizes == [360, 360] and sum(gathers.new) == 360 and gathers.stage == "fit"


class Metered(ForeignModule):
    def __init__(self) -> None:
        super().__init__()
        self.meter: Any = None

    def setup(self, stage: str) -> None:
        self.stage = stage
        if stage == "test":
            self.meter = torchmetrics.MeanMetric()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        assert self.stage == "fit"
        return super().training_step(batch, batch_idx)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        assert self.stage == "test"
        self.meter(batch[1].float() / 10)  # a fraction, as accuracies are
        self.log("test/accuracy", self.meter)


def test_a_module_makes_its_test_metrics_in_setup(tmp_path: Path) -> None:
    metrics = {name: theirs for name, theirs in FOREIGN_METRICS.items() if name != "test_loss"}
    run = fit(Metered(), ForeignData(), tmp_path, rounds=1, train_for="7it", metrics=metrics)
    data = ForeignData()
    data.setup("test")
    expected = float(data.splits["test"].tensors[1].float().mean()) / 10
    assert [row.test_acc for row in run.rows] == [pytest.approx(expected)] * 2


def test_a_module_that_builds_its_network_in_setup_trains_the_one_that_the_optimizer_has(tmp_path: Path) -> None:
    class Built(ForeignModule):
        def setup(self, stage: str) -> None:
            with torch.random.fork_rng():
                torch.manual_seed(3)
                self.body = ForeignModule().body

    same = ForeignModule()
    source = Built()
    source.setup("fit")
    same.body.load_state_dict(source.body.state_dict())
    settings: dict[str, Any] = {"rounds": 1, "metrics": FOREIGN_METRICS}
    built = fit(Built(), ForeignData(), tmp_path / "built", **settings)
    given = fit(same, ForeignData(), tmp_path / "given", **settings)
    assert_same(built.ticket(1).trained, given.ticket(1).trained)


def test_a_module_whose_setup_for_tests_adds_weights_is_refused(tmp_path: Path) -> None:
    class Judged(ForeignModule):
        def setup(self, stage: str) -> None:
            if stage == "test":
                self.judge = nn.Linear(2, 2)

    with pytest.raises(SettingError, match='Judged.setup."test". adds judge.weight to the network'):
        fit(Judged(), ForeignData(), tmp_path / "run", metrics=FOREIGN_METRICS)
    fit(Judged(), ForeignData(), tmp_path / "run", metrics=FOREIGN_METRICS, evaluate_test=False, train_for="1it")


# ------------------------------------------------------------------------ strategies


def test_the_callback_can_be_pickled_before_a_fit_and_after_it(tmp_path: Path) -> None:
    lottery = LotteryTicket(rounds=1, train_for="2it", run_dir=tmp_path, pruning=Pruning(rate=0.5))
    assert pickle.loads(pickle.dumps(lottery)).plan == lottery.plan


class Odd(Strategy):
    """Nobody's."""

    barrier = broadcast = all_gather = reduce = root_device = is_global_zero = model_to_device = None


def test_strategies_of_unknown_kinds_are_refused(tmp_path: Path) -> None:
    trainer = make_trainer()
    trainer._accelerator_connector.strategy = Odd.__new__(Odd)
    with pytest.raises(SettingError, match="trainer.strategy: Odd is not known to keep whole and equal weights"):
        LotteryTicket(rounds=1, train_for="1it", run_dir=tmp_path).setup(trainer, mlp(), "fit")


# ------------------------------------------------------------------------ loggers and folders


class Store(Logger):
    """A logger whose `save_dir` is a store of all runs, as MLFlow's is; Weights & Biases' is the working directory."""

    def __init__(self, save_dir: str | None) -> None:
        super().__init__()
        self.place = save_dir

    name, version = "store", "abc"

    @property
    def save_dir(self) -> str | None:
        return self.place

    def log_metrics(self, *_: Any, **__: Any) -> None: ...

    log_hyperparams = log_metrics


def two_runs(here: Path, first: Any, second: Any) -> list[str]:
    folders = []
    for logger in (first, second):
        lottery = LotteryTicket(rounds=0, train_for="1it")
        make_trainer(callbacks=[lottery], logger=logger, default_root_dir=here / "root").fit(mlp(), digits())
        assert len(lottery.results) == 1
        folders.append(str(lottery.folder.path.relative_to(here)))
    return folders


@pytest.mark.parametrize("place", [".", "store", None])
def test_no_run_goes_to_the_store_of_a_logger(place: str | None, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    one = Store(place)
    assert two_runs(tmp_path, one, Store(place)) == ["root/runs/0", "root/runs/1"]
    assert two_runs(tmp_path, one, False) == ["root/runs/2", "root/runs/3"]
    assert os.listdir(tmp_path) == ["root"]


def test_a_run_goes_to_the_folder_that_a_logger_has_for_it(tmp_path: Path) -> None:
    for kind in (CSVLogger, TensorBoardLogger):
        mine = functools.partial(kind, tmp_path / kind.__name__, name="mine")
        name = f"{kind.__name__}/mine"
        assert two_runs(tmp_path, mine(), mine()) == [f"{name}/version_0", f"{name}/version_1"]
        one = mine()
        assert two_runs(tmp_path, [Store("."), one], one) == [f"{name}/version_2", f"{name}/version_2-1"]


def test_a_logger_that_writes_to_the_working_directory_has_no_folder_for_a_run(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert two_runs(tmp_path, TensorBoardLogger(".", name="", version=""), False) == ["root/runs/0", "root/runs/1"]


@weekly  # importing them takes ten times as long as the rest
@pytest.mark.filterwarnings("ignore")
def test_no_run_goes_to_the_store_of_mlflow_or_weights_and_biases(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    pytest.importorskip("wandb")
    one = loggers.WandbLogger(offline=True)
    assert two_runs(tmp_path, loggers.WandbLogger(offline=True), one) == ["root/runs/0", "root/runs/1"]
    assert two_runs(tmp_path, one, False) == ["root/runs/2", "root/runs/3"]
    pytest.importorskip("mlflow")
    assert two_runs(tmp_path, loggers.MLFlowLogger(), loggers.MLFlowLogger()) == ["root/runs/4", "root/runs/5"]
    assert not list(tmp_path.glob("*.csv")) and not list(tmp_path.glob("[wm]*/**/results.csv"))


class FitsToo(L.Callback):
    """Starts another trial while this one trains."""

    def __init__(self, start: Callable[[], None]) -> None:
        self.start = start

    def on_network_start(self, *_: Any) -> None:
        self.start()


@pytest.mark.parametrize("logged", [True, False])
def test_two_trials_at_once_get_two_folders(tmp_path: Path, logged: bool) -> None:
    def trial(*more: L.Callback) -> LotteryTicket:
        lottery = LotteryTicket(rounds=0, train_for="1it")
        logger = TensorBoardLogger(tmp_path, name="trials", version="x") if logged else False
        make_trainer(callbacks=[lottery, *more], logger=logger, default_root_dir=tmp_path).fit(mlp(), digits())
        return lottery

    inner: list[LotteryTicket] = []
    outer = trial(FitsToo(lambda: inner.append(trial())))
    names = [lottery.folder.path.relative_to(tmp_path).as_posix() for lottery in (outer, *inner)]
    assert names == (["trials/x", "trials/x-1"] if logged else ["runs/0", "runs/1"])
    assert all(len(read_rows(lottery.folder.results)) == 1 for lottery in (outer, *inner))


def test_a_fit_that_fails_gives_its_folder_back(tmp_path: Path) -> None:
    late = LotteryTicket(rounds=1, train_for="1ep", rewind_to="9it")  # how long an epoch is, the loaders tell
    with pytest.raises(SettingError, match="must be before the end of a round"):
        make_trainer(callbacks=[late], default_root_dir=tmp_path).fit(mlp(), digits())
    assert two_runs(tmp_path, False, False) == ["root/runs/0", "root/runs/1"]
    after = LotteryTicket(rounds=0, train_for="1it")
    make_trainer(callbacks=[after], default_root_dir=tmp_path).fit(mlp(), digits())
    assert after.folder.path == tmp_path / "runs/0"


@pytest.mark.parametrize("setting", ["run_dir", "default_root_dir"])
def test_an_address_is_no_folder(setting: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    given = "s3://bucket/runs"
    lottery = LotteryTicket(rounds=0, train_for="1it", run_dir=given if setting == "run_dir" else None)
    settings = {"default_root_dir": given} if setting == "default_root_dir" else {}
    with pytest.raises(SettingError, match="run_dir: s3://bucket/runs.* is not a folder of this machine"):
        make_trainer(callbacks=[lottery], **settings).fit(mlp(), digits())
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------ torch's modes


def test_inference_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="Trainer.fit is called inside torch.inference_mode"), torch.inference_mode():
        fit(mlp(), digits(), tmp_path)
    with torch.inference_mode():
        module = mlp()
    with pytest.raises(SettingError, match="ImageClassifier: net.*weight was created inside torch.inference_mode"):
        fit(module, digits(), tmp_path)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------ copies that no optimizer trains


class Small(ForeignModule):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.body.parameters(), lr=0.1, momentum=0.9)


class Averaged(Small):
    """Evaluates torch's own average of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.copy = AveragedModel(self.body, multi_avg_fn=get_ema_multi_avg_fn(0.5))

    def on_train_batch_end(self, *_: Any) -> None:
        self.copy.update_parameters(self.body)

    def _evaluate(self, batch: Any, split: str) -> None:
        logits = self.copy(batch[0])
        self.log(f"{split}/ce", torch.nn.functional.cross_entropy(logits, batch[1]))
        self.log(f"{split}/accuracy", (logits.argmax(1) == batch[1]).float().mean())


class Targets(Small):
    """A target network, trained by nobody, that follows slowly."""

    frozen = False

    def __init__(self) -> None:
        super().__init__()
        self.copy = copy.deepcopy(self.body).requires_grad_(not self.frozen)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        with torch.no_grad():
            for ours, theirs in zip(self.copy.parameters(), self.body.parameters(), strict=True):
                ours.lerp_(theirs, 0.1)
            aims = self.copy(batch[0]).softmax(1)
        return super().training_step(batch, batch_idx) + torch.nn.functional.cross_entropy(self.body(batch[0]), aims)


class Frozen(Targets):
    frozen = True


class Kept(Small):
    """Is pulled to where it began, which it keeps in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("copy", self.body[1].weight.detach().clone())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + (self.body[1].weight - self.copy).square().sum()


def pairs_of(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Each copy with its source."""
    state, pairs = full_state(module), []
    for name, value in state.items():
        ending = name.removeprefix("copy.module.").removeprefix("copy.")
        source = {"copy": "body.1.weight"}.get(name, f"body.{ending}")
        if name.startswith("copy") and source.endswith("weight") and source in state:
            pairs.append((value, state[source]))
    return pairs


class Copies(L.Callback):
    """Whether copies are 0 wherever their sources are, at each network's start and end."""

    def __init__(self) -> None:
        self.seen: list[list[bool]] = []

    def look(self, module: nn.Module) -> None:
        self.seen.append([not bool(ours[theirs == 0].any()) for ours, theirs in pairs_of(module)])

    def on_network_start(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        self.look(module)

    def on_network_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        self.look(module)


SETTINGS: dict[str, Any] = {"rounds": 1, "train_for": "9it", "metrics": FOREIGN_METRICS, "pruning": Pruning(rate=0.5)}


@pytest.mark.parametrize("kind", [Averaged, Targets, Frozen, Kept])
def test_copies_that_no_optimizer_trains_have_the_zeros_of_their_source(kind: Any, tmp_path: Path) -> None:
    def run(folder: str, *more: L.Callback, **given: Any) -> Any:
        torch.manual_seed(0)
        return fit(kind(), ForeignData(), tmp_path / folder, callbacks=more, **{**SETTINGS, **given})

    whole = run("whole", seen := Copies(), controls=["random_mask", "random_reinit"], rewind_to="2it")
    assert len(seen.seen) == 8 and all(map(all, seen.seen)) and seen.seen[0]
    ticket = whole.ticket(1)
    assert [*ticket.masks] == ["body.1.weight", "body.3.weight"] and whole.rows[1].density == pytest.approx(0.5)
    weights = [name for name in full_state(kind()) if name.startswith("copy") and name.endswith("weight")]
    reason = "not trained" if kind is Frozen else "trained by no optimizer"
    assert ticket.info["left_out"] == dict.fromkeys(weights, reason)
    applied = kind()
    ticket.apply(applied)
    assert all(not bool(ours[theirs == 0].any()) for ours, theirs in pairs_of(applied))
    if kind is not Targets:
        return
    given = run("given", Copies(), rounds=None, pruning=Pruning(), tickets=whole.lottery.folder.ticket(1))
    assert_same(given.ticket(1).trained, ticket.trained)
    with pytest.raises(RuntimeError, match="cut"):
        run("cut", Cut(6), controls=["random_mask", "random_reinit"], rewind_to="2it")
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    again = run("cut", ckpt_path=last, controls=["random_mask", "random_reinit"], rewind_to="2it")
    assert_same(again.ticket(1).trained, ticket.trained)


def test_a_rule_that_names_what_no_optimizer_trains_is_refused(tmp_path: Path) -> None:
    def every(module: nn.Module) -> dict[str, nn.Parameter]:
        return {name: one for name, one in module.named_parameters() if name.endswith("weight")}

    words = r"copy.1.weight is trained by no optimizer of configure_optimizers.* or leave it out by lottery.prunable"
    with pytest.raises(SettingError, match=words):
        fit(Targets(), ForeignData(), tmp_path / "run", prunable=every, **SETTINGS)
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------ values and names


def test_what_is_not_finite_before_training_is_no_divergence(tmp_path: Path) -> None:
    class Causal(Small):
        automatic_optimization = False  # shows no loss

        def __init__(self, spoils: bool) -> None:
            super().__init__()
            causal = torch.full((3, 3), float("-inf")).triu(1)
            self.causal, self.spoils = nn.Parameter(causal, requires_grad=False), spoils
            self.register_buffer("bias", causal.clone())

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            if self.spoils:
                self.causal.data[0, 0] = float("nan")

    settings = {**SETTINGS, "train_for": "2it"}
    assert len(fit(Causal(False), ForeignData(), tmp_path / "run", **settings).rows) == 2
    with pytest.raises(DivergedError, match="round 0, ticket, step 2: causal has weights that are not finite"):
        fit(Causal(True), ForeignData(), tmp_path / "spoilt", **settings)


def test_an_attribute_named_masks_need_not_be_a_tickets(tmp_path: Path) -> None:
    class Made(Small):
        def __init__(self) -> None:
            super().__init__()
            self.masks = {"body.1.weight": torch.ones(3)}

    assert len(fit(Made(), ForeignData(), tmp_path, **{**SETTINGS, "train_for": "2it"}).rows) == 2
