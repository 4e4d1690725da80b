"""results.csv, layers.csv and curves/ read back what was written, or are refused; the paper's early stop."""

import csv
import random
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

from lth_lightning.errors import SettingError
from lth_lightning.report.aggregate import Spread, by_round
from lth_lightning.runs.rows import (
    CurveRow,
    Evaluation,
    LayerRow,
    Row,
    early_stop,
    in_order,
    read_curves,
    read_layers,
    read_rows,
    write_curve,
    write_layers,
    write_rows,
)

COLUMNS = (  # the contract: DESIGN.md
    "round,variant,replicate,density,kept,prunable,steps,seconds,train_loss,val_loss,val_acc,test_loss,test_acc,"
    "early_stop_step,early_stop_val_loss,early_stop_test_acc"
)

ROW = Row(
    3, "random_mask", 1, 0.1 + 0.2, 30, 100, 6000, 1e-300, 2 / 3, None, 0.9, 5e22, 1.0, 400, np.nextafter(1, 2), None
)


def test_rows_read_back_equal_under_the_columns_of_the_contract(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    dense = Row(0, "ticket", 0, 1.0, 100, 100, 0, 0.0, *[None] * 5, *[None] * 3)
    write_rows(path, [ROW, dense])
    assert read_rows(path) == [ROW, dense]
    with path.open(newline="") as file:
        header, first, second = csv.reader(file)
    assert header == COLUMNS.split(",")
    assert [float(first[3]), first[9]] == [0.1 + 0.2, ""]
    assert second[8:] == [""] * 8


def test_layers_read_back_equal_whatever_their_names(tmp_path: Path) -> None:
    layers = [LayerRow(1, "ticket", 0, name, 2, 3, 2 / 3) for name in ("net.0.weight", 'odd, "name"', "Gewölbe")]
    write_layers(tmp_path / "layers.csv", layers)
    assert read_layers(tmp_path / "layers.csv") == layers


def test_curves_read_back_together_by_round_variant_and_step(tmp_path: Path) -> None:
    def curve(round: int, variant: str) -> list[CurveRow]:
        return [CurveRow(round, variant, 0, step, 1 / 3 + step, None, None, 0.5) for step in (20, 100, 1000)]

    expected = [curve(0, "ticket"), curve(1, "ticket"), curve(1, "random_reinit"), curve(10, "ticket")]
    for name, points in zip("dbca", expected, strict=True):
        write_curve(tmp_path / f"{name}.csv", points)
    assert read_curves(tmp_path) == [point for points in expected for point in points]
    assert read_curves(tmp_path / "not_there") == []


def good_lines() -> list[str]:
    return [COLUMNS, "0,ticket,0,1.0,9,9,5,0.1,,,,,0.9,,,"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "line 1, column 1: expected 'round', got 'nothing'"),
        (b"epoch,loss\n1,2\n", "line 1, column 1: expected 'round', got 'epoch'"),
        ("\n".join([good_lines()[0] + ",lr", good_lines()[1]]).encode(), "column 17: expected 'nothing', got 'lr'"),
        ("\n".join([*good_lines(), good_lines()[1][:-4]]).encode(), "line 3: must have 16 fields, got 13"),
        (
            "\n".join([*good_lines(), good_lines()[1].replace("0.9", "high")]).encode(),
            "line 3, column test_acc: 'high'",
        ),
        ("\n".join([*good_lines(), good_lines()[1].replace("1.0", "")]).encode(), "line 3, column density: ''"),
        ("\n".join([*good_lines(), good_lines()[1].replace("ticket", "tickets")]).encode(), "Did you mean 'ticket'?"),
        (b"\x80\x02torch", "is not a CSV file"),
        ((COLUMNS + '\n0,"tick').encode(), "is not a CSV file"),
    ],
)
def test_a_foreign_or_damaged_file_is_refused_by_line_and_column(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    with pytest.raises(SettingError) as error:
        read_rows(path)
    assert complaint in str(error.value)
    assert str(path) in str(error.value)


def test_a_missing_file_is_a_setting_error(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"none\.csv: No such file"):
        read_rows(tmp_path / "none.csv")


def test_order_is_round_then_variant_as_in_the_papers_then_replicate() -> None:
    keys = [
        (1, "ticket", 0),
        (1, "random_reinit", 0),
        (1, "random_reinit", 1),
        (1, "random_mask", 0),
        (10, "ticket", 0),
    ]
    rows = [Row(*key, *astuple(ROW)[3:]) for key in keys]
    shuffled = random.Random(0).sample(rows, len(rows))
    assert in_order(shuffled) == rows


def curve(losses: list[float | None]) -> list[Evaluation]:
    return [Evaluation(100 * number, loss, 0.9, None, 0.8) for number, loss in enumerate(losses)]


def test_early_stop_is_the_first_lowest_validation_loss() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        losses = generator.integers(0, 4, size=12).astype(float)  # few values: many ties
        losses[generator.integers(0, 12, size=4)] = np.nan
        found = early_stop(curve(losses.tolist()))
        assert found is not None
        assert found.step == 100 * np.nanargmin(losses)


def test_early_stop_needs_a_validation_loss() -> None:
    assert early_stop([]) is None
    assert early_stop(curve([None, float("nan")])) is None
    found = early_stop(curve([None, float("inf"), 0.5]))
    assert found is not None
    assert found.step == 200


def test_pooling_leaves_out_what_is_not_known() -> None:
    accuracies: dict[int, list[float | None]] = {0: [0.5, None, 0.9], 1: [None], 2: [0.7]}
    rows = [
        Row(number, "ticket", replicate, 1.0, 9, 9, 5, 0.1, None, None, None, None, accuracy, None, None, None)
        for number, values in accuracies.items()
        for replicate, accuracy in enumerate(values)
    ]
    assert by_round([rows], lambda row: row.test_acc) == {0: Spread(0.7, 0.5, 0.9, 2), 2: Spread(0.7, 0.7, 0.7, 1)}
