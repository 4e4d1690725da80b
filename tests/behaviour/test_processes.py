"""Several processes with DDP (two, on the CPU): the same experiment as in one, and an end that all of them reach."""

import csv
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import (
    ARCHITECTURES,
    FOREIGN_METRICS,
    HANGS,
    THOROUGH,
    ForeignData,
    ForeignModule,
    assert_same,
    copies,
    digits,
    draw_plainly,
    make_trainer,
    mlp,
    resnet,
    weekly,
)
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.nn import functional as F

from lth_lightning import SNIP, LotteryTicket, Magnitude, Pruning, SettingError, Ticket
from lth_lightning.cli.main import main
from lth_lightning.pruning.prunable import prunable_weights
from lth_lightning.pruning.state import fingerprint
from lth_lightning.runs.rows import read_layers, read_rows

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked from a server")

REPOSITORY = Path(__file__).parents[2]
CONTROLS = ["random_reinit", "random_mask", "pruned_only"]

# A server that has imported everything, and forks: a process then starts in a tenth of a second.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["lth_lightning.cli.lightning_cli", "lightning.pytorch", "pytest", "hypothesis", "sklearn.datasets"]
)


# ------------------------------------------------------------------------ processes


def start(job: Callable[..., None], *args: Any, world_size: int = 2, **environment: str) -> list[BaseProcess]:
    """Call `job(*args)` in each of `world_size` processes, set up as torchrun does it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(world_size)}
    processes = []
    for rank in range(world_size):
        variables = {"LOCAL_RANK": str(rank), "RANK": str(rank), "NODE_RANK": "0", **place}
        variables = {name: value.format(rank=rank) for name, value in (environment or variables).items()} | place
        processes.append(FORKS.Process(target=_enter, args=(variables, job, args), daemon=True))
        processes[-1].start()
    return processes


def _enter(variables: dict[str, str], job: Callable[..., None], args: tuple[Any, ...]) -> None:
    os.environ.update(variables)
    torch.set_num_threads(1)
    job(*args)


def end(processes: list[BaseProcess]) -> list[int | None]:
    """Exit codes of the processes; None for one that hung."""
    until = time.monotonic() + HANGS
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return codes


@dataclass
class Seen(L.Callback):
    """What one process saw of an experiment."""

    starts: list[dict[str, Tensor]] = field(default_factory=list)
    masks: list[dict[str, Tensor]] = field(default_factory=list)
    ends: list[dict[str, Tensor]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    order: list[list[tuple[float, ...]]] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    alive: int = 0

    def on_network_start(self, trainer: L.Trainer, module: L.LightningModule, network: Any, density: float) -> None:
        self.masks.append({name: mask.clone() for name, mask in trainer.callbacks[-1].masks_in_force.items()})
        self.starts.append(copies(module))
        self.order.append([])

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        self.order[-1] += [tuple(image.flatten()[10:30].tolist()) for image in batch[0]]

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        gradients = [weight.grad for weight in module.parameters()]
        self.norms.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))
        self._count_alive({name: weight.grad for name, weight in prunable_weights(module).items()})

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        weights = prunable_weights(module)
        self._count_alive(weights)
        for name, weight in weights.items():
            state = trainer.optimizers[0].state.get(weight, {})
            for value in state.values():
                if getattr(value, "shape", ()) == weight.shape:
                    self._count_alive({name: value})

    def _count_alive(self, tensors: dict[str, Tensor]) -> None:
        """Entries where the mask is 0 and these are not."""
        self.alive += sum(int((value[~self.masks[-1][name]] != 0).sum()) for name, value in tensors.items())

    def on_network_end(self, trainer: L.Trainer, module: L.LightningModule, row: Any) -> None:
        self.ends.append(copies(module))
        self.rows.append({name: value for name, value in vars(row).items() if name != "seconds"})


class KillAt(L.Callback):
    """Kills this process, as the kernel would, in its n-th batch."""

    def __init__(self, rank: int, batch: int) -> None:
        self.rank, self.left = rank, batch

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.left -= 1
        if trainer.global_rank == self.rank and self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def experiment(
    folder: Path,
    kind: str = "mlp",
    data: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    strategy: dict[str, Any] | None = None,
    callbacks: tuple[L.Callback, ...] = (),
    resume: bool = False,
    **lottery: Any,
) -> None:
    """The job of one process: an experiment on one of ARCHITECTURES, and what was seen of it in a file."""
    module, make_data, settings = ARCHITECTURES[kind]
    world_size = int(os.environ["WORLD_SIZE"])
    devices = {"devices": world_size, "strategy": DDPStrategy(**(strategy or {}))} if world_size > 1 else {}
    torch.manual_seed(0)
    seen = Seen()
    lottery = {"rounds": 2, "train_for": "10it", "seed": 7, **settings, **lottery}
    callback = LotteryTicket(run_dir=folder, **lottery)
    fitter = make_trainer(callbacks=[callback, seen, *callbacks], **devices, **(trainer or {}))
    source = ForeignData() if kind == "foreign" else make_data(batch_size=40 // world_size, **(data or {}))
    path = folder / "checkpoints" / "last.ckpt" if resume else None
    fitter.fit(module(), datamodule=source, ckpt_path=path, weights_only=True)
    torch.save(_public(vars(seen)), folder / f"seen_{fitter.global_rank}.pt")


def _public(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if name in Seen.__dataclass_fields__}


def run(folder: Path, *, world_size: int = 2, **settings: Any) -> list[Any]:
    """What each process saw of an experiment that ends well."""
    folder.mkdir(exist_ok=True)
    assert end(start(_experiment, folder, settings, world_size=world_size)) == [0] * world_size
    return [Seen(**torch.load(folder / f"seen_{rank}.pt", weights_only=True)) for rank in range(world_size)]


def _experiment(folder: Path, settings: dict[str, Any]) -> None:
    experiment(folder, **settings)


# ------------------------------------------------------------------------ the command line

FLAGS = [
    "fit",
    "--config=configs/quickstart.yaml",
    "--lottery.rounds=1",
    "--lottery.train_for=20it",
    "--data.train_size=800",
    "--data.val_size=101",
    "--data.eval_batch_size=50",
    "--trainer.accelerator=cpu",
]
TWO = ["--data.batch_size=20", "--trainer.devices=2", "--trainer.strategy=ddp"]
LAUNCHERS = {
    "trainer": [sys.executable, "train.py"],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"],
}
every_launcher = pytest.mark.parametrize("launcher", ["forks", *(pytest.param(one, marks=weekly) for one in LAUNCHERS)])


def command_line(folder: Path, flags: list[str]) -> None:
    """The job of one process: `python train.py …`, what it prints in a file."""
    os.chdir(REPOSITORY)
    log = os.open(f"{folder}.{os.environ.get('RANK', os.environ.get('SLURM_PROCID'))}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    draw_plainly(pytest.MonkeyPatch())
    sys.exit(main([*flags, f"--run_dir={folder}"]))


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, str]]:
    """Folder and output of one process's run, and of the same run on two: forks set up as torchrun does it, and, once a
    week, whole processes by each launcher."""
    root = tmp_path_factory.mktemp("launched")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    environment.pop("PL_GLOBAL_SEED", None)
    launches = {
        name: subprocess.Popen(
            [*command, *FLAGS, *TWO, f"--run_dir={root / name}"],
            cwd=REPOSITORY,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, command in LAUNCHERS.items()
        if THOROUGH
    }
    found = {}
    try:
        assert end(start(command_line, root / "one", [*FLAGS, "--data.batch_size=40"], world_size=1)) == [0]
        assert end(start(command_line, root / "forks", [*FLAGS, *TWO])) == [0, 0]
        for name in ("one", "forks"):
            found[name] = root / name, (root / f"{name}.0.log").read_text()
        assert "round" not in (root / "forks.1.log").read_text()
        for name, process in launches.items():
            out, err = process.communicate(timeout=HANGS)
            assert process.returncode == 0, err
            found[name] = root / name, out
    finally:
        for process in launches.values():
            process.kill()
    return found


def read(path: Path) -> list[dict[str, str]]:
    with open(path) as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def assert_same_experiment(one: Path, two: Path) -> None:
    """But for the order in which floating-point numbers are added."""
    ours, theirs = read(one / "results.csv"), read(two / "results.csv")
    assert len(ours) == 4
    for row, other in zip(ours, theirs, strict=True):
        assert {n: row[n] for n in ("round", "variant", "kept", "steps")} == {
            n: other[n] for n in ("round", "variant", "kept", "steps")
        }
        for name in ("train_loss", "val_loss", "test_loss"):
            assert float(row[name]) == pytest.approx(float(other[name]), rel=1e-3)
        for name in ("val_acc", "test_acc"):
            assert float(row[name]) == pytest.approx(float(other[name]), abs=0.01)
    assert read(one / "layers.csv") == read(two / "layers.csv")
    for round in range(2):
        mine, yours = (Ticket.load(folder / "tickets" / f"round_0{round}.safetensors") for folder in (one, two))
        for name, mask in mine.masks.items():
            assert (mask == yours.masks[name]).float().mean() > 0.999, "but for ties"
            kept = mask & yours.masks[name]
            assert torch.equal(mine.rewind_point[name][kept], yours.rewind_point[name][kept]), "bit for bit"


@every_launcher
def test_two_processes_give_the_results_of_one(launched: dict[str, tuple[Path, str]], launcher: str) -> None:
    assert_same_experiment(launched["one"][0], launched[launcher][0])


@every_launcher
def test_one_process_writes_and_speaks(launched: dict[str, tuple[Path, str]], launcher: str) -> None:
    def files(folder: Path) -> Counter[str]:
        """Names without what differs in any two runs: time and process in those of TensorBoard."""
        names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        return Counter(re.sub(r"tfevents.*", "tfevents", name) for name in names)

    def lines(out: str) -> list[str]:
        """Rows of finished networks, without their seconds."""
        rows = (line.split()[:-1] for line in out.splitlines() if re.match(r" +\d+ +[\d.]+ %  ", line))
        return [" ".join(row) for row in rows]

    (one, out), (folder, their_out) = launched["one"], launched[launcher]
    said, header, first, *_ = out.splitlines()  # errors and warnings too
    assert said.startswith("Prunable: ") and first.startswith("    0  100.00 %")
    assert header == "round   density  variant         val acc  test acc  early stop  seconds"
    assert files(folder) == files(one)
    logs = ("one.0.log", "forks.0.log", "forks.1.log")
    assert set(folder.parent.iterdir()) == {folder.parent / name for name in (*launched, *logs)}
    shown = lines(their_out)
    assert len(shown) == 4 and shown == lines(out)
    assert their_out.count("early stop  seconds") == 1
    assert their_out.count("Results, tickets and figures:") == 1


@weekly
def test_tasks_of_slurm_are_processes_of_one_run(tmp_path: Path, launched: dict[str, tuple[Path, str]]) -> None:
    """With the variables that srun sets, on one machine; requeued, the job finds its end and goes on from there."""
    slurm = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NAME": "lottery",
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "localhost",
        "SLURM_PROCID": "{rank}",
        "SLURM_LOCALID": "{rank}",
    }
    for said in ("Nothing to resume", "Resuming"):
        assert end(start(command_line, tmp_path / "run", [*FLAGS, *TWO, "--ckpt_path=last"], **slurm)) == [0, 0]
        assert said in (tmp_path / "run.0.log").read_text()
        assert "round" not in (tmp_path / "run.1.log").read_text()
        assert_same_experiment(launched["one"][0], tmp_path / "run")


# ------------------------------------------------------------------------ what is alike on all processes


@pytest.mark.parametrize(
    ("kind", "rewind"),
    [
        *(pytest.param("resnet", rewind, marks=weekly) for rewind in ("weights", "learning_rate")),
        ("foreign", "weights"),
    ],
)
def test_every_network_starts_and_ends_alike_on_all_processes(tmp_path: Path, kind: str, rewind: str) -> None:
    """Buffers included, whose running statistics follow each process's own batches, and figures, of which a foreign
    module logs each process's own. Without validation nothing else makes them alike."""
    quiet = {"trainer": {"limit_val_batches": 0}, "evaluate_test": False} if rewind == "learning_rate" else {}
    first, second = run(tmp_path, kind=kind, rewind=rewind, rewind_to="4it", rounds=1, controls=CONTROLS, **quiet)
    assert len(first.starts) == len(second.starts) == 5
    for ours, theirs in zip(first.starts + first.masks, second.starts + second.masks, strict=True):
        assert fingerprint(ours) == fingerprint(theirs)
    parameters = {name for name, _ in ARCHITECTURES[kind][0]().named_parameters()}
    for ours, theirs in zip(first.ends, second.ends, strict=True):
        assert_same(*({name: state[name] for name in parameters} for state in (ours, theirs)))
    assert first.rows == second.rows


def test_processes_prune_by_the_same_batches_which_are_those_of_one_process(tmp_path: Path) -> None:
    """Each process draws its part of a batch; scored by its own part, each would have other masks."""
    at_start = Pruning(densities=[0.3], prune_from="initialisation", criterion=SNIP(batches=2))
    settings: dict[str, Any] = {"rounds": None, "train_for": "2it", "pruning": at_start}
    (one,) = run(tmp_path / "one", world_size=1, kind="resnet", **settings)
    for process in run(tmp_path / "two", kind="resnet", **settings):
        assert_same(process.masks[1], one.masks[1])


def test_controls_start_with_the_weights_and_masks_they_have_in_one_process(tmp_path: Path) -> None:
    (one,) = run(tmp_path / "one", world_size=1, rounds=1, controls=CONTROLS)
    two, _ = run(tmp_path / "two", rounds=1, controls=CONTROLS)
    variants = [row["variant"] for row in one.rows]
    assert set(variants) == {"ticket", *CONTROLS}
    assert_same(one.starts[0], two.starts[0])
    for i, variant in enumerate(variants):
        for name, mask in one.masks[i].items():
            assert int(mask.sum()) == int(two.masks[i][name].sum())
            assert (mask == two.masks[i][name]).float().mean() > 0.995, "but for ties"
            kept = mask & two.masks[i][name]
            if variant != "pruned_only":
                assert torch.equal(one.starts[i][name][kept], two.starts[i][name][kept])


@pytest.mark.parametrize("kind", [pytest.param("mlp", marks=weekly), "resnet"])
def test_every_image_is_evaluated_once(tmp_path: Path, kind: str) -> None:
    """101 validation and 360 test images in batches of 50 and two processes, one of which has a batch more."""
    settings: dict[str, Any] = {"val_size": 101, "eval_batch_size": 50}
    seen, _ = run(tmp_path, kind=kind, data=settings, rounds=1)
    module = {"mlp": mlp, "resnet": resnet}[kind]().eval()
    data = digits(**settings)
    data.setup("fit")
    for round, row in enumerate(seen.rows):
        module.load_state_dict(Ticket.load(tmp_path / "tickets" / f"round_0{round}.safetensors").trained)
        for split, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
            images, targets = (torch.cat(parts) for parts in zip(*loader, strict=True))
            with torch.no_grad():
                logits = module(images)
            hits, count = int((logits.argmax(1) == targets).sum()), {"val": 101, "test": 360}[split]
            assert round_to_count(row[f"{split}_acc"], count) == hits
            assert row[f"{split}_loss"] == pytest.approx(float(F.cross_entropy(logits, targets)), rel=2e-6)


def round_to_count(accuracy: float, count: int) -> int:
    hits = round(accuracy * count)
    assert accuracy == pytest.approx(hits / count, abs=1e-6)
    return hits


def test_metrics_that_a_module_does_not_synchronise_are_of_all_processes(tmp_path: Path) -> None:
    """Of 360 test images, 180 a process; Lightning would leave each with its own mean."""
    seen, _ = run(tmp_path, kind="foreign", rounds=0)
    module, data = ForeignModule().eval(), ForeignData()
    data.setup("fit")
    module.load_state_dict(Ticket.load(tmp_path / "tickets" / "round_00.safetensors").trained)
    images, targets = data.splits["test"].tensors
    with torch.no_grad():
        logits = module.body(images)
    assert seen.rows[0]["test_acc"] == pytest.approx(float((logits.argmax(1) == targets).float().mean()), abs=1e-6)
    assert seen.rows[0]["test_loss"] == pytest.approx(float(F.cross_entropy(logits, targets)), rel=1e-5)


def test_fewer_images_than_processes_are_refused(tmp_path: Path) -> None:
    assert end(start(_refused, tmp_path)) == [0, 0]


def _refused(folder: Path) -> None:
    with pytest.raises(SettingError, match="data: 1 val images are too few for 2 processes"):
        experiment(folder, data={"val_size": 1})


# ------------------------------------------------------------------------ training

WAYS: dict[str, dict[str, Any]] = {
    "unused_and_bf16": {"strategy": {"find_unused_parameters": True}, "trainer": {"precision": "bf16-mixed"}},
    "static_graph": {"strategy": {"static_graph": True}},
    "accumulate_and_clip": {
        "strategy": {"gradient_as_bucket_view": True},
        "trainer": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
    },
}


@pytest.mark.parametrize("way", [pytest.param("static_graph", marks=weekly), *sorted({*WAYS} - {"static_graph"})])
def test_pruned_weights_their_gradients_and_momentum_stay_0_on_all_processes(tmp_path: Path, way: str) -> None:
    """Before the processes' gradients are averaged, and after."""
    for seen in run(tmp_path, kind="resnet", rounds=1, controls=["random_mask"], evaluate_test=False, **WAYS[way]):
        assert len(seen.norms) == 3 * 10
        assert seen.alive == 0


def test_clipping_sees_the_norm_that_one_process_sees(tmp_path: Path) -> None:
    settings = {"trainer": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}}
    (one,) = run(tmp_path / "one", world_size=1, **settings)
    for seen in run(tmp_path / "two", **settings):
        assert seen.norms == pytest.approx(one.norms, rel=1e-3)
        assert [seen.norms[i] for i in (0, 10, 20)] == pytest.approx([one.norms[i] for i in (0, 10, 20)], rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "data_order"), [("mlp", "fresh"), ("foreign", "fresh"), pytest.param("foreign", "same", marks=weekly)]
)
def test_a_rounds_networks_see_one_order_and_the_next_round_another(tmp_path: Path, kind: str, data_order: str) -> None:
    """Of our loader, and of the DistributedSampler that Lightning puts into a stock one."""
    settings: dict[str, Any] = {"controls": ["random_mask"], "train_for": "14it", "evaluate_test": False}
    first, second = run(tmp_path, kind=kind, data_order=data_order, **settings)
    for seen in (first, second):
        dense, ticket, control, next_ticket, next_control = map(tuple, seen.order)
        assert ticket == control
        assert next_ticket == next_control
        assert len({dense, ticket, next_ticket}) == {"fresh": 3, "same": 1}[data_order]
    epoch = 125  # images of an epoch and process, of 250 in all
    for mine, yours in zip(first.order, second.order, strict=True):
        assert len({*mine[:epoch], *yours[:epoch]}) == len({*mine[:epoch]}) + len({*yours[:epoch]}), "no image on both"
        assert mine[:epoch] != mine[epoch : 2 * epoch]


# ------------------------------------------------------------------------ interruptions


@pytest.mark.parametrize(
    ("kind", "killed", "every"),
    [("foreign", 0, 2), *(pytest.param(*case, marks=weekly) for case in [("foreign", 0, None), ("resnet", 1, 2)])],
)
def test_a_run_whose_process_was_killed_ends_bit_for_bit_as_an_uninterrupted_one(
    tmp_path: Path, kind: str, killed: int, every: int | None
) -> None:
    """Killed in the first epoch of a network; the other process ends too, with an error."""
    settings: dict[str, Any] = {"kind": kind, "controls": ["random_mask"], "rewind_to": "5it", "train_for": "17it"}
    settings |= {"rounds": 1, "checkpoint_every_n_train_steps": every}  # inside an epoch, each with its own draws
    whole = run(tmp_path / "whole", **settings)
    cut = tmp_path / "cut"
    cut.mkdir()
    codes = end(start(_experiment, cut, {**settings, "callbacks": (KillAt(killed, batch=31),)}))
    assert codes[killed] == -signal.SIGKILL
    assert codes[1 - killed] not in (0, None)
    resumed = run(cut, **settings, resume=True)
    for name in ("results.csv", "layers.csv"):
        assert read(cut / name) == read(tmp_path / "whole" / name)
    tickets = sorted((cut / "tickets").iterdir())
    assert len(tickets) == 2
    for ticket in tickets:
        assert ticket.read_bytes() == (tmp_path / "whole" / "tickets" / ticket.name).read_bytes()
    for ours, theirs in zip(whole, resumed, strict=True):
        assert_same(ours.ends[-1], theirs.ends[-1])


class ByRank(Magnitude):
    """Prunes other weights on each process, as a criterion that draws from the global generator may."""

    def scores(self, evidence: Any) -> Any:
        flip = os.environ["LOCAL_RANK"] == "1"
        return {name: scores.flip(0) if flip else scores for name, scores in super().scores(evidence).items()}


class Fails(Magnitude):
    """Fails on one process."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def scores(self, evidence: Any) -> Any:
        if os.environ["LOCAL_RANK"] == str(self.rank):
            raise RuntimeError("no memory left")
        return super().scores(evidence)


@pytest.mark.parametrize(
    "criterion",
    [ByRank(), Fails(0), pytest.param(Fails(1), marks=weekly)],
    ids=["masks differ", "0 fails", "1 fails"],
)
def test_what_fails_on_one_process_ends_all(tmp_path: Path, criterion: Magnitude) -> None:
    settings = {"pruning": Pruning(criterion=criterion)}
    assert end(start(_fail, tmp_path, settings)) == [1, 1]
    said = "".join(path.read_text() for path in tmp_path.glob("*.log"))
    assert ("start with different masks" if isinstance(criterion, ByRank) else "no memory left") in said


def _fail(folder: Path, settings: dict[str, Any]) -> None:
    with open(folder / f"{os.environ['LOCAL_RANK']}.log", "w") as log:
        os.dup2(log.fileno(), 2)
    experiment(folder, **settings)


class WaitAt(L.Callback):
    """Makes process 0 wait at its n-th batch, so that the other waits for it in the midst of a collective."""

    def __init__(self, batch: int, reached: Path) -> None:
        self.left, self.reached = batch, reached

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.left -= 1
        if self.left == 0:
            self.reached.with_suffix(f".{trainer.global_rank}").touch()
            if trainer.is_global_zero:
                time.sleep(HANGS)


@pytest.mark.parametrize("ranks", [pytest.param((0, 1), marks=weekly), (0,)], ids=["both", "0"])
def test_sigterm_ends_all_processes_and_the_run_goes_on_from_there(tmp_path: Path, ranks: tuple[int, ...]) -> None:
    """Lightning's own handler broadcasts in the midst of other collectives, and both processes may hang for ever."""
    settings: dict[str, Any] = {"train_for": "20it", "rounds": 2}
    reached = [tmp_path / "reached.0", tmp_path / "reached.1"]
    wait = WaitAt(batch=25, reached=tmp_path / "reached")
    processes = start(_experiment, tmp_path, {**settings, "callbacks": (wait,)})
    until = time.monotonic() + HANGS
    while not all(path.exists() for path in reached) and time.monotonic() < until:
        time.sleep(0.02)
    for rank in ranks:
        os.kill(processes[rank].pid, signal.SIGTERM)
    codes = end(processes)
    assert all(code not in (0, None) for code in codes), codes
    rows = read(tmp_path / "results.csv")
    assert len(rows) == 1
    run(tmp_path, **settings, resume=True)
    again = read(tmp_path / "results.csv")
    assert again[: len(rows)] == rows
    assert len(again) == 3


# ------------------------------------------------------------------------ processes that Lightning starts


class BuiltThere(ForeignModule):
    """Its network is made in each process, so that there is none to be shared by pickling."""

    def __init__(self) -> None:
        super().__init__()
        del self.body

    def configure_model(self) -> None:
        torch.manual_seed(3)
        self.body = ForeignModule().body


def fit_by_processes(way: Any, module: L.LightningModule, data: L.LightningDataModule, here: Path) -> LotteryTicket:
    metrics = FOREIGN_METRICS if isinstance(module, ForeignModule) else None
    lottery = LotteryTicket(rounds=1, train_for="4it", seed=7, controls=["random_mask"], metrics=metrics)
    strategy = DDPStrategy(start_method=way, process_group_backend="gloo")
    make_trainer(callbacks=[lottery], strategy=strategy, devices=2, default_root_dir=here).fit(module, data)
    assert lottery.folder.path == here / "runs/0" and lottery.seed_in_use == 7
    assert [(row.round, row.variant) for row in lottery.results] == [(0, "ticket"), (1, "ticket"), (1, "random_mask")]
    assert lottery.results == read_rows(lottery.folder.results)
    assert lottery.layers == read_layers(lottery.folder.layers)
    return lottery


@pytest.mark.filterwarnings("ignore")  # a fork has pytest's filters
def test_results_come_home_from_forks(tmp_path: Path) -> None:
    """Those of ddp_fork and ddp_notebook."""
    module = mlp()
    lottery = fit_by_processes("fork", module, digits(), tmp_path)
    ticket = Ticket.load(lottery.folder.ticket(1))
    assert_same(copies(module), ticket.trained)
    assert all(not weight[~ticket.masks[name]].any() for name, weight in prunable_weights(module).items())


def test_results_come_home_from_processes_that_a_pickled_callback_starts_in(tmp_path: Path) -> None:
    """As with ddp_spawn; a server of forks starts sooner."""
    fit_by_processes("forkserver", BuiltThere(), ForeignData(), tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_weights_that_processes_share_are_refused(tmp_path: Path) -> None:
    """As where Lightning starts processes by a fork server: each process would take every step."""
    lottery, module = LotteryTicket(rounds=1, train_for="4it"), mlp().share_memory()
    trainer = make_trainer(callbacks=[lottery], strategy="ddp_fork", devices=2, default_root_dir=tmp_path)
    with pytest.raises(Exception, match="trainer.strategy: net.*weight is in memory shared by the 2 processes"):
        trainer.fit(module, digits())
