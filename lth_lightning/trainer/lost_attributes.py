"""Names the attributes of a module that a checkpoint does not hold, so that a resumed fit lacks them."""

import hashlib
import logging
import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from lth_lightning.trainer.contents import changed, contents
from lth_lightning.trainer.module_state import attributes_of, metrics_of
from lth_lightning.trainer.watch import own_attributes

log = logging.getLogger(__name__)

COMPILERS = re.compile(r"(^|\.)(_torchdynamo|_compiled_call_impl)")  # what torch.compile attaches to modules


def fingerprints(module: nn.Module) -> dict[str, str]:
    """Return each attribute's value in words or as a hash: those that `Watch` compares, and those of metrics."""
    known = {id(thing): thing for thing in (*module.modules(), *module.parameters(), *module.buffers())}
    of_metrics: dict[str, Any] = {}
    for name, metric in metrics_of(module).items():
        of_metrics |= {name: type(metric).__qualname__}
        of_metrics |= {f"{name}.{attribute}": value for attribute, value in attributes_of(metric).items()}
    found = own_attributes(module) | contents(of_metrics, known, lambda owner, name: False)
    by_name: dict[str, list[tuple[str, str]]] = {}
    for path, words in found.items():
        if not COMPILERS.search(path):
            by_name.setdefault(re.split(r"[\[(]", path)[0], []).append((path, words))
    return {name: _brief(name, entries) for name, entries in by_name.items()}


def _brief(name: str, entries: list[tuple[str, str]]) -> str:
    if len(entries) == 1 and entries[0][0] == name and len(entries[0][1]) <= 40:
        return entries[0][1]
    return "#" + hashlib.sha256(repr(entries).encode()).hexdigest()[:16]


def warn(module: nn.Module, saved: Mapping[str, str]) -> None:
    """Warn of attributes that differ from what they were when the checkpoint was saved.

    Args:
        module: the resumed module.
        saved: its `fingerprints` in the checkpoint.
    """
    now = fingerprints(module)
    lost = [name + _values(saved.get(name), now.get(name)) for name in changed(dict(saved), now)]
    if lost:
        log.warning(
            "%s: the checkpoint does not hold %s%s. If a result depends on them, the resumed network's differs. Save "
            "them in the module's on_save_checkpoint and restore them in on_load_checkpoint, or register them as "
            "buffers.",
            type(module).__name__,
            ", ".join(lost[:5]),
            f" and {len(lost) - 5} more" if len(lost) > 5 else "",
        )


def _values(then: str | None, now: str | None) -> str:
    if any(words is not None and words[0] == "#" for words in (then, now)):
        return ""
    return f" (was {then or 'not set'}, is {now or 'not set'})"
