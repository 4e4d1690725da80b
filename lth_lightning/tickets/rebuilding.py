"""Builds the network that a ticket was found in, from the class and arguments that the ticket records."""

import typing
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from torch import nn

from lth_lightning.errors import TicketError
from lth_lightning.seeding import preserved_generators


def built(recipe: Mapping[str, Any]) -> nn.Module:
    """Build a module from `{"class_path": …, "init_args": {…}}`, without changing the global generators.

    A ticket may come from anywhere, so only classes of modules are called, and functions that are annotated to return
    one (as torchvision's are).

    Raises:
        TicketError: the class cannot be imported, is not a module's, or does not take the arguments.
    """
    path = str(recipe["class_path"])
    make = _maker(path)
    if make is None:
        raise TicketError(f"{path} is not an nn.Module, or cannot be imported here")
    try:
        with preserved_generators():
            module = make(**{name: _argument(value) for name, value in recipe["init_args"].items()})
            if callable(rest := getattr(module, "configure_model", None)):
                rest()  # as Lightning does before a fit
    except Exception as error:  # a constructor may fail in any way
        raise TicketError(f"{path} cannot be built: {type(error).__name__}: {error}") from error
    return module


def _argument(value: Any) -> Any:
    """Build an argument that is a module itself (a config names its class); return any other as it is."""
    if isinstance(value, list):
        return [_argument(one) for one in value]
    if isinstance(value, Mapping) and "class_path" in value and _maker(str(value["class_path"])) is not None:
        return built({"init_args": {}, **value})
    return value


def _maker(path: str) -> Callable[..., nn.Module] | None:
    """Import a module's class, or a function annotated to return a module; None for anything else."""
    package, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(package), name)
        made = found if isinstance(found, type) else typing.get_type_hints(found).get("return")
    except (ImportError, AttributeError, ValueError, TypeError, NameError):
        return None
    return found if isinstance(made, type) and issubclass(made, nn.Module) else None
