"""A run's folder: taken by one run, however many ask at once."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from lth_lightning import SettingError
from lth_lightning.runs.folder import RunFolder, local, take_folder


def numbered(parent: Path) -> list[Path]:
    return [parent / str(number) for number in range(40)]


def test_runs_that_ask_at_once_take_folders_one_each(tmp_path: Path) -> None:
    start = Barrier(8)

    def take(_: int) -> Path:
        start.wait()
        return take_folder(numbered(tmp_path)).path

    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(take, range(8)))
    assert sorted(taken) == numbered(tmp_path)[:8]


def test_a_folder_with_results_is_taken_and_one_given_back_is_free(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "results.csv").touch()
    (tmp_path / "1").mkdir()  # a logger's, say
    folder = take_folder(numbered(tmp_path))
    assert folder.path == tmp_path / "1"
    folder.claim()
    folder.remove_empty_folders()
    assert take_folder(numbered(tmp_path)).path == tmp_path / "1"
    assert not RunFolder(tmp_path / "1").taken


def test_an_address_is_no_folder(tmp_path: Path) -> None:
    assert local(str(tmp_path)) == tmp_path
    with pytest.raises(SettingError, match="run_dir: s3://bucket/x is not a folder of this machine"):
        local("s3://bucket/x")
