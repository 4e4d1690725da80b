"""A resume that cannot be honest is refused; a file that would execute something is not read; no write fails unseen."""

import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import weekly

from lth_lightning.cli.main import main
from lth_lightning.cli.run_dir import Reservation
from lth_lightning.errors import SettingError, WriteError
from lth_lightning.files import content_hash, make_folder, replace_file
from lth_lightning.runs.folder import RunFolder
from lth_lightning.runs.lock import LOCK
from lth_lightning.runs.settings import MAY_DIFFER, check_same
from lth_lightning.tickets.ticket import Ticket

# Lightning 2.6 calls jsonargparse by a name that 4.49 has made old; Python shows that to no user.
pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.usefixtures("plain_figures"),
]

REPOSITORY = Path(__file__).parents[2]
FIT = [
    *("fit", "--config", str(REPOSITORY / "configs/quickstart.yaml"), "--trainer.enable_progress_bar", "false"),
    *("--model.net", "MLP", "--model.net.hidden", "[20]"),
    *("--lottery.rounds", "1", "--lottery.train_for", "8it", "--lottery.controls", "[]"),
    *("--lottery.pruning.rates", '{"*.output.weight": 0.1, "*": 0.3}', "--data.train_size", "300"),
]
RUN = [*FIT, "--run_dir", "run"]
LAST = [*RUN, "--ckpt_path", "last"]
OWN_CONFIG = ["fit", "--config", "run/config.yaml", "--ckpt_path", "last"]
CHECKPOINT = Path("run/checkpoints/last.ckpt")
TICKETS = [Path(f"run/tickets/round_0{round}.safetensors") for round in (0, 1)]

MY_CALLBACKS = '''
import resource
import shutil
import subprocess
import sys
from lightning import Callback
from torch import nn

WIDTH = 20


class Net(nn.Sequential):
    def __init__(self, num_classes: int = 10):
        super().__init__(nn.Flatten(), nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, num_classes))


class InSecondNetwork(Callback):
    """Does something in the middle of the second network."""
    networks, step = 0, 4

    def on_network_start(self, *_):
        self.networks += 1

    def on_train_batch_end(self, trainer, *_):
        if self.networks == 2 and trainer.global_step == self.step:
            self.happen(trainer)


class Broken(InSecondNetwork):
    def happen(self, trainer):
        open("no such file")


class FolderGone(InSecondNetwork):
    def happen(self, trainer):
        shutil.rmtree(trainer.default_root_dir)


class FolderGoneLater(FolderGone):
    step = 7


class DiskFull(InSecondNetwork):
    wanted = True

    def happen(self, trainer):
        if DiskFull.wanted:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


class DiskFullLater(DiskFull):
    step = 7


class DiskFullForLogger(DiskFull):
    def happen(self, trainer):
        super().happen(trainer)
        trainer.logger.log_metrics({"x": 1.0}, 1)
        trainer.logger.experiment.flush()


TRY_LOCK = """
import fcntl, sys
try:
    fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("held")
"""


class TryLock(InSecondNetwork):
    answers = []

    def happen(self, trainer):
        lock = f"{trainer.default_root_dir}/.lock"
        answer = subprocess.run([sys.executable, "-c", TRY_LOCK, lock], capture_output=True, text=True, check=True)
        self.answers.append(answer.stdout)
'''
HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two networks."""
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("finished") / "run"
    assert main([*FIT, "--run_dir", str(run)]) == 0
    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, with a module of the user's own on the path."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/my_callbacks.py").write_text(MY_CALLBACKS)
    (tmp_path / "here").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "here"
    sys.modules.pop("my_callbacks", None)


@pytest.fixture
def run(here: Path, finished: Path) -> Path:
    """A finished run in the working directory, `run`."""
    shutil.copytree(finished, here / "run")
    return here / "run"


Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """`refused(args)` runs a command that must fail as it should and leave every file as it is; its error."""

    def call(args: list[str]) -> str:
        capsys.readouterr()
        before = _contents()
        assert main(args) == 2
        out, err = capsys.readouterr()
        assert err.startswith("error: ") and "Traceback" not in err and not out
        assert _contents() == before
        return err

    return call


def _contents() -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in Path.cwd().rglob("*")}


def _checkpoint() -> dict[str, Any]:
    return torch.load(CHECKPOINT, weights_only=True)


def _change_checkpoint(change: Callable[[dict[str, Any]], None]) -> None:
    checkpoint = _checkpoint()
    change(checkpoint)
    torch.save(checkpoint, CHECKPOINT)


def _rows(run: Path) -> list[str]:
    """results.csv without the times."""
    lines = [line.split(",") for line in (run / "results.csv").read_text().splitlines()]
    seconds = lines[0].index("seconds")
    return [",".join(line[:seconds] + line[seconds + 1 :]) for line in lines]


# ------------------------------------------------------------------------------------- by other settings

OTHER: dict[str, tuple[list[str], list[str]]] = {
    "data": (["--data.train_size", "200"], ["data.train_size was 300, is 200"]),
    "two at once": (
        ["--data.train_size", "null", "--data.augment", "true"],
        ["data.train_size was 300, is null; data.augment was false, is true."],
    ),
    "network's argument": (["--model.net.hidden", "[20, 10]"], ["model.net.init_args.hidden was [20], is [20, 10]"]),
    "network": (
        ["--model.net", "Conv2"],
        ["model.net was lth_lightning.models.MLP, is lth_lightning.models.Conv2."],
    ),
    "initialisation": (["--model.init", "kaiming_normal"], ["model.init was glorot_normal, is kaiming_normal"]),
    "seed": (["--seed_everything", "2"], ["seed_everything was 1, is 2"]),
    "optimizer's argument": (["--model.optimizer.lr", "1e-3"], ["model.optimizer.init_args.lr was 0.0012, is 0.001"]),
    "optimizer": (["--model.optimizer", "SGD"], ["model.optimizer was torch.optim.adam.Adam, is torch.optim.sgd.SGD."]),
    "schedule": (
        ["--model.lr_scheduler", "StepLR", "--model.lr_scheduler.step_size", "5"],
        ["model.lr_scheduler was null, is torch.optim.lr_scheduler.StepLR."],
    ),
    "rounds": (["--lottery.rounds", "2"], ["lottery.rounds was 1, is 2"]),
    "order of the globs, the first of which counts": (
        ["--lottery.pruning.rates", '{"*": 0.3, "*.output.weight": 0.1}'],
        ['lottery.pruning.rates was {"*.output.weight": 0.1, "*": 0.3}, is {"*": 0.3, "*.output.weight": 0.1}.'],
    ),
    "criterion": (
        ["--lottery.pruning.criterion", "Random"],
        ["lottery.pruning.criterion was lth_lightning.Magnitude, is lth_lightning.Random."],
    ),
    "clipping": (["--trainer.gradient_clip_val", "1"], ["trainer.gradient_clip_val was null, is 1"]),
    "accumulation": (["--trainer.accumulate_grad_batches", "2"], ["trainer.accumulate_grad_batches was 1, is 2"]),
    "precision": (["--trainer.precision", "bf16-mixed"], ["trainer.precision was null, is bf16-mixed"]),
    "callback that stops": (
        ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val_loss"],
        ["trainer.callbacks was [], is [lightning.pytorch.callbacks.early_stopping.EarlyStopping]."],
    ),
}


USUAL = ("two at once", "network", "order of the globs, the first of which counts", "optimizer", "precision")
USUAL += ("callback that stops",)


@pytest.mark.parametrize("other", [pytest.param(one, marks=() if one in USUAL else weekly) for one in OTHER])
def test_a_run_does_not_go_on_by_other_settings(other: str, run: Path, refused: Refused) -> None:
    given, expected = OTHER[other]
    error = refused([*LAST, *given])
    assert error.startswith("error: ckpt_path: the run began with other settings: ")
    assert not [part for part in expected if part not in error], error


def test_an_edited_config_of_the_run_itself_is_found_out(run: Path, refused: Refused) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["train_size"] = 299
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert "data.train_size was 300, is 299." in refused(OWN_CONFIG)


STOP = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val_loss", "--trainer.callbacks.patience"]


def test_callbacks_that_stop_training_must_be_the_same_and_those_that_look_on_need_not(
    here: Path, refused: Refused, capsys: Any
) -> None:
    assert main([*RUN, "--trainer.callbacks+=LearningRateMonitor", *STOP, "3"]) == 0
    assert (
        refused(LAST).count("trainer.callbacks was [lightning.pytorch.callbacks.early_stopping.EarlyStopping], is [].")
        == 1
    )
    assert "trainer.callbacks[0].init_args.patience was 3, is 4." in refused([*LAST, *STOP, "4"])
    assert main([*LAST, *STOP, "3", "--trainer.callbacks+=ModelSummary"]) == 0


SAME: dict[str, list[str]] = {
    "as it began": LAST,
    "its own config": OWN_CONFIG,
    "its own config, and what is in it": [*OWN_CONFIG, "--data.train_size", "300", "--run_dir", "run"],
    "another order": ["fit", "--ckpt_path", "last", "--run_dir", "run", "--data.train_size", "300", *FIT[1:]],
    "longer names": [*LAST, "--model.net", "lth_lightning.models.mlp.MLP", "--model.net.hidden", "[20]"],
    "an earlier version's names": [
        *(*LAST, "--lottery.pruning.criterion", "lth_lightning.pruning.Magnitude"),
        *("--trainer.callbacks+=lth_lightning.board.LotteryBoard", "--data.dataset", "Digits"),
    ],
    "elsewhere": [
        *LAST,
        *("--trainer.devices", "1", "--trainer.strategy", "auto", "--data.data_dir", "/elsewhere"),
        *("--data.download", "false", "--trainer.max_time", "01:00:00:00", "--trainer.detect_anomaly", "true"),
    ],
    "another display": [
        *(*LAST, "--trainer.logger", "false", "--trainer.log_every_n_steps", "3"),
        *(
            "--trainer.callbacks+=lightning.pytorch.callbacks.model_checkpoint.ModelCheckpoint",
            "--trainer.callbacks+=lightning.pytorch.callbacks.TQDMProgressBar",
        ),
        *("--trainer.enable_progress_bar", "true", "--trainer.enable_checkpointing", "true"),
    ],
}


LIKE_ANOTHER = ("its own config, and what is in it", "another order")


@pytest.mark.parametrize("same", [pytest.param(one, marks=weekly if one in LIKE_ANOTHER else ()) for one in SAME])
@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_run_goes_on_by_the_same_settings_however_they_are_given(same: str, run: Path, capsys: Any) -> None:
    before = _rows(run)
    assert main(SAME[same]) == 0, capsys.readouterr().err
    assert _rows(run) == before, "the seconds too: nothing was trained again"


def test_a_run_of_an_earlier_version_is_resumed_and_repeated(run: Path, capsys: Any) -> None:
    """Its files name classes by the modules that they lived in."""
    old = {
        "lth_lightning.Magnitude": "lth_lightning.pruning.Magnitude",
        "lth_lightning.prunable_weights": "lth_lightning.masks.prunable_weights",
        "lth_lightning.models.MLP": "lth_lightning.models.mlp.MLP",
    }

    def aged(text: str) -> str:
        for now, then in old.items():
            assert now in text
            text = text.replace(now, then)
        return text

    stored = _checkpoint()["callbacks"]["SaveRunConfig"]["settings"]
    _change_checkpoint(lambda checkpoint: checkpoint["callbacks"]["SaveRunConfig"].update(settings=aged(stored)))
    (run / "config.yaml").write_text(aged((run / "config.yaml").read_text()))
    before = _rows(run)
    assert main(LAST) == 0 and main(OWN_CONFIG) == 0, capsys.readouterr().err
    assert main(["fit", "--config", "run/config.yaml", "--run_dir", "again"]) == 0
    assert _rows(run) == _rows(Path("again")) == before
    assert yaml.safe_load(Path("again/config.yaml").read_text())["model"]["net"]["class_path"] in old


def test_a_run_that_was_moved_goes_on(run: Path, capsys: Any) -> None:
    run.rename(run.with_name("moved"))
    assert main([*FIT, "--run_dir", "moved", "--ckpt_path", "last"]) == 0
    assert main(["fit", "--config", "moved/config.yaml", "--ckpt_path", "last"]) == 0


def test_settings_that_may_differ_are_settings_that_there_are(run: Path) -> None:
    then = json.loads(_checkpoint()["callbacks"]["SaveRunConfig"]["settings"])
    names = {*then, *(f"{part}.{name}" for part, names in then.items() if isinstance(names, dict) for name in names)}
    patterns = {pattern for patterns in MAY_DIFFER.values() for pattern in patterns}
    unknown = {p for p in patterns if not any(name.startswith(p.rstrip("*")) for name in names)}
    assert not unknown
    for pattern in sorted(patterns - unknown):
        name = next(name for name in names if name.startswith(pattern.rstrip("*")))
        now = json.loads(json.dumps(then))
        part, _, last = name.rpartition(".")
        (now[part] if part else now)[last] = "another"
        check_same(json.dumps(then), json.dumps(now))


@pytest.mark.parametrize("stored", [None, {}, {"SaveRunConfig": 3}, {"SaveRunConfig": {"settings": "[]"}}, [1]])
def test_a_checkpoint_that_does_not_say_by_which_settings_is_refused(stored: Any, run: Path, refused: Refused) -> None:
    _change_checkpoint(lambda checkpoint: checkpoint.update(callbacks=stored))
    assert "the checkpoint does not record the settings that the run began with" in refused(LAST)


# ------------------------------------------------------------------------------------- checkpoints that are no good


def test_a_network_whose_code_has_changed_does_not_go_on(here: Path, capsys: Any) -> None:
    own = [*FIT[:5], *FIT[9:], "--model.net", "my_callbacks.Net", "--run_dir", "run", "--lottery.pruning.rates", "{}"]
    assert main(own) == 0
    sys.modules["my_callbacks"].WIDTH = 30  # type: ignore[attr-defined]
    before = _contents()
    assert main([*own, "--ckpt_path", "last"]) == 2 and _contents() == before
    reason = "ckpt_path: the checkpoint is of another network: net.1.bias ((20,) in the checkpoint, (30,)"
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(kept: float, run: Path, refused: Refused) -> None:
    whole = CHECKPOINT.read_bytes()
    CHECKPOINT.write_bytes(whole[: int(kept * len(whole))])
    for command in (LAST, ["test", "--config", "run/config.yaml", "--ckpt_path", str(CHECKPOINT)]):
        assert f"{CHECKPOINT} is not a checkpoint, or is damaged" in refused(command)


def test_a_checkpoint_with_one_wrong_bit_is_refused(run: Path, refused: Refused) -> None:
    weight = _checkpoint()["state_dict"]["net.fc1.weight"].numpy().tobytes()
    content = bytearray(CHECKPOINT.read_bytes())
    content[content.index(weight) + 77] ^= 1
    CHECKPOINT.write_bytes(content)
    assert torch.load(CHECKPOINT, weights_only=True), "torch sees nothing wrong"
    assert f"{CHECKPOINT} is damaged" in refused(LAST)


# ------------------------------------------------------------------------------------- files that would execute code


class Bomb:
    """Makes the file `exploded` when it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("exploded"),)


def test_a_checkpoint_that_would_execute_something_is_not_unpickled(run: Path, refused: Refused) -> None:
    _change_checkpoint(lambda checkpoint: checkpoint.update(extra=Bomb()))
    for command in ("fit", "test", "validate", "predict"):
        error = refused([command, "--config", "run/config.yaml", "--ckpt_path", "last"])
        assert f"{CHECKPOINT} is not a checkpoint, or is damaged (UnpicklingError)" in error
    torch.save(Bomb(), "old_format.ckpt", _use_new_zipfile_serialization=False)
    assert "old_format.ckpt is not a checkpoint" in refused(_test_of("old_format.ckpt"))
    assert not Path("exploded").exists()
    torch.load(CHECKPOINT, weights_only=False)
    assert Path("exploded").exists(), "it would have"


def _test_of(weights: str) -> list[str]:
    return ["test", "--config", "run/config.yaml", "--ckpt_path", weights]


def test_a_pickle_is_no_ticket(run: Path, refused: Refused) -> None:
    Path("bomb.safetensors").write_bytes(pickle.dumps(Bomb()))
    torch.save(Bomb(), "zip.safetensors")
    for name in ("bomb.safetensors", "zip.safetensors"):
        from_files = [*FIT, "--lottery.rounds", "null", "--lottery.tickets", name]
        for command in (from_files, _test_of(name)):
            assert f"{name} is not a ticket, or is damaged" in refused(command)
    assert not Path("exploded").exists()


@pytest.mark.parametrize("setting", ["config", "data", "model", "lottery", "trainer", "model.net", "trainer.logger"])
def test_a_config_executes_nothing(setting: str, here: Path, refused: Refused) -> None:
    tag = '!!python/object/apply:os.system ["touch exploded"]'
    Path("bomb.yaml").write_text(f"extra: {tag}\n")
    assert "bomb.yaml" in refused([*FIT, f"--{setting}", "bomb.yaml"])
    for value in (tag, f"{{a: {tag}}}"):
        refused([*FIT, f"--{setting}", value])
    assert not Path("exploded").exists()
    yaml.unsafe_load(Path("bomb.yaml").read_text())
    assert Path("exploded").exists(), "it would have"


# ------------------------------------------------------------------------------------- tickets that a run has shown


def test_a_run_knows_its_tickets_again(run: Path) -> None:
    folder = RunFolder(run)
    hashes = {round: content_hash(path) for round, path in enumerate(TICKETS)}
    folder.check_tickets(hashes)
    folder.check_tickets({})

    Ticket.load(TICKETS[0]).save(TICKETS[1])  # whole, but another one
    with pytest.raises(SettingError, match="round_01.safetensors has changed"):
        folder.check_tickets(hashes)
    folder.check_tickets({0: hashes[0]})
    TICKETS[0].unlink()
    with pytest.raises(SettingError, match="round_00.safetensors is missing"):
        folder.check_tickets(hashes)


# ------------------------------------------------------------------------------------- full disks, folders that vanish


@contextmanager
def _disk_of(size: int) -> Iterator[None]:
    """Files cannot grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old")
    with _disk_of(10), pytest.raises(WriteError, match=f"cannot write {path}: File too large"):
        replace_file(path, b"new and longer")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_has_vanished_is_not_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "run" / "file"
    with pytest.raises(WriteError, match=f"cannot write {path}: the folder {path.parent} does not exist."):
        replace_file(path, b"")
    (tmp_path / "a file").touch()
    with pytest.raises(WriteError, match="cannot make the folder"):
        make_folder(tmp_path / "a file" / "folder")
    assert [file.name for file in tmp_path.iterdir()] == ["a file"]


@pytest.mark.parametrize(("callback", "file"), [("FolderGone", CHECKPOINT), ("FolderGoneLater", TICKETS[1])], ids=str)
def test_a_run_whose_folder_is_removed_ends_and_makes_no_other(
    callback: str, file: Path, here: Path, capsys: Any
) -> None:
    own = [*RUN, "--trainer.callbacks", f"my_callbacks.{callback}"]
    assert main([*own, "--trainer.logger", "false"]) == 2
    assert capsys.readouterr().err == f"error: cannot write {file}: the folder {file.parent} does not exist.\n"
    assert main(own) == 2
    assert (err := capsys.readouterr().err).startswith("error: cannot write run/") and ": the folder run/" in err
    assert not Path("run").exists()


@pytest.mark.parametrize(("size", "file"), [(1000, "config.yaml"), (10_000, "checkpoints/last.ckpt")])
def test_a_run_that_cannot_begin_for_want_of_space_leaves_nothing(
    size: int, file: str, here: Path, refused: Refused
) -> None:
    with _disk_of(size):
        assert refused(RUN) == f"error: cannot write run/{file}: File too large.\n"


@pytest.mark.parametrize(
    ("callback", "file"),
    [("DiskFull", CHECKPOINT), ("DiskFullLater", TICKETS[1]), ("DiskFullForLogger", Path("run"))],
    ids=str,
)
def test_a_run_out_of_space_says_so_and_goes_on_when_there_is_some(
    callback: str, file: Path, here: Path, finished: Path, capsys: Any
) -> None:
    last = [*LAST, "--trainer.callbacks", f"my_callbacks.{callback}"]
    last += [] if callback == "DiskFullForLogger" else ["--trainer.logger", "false"]  # it would come first
    with _disk_of(10**9):
        assert main(last) == 2
    way_out = "To resume, add --ckpt_path last --run_dir run to the command."
    assert capsys.readouterr().err == f"error: cannot write {file}: File too large. {way_out}\n"
    assert Ticket.load(TICKETS[0]).density == 1 and len(_rows(Path("run"))) == 2

    sys.modules["my_callbacks"].DiskFull.wanted = False  # type: ignore[attr-defined]
    assert main(last) == 0
    assert _rows(Path("run")) == _rows(finished)
    assert TICKETS[1].read_bytes() == (finished / "tickets/round_01.safetensors").read_bytes()


def test_a_report_without_space_says_so_and_keeps_the_last_one(run: Path, refused: Refused) -> None:
    assert main(["report", "run"]) == 0
    with _disk_of(5000):
        assert refused(["report", "run"]) == "error: cannot write run/report.html: File too large.\n"


def test_an_error_that_is_not_the_disks_keeps_its_traceback(here: Path) -> None:
    with pytest.raises(FileNotFoundError):
        main([*RUN, "--trainer.callbacks", "my_callbacks.Broken"])


def test_what_a_kill_has_left_half_written_is_never_read_and_goes_with_the_next_resume(run: Path, capsys: Any) -> None:
    leftovers = [run / f"{name}.x7.unfinished" for name in (".results.csv", "tickets/.round_02.safetensors")]
    leftovers += [run / "figures/.accuracy.png.x7.unfinished", run / "checkpoints/last.unfinished"]
    for path in leftovers:
        path.write_bytes(b"half of it")
    own = run / "notes.txt"
    own.write_text("mine")
    from_files = ["--lottery.rounds", "null", "--lottery.pruning.rates", "{}", "--lottery.tickets", "run/tickets"]
    assert main([*FIT, *from_files, "--run_dir", "again"]) == 0
    assert main(["report", "run"]) == 0 and all(path.exists() for path in leftovers)
    assert main(LAST) == 0
    assert not list(run.rglob("*.unfinished")) and own.read_text() == "mine"


# ------------------------------------------------------------------------------------- two processes on one run


@contextmanager
def _other_process(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    with subprocess.Popen([sys.executable, "-c", HOLD, lock], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_run_that_another_process_writes_does_not_go_on(run: Path, refused: Refused, capsys: Any) -> None:
    with _other_process(run / LOCK) as process:
        for command in (LAST, OWN_CONFIG):
            assert "another process is writing to this run, run" in refused(command)
        assert main(_test_of("last")) == 0, "it may be read"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert main(LAST) == 0, "the kernel releases what a killed process held"
    assert not (run / LOCK).exists()


def test_a_folder_that_another_process_has_just_taken_is_refused(here: Path, refused: Refused) -> None:
    Path("run").mkdir()
    with _other_process(Path("run") / LOCK):
        assert "another process is writing to this run" in refused(RUN)
        assert "another process is writing to this run" in refused(LAST)


def test_a_run_is_locked_from_its_start_to_its_end(here: Path, capsys: Any) -> None:
    assert main([*RUN, "--trainer.callbacks", "my_callbacks.TryLock"]) == 0
    assert sys.modules["my_callbacks"].TryLock.answers == ["held\n"]  # type: ignore[attr-defined]
    assert not (here / "run" / LOCK).exists()


def test_a_lock_is_free_again_once_released(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    first = folder.lock()
    with pytest.raises(SettingError, match="another process"):
        folder.lock()
    first.release()
    second = folder.lock()
    first.release()  # again: it is not the first's any more
    with pytest.raises(SettingError, match="another process"):
        folder.lock()
    second.release()
    assert not list(tmp_path.iterdir())


def test_a_lock_on_a_file_that_its_last_holder_removes_keeps_others_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    first = RunFolder(tmp_path).lock()
    real, calls = fcntl.flock, []

    def flock(descriptor: int, operation: int) -> None:
        if not calls:  # between the second's opening the file and locking it, the first is done
            first.release()
        calls.append(descriptor)
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    second = RunFolder(tmp_path).lock()
    assert len(calls) == 2
    with pytest.raises(SettingError, match="another process"):
        RunFolder(tmp_path).lock()
    second.release()


def test_a_file_system_without_locks_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    RunFolder(tmp_path).lock().release()
    assert not list(tmp_path.iterdir())


def test_a_reservation_that_is_refused_takes_nothing_from_the_run_that_has_the_folder(tmp_path: Path) -> None:
    first = Reservation(tmp_path / "run", tmp_path)
    with pytest.raises(SettingError, match="another process"):
        Reservation(tmp_path / "run", tmp_path)
    assert first.path.is_dir()
    first.give_back()
    assert not list(tmp_path.iterdir())
