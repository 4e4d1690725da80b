"""A score says by which metric networks are compared, which of two is better, and how it is printed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lth_lightning import SettingError
from lth_lightning.runs.rows import CurveRow, Row, read_curves, read_rows, write_curve, write_rows
from lth_lightning.runs.score import ACCURACY, LOSS, Score, known_score, read_score, write_score

ROW = Row(1, "ticket", 0, 0.5, 50, 100, 10, 1.0, 0.3, 0.2, None, 0.25, None, 8, 0.1, None, 41.5, 42.5, 43.5)


@pytest.mark.parametrize(
    ("name", "columns", "on_test"),
    [
        ("val_f1", ("val_f1", "test_f1", "early_stop_test_f1"), "test_f1"),
        ("valid/mae", ("val_mae", "test_mae", "early_stop_test_mae"), "test/mae"),
        ("validation.top-1", ("val_top_1", "test_top_1", "early_stop_test_top_1"), "test.top-1"),
        ("perplexity", ("val_perplexity", "test_perplexity", "early_stop_test_perplexity"), "perplexity"),
        ("value", ("val_value", "test_value", "early_stop_test_value"), "value"),  # not the validation of `ue`
        ("val_acc", ("val_acc", "test_acc", "early_stop_test_acc"), "test_acc"),
    ],
)
def test_columns_are_named_after_the_metric(name: str, columns: tuple[str, str, str], on_test: str) -> None:
    score = Score(name)
    assert score.columns == columns
    assert score.logged == {columns[0]: name, columns[1]: on_test}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": ""}, r"lottery\.score\.name must name a metric"),
        ({"name": "val_f1", "mode": "least"}, r"lottery\.score\.mode.*choose from max, min"),
        ({"name": "val_loss"}, "val_loss is a loss; set mode to min"),
        ({"name": "val_f1", "tolerance": -1.0}, r"lottery\.score\.tolerance must be a number of at least 0"),
        ({"name": "val_f1", "tolerance": float("nan")}, r"lottery\.score\.tolerance must be a number of at least 0"),
    ],
)
def test_what_cannot_be_a_score_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        Score(**settings)


@pytest.mark.parametrize(
    ("score", "value", "dense", "matches"),
    [
        (ACCURACY, 0.4997, 0.5047, True),  # exactly half a point below
        (ACCURACY, 0.4996, 0.5047, False),
        (ACCURACY, 0.9, 0.5, True),
        (Score("val_mae", "min"), 101.0, 100.0, True),  # 1 % of the dense network's
        (Score("val_mae", "min"), 101.1, 100.0, False),
        (Score("val_mae", "min"), 3.0, 100.0, True),
        (Score("val_r2", "max"), -1.01, -1.0, True),
        (Score("val_mae", "min", tolerance=5.0), 105.0, 100.0, True),
        (Score("val_mae", "min", tolerance=5.0), 105.1, 100.0, False),
        (Score("val_f1", tolerance=0.0), 0.5, 0.5, True),
        (Score("val_f1", tolerance=0.0), 0.499, 0.5, False),
    ],
)
def test_a_network_matches_if_it_is_worse_by_the_tolerance_at_most(
    score: Score, value: float, dense: float, matches: bool
) -> None:
    assert score.matches(value, dense) == matches


def test_percent_only_for_fractions() -> None:
    assert [Score(f"val_{key}").is_fraction for key in ("acc", "F1", "mIoU", "mae", "r2")] == [True] * 3 + [False] * 2
    assert Score("val_acc", percent=False).text(0.5) == "0.5000"
    assert Score("val_share", percent=True).text(0.5) == "50.0"
    assert [ACCURACY.gap(x) for x in (0.0123, -0.0123, 0.0004, -0.0004)] == ["+1.2", "−1.2", "0.0", "0.0"]
    mae = Score("val_mae", "min")
    assert [mae.text(x) for x in (41.2, 0.409, 1234.5)] == ["41.20", "0.4090", "1234"]
    assert [mae.gap(x) for x in (0.012345, -3.0, 0.0)] == ["+0.0123", "−3", "0"]


def test_without_a_score_it_is_the_accuracy_or_the_loss() -> None:
    assert known_score([], None) == ACCURACY
    assert known_score([ROW], None) == LOSS
    assert known_score([replace(ROW, val_acc=0.5)], None) == ACCURACY
    assert known_score([ROW], Score("val_f1")) == Score("val_f1")


def test_values_come_from_the_scores_own_fields_of_rows() -> None:
    own = Score("val_mae", "min")
    assert [own.value(ROW, data) for data in ("val", "test", "early_stop_test")] == [41.5, 42.5, 43.5]
    assert [LOSS.value(ROW, data) for data in ("val", "test", "early_stop_test")] == [0.2, 0.25, None]
    assert ACCURACY.value(ROW, "test") is None


def test_files_have_columns_of_the_score_only_if_there_is_one(tmp_path: Path) -> None:
    point = CurveRow(1, "ticket", 0, 10, 0.2, None, 0.25, None, 41.5, 42.5)
    write_rows(tmp_path / "own.csv", [ROW], "mae")
    (tmp_path / "curves").mkdir()
    write_curve(tmp_path / "curves/own.csv", [point], "mae")
    assert read_rows(tmp_path / "own.csv") == [ROW] and read_curves(tmp_path / "curves") == [point]
    assert (tmp_path / "own.csv").read_text().splitlines()[0].endswith(",val_mae,test_mae,early_stop_test_mae")
    write_rows(tmp_path / "usual.csv", [ROW])
    assert (tmp_path / "usual.csv").read_text().splitlines()[0].endswith(",early_stop_test_acc")
    assert read_rows(tmp_path / "usual.csv") == [
        replace(ROW, val_score=None, test_score=None, early_stop_test_score=None)
    ]
    text = (tmp_path / "own.csv").read_text()
    (tmp_path / "own.csv").write_text(text.replace("test_mae", "test_mse", 1))
    with pytest.raises(SettingError, match="expected 'test_mae', got 'test_mse'"):
        read_rows(tmp_path / "own.csv")


def test_a_score_is_read_back_from_its_file(tmp_path: Path) -> None:
    score = Score("val_mae", "min", False, 0.5)
    assert read_score(tmp_path / "score.json") is None
    write_score(tmp_path / "score.json", score)
    assert read_score(tmp_path / "score.json") == score
    for broken in ("", "[]", '{"naem": "x"}', '{"mode": "least"}'):
        (tmp_path / "score.json").write_text(broken)
        with pytest.raises(SettingError, match=r"score"):
            read_score(tmp_path / "score.json")
