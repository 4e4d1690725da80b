"""The command line before anything heavy is imported: the program's name, configs by bare name, `--fast_dev_run`, and
which of `model` and `data` name classes of the user's own."""

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lth_lightning
from lth_lightning.errors import SettingError, unknown_name

PARTS = ("model", "data")
_CONFIG_OPTIONS = ("--config", "-c")
_CONFIG_ENDINGS = (".yaml", ".yml", ".json")


def program() -> str:
    """How this program was started, for help and errors: `lth`, `python -m lth_lightning` or `python train.py`."""
    started = Path(sys.argv[0])
    if started.stem == "lth":
        return "lth"
    if started.name == "__main__.py" and started.parent.name == "lth_lightning":
        return "python -m lth_lightning"
    return f"python {started.name}" if started.suffix == ".py" and started.name != "__main__.py" else "python train.py"


def add_working_directory() -> None:
    """Let classes be named that are defined in the working directory, as `python -m` does, however this was started."""
    here = os.getcwd()
    if not {"", here} & set(sys.path):
        sys.path.insert(0, here)


# ------------------------------------------------------------------------------------- configs


def shipped_configs() -> dict[str, Path]:
    """The configs that come with this package, by their bare names: `quickstart`."""
    package = Path(lth_lightning.__file__).parent
    checkout = package.parent
    folder = checkout / "configs" if (checkout / "pyproject.toml").is_file() else package / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def completed(args: list[str]) -> list[str]:
    """Return the arguments with configs' bare names as paths, and `--fast_dev_run` as the Trainer's setting.

    Raises:
        SettingError: a config does not exist, or is not a YAML file of settings.
    """
    rest, done = list(args), []
    while rest:
        arg = rest.pop(0)
        name, is_joined, value = arg.partition("=")
        if name in _CONFIG_OPTIONS and (is_joined or rest):
            done += [name, _config_file(value if is_joined else rest.pop(0))]
        elif name == "--fast_dev_run":
            if not is_joined:
                value = rest.pop(0) if rest and re.fullmatch(r"(?i)true|false|\d+", rest[0]) else "true"
            done += ["--trainer.fast_dev_run", value]
        else:
            done.append(arg)
    return done


def _config_file(given: str) -> str:
    path, shipped = Path(given), shipped_configs()
    if "\n" in given or given.lstrip().startswith("{"):  # settings in place of a file
        return given
    if not path.exists() and given in shipped:
        return str(shipped[given])
    if not path.is_file():
        files = sorted(path.parent.glob("*.yaml")) or sorted(Path("configs").glob("*.yaml"))
        raise unknown_name("config", given, [*map(str, files), *shipped])
    _check(path)
    return given


def _check(config: Path) -> None:
    """Refuse a file that holds no settings now, not when Lightning has been imported."""
    import yaml  # here: `--help` needs none

    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"config: cannot read {config}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise SettingError(f"{config} is not a text file; --config takes a YAML file.") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).replace('in "<unicode string>",', "at").split())
        raise SettingError(f"{config}: not YAML: {reason}.") from error
    if not isinstance(settings, Mapping):
        raise SettingError(f"{config}: no settings in it; a config looks like\n    lottery:\n      rounds: 10")


# ------------------------------------------------------------------------------------- classes of the user's own


@dataclass(frozen=True)
class Named:
    """What a command line and its configs say of `model` or `data`.

    Args:
        mentioned: whether they say anything.
        class_path: the class that they name, if any; the last one counts.
    """

    mentioned: bool = False
    class_path: str | None = None


def named_parts(args: list[str]) -> dict[str, Named]:
    """Return what completed arguments say of each of `PARTS`.

    Files that cannot be read say nothing here: the parser reports them.
    """
    found = {part: Named() for part in PARTS}
    for i, arg in enumerate(args):
        name, is_joined, value = arg.partition("=")
        if not is_joined:
            value = args[i + 1] if i + 1 < len(args) else ""
        if name in _CONFIG_OPTIONS:
            settings = _read(value)
            for part in PARTS:
                if part in settings:
                    found[part] = _with(found[part], settings[part])
            continue
        part, _, setting = name.removeprefix("--").partition(".")
        if name.startswith("--") and part in PARTS:
            is_file = value.endswith(_CONFIG_ENDINGS)
            says = value if setting in ("", "class_path") and not is_file else _read(value) if is_file else None
            found[part] = _with(found[part], says)
    return found


def _with(known: Named, says: Any) -> Named:
    path = says.get("class_path") if isinstance(says, Mapping) else says
    is_path = isinstance(path, str) and re.fullmatch(r"[^\W\d]\w*(\.\w+)*", path) is not None
    return Named(True, path if is_path else known.class_path)


def _read(config: str) -> Mapping[str, Any]:
    import yaml

    try:
        text = Path(config).read_text(encoding="utf-8") if Path(config).is_file() else config
        settings = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return settings if isinstance(settings, Mapping) else {}
