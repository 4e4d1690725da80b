"""The import paths by which settings name our classes: `lth_lightning.Magnitude`, and its paths in earlier versions."""

import re

import lth_lightning

MOVED = {"datasets": "data.datasets", "tensorboard": "trainer.sub_runs"}
"""Modules of earlier versions whose names are not public, and where they are now."""
_PATH = re.compile(r"(?<![\w./-])lth_lightning(?:\.\w+)+(?![\w./-])")


def named_as_today(text: str) -> str:
    """Replace the paths of our classes and functions by today's, in YAML, JSON or an argument of the command line.

    A public name has one path, whichever module defines it now or did so before. So runs of earlier versions can be
    repeated, resumed and pooled, and classes can be compared without importing them.

    >>> named_as_today("{class_path: lth_lightning.saliency.SNIP}")
    '{class_path: lth_lightning.SNIP}'
    >>> named_as_today("lth_lightning.models.mlp.MLP"), named_as_today("lth_lightning.datasets.Digits")
    ('lth_lightning.models.MLP', 'lth_lightning.data.datasets.Digits')
    """
    return _PATH.sub(lambda found: _today(found[0]), text)


def _today(path: str) -> str:
    package, *modules, name = path.split(".")
    if name in lth_lightning.__all__:
        return f"{package}.{name}"
    if modules[:1] == ["models"] and name[:1].isupper():
        return f"{package}.models.{name}"
    return ".".join([package, MOVED.get(".".join(modules), ".".join(modules)), name]) if modules else path
