"""Ray: started on this machine for one sweep, or a cluster that runs already."""

import logging
import math
import os
import sys
import threading
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from types import TracebackType
from typing import Any

from lth_lightning.errors import SettingError
from lth_lightning.sweeps.worker import Worker

MEMORY = 2**30
"""Bytes that a worker is reckoned with: PyTorch, Lightning, a small network and its data."""
STORE = 100 * 2**20  # bytes of Ray's shared memory, which a sweep has no use for; Ray wants 75 MiB
CALM = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent to anybody
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run`, Ray would copy the working directory to each worker
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # workers hide GPUs by themselves; Ray would warn
    "RAY_worker_niceness": "0",  # at Ray's 15, whatever else runs would come before the trainings
}


def imported_ray() -> Any:
    """Import Ray.

    Raises:
        SettingError: it is not installed.
    """
    for name, value in CALM.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ModuleNotFoundError as error:
        raise SettingError(
            "sweep needs the package ray, which is not installed: pip install 'lth_lightning[sweep]'"
        ) from error
    return ray


class Cluster:
    """Ray, joined or started; on leaving, all that was started ends.

    Args:
        address: `auto`, `host:port` or `ray://host:port` of a cluster; None for RAY_ADDRESS, else this machine alone.

    Raises:
        SettingError: Ray is not installed, or no cluster can be reached at the address.
    """

    def __init__(self, address: str | None) -> None:
        self.ray = imported_ray()
        self._address = address or os.environ.get("RAY_ADDRESS") or "local"
        self._is_ours = not self.ray.is_initialized()
        self._hired: list[Any] = []
        self._calm = redirect_stdout(_WithoutRay(sys.stdout))

    def __enter__(self) -> "Cluster":
        if self._is_ours:
            own = {"include_dashboard": False, "object_store_memory": STORE} if self._address == "local" else {}
            try:
                self.ray.init(self._address, log_to_driver=False, logging_level=logging.CRITICAL, **own)
            except (ConnectionError, ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split())
                raise SettingError(
                    f"--address: cannot use the Ray cluster at {self._address}: {reason[:300]}"
                ) from error
        self._calm.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_ours:
            self.ray.shutdown()
        else:
            for worker in self._hired:
                self.ray.kill(worker)
        self._calm.__exit__(kind, error, trace)

    def nodes(self) -> list[dict[str, float]]:
        """The resources of each machine that is up."""
        return [dict(node["Resources"]) for node in self.ray.nodes() if node["Alive"]]

    def hire(self, cpus: float, gpus: float, program: str) -> Any:
        """Start a worker where there is room for it."""
        options = {"num_cpus": cpus, "num_gpus": gpus, "memory": MEMORY, "max_restarts": 0}
        actor = self.ray.remote(Worker).options(**options)
        self._hired.append(actor.remote(os.getcwd(), program, max(1, int(cpus)), gpus > 0))
        return self._hired[-1]


class _WithoutRay:
    """Standard output without what Ray's own threads print of dead workers, which `log_to_driver` does not stop."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, unless a thread of Ray does."""
        is_rays = threading.current_thread().name.startswith("ray_")
        return len(text) if is_rays else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def places(nodes: Iterable[Mapping[str, float]], cpus: float, gpus: float) -> int:
    """How many trainings fit side by side.

    Args:
        nodes: the resources of each machine, as Ray names them: CPU, GPU, memory in bytes.
        cpus, gpus: what a training takes.

    >>> places([{"CPU": 8, "GPU": 1, "memory": 64 * 2**30}, {"CPU": 2, "memory": 2**30}], cpus=1, gpus=0)
    9
    >>> places([{"CPU": 8, "GPU": 1, "memory": 64 * 2**30}, {"CPU": 2, "memory": 2**30}], cpus=1, gpus=0.25)
    4
    """
    wanted = {"CPU": cpus, "GPU": gpus, "memory": float(MEMORY)}
    return sum(
        min(math.floor(node.get(name, 0.0) / amount + 1e-9) for name, amount in wanted.items() if amount)
        for node in nodes
    )


def check_room(nodes: list[dict[str, float]], cpus: float, gpus: float) -> None:
    """Refuse a training that no machine has room for.

    Raises:
        SettingError: there is none.
    """
    for flag, name, wanted in (("--cpus", "CPU", cpus), ("--gpus", "GPU", gpus)):
        most = max((node.get(name, 0.0) for node in nodes), default=0.0)
        if wanted > most:
            raise SettingError(f"{flag}: a training is to take {wanted:g}, but no machine has more than {most:g}.")
