"""Sweep: hands trainings to workers until all are done, and writes one report; `sweep`, the same in Python."""

import os
import signal
import threading
import time
from bisect import insort
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from lth_lightning.cli.arguments import completed, named_parts, program
from lth_lightning.cli.known_settings import check_names
from lth_lightning.consoles import can_redraw, duration
from lth_lightning.errors import SettingError
from lth_lightning.notebook import Runs
from lth_lightning.report.command import main as report
from lth_lightning.report.comparable import compared, key
from lth_lightning.runs.run import RunFiles
from lth_lightning.runs.settings import differences
from lth_lightning.sweeps.cluster import Cluster, check_room, places
from lth_lightning.sweeps.combinations import CONFIGS, Request, as_flag, command_for
from lth_lightning.sweeps.display import Standing, SweepDisplay, name_of
from lth_lightning.sweeps.folder import SweepFolder, folder_for
from lth_lightning.sweeps.jobs import Job, Run
from lth_lightning.sweeps.worker import Checked, Outcome

POLL_SECONDS = 0.2
COUNT_SECONDS = 5.0  # how often the machines are counted: some may have come, or gone
ATTEMPTS = 3
"""How often a training, or the start of a worker, may lose its process without getting any further."""
TERMINATED = 143  # the exit code of a program that SIGTERM ends


class Sweep:
    """The runs of a request, trained side by side.

    Args:
        request: what is asked for.
        console: where to show it.

    Raises:
        SettingError: a setting is refused; nothing is trained then.
    """

    def __init__(self, request: Request, console: Console) -> None:
        self.request, self.console = request, console
        trainings = request.trainings()
        for training in trainings:
            args = completed(["fit", *training.flags])
            check_names(args[1:], named_parts(args))
        self.folder: SweepFolder = folder_for(request, trainings)
        self.runs = [Run(one, Standing(one.name, self.folder.run(one))) for one in trainings]
        self._waiting: list[Job] = []  # by rank
        self._jobs: dict[Any, tuple[Any, Job | None]] = {}
        self._idle: list[Any] = []  # workers for controls to come
        self._gpus = 0.0
        self._places = self._counted = self._failed_starts = 0

    def run(self) -> bool:
        """Train all runs that are not done yet, and return whether all have succeeded."""
        for run in self.runs:
            run.standing.look()
            if self.folder.is_done(run.training):
                run.standing.state = "done"
        if any(run.standing.state != "done" for run in self.runs):
            with Cluster(self.request.address) as self.cluster, ended_by_sigterm():  # after Ray's own handler
                self._train_all()
        return all(run.standing.state == "done" for run in self.runs)

    def _train_all(self) -> None:
        runs = [run for run in self.runs if run.standing.state != "done"]
        for run in runs:
            self._queue(run.own)
        self._gpus = self._gpus_a_training()
        if self.request.max_parallel is None:  # else more machines may be on their way
            check_room(self.cluster.nodes(), self.request.cpus, self._gpus)
        self._hire()
        in_line = self._check(runs, self._first_worker())
        lock = self.folder.open()
        try:
            for run in runs:
                self.folder.note(run.training, "waiting")
            for run in runs:
                self._find_controls(run)
                if run.apart and not run.standing.own_networks:  # its own fit has nothing more to train
                    run.has_left = True
                    self._waiting.remove(run.own)
                    self._gather_if_ready(run)
            with SweepDisplay(self.console) as display:
                self._loop(display, runs, in_line)
        finally:
            self.folder.let_split(False)
            lock.release()

    def _gpus_a_training(self) -> float:
        if self.request.gpus is not None:
            return self.request.gpus
        there = any(node.get("GPU", 0) >= 1 for node in self.cluster.nodes())
        return 1.0 if there and self.request.accelerator != "cpu" else 0.0

    def _queue(self, job: Job) -> None:
        insort(self._waiting, job, key=lambda one: one.rank)

    # ------------------------------------------------------------------------ workers

    @property
    def _in_training(self) -> int:
        return sum(job is not None for _, job in self._jobs.values())

    @property
    def _lets_split(self) -> bool:
        """Whether fits are to leave their controls apart: if there are more places than fits that find tickets."""
        return self.request.split_controls and sum(run.may_find_more for run in self.runs) < self._places

    @property
    def _to_come(self) -> int:
        """How many controls the runs may still leave apart; one each before they are checked: workers start slowly."""
        if not self._lets_split:
            return 0
        runs = [run.standing for run in self.runs if run.may_find_more and run.standing.splits]
        return sum(len(one.own_networks) - len(one.chain) if one.networks else 1 for one in runs)

    def _hire(self) -> None:
        """Start as many workers as there is room and work for."""
        now = time.monotonic()
        if not self._counted or now > self._counted + COUNT_SECONDS:
            self._counted = int(now)
            room = places(self.cluster.nodes(), self.request.cpus, self._gpus)
            self._places = self.request.max_parallel or max(1, room)
        wanted = min(self._places, len(self._waiting) + self._in_training + self._to_come)
        for _ in range(wanted - len(self._jobs) - len(self._idle)):
            worker = self.cluster.hire(self.request.cpus, self._gpus, program())
            self._jobs[worker.ready.remote()] = (worker, None)

    def _first_worker(self) -> Any:
        """Wait until a worker is ready, and take it out of the jobs."""
        while True:
            for job in self.cluster.ray.wait(list(self._jobs), timeout=POLL_SECONDS)[0]:
                worker, _ = self._jobs.pop(job)
                if self._result(job, None) is not None:
                    return worker
            self._hire()

    def _result(self, reference: Any, job: Job | None) -> Any:
        """What a worker has returned, `True` for nothing; None if its process died."""
        errors = self.cluster.ray.exceptions
        try:
            result = self.cluster.ray.get(reference)
        except errors.RayTaskError as error:
            if job is None:
                raise RuntimeError(f"a worker cannot work: {error}") from error
            return Outcome(_last_line(str(error)))
        except errors.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, SettingError):
                raise cause from None
            if job is None:
                self._failed_starts += 1
                if self._failed_starts > ATTEMPTS * max(1, self._places):
                    raise RuntimeError(f"workers do not start: {_last_line(str(error))}") from error
            return None
        self._failed_starts = 0
        return True if result is None else result

    # ------------------------------------------------------------------------ before training

    def _check(self, runs: Sequence[Run], worker: Any) -> list[str]:
        """Refuse the whole sweep if the settings of one run are refused; return why controls stay in line."""
        found: list[Checked] = self.cluster.ray.get(worker.check.remote([run.own.flags for run in runs]))
        refused, in_line = dict[str, list[str]](), dict[str, list[str]]()
        for run, checked in zip(runs, found, strict=True):
            run.standing.networks = checked.networks
            run.standing.splits = self.request.split_controls and checked.in_line is None
            if checked.refused is not None:
                reason = checked.refused.replace(str(run.standing.folder), "RUN")
                refused.setdefault(reason, []).append(run.training.name)
            elif checked.in_line is not None:
                in_line.setdefault(checked.in_line, []).append(run.training.name)
        if refused:
            raise SettingError("\n       ".join(self._words(refused)))
        self._jobs[worker.ready.remote()] = (worker, None)
        return self._words(in_line)

    def _words(self, reasons: Mapping[str, Sequence[str]]) -> list[str]:
        """Each reason, with the runs that it applies to, unless it applies to all."""
        return [
            reason if len(names) == len(self.runs) else f"{names[0]}{_and_more(len(names) - 1)}: {reason}"
            for reason, names in reasons.items()
        ]

    # ------------------------------------------------------------------------ training

    def _loop(self, display: SweepDisplay, runs: Sequence[Run], in_line: Sequence[str]) -> None:
        standings = [run.standing for run in self.runs]
        side_by_side = f", up to {min(self._places, len(self._waiting) + self._to_come)} side by side"
        display.say(f"{len(runs)} of {len(self.runs)} runs to train in {self.folder.path}{side_by_side}")
        if self.request.split_controls and any(run.standing.has_controls for run in runs):
            for reason in in_line:
                self.console.print(f"Controls stay in line with the tickets. {reason}.", soft_wrap=True, markup=False)
        while self._waiting or self._in_training:
            self.folder.let_split(self._lets_split)
            for run in self.runs:
                if run.standing.state == "training":
                    self._find_controls(run)
            self._hire()
            for worker in list(self._idle):
                self._idle.remove(worker)
                self._employ(worker, display)
            for reference in self.cluster.ray.wait(list(self._jobs), timeout=POLL_SECONDS)[0]:
                worker, job = self._jobs.pop(reference)
                result = self._result(reference, job)
                if job is not None:
                    self._end(job, result, display)
                if result is not None:
                    self._employ(worker, display)
            display.show(standings, self._in_training)
        display.show(standings, 0, at_once=True)

    def _find_controls(self, run: Run) -> None:
        """Queue the controls that a run has left apart since the last time."""
        for job in run.new_controls():
            if not job.folder.is_gatherable:
                self._queue(job)

    def _gather_if_ready(self, run: Run) -> None:
        """Resume a run that has only to gather its controls."""
        if run.is_gatherable:
            self._queue(run.own)

    def _employ(self, worker: Any, display: SweepDisplay) -> None:
        if not self._waiting:
            if self._to_come:
                self._idle.append(worker)
            else:
                self.cluster.ray.kill(worker)
            return
        job = self._waiting.pop(0)
        run, standing = job.run, job.run.standing
        standing.look()
        standing.begin(job.network)
        logs: list[str] = []
        if job.network is None and run.has_left:
            logs = [os.path.abspath(one.log) for one in run.apart.values() if one.log.is_file()]
        elif job.network is None:
            done = f" resumes after {len(standing.trained)} networks" if standing.trained else " starts"
            display.say(f"{job.name}:{done}")
        splits = os.path.abspath(self.folder.splits) if standing.splits else None
        reference = worker.train.remote(job.flags, os.path.abspath(job.log), splits, logs)
        self._jobs[reference] = (worker, job)

    def _end(self, job: Job, outcome: Outcome | None, display: SweepDisplay) -> None:
        """Record how a fit has ended; one whose process died is taken up again."""
        run, standing = job.run, job.run.standing
        standing.look()
        if standing.state == "failed":  # meanwhile, by another of its fits
            return
        if outcome is None or outcome.interrupted:
            progress = _time_of(job.folder.checkpoint)
            job.lost = job.lost + 1 if progress == job.last_checkpoint else 1
            job.last_checkpoint = progress
            if job.lost < ATTEMPTS:
                standing.wait(job.network)
                self._queue(job)
                display.say(f"{job.name}: its process ended; it will resume")
                return
            outcome = Outcome(f"its process died {ATTEMPTS} times without getting further; is memory too small?")
        if outcome.error is not None:
            self._fail(job, outcome.error, display)
        elif job.network is not None:
            standing.apart[job.network] = "done"
            self._gather_if_ready(run)
        elif outcome.has_left_controls:
            self._find_controls(run)
            run.has_left, standing.own_is_in_training = True, False
            to_go = sum(state != "done" for state in standing.apart.values())
            display.say(f"{job.name}: its tickets are trained, {to_go} controls to go")
            self._gather_if_ready(run)
        else:
            standing.state = "done"
            self.folder.note(run.training, "done")
            seconds = duration(sum(row.seconds for row in standing.rows))
            score = f", last ticket {standing.score}" if standing.score else ""
            display.say(f"{job.name}: done, {len(standing.rows)} networks in {seconds}{score}")

    def _fail(self, job: Job, error: str, display: SweepDisplay) -> None:
        run = job.run
        words = error if job.network is None else f"round {job.network[0]}, {name_of(job.network)}: {error}"
        run.standing.state, run.standing.message, run.failed = "failed", words, job
        self._waiting = [one for one in self._waiting if one.run is not run]
        self.folder.note(run.training, "failed", words)
        display.say(f"{run.training.name}: failed: {words}")

    # ------------------------------------------------------------------------ the end

    def tell(self) -> None:
        """Write the report of all runs that are done, and say where it is and what failed."""
        done = [run for run in self.runs if run.standing.state == "done"]
        if done:
            self._report([run.standing.folder for run in done])
        self.console.print(f"Runs: {self.folder.path}", soft_wrap=True, markup=False)
        self.console.print(f"Learning curves: tensorboard --logdir {self.folder.path}", soft_wrap=True, markup=False)
        failed = [run for run in self.runs if run.standing.state == "failed"]
        if failed:
            print(f"\n{len(failed)} of {len(self.runs)} runs failed:", file=self.console.file)
        for run in failed:
            job = run.failed or run.own
            print(
                f"{run.training.name}: {run.standing.message}\n  log:    {job.log}\n"
                f"  repeat: {command_for(program(), run.training, job.folder.path)}",
                file=self.console.file,
                flush=True,
            )

    def _report(self, folders: Sequence[Path]) -> None:
        try:
            compare = self._compared(folders)
            out = [] if len(folders) == 1 else ["--out", str(self.folder.path)]
            report([*map(str, folders), *(["--compare", ",".join(compare)] if compare else []), *out])
        except SettingError as error:  # e.g. settings that change what a round is; the runs themselves are done
            print(f"No common report: {error}", file=self.console.file)

    def _compared(self, folders: Sequence[Path]) -> list[str]:
        """The settings to compare by: those that vary among these runs."""
        names = [name for name, values in self.request.vary.items() if name != CONFIGS and len(values) > 1]
        if len(self.request.vary.get(CONFIGS, ())) > 1:
            runs = [RunFiles.read(folder) for folder in folders]
            first = compared(runs[0], runs)
            names += [key(found) for run in runs[1:] for found in differences(first, compared(run, runs))]
        there = {run.training.name for run in self.runs if run.standing.folder in folders}
        several = {
            run.training.flags[: -2 if self.request.seeds else None] for run in self.runs if run.training.name in there
        }
        return list(dict.fromkeys(names)) if len(several) > 1 else []


def _time_of(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1] if text.strip() else "no reason given"


def _and_more(count: int) -> str:
    return f" and {count} more" if count else ""


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the program as an exception would, so that Ray's processes end with it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    came = threading.Event()

    def end(*_: Any) -> NoReturn:
        came.set()
        raise SystemExit(TERMINATED)

    usual = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except SystemExit as error:  # `ray.wait` turns it into one with another code
        raise SystemExit(TERMINATED if came.is_set() else error.code) from error
    finally:
        signal.signal(signal.SIGTERM, usual)


def run_sweep(request: Request, console: Console) -> Sweep:
    """Train all runs of a request, and show how it goes.

    Raises:
        SettingError: a setting is refused, and nothing is trained.
    """
    sweep = Sweep(request, console)
    if can_redraw(console):
        console.print("Starting Ray, and checking the settings …", style="dim")
    sweep.run()
    sweep.tell()
    return sweep


def sweep(
    configs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    seeds: Sequence[int] = (),
    vary: Mapping[str, Sequence[Any]] | None = None,
    settings: Mapping[str, Any] | None = None,
    sweep_dir: str | os.PathLike[str] | None = None,
    cpus: float = 1,
    gpus: float | None = None,
    max_parallel: int | None = None,
    address: str | None = None,
    split_controls: bool = True,
) -> Runs:
    """Run an experiment for several seeds and settings side by side, as `train.py sweep` does, and return the runs.

    Args:
        configs: a config (its path, or its bare name) or several, of which later ones override earlier ones.
        seeds: the seeds.
        vary: by name of a setting, its values; all combinations are run. `config` varies whole configs.
        settings: settings that all runs share, by name.
        sweep_dir: the folder; by default the next `runs/<config name>/sweep_<n>`. The same call goes on where it was.
        cpus, gpus: what a training takes; fractions share a GPU.
        max_parallel: the greatest number of trainings side by side; by default as many as there is room for.
        address: of a Ray cluster; by default Ray is started on this machine, unless it runs in this process already.
        split_controls: whether controls are trained beside the tickets wherever a place is free; the results are the
            same either way.

    Raises:
        SettingError: a setting is refused (nothing is trained then), or Ray is not installed.
        RuntimeError: a run has failed; the others are done. The error names it and its log.

    Example:
        >>> runs = sweep("quickstart", seeds=[1, 2, 3])  # doctest: +SKIP
        >>> runs.figure("accuracy")  # doctest: +SKIP
    """
    given = [configs] if isinstance(configs, str | os.PathLike) else list(configs)
    flags = [flag for config in given for flag in ("--config", os.fspath(config))]
    flags += [flag for name, value in (settings or {}).items() for flag in (f"--{name}", as_flag(value))]
    varied = {name: [as_flag(value) for value in values] for name, values in (vary or {}).items()}
    folder = None if sweep_dir is None else Path(sweep_dir)
    request = Request(flags, list(seeds), varied, folder, cpus, gpus, max_parallel, address, split_controls)
    done = run_sweep(request, Console(highlight=False))
    if failed := [run for run in done.runs if run.standing.state == "failed"]:
        reasons = "; ".join(
            f"{run.training.name}: {run.standing.message} ({(run.failed or run.own).log})" for run in failed
        )
        raise RuntimeError(f"sweep: {len(failed)} of {len(done.runs)} runs failed: {reasons}")
    return Runs([RunFiles.read(run.standing.folder) for run in done.runs])
