"""The folder of a sweep: the same command goes on in it, and no two processes work in it."""

from pathlib import Path

import pytest

from lth_lightning.errors import SettingError
from lth_lightning.sweeps.combinations import Request
from lth_lightning.sweeps.folder import SweepFolder, folder_for


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def begun(request: Request) -> SweepFolder:
    folder = folder_for(request, request.trainings())
    lock = folder.open()
    for training in request.trainings():
        folder.note(training, "waiting")
    lock.release()
    return folder


def test_the_same_runs_go_on_in_their_folder_and_others_get_the_next_number() -> None:
    first, more = Request(["--config", "a.yaml"], seeds=[1, 2]), Request(["--config", "a.yaml"], seeds=[1, 2, 3])
    assert begun(first).path == Path("runs/a/sweep_0")
    assert begun(more).path == Path("runs/a/sweep_1")
    assert folder_for(first, first.trainings()).path == Path("runs/a/sweep_0")
    assert folder_for(more, more.trainings()).path == Path("runs/a/sweep_1")


def test_a_run_is_done_once_it_is_noted_and_has_results() -> None:
    request = Request(["--config", "a.yaml"], seeds=[1])
    folder, (training,) = begun(request), request.trainings()
    assert not folder.is_done(training)
    folder.note(training, "done")
    assert not folder.is_done(training)  # somebody has removed its folder
    folder.run(training).mkdir()
    (folder.run(training) / "results.csv").write_text("")
    assert SweepFolder(folder.path).is_done(training)
    folder.note(training, "failed", "the loss is nan")
    assert not SweepFolder(folder.path).is_done(training)


def test_two_processes_do_not_run_one_sweep() -> None:
    folder = begun(Request([], seeds=[1]))
    lock = folder.open()
    with pytest.raises(SettingError, match="another process runs the sweep in runs/run/sweep_0"):
        folder.open()
    lock.release()


def test_a_damaged_record_is_named() -> None:
    folder = begun(Request([], seeds=[1]))
    (folder.path / "sweep.json").write_text("{")
    with pytest.raises(SettingError, match=r"cannot read runs/run/sweep_0/sweep\.json"):
        SweepFolder(folder.path)
