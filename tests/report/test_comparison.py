"""Which runs are repetitions of one experiment, and runs of several experiments side by side."""

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from lth_lightning.errors import SettingError
from lth_lightning.report.aggregate import PooledRuns
from lth_lightning.report.charts import comparison_chart
from lth_lightning.report.command import main
from lth_lightning.report.comparable import check_comparable
from lth_lightning.report.comparison import experiments_of, full_names
from lth_lightning.report.figures import figure_of
from lth_lightning.runs.rows import Row, write_rows
from lth_lightning.runs.run import RunFiles
from lth_lightning.runs.score import Score

ADAM = {"class_path": "torch.optim.adam.Adam", "init_args": {"lr": 0.001}}
SETTINGS: dict[str, Any] = {
    "seed_everything": 1,
    "data": {"dataset": "MNIST", "batch_size": 60, "train_size": None, "eval_batch_size": 1000, "data_dir": "data"},
    "model": {
        "net": {"class_path": "my.nets.MLP", "init_args": {"hidden": [300, 100], "input_shape": [1, 28, 28]}},
        "optimizer": ADAM,
    },
    "lottery": {"rounds": 1, "train_for": "400it", "tickets": None, "controls": ["random_reinit"], "seed": None},
    "trainer": {"devices": "auto", "num_nodes": 1, "callbacks": None},
}


def changed(**edits: Any) -> dict[str, Any]:
    """The settings with others in place: `data__dataset="FashionMNIST"`."""
    settings: dict[str, Any] = yaml.safe_load(yaml.safe_dump(SETTINGS))
    for name, value in edits.items():
        *parts, last = name.split("__")
        inner = settings
        for part in parts:
            inner = inner[part]
        inner[last] = value
    return settings


def save(folder: Path, settings: Mapping[str, Any] | None, ticket: float = 0.97, density: float = 0.5) -> Path:
    """A run of a dense network, a ticket and its reinit."""
    folder.mkdir(parents=True)
    networks = ((0, "ticket", 1.0, 0.96), (1, "ticket", density, ticket), (1, "random_reinit", density, 0.95))
    write_rows(
        folder / "results.csv",
        [
            Row(number, variant, 0, d, round(1000 * d), 1000, 400, 1.0, 0.1, 0.2, 0.9, 0.2, accuracy, 200, 0.2, 0.9)
            for number, variant, d, accuracy in networks
        ],
    )
    if settings is not None:
        (folder / "config.yaml").write_text(yaml.safe_dump(dict(settings)))
    return folder


def read(tmp_path: Path, *all_settings: Mapping[str, Any] | None) -> list[RunFiles]:
    return [RunFiles.read(save(tmp_path / f"run{n}", settings)) for n, settings in enumerate(all_settings)]


# ------------------------------------------------------------------------------------- repetitions


@pytest.mark.parametrize(
    "edits",
    [
        {},
        {"data__eval_batch_size": 10, "data__data_dir": "/elsewhere", "lottery__tickets": None},
        {"data__batch_size": 30, "trainer__devices": 2},
        {"data__batch_size": 15, "trainer__devices": [0, 1], "trainer__num_nodes": 2},
        {"trainer__callbacks": [{"class_path": "lightning.pytorch.callbacks.TQDMProgressBar"}]},
        {"trainer__enable_progress_bar": False, "trainer__accelerator": "gpu"},
    ],
)
def test_runs_that_differ_by_seed_and_by_what_changes_no_result_are_repetitions(
    edits: dict[str, Any], tmp_path: Path
) -> None:
    check_comparable(read(tmp_path, SETTINGS, changed(seed_everything=2, **edits)))


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ({"data__dataset": "FashionMNIST"}, r"data\.dataset is MNIST in .*run0 and FashionMNIST in .*run1"),
        ({"data__batch_size": 30}, "data.batch_size is 60 in .* and 30 in"),
        ({"data__batch_size": 60, "trainer__devices": 2}, "data.batch_size is 60 in .* and 120 in"),
        (
            {"model__optimizer__init_args__lr": 0.1},
            r"model\.optimizer\.lr is 0\.001 in .* --compare model\.optimizer\.lr$",
        ),
        ({"model__optimizer": {"class_path": "torch.optim.SGD"}}, "model.optimizer is torch.optim.adam.Adam in"),
        ({"lottery__train_for": "5ep", "data__train_size": 9}, "--compare data.train_size,lottery.train_for$"),
        ({"trainer__callbacks": [{"class_path": "lightning.pytorch.callbacks.EarlyStopping"}]}, "trainer.callbacks is"),
    ],
)
def test_runs_of_other_settings_are_refused_with_the_keys(edits: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=said):
        check_comparable(read(tmp_path, SETTINGS, changed(seed_everything=2, **edits)))


def test_runs_of_one_seed_are_copies(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"run0 and .*run2 both have seed 1 .*: they are copies"):
        check_comparable(read(tmp_path, SETTINGS, changed(seed_everything=2), changed(data__data_dir="/elsewhere")))


def test_runs_without_settings_are_known_by_densities_and_results(tmp_path: Path) -> None:
    python = RunFiles.read(save(tmp_path / "python", None, ticket=0.98))
    check_comparable([*read(tmp_path, SETTINGS), python])
    copy = RunFiles.read(save(tmp_path / "copy", None, ticket=0.98))
    with pytest.raises(SettingError, match="python and .*copy have the same results"):
        check_comparable([python, copy])
    with pytest.raises(SettingError, match="python has no config.yaml"):
        full_names(["dataset"], [python])


def trained(tmp_path: Path, seed: int, found_on: Mapping[str, Any], name: str, as_file: bool = False) -> RunFiles:
    """A run on MNIST that trains the tickets of another."""
    source = save(tmp_path / f"source_{name}", found_on)
    (source / "tickets").mkdir()
    (file := source / "tickets" / "round_01.safetensors").touch()
    tickets = str(file if as_file else source / "tickets")
    settings = changed(seed_everything=seed, lottery__tickets=tickets, lottery__rounds=None)
    return RunFiles.read(save(tmp_path / name, settings))


def test_tickets_must_come_from_one_experiment_too(tmp_path: Path) -> None:
    mnist = trained(tmp_path, 1, changed(seed_everything=5), "a")
    again = trained(tmp_path, 2, changed(seed_everything=6, lottery__rounds=7, lottery__controls=[]), "b", as_file=True)
    check_comparable([mnist, again])
    fashion = trained(tmp_path, 2, changed(seed_everything=6, data__dataset="FashionMNIST"), "c")
    with pytest.raises(SettingError, match=r"tickets\.data\.dataset is MNIST in .*a and FashionMNIST in .*c\. "):
        check_comparable([mnist, fashion])
    same_seed = trained(tmp_path, 1, changed(seed_everything=6), "d")  # other tickets: another repetition
    check_comparable([mnist, same_seed])
    with pytest.raises(SettingError, match="they are copies"):
        check_comparable([same_seed, trained(tmp_path, 1, changed(seed_everything=6), "e")])


def test_tickets_bring_their_seed_with_their_weights(tmp_path: Path) -> None:
    """Then the run's own seed changes nothing: trainings of one ticket, and of one's own, are copies."""
    one, other = (trained(tmp_path, seed, changed(seed_everything=5), f"{seed}") for seed in (1, 2))
    with pytest.raises(SettingError, match="train the same tickets, which carry their own seed"):
        check_comparable([one, other])
    masks = [
        replace(run, settings={**run.settings, "lottery": {**run.settings["lottery"], "transfer": "mask"}})
        for run in (one, other)
    ]
    check_comparable(masks)


def test_tickets_of_a_run_that_is_gone_are_pooled_with_none(tmp_path: Path) -> None:
    one, other = (trained(tmp_path, 1, changed(seed_everything=seed), f"{seed}") for seed in (5, 6))
    check_comparable([one, other])
    (tmp_path / "source_6" / "config.yaml").unlink()
    gone = RunFiles.read(other.path)
    check_comparable([gone])
    for runs in ([one, gone], [gone, one], [gone, RunFiles.read(save(tmp_path / "found", changed(seed_everything=7)))]):
        with pytest.raises(SettingError, match=r"6 trains the tickets in .*that found them is missing"):
            check_comparable(runs)


# ------------------------------------------------------------------------------------- comparisons


def labels(runs: list[RunFiles], *keys: str) -> dict[str, int]:
    return {one.label: len(one.runs) for one in experiments_of(runs, full_names(keys, runs))}


def test_runs_are_grouped_by_the_settings_asked_for(tmp_path: Path) -> None:
    fashion = {"data__dataset": "my.data.FashionMNIST", "model__net__init_args__input_shape": [3, 28, 28]}  # goes along
    runs = read(
        tmp_path, SETTINGS, changed(**fashion), changed(seed_everything=2), changed(seed_everything=2, **fashion)
    )
    assert labels(runs, "data.dataset") == {"MNIST": 2, "FashionMNIST": 2}
    assert labels(runs, "dataset") == {"MNIST": 2, "FashionMNIST": 2}
    with pytest.raises(
        SettingError, match="all runs have the same lottery.train_for 400it; there is nothing to compare"
    ):
        labels(runs, "train_for")


@pytest.mark.parametrize(
    ("edits", "key", "expected"),
    [
        ({"data__train_size": 100}, "data.train_size", ["train_size not set", "train_size 100"]),
        ({"model__net__init_args__hidden": [9]}, "model.net.init_args.hidden", ["hidden 300-100", "hidden 9"]),
        ({"model__optimizer": {"class_path": "torch.optim.SGD"}}, "optimizer", ["Adam", "SGD"]),
        ({"model__optimizer__init_args__lr": 0.1}, "model.optimizer", ["Adam, lr 0.001", "Adam, lr 0.1"]),
        ({"lottery__train_for": "5ep"}, "train_for", ["400it", "5ep"]),
    ],
)
def test_labels_are_short_and_tell_groups_apart(
    edits: dict[str, Any], key: str, expected: list[str], tmp_path: Path
) -> None:
    assert list(labels(read(tmp_path, SETTINGS, changed(**edits)), key)) == expected


def test_classes_that_are_alike_among_others_are_told_apart(tmp_path: Path) -> None:
    slow, fast = ({"class_path": "torch.optim.SGD", "init_args": {"lr": lr}} for lr in (0.01, 0.1))
    runs = read(tmp_path, SETTINGS, changed(model__optimizer=slow), changed(model__optimizer=fast))
    assert list(labels(runs, "optimizer")) == ["Adam", "SGD, lr 0.01", "SGD, lr 0.1"]


def test_what_else_differs_is_named_with_the_way_out(tmp_path: Path) -> None:
    runs = read(tmp_path, SETTINGS, changed(data__dataset="FashionMNIST", model__optimizer__init_args__lr=0.1))
    with pytest.raises(
        SettingError, match=r"model\.optimizer\.lr is 0\.001 in MNIST and 0\.1 in FashionMNIST.*--compare "
    ):
        labels(runs, "data.dataset")
    assert labels(runs, "data.dataset", "lr") == {"MNIST, lr 0.001": 1, "FashionMNIST, lr 0.1": 1}
    with pytest.raises(SettingError, match=r"lottery\.train_for .* --compare data\.dataset,lottery\.train_for$"):
        labels(
            [*runs[:1], *read(tmp_path / "more", changed(lottery__train_for="5ep", seed_everything=2)), *runs[1:]],
            "dataset",
        )


def test_an_unknown_setting_lists_near_ones_and_an_ambiguous_one_its_meanings(tmp_path: Path) -> None:
    runs = read(tmp_path, SETTINGS, changed(data__dataset="FashionMNIST"))
    with pytest.raises(SettingError, match=r"no run has a setting 'data\.datset'\. Similar ones: data\.dataset, "):
        labels(runs, "data.datset")
    settings = changed(seed_everything=3)
    settings["model"]["lr_scheduler"] = {"class_path": "StepLR", "init_args": {"lr": 1}}
    expected = r"'lr' is ambiguous; choose from model\.optimizer\.lr, model\.lr_scheduler\.lr"
    with pytest.raises(SettingError, match=expected):
        labels([*runs, *read(tmp_path / "more", settings)], "lr")


def test_a_run_that_found_its_own_tickets_stands_beside_one_that_trains_others(tmp_path: Path) -> None:
    """Q2: on MNIST, tickets found there and tickets found on FashionMNIST."""
    (own,) = read(tmp_path, changed(lottery__controls=["random_reinit"]))
    other = trained(tmp_path, 1, changed(data__dataset="FashionMNIST"), "moved")
    assert labels([own, other], "tickets.data.dataset") == {"tickets MNIST": 1, "tickets FashionMNIST": 1}
    with pytest.raises(SettingError, match=r"tickets\.data\.dataset is MNIST"):
        check_comparable([own, other])


def test_a_comparison_is_written_beside_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, ticket in enumerate((0.97, 0.98, 0.99)):
        save(Path("runs/mnist") / str(seed), changed(seed_everything=seed), ticket)
        fashion = changed(seed_everything=seed, data__dataset="FashionMNIST")
        save(Path("runs/fashion") / str(seed), fashion, ticket - 0.1, density=0.5001)
    runs = [str(run) for run in sorted(Path("runs").glob("*/*"))]
    assert main([*runs[:2], "--compare", "data.dataset", *runs[2:]]) == 0
    out = Path("runs/comparison_data.dataset")
    shown = capsys.readouterr().out
    assert str(out / "report.md") in shown
    # 2, 3 and 4 points: 3.0 +- 2.5
    assert "98.0 95.0" in shown and "+3.0 ±2.5" in shown
    assert "at 50.01 %" in shown and "at 50.00 %" in shown and "at 100.00 %" not in shown
    text = (out / "report.md").read_text()
    for said in ("## MNIST", "## FashionMNIST", "| FashionMNIST: density % |", "+3.0 (+0.5 to +5.5, n = 3)"):
        assert said in text
    assert {path.name for path in (out / "figures").iterdir()} == {
        f"comparison.{kind}" for kind in ("png", "svg", "pdf")
    }
    with (out / "comparison.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["group"], line["data.dataset"], line["round"], line["variant"]) for line in lines[3:]] == [
        ("MNIST", "MNIST", "0", "ticket"),
        ("MNIST", "MNIST", "1", "ticket"),
        ("MNIST", "MNIST", "1", "random_reinit"),
    ]
    assert float(lines[5]["ticket_minus_variant"]) == pytest.approx(0.03)
    with pytest.raises(SettingError, match=r"model\.net does not exist\. .*: --compare data\.dataset,model\.net$"):
        main([*runs, "--compare", "data.dataset", "model.net"])


def test_experiments_far_apart_have_axes_of_their_own(tmp_path: Path) -> None:
    runs = [
        replace(run, path=Path(name), rows=[replace(row, test_acc=(row.test_acc or 0) - less) for row in run.rows])
        for run in read(tmp_path, SETTINGS)
        for name, less in (("MNIST", 0.0), ("CIFAR10", 0.12), ("KMNIST", 0.01))
    ]
    chart = comparison_chart([PooledRuns([run], run.name) for run in runs])
    assert chart is not None and chart.panels == [[0, 2], [1]]
    figure = figure_of("comparison", chart, "title")
    assert figure is not None
    mnist, cifar = figure.axes
    assert mnist.get_ylim()[0] > 0.93 and cifar.get_ylim()[1] < 0.86
    assert [len(axes.lines) for axes in (mnist, cifar)] == [6, 3]
    assert len(figure.legends) == 1 and figure.get_suptitle() == "title"


def test_scores_that_all_fall_at_the_sparsest_density_are_apart_all_the_same(tmp_path: Path) -> None:
    found = {"MNIST": [0.95, 0.96, 0.95, 0.94, 0.5], "CIFAR10": [0.83, 0.82, 0.81, 0.82, 0.4]}
    rows = {
        name: [
            Row(n, "ticket", 0, 0.5**n, 1000 >> n, 1000, 9, 1.0, *[None] * 4, value, *[None] * 3, test_score=1 - value)
            for n, value in enumerate(values)
        ]
        for name, values in found.items()
    }
    for score in (None, Score("val_error", "min")):  # and less is better
        runs = [RunFiles(Path(name), each, given_score=score) for name, each in rows.items()]
        chart = comparison_chart([PooledRuns([run], run.name) for run in runs])
        assert chart is not None and chart.panels == [[0], [1]]


def test_comparison_figure_has_a_colour_a_group_and_dashes_for_reinits(tmp_path: Path) -> None:
    one, other = read(tmp_path, SETTINGS, changed(data__dataset="FashionMNIST"))
    chart = comparison_chart([PooledRuns([one], "MNIST"), PooledRuns([other], "FashionMNIST")])
    assert chart is not None
    figure = figure_of("comparison", chart, "title")
    assert figure is not None
    lines = figure.axes[0].lines
    assert [line.get_linestyle() for line in lines] == ["-", "--", ":"] * 2
    assert len({line.get_color() for line in lines[:3]}) == 1
    assert len({line.get_color() for line in lines}) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "MNIST (n = 1)",
        "FashionMNIST (n = 1)",
        "ticket",
        "random reinit",
        "dense network",
    ]
