"""Runs read back: DataFrames equal what pandas reads from the files; figures and reports are the command's."""

import json
from pathlib import Path
from typing import Any

import matplotlib.image
import pandas as pd
import pytest
import yaml
from pandas.testing import assert_frame_equal

from lth_lightning import LotteryTicket, Run, Score, SettingError, read_runs
from lth_lightning.report.command import main as report
from tests.conftest import Fit, digits, draw_plainly, fit, mlp

SETTINGS = {
    "model": {"optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.002}}, "init": None},
    "data": {"dataset": "Digits"},
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """A run in a numbered folder, with a control in one round."""
    folder = tmp_path_factory.mktemp("runs") / "lenet" / "0"
    made = fit(mlp(), digits(), folder, controls=["random_reinit"], control_rounds=[2])
    (folder / "config.yaml").write_text(yaml.safe_dump(SETTINGS))
    return made


@pytest.fixture(scope="module")
def several(done: Fit) -> Path:
    """Copies of the run: `lenet/2`, `lenet/10`, and one of another learning rate; beside them what is no run."""
    lenet = done.lottery.folder.path.parent
    for name, lr in (("2", 0.002), ("10", 0.1)):
        (lenet / name).mkdir()
        (lenet / name / "results.csv").write_bytes(done.lottery.folder.results.read_bytes())
        settings: Any = json.loads(json.dumps(SETTINGS))
        settings["model"]["optimizer"]["init_args"]["lr"] = lr
        (lenet / name / "config.yaml").write_text(yaml.safe_dump(settings))
    (lenet / "report").mkdir()
    (lenet / "report" / "report.md").write_text("a report")
    (lenet / "notes.txt").write_text("a file")
    return lenet


def in_file(*files: Path) -> pd.DataFrame:
    return pd.concat([pd.read_csv(file) for file in files], ignore_index=True)


def test_dataframes_hold_what_the_files_hold(done: Fit) -> None:
    run, folder = done.lottery.run, done.lottery.folder
    assert (run.path, run.name) == (folder.path, "lenet/0")
    assert_frame_equal(run.results, in_file(folder.results), check_dtype=False)
    assert_frame_equal(run.layers, in_file(folder.layers), check_dtype=False)
    curves = [folder.curve(row.round, row.variant, row.replicate) for row in done.rows]
    assert_frame_equal(run.curves, in_file(*curves), check_dtype=False)
    assert len(run.results) == len(done.lottery.plan) == 4
    assert run.results["early_stop_step"].dtype == "Int64"
    assert run.results["test_acc"].dtype == "float64"


def test_a_score_of_ones_own_has_columns_of_its_own(tmp_path: Path, done: Fit) -> None:
    class WithF1(type(done.make_module())):  # type: ignore[misc]
        def log(self, name: str, value: Any, *args: Any, **settings: Any) -> None:
            super().log(name, value, *args, **settings)
            if name.endswith("_acc"):
                super().log(name.replace("_acc", "_f1"), value, *args, **settings)

    module = mlp()
    module.__class__ = WithF1
    own = fit(module, digits(), tmp_path / "own", rounds=1, score=Score("val_f1")).lottery.run
    assert own.results["test_f1"].tolist() == own.results["test_acc"].tolist()
    assert {"val_f1", "test_f1"} <= set(own.curves.columns)
    both = read_runs(own, done.lottery.folder.path)
    assert both.results.groupby("run", sort=False)["test_f1"].count().tolist() == [2, 0]


def test_what_is_not_known_is_missing_and_not_zero(tmp_path: Path) -> None:
    trainer = {"limit_val_batches": 0}
    run = fit(mlp(), digits(), tmp_path, rounds=0, trainer=trainer, evaluate_test=False).lottery.run
    assert run.results[["val_acc", "early_stop_step", "early_stop_test_acc"]].isna().all(axis=None)
    assert run.results["early_stop_step"].dtype == "Int64"
    assert run.results["val_acc"].dtype == "float64"


def test_settings_become_columns(several: Path, done: Fit) -> None:
    runs = read_runs(several / "*")
    assert [run.name for run in runs] == ["lenet/0", "lenet/2", "lenet/10"]
    table = runs.results_with("model.optimizer", "lr", "data.dataset")
    assert list(table.columns[:5]) == ["run", "model.optimizer", "lr", "data.dataset", "round"]
    assert table["lr"].tolist() == [0.002] * 8 + [0.1] * 4
    assert set(table["model.optimizer"]) == {"Adam"}
    assert "lr" not in runs.results
    assert done.lottery.run.results_with("model.init")["model.init"].isna().all()
    with pytest.raises(SettingError, match=r"results_with: no run has a setting 'momentum'"):
        runs.results_with("momentum")


def test_several_runs_are_a_sequence(several: Path) -> None:
    runs = read_runs(several / "*")
    assert len(runs) == 3
    assert isinstance(runs[0], Run) and runs[-1].name == "lenet/10"
    assert [run.name for run in runs[1:]] == ["lenet/2", "lenet/10"]
    assert runs.results["run"].tolist() == [run.name for run in runs for _ in range(4)]
    assert repr(runs) == "Runs(3: lenet/0, lenet/2, lenet/10)"
    assert "<th>data set</th>" in runs._repr_html_()
    with pytest.raises(SettingError, match=r"read_runs: no run matches .*nowhere"):
        read_runs(several / "nowhere" / "*")
    with pytest.raises(SettingError, match=r"model\.optimizer\.lr is 0\.002 in .* and 0\.1 in"):
        runs.figure()


def test_a_figure_is_shown_inline(done: Fit, tmp_path: Path) -> None:
    run = done.lottery.run
    figure = run.figure("accuracy")
    (tmp_path / "shown.png").write_bytes(figure._repr_png_())  # type: ignore[attr-defined]
    assert matplotlib.image.imread(tmp_path / "shown.png").shape == (460, 700, 4)
    drawn = figure.axes[0].lines[0].get_ydata()
    tickets = run.results[run.results["variant"] == "ticket"]
    assert list(drawn) == tickets["test_acc"].tolist()
    assert list(run.figure().axes[0].lines[0].get_ydata()) == list(drawn)
    assert len(run.figure("looks").axes) > 1
    with pytest.raises(SettingError, match=r"figure: 'curve' is unknown; choose from .* Did you mean 'curves'\?"):
        run.figure("curve")
    with pytest.raises(SettingError, match=r"figure: no data for 'comparison' here; choose from accuracy, curves"):
        run.figure("comparison")


def test_a_report_is_that_of_the_command(done: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_plainly(monkeypatch)
    run = Run.read(str(done.lottery.folder.path))
    assert run.report() == run.path / "report.html"
    assert report([str(run.path), "--out", str(tmp_path / "by command")]) == 0
    page = run.report(tmp_path / "by method")
    assert page == tmp_path / "by method" / "report.html"
    for file in ("report.html", "report.md", "statistics.csv"):
        assert (page.parent / file).read_bytes() == (tmp_path / "by command" / file).read_bytes()


def test_a_run_is_a_path_and_shows_itself(done: Fit) -> None:
    run = done.lottery.run
    assert (Path(run) / "results.csv").is_file()
    assert repr(run) == "Run(Digits, lenet/0: 3 rounds, 4 networks)"
    assert f"At {100 * 0.64:.3g} % of the weights the ticket has" in run._repr_html_()
    page = run._repr_html_()
    assert "<th>random reinit test accuracy %</th>" in page
    assert f"<td>{100 * done.rows[0].test_acc:.1f}</td>" in page


def test_a_lottery_shows_how_far_it_is(done: Fit, tmp_path: Path) -> None:
    new = LotteryTicket(rounds=3, train_for="2ep", run_dir=tmp_path / "new", controls=["random_mask"])
    assert repr(new) == (
        f"LotteryTicket(rounds: 0 to 3 of 2ep; controls: random_mask; networks trained: 0 of 7; "
        f"folder: {tmp_path / 'new'})"
    )
    assert "0 of 7" in new._repr_html_()
    with pytest.raises(SettingError, match=r"lottery\.run: no network has been trained yet"):
        _ = new.run
    assert "networks trained: 4 of 4" in repr(done.lottery)
    assert done.lottery.run._repr_html_() in done.lottery._repr_html_()


def test_a_ticket_shows_its_layers(done: Fit) -> None:
    ticket = done.ticket(2)
    accuracy = f"{100 * done.rows[2].test_acc:.2f} %"
    assert repr(ticket) == (
        f"Ticket(MLP on Digits, round 2, 64 % of 3,560 weights, test acc {accuracy}, "
        f"val acc {100 * done.rows[2].val_acc:.2f} %)"
    )
    page = ticket._repr_html_()
    assert page.startswith("<div") and "Ticket of MLP on Digits" in page and accuracy in page
    for name, mask in ticket.masks.items():
        assert name in page
        assert f"width:{100 * mask.float().mean():.4g}%" in page
    ticket.info["architecture"] = "<script>"
    assert "<script>" not in ticket._repr_html_()
