"""The names of all settings, read from source, so that a mistyped one is refused before Lightning is loaded."""

import ast
import importlib.util
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path

import lth_lightning
from lth_lightning.cli.arguments import PARTS, Named, program
from lth_lightning.errors import SettingError, likeness

# Arguments of classes, which no parser lists; included because users often give only the last part of the name.
WELL_KNOWN = frozenset({"model.optimizer.lr", "model.optimizer.momentum", "model.optimizer.weight_decay"})
OURS = {
    "lottery": ("lottery/callback.py", "LotteryTicket"),
    "lottery.pruning": ("pruning/pruning.py", "Pruning"),
    "data": ("data/datamodule.py", "ImageDataModule"),
    "model": ("classifier.py", "ImageClassifier"),
}
"""The classes whose arguments are settings: the file in this package, and the class."""
COMMON = (
    *("config", "print_config", "help", "run_dir", "ckpt_path", "quiet", "seed_everything", "weights_only"),
    *("images", "resize", "verbose", "return_predictions"),  # of `predict`, `test` and `validate`
)
GROUPS = {*OURS, "trainer"}  # settings of their own, as files of a part's settings
FOR_OWN_MODULES = ("optimizer", "lr_scheduler")


def check_names(args: Iterable[str], named: Mapping[str, Named]) -> None:
    """Refuse the first option that is not a setting.

    Args:
        args: the command line after the command.
        named: what it says of `model` and `data`; arguments of classes of the user's own are not known here.

    Raises:
        SettingError: an option's name is unknown; the error suggests the nearest one.
    """
    known = known_settings()
    if not known:
        return
    own = {part for part in PARTS if named[part].class_path is not None}
    own |= set(FOR_OWN_MODULES) if "model" in own else set()
    for arg in args:
        option = arg.partition("=")[0].removesuffix("+")
        if not option.startswith("--") or option == "--":
            continue
        parts = option[2:].split(".")
        prefixes = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
        if parts[0] not in own and not known & prefixes and option[2:] not in GROUPS:
            raise unknown_setting(option, known)


def unknown_setting(given: str, settings: Collection[str]) -> SettingError:
    """Return the error for an option that is not in `settings`; it suggests the nearest."""
    name = given.lstrip("-")
    nearest = max(WELL_KNOWN.union(settings), key=lambda setting: _closeness(name, setting))
    hint = f" Did you mean {given.removesuffix(name)}{nearest}?" if _closeness(name, nearest) >= 1 else ""
    return SettingError(f"{given} is not a setting.{hint} `{program()} fit --help` lists them all.")


def _closeness(given: str, setting: str) -> float:
    """A score up to 2 by which a setting under another parent (`lottery.scope`) is as close as a mistyped one."""
    return likeness(given, setting) + likeness(given.rpartition(".")[2], setting.rpartition(".")[2])


@cache
def known_settings() -> frozenset[str]:
    """The dotted names of all settings of a command for our module and data; none if Lightning is not installed."""
    lightning = importlib.util.find_spec("lightning")
    if lightning is None or lightning.origin is None:
        return frozenset()
    package, trainer = Path(lth_lightning.__file__).parent, Path(lightning.origin).parent / "pytorch/trainer/trainer.py"
    files = {prefix: (package / file, name) for prefix, (file, name) in OURS.items()} | {
        "trainer": (trainer, "Trainer")
    }
    found = {f"{prefix}.{argument}" for prefix, where in files.items() for argument in _arguments(*where)}
    return frozenset({*COMMON, *found} - GROUPS)


def _arguments(file: Path, name: str) -> list[str]:
    """The arguments of a class's constructor; of a dataclass, its fields."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    cls = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    for node in cls.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            return [argument.arg for argument in (*node.args.args[1:], *node.args.kwonlyargs)]
    return [
        node.target.id for node in cls.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    ]
