"""`train.py export`: the table of a run, and each format's file, from a real run on the embedded Digits."""

import csv
import shutil
from pathlib import Path

import pytest
import torch
from conftest import needs_compiler

from lth_lightning import Ticket, sparse
from lth_lightning.cli.main import main

pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.usefixtures("plain_figures"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    settings = {"--lottery.rounds": "2", "--lottery.train_for": "40it", "--lottery.controls": "[]", "--run_dir": folder}
    given = [str(part) for pair in settings.items() for part in pair]
    assert main(["fit", "--config", "quickstart", "--quiet", *given]) == 0
    return folder


def ticket_of(run: Path, round: int) -> Path:
    return run / "tickets" / f"round_{round:02d}.safetensors"


@needs_compiler
def test_a_run_gives_a_table_and_a_figure(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(run), "--batch_size", "1,8", "--out", str(tmp_path / "new")]) == 0
    said = capsys.readouterr().out
    assert "ms, batch 8" in said and (tmp_path / "new" / "figures" / "export.png").stat().st_size > 5000
    page = (tmp_path / "new" / "export.md").read_text()
    assert page.count("\n| round_") == 3 and "ONNX Runtime, dense" in page
    rows = list(csv.DictReader((tmp_path / "new" / "export.csv").read_text().splitlines()))
    results = {row["density"]: row for row in csv.DictReader((run / "results.csv").read_text().splitlines())}
    assert len(rows) == 6
    for row in rows:
        assert float(row["accuracy"]) == pytest.approx(float(results[row["density"]]["test_acc"]), abs=1e-3)
        assert float(row["milliseconds"]) > 0 and int(row["bytes"]) > 0
    assert int(rows[-1]["bytes"]) < int(rows[0]["bytes"])


@needs_compiler
def test_a_table_in_the_runs_folder_stands_in_its_report_too(run: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(run, tmp_path / "run")
    assert main(["export", str(ticket_of(copied, 1)), str(ticket_of(copied, 2)), "--batch_size", "2"]) == 0
    page = (copied / "report.html").read_text()
    assert page.count(">Tickets that run<") == 2 and "ms, batch 2" in page and "data:image/png;base64," in page
    assert "Tickets that run" not in (run / "report.html").read_text()


@needs_compiler
def test_what_was_measured_of_other_tickets_before_stays(run: Path, tmp_path: Path) -> None:
    for rounds, sizes in (((0, 2), "1,4"), ((1,), "4"), ((2,), "4")):
        tickets = [str(ticket_of(run, round)) for round in rounds]
        assert main(["export", *tickets, "--batch_size", sizes, "--out", str(tmp_path)]) == 0
    rows = list(csv.DictReader((tmp_path / "export.csv").read_text().splitlines()))
    keys = [(row["ticket"], row["batch_size"]) for row in rows]
    assert keys == [("round_00", "1"), ("round_00", "4"), ("round_01", "4"), ("round_02", "1"), ("round_02", "4")]
    assert (tmp_path / "export.md").read_text().count("\n| round_") == 3


@needs_compiler
def test_each_run_has_its_own_files(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [shutil.copytree(run, tmp_path / name) for name in ("one", "two")]
    given = [str(ticket_of(one, 2)) for one in runs]
    assert main(["export", *given, "--batch_size", "2"]) == 0
    assert all((one / "export.csv").is_file() for one in runs)
    assert main(["export", *given, "--to", "torch", "--out", str(tmp_path / "out")]) == 2
    assert "--out: several of the tickets are called round_02" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", ["torch", "onnx", "c", "c --int8"])
def test_the_accuracy_is_that_of_the_file(
    options: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if options == "onnx":
        pytest.importorskip("onnxruntime")
    assert main(["export", str(ticket_of(run, 2)), "--to", *options.split(), "--out", str(tmp_path)]) == 0
    results = [row for row in csv.DictReader((run / "results.csv").read_text().splitlines()) if row["round"] == "2"]
    said = capsys.readouterr().out
    if options.startswith("c") and not any(map(shutil.which, ("cc", "gcc", "clang"))):
        assert "accuracy not measured" in said
        return
    measured = float(said.partition("  accuracy ")[2].partition(" %")[0]) / 100
    assert measured == pytest.approx(float(results[0]["test_acc"]), abs=0.02 if "int8" in options else 1e-3)


def test_the_torch_file_gives_the_networks_scores(run: Path, tmp_path: Path) -> None:
    ticket = ticket_of(run, 2)
    assert main(["export", str(ticket), "--to", "torch", "--out", str(tmp_path)]) == 0
    network = sparse.load(tmp_path / "round_02.sparse.safetensors")
    images = torch.randint(0, 17, (9, 1, 8, 8)).float()
    assert torch.allclose(network(images), Ticket.load(ticket).to_module()(images), rtol=1e-5, atol=1e-5)


def test_the_onnx_file_gives_the_networks_scores(run: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    ticket = ticket_of(run, 2)
    assert main(["export", str(ticket), "--to", "onnx", "--out", str(tmp_path)]) == 0
    session = onnxruntime.InferenceSession(tmp_path / "round_02.onnx", providers=["CPUExecutionProvider"])
    images = torch.randint(0, 17, (9, 1, 8, 8)).float()
    (scores,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    assert torch.allclose(torch.from_numpy(scores), Ticket.load(ticket).to_module()(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [[], ["--int8"]])
def test_the_c_file_lies_beside_its_header(run: Path, tmp_path: Path, options: list[str]) -> None:
    assert main(["export", str(ticket_of(run, 2)), "--to", "c", *options, "--out", str(tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round_02.c", "round_02.h"]
    assert "int predict(const float *image, float *scores)" in (tmp_path / "round_02.h").read_text()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["{run}", "--to", "tflite"], "--to: 'tflite' is unknown; choose from c, onnx, torch."),
        (["{run}", "--to", "onnx", "--int8"], "--int8 is for --to c"),
        (["{run}", "--batch_size", "0"], "--batch_size: '0' must be whole numbers of at least 1"),
        (["{run}/figures"], "is neither a ticket's file nor a run's folder"),
        (["{run}/results.csv"], "is not a ticket"),
        (["{run}", "--to", "c", "--out", "{run}/results.csv/x"], "cannot be written"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    run: Path, given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(run.rglob("*"))
    assert main(["export", *(part.format(run=run) for part in given)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1
    assert sorted(run.rglob("*")) == before
