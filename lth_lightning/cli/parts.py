"""`model` and `data` of the command line: our classes, those given to `LotteryCLI`, or those that a config names."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from jsonargparse import Namespace

from lth_lightning.classifier import ImageClassifier
from lth_lightning.cli.arguments import Named
from lth_lightning.data.datamodule import ImageDataModule
from lth_lightning.errors import SettingError

OURS: dict[str, type] = {"model": ImageClassifier, "data": ImageDataModule}
BASES: dict[str, type] = {"model": L.LightningModule, "data": L.LightningDataModule}
OTHERWISE = {"model": ("network", "model.net"), "data": ("data set", "data.dataset")}
"""What a name may mean that is not a Lightning class, and the setting for it."""
Made = type | Callable[..., Any]


@dataclass(frozen=True)
class Part:
    """The class of `model` or `data`.

    Args:
        name: `model` or `data`.
        made_by: the class, or a function that returns an object.
        by_path: whether settings name the class (`class_path`, `init_args`) or are its arguments alone.
    """

    name: str
    made_by: Made
    by_path: bool

    @property
    def is_ours(self) -> bool:
        """Whether it is our class or derives from it."""
        return isinstance(self.made_by, type) and issubclass(self.made_by, OURS[self.name])

    @property
    def base(self) -> Made:
        """What the parser takes: the class itself, or whatever derives from Lightning's."""
        return BASES[self.name] if self.by_path else self.made_by

    def setting(self, argument: str) -> str:
        """The dotted name of an argument's setting."""
        return f"{self.name}.init_args.{argument}" if self.by_path else f"{self.name}.{argument}"

    def arguments(self, settings: Namespace) -> Namespace:
        """The arguments in a command's settings."""
        given = settings[self.name]
        return given.get("init_args", Namespace()) if self.by_path else given

    def placed(self, section: Any) -> Any:
        """A config's section for our class, as the section of this part; None if it does not apply.

        So `--config quickstart --data my.DataModule` replaces the data and keeps the rest.
        """
        if not self.by_path or not isinstance(section, dict) or {"class_path", "init_args"} & section.keys():
            return section
        return {"class_path": _path_of(self.made_by), "init_args": section} if self.is_ours else None


def _path_of(made_by: Made) -> str:
    return f"{made_by.__module__}.{made_by.__qualname__}"


def part(name: str, named: Named, given: Made | None) -> Part:
    """The part that a command line asks for.

    Args:
        name: `model` or `data`.
        named: what the command line and its configs say.
        given: the class that a program of the user's own passes to `LotteryCLI`.

    Raises:
        SettingError: the class cannot be imported, or is not Lightning's.
    """
    if named.class_path is not None:
        made_by = _imported(name, named.class_path)
        _check(name, made_by, named.class_path)
        return Part(name, made_by, by_path=True)
    if given is not None:
        _check(name, given, getattr(given, "__qualname__", repr(given)))
        return Part(name, given, by_path=False)
    return Part(name, OURS[name], by_path=False)


def _imported(name: str, path: str) -> Any:
    module, _, attribute = path.rpartition(".")
    if not module:
        return _loaded(name, path)
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise SettingError(
                f"{name}: {path} cannot be imported: {error}. A class of your own is found from the folder it lies in "
                f"(here: {Path.cwd()}); that of a package, once it is installed."
            ) from error
        raise SettingError(f"{name}: {path} needs a package that is not installed: {error}. Install it.") from error
    except AttributeError as error:
        raise SettingError(f"{name}: {path} does not exist: {error}.") from error


def _loaded(name: str, class_name: str) -> type:
    """A class by its name alone, if the program has already imported it."""
    found = [cls for cls in _below(BASES[name]) if cls.__name__ == class_name]
    if not found:
        kind, option = OTHERWISE[name]
        raise SettingError(
            f"{name}: {class_name!r} is not an import path such as my_project.My{name.capitalize()}. For a {kind} by "
            f"name, use --{option} {class_name}."
        )
    return found[0]


def _below(cls: type) -> Iterator[type]:
    derived: type
    for derived in cls.__subclasses__():
        yield derived
        yield from _below(derived)


def _check(name: str, made_by: Made, path: str) -> None:
    base = BASES[name]
    if not isinstance(made_by, type):
        if not callable(made_by):
            raise SettingError(f"{name}: {path} is not a class; give a {base.__name__}.")
        return
    if issubclass(made_by, base):
        return
    if any(cls.__module__.partition(".")[0] == "pytorch_lightning" for cls in made_by.__mro__):
        raise SettingError(
            f"{name}: {path} derives from a class of pytorch_lightning, which does not work with those of lightning. "
            f"Write `import lightning as L`, and derive from L.{base.__name__}."
        )
    kind, option = OTHERWISE[name]
    raise SettingError(
        f"{name}: {path} is not a {base.__name__}. For a {kind} in our {OURS[name].__name__}, use --{option} {path}."
    )
