"""A report says what the rows say: tables, conclusion and figures against figures worked out by hand."""

import csv
import io
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import digits, draw_plainly, fit, mlp
from matplotlib.collections import FillBetweenPolyCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text
from rich.console import Console

import lth_lightning
from lth_lightning.errors import SettingError
from lth_lightning.report.aggregate import PooledRuns
from lth_lightning.report.charts import charts_of, leaving
from lth_lightning.report.command import main
from lth_lightning.report.conclusion import answer, summary
from lth_lightning.report.figures import figure_of, image_bytes, weight_count
from lth_lightning.report.tables import paired_table, results_table
from lth_lightning.report.writer import write_report
from lth_lightning.runs.rows import VARIANTS, CurveRow, LayerRow, Row, write_curve, write_layers, write_rows
from lth_lightning.runs.run import RunFiles
from lth_lightning.runs.score import ACCURACY, Score

SHORT = {"T": "ticket", "R": "random_reinit", "M": "random_mask", "P": "pruned_only"}


def row(
    number: int, variant: str, accuracy: float | None, stop: int | None = None, density: float | None = None
) -> Row:
    """A network of 1,000 weights, half of them pruned a round unless `density` says otherwise."""
    density = 0.5**number if density is None else density
    kept = round(1000 * density)
    return Row(number, variant, 0, density, kept, 1000, 400, 1.0, 0.1, 0.2, 0.9, 0.2, accuracy, stop, 0.2, accuracy)


def rows_of(**accuracies: list[float | None]) -> list[Row]:
    """T=[round 0, round 1, …] and so on for R, M, P; None: not trained."""
    return [
        row(number, SHORT[letter], accuracy, 100 * (number + 1) if letter != "P" else None)
        for letter, values in accuracies.items()
        for number, accuracy in enumerate(values)
        if accuracy is not None
    ]


USUAL = rows_of(
    T=[0.972, 0.975, 0.971, 0.95], R=[None, 0.97, 0.941, 0.92], M=[None, 0.96, 0.91, 0.8], P=[None, 0.9, 0.5, 0.1]
)


def experiment(*runs: list[Row], layers: Sequence[LayerRow] = (), curves: Sequence[CurveRow] = ()) -> PooledRuns:
    """Runs of these rows; layers and learning curves are the first one's."""
    rest = [(list(layers), list(curves)), *[([], [])] * (len(runs) - 1)]
    return PooledRuns([RunFiles(Path(str(n)), rows, *rest[n]) for n, rows in enumerate(runs)])


def figure(name: str, shown: PooledRuns, wanted: Sequence[float] | None = None) -> Figure:
    """The figure of this name."""
    drawn = figure_of(name, charts_of(shown, wanted)[name], "title")
    assert drawn is not None
    return drawn


def save(folder: Path, rows: list[Row], seed: int = 1) -> Path:
    folder.mkdir(parents=True)
    write_rows(folder / "results.csv", rows[::-1])
    sizes = {"model.net.a.weight": 600, "model.net.b.weight": 400}
    layers = [
        LayerRow(r.round, r.variant, 0, n, round(s * r.density), s, r.density) for r in rows for n, s in sizes.items()
    ]
    write_layers(folder / "layers.csv", layers)
    (folder / "config.yaml").write_text(
        f"seed_everything: {seed}\ndata: {{dataset: Digits}}\n"
        "model: {class_path: lth.Module, init_args: {net: {class_path: my.models.MLP, init_args: {}}}}\n"
    )
    return folder


def rendered(rows: list[Row], **console: object) -> list[str]:
    terminal = Console(width=80, **console)  # type: ignore[arg-type]
    with terminal.capture() as capture:
        terminal.print(results_table(experiment(rows), "quickstart/3", brief=True).rich())
    return capture.get().splitlines()


# ------------------------------------------------------------------------------------- table


def test_table_shows_ticket_beside_controls_at_80_columns() -> None:
    lines = rendered(USUAL)
    assert "quickstart/3" in lines[0]
    last = next(line for line in lines if line.strip().startswith("3 "))
    assert last.split() == ["3", "12.50", "125", "95.0", "92.0", "80.0", "10.0", "400", "400", "400"]
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)


def test_table_of_six_digit_numbers_fits_80_columns_even_when_pooled() -> None:
    wide = [
        Row(
            r,
            v,
            0,
            1.0,
            266200,
            266200,
            50000,
            1.0,
            0.1,
            0.2,
            0.9,
            0.2,
            accuracy,
            None if v == "pruned_only" else 50000,
            0.2,
            0.9,
        )
        for accuracy in (0.977, 0.981)
        for r, v in enumerate(VARIANTS)
    ]
    text = "\n".join(rendered(wide))
    assert "…" not in text
    assert "97.7–98.1" in text
    assert "50,000" in text


def test_best_of_a_round_is_bold_and_equal_to_the_eye_is_equally_good() -> None:
    rows = rows_of(T=[0.97, 0.9751, 0.95], R=[None, 0.9749, 0.96])
    bold = [
        re.findall(r"\x1b\[1m *([\d.]+)", line) for line in rendered(rows, force_terminal=True, color_system="standard")
    ]
    assert [found for found in bold if found] == [["97.5", "97.5"], ["96.0"]]  # none in round 0: no contest


def test_columns_without_values_are_left_out() -> None:
    text = "\n".join(rendered([row(0, "ticket", 0.9), row(1, "ticket", 0.9)]))
    assert "reinit" not in text
    assert "early stop" in text  # the legend; but no column
    assert next(line for line in text.splitlines() if line.strip().startswith("1 ")).split() == [
        "1",
        "50.00",
        "500",
        "90.0",
    ]


# ------------------------------------------------------------------------------------- conclusion


def test_summary_compares_where_the_ticket_still_matches_and_a_control_was_trained() -> None:
    assert summary(experiment(USUAL)) == (
        "At 25 % of the weights the ticket has 97.1 % test accuracy (n = 1), 3.0 points more than random reinit "
        "(94.1 %), 6.1 points more than random mask (91.0 %); the dense network has 97.2 %. The smallest density at "
        "which each was seen to match the dense network (at most 0.5 points below it): ticket 25 %; "
        "random reinit 50 %; random mask none."
    )


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (rows_of(T=[0.97, 0.97], R=[None, 0.98]), "1.0 points less than random reinit (98.0 %); the dense"),
        (rows_of(T=[0.97, 0.97], R=[None, 0.97]), "as much as random reinit"),
        (rows_of(T=[0.97, 0.90, 0.92], R=[None, 0.8, 0.8]), "At 25 % of the weights the ticket has 92.0 %"),
        (rows_of(T=[0.97, 0.90, 0.92], R=[None, 0.8, 0.8]), "ticket none; random reinit none."),
        (rows_of(T=[0.5047, 0.4997]), "ticket 50 %."),  # exactly half a point below still matches
        (rows_of(T=[0.972, 0.9669]), "ticket none."),
        (rows_of(T=[0.97, 0.97, 0.97], R=[None, 0.9, None]), "At 50 % of the weights"),
        (rows_of(T=[None, 0.97, 0.9], R=[None, 0.9, 0.8]), "At 25 % of the weights"),
        (rows_of(T=[None, 0.97, 0.9], R=[None, 0.9, 0.8]), "No dense network was trained"),
        (rows_of(T=[0.97]), "nothing to conclude"),
        ([row(0, "ticket", None), row(1, "ticket", None)], "90.0 % validation accuracy (n = 1); the dense network"),
        ([row(0, "ticket", None), row(1, "ticket", None)], "No test data were evaluated"),
    ],
)
def test_summary_is_honest_in_either_direction(rows: list[Row], said: str) -> None:
    assert said in summary(experiment(rows))


def test_summary_of_several_runs_gives_the_paired_interval_in_the_direction_of_its_words() -> None:
    runs = [rows_of(T=[0.97, 0.96 + gap], R=[None, 0.96]) for gap in (0.01, 0.02, 0.03)]
    # differences 1, 2 and 3 points: mean 2, t(0.975, 2) = 4.303, s / sqrt(3) = 0.577, so +- 2.5
    assert "2.0 points more than random reinit (96.0 %; 95 % interval −0.5 to 4.5, n = 3)" in summary(experiment(*runs))
    worse = [rows_of(T=[0.97, 0.96 - gap], R=[None, 0.96]) for gap in (0.01, 0.02, 0.03)]
    assert "2.0 points less than random reinit (96.0 %; 95 % interval −0.5 to 4.5, n = 3)" in summary(
        experiment(*worse)
    )
    assert "1.5 points more than random reinit (96.0 %; paired, n = 2)" in summary(experiment(*runs[:2]))


def test_two_runs_have_no_interval_in_any_table() -> None:
    for brief in (False, True):
        found = paired_table(experiment(*THREE[:2]), brief=brief)
        assert found is not None
        said = f"{found.markdown()} {' '.join(found.legend)}"
        assert "±" not in said and " to " not in said.partition("faster")[0] and "n = 2" in said
        assert "+1.5" in said


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (USUAL, "The ticket beats random reinit from 25 % of the weights on and random mask from 50 % of the weights "
                "on; the sparsest ticket that matches the dense network keeps 25 % (n = 1; “beats” means better by "
                "more than 0.5 points)."),
        (rows_of(T=[0.97, 0.975], R=[None, 0.97]), "The ticket beats random reinit at no density; the sparsest"),
        (rows_of(T=[0.9, 0.9, 0.8], R=[None, 0.8, 0.9]), "reinit at 50 % of the weights only; random reinit beats it "
                                                       "at 25 % of the weights only; "),
        (rows_of(T=[0.9, 0.8, 0.8], R=[None, 0.9, 0.9]), "beats random reinit at no density; random reinit beats it "
                                                       "from 50 % of the weights on; no ticket matches"),
        (rows_of(T=[0.9, 0.9, 0.9, 0.1], R=[None, 0.8, 0.8, 0.1]), "beats random reinit from 50 % to 25 % of the"),
        (rows_of(T=[0.9] * 5, R=[None, 0.8, 0.9, 0.8, 0.9]), "at 2 of 4 densities, between 50 % and 12.5 %"),
        (rows_of(T=[0.9] * 3, R=[None, 0.9, 0.8], M=[None, 0.8, 0.8]), "beats random reinit at 25 % of the weights "
                                                                     "only and random mask from 50 % of the weights"),
        (rows_of(T=[0.9, 0.9], R=[None, 0.9], M=[None, 0.8]), "random mask at 50 % of the weights, but random reinit "
                                                            "at none;"),
        (rows_of(T=[0.9, 0.9], P=[None, 0.1]), "No control was trained, so it is open"),
        (rows_of(T=[0.9]), "nothing to conclude"),
    ],
)  # fmt: skip
def test_answer_says_where_the_ticket_beats_its_controls_and_where_they_beat_it(rows: list[Row], said: str) -> None:
    assert said in answer(experiment(rows))


def test_answer_of_three_runs_counts_what_the_interval_separates_from_0() -> None:
    sure = [rows_of(T=[0.97, 0.96 + gap], R=[None, 0.96]) for gap in (0.002, 0.003, 0.004)]  # less than half a point
    assert answer(experiment(*sure)) == (
        "The ticket beats random reinit at 50 % of the weights; no ticket matches the dense network (n = 3; “beats” "
        "means that the 95 % interval of the paired differences excludes 0)."
    )
    unsure = [rows_of(T=[0.97, 0.96 + gap], R=[None, 0.96]) for gap in (-0.01, 0.02, 0.03)]
    assert "beats random reinit at no density; the sparsest" in answer(experiment(*unsure))


def test_answer_of_an_error_is_the_other_way_round() -> None:
    score = Score("val_mae", "min", tolerance=0.1)
    rows = [replace(r, test_score=r.test_acc) for r in rows_of(T=[1.0, 1.0, 2.0], R=[None, 1.5, 1.5])]
    found = answer(PooledRuns([RunFiles(Path("run"), rows, given_score=score)]))
    assert found == (
        "The ticket beats random reinit at 50 % of the weights only; random reinit beats it at 25 % of the weights "
        "only; the sparsest ticket that matches the dense network keeps 50 % (n = 1; “beats” means better by more than "
        "0.1)."
    )


# ------------------------------------------------------------------------------------- paired differences


THREE = [
    rows_of(T=[0.97, 0.98 + shift, 0.95], R=[None, 0.96 + shift + extra, None]) for shift, extra in
    ((0.0, 0.0), (0.01, 0.01), (-0.02, -0.01))
]  # fmt: skip


def test_paired_table_fits_80_columns_and_says_n() -> None:
    found = paired_table(experiment(*THREE), brief=True)
    assert found is not None
    terminal = Console(width=80)
    with terminal.capture() as capture:
        terminal.print(found.rich())
    text = capture.get()
    assert max(map(len, text.splitlines())) <= 80
    # points 2, 1 and 3: 2.0 +- 4.303 * 1 / sqrt(3); steps 100 (dense) over 200
    assert "1 50.00 +2.0 ±2.5" in " ".join(text.split())
    assert text.split()[text.split().index("25.00") :][1:4] == ["−2.0", "±0.0", "0.3×"]
    assert "n = 3, paired by run; ±: 95 % interval" in text


def test_paired_table_of_one_run_has_differences_without_intervals() -> None:
    terminal = Console(width=80)
    found = paired_table(experiment(*THREE[:1]), brief=True)
    assert found is not None
    with terminal.capture() as capture:
        terminal.print(found.rich())
    text = capture.get()
    assert "+2.0" in text and "±" not in text and "n = 1" in text
    assert paired_table(experiment(rows_of(T=[0.97]))) is None


def test_paired_markdown_has_the_ends_of_intervals() -> None:
    assert (found := paired_table(experiment(*THREE))) and "| +2.0 (−0.5 to +4.5, n = 3) |" in found.markdown()
    assert [ACCURACY.gap(x) for x in (0.0123, -0.0123, 0.0004, -0.0004)] == ["+1.2", "−1.2", "0.0", "0.0"]


def test_a_dollar_in_a_name_is_a_dollar(tmp_path: Path) -> None:
    """And no formula: `a$x_$b` is none."""
    assert write_report([RunFiles.read(save(tmp_path / "a$x_$b", USUAL))], tmp_path / "out")


def test_layers_whose_names_begin_with_an_underscore_are_in_the_legend() -> None:
    layers = [LayerRow(r, "ticket", 0, n, k, 100, k / 100) for r, k in ((0, 100), (1, 50)) for n in ("_stem", "head")]
    layers[2] = LayerRow(1, "ticket", 0, "_stem", 90, 100, 0.9)
    legend = figure("layers", experiment(USUAL, layers=layers)).legends[0]
    assert [text.get_text().strip() for text in legend.get_texts()] == ["_stem (100)", "head (100)"]


def test_statistics_csv_has_a_line_a_round_and_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_plainly(monkeypatch)
    for seed, rows in enumerate(THREE):
        save(tmp_path / str(seed), rows, seed)
    assert main([*map(str, sorted(tmp_path.iterdir())), "--out", str(tmp_path / "out")]) == 0
    with (tmp_path / "out" / "statistics.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["round"], line["variant"]) for line in lines] == [
        ("0", "ticket"),
        ("1", "ticket"),
        ("1", "random_reinit"),
        ("2", "ticket"),
    ]
    assert float(lines[2]["ticket_minus_variant"]) == pytest.approx(0.02)
    assert float(lines[2]["ticket_minus_variant_high95"]) == pytest.approx(0.02 + 4.302652729911275 * 0.01 / 3**0.5)
    assert lines[2]["ticket_minus_variant_n"] == "3"
    assert [line["matches_dense"] for line in lines] == ["True", "True", "False", "False"]
    text = (tmp_path / "out" / "report.md").read_text()
    assert "+2.0 (−0.5 to +4.5, n = 3)" in text


# ------------------------------------------------------------------------------------- figures


def test_accuracy_figure_draws_the_means_over_a_density_axis_that_falls_to_the_right() -> None:
    drawn = figure("accuracy", experiment(USUAL, rows_of(T=[0.974, 0.977, 0.973, 0.96])))
    axes = drawn.axes[0]
    left, right = axes.get_xlim()
    assert left > right
    assert axes.get_xscale() == "log"
    ticket = axes.lines[0]
    assert np.asarray(ticket.get_xdata()).tolist() == [1, 0.5, 0.25, 0.125]
    assert np.asarray(ticket.get_ydata()) == pytest.approx([0.973, 0.976, 0.972, 0.955])
    labels = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert labels == [
        "ticket (n = 2)",
        "random reinit (n = 1)",
        "random mask (n = 1)",
        "pruned only (n = 1)",
        "dense network (n = 2)",
    ]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["100", "50", "25", "12.5"]


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_the_same_rows_give_the_same_file(kind: str) -> None:
    chart = charts_of(experiment(USUAL))["accuracy"]
    one, other = (figure_of("accuracy", chart, "title", card=True) for _ in range(2))
    assert one is not None and other is not None
    content = image_bytes(one, kind)
    assert content == image_bytes(other, kind)
    assert b"CreationDate" not in content and b"<dc:date>" not in content


@pytest.mark.parametrize("card", [False, True])
@pytest.mark.parametrize("rate", [0.8, 0.5, 0.97])
def test_ticks_stand_at_every_density_and_labels_where_they_do_not_touch(card: bool, rate: float) -> None:
    densities = [rate**number for number in range(21)]
    rows = [row(number, "ticket", 0.9, 100, density) for number, density in enumerate(densities)]
    drawn = figure_of("accuracy", charts_of(experiment(rows))["accuracy"], card=card)
    assert drawn is not None
    image_bytes(drawn, "png")
    axes = drawn.axes[0]
    labelled = [float(tick) for tick in axes.get_xticks()]
    assert sorted([*labelled, *axes.get_xticks(minor=True)]) == sorted(densities)
    assert labelled[0] == 1 and len(labelled) > 3
    texts = [*axes.get_xticklabels(), *(text for one in axes.child_axes for text in one.get_xticklabels())]
    assert texts[1].get_text() == f"{100 * labelled[1]:.3g}"
    for line in (texts[: len(labelled)], texts[len(labelled) :]):
        boxes = sorted((text.get_window_extent() for text in line), key=lambda box: box.x0)
        assert all(one.x1 < other.x0 for one, other in pairwise(boxes))


def limits(name: str, *runs: list[Row]) -> tuple[float, float]:
    low, high = figure(name, experiment(*runs)).axes[0].get_ylim()
    return low, high


def test_controls_at_chance_leave_the_range_of_the_trained_networks_and_the_caption_says_so() -> None:
    chance = rows_of(T=[0.98, 0.97], R=[None, 0.94], M=[None, 0.1], P=[None, 0.05])
    low, high = limits("accuracy", chance)
    assert low == pytest.approx(0.92, abs=0.005) and high == pytest.approx(0.98, abs=0.005)  # half of 4 points below
    assert leaving(charts_of(experiment(chance))["accuracy"]) == (
        "Not shown whole, because the other networks set the range: random mask (down to 10.0 %), "
        "pruned only (down to 5.0 %)."
    )
    near = rows_of(T=[0.98, 0.97], R=[None, 0.94], M=[None, 0.93])
    assert limits("accuracy", near)[0] < 0.93 and leaving(charts_of(experiment(near))["accuracy"]) == ""


def test_an_early_stop_never_leaves_its_figure() -> None:
    rows = [row(0, "ticket", 0.9, 390), row(1, "ticket", 0.9, 395), row(1, "random_mask", 0.9, 20)]
    assert leaving(charts_of(experiment(rows))["early_stop"]) == ""
    assert limits("early_stop", rows)[0] == 0


def test_of_an_error_the_range_ends_above() -> None:
    values = rows_of(T=[1.0, 1.2], R=[None, 1.4], M=[None, 50.0])
    rows = [replace(r, test_score=r.test_acc) for r in values]
    shown = PooledRuns([RunFiles(Path("run"), rows, given_score=Score("val_mae", "min"))])
    low, high = figure("score", shown).axes[0].get_ylim()
    assert low == pytest.approx(1.0, abs=0.05) and high == pytest.approx(1.6, abs=0.05)
    assert "random mask (up to 50)" in leaving(charts_of(shown)["score"])


def test_the_end_of_training_is_a_line_in_the_figure_of_early_stops() -> None:
    lines = {str(line.get_label()): line for line in figure("early_stop", experiment(USUAL)).axes[0].lines}
    assert set(np.asarray(lines["end of training"].get_ydata()).tolist()) == {400}  # `row`
    shorter = [replace(r, steps=400 - 100 * r.round) for r in rows_of(T=[0.9, 0.9, 0.9])]
    lines = {str(line.get_label()): line for line in figure("early_stop", experiment(shorter)).axes[0].lines}
    assert np.asarray(lines["end of training"].get_ydata()).tolist() == [400, 300, 200]


def test_ranges_are_bands_or_bars_from_least_to_greatest() -> None:
    shown = experiment(USUAL, rows_of(T=[0.974, 0.977, 0.973, 0.96]))
    chart = charts_of(shown)["accuracy"]
    bars = figure_of("accuracy", chart, errors="bars")
    assert bars is not None
    (drawn,) = bars.axes[0].containers
    ends = [segment[:, 1].tolist() for segment in drawn[2][0].get_segments()]  # type: ignore[index]
    assert ends[0] == pytest.approx([0.972, 0.974]) and ends[3] == pytest.approx([0.95, 0.96])
    assert not any(isinstance(one, PolyCollection) for one in bars.axes[0].collections)
    assert [type(one) for one in figure("accuracy", shown).axes[0].collections] == [FillBetweenPolyCollection]


def test_a_report_says_how_ranges_are_drawn_and_takes_a_title(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []

    def pixel(drawn: Figure, kind: str) -> bytes:
        titles.append(drawn.axes[0].get_title())
        return b""

    monkeypatch.setattr("lth_lightning.report.figures.image_bytes", pixel)
    run = str(save(tmp_path / "run", USUAL))
    main([run])
    assert "Band: least to greatest" in (tmp_path / "run" / "report.md").read_text()
    assert set(titles) == {"MLP on Digits, run"}
    titles.clear()
    main([run, "--errors", "bars", "--title", ""])
    for said in ("Bars: least to greatest", "Not shown whole, because the other networks set the range: random mask"):
        assert said in (tmp_path / "run" / "report.md").read_text()
        assert said in (tmp_path / "run" / "report.html").read_text()
    assert set(titles) == {""}
    with pytest.raises(SystemExit):
        main([run, "--errors", "boxes"])


def test_a_figure_for_a_card_is_as_large_as_the_card_and_can_be_read() -> None:
    """TensorBoard shows 302 × 215 pixels of an image and skips pixels of larger ones."""
    layers = [LayerRow(r.round, "ticket", 0, f"net.layer{n}.weight", 1, 9, r.density * (1 - r.round * n / 50))
              for r in USUAL for n in range(12) if r.variant == "ticket"]  # fmt: skip
    for name, chart in charts_of(experiment(USUAL, layers=layers, curves=curve_rows(USUAL))).items():
        drawn = figure_of(name, chart, "title", card=True)
        assert drawn is not None
        assert imread(io.BytesIO(image_bytes(drawn, "png"))).shape[:2] == (215, 302)
        legend = drawn.legends[0]
        texts = [text for text in drawn.findobj(Text) if isinstance(text, Text) and text.get_text()]
        assert min(text.get_fontsize() for text in texts) >= 7, name  # points, so 10 pixels
        box, frame = legend.get_window_extent(), drawn.axes[0].get_window_extent()
        assert box.x0 >= 0 and box.x1 <= 302 and box.y0 >= -1 and box.y1 < frame.y0, name
        assert frame.height > 100 and len(legend.get_texts()) <= 6, name


def test_layers_that_shrink_alike_share_a_curve() -> None:
    density = {"net.a.weight": [1, 0.5, 0.25], "net.b.weight": [1, 0.5, 0.251], "net.c.weight": [1, 0.9, 0.0]}
    layers = [
        LayerRow(number, "ticket", 0, name, 0, 60, value)
        for name, values in density.items()
        for number, value in enumerate(values)
    ]
    drawn = figure("layers", experiment(USUAL, layers=layers))
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["a (60),\nb (60)", "c (60)"]
    assert np.asarray(drawn.axes[0].lines[1].get_ydata()).tolist() == [1, 0.9]  # an empty layer leaves the log axis


def curve_rows(rows: list[Row], steps: tuple[int, ...] = (100, 200, 300), tested: bool = True) -> list[CurveRow]:
    """A learning curve of each row that ends at its accuracy."""
    return [
        CurveRow(r.round, r.variant, 0, step, 0.1, accuracy - 0.01, 0.1, accuracy if tested else None)
        for r in rows
        for step in steps
        for accuracy in [(r.test_acc or 0.0) - 0.1 * (steps[-1] - step) / steps[-1]]
    ]


def test_learning_curves_show_dense_network_tickets_and_their_reinits_at_the_densities_asked_for() -> None:
    one, other = (RunFiles(Path(name), USUAL, [], curve_rows(USUAL)) for name in "ab")
    axes = figure("curves", PooledRuns([one, other]), [0.5, 0.13]).axes[0]
    lines = {str(line.get_label()): line for line in axes.lines}
    assert list(lines) == [
        "dense network (n = 2)",
        "ticket 50 % (n = 2)",
        "ticket 12.5 % (n = 2)",
        "random reinit 50 % (n = 2)",
        "random reinit 12.5 % (n = 2)",
    ]
    assert [line.get_linestyle() for line in lines.values()] == ["-", "-", "-", "--", "--"]
    assert lines["ticket 50 % (n = 2)"].get_color() == lines["random reinit 50 % (n = 2)"].get_color()
    assert np.asarray(lines["ticket 50 % (n = 2)"].get_xdata()).tolist() == [100, 200, 300]
    assert np.asarray(lines["ticket 50 % (n = 2)"].get_ydata())[-1] == pytest.approx(0.975)
    assert axes.get_ylabel() == "test accuracy (%)"


def test_learning_curves_are_means_only_where_all_networks_were_evaluated() -> None:
    rows = rows_of(T=[0.9, 0.8])
    runs = [RunFiles(Path("run"), rows, [], curve_rows(rows, steps)) for steps in ((100, 200, 300), (100, 250, 300))]
    assert np.asarray(figure("curves", PooledRuns(runs)).axes[0].lines[0].get_xdata()).tolist() == [100, 300]


def test_learning_curves_choose_four_densities_spread_over_all_and_those_with_a_reinit_first() -> None:
    rows = rows_of(T=[0.9] * 13, R=[None] + [0.8] * 12)
    drawn = figure("curves", experiment(rows, curves=curve_rows(rows)))
    shown = [str(line.get_label()) for line in drawn.axes[0].lines if "ticket" in str(line.get_label())]
    assert shown == [f"ticket {100 * 0.5**number:.3g} % (n = 1)" for number in (3, 6, 9, 12)]
    rows = rows_of(T=[0.9] * 13, R=[0.8 if number in (1, 2, 3, 4) else None for number in range(13)])
    drawn = figure("curves", experiment(rows, curves=curve_rows(rows)))
    assert sum("random reinit" in str(line.get_label()) for line in drawn.axes[0].lines) == 4


def test_learning_curves_fall_back_to_validation_and_are_left_out_where_there_are_none() -> None:
    drawn = figure("curves", experiment(USUAL, curves=curve_rows(USUAL, tested=False)))
    assert drawn.axes[0].get_ylabel() == "validation accuracy (%)"
    assert "curves" not in charts_of(experiment(USUAL))
    losses = [replace(point, val_acc=None, test_acc=None) for point in curve_rows(USUAL)]
    drawn = figure("curves", experiment(USUAL, curves=losses))
    assert drawn.axes[0].get_ylabel() == "test loss"


def test_a_density_that_no_round_is_near_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"--densities: no round is near 0\.04; choose from 0\.5, 0\.25, 0\.125"):
        charts_of(experiment(USUAL, curves=curve_rows(USUAL)), [0.04])
    run = save(tmp_path / "run", USUAL)
    with pytest.raises(SettingError, match="has no learning curves"):
        main([str(run), "--densities", "0.5"])
    with pytest.raises(SystemExit):
        main([str(run), "--densities", "51"])


def test_curves_of_a_run_are_drawn(tmp_path: Path) -> None:
    run = save(tmp_path / "run", USUAL)
    (run / "curves").mkdir()
    write_curve(run / "curves" / "round_00_ticket_0.csv", curve_rows(USUAL[:1]))
    write_curve(run / "curves" / "round_01_ticket_0.csv", curve_rows(USUAL[1:2]))
    assert main([str(run), "--densities", "0.51"]) == 0
    assert "figures/curves.png" in (run / "report.md").read_text()
    assert (run / "figures" / "curves.svg").is_file()


def test_density_axis_says_above_how_many_weights_are_kept() -> None:
    drawn = figure("accuracy", experiment(USUAL))
    image_bytes(drawn, "png")
    (above,) = drawn.axes[0].child_axes
    assert [tick.get_text() for tick in above.get_xticklabels()] == ["1,000", "500", "250", "125"]
    counts = [weight_count(n) for n in (1965, 9999, 53240, 266200, 999_999, 4.3e6)]
    assert counts == ["1,965", "9,999", "53.2K", "266K", "1M", "4.3M"]


# ------------------------------------------------------------------------------------- report


def test_report_of_a_run_stands_in_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = save(tmp_path / "quickstart" / "3", USUAL, seed=7)
    assert main([str(run)]) == 0
    text = (run / "report.md").read_text()
    for said in ("# MLP on Digits, quickstart/3", "- seed: 7", summary(experiment(USUAL)), "**97.5**"):
        assert said in text
    linked = re.findall(r"\]\((.+?)\)", text)
    assert len(linked) == 3
    for link in linked:
        assert (run / link).read_bytes().startswith(b"\x89PNG")
        ElementTree.parse((run / link).with_suffix(".svg"))
    shown = capsys.readouterr().out
    assert "quickstart/3" in shown
    assert str(run / "report.md") in shown


def test_several_runs_are_pooled_beside_the_first_and_can_be_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_plainly(monkeypatch)
    for seed, accuracy in enumerate((0.96, 0.98, 0.97)):
        save(tmp_path / str(seed), rows_of(T=[0.97, accuracy], R=[None, 0.9]), seed)
    assert main(sorted(map(str, tmp_path.iterdir()))) == 0
    first = (tmp_path / "report" / "report.md").read_text()
    assert "**97.0** (96.0–98.0)" in first
    assert "- seed: 0, 1, 2" in first
    main(sorted(map(str, tmp_path.iterdir())))  # the glob now holds report/ too
    assert (tmp_path / "report" / "report.md").read_text() == first


def test_runs_of_other_densities_are_refused_by_the_first_round_that_differs(tmp_path: Path) -> None:
    one = RunFiles.read(save(tmp_path / "one", [row(0, "ticket", 0.9), row(1, "ticket", 0.9)]))
    other = RunFiles.read(save(tmp_path / "other", [row(0, "ticket", 0.9), row(1, "ticket", 0.9, density=0.8)]))
    short = RunFiles.read(save(tmp_path / "short", [row(0, "ticket", 0.9)]))
    with pytest.raises(SettingError, match=r"round 1 is at density 0\.5 in .*one and at density 0\.8 in .*other"):
        write_report([one, other], tmp_path / "out")
    with pytest.raises(SettingError, match=r"round 1 is at density 0\.5 in .* and missing in .*short"):
        write_report([one, short], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"nowhere is not a run folder: it has no results\.csv"):
        main([str(tmp_path / "nowhere")])
    run = save(tmp_path / "run", USUAL)
    with pytest.raises(SettingError, match="given twice"):
        main([str(run), f"{run}/../run"])
    write_rows(run / "results.csv", [])
    with pytest.raises(SettingError, match="no rows yet"):
        main([str(run)])


def test_modules_of_the_report_import_nothing_slow() -> None:
    """The modules alone, under an empty package: what `lth_lightning/__init__.py` imports is not theirs."""
    code = (
        "import sys, types; package = types.ModuleType('lth_lightning'); package.__path__ = [sys.argv[1]]; "
        "sys.modules['lth_lightning'] = package; import lth_lightning.report.command; "
        "print([name for name in ('torch', 'lightning', 'matplotlib', 'scipy') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(Path(lth_lightning.__file__).parent)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_report_needs_neither_torch_nor_lightning(tmp_path: Path) -> None:
    """With a picture of what its tickets look at, which come from their files."""
    run = fit(mlp(), digits(), tmp_path / "run", rounds=1, train_for="4it").lottery.folder.path
    code = (
        "import sys; from lth_lightning.cli.main import main; assert main(['report', sys.argv[1]]) == 0; "
        "print([name for name in ('torch', 'lightning', 'torchvision', 'tensorboard') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=True).stdout
    assert said.endswith("[]\n")
    assert (run / "figures/looks.png").is_file()


def test_comparing_the_settings_of_runs_imports_no_class_that_they_name(tmp_path: Path) -> None:
    for seed in (1, 2):
        config = save(tmp_path / str(seed), USUAL, seed) / "config.yaml"
        config.write_text(config.read_text() + "lottery: {pruning: {criterion: {class_path: lth_lightning.SNIP}}}\n")
    code = (
        "import sys; from lth_lightning.cli.main import main; assert main(['report', *sys.argv[1:]]) == 0; "
        "print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "1"), str(tmp_path / "2")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.endswith("False\n")
