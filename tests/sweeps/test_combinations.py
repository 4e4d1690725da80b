"""Which runs a command asks for, and in which folders."""

import shlex
from pathlib import Path

import pytest

from lth_lightning.errors import SettingError
from lth_lightning.sweeps.combinations import Request, Training, as_flag, command_for, varied_of
from lth_lightning.sweeps.command import read


def names(*args: str) -> list[str]:
    return [training.name for training in read(args).trainings()]


def test_every_combination_is_a_run_and_the_seed_varies_fastest() -> None:
    made = read(
        ["--config", "a.yaml", "--seeds", "1,2", "--vary", "model.optimizer.lr=1e-3,1e-4", "--lottery.rounds", "3"]
    ).trainings()
    assert [training.name for training in made] == [
        "lr=1e-3,seed=1",
        "lr=1e-3,seed=2",
        "lr=1e-4,seed=1",
        "lr=1e-4,seed=2",
    ]
    shared = ("--config", "a.yaml", "--lottery.rounds", "3")
    assert made[1].flags == (*shared, "--model.optimizer.lr", "1e-3", "--seed_everything", "2")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b=1,2", ("a.b", ["1", "2"])),
        ("lottery.controls=[random_mask,pruned_only],[]", ("lottery.controls", ["[random_mask,pruned_only]", "[]"])),
        (
            "model.optimizer={class_path: SGD, init_args: {lr: 0.1, momentum: 0.9}},Adam",
            ("model.optimizer", ["{class_path: SGD, init_args: {lr: 0.1, momentum: 0.9}}", "Adam"]),
        ),
        ("data.name='a,b',c", ("data.name", ["'a,b'", "c"])),
        ("--trainer.max_time=00:01", ("trainer.max_time", ["00:01"])),
    ],
)
def test_only_the_outer_commas_separate_values(text: str, expected: tuple[str, list[str]]) -> None:
    assert varied_of(text) == expected


@pytest.mark.parametrize("text", ["lr", "=1,2", "lr=", "lr=1,,2", "lr=[1,2", "lr=1],2", "lr='1"])
def test_what_is_not_a_list_of_values_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="--vary must be a setting and its values"):
        varied_of(text)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--seeds", "1,x"], "--seeds must be whole numbers"),
        (["--seeds", "1,2,1"], "1 is given twice"),
        (["--seeds", "1", "--vary", "seed_everything=1,2"], "Leave one of the two out"),
        (["--vary", "lr=1,1"], "--vary lr: 1 is given twice"),
        (["--run_dir", "x"], "set --sweep_dir"),
        (["--ckpt_path=last"], "resumes by itself"),
        (["--fast_dev_run"], "use it with fit"),
        (["--cpus", "0"], "--cpus must be above 0"),
        (["--cpus", "many"], "--cpus must be a number"),
        (["--gpus", "-1"], "--gpus must be at least 0"),
        (["--max_parallel", "0"], "at least 1"),
        (["--split_controls", "yes"], "--split_controls must be true or false"),
        (["--seeds"], "--seeds needs a value"),
    ],
)
def test_bad_input_is_one_clear_error(args: list[str], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        read(args)


def test_controls_are_split_unless_it_is_said() -> None:
    assert read([]).split_controls
    assert not read(["--split_controls=false"]).split_controls


def test_folders_are_named_after_what_varies() -> None:
    assert names("--config", "a") == ["run"]
    assert names("--seeds", "3") == ["seed=3"]
    optimizers = "model.optimizer={class_path: torch.optim.SGD, init_args: {lr: 0.1}},Adam"
    assert names("--vary", optimizers) == ["optimizer=SGD", "optimizer=Adam"]
    assert names("--vary", "config=configs/a.yaml,b.yaml", "--seeds", "1") == ["config=a,seed=1", "config=b,seed=1"]
    assert names("--vary", "model.net.size=1,2", "--vary", "data.size=3") == [
        "net.size=1,data.size=3",
        "net.size=2,data.size=3",
    ]
    assert len(set(names("--vary", "a=x/y,x y,x:y"))) == 3


def test_a_config_that_varies_comes_before_the_flags_that_override_it() -> None:
    made = read(["--lottery.rounds", "3", "--config=base.yaml", "--vary", "config=a.yaml,b.yaml"]).trainings()
    assert made[1].flags == ("--config", "base.yaml", "--config", "b.yaml", "--lottery.rounds", "3")


def test_runs_are_grouped_by_the_config() -> None:
    assert read(["--config", "configs/lenet.yaml"]).root == Path("runs/lenet")
    assert read(["-c", "quickstart"]).root == Path("runs/quickstart")
    assert read(["--config", "runs/mine/config.yaml"]).root == Path("runs/mine")
    assert read(["--vary", "config=x.yaml,y.yaml"]).root == Path("runs/x")
    assert read([]).root == Path("runs/run")


def test_the_accelerator_is_the_last_that_is_set(tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.write_text("trainer: {accelerator: cpu}")
    assert Request(["--config", str(config)]).accelerator == "cpu"
    assert Request(["--config", str(config), "--trainer.accelerator", "gpu"]).accelerator == "gpu"
    assert Request([]).accelerator == "auto"


def test_the_command_to_repeat_a_run_is_one_for_a_shell() -> None:
    training = Training("seed=1", ("--config", "my config.yaml", "--lottery.controls", "[random_mask, random_reinit]"))
    words = shlex.split(command_for("lth", training, Path("runs/seed=1")))
    assert words == ["lth", "fit", *training.flags, "--run_dir", "runs/seed=1", "--ckpt_path", "last"]


def test_values_from_python_are_those_of_the_command_line() -> None:
    assert [as_flag(value) for value in (1e-3, None, True, "SGD", [1, 2], Path("a/b"))] == [
        "0.001",
        "null",
        "true",
        "SGD",
        "[1, 2]",
        "a/b",
    ]
