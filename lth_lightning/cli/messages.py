"""The command line's parser: says in the user's words, and in one line, what is wrong with a setting.

jsonargparse explains itself in text only, so its text is read here. An explanation that is not recognised (another
version's, say) is passed on as it is.
"""

import argparse
import copy
import inspect
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pydoc import locate
from types import UnionType
from typing import Any, NoReturn, Union, get_args, get_origin

import lightning as L
import torch
from jsonargparse import DefaultHelpFormatter, Namespace
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from lth_lightning.errors import SettingError, likeness, unknown_name
from lth_lightning.models import Network
from lth_lightning.pruning import gradient_criteria  # noqa: F401 (its criteria are named by their class alone)
from lth_lightning.pruning.criteria import Criterion
from lth_lightning.runs.class_paths import named_as_today

# What the classes must be that these settings name; errors and help list those there are.
BASES: dict[str, type] = {
    "model.net": Network,
    "model.optimizer": torch.optim.Optimizer,
    "model.lr_scheduler": torch.optim.lr_scheduler.LRScheduler,
    "lottery.pruning.criterion": Criterion,
    "trainer.callbacks": L.Callback,
    "trainer.logger": Logger,
}
# Arguments of classes, which no parser lists; here because everybody asks for them by their last name.
WELL_KNOWN = ("model.optimizer.lr", "model.optimizer.momentum", "model.optimizer.weight_decay")
# What Lightning's parser says of these is not what they do here, or is hard to read.
SAID_BETTER = {
    "help": "Show this, and stop.",
    "config": "A YAML file of settings. With several the later ones win, and settings behind them.",
    "print_config": "Show all settings as a config, defaults included, and stop.",
}
# Files for one part of the settings; what follows from other settings; what is for checkpoints that are none of ours.
UNTOLD = {
    *("lottery", "lottery.pruning", "data", "model", "trainer"),
    *("lottery.run_dir", "model.num_classes", "model.input_shape"),
    *("lottery.prunable.help", "weights_only"),
}
METAVARS: tuple[tuple[tuple[Any, ...], str], ...] = (
    ((Sequence, list, tuple), "[ITEM,...]"),
    ((dict,), "{KEY:VALUE,...}"),
    ((int,), "N"),
    ((float,), "X"),
    ((os.PathLike,), "PATH"),
    ((str, None), "TEXT"),
)
TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "dict": 'a mapping such as {"name": value}',
    "NoneType": "null",
}


class Help(DefaultHelpFormatter):
    """Our settings each in a sentence and their default; Lightning's as they are.

    Lists classes by their short names, and ours only: of `nn.Module` alone there are hundreds.
    """

    def start_section(self, heading: str | None) -> None:
        """Headings are first lines of docstrings."""
        super().start_section(_capitalised(heading) if heading else heading)

    def add_arguments(self, actions: Iterable[argparse.Action]) -> None:
        """Leave out what nobody has to know to set anything."""
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
        text, there_is = super()._expand_help(action), f"; there is {names}" if names else ""
        if not _is_ours(action):
            return re.sub(r", known subclasses: .*\)$", f"{there_is})", text)
        if action.dest in SAID_BETTER:
            return SAID_BETTER[action.dest]
        if action.dest.endswith(".help"):
            return "Show the arguments of one of these classes, and stop."
        default = re.search(r"default: (.*?)(?:, known subclasses: .*)?\)$", text.removeprefix(action.help or ""))
        facts = "required" if action.required else f"default: {_in_yaml(default[1])}" if default else ""
        facts = (facts + there_is).removeprefix("; ")
        return _capitalised(action.help or "") + (f" ({facts})" if facts else "")


def _is_ours(action: argparse.Action) -> bool:
    return action.dest.partition(".")[0] != "trainer"


def _capitalised(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _metavar(hint: Any) -> str:
    """What a value of this type looks like: the most telling of the types that are allowed."""
    allowed = {get_origin(part) or part for part in (get_args(hint) if _is_union(hint) else [hint])}
    return next((name for types, name in METAVARS if allowed.intersection(types)), "CLASS")


def _is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, UnionType)


def _in_yaml(default: str) -> str:
    """A default as it is written in a config, a class by its short name."""
    if named := re.match(r"\{'class_path': '[\w.]*?(\w+)'", default):
        return named[1]
    return {"True": "true", "False": "false", "()": "[]"}.get(default, default)


class LotteryParser(LightningArgumentParser):
    """Raises `SettingError` where others print pages of usage; takes no abbreviations, which hide mistakes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, "formatter_class": Help, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Refuse the command line."""
        if not self.exit_on_error:  # the parser of a class's arguments: whoever asked it knows the setting's name
            super().error(message, ex)
        commands = self._subcommands_action
        parser = next(iter(commands.choices.values())) if commands else self
        raise SettingError(Complaint(message, parser).in_plain_words()) from ex

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Namespace:
        """Read the text of a config, which may be an earlier version's."""
        return super().parse_string(named_as_today(content), *args, **kwargs)

    def parse_path(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Namespace:
        """Read a config file; errors in it say which file."""
        try:
            return super().parse_path(path, *args, **kwargs)
        except SettingError as error:
            raise SettingError(f"{path}: {error}") from error
        except UnicodeDecodeError as error:
            raise SettingError(f"{path} is no text file; --config takes a YAML file.") from error


@dataclass(frozen=True)
class Complaint:
    """What jsonargparse says, and the parser that has the settings it speaks of."""

    text: str
    parser: argparse.ArgumentParser

    def in_plain_words(self) -> str:
        """One explanation, by the first of `_EXPLANATIONS` that recognises the text."""
        return next((words for explain in _EXPLANATIONS if (words := explain(self))), " ".join(self.text.split()))

    def find(self, pattern: str) -> str | None:
        """The first group of the first match."""
        match = re.search(pattern, self.text, re.DOTALL)
        return match[1].strip() if match else None

    @cached_property
    def setting(self) -> str:
        """The setting's whole name: `model.net`, and `model.net.hidden` if a class's own parser complains."""
        return ".".join(dict.fromkeys(re.findall(r'Parser key "([\w.]+)"', self.text)))

    @cached_property
    def value(self) -> str | None:
        """What was given; the innermost, where a list or a class holds it."""
        return self.find(r"(?:Got|Given) value: (.*?)(?:\. Got value: |\n|$)")

    @cached_property
    def class_path(self) -> str:
        """The class whose arguments are wrong."""
        return self.find(r"class_path '([\w.]+)'") or self.find(r"class_path='([\w.]+)'") or ""


def _missing(complaint: Complaint) -> str | None:
    names = complaint.find(r"arguments are required: ([\w., ]+)")
    if names is None:
        return None
    if complaint.setting:
        options = " and ".join(f"--{complaint.setting}.{name}" for name in names.split(", "))
        return f"{complaint.setting}: {complaint.class_path.rpartition('.')[2]} needs {names}; add {options}."
    settings = {name.partition(".")[2]: name for name in names.split(", ")}
    meanings = [f"    --{a.dest}  {a.help}" for a in complaint.parser._actions if a.dest in settings]
    return "\n".join(
        [
            f"missing: {' and '.join(settings)}. A config has them all, e.g. --config configs/quickstart.yaml; or give",
            *meanings,
        ]
    )


def _unknown_argument(complaint: Complaint) -> str | None:
    given = complaint.find(r"Option '([\w.]+)' is not accepted")
    made = locate(complaint.class_path)
    if given is None or not callable(made):
        return None
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    arguments = [p.name for p in inspect.signature(made).parameters.values() if p.kind in named]
    known = [name for name in arguments if name not in ("params", "optimizer")]  # those are filled in
    return str(unknown_name(f"{complaint.setting} ({complaint.class_path})", given, known))


def _unknown_class(complaint: Complaint) -> str | None:
    given = complaint.find(r"Expected a dot import path string: (\S+)")
    classes = _classes_for(complaint.setting)
    if given is None or not classes:
        return None
    return f"{unknown_name(complaint.setting, given, classes)} Or give the import path of a class of your own."


def _ambiguous(complaint: Complaint) -> str | None:
    paths = complaint.find(r"Multiple subclasses with name \w+\..+?ambiguity: ([\w., ]+)\.")
    if paths is None or complaint.class_path:  # then another class of that name has been tried, and has its own fault
        return None
    return f"{complaint.setting}: {complaint.value} is the name of several classes; give one's import path: {paths}."


def _not_importable(complaint: Complaint) -> str | None:
    why = complaint.find(r"class_path '[^']+':\s+(?!Parser key|\s)(.+?)(?:\n|$)")
    why = why or complaint.find(r"callable class: (?!Parser key)(.+?)\. Got value")
    return f"{complaint.setting}: {complaint.class_path or complaint.value}: {why}." if why else None


def _wrong_class(complaint: Complaint) -> str | None:
    bases = re.findall(r"not correspond to a subclass of (\w+)", complaint.text)
    given = complaint.value or complaint.find(r"Import path (\S+) does not")
    return f"{complaint.setting}: {given} is no {bases[-1]}." if bases else None


def _wrong_type(complaint: Complaint) -> str | None:
    expected = re.findall(r"Expected an? (?:<class '([\w.]+)'>|typing\.Literal\[(.+?)\])", complaint.text)
    value = complaint.find(r"NestedArg\(key='\w+', val='?(.+?)'?\)") if "NestedArg" in complaint.text else None
    value = value or complaint.value
    if not expected or value is None:
        return None
    choices = [choice.strip("'") for _, literal in expected if literal for choice in literal.split(", ")]
    if choices:
        return str(unknown_name(complaint.setting, value, set(choices)))
    types = [TYPES.get(name) or _example(name, value) for name, _ in expected]
    return f"{complaint.setting}: {value!r} is not possible; give {' or '.join(dict.fromkeys(types))}."


def _example(type_name: str, value: str) -> str:
    short = type_name.rpartition(".")[2]
    return f"a list such as [{value}]" if short in ("list", "Sequence", "Iterable") else f"a {short}"


def _config_file(complaint: Complaint) -> str | None:
    given = complaint.find(r"Parser key \"config\": (?:File does not exist|Path is not a file): '(.+)'")
    if given is None:
        return None
    wanted = Path(os.path.relpath(given))
    files = sorted(wanted.parent.glob("*.yaml")) or sorted(Path("configs").glob("*.yaml"))
    nearest = max(files, key=lambda file: likeness(wanted.stem, file.stem), default=None)
    hint = f" Did you mean {nearest}?" if nearest and likeness(wanted.stem, nearest.stem) >= 0.5 else ""
    return (
        f"config: there is no file {wanted}; there is {', '.join(map(str, files)) or 'none in configs/ either'}.{hint}"
    )


def _no_settings(complaint: Complaint) -> str | None:
    if (reason := complaint.find(r"Problems parsing config: (.+)")) is not None:
        where = reason.replace('in "<unicode string>",', "at")
        return f"no YAML: {' '.join(where.split())}."
    if "Unexpected config" in complaint.text:
        return "no settings in it; a config file reads like\n    lottery:\n      rounds: 10"
    given = complaint.find(r"Unable to load config '(.+?)'")
    if given is None:
        return None
    return (
        f"{complaint.setting}: {given!r} is no config file; set one of its settings, --{complaint.setting}.NAME VALUE."
    )


def _unknown_setting(complaint: Complaint) -> str | None:
    given = complaint.find(r"unrecognized arguments: ([^\s=]+)")
    if given is not None and not given.startswith("-"):
        return f"{given}: of which setting? Settings are written --name value."
    given = given or complaint.find(r"not accept option '([\w.]+)'")
    if given is None:
        return None
    name = given.lstrip("-")
    settings = {action.dest for action in complaint.parser._actions if action.option_strings}
    nearest = max(settings.union(WELL_KNOWN), key=lambda setting: _closeness(name, setting))
    hint = f" Did you mean {given.removesuffix(name)}{nearest}?" if _closeness(name, nearest) >= 1 else ""
    return f"there is no setting {given}.{hint} `python train.py fit --help` lists them all."


def _closeness(given: str, setting: str) -> float:
    """Up to 2: a setting under another parent (`lottery.scope`) is as near as one that is mistyped."""
    return likeness(given, setting) + likeness(given.rpartition(".")[2], setting.rpartition(".")[2])


_EXPLANATIONS: tuple[Callable[[Complaint], str | None], ...] = (
    _missing,
    _unknown_argument,
    _unknown_class,
    _ambiguous,
    _not_importable,
    _wrong_class,
    _config_file,
    _wrong_type,
    _no_settings,
    _unknown_setting,
)


def _classes_for(setting: str) -> list[str]:
    """Short names of the classes that a setting can name."""
    base = BASES.get(setting)
    return sorted({cls.__name__ for cls in _below(base) if not cls.__name__.startswith("_")}) if base else []


def _below(base: type) -> Iterable[type]:
    cls: type
    for cls in base.__subclasses__():
        yield cls
        yield from _below(cls)
