"""The command line before Lightning is loaded: what it stands for, and how fast a mistake or Ctrl+C ends it."""

import importlib
import signal
import subprocess
import sys
import tomllib
from inspect import signature
from pathlib import Path

import lightning as L
import pytest
from conftest import HANGS

import lth_lightning
from lth_lightning import ImageClassifier, ImageDataModule, LotteryTicket, Pruning
from lth_lightning.cli.arguments import Named, completed, named_parts, program, shipped_configs
from lth_lightning.cli.known_settings import check_names, known_settings
from lth_lightning.cli.main import ready_to_import
from lth_lightning.errors import SettingError

REPOSITORY = Path(__file__).parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


@pytest.mark.parametrize(
    ("started", "name"),
    [
        ("/usr/bin/lth", "lth"),
        (r"lth.exe", "lth"),
        ("/site-packages/lth_lightning/__main__.py", "python -m lth_lightning"),
        ("scripts/my_train.py", "python my_train.py"),
        ("/site-packages/pytest/__main__.py", "python train.py"),
        ("", "python train.py"),
    ],
)
def test_help_and_errors_name_the_program_as_it_was_started(
    started: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [started])
    assert program() == name


def test_every_config_is_shipped_and_found_by_its_bare_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = {path.stem: path for path in (REPOSITORY / "configs").glob("*.yaml")}
    assert shipped_configs() == ours
    # In a wheel, the folder lies in the package.
    assert PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"] == {
        "configs": "lth_lightning/configs"
    }
    installed = tmp_path / "lth_lightning"
    (installed / "configs").mkdir(parents=True)
    (installed / "configs/quickstart.yaml").touch()
    monkeypatch.setattr(lth_lightning, "__file__", str(installed / "__init__.py"))
    assert shipped_configs() == {"quickstart": installed / "configs/quickstart.yaml"}


def test_a_file_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert completed(["fit", "--config=quickstart"]) == ["fit", "--config", str(REPOSITORY / "configs/quickstart.yaml")]
    Path("quickstart").write_text("lottery: {rounds: 1}")
    assert completed(["fit", "-c", "quickstart"]) == ["fit", "-c", "quickstart"]
    with pytest.raises(SettingError, match="config: 'quickstrat' is unknown; .*Did you mean 'quickstart'"):
        completed(["fit", "--config", "quickstrat"])


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["--fast_dev_run"], ["true"]),
        (["--fast_dev_run", "--quiet"], ["true", "--quiet"]),
        (["--fast_dev_run", "5"], ["5"]),
        (["--fast_dev_run=False"], ["False"]),
    ],
)
def test_fast_dev_run_is_the_trainers(given: list[str], meant: list[str]) -> None:
    assert completed(["fit", *given]) == ["fit", "--trainer.fast_dev_run", *meant]


@pytest.mark.parametrize(
    ("args", "model", "data"),
    [
        ([], Named(), Named()),
        (["--model.net", "MLP", "--data.dataset=MNIST"], Named(True), Named(True)),
        (["--model", "my.Module"], Named(True, "my.Module"), Named()),
        (["--model=my.Module", "--model.class_path", "my.Other"], Named(True, "my.Other"), Named()),
        (["--config", "own.yaml", "--model.width", "3"], Named(True, "my.Module"), Named(True)),
        (["--config", "own.yaml", "--data", "data.yaml"], Named(True, "my.Module"), Named(True, "my.Data")),
        (["--config", "{data: {class_path: my.Data}}"], Named(), Named(True, "my.Data")),
        (["--model", "5", "--data"], Named(True), Named(True)),
    ],
)
def test_classes_of_ones_own_are_seen_in_configs_and_arguments(
    args: list[str], model: Named, data: Named, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("model: {class_path: my.Module}\ndata: {dataset: MNIST}\n")
    Path("data.yaml").write_text("class_path: my.Data\n")
    assert named_parts(["fit", *args]) == {"model": model, "data": data}


def test_the_console_command_runs_main() -> None:
    module, _, function = PROJECT["project"]["scripts"]["lth"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_settings_read_from_source_are_those_of_the_classes() -> None:
    classes = {"lottery": LotteryTicket, "lottery.pruning": Pruning, "data": ImageDataModule, "model": ImageClassifier}
    expected = {f"{prefix}.{name}" for prefix, made in classes.items() for name in signature(made).parameters}
    expected |= {f"trainer.{name}" for name in signature(L.Trainer.__init__).parameters if name != "self"}
    assert {name for name in known_settings() if "." in name} == expected - {"lottery.pruning"}


@pytest.mark.parametrize(
    "args",
    [
        ["--lottery.pruning.rate=0.1", "--model.net.hidden", "[9]", "--lottery.controls+=random_mask", "-h", "--help"],
        ["--trainer.callbacks.monitor=x", "--lottery.pruning.criterion.help", "--trainer", "trainer.yaml", "--quiet"],
        ["--model", "my.Module", "--model.anything", "1", "--optimizer.lr", "1", "--data.batch_size", "3"],
        ["--print_config", "--seed_everything", "3", "--run_dir=x", "--ckpt_path", "last", "--weights_only=true"],
    ],
)
def test_settings_that_exist_are_let_through(args: list[str]) -> None:
    check_names(args, named_parts(args))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--lottery.scope", "global"], "--lottery.scope is not a setting. Did you mean --lottery.pruning.scope?"),
        (
            ["--lottery.pruning.scop=global"],
            "--lottery.pruning.scop is not a setting. Did you mean --lottery.pruning.sc",
        ),
        (
            ["--model", "my.Module", "--data.batchsize", "1"],
            "--data.batchsize is not a setting. Did you mean --data.bat",
        ),
        (
            ["--trainer.accelerater", "cpu"],
            "--trainer.accelerater is not a setting. Did you mean --trainer.accelerator?",
        ),
    ],
)
def test_other_settings_are_refused_at_once(args: list[str], message: str) -> None:
    with pytest.raises(SettingError) as refused:
        check_names(args, named_parts(args))
    assert str(refused.value).startswith(message)


def python(*args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, check=False, timeout=HANGS)


def test_help_and_mistakes_load_neither_torch_nor_lightning(tmp_path: Path) -> None:
    program = f"""
import sys
from lth_lightning.cli.main import main
assert main(["--help"]) == main(["--version"]) == 0
assert main(["fit", "--lottery.scope", "global"]) == 2
assert main([]) == main(["fti"]) == main(["fit", "--config", {str(tmp_path / "none.yaml")!r}]) == 2
assert not {{"torch", "lightning"}} & set(sys.modules)
"""
    assert python("-c", program).returncode == 0
    version = python("-m", "lth_lightning", "--version")
    assert (version.returncode, version.stdout) == (0, f"lth_lightning {lth_lightning.__version__}\n")


def test_ctrl_c_while_loading_is_one_line() -> None:
    program = """
import os, signal, time
from lth_lightning.cli.main import ready_to_import
with ready_to_import():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""
    ended = python("-c", program)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "Interrupted while loading.\n")
    usual = signal.getsignal(signal.SIGINT)
    with ready_to_import():
        assert signal.getsignal(signal.SIGINT) is not usual
    assert signal.getsignal(signal.SIGINT) is usual


def test_the_packages_names_are_listed() -> None:
    assert {"LotteryTicket", "LotteryCLI", "Ticket", "__version__"} <= set(dir(lth_lightning))
    assert not {"import_module", "_HOME", "Any"} & set(dir(lth_lightning))
