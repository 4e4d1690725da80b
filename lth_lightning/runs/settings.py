"""Whether two runs, or a run and its resumption, have the same settings where these count.

A resumed run is compared with the settings in its checkpoint. Its config.yaml may have been edited since, and may be
the very file that the command names. Reports compare the config.yaml of several runs. This module does not import
Lightning, so that a report need not wait for it.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from itertools import chain
from typing import Any, NamedTuple

from lth_lightning.errors import SettingError
from lth_lightning.runs.class_paths import named_as_today

MAY_DIFFER: dict[str, tuple[str, ...]] = {
    "where the run and its data are stored": (
        "run_dir",
        "ckpt_path",
        "weights_only",
        "data.data_dir",
        "data.download",
        "trainer.default_root_dir",
        "trainer.model_registry",
    ),
    "compared by the callback instead, as images per step over all processes and as file content": (
        "data.batch_size",
        "lottery.tickets",
    ),
    "how often to save, how long to train": ("lottery.checkpoint_every_n_train_steps", "trainer.max_time"),
    "the hardware": (
        "trainer.accelerator",
        "trainer.strategy",
        "trainer.devices",
        "trainer.num_nodes",
        "trainer.benchmark",
        "trainer.inference_mode",
    ),
    "what is shown, logged or checked meanwhile": (
        "quiet",
        "trainer.logger",
        "trainer.log_every_n_steps",
        "trainer.enable_*",
        "trainer.profiler",
        "trainer.num_sanity_val_steps",
        "trainer.detect_anomaly",
    ),
}
ONLOOKERS = (
    "DeviceStatsMonitor",
    "LearningRateMonitor",
    "ModelCheckpoint",
    "ModelSummary",
    "ProgressBar",
    "RichModelSummary",
    "RichProgressBar",
    "TQDMProgressBar",
    "ThroughputMonitor",
    "Timer",
)
"""Lightning's callbacks that do not change training; nor do their subclasses. All others must be the same."""
OUR_ONLOOKERS = ("lth_lightning.LotteryBoard", "lth_lightning.LotteryProgress")


class Different(NamedTuple):
    """A setting that differs between two runs: its dotted name and both values."""

    name: str
    then: Any
    now: Any


def check_same(then: object, now: str) -> None:
    """Refuse to resume a run with other settings.

    Args:
        then: all settings that the run began with, as JSON; a foreign checkpoint may hold anything here.
        now: the settings of the command, as JSON.

    Raises:
        SettingError: settings that count differ (the error lists them with both values), or `then` holds none.
    """
    try:
        began_with = what_counts(json.loads(named_as_today(then)))  # type: ignore[arg-type]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise SettingError(
            "ckpt_path: the checkpoint does not record the settings that the run began with: it was written by another "
            "version of lth_lightning, or not by `train.py fit`. Start a new run."
        ) from error
    differ = [
        f"{name} was {shown(before)}, is {shown(after)}"
        for name, before, after in differences(began_with, what_counts(json.loads(named_as_today(now))))
    ]
    if differ:
        raise SettingError(
            f"ckpt_path: the run began with other settings: {'; '.join(differ)}. Restore them, or start a new run."
        )


def what_counts(
    settings: Mapping[str, Any], may_differ: Iterable[str] = tuple(chain(*MAY_DIFFER.values()))
) -> dict[str, Any]:
    """The settings that determine a run's results, in a form that can be compared.

    Args:
        settings: a run's settings, nested as in config.yaml.
        may_differ: patterns of the dotted names that do not count.
    """
    kept = _without(settings, list(may_differ))
    if trainer := kept.get("trainer"):
        given = trainer.get("callbacks") or []
        given = given if isinstance(given, list) else [given]
        paths = [callback["class_path"] if isinstance(callback, dict) else callback for callback in given]
        trainer["callbacks"] = [one for one, path in zip(given, paths, strict=True) if not _is_onlooker(str(path))]
    if rates := (kept.get("lottery", {}).get("pruning") or {}).get("rates"):
        kept["lottery"]["pruning"]["rates"] = json.dumps(rates)  # their order counts
    return kept


def _is_onlooker(path: str) -> bool:
    if path in OUR_ONLOOKERS:
        return True
    found = _loaded(path)
    names = [f"{base.__module__}.{base.__qualname__}" for base in found.__mro__] if found else [path]
    return any(n.startswith("lightning.pytorch.callbacks.") and n.rpartition(".")[2] in ONLOOKERS for n in names)


def _loaded(path: str) -> type | None:
    """The class of this name if its module is loaded. Nothing is imported: a checkpoint may name any module.

    Lazy attributes of modules are not looked up either: ours would import torch, and `named_as_today` covers them.
    """
    module, _, name = str(path).rpartition(".")
    found = vars(sys.modules.get(module, object)).get(name)
    return found if isinstance(found, type) else None


def _without(settings: Mapping[str, Any], patterns: Iterable[str], prefix: str = "") -> dict[str, Any]:
    return {
        name: _without(value, patterns, f"{prefix}{name}.") if isinstance(value, dict) else value
        for name, value in settings.items()
        if not any(fnmatch(prefix + name, pattern) for pattern in patterns)
    }


def differences(then: Any, now: Any, name: str = "") -> Iterator[Different]:
    """Yield each value that differs; null counts as missing, because older versions lack some settings."""
    if _class_of(then) == _class_of(now):
        if isinstance(then, dict) and isinstance(now, dict):
            for key in dict.fromkeys([*then, *now]):
                if key != "class_path":
                    yield from differences(then.get(key), now.get(key), f"{name}.{key}" if name else key)
            return
        if _class_of(then) is not None:  # a list of objects, e.g. callbacks
            for number, pair in enumerate(zip(then, now, strict=True)):
                yield from differences(*pair, f"{name}[{number}]")
            return
    if json.dumps(then) != json.dumps(now):  # 1 is neither true nor 1.0
        yield Different(name, then, now)


def _class_of(value: Any) -> Any:
    """The class of an object, or the classes of a list of objects; None for anything else."""
    if isinstance(value, list):
        named = [_class_of(item) for item in value]
        return named if named and None not in named else None
    path = value.get("class_path") if isinstance(value, dict) else None
    found = _loaded(path) if path and not str(path).startswith("lth_lightning.") else None  # ours have one path each
    return f"{found.__module__}.{found.__qualname__}" if found else path  # one class can have several paths


def shown(value: Any) -> str:
    """A setting's value as an error prints it: a class by its path."""
    named = _class_of(value)
    if named is None or not (isinstance(named, str) or all(isinstance(name, str) for name in named)):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return named if isinstance(named, str) else f"[{', '.join(named)}]"
