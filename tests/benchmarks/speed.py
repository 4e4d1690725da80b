"""How fast is it? One command, from the folder that holds configs/:

    uv run python tests/benchmarks/speed.py                      # everything, some 20 minutes on 2 cores
    uv run python tests/benchmarks/speed.py lenet masking        # some measures
    uv run python tests/benchmarks/speed.py --data_dir data      # on real MNIST and CIFAR-10 in place of noise

Times are compared only within a run, in turns (`turns.py`); each figure is the median of the turns' own ratios.
"""

import argparse
import atexit
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L
import torch
from contestants import CONFIGS, Bare, Ours, Stock, Task, fit_command
from turns import Report, give_turns, memory

HERE = Path(__file__).parent


def tasks(given: argparse.Namespace) -> dict[str, Task]:
    """By name: turns of about a second, LeNet's an epoch long."""
    mnist = "MNIST" if given.data_dir else "contestants.RandomMNIST"
    cifar10 = given.cifar10 if given.data_dir else "contestants.RandomCIFAR10"
    folder = given.data_dir or "."
    return {
        "lenet": Task("lenet", mnist, folder, 60, augment=False, turn=917, turns=20, stock_turn=100, steps=given.steps),
        "conv2": Task("conv2", cifar10, folder, 60, augment=True, turn=15, turns=16, stock_turn=10),
        "conv4": Task("conv4", cifar10, folder, 60, augment=False, turn=3, turns=16, stock_turn=3),
        "resnet20": Task("resnet20", cifar10, folder, 128, augment=True, turn=8, turns=16, stock_turn=5),
        "vgg19": Task("vgg19", cifar10, folder, 64, augment=True, turn=1, turns=4, stock_turn=1),
    }


# ------------------------------------------------------------------------------------- steps and evaluations


def race(task: Task) -> None:
    """A step of `fit` with everything on, against a bare loop and against stock Lightning; evaluations."""
    contestants = {
        "bare": (Bare(task), task.turn),
        "fit": (Ours(task), task.turn),
        "stock": (Stock(task), task.stock_turn),
    }
    turns = give_turns(contestants, task.turns)
    half = len(turns) // 2
    for name, part in (("dense", turns[:half]), ("half of the weights", turns[half:])):
        times = ", ".join(f"{who} {1e3 * median(turn[who]['step'] for turn in part):.3g}" for who in contestants)
        bare, stock = _ratio(part, "fit", "bare"), _ratio(part, "stock", "fit")
        say(task.name, f"step, {name}", f"{bare} of the bare loop's; stock Lightning {stock} of ours (ms: {times})")
    epoch = (
        -(-len(task.images()[0]) * 11 // 12 // task.batch_size) if task.name == "lenet" else 45_000 // task.batch_size
    )
    step = median(turn["fit"]["step"] for turn in turns)
    for part, wanted in (("evaluation", "validation and test"), ("checkpoint", "a checkpoint"), ("round's end", "")):
        known = [turn["fit"][part] for turn in turns if part in turn["fit"]]
        if not known:
            continue
        share = f", {100 * median(known) / (epoch * step):.2g} % of an epoch's steps" if wanted else ""
        say(task.name, wanted or "a round's end", f"{1e3 * median(known):.3g} ms (median of {len(known)}){share}")


def often(task: Task) -> None:
    """LeNet evaluated every 100 steps, as in the paper."""
    settings = {"trainer.val_check_interval": 100, "trainer.check_val_every_n_epoch": "null"}
    turns = give_turns({"often": (Ours(task, settings), task.turn)}, 8)
    known = [(turn["often"]["evaluation"], turn["often"]["step"]) for turn in turns]
    times = median(1 + evaluation / (100 * step) for evaluation, step in known)
    say(task.name, "evaluation every 100 steps", f"{times:.2f} times the time of the steps alone")


def _ratio(turns: Sequence[dict[str, Report]], one: str, other: str) -> str:
    ratios = sorted(turn[one]["step"] / turn[other]["step"] for turn in turns)
    quarter = len(ratios) // 4
    return f"{median(ratios):.2f} ({ratios[quarter]:.2f}–{ratios[-1 - quarter]:.2f})"


# ------------------------------------------------------------------------------------- masks and rounds


def masking(task: Task) -> None:
    """A bare step under MaskHooks against one without, in turns, by density."""
    import torch.nn.functional as F

    from lth_lightning.pruning.mask_hooks import MaskHooks
    from lth_lightning.pruning.prunable import prunable_weights

    net = task.network()
    optimizer = task.optimizer(net.parameters(), fused=True)
    weights = prunable_weights(net)
    hooks = MaskHooks(weights, [optimizer])
    images = torch.rand(task.batch_size, *task.images()[0].shape[1:])
    targets = torch.arange(task.batch_size) % 10
    start = {name: value.clone() for name, value in net.state_dict().items()}

    def steps(count: int) -> float:
        net.load_state_dict(start)
        since = time.perf_counter()
        for _ in range(count):
            optimizer.zero_grad()
            F.cross_entropy(net(images), targets).backward()
            optimizer.step()
        return time.perf_counter() - since

    steps(task.turn)
    count = max(1, task.turn // 15)
    for density in (1.0, 0.8, 0.2, 0.02):
        masks = {name: torch.rand(weight.shape) < density for name, weight in weights.items()}
        ratios = []
        for _ in range(60 if task.name == "lenet" else 15):
            before = steps(count)
            hooks.enforce(masks)
            ratios.append(2 * steps(count) / before)
            hooks.remove()
            ratios[-1] /= 1 + steps(count) / before
        say(task.name, f"masking, density {density}", f"{100 * (median(ratios) - 1):+.1f} % of a step")


def rounds(task: Task) -> None:
    """What a round costs beside its steps, and whether it grows: rounds 1 and 2 against 19 and 20, an epoch each."""
    settings = {"lottery.rounds": 21, "lottery.train_for": f"{task.turn}it", "lottery.pruning.rate": 0.2}
    contestants = {"bare": (Bare(task), task.turn), "fit": (Ours(task, settings), task.turn)}
    turns = give_turns(contestants, 20)  # the first turn, round 0, does not count
    early, late = turns[:4], turns[-4:]
    grown = median(turn["fit"]["step"] / turn["bare"]["step"] for turn in late) / median(
        turn["fit"]["step"] / turn["bare"]["step"] for turn in early
    )
    say(task.name, "a step in rounds 17–20 against 1–4", f"{grown:.3f}, each in bare steps")
    say(task.name, "memory in round 20 against 1", f"{turns[-1]['fit']['resident'] / turns[0]['fit']['resident']:.3f}")


def engines(task: Task, **more: Any) -> None:
    """A step of `fit` with the sparse engine against the dense one, in some rounds of the config's rates."""
    of_round = 3  # turns; in a round's first turn, layers are timed
    wanted = (7, 13, 14, 18, *(() if task.name == "resnet20" else (21,)))  # ResNet-20 has nothing to prune in round 20
    steps = max(2, task.turn // 12)
    settings = {"lottery.rounds": wanted[-1], "lottery.train_for": f"{of_round * steps}it", **more}
    settings |= {"trainer.val_check_interval": 10**6, "trainer.check_val_every_n_epoch": "null"}
    if task.dataset == "contestants.RandomCIFAR10":
        settings |= {"data.dataset": "contestants.FewRandomCIFAR10", "data.val_size": 100}
    contestants = {name: (Ours(task, {**settings, "lottery.engine": name}), steps) for name in ("dense", "sparse")}
    turns = give_turns(contestants, of_round * (wanted[-1] + 1) - 1)
    for number in wanted:
        own = turns[of_round * number : of_round * (number + 1) - 1]
        times = ", ".join(f"{who} {1e3 * median(turn[who]['step'] for turn in own):.3g}" for who in contestants)
        more_memory = median(turn["sparse"]["resident"] - turn["dense"]["resident"] for turn in own) / 1e6
        say(
            task.name,
            f"step in round {number}",
            f"{_ratio(own, 'dense', 'sparse')} (ms: {times}; {more_memory:+.0f} MB)",
        )


def engines_evenly(task: Task) -> None:
    """The same with one density for all layers."""
    engines(task, **{"lottery.pruning.rates": "{}", "lottery.pruning.rate": 0.2})


def engines_whole(task: Task) -> None:
    """The whole of a config, at `steps` a round, by each engine as a process of its own; then two at a time."""
    with tempfile.TemporaryDirectory() as folder:
        dense, dense_memory = _whole(task, folder, "dense")
        sparse, sparse_memory = _whole(task, folder, "sparse")
        say(task.name, "the whole config", f"{dense:.0f} s dense, {sparse:.0f} s sparse: {dense / sparse:.2f}")
        say(task.name, "memory at most", f"{(sparse_memory - dense_memory) / 1e6:+.0f} MB, sparse against dense")
        step = median(turn["stock"]["step"] for turn in give_turns({"stock": (Stock(task), task.stock_turn)}, 6))
        networks = len(Path(folder, "sparse", "results.csv").read_text().splitlines()) - 1
        stock = step * networks * task.steps
        say(task.name, "against stock Lightning's steps", f"{stock / sparse:.1f} ({1e3 * step:.3g} ms a step)")
        with ThreadPoolExecutor(2) as pool:
            both = list(pool.map(lambda core: _whole(task, folder, "sparse", core)[0], range(2)))
        say(task.name, "two processes side by side", f"{max(both) / sparse:.2f} of the time of one")


def _whole(task: Task, folder: str, engine: str, core: int | None = None) -> tuple[float, float]:
    """Seconds of a process, and bytes that it took at most; on a core of its own, if one is given."""
    settings = {
        "run_dir": f"{folder}/{engine}{'' if core is None else core}",
        "lottery.engine": engine,
        "lottery.rounds": 20,
        "lottery.train_for": f"{task.steps}it",
        "lottery.pruning.rate": 0.2,
        "lottery.controls": "[random_reinit, random_mask]",
        "trainer.val_check_interval": 100,
        "trainer.check_val_every_n_epoch": "null",
        "trainer.callbacks": "[speed.Peak]",
    }
    since = time.perf_counter()
    most = _of_child(["train.py", *fit_command(task, folder, **settings)], core)
    return time.perf_counter() - since, most


def round_end(task: Task) -> None:
    """Prune, rewind and save the ticket of a large network."""
    turns = give_turns({"fit": (Ours(task, {"lottery.train_for": "2it", "data.val_size": 100}), 1)}, 2)
    known = [turn["fit"]["round's end"] for turn in turns if "round's end" in turn["fit"]]
    say(task.name, "a round's end", f"{2 * median(known):.2g} s (one network ends, and the next begins)")


# ------------------------------------------------------------------------------------- a process of its own


class FirstStep(L.Callback):
    """Says when the first step was done, and ends the process."""

    def on_train_batch_end(self, *_: Any) -> None:
        os.write(2, f"{time.time() - float(os.environ['STARTED']):.3f}".encode())
        os._exit(0)


class Peak(L.Callback):
    """Says in the end how much memory the process took at most, its report included."""

    def __init__(self) -> None:
        atexit.register(lambda: os.write(2, f" {memory('VmHWM')}".encode()))


IMPORTS = "import lightning, torchvision, os, time; os.write(2, str({}).encode())"


def start(task: Task) -> None:
    """From the command to the first step, against importing lightning and torchvision."""
    imported = IMPORTS.format("time.time() - float(os.environ['STARTED'])")
    times = [(_of_child(["-c", imported]), _of_fit(task, "FirstStep")) for _ in range(5)]
    more = median(first - imports for imports, first in times)
    say(task.name, "first step", f"{more:+.2f} s after lightning and torchvision are imported ({times[0][0]:.1f} s)")


def peak(task: Task) -> None:
    """Memory of a fit of two rounds at most, above the imports."""
    imports = _of_child(["-c", f"import sys; sys.path.append({str(HERE)!r}); from turns import memory; "
                         + IMPORTS.format("memory('VmHWM')")])  # fmt: skip
    most = _of_fit(task, "Peak")
    say(task.name, "memory at most", f"{(most - imports) / 1e9:.2f} GB above the imports ({imports / 1e9:.2f} GB)")


def _of_fit(task: Task, callback: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        settings = {"lottery.train_for": "20it", "trainer.callbacks": f"[speed.{callback}]"}
        return _of_child(["train.py", *fit_command(task, folder, **settings)])


def _of_child(command: Sequence[str], core: int | None = None) -> float:
    """The number that a Python process writes last to standard error."""
    paths = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "STARTED": str(time.time())}
    pin = [] if core is None else ["taskset", "-c", str(core)]
    words = [*pin, sys.executable, *command]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return float(done.stderr.split()[-1])


# ------------------------------------------------------------------------------------- command

MEASURES: dict[str, tuple[Callable[[Task], None], str]] = {
    "start": (start, "lenet"),
    "start_cifar10": (start, "conv2"),
    "peak": (peak, "lenet"),
    "peak_conv2": (peak, "conv2"),
    "peak_resnet20": (peak, "resnet20"),
    "lenet": (race, "lenet"),
    "often": (often, "lenet"),
    "rounds": (rounds, "lenet"),
    "engines": (engines, "lenet"),
    "engines_whole": (engines_whole, "lenet"),
    "engines_conv4": (engines, "conv4"),
    "engines_conv4_evenly": (engines_evenly, "conv4"),
    "engines_resnet20": (engines, "resnet20"),
    "masking": (masking, "lenet"),
    "masking_conv2": (masking, "conv2"),
    "conv2": (race, "conv2"),
    "resnet20": (race, "resnet20"),
    "vgg19": (round_end, "vgg19"),
}


def say(task: str, what: str, figure: str) -> None:
    """A line of the table."""
    print(f"{CONFIGS[task]:18} {what:36} {figure}", flush=True)


def machine() -> str:
    """What it is measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    return (
        f"{len(os.sched_getaffinity(0))} cores ({name}), {torch.get_num_threads()} threads, no GPU used, "
        f"Python {platform.python_version()}, torch {torch.__version__}, Lightning {L.__version__}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measures", nargs="*", metavar="MEASURE", help=f"of {', '.join(MEASURES)}; by default all")
    parser.add_argument("--data_dir", help="real data sets, as torchvision lays them out; by default noise")
    parser.add_argument("--steps", type=int, default=6000, help="a round of engines_whole; default 6000, for an hour")
    parser.add_argument("--cifar10", default="CIFAR10", help="the class that reads CIFAR-10 there")
    given = parser.parse_args()
    if odd := set(given.measures) - MEASURES.keys():
        parser.error(f"there is no measure {', '.join(odd)}; there is {', '.join(MEASURES)}")
    print(machine(), flush=True)
    known = tasks(given)
    for name in given.measures or MEASURES:
        measure, task = MEASURES[name]
        measure(known[task])


if __name__ == "__main__":
    sys.path.append(str(HERE))
    main()
