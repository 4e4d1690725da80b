"""A process of Ray that trains one run after the other. Here, unlike in the rest of this room, Lightning is loaded."""

import contextlib
import gc
import json
import os
import shlex
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lth_lightning.errors import SettingError
from lth_lightning.runs.rows import NetworkKey, network_key

PATIENCE = 60
"""Seconds to wait for a process that still writes to a run: one that is about to die with its node."""


@dataclass(frozen=True)
class Checked:
    """What the check of a run found: why its settings are refused, or else its networks in training order, and why
    its controls cannot be trained apart, if they cannot."""

    refused: str | None
    networks: tuple[NetworkKey, ...] = ()
    in_line: str | None = None


@dataclass(frozen=True)
class Outcome:
    """How a training ended: `error` in one line; None if all networks are trained. `interrupted`: it can resume.
    `has_left_controls`: some are trained apart, and the run is still to gather them."""

    error: str | None = None
    interrupted: bool = False
    has_left_controls: bool = False


class Worker:
    """Trains runs, each as a process of its own would: the same threads, and nothing left over from the last.

    Args:
        cwd: the folder that paths are relative to.
        program: how the sweep was started, for the messages of runs.
        threads: of each training, on a CPU.
        sees_gpus: whether GPUs were asked for; without them none is used.
    """

    def __init__(self, cwd: str, program: str, threads: int, sees_gpus: bool) -> None:
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
        if not sees_gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        try:
            os.chdir(cwd)
        except OSError as error:
            raise SettingError(
                f"--address: {cwd} does not exist on {os.uname().nodename}. All machines of a sweep need the folder "
                "that it is started in, on a shared file system."
            ) from error
        sys.argv = [program]
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True, name="lth_parent").start()
        import torch

        import lth_lightning.cli.lightning_cli  # noqa: F401 (so that no training waits for it)

        torch.set_num_threads(threads)
        gc.freeze()  # or each training waits, at its end, until all that was imported is looked through for garbage

    def ready(self) -> None:
        """Return when everything is imported."""

    def check(self, all_flags: Sequence[Sequence[str]]) -> list[Checked]:
        """Do what `fit` does before training, for several runs; fetch each data set once, so that no two do later."""
        fetched: set[str] = set()
        found = []
        for flags in all_flags:
            with open(os.devnull, "w", encoding="utf-8") as nowhere, _printing_to(nowhere), _nothing_left_over():
                found.append(_checked(list(flags), fetched))
        return found

    def train(
        self, flags: Sequence[str], log: str, splits: str | None = None, others_logs: Sequence[str] = ()
    ) -> Outcome:
        """Run `fit`; everything printed goes to the end of the file `log`.

        Args:
            flags: the flags of `fit`.
            log: the file.
            splits: the file whose existence asks to leave controls apart; None for never.
            others_logs: the logs of controls that were trained apart, to begin with.
        """
        from lth_lightning.cli.lightning_cli import LotteryCLI

        class Fit(LotteryCLI):
            """`fit` that may leave its controls to others."""

            def after_instantiate_classes(self) -> None:
                super().after_instantiate_classes()
                self.lottery.leaves_apart = None if splits is None else Path(splits).exists

        path = Path(log)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8", buffering=1) as file, _printing_to(file), _nothing_left_over():
            for other in others_logs:
                file.write(Path(other).read_text(encoding="utf-8"))
            print(f"$ {sys.argv[0]} fit {shlex.join(flags)}")
            try:
                _await_other_writer(path.parent)
                cli = Fit(args=["fit", *flags])
            except SystemExit as end:
                return _ended(end)
            except KeyboardInterrupt:
                return Outcome("interrupted", interrupted=True)
            except BaseException as error:
                traceback.print_exc()
                return Outcome(_in_words(error))
            if not cli.lottery.experiment.is_over:
                return Outcome(f"stopped after {len(cli.lottery.results)} of {len(cli.lottery.plan)} networks")
            return Outcome(has_left_controls=not cli.lottery.is_whole)


# ------------------------------------------------------------------------------------- parts of a worker's work


class _Stop(Exception):  # noqa: N818 (not an error)
    """Ends a command where training would begin."""


def _checked(flags: list[str], fetched: set[str]) -> Checked:
    from lth_lightning.cli.lightning_cli import LotteryCLI

    networks: list[NetworkKey] = []
    in_line: list[str | None] = []

    class Check(LotteryCLI):
        """`fit` up to its training."""

        def _run_subcommand(self, subcommand: str) -> None:
            if self.trainer.num_devices * self.trainer.num_nodes > 1:
                raise SettingError(
                    f"trainer.devices: a training of a sweep uses one device, got {self.trainer.num_devices} on "
                    f"{self.trainer.num_nodes} machines. Use fit for one run on several devices."
                )
            networks.extend(map(network_key, self.lottery.plan))
            in_line.append(_why_in_line(self))
            data = json.dumps(self.settings.get("data"), default=str)
            if data not in fetched:
                (self.datamodule or self.model).prepare_data()
                fetched.add(data)
            raise _Stop

    try:
        _await_other_writer(Path(flags[flags.index("--run_dir") + 1]))
        Check(args=["fit", *flags])
    except _Stop:
        pass
    except SystemExit as end:
        return Checked(_ended(end).error)
    except Exception as error:
        return Checked(_in_words(error))
    return Checked(None, tuple(networks), in_line[0])


def _why_in_line(cli: Any) -> str | None:
    """Why the controls of a run cannot be trained in other processes; None if they can."""
    from lightning.pytorch.callbacks import (
        DeviceStatsMonitor,
        EarlyStopping,
        GradientAccumulationScheduler,
        LearningRateMonitor,
        ModelSummary,
        ProgressBar,
        WeightAveraging,
    )

    stateless = (DeviceStatsMonitor, EarlyStopping, GradientAccumulationScheduler, LearningRateMonitor)
    known = (*stateless, ModelSummary, ProgressBar, WeightAveraging)
    if cli.settings.trainer.get("max_time") is not None:
        return "trainer.max_time is the time of one fit"
    for callback in cli.trainer.callbacks:
        is_ours = type(callback).__module__.startswith("lth_lightning.")
        if not is_ours and not (isinstance(callback, known) and type(callback).__module__.startswith("lightning.")):
            return f"trainer.callbacks: {type(callback).__name__} may carry something from network to network"
    if not all(type(logger).__module__.startswith("lth_lightning.") for logger in cli.trainer.loggers):
        return "trainer.logger: another logger than the default records all networks of one fit"
    if cli.settings.trainer.get("profiler") is not None:
        return "trainer.profiler describes one fit"
    engine = cli.lottery.engine
    if engine.is_sparse and engine.below is None:
        return "lottery.engine: sparse times its layers once for the networks of a round; set lottery.engine.below"
    return None


def _end_with_parent(parent: int) -> None:
    """End this process at once when Ray's own on its machine ends: killed, that leaves its workers training."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _await_other_writer(run: Path) -> None:
    """Wait until nobody holds the run's lock; who still does after `PATIENCE` is named by `fit`."""
    from lth_lightning.runs.lock import FolderLock

    deadline = time.monotonic() + PATIENCE
    while run.is_dir() and time.monotonic() < deadline:
        try:
            FolderLock(run).release()
            return
        except SettingError:
            time.sleep(0.5)


def _ended(end: SystemExit) -> Outcome:
    """How a command ended that has printed why: its error, or an interruption, after which it can be resumed."""
    if end.__cause__ is not None and not isinstance(end.__cause__, KeyboardInterrupt):
        return Outcome(_in_words(end.__cause__))
    return Outcome("interrupted", interrupted=True)


def _in_words(error: BaseException) -> str:
    known = type(error).__module__ == "lth_lightning.errors"
    text = " ".join(str(error).split())
    return text if known else f"{type(error).__name__}: {text}".removesuffix(": ")


@contextlib.contextmanager
def _printing_to(file: Any) -> Iterator[None]:
    """Send all output to a file: Python's, and that of libraries that write to the process's own."""
    own = sys.stdout, sys.stderr
    kept = [os.dup(1), os.dup(2)]
    for stream in own:
        stream.flush()
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout = sys.stderr = file
    try:
        yield
    finally:
        file.flush()
        for stream in own:
            stream.flush()
        sys.stdout, sys.stderr = own
        for number, descriptor in enumerate(kept, start=1):
            os.dup2(descriptor, number)
            os.close(descriptor)


@contextlib.contextmanager
def _nothing_left_over() -> Iterator[None]:
    """Undo what a fit changes for the whole process: the environment, torch's modes, and memory of the GPU."""
    import torch

    environment, path = dict(os.environ), list(sys.path)
    is_benchmarking, precision = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:] = path
        torch.use_deterministic_algorithms(is_deterministic)
        torch.backends.cudnn.benchmark = is_benchmarking
        torch.set_float32_matmul_precision(precision)
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
