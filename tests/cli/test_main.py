"""The command line: what a user mistypes is one clear error that leaves nothing behind; what is right works."""

import csv
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from conftest import HANGS, weekly
from dataset_files import write_emnist_letters

from lth_lightning import ImageClassifier, ImageDataModule, LotteryTicket, Pruning, Ticket
from lth_lightning.cli.main import main
from lth_lightning.cli.run_dir import Reservation
from lth_lightning.data.datasets import Digits
from lth_lightning.errors import SettingError, unknown_name

# Lightning 2.6 calls jsonargparse by a name that 4.49 has made old; Python shows that to no user.
pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.usefixtures("plain_figures"),
]

REPOSITORY = Path(__file__).parents[2]
QUICKSTART = ["fit", "--config", str(REPOSITORY / "configs/quickstart.yaml")]
FIT = [*QUICKSTART, "--lottery.rounds", "1", "--lottery.train_for", "20it"]
SHORT = [*QUICKSTART, "--lottery.rounds", "0", "--lottery.train_for", "2it"]
FROM_FILES = [*FIT, "--lottery.rounds", "null", "--lottery.tickets"]
TICKET, CHECKPOINT = "run/tickets/round_01.safetensors", "run/checkpoints/last.ckpt"
OF_RUN = ["--config", "run/config.yaml", "--ckpt_path"]

MY_MODULE = '''
import numpy as np
import torch
from lightning import Callback
from torch import nn
from lth_lightning import Criterion


class Fixed(nn.Linear):
    def __init__(self):
        super().__init__(784, 10)

    def forward(self, images):
        return super().forward(images.flatten(1))


class Wide(Fixed):
    def __init__(self, width: int):
        super().__init__()


class Deep(nn.Sequential):
    def __init__(self, width: int):
        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))


class Broken(Fixed):
    def __init__(self):
        1 / 0


class Largest(Criterion):
    def scores(self, evidence):
        return {name: -weight.abs() for name, weight in evidence.trained.items()}


class Needy(Callback):
    def __init__(self):
        import surely_missing


class Interrupt(Callback):
    """In the middle of the third network, once."""
    wanted = True

    def on_network_start(self, *_):
        self.networks = getattr(self, "networks", 0) + 1

    def on_train_batch_end(self, trainer, *_):
        if Interrupt.wanted and self.networks == 3 and trainer.global_step == 25:
            Interrupt.wanted = False
            raise KeyboardInterrupt


class Colours:
    """20 images of 32 x 32 in 4 classes."""
    def __init__(self, root, train=True, download=False):
        self.data = np.random.default_rng(train).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
        self.targets = [0, 1, 2, 3] * 5
'''


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two rounds with its controls."""
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("finished") / "run"
    assert main([*FIT, "--run_dir", str(run)]) == 0
    return run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory, with a module of the user's own on the path."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "my_module.py").write_text(MY_MODULE)
    monkeypatch.syspath_prepend(modules)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    yield here
    sys.modules.pop("my_module", None)


@pytest.fixture
def crowded(folder: Path, finished: Path) -> Path:
    """A working directory with a finished run, and with files of every kind that are no good."""
    shutil.copytree(finished, folder / "run")
    (folder / "empty").mkdir()
    (folder / "file").write_text("a file")
    configs = {
        "unknown_key": "lottery: {round: 3}",
        "unknown_part": "lotery: {rounds: 3}",
        "unknown_argument": "model: {net: {class_path: MLP, init_args: {hiden: [20]}}}",
        "unknown_class": "model: {net: {class_path: MPL}}",
        "wrong_type": "lottery: {rounds: many}",
        "data_class": "data: {dataset: {class_path: torchvision.datasets.EMNIST, init_args: {split: letters}}}",
        "listed_word": "lottery: {rewind: [weights]}",
        "unclosed": "lottery: {rounds: 3",
        "words": "just words",
        "blank": "",
    }
    for name, text in configs.items():
        (folder / f"{name}.yaml").write_text(f"{text}\n")
    (folder / "binary.yaml").write_bytes(bytes(range(256)))
    whole = (folder / TICKET).read_bytes()
    safetensors.torch.save_file({"weight": torch.ones(3)}, folder / "foreign.safetensors")
    (folder / "junk.safetensors").write_bytes(b"no tensors at all")
    (folder / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    (folder / "changed.safetensors").write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    (folder / "junk.ckpt").write_bytes(b"no checkpoint")
    (folder / "truncated.ckpt").write_bytes((folder / CHECKPOINT).read_bytes()[:5000])
    torch.save({"weight": torch.ones(3)}, folder / "foreign.ckpt")
    return folder


Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """`refused(args)` runs a command that must fail as it should, and returns its error."""

    def run(args: list[str]) -> str:
        before = _files()
        code = main(args)
        out, err = capsys.readouterr()
        assert code == 2, out + err
        assert err.startswith("error: ") and "Traceback" not in err and "usage:" not in err
        assert "Warning" not in err
        assert not out
        assert _files() == before, "the next try would find what this one has left behind"
        return err

    return run


def _files() -> set[Path]:
    return set(Path.cwd().rglob("*"))


def _rows(run: Path) -> list[dict[str, str]]:
    """results.csv without the times."""
    with (run / "results.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


NETWORKS = "choose from Conv2, Conv4, Conv6, LeNet300, LeNet5, MLP, ResNet, VGG."
WRONG: dict[str, tuple[list[str], list[str]]] = {
    # numbers and lengths
    "rate of 1": ([*FIT, "--lottery.pruning.rate", "1"], ["pruning.rate must be in [0, 1), got 1.0"]),
    "negative rate": ([*FIT, "--lottery.pruning.rate=-0.2"], ["pruning.rate must be in [0, 1), got -0.2"]),
    "rate by glob": (
        [*FIT, "--lottery.pruning.rates", '{"*": 1.5}'],
        ["pruning.rates['*'] must be in [0, 1), got 1.5"],
    ),
    "negative rounds": ([*FIT, "--lottery.rounds=-1"], ["lottery.rounds must be at least 0", "got -1"]),
    "length without unit": (
        [*FIT, "--lottery.train_for", "10"],
        ["lottery.train_for must", "got '10'", "500it", "2ep"],
    ),
    "length in words": ([*FIT, "--lottery.train_for", "3 epochs"], ["lottery.train_for must", "got '3 epochs'", "2ep"]),
    "no length": ([*FIT, "--lottery.train_for", "0it"], ["lottery.train_for"]),
    "late rewind, same unit": ([*FIT, "--lottery.rewind_to", "20it"], ["lottery.rewind_to must", "got 20it"]),
    "late rewind, other unit": ([*FIT, "--lottery.rewind_to", "1ep"], ["lottery.rewind_to", "step 22", "20 steps"]),
    "late rewind, percent": ([*FIT, "--lottery.rewind_to", "100%"], ["lottery.rewind_to must", "got 100%"]),
    "seed": ([*FIT, "--seed_everything=-4"], ["seed_everything: -4", "from 0 to"]),
    # what to prune
    "glob": (
        [*FIT, "--lottery.pruning.rates", '{"*.outptu.weight": 0.1}'],
        ["pruning.rates: '*.outptu.weight'", "net.fc1.weight, net.fc2.weight, net.output.weight"],
    ),
    "nothing left": ([*FIT, "--lottery.rounds", "60"], ["nothing left to prune in round", "Set lottery.rounds to"]),
    "rate of 0": ([*FIT, "--lottery.pruning.rate", "0"], ["nothing to prune", "lottery.pruning.rate 0.0"]),
    # names
    "control": (
        [*FIT, "--lottery.controls", "[random_reint]"],
        ["lottery.controls: 'random_reint'", "'random_reinit'?"],
    ),
    "data set": (
        [*FIT, "--data.dataset", "FashionMINST"],
        ["data.dataset: 'FashionMINST'", "CIFAR10", "'FashionMNIST'?"],
    ),
    "data set with arguments": (
        [*FIT, "--data.dataset", "EMNIST"],
        ["data.dataset: EMNIST needs split; add --data.dataset.split VALUE", "EMNIST(root, split, train=True"],
    ),
    "argument of a data set": (
        [*FIT, "--data.dataset.split", "letters"],
        ["data.dataset_args: 'split' is unknown; Digits takes none", "Digits(root, train=True"],
    ),
    "data set as a class": (
        [*FIT, "--config", "data_class.yaml"],
        ["data_class.yaml: data.dataset: give the class's name or import path", "data.dataset_args"],
    ),
    "no images": (["predict", *OF_RUN, TICKET, "--images", "nowhere"], ["images: nowhere does not exist"]),
    "no image files": (["predict", *OF_RUN, TICKET, "--images", "empty"], ["images: empty holds no image files"]),
    "network": ([*FIT, "--model.net", "LeNet30"], ["model.net: 'LeNet30'", NETWORKS, "'LeNet300'?", "import path"]),
    "criterion": (
        [*FIT, "--lottery.pruning.criterion", "Magnitud"],
        ["lottery.pruning.criterion: 'Magnitud'", "Magnitude", "Random", "'Magnitude'?"],
    ),
    "criterion that is abstract": (
        [*FIT, "--lottery.pruning.criterion", "Criterion"],
        ["lottery.pruning.criterion: Criterion is abstract", "defines scores", "Magnitude", "import path"],
    ),
    "optimizer that is abstract": (
        [*FIT, "--model.optimizer", "torch.optim.Optimizer"],
        ["model.optimizer: torch.optim.Optimizer is abstract", "SGD"],
    ),
    "package that is missing": (
        [*FIT, "--trainer.callbacks", "my_module.Needy"],
        ["Needy needs the package surely_missing, which is not installed: pip install"],
    ),
    "control beyond the rounds": (
        [*FIT, "--lottery.control_rounds", "[1, 7]"],
        ["lottery.control_rounds: round 7 is beyond lottery.rounds 1; raise that to 7, or choose from 1."],
    ),
    "optimizer": ([*FIT, "--model.optimizer", "Adma"], ["model.optimizer: 'Adma'", "SGD", "'Adam'?"]),
    "schedule": (
        [*FIT, "--model.lr_scheduler", "StepLRR"],
        ["model.lr_scheduler: 'StepLRR'", "OneCycleLR", "'StepLR'?"],
    ),
    "name of two classes": (
        [*FIT, "--model.lr_scheduler", "ReduceLROnPlateau"],
        ["model.lr_scheduler: ", "Multiple subclasses with name", "torch.optim.lr_scheduler.ReduceLROnPlateau"],
    ),
    "scope": ([*FIT, "--lottery.pruning.scope", "globall"], ["pruning.scope: 'globall'", "layerwise", "'global'?"]),
    "rewind": ([*FIT, "--lottery.rewind", "weight"], ["lottery.rewind: 'weight'", "learning_rate", "'weights'?"]),
    "data order": ([*FIT, "--lottery.data_order", "fersh"], ["lottery.data_order: 'fersh'", "same", "'fresh'?"]),
    "init": ([*FIT, "--model.init", "glorot"], ["model.init: 'glorot'", "kaiming_normal", "'glorot_normal'?"]),
    "scaling": (
        [*FIT, "--data.scaling", "standardize"],
        ["data.scaling: Expected a typing.Literal['standardise', 'symmetric']", "standardize"],
    ),
    "callback": (
        [*FIT, "--trainer.callbacks", "EarlyStoping"],
        ["trainer.callbacks: 'EarlyStoping'", "'EarlyStopping'?"],
    ),
    # settings that there are not
    "option elsewhere": (
        [*FIT, "--lottery.scope", "global"],
        ["--lottery.scope is not a setting.", "--lottery.pruning.scope?"],
    ),
    "option mistyped": ([*FIT, "--rundir=x"], ["--rundir is not a setting.", "--run_dir?"]),
    "option by its last name": ([*FIT, "--lr", "1"], ["--lr is not a setting.", "--model.optimizer.lr?"]),
    "option cut short": (
        [*FIT, "--lottery.pruning.scop", "global"],
        ["--lottery.pruning.scop is not", "--lottery.pruning.scope?"],
    ),
    "option like no other": (
        [*FIT, "--foo.bar", "1"],
        ["--foo.bar is not a setting. `python train.py fit --help` lists"],
    ),
    "word without option": ([*FIT, "more"], ["more is not a setting."]),
    "key in a config": ([*FIT, "--config", "unknown_key.yaml"], ["lottery.round is not a setting.", "lottery.rounds?"]),
    "part of a config": (
        [*FIT, "--config", "unknown_part.yaml"],
        ["lotery.rounds is not a setting.", "lottery.rounds?"],
    ),
    "argument in a config": (
        [*FIT, "--config", "unknown_argument.yaml"],
        [
            "unknown_argument.yaml: model.net (lth_lightning.models.MLP): 'hiden'",
            "input_shape, num_classes",
            "'hidden'?",
        ],
    ),
    "class in a config": ([*FIT, "--config", "unknown_class.yaml"], ["unknown_class.yaml: model.net: 'MPL'", "'MLP'?"]),
    "argument of a network": (
        [*FIT, "--model.net", "MLP", "--model.net.hiden", "[9]"],
        ["model.net", "'hiden'", "'hidden'?"],
    ),
    "argument of an optimizer": (
        [*FIT, "--model.optimizer.lrr", "1"],
        ["model.optimizer (torch.optim.Adam): 'lrr'", "'lr'?"],
    ),
    # types
    "word for a whole number": ([*FIT, "--data.batch_size", "x"], ["data.batch_size: Expected a <class 'int'>", "x"]),
    "word for a number": (
        [*FIT, "--lottery.pruning.rate", "x"],
        ["lottery.pruning.rate: Expected a <class 'float'>", "x"],
    ),
    "word for number or null": ([*FIT, "--lottery.rounds", "ten"], ["lottery.rounds: ", "<class 'int'>", "ten"]),
    "word for a switch": ([*FIT, "--data.augment", "maybe"], ["data.augment: Expected a <class 'bool'>", "maybe"]),
    "word for a list": (
        [*FIT, "--lottery.controls", "random_mask"],
        ["lottery.controls takes a list, got random_mask. Write [random_mask]."],
    ),
    "list for a class": ([*FIT, "--model.net", "[MLP]"], ["model.net takes one name, not a list", "Write MLP."]),
    "list for a word": (
        [*FIT, "--config", "listed_word.yaml"],
        ["lottery.rewind takes one name, not a list: got [weights]. Write weights."],
    ),
    "number for a list": ([*FIT, "--lottery.control_rounds", "1"], ["lottery.control_rounds takes a list, got 1."]),
    "number for a mapping": (
        [*FIT, "--lottery.pruning.rates", "0.1"],
        ["lottery.pruning.rates: Expected a <class 'dict'>", "0.1"],
    ),
    "number for a part": ([*FIT, "--lottery", "5"], ["lottery: ", "5"]),
    "type of an argument": (
        [*FIT, "--model.net", "MLP", "--model.net.hidden", "20"],
        ["model.net.hidden takes a list, got 20. Write [20]."],
    ),
    "type of an optimizer's": (
        [*FIT, "--model.optimizer.lr", "fast"],
        ["model.optimizer: ", "lr: ", "<class 'float'>", "fast"],
    ),
    "type in a config": (
        [*FIT, "--config", "wrong_type.yaml"],
        ["wrong_type.yaml: lottery.rounds: ", "<class 'int'>", "many"],
    ),
    # what is missing
    "nothing given": (
        ["fit"],
        ["missing: lottery.train_for and model.net", "--config quickstart", "20ep"],
    ),
    "no network": (["fit", "--lottery.train_for", "2it"], ["missing: model.net", "--model.net  the network"]),
    "no rounds": (
        ["fit", "--model.net", "MLP", "--lottery.train_for", "2it", "--data.dataset", "Digits"],
        ["lottery.rounds is missing"],
    ),
    "no argument of a network": (
        [*FIT, "--model.net", "my_module.Wide"],
        ["model.net: Wide needs width", "--model.net.width"],
    ),
    "no argument of a schedule": (
        [*FIT, "--model.lr_scheduler", "StepLR"],
        ["StepLR needs step_size", "lr_scheduler.step_size"],
    ),
    # config files
    "no such config": (
        [*FIT, "--config", "unkown_key.yaml"],
        ["config: 'unkown_key.yaml'", "blank.yaml", "mean 'unknown_key.yaml'?"],
    ),
    "folder for a config": ([*FIT, "--config", "empty"], ["config: 'empty'", "blank.yaml"]),
    "config is no YAML": ([*FIT, "--config", "unclosed.yaml"], ["unclosed.yaml: not YAML", "line 2"]),
    "config is words": ([*FIT, "--config", "words.yaml"], ["words.yaml: no settings in it"]),
    "config is blank": ([*FIT, "--config", "blank.yaml"], ["blank.yaml: no settings in it"]),
    "config is binary": ([*FIT, "--config", "binary.yaml"], ["binary.yaml is not a text file"]),
    # networks, optimizers and data that do not fit
    "own network, fixed input": ([*FIT, "--model.net", "my_module.Fixed"], ["model.net: Fixed", "(1, 8, 8)"]),
    "network for colours": (
        [*FIT, "--model.net", "torchvision.models.resnet18"],
        ["model.net: ResNet", "(1, 8, 8)", "3 channels"],
    ),
    "trained weights that would be wiped": (
        [*FIT, "--model.net", "torchvision.models.resnet18", "--model.net.weights", "IMAGENET1K_V1"],
        ["model.net.weights is ResNet18_Weights.IMAGENET1K_V1", "model.init glorot_normal", "--model.init null"],
    ),
    "network for larger images": ([*FIT, "--model.net", "VGG"], ["VGG needs images of at least 16 x 16"]),
    "network that is none": (
        [*FIT, "--model.net", "my_module.Colours"],
        ["model.net: ", "does not correspond to a subclass of Module", "my_module.Colours"],
    ),
    "network not in its module": (
        [*FIT, "--model.net", "my_module.Nope"],
        ["model.net: ", "my_module.Nope", "no attribute 'Nope'"],
    ),
    "network without module": (
        [*FIT, "--model.net", "your_module.Net"],
        ["model.net: ", "your_module.Net", "No module named"],
    ),
    "learning rate": ([*FIT, "--model.optimizer.lr=-1"], ["model.optimizer: Invalid learning rate: -1.0"]),
    "schedule's length": (
        [*FIT, "--model.lr_scheduler", "OneCycleLR", "--model.lr_scheduler.max_lr", "1"],
        ["model.lr_scheduler: "],
    ),
    "train_size too large": ([*FIT, "--data.train_size", "100000"], ["data.train_size: 100000", "from 10 to 1317"]),
    "train_size below the classes": ([*FIT, "--data.train_size", "9"], ["data.train_size: 9", "from 10 to 1317"]),
    "no data": (
        [*FIT, "--data.dataset", "FashionMNIST", "--data.download", "false"],
        [
            "FashionMNIST could not be read",
            "here/data/FashionMNIST/raw for train-images-idx3-ubyte",
            "from torchvision.datasets import FashionMNIST",
            "dataset-fashion-mnist",
            "configs/quickstart.yaml",
        ],
    ),
    # folders
    "run_dir of another run": ([*FIT, "--run_dir", "run"], ["run_dir: run already holds a run", "--ckpt_path last"]),
    "run_dir below a file": ([*FIT, "--run_dir", "file/run"], ["run_dir: cannot make the folder file/run"]),
    "run_dir is a file": ([*FIT, "--run_dir", "file"], ["run_dir: cannot make the folder file"]),
    # tickets
    "no such ticket": ([*FROM_FILES, "nope.safetensors"], ["the ticket nope.safetensors does not exist"]),
    "no tickets in a folder": (
        [*FROM_FILES, "empty"],
        ["lottery.tickets", "the folder empty contains no ticket (*.safetensors)"],
    ),
    "no ticket": ([*FROM_FILES, "junk.safetensors"], ["junk.safetensors is not a ticket"]),
    "foreign ticket": ([*FROM_FILES, "foreign.safetensors"], ["foreign.safetensors", "not a ticket"]),
    "truncated ticket": (
        [*FROM_FILES, "truncated.safetensors"],
        ["truncated.safetensors is not a ticket, or is damaged"],
    ),
    "changed ticket": ([*FROM_FILES, "changed.safetensors"], ["changed.safetensors", "hash"]),
    "ticket of another network": (
        [*FROM_FILES, TICKET, "--model.net", "MLP", "--model.net.hidden", "[20]"],
        [
            "the ticket, made for LeNet300, does not fit",
            "net.fc1.bias (ticket (300,), network (20,))",
            "--lottery.on_mismatch reinitialise",
        ],
    ),
    "ticket to go on from": ([*FIT, "--ckpt_path", TICKET], [f"{TICKET} is a ticket", f"--lottery.tickets {TICKET}"]),
    # checkpoints
    "no checkpoint to go on from": (
        [*FIT, "--ckpt_path", "some/missing.ckpt"],
        ["ckpt_path: some/missing.ckpt does not exist", "last"],
    ),
    "checkpoint of no run": (
        [*FIT, "--ckpt_path", "foreign.ckpt"],
        ["ckpt_path: foreign.ckpt cannot be resumed", "last.ckpt"],
    ),
    "checkpoint elsewhere": (
        [*FIT, "--ckpt_path", CHECKPOINT, "--run_dir", "x"],
        [f"{CHECKPOINT} cannot be resumed in x"],
    ),
    "best": ([*FIT, "--ckpt_path", "best"], ["ckpt_path: best does not exist", "last"]),
    "test without weights": (
        ["test", "--config", "run/config.yaml"],
        ["ckpt_path is missing", "RUN/tickets/", "last.ckpt"],
    ),
    "test, no last run": (
        ["test", *QUICKSTART[1:], "--ckpt_path", "last"],
        ["ckpt_path: runs/quickstart contains no run yet"],
    ),
    "test, no such ticket": (["test", *OF_RUN, "nope.safetensors"], ["the ticket nope.safetensors does not exist"]),
    "test, no ticket": (["test", *OF_RUN, "junk.safetensors"], ["junk.safetensors is not a ticket"]),
    "test, truncated ticket": (
        ["test", *OF_RUN, "truncated.safetensors"],
        ["truncated.safetensors is not a ticket, or is"],
    ),
    "test, foreign ticket": (["test", *OF_RUN, "foreign.safetensors"], ["foreign.safetensors", "not a ticket"]),
    "test, another network's ticket": (["test", *OF_RUN, TICKET, "--model.net", "Conv2"], ["does not fit"]),
    "test, no such checkpoint": (
        ["test", *OF_RUN, "some/missing.ckpt"],
        ["ckpt_path: some/missing.ckpt does not exist"],
    ),
    "test, no checkpoint": (
        ["test", *OF_RUN, "junk.ckpt"],
        ["ckpt_path: junk.ckpt is not a checkpoint, or is damaged"],
    ),
    "test, truncated checkpoint": (
        ["test", *OF_RUN, "truncated.ckpt"],
        ["truncated.ckpt is not a checkpoint, or is damaged"],
    ),
    "test, foreign checkpoint": (["test", *OF_RUN, "foreign.ckpt"], ["foreign.ckpt is not a Lightning checkpoint"]),
    "test, another network's checkpoint": (
        ["test", *OF_RUN, CHECKPOINT, "--model.net", "Conv2"],
        ["ckpt_path: the checkpoint is of another network: net.conv1.bias (missing in the checkpoint, (64,)"],
    ),
    # commands
    "unknown command": (["fti"], ["command: 'fti'", "fit, predict, report, sweep, test, validate", "'fit'?"]),
    "no command": ([], ["the command comes first: python train.py fit|"]),
    "command last": (["--config", "run/config.yaml", "fit"], ["the command comes first: python train.py fit|"]),
    "report on nothing": (["report", "empty"], ["error: empty is not a run folder"]),
    # the Trainer's settings
    "max_epochs": ([*FIT, "--trainer.max_epochs", "5"], ["trainer.max_epochs is 5", "lottery.train_for"]),
    "accelerator": ([*FIT, "--trainer.accelerator", "gpuu"], ["trainer: ", "accelerator='gpuu'", "cpu"]),
    "duration": ([*FIT, "--trainer.max_time", "soon"], ["trainer: ", "'soon'", "DD:HH:MM:SS"]),
    "argument of a callback": (
        [*FIT, "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=x", "--trainer.callbacks.mode=low"],
        ["trainer.callbacks: `mode` can be", "low"],
    ),
    "validation interval": (
        [*FIT, "--trainer.val_check_interval", "100"],
        ["trainer: ", "`val_check_interval` (100)", "(22)"],
    ),
}


LIKE_ANOTHER = {
    *("negative rate", "length in words", "late rewind, other unit", "late rewind, percent", "rate of 0"),
    *("data set as a class", "no image files", "optimizer", "schedule", "rewind", "data order", "init", "callback"),
    *("option cut short", "option by its last name", "part of a config", "argument of a network"),
    *("word for a number", "word for number or null", "word for a list", "list for a class", "number for a mapping"),
    *("type of an optimizer's", "type in a config", "no argument of a schedule", "config is words", "no such config"),
    *("network for colours", "train_size below the classes", "run_dir is a file", "no ticket", "foreign ticket"),
    *("checkpoint of no run", "best", "test, no ticket", "test, foreign ticket", "test, no checkpoint"),
    *("test, another network's ticket", "test, no such checkpoint", "command last", "duration"),
}
"""Mistakes in another setting that the same check refuses."""


@pytest.mark.parametrize("mistake", [pytest.param(one, marks=weekly if one in LIKE_ANOTHER else ()) for one in WRONG])
def test_a_mistake_is_one_error_in_the_users_words_and_leaves_nothing(
    mistake: str, crowded: Path, refused: Refused
) -> None:
    args, expected = WRONG[mistake]
    error = refused(args)
    assert not [part for part in expected if part not in error], error


def test_a_programming_error_keeps_its_traceback(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        main([*FIT, "--model.net", "my_module.Broken"])
    assert not _files()


def test_swapped_letters_find_the_name_that_was_meant() -> None:
    assert str(unknown_name("x", "Adma", ["Adam", "Adamax"])).endswith("Did you mean 'Adam'?")
    assert str(unknown_name("x", "zzz", ["Adam"])) == "x: 'zzz' is unknown; choose from Adam."


# ------------------------------------------------------------------------------------- where a run goes


def test_runs_are_numbered_and_a_refused_one_uses_up_no_number(folder: Path, refused: Refused, capsys: Any) -> None:
    assert main(SHORT) == 0
    capsys.readouterr()
    refused([*SHORT, "--data.train_size", "3"])
    assert main(SHORT) == 0
    assert "Results, tickets and figures: runs/quickstart/1" in capsys.readouterr().out
    assert main(["fit", "--config", "runs/quickstart/0/config.yaml"]) == 0
    assert sorted(path.name for path in (folder / "runs/quickstart").iterdir()) == ["0", "1", "2"]
    assert _rows(folder / "runs/quickstart/2") == _rows(folder / "runs/quickstart/0")


def test_config_yaml_repeats_the_run_under_the_runs_name(folder: Path, finished: Path) -> None:
    assert main(["fit", "--config", str(finished / "config.yaml")]) == 0
    assert _rows(folder / "runs/run/0") == _rows(finished)
    ours, theirs = (yaml.safe_load((run / "config.yaml").read_text()) for run in (folder / "runs/run/0", finished))
    assert ours == theirs


def test_runs_that_start_at_once_get_numbers_of_their_own(tmp_path: Path) -> None:
    first, second = (Reservation(None, tmp_path / "runs/x") for _ in range(2))
    assert [first.path.name, second.path.name] == ["0", "1"]
    (second.path / "config.yaml").touch()
    second.give_back()
    assert first.path.is_dir() and not second.path.exists()
    first.give_back()
    assert not (tmp_path / "runs").exists()


def test_a_reservation_gives_back_only_what_it_made_and_never_results(tmp_path: Path) -> None:
    Reservation(tmp_path, tmp_path).give_back()
    assert tmp_path.is_dir()
    kept = Reservation(tmp_path / "a/b", tmp_path)
    (kept.path / "results.csv").touch()
    kept.give_back()
    assert (kept.path / "results.csv").exists()
    with pytest.raises(SettingError, match="already holds a run"):
        Reservation(kept.path, tmp_path)


# ------------------------------------------------------------------------------------- going on with a run


def test_an_interrupted_run_goes_on_to_equal_results(folder: Path, finished: Path, capsys: Any) -> None:
    run_of_30 = [*FIT, "--lottery.train_for", "30it"]
    last = [*run_of_30, "--ckpt_path", "last", "--trainer.callbacks", "my_module.Interrupt"]
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):  # Lightning's answer to Ctrl+C
            main(last)
    finally:
        signal.signal(signal.SIGINT, handler)
    out, err = capsys.readouterr()
    run = folder / "runs/quickstart/0"
    assert out.startswith("Nothing to resume in runs/quickstart/0: starting.\n")
    assert err == "Interrupted. To resume, add --ckpt_path last --run_dir runs/quickstart/0 to the command.\n"
    assert len(_rows(run)) == 2

    assert main(last) == 0
    assert capsys.readouterr().out.startswith("Resuming runs/quickstart/0.\n")
    assert main(run_of_30) == 0
    assert _rows(run) == _rows(folder / "runs/quickstart/1") and len(_rows(run)) == 4


def test_a_finished_run_has_nothing_to_go_on_with(crowded: Path, capsys: Any) -> None:
    before, config = _rows(crowded / "run"), (crowded / "run/config.yaml").read_text()
    assert main(["fit", "--ckpt_path", "last", "--config", "run/config.yaml"]) == 0  # whatever comes first
    out = capsys.readouterr().out
    assert out.startswith("Resuming run.\n") and "100.00 %  ticket" not in out
    assert _rows(crowded / "run") == before and (crowded / "run/config.yaml").read_text() == config


def test_a_run_goes_on_only_from_its_checkpoint(crowded: Path, capsys: Any) -> None:
    last = ["fit", "--config", "run/config.yaml", "--ckpt_path", "last"]
    (crowded / CHECKPOINT).unlink()
    assert main(last) == 2
    assert "there is a run in run, but no run/checkpoints/last.ckpt to resume from" in capsys.readouterr().err


def test_a_run_that_is_out_of_time_says_how_to_go_on(folder: Path, capsys: Any) -> None:
    assert main([*FIT, "--trainer.max_time", "00:00:00:00"]) == 0
    out = capsys.readouterr().out
    assert "Stopped after 0 of 4 networks. To resume, add more --trainer.max_time and --ckpt_path last" in out


# ------------------------------------------------------------------------------------- test, validate, predict


@pytest.mark.parametrize("command", ["test", "validate"])
def test_a_ticket_has_the_accuracy_of_its_row(crowded: Path, command: str, capsys: Any) -> None:
    before = _files()
    assert main([command, *OF_RUN, TICKET]) == 0
    row = next(row for row in _rows(crowded / "run") if (row["round"], row["variant"]) == ("1", "ticket"))
    name = "test_acc" if command == "test" else "val_acc"
    out, err = capsys.readouterr()
    shown = next(line for line in out.splitlines() if name in line)
    assert float(shown.split("│")[2]) == pytest.approx(float(row[name]), abs=1e-6)
    assert not err and _files() == before


@pytest.mark.parametrize("weights", [CHECKPOINT, "last"])
def test_a_checkpoint_has_the_accuracy_of_the_network_it_holds(crowded: Path, weights: str, capsys: Any) -> None:
    before = _files()
    assert main(["test", *OF_RUN, weights]) == 0
    shown = next(line for line in capsys.readouterr().out.splitlines() if "test_acc" in line)
    assert float(shown.split("│")[2]) in [pytest.approx(float(row["test_acc"])) for row in _rows(crowded / "run")]
    assert _files() == before


def test_predict_prints_the_class_of_each_test_image(crowded: Path, capsys: Any) -> None:
    before = _files()
    assert main(["predict", *OF_RUN, TICKET]) == 0
    classes = capsys.readouterr().out.split()
    assert len(classes) == 360 and set(classes) == set("0123456789")
    assert _files() == before


@pytest.mark.parametrize("weights", [TICKET, CHECKPOINT])
def test_predict_classifies_images_of_ones_own(crowded: Path, capsys: Any, weights: str) -> None:
    """The test images, from a file, get the classes that they get as test images."""
    assert main(["predict", *OF_RUN, weights]) == 0
    classes = capsys.readouterr().out.split()
    np.save(crowded / "images.npy", Digits("", train=False).data.numpy())
    assert main(["predict", *OF_RUN, weights, "--images", "images.npy"]) == 0
    found = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [row["class"] for row in found] == classes
    assert [row["file"] for row in found] == [str(number) for number in range(360)]
    assert all(0.1 <= float(row["probability"]) <= 1 for row in found)


def test_tickets_that_a_run_was_given_may_be_gone_when_it_is_tested(crowded: Path, capsys: Any) -> None:
    assert main([*FROM_FILES, TICKET, "--run_dir", "again", "--lottery.controls", "[]"]) == 0
    shutil.rmtree(crowded / "run")
    assert main(["test", "--config", "again/config.yaml", "--ckpt_path", "again/tickets/round_01.safetensors"]) == 0


# ------------------------------------------------------------------------------------- classes of the user's own


def test_a_data_set_takes_arguments_of_its_own(folder: Path) -> None:
    """Beside its name, a plain string, in config.yaml too; a flag changes one of them."""
    write_emnist_letters(folder / "data", 60, 20)
    letters = ["--data.dataset", "torchvision.datasets.EMNIST", "--data.dataset.split", "letters"]
    assert main([*SHORT, *letters, "--data.train_size", "null", "--quiet", "--run_dir", "run"]) == 0
    data = yaml.safe_load((folder / "run/config.yaml").read_text())["data"]
    assert (data["dataset"], data["dataset_args"]) == ("torchvision.datasets.EMNIST", {"split": "letters"})
    ticket = Ticket.load(folder / "run/tickets/round_00.safetensors")
    assert ticket.info["data"] == "torchvision.datasets.EMNIST(split=letters)"
    assert ticket.info["classes"] == ["N/A", *"abcdefghij"]
    assert main(["fit", "--config", "run/config.yaml", "--data.dataset.split", "digits", "--data.download", "0"]) == 2


def test_a_ticket_builds_the_network_that_the_command_line_named(folder: Path) -> None:
    assert main([*SHORT, "--model.net", "my_module.Deep", "--model.net.width", "7", "--quiet", "--run_dir", "run"]) == 0
    ticket = Ticket.load(folder / "run/tickets/round_00.safetensors")
    (recipe,) = ticket.info["network"]
    assert recipe == {"class_path": "my_module.Deep", "init_args": {"width": 7}}
    assert len(ticket.predict(Digits("", train=False).data)) == 360


def test_a_network_of_torchvisions_takes_its_classes_from_the_data(folder: Path) -> None:
    own = [
        *("--model.net", "torchvision.models.squeezenet1_1"),  # the smallest
        *("--data.dataset", "my_module.Colours", "--data.val_size", "4"),
    ]
    assert main([*SHORT, *own, "--data.batch_size", "8", "--trainer.enable_progress_bar", "false"]) == 0
    config = yaml.safe_load((folder / "runs/quickstart/0/config.yaml").read_text())
    assert config["model"]["net"]["init_args"]["num_classes"] == 4


def test_our_mlp_is_meant_though_torchvision_has_one(folder: Path) -> None:
    assert main([*SHORT, "--model.net", "MLP", "--model.net.hidden", "[20]"]) == 0
    assert [row["prunable"] for row in _rows(folder / "runs/quickstart/0")] == [str(64 * 20 + 20 * 10)]


def test_a_criterion_of_ones_own_works_by_its_path(folder: Path, finished: Path) -> None:
    assert main([*FIT, "--lottery.controls", "[]", "--lottery.pruning.criterion", "my_module.Largest"]) == 0
    largest, smallest = (_rows(run)[1] for run in (folder / "runs/quickstart/0", finished))
    assert largest["kept"] == smallest["kept"] and largest["test_acc"] < smallest["test_acc"]


# ------------------------------------------------------------------------------------- the program itself


def test_help_says_what_there_is(capsys: Any) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {command} " in out for command in ("fit", "test", "validate", "predict", "report"))
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    for sentence in (
        "--lottery.rounds N How often to prune; round 0 is the dense network.",
        "--lottery.pruning.rate X Fraction of the surviving weights pruned per round, in [0, 1). (default: 0.2)",
        f"(required; {NETWORKS[:-1]})",
        "by default runs/<config name>/<n>.",
    ):
        assert sentence in out


FLAGS = {
    **{f"--lottery.{name}": parameter for name, parameter in signature(LotteryTicket).parameters.items()},
    **{f"--lottery.pruning.{name}": parameter for name, parameter in signature(Pruning).parameters.items()},
    **{f"--data.{name}": parameter for name, parameter in signature(ImageDataModule).parameters.items()},
    **{f"--model.{name}": parameter for name, parameter in signature(ImageClassifier).parameters.items()},
}
OF_OTHERS = ("--lottery.pruning", "--lottery.run_dir", "--model.num_classes", "--model.input_shape")


def test_every_flag_of_ours_has_a_sentence_and_a_default_and_the_examples_work(
    folder: Path, finished: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--help"])
    out, _, examples = capsys.readouterr().out.partition("\nexamples:\n")
    ours, _, _ = out.partition("--trainer.")
    entries = {text.split()[0]: " ".join(text.split()) for text in re.split(r"\n  (?=--)", ours)[1:]}
    for flag, parameter in FLAGS.items():
        if flag in OF_OTHERS:
            assert flag not in entries
            continue
        text = entries.pop(flag)
        default = "required" if parameter.default is parameter.empty else "default: "
        assert re.search(rf"[.:`)] \({default}", text), text
        assert not re.search(r"Union|Optional|Callable|Literal|class_path|type: |None", text), text
    assert sorted(entries) == [
        *("--ckpt_path", "--lottery.pruning.criterion.help", "--model.lr_scheduler.help", "--model.net.help"),
        *("--model.optimizer.help", "--print_config", "--quiet", "--run_dir", "--seed_everything"),
    ]
    (folder / "configs").symlink_to(REPOSITORY / "configs")
    (folder / "runs").mkdir()
    (folder / "runs/mine").symlink_to(finished)
    commands = [shlex.split(line, comments=True) for line in examples.splitlines()]
    assert len(commands) == 4
    for python, program, *args in commands:
        assert (python, program) == ("python", "train.py")
        with pytest.raises(SystemExit, match="0"):
            main([*args, "--print_config"])


def run_program(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, REPOSITORY / "train.py", *args], capture_output=True, text=True, check=False, timeout=HANGS
    )


def test_the_program_exits_as_it_should() -> None:
    bad = run_program("fti")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("error: command: 'fti' is unknown")


@weekly  # else a process in tests/behaviour/test_processes.py, which has loaded everything before
def test_the_program_says_no_more_than_it_must(folder: Path) -> None:
    good = run_program(*SHORT)
    assert (good.returncode, good.stderr) == (0, "")
    said, *table = good.stdout.splitlines()
    assert said.startswith("Prunable: ")
    assert table[0] == "round   density  variant   val acc  test acc  early stop  seconds"
    assert table[1].startswith("    0  100.00 %")
