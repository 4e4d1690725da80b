"""Where results come from: what a ticket says of itself, and what a run was computed on."""

import functools
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

import lth_lightning
from lth_lightning.lottery.plan import Length
from lth_lightning.lottery.rewinding import Lineage
from lth_lightning.runs.environment import Stretch, changes, read_environment, write_environment
from lth_lightning.runs.folder import RunFolder
from lth_lightning.runs.rows import Row
from lth_lightning.tickets.transfer import GivenTickets
from lth_lightning.trainer import processes

log = logging.getLogger(__name__)


# ------------------------------------------------------------------------ a ticket


def architecture(module: L.LightningModule) -> str:
    """The class of the network that is trained."""
    return type(getattr(module, "net", module)).__name__


def data_name(trainer: L.Trainer) -> str:
    """The data set's name, or else the class of the DataModule."""
    return str(getattr(trainer.datamodule, "dataset", type(trainer.datamodule).__name__))


def image_shape(trainer: L.Trainer, module: L.LightningModule) -> list[int] | None:
    """(channels, height, width) of an image, where module or DataModule say so by an `input_shape`."""
    known = getattr(module, "input_shape", None) or getattr(trainer.datamodule, "input_shape", None)
    if not isinstance(known, Sequence) or len(known) != 3 or not all(isinstance(size, int) for size in known):
        return None
    return list(known)


def ticket_info(
    trainer: L.Trainer,
    module: L.LightningModule,
    row: Row,
    lineage: Lineage,
    lengths: Mapping[str, Length],
    given: GivenTickets | None,
) -> dict[str, Any]:
    """What a ticket says of itself: nothing of time or place, so that equal runs give equal bytes.

    Args:
        trainer: of the fit.
        module: the module that is trained.
        row: what became of the ticket.
        lineage: of the ticket.
        lengths: `train_for` and `rewind_to`.
        given: the tickets from files that are trained, if any.
    """
    return {
        "architecture": architecture(module),
        "data": data_name(trainer),
        "input_shape": image_shape(trainer, module),
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
    }


# ------------------------------------------------------------------------ a run


# Variables that choose other kernels in the libraries that torch multiplies with.
SWITCHES = (
    "ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG", "MKL_CBWR", "MKL_DEBUG_CPU_TYPE", "MKL_ENABLE_INSTRUCTIONS",
    "NVIDIA_TF32_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE", "ONEDNN_MAX_CPU_ISA",
)  # fmt: skip


def note_environment(trainer: L.Trainer, folder: RunFolder, round: int, *, resumed: bool) -> None:
    """Write down what the run is computed on; a resumed one says what has changed, and goes on.

    Call it in every process.

    Args:
        trainer: of the fit.
        folder: the run's.
        round: the round in training.
        resumed: whether the run has begun before, so that the file is of its beginning.

    Raises:
        SettingError: the file cannot be read.
        WriteError: the file cannot be written.
    """
    now = environment(trainer)
    if not trainer.is_global_zero:
        return
    unknown = Stretch(0, {})  # what an older version began
    stretches = (read_environment(folder.environment) or [unknown]) if resumed else []
    last = stretches[-1] if stretches else unknown
    if last.facts and (changed := changes(last.facts, now)):
        log.warning("Resumed in another environment; from round %d on the last digits may differ: %s.", round, changed)
    if last.facts != now:
        write_environment(folder.environment, [*stretches, Stretch(round, now)])


def environment(trainer: L.Trainer) -> dict[str, str]:
    """All that bits depend on besides settings and seed, in words; of several processes each value once."""
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
    """The model of the processor: MKL chooses its kernels by it, and not by the instructions that torch uses.

    Args:
        cpuinfo: where Linux says it. A virtual machine may hide the name, so family and model belong to it.
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
    """torch's global switches that choose another arithmetic."""
    backends = torch.backends
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:  # it was set by backend, which has no name in common
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
    """This package's version, and where it lies in a git checkout, the last commit that changed it."""
    folder = Path(lth_lightning.__file__).parent

    def git(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, check=False)

    try:
        commit = git("log", "-1", "--format=%h", "--", ".").stdout.strip()
        changed = bool(commit) and git("diff", "--quiet", "HEAD", "--", ".").returncode == 1
    except OSError:  # there is no git
        return lth_lightning.__version__
    return lth_lightning.__version__ + (f" at {commit}" if commit else "") + (" with changes" if changed else "")
