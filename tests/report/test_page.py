"""report.html holds what the rows say, needs nothing but itself, and no name can break out of its text."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import draw_plainly

from lth_lightning.report.aggregate import PooledRuns
from lth_lightning.report.charts import STYLES, charts_of, comparison_chart, measures_of
from lth_lightning.report.command import main
from lth_lightning.report.conclusion import answer
from lth_lightning.report.page import as_json, comparison_page, experiment_page, points_a_curve, thinned
from lth_lightning.report.tables import networks_table, settings_table
from lth_lightning.runs.rows import VARIANTS, CurveRow, LayerRow, Row, write_curve, write_rows
from lth_lightning.runs.run import RunFiles
from lth_lightning.runs.score import ACCURACY

MEASURES = measures_of(ACCURACY)

HOSTILE = "</script><b onload=alert(1)>&amp;{{charts}}"
VOID = {"meta", "link", "br", "img", "input", "!doctype"}


def network(number: int, variant: str, accuracy: float | None, replicate: int = 0) -> Row:
    density = 0.5**number
    kept = round(1024 * density)
    return Row(
        number, variant, replicate, density, kept, 1024, 400, 1.0, 0.1, 0.2, 0.9, 0.2, accuracy, 100 + number, 0.2, 0.9
    )


def curve_of(row: Row, evaluations: int = 5) -> list[CurveRow]:
    return [
        CurveRow(row.round, row.variant, row.replicate, 10 * n, 1 / (1 + n), 0.1, 0.5, 0.9 * n / evaluations)
        for n in range(evaluations + 1)
    ]


def run_of(shift: float = 0.0, name: str = "one", **settings: Any) -> RunFiles:
    rows = [network(0, "ticket", 0.9 + shift)]
    for number in (1, 2):
        rows += [network(number, "ticket", 0.95 + shift), network(number, "random_reinit", 0.8 + shift)]
        rows += [network(number, "random_reinit", 0.82 + shift, replicate=1)]
    layers = [
        LayerRow(r.round, r.variant, r.replicate, f"net.{n}.weight", r.kept // 2, 512, r.density)
        for r in rows
        for n in "ab"
    ]
    return RunFiles(Path("runs") / name, rows, layers, [point for row in rows for point in curve_of(row)], settings)


def page_of(*runs: RunFiles, title: str = "title") -> bytes:
    experiment = PooledRuns(runs)
    return experiment_page(experiment, charts_of(experiment), title)


def comparison_of(experiments: list[PooledRuns], title: str) -> bytes:
    return comparison_page(experiments, comparison_chart(experiments), title)


def chart_of(name: str, *runs: RunFiles, wanted: list[float] | None = None) -> dict[str, Any]:
    """A chart as the page has it."""
    chart = as_json(charts_of(PooledRuns(runs), wanted)[name])
    return json.loads(json.dumps(chart))  # type: ignore[no-any-return]


class Parsed(HTMLParser):
    """The elements of a page, each closed in its turn, and the text of each kind."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str | None] = set()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(page.decode())
        self.close()
        assert not self.open
        assert {link[:1] for link in self.links} <= {"#"} and {link[1:] for link in self.links} <= self.ids
        (charts,) = (text for text in self.texts["script"] if text.startswith("["))
        self.charts: list[dict[str, Any]] = json.loads(charts, parse_constant=pytest.fail)  # NaN is no JSON

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        assert not {"src", "srcset", "action", "onload"} & dict(attrs).keys()
        self.ids |= {value for name, value in attrs if name == "id"}
        self.links += [value or "" for name, value in attrs if name == "href"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)


def series(chart: dict[str, Any], *labels: str) -> dict[str, Any]:
    """The series whose legend entries begin with these labels."""
    (found,) = (
        one
        for one in chart["series"]
        if all(
            chart["legend"][n][key]["label"].startswith(label)
            for n, (key, label) in enumerate(zip(one["keys"], labels, strict=True))
        )
    )
    return found


def test_page_needs_nothing_but_itself() -> None:
    page = page_of(run_of())
    parsed = Parsed(page)
    assert not {"link", "img", "iframe", "object"} & set(parsed.tags)
    addresses = re.findall(rb"https?://[^\s\"')]*|@import|url\((?!#)", page)
    assert set(addresses) == {b"http://www.w3.org/2000/svg"}
    assert b"default-src 'none'" in page  # and the browser sees to it
    assert len(parsed.charts) == 4
    assert parsed.tags.count("figure") == 4


def test_an_answer_and_the_contents_come_before_everything_else() -> None:
    page = page_of(run_of()).decode()
    places = [page.index(said) for said in ("<h1>", answer(PooledRuns([run_of()])), "<nav", "<dl", "<figure", "<table")]
    assert places == sorted(places)
    parsed = Parsed(page.encode())
    assert parsed.texts["a"][:3] == ["Conclusion", "Accuracy over density", "Early stop over density"]
    assert parsed.texts["a"][-2:] == ["Differences and speed-ups", "Every trained network"]
    assert len(parsed.links) == 8
    both = comparison_of([PooledRuns([run_of()], "one"), PooledRuns([run_of(-0.1)], "other")], "title").decode()
    for said in (f"<dt>{name} (n = 1)</dt><dd>{answer(PooledRuns([run_of()]))}" for name in ("one", "other")):
        assert both.index(said) < both.index("<nav")


def test_names_stay_text_wherever_they_stand() -> None:
    run = run_of(
        name=HOSTILE, data={"dataset": HOSTILE}, model={"net": {"class_path": "my.Net"}}, seed_everything=HOSTILE
    )
    both = [PooledRuns([run], HOSTILE), PooledRuns([run_of(0.1)], "other")]
    for page in (page_of(run, title=HOSTILE), comparison_of(both, HOSTILE)):
        parsed = Parsed(page)
        assert "b" not in parsed.tags
        assert parsed.tags.count("script") == 2
        assert parsed.texts["h1"] == [HOSTILE]
        assert HOSTILE in "".join(parsed.texts["td"])
        assert HOSTILE in parsed.charts[0]["runs"][0]
    assert HOSTILE in parsed.charts[0]["legend"][0][0]["label"]


def test_curves_over_density_hold_means_and_every_network() -> None:
    chart = chart_of("accuracy", run_of(seed_everything=3), run_of(0.02, "two", seed_everything=4))
    assert chart["runs"] == ["one, seed 3", "two, seed 4"]
    labels = [entry["label"] for entry in chart["legend"][0]]
    assert labels == ["ticket (n = 2)", "random reinit (n = 4)", "dense network (n = 2)"]
    point = series(chart, "random reinit")["points"][1]
    assert (point["round"], point["density"], point["kept"], point["x"], point["n"]) == (2, 0.25, 256, 0.25, 4)
    assert (point["y"], point["low"], point["high"]) == pytest.approx((0.82, 0.8, 0.84))
    assert point["each"] == [[0.8, 0, 0], [0.82, 0, 1], [0.82, 1, 0], [0.84, 1, 1]]
    assert series(chart, "dense network")["level"]["y"] == pytest.approx(0.91)
    looks = {entry["label"].split(" (")[0]: entry for entry in chart["legend"][0]}
    assert looks["ticket"]["color"] == STYLES["ticket"].color
    assert looks["random reinit"]["marker"] == STYLES["random_reinit"].marker
    assert looks["random reinit"]["dash"] == [5, 1.5]


def test_what_is_not_known_or_no_number_is_left_out() -> None:
    run = run_of()
    rows = [replace(row, test_acc=float("nan") if row.round else None) for row in run.rows]
    curves = [replace(point, test_loss=float("inf"), test_acc=None) for point in run.curves]
    broken = replace(run, rows=rows, curves=curves)
    assert "accuracy" not in charts_of(PooledRuns([broken]))
    chart = chart_of("curves", broken)
    assert [measure["key"] for measure in chart["measures"]] == ["val_acc", "test_loss", "val_loss"]
    assert set(chart["networks"][0]["test_loss"]) == {None}
    assert len(Parsed(page_of(broken)).charts) == 3
    bare = RunFiles(Path("bare"), [replace(network(0, "ticket", None), val_acc=None, val_loss=None, test_loss=None)])
    assert list(charts_of(PooledRuns([bare]))) == ["early_stop"]
    Parsed(page_of(bare))


def test_learning_curves_begin_with_those_of_the_figure() -> None:
    chart = chart_of("curves", run_of(), run_of(0.02, "two"), wanted=[0.26])
    rounds, variants = chart["legend"]
    assert [(entry["label"], entry.get("on", True)) for entry in rounds] == [
        ("dense network", True),
        ("50 %", False),
        ("25 %", True),
    ]
    assert [entry["label"] for entry in variants] == ["ticket", "random reinit"]
    assert len(chart["networks"]) == 14
    last = chart["networks"][-1]
    assert (last["run"], last["replicate"], last["keys"]) == (1, 1, [2, 1])
    assert chart["steps"] == [[0, 10, 20, 30, 40, 50]]  # once for all
    assert last["test_acc"] == pytest.approx([0, 0.18, 0.36, 0.54, 0.72, 0.9])


@pytest.mark.parametrize("length", [200, 201, 396, 500, 5001])
def test_thinned_curves_keep_ends_and_the_best_of_each_measure(length: int) -> None:
    curve = [CurveRow(1, "ticket", 0, n, 1.0, 0.5, 1.0, 0.5) for n in range(length)]
    curve[77], curve[83] = replace(curve[77], val_loss=0.1), replace(curve[83], test_acc=0.9)
    curve[91], curve[97] = replace(curve[91], val_acc=0.9), replace(curve[97], test_loss=0.1)
    curve[0] = replace(curve[0], val_loss=float("nan"))  # least of nothing
    kept = [point.step for point in thinned(curve, MEASURES)]
    assert len(kept) <= 200
    assert kept == sorted(set(kept))
    assert {0, 77, 83, 91, 97, length - 1} <= set(kept)
    flat = [CurveRow(1, "ticket", 0, n, 1.0, 0.5, 1.0, 0.5) for n in range(length)]
    even = [point.step for point in thinned(flat, MEASURES)]
    assert set(kept) - set(even) <= {77, 83, 91, 97}  # the others stand where those of every curve stand


def test_a_page_of_many_networks_can_still_be_mailed() -> None:
    chart = charts_of(PooledRuns([run_of()]))["curves"]
    many = [replace(chart, networks=chart.networks[:1] * n) for n in (1, 300, 600, 100_000)]
    assert [points_a_curve([one]) for one in many] == [200, 200, 100, 30]
    rows = [network(min(number, 9), variant, 0.9 + 0.001 * number) for number in range(31) for variant in VARIANTS[:2]]
    rows = [replace(row, round=number // 2) for number, row in enumerate(rows)][1:]
    curves = [
        replace(p, val_loss=1 / 3 + p.step / 7e5, test_acc=p.step / 7e3) for row in rows for p in curve_of(row, 500)
    ]
    page = page_of(RunFiles(Path("run"), rows, [], curves))
    assert len(rows) == 61
    assert len(page) < 700_000


def test_comparison_has_a_chart_of_its_groups_and_a_part_a_group() -> None:
    mnist, fashion = (
        PooledRuns([run_of(), run_of(0.01, "two")], "MNIST"),
        PooledRuns([run_of(-0.1, "three")], "Fashion"),
    )
    made = comparison_chart([mnist, fashion])
    assert made is not None
    chart = as_json(made)
    assert [entry["label"] for entry in chart["legend"][0]] == ["MNIST (n = 2)", "Fashion (n = 1)"]
    point = series(chart, "Fashion", "ticket")["points"][1]
    assert (point["y"], chart["runs"][point["each"][0][1]]) == (pytest.approx(0.85), "three")
    assert series(chart, "Fashion", "dense network")["level"]["y"] == pytest.approx(0.8)
    parsed = Parsed(comparison_of([mnist, fashion], "title"))
    assert parsed.texts["h2"] == ["MNIST", "Fashion"]
    apart = parsed.charts[:2]  # a gap wider than either's range: each has its own vertical axis
    assert [chart["legend"][0][0]["label"] for chart in apart] == ["MNIST (n = 2)", "Fashion (n = 1)"]
    assert [{one["keys"][0] for one in chart["series"]} for chart in apart] == [{0}, {0}]
    assert "Experiments whose scores lie far apart have axes of their own." in parsed.texts["p"]
    assert len(parsed.charts) == 2 + 2 * 4
    near = PooledRuns([run_of(-0.02, "four")], "near")
    assert len(Parsed(comparison_of([mnist, near], "title")).charts) == 1 + 2 * 4


@pytest.mark.parametrize(("label", "tables"), [("Fashion", 2), ("of_a_very_long_name", 3)])
def test_side_by_side_stand_as_many_experiments_as_the_page_is_wide(label: str, tables: int) -> None:
    page = comparison_of([PooledRuns([run_of(name=name)], name) for name in ("one", "two", label)], "title")
    assert Parsed(page).texts["caption"].count("Side by side") == tables


def test_bars_and_the_end_of_training_reach_the_page() -> None:
    experiment = PooledRuns([run_of(), run_of(0.02, "two")])
    charts = charts_of(experiment)
    drawn = [Parsed(experiment_page(experiment, charts, "title", errors)).charts for errors in ("band", "bars")]
    assert [{chart.get("bars", False) for chart in one} for one in drawn] == [{False}, {True}]
    end = series(as_json(charts["early_stop"]), "end of training")["level"]
    assert (end["y"], end["each"]) == (400, [])  # no network, so nothing to point at


def test_tables_name_every_network_and_setting() -> None:
    runs = [
        run_of(
            seed_everything=1,
            model={"net": {"class_path": "my.Net", "init_args": {"hidden": [3, 2]}}},
            lottery={"rates": {}},
        ),
        run_of(0.0, "two", seed_everything=2),
    ]
    lines = [[cell.text for cell in line] for line in networks_table(runs, ACCURACY).lines]
    assert len(lines) == 14
    assert lines[3] == ["one", "1", "random reinit", "1", "50.00", "512", "400", "90.0", "82.0", "101", "90.0"]
    assert [[cell.text for cell in line] for line in settings_table(runs).lines] == [
        ["seed_everything", "1 · 2"],
        ["model.net", "my.Net · not set"],
        ["model.net.hidden", "[3, 2] · not set"],
        ["lottery.rates", "{} · not set"],
    ]


def test_report_writes_the_page_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_plainly(monkeypatch)
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        (folder / "curves").mkdir(parents=True)
        rows = [network(0, "ticket", 0.9), network(1, "ticket", 0.9 + seed / 100)]
        write_rows(folder / "results.csv", rows)
        for row in rows:
            write_curve(folder / "curves" / f"{row.round}.csv", curve_of(row))
        (folder / "config.yaml").write_text(yaml.safe_dump({"seed_everything": 1, "data": {"batch_size": seed}}))
    assert main([str(tmp_path / "1")]) == 0
    assert f"In a browser: {tmp_path / '1' / 'report.html'}" in capsys.readouterr().out
    assert [chart["title"] for chart in Parsed((tmp_path / "1" / "report.html").read_bytes()).charts] == [
        "Accuracy over density",
        "Early stop over density",
        "Learning curves",
    ]
    assert (
        main([str(tmp_path / "1"), str(tmp_path / "2"), "--compare", "batch_size", "--out", str(tmp_path / "both")])
        == 0
    )
    assert Parsed((tmp_path / "both" / "report.html").read_bytes()).texts["h2"] == ["batch_size 1", "batch_size 2"]
