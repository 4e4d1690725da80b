"""Several processes in one fit: what they exchange, what they must agree on, and how they end together."""

import gc
import io
import os
import signal
import threading
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Protocol
from weakref import WeakValueDictionary

import lightning as L
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher

from lth_lightning.errors import SettingError
from lth_lightning.pruning.network_function import Batch
from lth_lightning.pruning.state import fingerprint
from lth_lightning.trainer.fit import train_loaders


def gathered(trainer: L.Trainer, value: Any) -> list[Any]:
    """Gather each process's `value`, any object that can be pickled, in the order of ranks."""
    values: list[Any] = [value]
    if trainer.world_size > 1:
        values = [None] * trainer.world_size
        torch.distributed.all_gather_object(values, value)
    return values


def joined(trainer: L.Trainer, batches: list[Any]) -> list[Batch]:
    """Concatenate each batch (inputs, targets) over all processes, in the order of ranks; all get the same result.

    Raises:
        SettingError: a batch is not a pair of tensors.
    """
    everyones = [batch for theirs in gathered(trainer, move_data_to_device(batches, "cpu")) for batch in theirs]
    for batch in everyones:
        parts = [type(part).__name__ for part in batch] if isinstance(batch, list | tuple) else []
        if parts != ["Tensor", "Tensor"]:
            raise SettingError(
                "lottery.pruning.criterion: training batches must be two tensors (inputs, targets), got "
                f"{type(batch).__name__} of {', '.join(parts) or 'other objects'}. Choose another criterion."
            )
    device = trainer.strategy.root_device
    shares = [everyones[i :: len(batches)] for i in range(len(batches))]
    return [
        (torch.cat([inputs for inputs, _ in share]).to(device), torch.cat([targets for _, targets in share]).to(device))
        for share in shares
    ]


def agree(trainer: L.Trainer, fingerprint: str) -> bool:
    """Whether all processes have the same SHA-256; all get the same result, so that none waits for another."""
    digest = torch.frombuffer(bytearray.fromhex(fingerprint), dtype=torch.uint8).to(trainer.strategy.root_device)
    digests = trainer.strategy.all_gather(digest.to(torch.int64)).reshape(-1, len(digest))
    return bool((digests == digests[0]).all())


def compare(trainer: L.Trainer, network: str, **tensors: Mapping[str, torch.Tensor]) -> None:
    """Check that all processes start a network alike; a criterion, a `prunable` or a reset may draw differently.

    Raises:
        RuntimeError: they differ; the error says in what.
    """
    for what, ours in tensors.items():
        if trainer.world_size > 1 and not agree(trainer, fingerprint(ours)):
            raise RuntimeError(
                f"{network}: the processes start with different {what}. "
                "Criteria, `prunable` and resets must return the same on each process."
            )


def share_buffers(trainer: L.Trainer) -> None:
    """Copy the first process's buffers to all, as DDP synchronises running statistics only in the forward pass."""
    if trainer.world_size > 1:
        for buffer in trainer.lightning_module.buffers():
            torch.distributed.broadcast(buffer, src=0)


def mean_over_processes(trainer: L.Trainer, values: list[float | None]) -> list[float | None]:
    """Return the mean of each value over the processes that have it, as modules may log per-process values."""
    everyones = gathered(trainer, values)
    known = [[value for value in column if value is not None] for column in zip(*everyones, strict=True)]
    return [_mean(column) if column else None for column in known]


def _mean(values: list[float]) -> float:
    return values[0] if len(set(values)) == 1 else sum(values) / len(values)  # equal values give exactly that value


def end_on_sigterm(trainer: L.Trainer) -> None:
    """With several processes, make SIGTERM end this one and those it started at once; the checkpoint is on disk.

    Lightning 2.6 would broadcast in the signal handler, in the middle of other collectives, and hang. Call it in
    `on_train_start`, because Lightning sets its handler after `on_fit_start`.
    """
    if trainer.world_size == 1 or threading.current_thread() is not threading.main_thread():
        return

    def end(number: int, _: Any) -> None:
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.Signals(number))
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, end)  # until the fit ends, when Lightning restores the old handler


def wrap_again(trainer: L.Trainer) -> None:
    """Make DDP see the module's parameters in their present shapes, by which it lays out its buckets of gradients."""
    strategy = trainer.strategy
    if isinstance(strategy, DDPStrategy):
        strategy.model = trainer.lightning_module  # drops the old wrapper, whose hooks would see the new gradients
        gc.collect()
        strategy.model = strategy._setup_model(trainer.lightning_module)
        strategy._register_ddp_hooks()


def draws_of_rank(trainer: L.Trainer) -> list[int]:
    """Return [rank], to distinguish this process's draws (dropout) from process 0's, which equal a single process's.

    The list is empty for process 0, and if processes divide a custom sampler's draws, which must then be equal.
    """
    shared = any(
        isinstance(getattr(loader, "sampler", None), DistributedSamplerWrapper) for loader in train_loaders(trainer)
    )
    return [trainer.global_rank] if trainer.global_rank and not shared else []


# ------------------------------------------------------------------------ ddp_spawn, ddp_fork, ddp_notebook


class AtHome(Protocol):
    """An object in the process that called `fit`, while Lightning fits copies of it in other processes."""

    def receive(self, outcome: dict[str, Any]) -> None:
        """Take over the outcome of the fit."""


_at_home: WeakValueDictionary[str, AtHome] = WeakValueDictionary()


def await_home(one: AtHome) -> str:
    """Register an object and return its address, which its copies in other processes share."""
    address = uuid.uuid4().hex
    _at_home[address] = one
    return address


def bring_home(trainer: L.Trainer, address: str, outcome: Callable[[], dict[str, Any]]) -> None:
    """At the fit's end, send the outcome (numbers, text and tensors only) to the object registered at `address`.

    Lightning returns weights and metrics, but no callback results. No hook runs in that process; unpickling does.
    """
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _MultiProcessingLauncher):
        return
    lightnings = type(launcher).get_extra_results

    def extra(trainer: L.Trainer) -> dict[str, Any]:
        return {**lightnings(launcher, trainer), "lth_lightning": _Delivery(address, outcome())}

    launcher.get_extra_results = extra  # type: ignore[method-assign]


class _Delivery:
    """An outcome that is delivered when it is unpickled."""

    def __init__(self, address: str, outcome: dict[str, Any]) -> None:
        content = io.BytesIO()
        torch.save(outcome, content)
        self._parts = address, content.getvalue()

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str, bytes]]:
        return _deliver, self._parts


def _deliver(address: str, content: bytes) -> None:
    if (receiver := _at_home.get(address)) is not None:
        receiver.receive(torch.load(io.BytesIO(content), weights_only=True))
