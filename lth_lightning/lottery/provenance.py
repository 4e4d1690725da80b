"""Provenance of results: the facts stored in a ticket, and the environment that a run was computed in."""

import functools
import json
import logging
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import nn

import lth_lightning
from lth_lightning.lottery.plan import Length
from lth_lightning.lottery.rewinding import Lineage
from lth_lightning.models.rebuild import recipes
from lth_lightning.runs.environment import Stretch, changes, read_environment, write_environment
from lth_lightning.runs.folder import RunFolder
from lth_lightning.runs.rows import Row
from lth_lightning.runs.score import Score
from lth_lightning.tickets.transfer import GivenTickets
from lth_lightning.trainer import processes

log = logging.getLogger(__name__)


# ------------------------------------------------------------------------ a ticket


def architecture(module: L.LightningModule) -> str:
    """Return the class name of the trained network."""
    return type(getattr(module, "net", module)).__name__


def data_name(trainer: L.Trainer) -> str:
    """Return the data set's name with its arguments, or else the DataModule's class name."""
    data = trainer.datamodule
    arguments = getattr(data, "dataset_args", None) or {}
    shown = ", ".join(f"{name}={value}" for name, value in arguments.items()) if isinstance(arguments, Mapping) else ""
    return str(getattr(data, "dataset", type(data).__name__)) + (f"({shown})" if shown else "")


def image_shape(trainer: L.Trainer, module: L.LightningModule) -> list[int] | None:
    """Return (channels, height, width) of an image if the module or the DataModule has an `input_shape`."""
    known = getattr(module, "input_shape", None) or getattr(trainer.datamodule, "input_shape", None)
    if not isinstance(known, Sequence) or len(known) != 3 or not all(isinstance(size, int) for size in known):
        return None
    return list(known)


def use_facts(trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
    """Return what is needed to use the trained network: how to build it, its images' normalisation, its class names.

    A DataModule of any kind may tell the last two, by attributes as those of `ImageDataModule`.
    """
    net = getattr(module, "net", None)
    normalisation = getattr(trainer.datamodule, "normalisation", None)
    names = getattr(trainer.datamodule, "class_names", None)
    named = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return {
        "network": [*recipes(module), *(recipes(net) if isinstance(net, nn.Module) else [])],
        "normalisation": normalisation if _is_normalisation(normalisation) else None,
        "classes": list(names) if named and names else None,
    }


def _is_normalisation(value: Any) -> bool:
    """Whether a foreign DataModule's attribute of this name is what tickets can record, and not something else."""
    try:
        numbers = [*value["mean"], *value["std"], value["low"], value["high"]]
        return all(isinstance(number, int | float) for number in numbers) and bool(json.dumps(value))
    except (TypeError, KeyError, ValueError, IndexError):
        return False


def ticket_info(
    trainer: L.Trainer,
    module: L.LightningModule,
    row: Row,
    lineage: Lineage,
    lengths: Mapping[str, Length],
    given: GivenTickets | None,
    score: Score | None,
) -> dict[str, Any]:
    """Return the facts stored in a ticket, without times or paths, so that equal runs give equal bytes.

    Args:
        trainer: the fit's Trainer.
        module: the trained module.
        row: the ticket's results.
        lineage: the ticket's lineage.
        lengths: `train_for` and `rewind_to`.
        given: the tickets from files, if the run trains such.
        score: the score that the run is judged by, if one is set.
    """
    return {
        "architecture": architecture(module),
        "data": data_name(trainer),
        "input_shape": image_shape(trainer, module),
        **use_facts(trainer, module),
        "round": row.round,
        "seed": lineage.seed,
        "data_order": lineage.order,
        **{name: str(length) for name, length in lengths.items()},
        "rewind_step": lineage.rewind_step,
        "transfer": given.transfer if given else None,
        "reinitialised": list(given.reinitialised) if given else [],
        "learning_rates": lineage.rates,
        "val_acc": row.val_acc,
        "test_acc": row.test_acc,
        **({name: score.value(row, name.partition("_")[0]) for name in score.columns[:2]} if score else {}),
    }


# ------------------------------------------------------------------------ a run


# Environment variables that select other kernels in the libraries that torch multiplies with.
SWITCHES = (
    "ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG", "MKL_CBWR", "MKL_DEBUG_CPU_TYPE", "MKL_ENABLE_INSTRUCTIONS",
    "NVIDIA_TF32_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE", "ONEDNN_MAX_CPU_ISA",
)  # fmt: skip


def note_environment(trainer: L.Trainer, folder: RunFolder, round: int, *, resumed: bool) -> None:
    """Record the environment that the run is computed in; a resumed run warns of changes.

    Call it in every process.

    Args:
        trainer: the fit's Trainer.
        folder: the run's folder.
        round: the round in training.
        resumed: whether the run is resumed, so that the file may exist already.

    Raises:
        SettingError: the file cannot be read.
        WriteError: the file cannot be written.
    """
    now = environment(trainer)
    if not trainer.is_global_zero:
        return
    unknown = Stretch(0, {})  # for a run that an older version began
    stretches = (read_environment(folder.environment) or [unknown]) if resumed else []
    last = stretches[-1] if stretches else unknown
    if last.facts and (changed := changes(last.facts, now)):
        log.warning("Resumed in another environment; from round %d on the last digits may differ: %s.", round, changed)
    if last.facts != now:
        write_environment(folder.environment, [*stretches, Stretch(round, now)])


def environment(trainer: L.Trainer) -> dict[str, str]:
    """Return what bits depend on besides settings and seed, in words; distinct values of processes are joined."""
    device = trainer.strategy.root_device
    own = {
        "threads": str(torch.get_num_threads()),
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "device": _gpu(device) if device.type == "cuda" else device.type,
        "system": " ".join([platform.system(), platform.machine(), *platform.libc_ver()]).strip(),
        "arithmetic": _arithmetic(device),
        "variables": ", ".join(f"{name}={os.environ[name]}" for name in SWITCHES if name in os.environ) or "none",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "lightning": L.__version__,
        "numpy": np.__version__,
        "lth_lightning": _version(),
    }
    everyones = processes.gathered(trainer, own)
    joined = {name: " and ".join(dict.fromkeys(facts[name] for facts in everyones)) for name in own}
    if trainer.world_size > 1:
        joined["threads"] += f" in each of {trainer.world_size} processes"
    return joined


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's model, by which MKL chooses its kernels, whatever instructions torch uses.

    Args:
        cpuinfo: Linux's file. Family and model are included, as a virtual machine may hide the name.
    """
    try:
        first, *_ = cpuinfo.read_text().strip().split("\n\n")
    except OSError:
        return platform.processor() or platform.machine()
    said = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    parts = [f"{name} {said[name]}" for name in ("cpu family", "model", "CPU implementer", "CPU part") if name in said]
    return ", ".join([said["model name"], *parts] if "model name" in said else parts) or platform.machine()


def _gpu(device: torch.device) -> str:
    return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"


def _arithmetic(device: torch.device) -> str:
    """Return torch's global switches that change its arithmetic, in words."""
    backends = torch.backends
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:  # it was set per backend and has no common name
        ours = (backends.cuda.matmul, backends.cudnn.conv) if device.type == "cuda" else (backends.mkldnn.matmul,)
        precision = "/".join(backend.fp32_precision for backend in ours)
    said = {
        "float32 products": precision,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "oneDNN": backends.mkldnn.enabled,
        "denormals": bool(torch.tensor([1e-40]) * 1),
    }
    if device.type == "cuda":
        said |= {"cuDNN benchmark": backends.cudnn.benchmark, "TF32 convolutions": backends.cudnn.conv.fp32_precision}
    return ", ".join(f"{name} {value}" for name, value in said.items())


@functools.cache
def _version() -> str:
    """Return this package's version and, in a git checkout, the last commit that changed it."""
    folder = Path(lth_lightning.__file__).parent

    def git(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, check=False)

    try:
        commit = git("log", "-1", "--format=%h", "--", ".").stdout.strip()
        changed = bool(commit) and git("diff", "--quiet", "HEAD", "--", ".").returncode == 1
    except OSError:  # git is not installed
        return lth_lightning.__version__
    return lth_lightning.__version__ + (f" at {commit}" if commit else "") + (" with changes" if changed else "")
