"""A run that is killed, at any moment and however often, ends as one that nobody has killed.

Real processes with the real command line, really killed, and continued with the same command and `--ckpt_path last`.
`LTH_THOROUGH=1 LTH_KILLS=20 LTH_SEEDS=2 pytest -s tests/behaviour/test_kills.py` kills every experiment, each more
often, and says how often.
"""

import csv
import multiprocessing
import os
import random
import re
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import HANGS, THOROUGH, draw_plainly, weekly
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from lth_lightning.cli.main import main
from lth_lightning.runs.lock import LOCK

KILLS = int(os.environ.get("LTH_KILLS", "2" if THOROUGH else "1"))  # at random moments, of each experiment and seed
SEEDS = int(os.environ.get("LTH_SEEDS", "1"))


class Dropping(nn.Module):
    """A network with every kind of state: weights, running statistics, and chance in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3))
        self.output = nn.Linear(216, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.output(self.body(images))


def command(**settings: str) -> list[str]:
    """The command line of a small experiment: 5 steps an epoch."""
    settings = {
        "data.dataset": "Digits",
        "data.train_size": "200",
        "data.val_size": "100",
        "data.batch_size": "40",
        "trainer.accelerator": "cpu",
        "trainer.log_every_n_steps": "1",
        **{name.replace("__", "."): value for name, value in settings.items()},
    }
    return ["fit", *(part for name, value in settings.items() for part in (f"--{name}", value))]


MLP = '{"class_path": "MLP", "init_args": {"hidden": [20, 10]}}'
ADAM = '{"class_path": "torch.optim.Adam", "init_args": {"lr": 3e-3}}'
SGD = '{"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}}'

EXPERIMENTS = {
    "all controls, late rewinding": command(
        model__net=MLP,
        model__optimizer=ADAM,
        lottery__rounds="2",
        lottery__train_for="13it",
        lottery__rewind_to="3it",
        lottery__controls="[random_reinit, random_mask, pruned_only]",
    ),
    "learning-rate rewinding, dropout, batch norm, augmented data": command(
        model__net=f"{__name__}.Dropping",
        model__optimizer=SGD,
        model__lr_scheduler='{"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 2}}',
        data__augment="true",
        lottery__rounds="1",
        lottery__train_for="3ep",
        lottery__checkpoint_every_n_train_steps="2",
        lottery__rewind="learning_rate",
        lottery__controls="[random_reinit]",
        trainer__val_check_interval="2",
    ),
    "one-shot pruning, plateaus": command(
        model__net='{"class_path": "ResNet", "init_args": {"depth": 8, "width": 4}}',
        model__optimizer=SGD,
        model__lr_scheduler='{"class_path": "torch.optim.lr_scheduler.ReduceLROnPlateau", '
        '"init_args": {"patience": 0, "factor": 0.5}}',
        lottery__train_for="3ep",
        lottery__rewind_to="1ep",
        lottery__pruning='{"densities": [0.5, 0.25], "prune_from": "dense", "scope": "global"}',
        lottery__controls="[pruned_only, random_mask]",
    ),
    "fine-tuning, early stopping, accumulated gradients": command(
        model__net=MLP,
        model__optimizer=ADAM,
        lottery__rounds="2",
        lottery__train_for="20it",
        model__lr_scheduler='{"class_path": "torch.optim.lr_scheduler.ExponentialLR", "init_args": {"gamma": 0.8}}',
        lottery__rewind="nothing",
        lottery__data_order="same",
        lottery__controls="[random_mask]",
        lottery__control_replicates="2",
        trainer__accumulate_grad_batches="2",
        trainer__callbacks='[{"class_path": "EarlyStopping", "init_args": {"monitor": "val_loss", "min_delta": 0.1, '
        '"patience": 2}}]',
    ),
}
USUAL = "learning-rate rewinding, dropout, batch norm, augmented data"  # the one with every kind of state
every_experiment = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == USUAL else weekly) for name in EXPERIMENTS]
)
ONE_EPOCH = command(
    model__net=f"{__name__}.Dropping",
    model__optimizer=ADAM,
    data__batch_size="5",
    lottery__rounds="1",
    lottery__train_for="1ep",
    trainer__val_check_interval="4",
)  # 40 steps


# ------------------------------------------------------------------------------------- moments


@dataclass(frozen=True)
class Operation:
    """Something that a process does to a file of its run: an audit event of Python's, and what the file is."""

    event: str
    file: str


@dataclass(frozen=True)
class Moment:
    """Before, within or after the n-th time that a process does such an operation."""

    operation: Operation
    how: str
    n: int = 1

    def __str__(self) -> str:
        return f"until {self.how} {self.operation.event} of {self.operation.file} number {self.n}"


def operation(event: str, args: tuple[Any, ...], run: Path) -> Operation | None:
    """The operation that an audit event announces; None for anything that changes no file of the run."""
    match event, args:
        case "open", (str() | bytes() as path, _, int() as flags) if flags & (os.O_WRONLY | os.O_RDWR):
            pass
        case "os.rename", (_, path, *_):
            pass
        case (("os.remove" | "os.truncate"), (path, *_)):
            pass
        case _:
            return None
    absolute = Path(os.path.abspath(os.fsdecode(path)))
    if not absolute.is_relative_to(run) or absolute.is_dir() or absolute.name == LOCK:  # which holds nothing
        return None
    return Operation(event, kind(str(absolute.relative_to(run))))


def kind(name: str) -> str:
    """What all files of one kind have in common: a file and its precursor, all tickets, all curves, all figures."""
    name = re.sub(r"(^|/)\.(.+)\.\w{8}\.unfinished$", r"\1\2", name)
    name = re.sub(r"/round \d+ [^/]*", "/round", re.sub(r"/all rounds, [^/]*", "/all rounds", name))
    name = re.sub(r"events\.out\..*", "events", re.sub(r"round_\d+\.", "round.", name))
    return re.sub(r"(figures|curves)/.*", r"\1/*", name)


Hook = Callable[[str, tuple[Any, ...]], None]


def recorder(run: Path, record: Path) -> Hook:
    """An audit hook that writes down each operation and when it came."""
    out, start = record.open("w", buffering=1), time.monotonic()

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if found := operation(event, args, run):
            out.write(f"{time.monotonic() - start}\t{found.event}\t{found.file}\n")

    return hook


def killer(run: Path, moment: Moment) -> Hook:
    """An audit hook that kills its own process.

    Within an operation: as soon as the file has 99 bytes more than before, by the kernel's limit of its size, which
    kills a process in the middle of a `write` just as SIGKILL does, without a word to it.
    """
    left, done = moment.n, False

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal left, done
        if event == "os.kill":
            return
        if done:
            os.kill(os.getpid(), signal.SIGKILL)
        if operation(event, args, run) != moment.operation:
            return
        left -= 1
        if left:
            return
        if moment.how == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        elif moment.how == "after":
            done = True
        else:
            size = os.path.getsize(args[0]) if os.path.exists(args[0]) else 0
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 99, size + 99))

    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    return hook


# ------------------------------------------------------------------------------------- processes


def child(args: list[str], run: Path, log: Path, number: int, moment: Moment | None, record: Path | None) -> None:
    """What a process does: the command line, and nothing else but what it is to die of."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    torch.set_num_threads(1)
    draw_plainly(pytest.MonkeyPatch())
    # TensorBoard orders event files by the second of their start. A real process takes seconds to start, this one none.
    now = time.time
    time.time = lambda: now() + 60 * number
    if record is not None:
        sys.addaudithook(recorder(run, record))
    if moment is not None:
        sys.addaudithook(killer(run, moment))
    sys.exit(main(args))


class Experiment:
    """One run folder, and the processes that work on it one after the other.

    Args:
        args: the command line.
        folder: where the run and what its processes say go.
    """

    def __init__(self, args: list[str], folder: Path) -> None:
        self.run, self.log = folder / "run", folder / "log.txt"
        folder.mkdir(parents=True, exist_ok=True)
        self.args = [*args, "--run_dir", str(self.run)]
        self.starts = self.kills = 0

    def go(self, seconds: float | None = None, moment: Moment | None = None, record: Path | None = None) -> bool:
        """Start the command, or go on with it.

        Args:
            seconds: when to kill it.
            moment: when it is to kill itself.
            record: where it is to write down what it does to its files.

        Returns:
            Whether it came to its end.
        """
        args = [*self.args, "--ckpt_path", "last"] if self.starts else self.args
        with self.log.open("a") as log:
            print(f"[{self.starts}]", f"for {seconds:.3f} s" if seconds else moment or "to the end", file=log)
        self.starts += 1
        process = FORKSERVER.Process(target=child, args=(args, self.run, self.log, self.starts, moment, record))
        process.start()
        process.join(seconds or HANGS)
        if process.exitcode is None:
            assert process.pid is not None
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
            process.join()
            assert seconds, f"still running after {HANGS} s:\n{self.log.read_text()}"
        killed = process.exitcode in (-signal.SIGKILL, -signal.SIGXFSZ)
        assert killed or process.exitcode == 0, f"exit code {process.exitcode}:\n{self.log.read_text()}"
        self.kills += killed
        return not killed

    @property
    def rows(self) -> int:
        """Networks that are done."""
        results = self.run / "results.csv"
        return results.read_text().count("\n") - 1 if results.exists() else 0


FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    [
        *(
            "lth_lightning.cli.lightning_cli",
            "lth_lightning.report.figures",
            "sklearn.datasets",
            "torch.utils.tensorboard",
        ),
        *("pytest", "hypothesis", "tensorboard.backend.event_processing.event_accumulator"),
    ]
)


# ------------------------------------------------------------------------------------- what a run leaves


def outcome(run: Path) -> dict[str, Any]:
    """Everything in a finished run's folder that must not depend on kills; only time may."""
    checkpoint = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    return {
        "files": sorted({kind(str(path.relative_to(run))) for path in run.rglob("[!.]*") if path.is_file()}),
        "rows": rows(run),
        "bytes": {name: (run / name).read_bytes() for name in ("config.yaml", "layers.csv")},
        "tickets": {path.name: path.read_bytes() for path in (run / "tickets").glob("[!.]*")},
        "weights": {name: value.tolist() for name, value in checkpoint["state_dict"].items()},
        "curves": {path.name: path.read_bytes() for path in (run / "curves").glob("[!.]*")},
        "points": {folder.name: points(folder) for folder in (run / "tensorboard").iterdir()},
    }


def rows(run: Path) -> list[dict[str, str]]:
    """The lines of results.csv but for the time."""
    with (run / "results.csv").open(newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The points of each tag as TensorBoard shows them."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0}).Reload()
    curves = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    weights = {
        tag: [(e.step, e.histogram_value) for e in events.Histograms(tag)] for tag in events.Tags()["histograms"]
    }
    return curves | weights


@dataclass(frozen=True)
class Reference:
    """A run that nobody has killed: what it left, and what it did to its files after how many seconds."""

    outcome: dict[str, Any]
    operations: list[tuple[float, Operation]]

    def __post_init__(self) -> None:
        for tags in self.outcome["points"].values():
            for curve in tags.values():
                steps = [step for step, _ in curve]
                assert steps == sorted(set(steps))

    def check(self, experiment: Experiment) -> None:
        """A run that has been killed left the same."""
        ours = outcome(experiment.run)
        differ = [part for part in self.outcome if ours[part] != self.outcome[part]]
        for part in differ:
            assert ours[part] == self.outcome[part], f"{differ} differ:\n{experiment.log.read_text()}"

    def check_remains(self, experiment: Experiment) -> None:
        """What is there after a kill is whole: the first rows of a table, and files as they will be in the end."""
        run = experiment.run
        if (run / "results.csv").exists():
            assert (run / "results.csv").read_text().endswith("\n")
            assert rows(run) and rows(run) == self.outcome["rows"][: len(rows(run))]
        for name, whole in self.outcome["bytes"].items():
            there = (run / name).read_bytes() if (run / name).exists() else whole
            assert whole.startswith(there) and there.endswith(b"\n"), name
        for ticket in (run / "tickets").glob("[!.]*"):
            assert ticket.read_bytes() == self.outcome["tickets"][ticket.name]

    def times(self, file: str) -> list[float]:
        """The seconds at which a kind of file was written."""
        return [second for second, done in self.operations if done.file == file]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[str]], Reference]:
    """`reference(args)`: the run that nobody has killed."""
    known: dict[tuple[str, ...], Reference] = {}

    def run(args: list[str]) -> Reference:
        if tuple(args) not in known:
            folder = tmp_path_factory.mktemp("reference")
            experiment, record = Experiment(args, folder), folder / "record.txt"
            assert experiment.go(record=record)
            lines = [line.split("\t") for line in record.read_text().splitlines()]
            known[tuple(args)] = Reference(
                outcome(experiment.run), [(float(second), Operation(event, file)) for second, event, file in lines]
            )
        return known[tuple(args)]

    return run


@pytest.fixture
def count(record_property: Callable[[str, object], None]) -> Callable[[str, list[Experiment]], None]:
    """`count(what, experiments)` says how many kills there were."""

    def say(what: str, experiments: list[Experiment]) -> None:
        kills, starts = (sum(getattr(one, name) for one in experiments) for name in ("kills", "starts"))
        record_property("kills", kills)
        print(f"\n{what}: {kills} kills, {starts - len(experiments)} resumes, {len(experiments)} finished runs")

    return say


# ------------------------------------------------------------------------------------- tests

Of = Callable[[list[str]], Reference]
Count = Callable[[str, list[Experiment]], None]


@weekly
@pytest.mark.parametrize("seed", range(SEEDS))
@every_experiment
def test_kills_at_random_moments_change_nothing(
    name: str, seed: int, reference: Of, count: Count, tmp_path: Path
) -> None:
    whole, chance = reference(EXPERIMENTS[name]), random.Random(f"{name}, {seed}")
    begin, end = whole.times("config.yaml")[0], whole.times("checkpoints/last.ckpt")[-1]
    done: list[Experiment] = []
    left = KILLS
    while left:
        experiment = Experiment(EXPERIMENTS[name], tmp_path / str(len(done)))
        done.append(experiment)
        finished = False
        while left and not finished:
            remaining = (end - begin) * (1 - experiment.rows / len(whole.outcome["rows"]))
            moment = chance.uniform(begin / 2, begin + remaining + 0.1)
            finished = experiment.go(seconds=moment)
            whole.check_remains(experiment)
            left -= not finished
        assert finished or experiment.go()
        whole.check(experiment)
    count(f"{name}, seed {seed}, at random moments", done)


def hows(operation: Operation, others: Collection[Operation]) -> tuple[str, ...]:
    """After a file's precursor was written is before it takes the file's name."""
    if operation.event != "open":
        return ("before", "after")
    return ("within",) if Operation("os.rename", operation.file) in others else ("within", "after")


WRITTEN = {
    *("config.yaml", "checkpoints/last.ckpt", "tickets/round.safetensors", "results.csv", "layers.csv", "curves/*"),
    *("tensorboard/round/events", "tensorboard/all rounds/events", "report.md", "report.html", "figures/*"),
    "environment.json",
}


@pytest.mark.parametrize("seed", range(SEEDS))
@every_experiment
def test_kills_before_within_and_after_each_kind_of_write_change_nothing(
    name: str, seed: int, reference: Of, count: Count, tmp_path: Path
) -> None:
    """The moments are divided among the experiments, and of each operation one is taken; with 12 seeds each has all.

    In the usual run its one experiment has a moment of each kind of file.
    """
    whole, chance = reference(EXPERIMENTS[name]), random.Random(f"{name}, {seed}")
    operations = Counter(operation for _, operation in whole.operations)  # in the order of their first time
    assert {operation.file for operation in operations} >= WRITTEN
    turn = list(EXPERIMENTS).index(name) + seed
    if THOROUGH:
        divided = [part for i, part in enumerate(operations) if i % len(EXPERIMENTS) == turn % len(EXPERIMENTS)]
    else:
        of_files = [[one for one in operations if one.file == file] for file in sorted({o.file for o in operations})]
        divided = [of_one[i % len(of_one)] for i, of_one in enumerate(of_files)]
        divided.sort(key=list(operations).index)
    todo = []
    for i, operation in enumerate(divided):
        ways, often = hows(operation, operations), operations[operation]
        todo.append(Moment(operation, ways[(i + turn) % len(ways)], chance.randint(1 + often // 8, 1 + often // 3)))
    done: list[Experiment] = []
    while todo:
        experiment = Experiment(EXPERIMENTS[name], tmp_path / str(len(done)))
        done.append(experiment)
        finished = False
        while todo and not finished:
            moment = todo.pop(0)
            finished = experiment.go(moment=moment)
            whole.check_remains(experiment)
            if finished:  # so near to its end there were not so many any more
                assert experiment.starts > 1, moment
                todo.insert(0, replace(moment, n=1))
        assert finished or experiment.go()
        whole.check(experiment)
    count(f"{name}, seed {seed}, before, within and after each kind of write", done)


@pytest.mark.parametrize("every", [pytest.param("null", marks=weekly), "3"])
def test_kills_that_come_faster_than_epochs_change_nothing(
    every: str, reference: Of, count: Count, tmp_path: Path
) -> None:
    args = [*ONE_EPOCH, f"--lottery.checkpoint_every_n_train_steps={every}"]
    whole, experiment = reference(args), Experiment(args, tmp_path / "run")
    for n in (5, 20, 20):
        moment = Moment(Operation("open", "tensorboard/round/events"), "after", n)
        assert not experiment.go(moment=moment)
        whole.check_remains(experiment)
    assert experiment.go()
    whole.check(experiment)
    count(f"kills faster than epochs, checkpoint_every_n_train_steps {every}", [experiment])
