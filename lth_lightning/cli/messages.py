"""The command line's parser and its help: a mistake gives one error, reworded for users if it is a common one.

jsonargparse reports errors only as text. This module parses that text for missing and unknown settings, unknown
classes and config files. All other errors are passed on unchanged, on one line.
"""

import argparse
import copy
import inspect
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pydoc import locate
from types import UnionType
from typing import Any, NoReturn, Union, get_args, get_origin

import lightning as L
import torch
from jsonargparse import DefaultHelpFormatter, Namespace, get_loader
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from lth_lightning.cli.known_settings import unknown_setting
from lth_lightning.cli.parts import Part
from lth_lightning.data.datasets import AS_A_STRING
from lth_lightning.errors import SettingError, unknown_name
from lth_lightning.models import Network
from lth_lightning.pruning import gradient_criteria  # noqa: F401 (its criteria are named by their class alone)
from lth_lightning.pruning.criteria import Criterion
from lth_lightning.runs.class_paths import named_as_today

# The base classes of the classes that these settings name; errors and help list the subclasses.
BASES: dict[str, type] = {
    "model.net": Network,
    "model.optimizer": torch.optim.Optimizer,
    "model.lr_scheduler": torch.optim.lr_scheduler.LRScheduler,
    "lottery.pruning.criterion": Criterion,
    "trainer.callbacks": L.Callback,
    "trainer.logger": Logger,
}
ONE_NAME = BASES.keys() - {"trainer.callbacks", "trainer.logger"}
# The help of Lightning's parser for these is wrong here, or hard to read.
SAID_BETTER = {
    "help": "Show this help and exit.",
    "config": "A YAML file of settings. Later files override earlier ones, and flags after them override both.",
    "print_config": "Print all settings as a config, including defaults, and exit.",
}
# Config files for one part; settings that follow from others; settings only for foreign checkpoints.
UNTOLD = {
    *("lottery", "lottery.pruning", "data", "model", "trainer"),
    *("lottery.run_dir", "model.num_classes", "model.input_shape"),
    *("lottery.prunable.help", "lottery.reinit.help", "lottery.score.help"),
    *("lottery.engine.help", "weights_only"),
}
# Headings of parts that are classes of the user's own: their arguments follow with --model.help CLASS.
HEADINGS = {
    "A DataModule standardizes": "Your LightningDataModule: `--data CLASS --data.NAME VALUE`",
    "<class 'lightning.pytorch.core.module": "Your LightningModule: `--model CLASS --model.NAME VALUE`",
    "Base class for all optimizers": "An optimizer in place of your module's `configure_optimizers`",
    "(<class 'torch.optim.lr_scheduler": "A learning-rate schedule for it",
}
METAVARS: tuple[tuple[tuple[Any, ...], str], ...] = (
    ((Sequence, list, tuple), "[ITEM,...]"),
    ((dict,), "{KEY:VALUE,...}"),
    ((int,), "N"),
    ((float,), "X"),
    ((os.PathLike,), "PATH"),
    ((str, None), "TEXT"),
)


class Help(DefaultHelpFormatter):
    """Shows each of our settings with a sentence and its default, and Lightning's settings unchanged.

    Lists only our classes, by their short names: `nn.Module` alone has hundreds of subclasses.
    """

    def start_section(self, heading: str | None) -> None:
        """Capitalise headings, which are first lines of docstrings."""
        heading = next((better for start, better in HEADINGS.items() if (heading or "").startswith(start)), heading)
        super().start_section(_capitalised(heading) if heading else heading)

    def add_arguments(self, actions: Iterable[argparse.Action]) -> None:
        """Leave out the options in `UNTOLD`, which users do not need."""
        super().add_arguments([action for action in actions if action.dest not in UNTOLD])

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("examples:") else super()._fill_text(text, width, indent)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not _is_ours(action):
            return super()._format_action_invocation(action)
        shown = copy.copy(action)  # without `--lottery.controls+`, which appends
        shown.option_strings = [option for option in action.option_strings if not option.endswith("+")]
        if action.dest.endswith(".help"):
            shown.metavar = "CLASS"
        return super()._format_action_invocation(shown)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        if not _is_ours(action):
            return super()._get_default_metavar_for_optional(action)
        return "FILE" if action.dest == "config" else _metavar(getattr(action, "_typehint", None))

    def _expand_help(self, action: argparse.Action) -> str:
        names = ", ".join(_classes_for(action.dest))
        text, choices = super()._expand_help(action), f"; choose from {names}" if names else ""
        if not _is_ours(action):
            return re.sub(r", known subclasses: .*\)$", f"{choices})", text)
        if action.dest in SAID_BETTER:
            return SAID_BETTER[action.dest]
        if action.dest.endswith(".help"):
            return "Show the arguments of one of these classes and exit."
        default = re.search(r"default: (.*?)(?:, known subclasses: .*)?\)$", text.removeprefix(action.help or ""))
        facts = "required" if action.required else f"default: {_in_yaml(default[1])}" if default else ""
        facts = (facts + choices).removeprefix("; ")
        return _capitalised(action.help or "") + (f" ({facts})" if facts else "")


def _is_ours(action: argparse.Action) -> bool:
    return action.dest.partition(".")[0] != "trainer"


def _capitalised(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _metavar(hint: Any) -> str:
    """The placeholder for a value of this type: that of the most informative allowed type."""
    allowed = {get_origin(part) or part for part in (get_args(hint) if _is_union(hint) else [hint])}
    return next((name for types, name in METAVARS if allowed.intersection(types)), "CLASS")


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)


def _in_yaml(default: str) -> str:
    """A default as written in a config, with a class by its short name."""
    if named := re.match(r"\{'class_path': '[\w.]*?(\w+)'", default):
        return named[1]
    return {"True": "true", "False": "false", "()": "[]"}.get(default, default)


class LotteryParser(LightningArgumentParser):
    """Raises `SettingError` instead of printing usage; allows no abbreviations, which hide mistakes."""

    parts: Sequence[Part] = ()  # the classes of `model` and `data`

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, "formatter_class": Help, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Refuse the command line."""
        if not self.exit_on_error:  # the parser of a class's arguments: its caller knows the setting's name
            super().error(message, ex)
        commands = self._subcommands_action
        parser = next(iter(commands.choices.values())) if commands else self
        raise SettingError(in_plain_words(message, parser)) from ex

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Namespace:
        """Parse the text of a config, which may be from an earlier version, or hold settings of another class."""
        return super().parse_string(self._placed(named_as_today(content)), *args, **kwargs)

    def _placed(self, content: str) -> str:
        settings = get_loader("yaml")(content) if any(part.by_path for part in self.parts) else None
        if not isinstance(settings, dict):
            return content
        placed = {part.name: part.placed(settings[part.name]) for part in self.parts if part.name in settings}
        if all(placed[name] is settings[name] for name in placed):
            return content
        return json.dumps({name: value for name, value in (settings | placed).items() if value is not None})

    def parse_path(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Namespace:
        """Parse a config file; errors name the file."""
        try:
            return super().parse_path(path, *args, **kwargs)
        except SettingError as error:
            raise SettingError(f"{path}: {error}") from error
        except UnicodeDecodeError as error:
            raise SettingError(f"{path} is not a text file; --config takes a YAML file.") from error


def in_plain_words(text: str, parser: argparse.ArgumentParser) -> str:
    """Reword an error of jsonargparse if it is a common one, else return it on one line.

    Args:
        text: the error.
        parser: the parser of the settings in it.
    """
    setting = ".".join(dict.fromkeys(re.findall(r'Parser key "([\w.]+)"', text)))  # and of its class
    made = _find(r"class_path[ =]'([\w.]+)'", text) or ""
    if value := _of_value(setting, made, text):
        return value
    if names := _find(r"arguments are required: ([\w., ]+)", text):
        return _missing(names.split(", "), setting, made, parser)
    if (given := _find(r"Option '([\w.]+)' is not accepted", text)) and callable(cls := locate(made)):
        return str(unknown_name(f"{setting} ({made})", given, _arguments(cls)))
    if (given := _find(r"Expected a dot import path string: (\S+)", text)) and (classes := _classes_for(setting)):
        return f"{unknown_name(setting, given, classes)} Or give the import path of your own class."
    if given := _find(r"unrecognized arguments: ([^\s=]+)", text) or _find(r"not accept option '([\w.]+)'", text):
        return str(unknown_setting(given, [action.dest for action in parser._actions if action.option_strings]))
    return _of_config(text) or re.sub(r'Parser key "([\w.]+)": ', r"\1: ", " ".join(text.split()))


def _find(pattern: str, text: str) -> str | None:
    """The first group of the first match."""
    match = re.search(pattern, text)
    return match[1].strip() if match else None


def _of_value(setting: str, made: str, text: str) -> str | None:
    """Explain a value that is an abstract class, a class of a missing package, or a list in place of a name."""
    if setting == "data.dataset" and "class_path" in text:
        return f"data.dataset: {AS_A_STRING}."
    given = _find(r"(?:Got|Given) value: (\[.*?\]|[^\s.]+)", text) or ""
    base = BASES.get(setting)
    is_base = bool(made) and base is not None and locate(made) is base
    if is_base or "is abstract" in text:
        named = _find(r"but ([\w.]+) is abstract", text) or _find(r"value: ([\w.]+)", text)
        return _abstract(setting, made if is_base else named or made)
    path = _find(r"class_path '([\w.]+)'", text)
    if path and (reason := _find(r"(No module named '[\w.]+'|module '[\w.]+' has no attribute '\w+')", text)):
        way_out = "Install the package, or, for a class of your own, start in the folder that holds it."
        return f"{setting}: {path} cannot be imported: {reason}. {way_out if 'No module' in reason else ''}".rstrip()
    one = re.fullmatch(r"\['?([\w.]+)'?\]", given)
    if one and (setting in ONE_NAME or "Expected a <class 'str'>" in text):
        return f"{setting} takes one name, not a list: got [{one[1]}]. Write {one[1]}."
    if "<class 'collections.abc.Sequence'>" in text and re.fullmatch(r"[\w-]+", given):
        return f"{setting} takes a list, got {given}. Write [{given}]."
    return None


def _abstract(setting: str, given: str) -> str:
    base = BASES.get(setting)
    found = locate(given) or (base if base and base.__name__ == given else None)
    methods = sorted(getattr(found, "__abstractmethods__", ()))
    defines = f" and defines {', '.join(methods)}" if methods else ""
    classes = ", ".join(_classes_for(setting))
    return (
        f"{setting}: {given} is abstract: a class of your own derives from it{defines}. Choose from {classes}, or give "
        "the import path of your class."
    )


def _missing(names: list[str], setting: str, made: str, parser: argparse.ArgumentParser) -> str:
    if setting:
        options = " and ".join(f"--{setting}.{name}" for name in names)
        return f"{setting}: {made.rpartition('.')[2]} needs {', '.join(names)}; add {options}."
    settings = [name.partition(".")[2] for name in names]
    meanings = [f"\n    --{a.dest}  {a.help}" for a in parser._actions if a.dest in settings]
    config = "quickstart" if any(action.dest == "model.net" for action in parser._actions) else "FILE"
    return f"missing: {' and '.join(settings)}. A config sets them, e.g. --config {config}. Or give{''.join(meanings)}"


def _arguments(made: Callable[..., Any]) -> list[str]:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    arguments = [p.name for p in inspect.signature(made).parameters.values() if p.kind in named]
    return [name for name in arguments if name not in ("params", "optimizer")]  # these are filled in


def _of_config(text: str) -> str | None:
    """Explain an error in a config file, None for other errors; the caller adds the file's name."""
    if "Problems parsing config: " in text:
        reason = text.partition("Problems parsing config: ")[2].replace('in "<unicode string>",', "at")
        return f"not YAML: {' '.join(reason.split())}."
    return (
        "no settings in it; a config looks like\n    lottery:\n      rounds: 10"
        if "Unexpected config" in text
        else None
    )


def _classes_for(setting: str) -> list[str]:
    """The short names of the classes that a setting can name."""
    base = BASES.get(setting)
    classes = [cls for cls in _below(base) if not inspect.isabstract(cls)] if base else []
    return sorted({cls.__name__ for cls in classes if not cls.__name__.startswith("_")})


def _below(base: type) -> Iterable[type]:
    cls: type
    for cls in base.__subclasses__():
        yield cls
        yield from _below(cls)
