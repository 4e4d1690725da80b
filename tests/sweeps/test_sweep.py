"""A sweep leaves what its fits would leave, byte for byte, whatever dies meanwhile.

One Ray for the module; only the weekly run starts whole processes and clusters, and kills them.
"""

import contextlib
import csv
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import HANGS, assert_same_pages, draw_plainly, weekly

import lth_lightning
from lth_lightning.cli.main import main
from lth_lightning.sweeps.command import read
from lth_lightning.sweeps.folder import SweepFolder

ray = pytest.importorskip("ray")

pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray's own sockets
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

SMALL = [
    *("--config", "quickstart", "--data.train_size", "200", "--data.val_size", "100", "--data.batch_size", "40"),
    *("--model.net", '{"class_path": "MLP", "init_args": {"hidden": [20, 10]}}'),
    *("--lottery.rounds", "1", "--lottery.train_for", "13it", "--lottery.rewind_to", "3it"),
    *("--lottery.controls", "[pruned_only, random_reinit, random_mask]", "--trainer.log_every_n_steps", "5"),
]
MORTAL = '''
import itertools
import os
import signal
from pathlib import Path

from lth_lightning.models import MLP

batches = itertools.count(1)


class MortalMLP(MLP):
    """Kills its process in the second ticket of seed 1, once in a run; fails with seed 3."""

    def forward(self, images):
        seed, mark = os.environ["PL_GLOBAL_SEED"], Path(os.environ["LTH_LIGHTNING_RUN_DIR"]) / "killed"
        if seed == "3" and self.training:
            raise RuntimeError("no luck")
        if seed == "1" and self.training and next(batches) >= 22 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(images)


class MortalControl(MLP):
    """Kills its process in the second epoch of the first control that is trained apart."""

    def forward(self, images):
        apart = "controls" in os.environ["LTH_LIGHTNING_RUN_DIR"]
        if apart and self.training and next(batches) >= 8 and not Path("dead").exists():
            Path("dead").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(images)
'''


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory for the module."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "mortal.py").write_text(MORTAL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        draw_plainly(patch)
        yield folder


@pytest.fixture(scope="module")
def ray_of_module() -> Iterator[None]:
    """Ray on this machine, with room for two trainings."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    yield
    ray.shutdown()


MORTAL_RUN = ["--model.net", '{"class_path": "mortal.MortalMLP", "init_args": {"hidden": [20, 10]}}']


class Swept:
    """What a sweep has left and said."""

    def __init__(self, folder: Path, code: int, out: str) -> None:
        self.folder, self.code, self.out = folder, code, out


@pytest.fixture(scope="module")
def swept(here: Path, ray_of_module: None) -> Swept:
    """Three seeds: 3 fails, and 1, which comes last, loses its process; there are places free for its controls."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main(["sweep", *SMALL, *MORTAL_RUN, "--sweep_dir", "swept", "--seeds", "3,2,1"])
    return Swept(here / "swept", code, out.getvalue())


def results(run: Path) -> list[dict[str, str]]:
    """results.csv without the seconds, which no two runs share."""
    rows = list(csv.DictReader((run / "results.csv").open()))
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def assert_same_run(run: Path, other: Path) -> None:
    assert results(run) == results(other)
    names = [path.relative_to(other) for part in ("curves", "tickets") for path in sorted((other / part).iterdir())]
    assert len(names) >= 4
    for name in (Path("layers.csv"), Path("config.yaml"), Path("environment.json"), *names):
        assert (run / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_is_that_of_a_fit_though_its_process_was_killed(swept: Swept, here: Path, seed: int) -> None:
    alone = here / f"alone_{seed}"
    alone.mkdir()
    if seed == 1:
        (alone / "killed").touch()
    assert main(["fit", *SMALL, *MORTAL_RUN, "--seed_everything", str(seed), "--run_dir", str(alone)]) == 0
    run = swept.folder / f"seed={seed}"
    assert (run / "killed").exists() == (f"seed={seed}: its process ended; it will resume" in swept.out) == (seed == 1)
    assert_same_run(run, alone)
    assert_same_pages(run, alone)


def test_controls_are_trained_beside_the_tickets_where_a_place_is_free(swept: Swept) -> None:
    assert "seed=1: its tickets are trained, " in swept.out
    assert "round_01_random_mask_0 --ckpt_path last" in (swept.folder / "seed=1/log.txt").read_text()


def test_a_training_that_fails_fails_alone_and_is_named(swept: Swept) -> None:
    assert swept.code == 1
    states = {name: run["state"] for name, run in json.loads((swept.folder / "sweep.json").read_text())["runs"].items()}
    assert states == {"seed=1": "done", "seed=2": "done", "seed=3": "failed"}
    said = swept.out[swept.out.index("1 of 3 runs failed:") :].splitlines()
    assert said[1:3] == ["seed=3: RuntimeError: no luck", "  log:    swept/seed=3/log.txt"]
    assert "raise RuntimeError" in (swept.folder / "seed=3/log.txt").read_text()
    repeat = shlex.split(said[3].partition("repeat:")[2])
    with pytest.raises(RuntimeError, match="no luck"):
        main(repeat[repeat.index("fit") :])


@weekly
def test_a_control_resumes_when_its_process_has_died(here: Path, ray_of_module: None) -> None:
    more = ["--lottery.control_replicates", "2", "--model.net"]
    flags = [*SMALL, *more, '{"class_path": "mortal.MortalControl", "init_args": {"hidden": [20, 10]}}']
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["sweep", *flags, "--seeds", "1", "--sweep_dir", "split"]) == 0
    assert re.search(r"seed=1, round 1, random_\w+( #2)?: its process ended; it will resume", out.getvalue())
    assert main(["fit", *flags, "--seed_everything", "1", "--run_dir", "whole"]) == 0
    assert_same_run(here / "split/seed=1", here / "whole")
    assert_same_pages(here / "split/seed=1", here / "whole")


def test_rays_own_notes_are_not_shown(swept: Swept) -> None:
    assert "raylet" not in swept.out


def test_what_is_done_is_pooled_in_one_report(swept: Swept) -> None:
    assert "n = 2" in (swept.folder / "report.md").read_text()
    assert (swept.folder / "report.html").is_file()


def test_what_is_done_is_not_repeated_and_python_gives_the_runs(swept: Swept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lth_lightning.sweeps.sweep.Cluster", None)  # no need of Ray
    names = [flag.removeprefix("--") for flag in [*SMALL, *MORTAL_RUN][2::2]]
    settings = dict(zip(names, [*SMALL, *MORTAL_RUN][3::2], strict=True))
    runs = lth_lightning.sweep("quickstart", seeds=[1, 2], settings=settings, sweep_dir=swept.folder)
    assert [run.name for run in runs] == ["seed=1", "seed=2"]
    assert len(runs.results) == 10


def test_settings_that_vary_are_compared(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["sweep", *SMALL, "--vary", "model.optimizer.lr=1e-2,1e-3", "--seeds", "1", "--sweep_dir", "compared"]
    request = read(flags[1:])
    folder = SweepFolder(here / "compared")
    folder.path.mkdir()
    for training in request.trainings():
        assert main(["fit", *training.flags, "--quiet", "--run_dir", str(folder.run(training))]) == 0
        folder.note(training, "done")
    assert main(flags) == 0
    assert "Compared by model.optimizer.lr" in (here / "compared/report.md").read_text()
    assert "compared/comparison.csv" in capsys.readouterr().out


def test_a_begun_run_goes_on_only_with_its_own_settings(swept: Swept, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*SMALL, *MORTAL_RUN, "--seeds", "3,2,1,4", "--lottery.rounds", "2", "--sweep_dir", "swept"]
    (swept.folder / "sweep.json").rename(swept.folder / "kept")
    assert main(["sweep", *flags]) == 2
    (swept.folder / "kept").rename(swept.folder / "sweep.json")
    said = capsys.readouterr().err
    assert said.startswith("error: seed=3 and 2 more: ckpt_path: the run began with other settings: lottery.rounds was")


def test_a_training_that_no_machine_has_room_for_is_refused(
    ray_of_module: None, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", *SMALL, "--cpus", "64", "--sweep_dir", "refused"]) == 2
    assert "--cpus: a training is to take 64, but no machine has more than 2" in capsys.readouterr().err
    assert not (here / "refused").exists()


def test_a_mistyped_setting_is_refused_before_ray_starts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", *SMALL, "--lottery.round", "2"]) == 2
    assert "Did you mean --lottery.rounds?" in capsys.readouterr().err


def test_without_ray_the_command_says_how_to_get_it(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["sweep", *SMALL, "--seeds", "1"]) == 2
    assert "pip install 'lth_lightning[sweep]'" in capsys.readouterr().err


def test_a_program_of_its_own_says_how_to_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        lth_lightning.LotteryCLI(lth_lightning.ImageClassifier, args=["sweep", "--seeds", "1"])
    assert "Name them in a config" in capsys.readouterr().err


# ------------------------------------------------------------------------ whole processes, killed


def processes_of(session: Path) -> list[str]:
    """The command lines of processes of a Ray session, or that run in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "cwd") == str(session):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def wait_until(condition: object, seconds: float = HANGS) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.1)


LONG = [*SMALL, "--lottery.train_for", "400it", "--lottery.rounds", "3"]
SPLIT, IN_LINE = "1", "1,2"  # seeds, on two cores


@pytest.fixture(scope="module")
def undisturbed(here: Path) -> Path:
    for seed in (1, 2):
        assert (
            main(["fit", *LONG, "--seed_everything", str(seed), "--run_dir", str(here / f"undisturbed/seed={seed}")])
            == 0
        )
    return here / "undisturbed"


def start(cwd: Path, seeds: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "lth_lightning", "sweep", *LONG, "--seeds", seeds, "--sweep_dir", "killed"]
    return subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def trains_a_control(cwd: Path) -> bool:
    """Whether a control is in training apart."""
    return any(not (log.parent / "results.csv").exists() for log in cwd.glob("killed/*/controls/*/log.txt"))


@weekly
@pytest.mark.parametrize("seeds", [SPLIT, IN_LINE])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_sweep_that_is_ended_leaves_no_process_and_goes_on(
    undisturbed: Path, tmp_path: Path, how: signal.Signals, seeds: str
) -> None:
    process = start(tmp_path, seeds)
    wait_until(
        lambda: trains_a_control(tmp_path) if seeds == SPLIT else any((tmp_path / "killed").glob("*/tickets/round_01*"))
    )
    os.killpg(process.pid, how) if how == signal.SIGINT else process.send_signal(how)
    process.communicate(timeout=HANGS)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[how]
    # Ray's agents of a killed driver end when they find that Ray has, which they do not where nobody reaps processes.
    agents = ("ray::DashboardAgent", "ray::RuntimeEnvAgent") if how == signal.SIGKILL else ()
    wait_until(lambda: not [one for one in processes_of(tmp_path) if not one.startswith(agents)], 30)
    again = start(tmp_path, seeds)
    out, _ = again.communicate(timeout=HANGS)
    assert again.returncode == 0, out
    assert "resumes after" in out
    wait_until(lambda: not [one for one in processes_of(tmp_path) if not one.startswith(agents)], 30)
    for seed in seeds.split(","):
        assert_same_run(tmp_path / f"killed/seed={seed}", undisturbed / f"seed={seed}")
        assert_same_pages(tmp_path / f"killed/seed={seed}", undisturbed / f"seed={seed}")


@weekly
def test_a_cluster_finishes_with_the_same_bytes_though_a_machine_dies(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    ray.shutdown()
    monkeypatch.chdir(tmp_path)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(3)]  # two runs, and a place for their controls
    try:
        command = [sys.executable, "-m", "lth_lightning", "sweep", *LONG, "--seeds", "1,2", "--sweep_dir", "killed"]
        process = subprocess.Popen(
            [*command, "--address", cluster.address], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        wait_until(lambda: trains_a_control(tmp_path) and len(list(tmp_path.glob("killed/*/tickets/round_01*"))) == 2)
        cluster.remove_node(nodes[0], allow_graceful=False)
        out, _ = process.communicate(timeout=HANGS)
        assert process.returncode == 0, out
        assert "its process ended; it will resume" in out
    finally:
        ray.shutdown()
        cluster.shutdown()
    for seed in (1, 2):
        assert_same_run(tmp_path / f"killed/seed={seed}", undisturbed / f"seed={seed}")
