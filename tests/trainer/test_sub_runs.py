"""Loggers without sub-runs can tell every network's curve apart: read from the files that they write, offline."""

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Cut, Fit, digits, fit, mlp, weekly
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, WandbLogger

from lth_lightning.runs.rows import CurveRow, read_curves

Points = dict[str, list[tuple[int, float]]]
"""Step and value of each metric, in the order in which they were written."""


def of_csv(folder: Path) -> Points:
    (path,) = folder.rglob("metrics.csv")
    found: Points = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name != "step":
                    found[name].append((int(row["step"]), float(value)))
    return found


def of_mlflow(folder: Path) -> Points:
    found: Points = {}
    for path in folder.rglob("*"):
        if path.is_file() and "metrics" in path.parts:
            lines = [line.split() for line in path.read_text().splitlines()]
            name = "/".join(path.parts[path.parts.index("metrics") + 1 :])
            found[name] = [(int(step), float(value)) for _, value, step in lines]
    return found


def of_wandb(folder: Path) -> Points:
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.finish()  # its own process writes the file
    (path,) = folder.rglob("*.wandb")
    found: Points = defaultdict(list)
    for content in wandb_records(path.read_bytes()):
        record = Record.FromString(content)
        if record.HasField("history"):
            items = {(one.key or "/".join(one.nested_key)): json.loads(one.value_json) for one in record.history.item}
            for name, value in items.items():
                if name.startswith("round"):
                    found[name].append((items["trainer/global_step"], value))
    return found


def wandb_records(content: bytes) -> Iterator[bytes]:
    """The records of LevelDB's log format: blocks of 32 KiB, and records in one or several parts."""
    record, at = b"", 7  # after the file's header
    while at + 7 <= len(content):
        left = 32_768 - at % 32_768
        if left < 7:
            at += left
            continue
        size, part = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        record += content[at + 7 : at + 7 + size]
        at += 7 + size
        if part in (1, 4):  # whole, or the last part
            yield record
            record = b""


LOGGERS: dict[str, tuple[Callable[[Path], Logger], Callable[[Path], Points]]] = {
    "csv": (CSVLogger, of_csv),
    "mlflow": (lambda folder: MLFlowLogger(tracking_uri=f"file:{folder}"), of_mlflow),
    "wandb": (lambda folder: WandbLogger(save_dir=folder, offline=True), of_wandb),
}


def logged(name: str, folder: Path, *callbacks: Cut) -> Fit:
    logger = LOGGERS[name][0](folder / "log")
    settings = {"logger": logger, "log_every_n_steps": 1}
    controls = {"controls": ["random_mask"], "control_replicates": 2}
    return fit(mlp(), digits(), folder / "run", rounds=1, callbacks=callbacks, trainer=settings, **controls)


@pytest.mark.filterwarnings("ignore")  # what these packages say of themselves
@pytest.mark.parametrize("name", [pytest.param(one, marks=() if one == "csv" else weekly) for one in LOGGERS])
def test_every_networks_curve_can_be_told_apart_and_no_step_goes_back(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = pytest.importorskip(name)  # of the logger; for CSV the standard one
    if name == "wandb":
        package.finish()  # a run of another test would go on
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    (tmp_path / "log").mkdir()
    monkeypatch.chdir(tmp_path)
    run = logged(name, tmp_path)
    found = LOGGERS[name][1](tmp_path / "log")
    before = 0
    for row in run.rows:
        where = f"round_{row.round:02d}/{row.variant}" + ("_2" if row.replicate else "")
        curve = [one for one in read_curves(run.lottery.folder.curves) if _same(one, row)]
        for metric in ("val_acc", "test_acc", "val_loss"):
            values = [(before + one.step - 1, pytest.approx(getattr(one, metric))) for one in curve]
            assert found[f"{where}/{metric}"] == values  # Lightning counts batches from 0
        before += row.steps
    rounds = found["round"]
    assert [step for step, _ in rounds] == sorted(step for step, _ in rounds)
    assert {value for _, value in rounds} == {0, 1}


def _same(one: CurveRow, other: object) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in ("round", "variant", "replicate"))


def test_a_fit_leaves_loggers_as_they_were(tmp_path: Path) -> None:
    run = logged("csv", tmp_path)
    logger = run.trainer.logger
    assert "log_metrics" not in vars(logger)
    logger.log_metrics({"mine": 1.0}, step=0)
    logger.save()
    assert of_csv(tmp_path / "log")["mine"] == [(0, 1.0)]
