"""Refuses what cannot work with a lottery, before any training, and says what to do instead."""

import functools
import sys
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
)
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from torch import nn
from torch.nn.parameter import is_lazy

from lth_lightning.errors import SettingError
from lth_lightning.trainer.lengths import refuse_partial_rounds

SHARDED = (FSDPStrategy, DeepSpeedStrategy, ModelParallelStrategy)
WHOLE = (SingleDeviceStrategy, DDPStrategy)

CALLBACKS: dict[type[L.Callback], str] = {
    StochasticWeightAveraging: (
        "averages over the whole fit, across rounds, and overrides the schedule's learning rate. Use "
        "WeightAveraging or EMAWeightAveraging, which restart each round."
    ),
    BaseFinetuning: (
        "freezes weights and unfreezes them later, but the prunable weights are fixed when the fit starts. Freeze "
        "weights for the whole fit (requires_grad = False), or train all from the start, with a learning rate for "
        "each group."
    ),
    ModelPruning: (
        "puts its own masks on the weights that the lottery masks. Leave it out and set lottery.pruning instead."
    ),
    LearningRateFinder: (
        "trains inside this fit, before the first network. Find the rate first, with a Trainer without the lottery: "
        "Tuner(L.Trainer()).lr_find(module, datamodule=data); then fit."
    ),
    BatchSizeFinder: (
        "trains inside this fit, before the first network. Find the size first, with a Trainer without the lottery: "
        "Tuner(L.Trainer()).scale_batch_size(module, datamodule=data); then fit."
    ),
}
"""Lightning's callbacks that cannot work with a lottery, with the reason and the fix."""

PACKAGES = {"lightning.pytorch": "lightning", "pytorch_lightning": "pytorch-lightning"}
"""The two packages of the same code: import name to install name."""


def refuse_what_cannot_work(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Refuse lengths, strategies and callbacks that cannot work with a lottery, and objects of another Lightning.

    Raises:
        SettingError: one of these is used.
    """
    refuse_partial_rounds(trainer)
    _refuse_other_package(trainer, module)
    _refuse_inference_mode(module)
    if trainer.max_steps != -1 or trainer.max_epochs not in (-1, None, 1000):  # 1000 is Lightning's own default
        raise SettingError(
            f"trainer.max_epochs is {trainer.max_epochs} and trainer.max_steps {trainer.max_steps}, but the lottery "
            "itself ends the fit, after its rounds. Leave both at -1 and set lottery.train_for."
        )
    strategy = type(trainer.strategy).__name__
    if isinstance(trainer.strategy, SHARDED):
        raise SettingError(
            f"trainer.strategy: {strategy} shards parameters, so no process holds the whole "
            "weights that masks and rewind points are made of. Use ddp."
        )
    if not isinstance(trainer.strategy, WHOLE):
        raise SettingError(
            f"trainer.strategy: {strategy} is not known to keep whole and equal weights on every process. Use a single "
            "device, or ddp."
        )
    _refuse_shared_memory(trainer, module)
    for callback in trainer.callbacks:
        for kind, why in CALLBACKS.items():
            if isinstance(callback, kind):
                raise SettingError(f"trainer.callbacks: {type(callback).__name__} {why}")


def refuse_to_share(trainer: L.Trainer, checkpoint: Path, networks: int, *, controls: bool) -> None:
    """Refuse a ModelCheckpoint that would overwrite the lottery's own file, or one network's files with another's, or
    whose last checkpoint would not be a ticket's.

    Raises:
        SettingError: such a ModelCheckpoint is used.
    """
    for callback in trainer.checkpoint_callbacks:
        is_remote = isinstance(callback, ModelCheckpoint) and "://" in str(callback.dirpath)
        if controls and is_remote and callback.save_last:  # `CallbackStates.give_back` cannot touch its files
            raise SettingError(
                f"trainer.callbacks: ModelCheckpoint(save_last=True) writes to {callback.dirpath}, where "
                'ckpt_path="last" would be that of a control, not of the last ticket. Give it a dirpath on this '
                "machine, or save_last=False."
            )
        if not isinstance(callback, ModelCheckpoint) or callback._enable_version_counter or callback.dirpath is None:
            continue
        names = {callback.CHECKPOINT_NAME_LAST if callback.save_last else None, callback.filename}
        if checkpoint.stem in names and Path(callback.dirpath).resolve() == checkpoint.parent.resolve():
            raise SettingError(
                f"trainer.callbacks: ModelCheckpoint would overwrite {checkpoint}, which the lottery resumes from. "
                "Give it its own dirpath."
            )
        if networks > 1 and (callback.save_top_k != 0 or callback.save_last):
            raise SettingError(
                "trainer.callbacks: ModelCheckpoint(enable_version_counter=False) would overwrite one network's files "
                "with the next one's. Leave it at True; then the files of later networks end in -v1, -v2, …"
            )


def _refuse_shared_memory(trainer: L.Trainer, module: nn.Module) -> None:
    """Refuse weights in shared memory: Lightning copies them for spawned processes, but not for a fork server's."""
    if trainer.world_size == 1 or trainer.strategy.root_device.type != "cpu":
        return
    if shared := [name for name, weight in module.named_parameters() if weight.is_shared()]:
        raise SettingError(
            f"trainer.strategy: {shared[0]} is in memory shared by the {trainer.world_size} processes, so every step "
            "would be applied by each of them. Use ddp, ddp_spawn or ddp_fork, and no share_memory()."
        )


def _refuse_inference_mode(module: nn.Module) -> None:
    if torch.is_inference_mode_enabled():
        raise SettingError(
            "Trainer.fit is called inside torch.inference_mode(), where nothing can be trained. Call it outside."
        )
    tensors = module.state_dict(keep_vars=True).items()
    if made := [name for name, tensor in tensors if not is_lazy(tensor) and tensor.is_inference()]:
        raise SettingError(
            f"{type(module).__name__}: {made[0]} was created inside torch.inference_mode() and cannot be trained. "
            "Create the module outside."
        )


# ------------------------------------------------------------------------ lightning and pytorch-lightning


def name_mixed_packages() -> None:
    """Make Trainers report which object is from the other package.

    Without this they fail before any callback is called, with "Expected a parent", as they do not recognise the object.
    Their own check looks at the object's class, but not at its base classes. Call it after a user's script has
    imported what it needs.
    """
    for package in PACKAGES:
        for place in ("model_helpers", "compile"):
            if (module := sys.modules.get(f"{package}.utilities.{place}")) is not None:
                module._check_mixed_imports = functools.partial(_check_package, package)


def _refuse_other_package(trainer: L.Trainer, module: L.LightningModule) -> None:
    data = trainer.fit_loop._data_source.instance
    parts = [module, data, trainer.datamodule, *trainer.callbacks, *trainer.loggers, trainer.profiler]
    package = next((name for name in PACKAGES if _is_of(name, trainer)), "lightning.pytorch")
    for part in parts:
        _check_package(package, part)


def _check_package(package: str, part: object) -> None:
    """Refuse an object that is not from the Trainer's package."""
    for other in PACKAGES.keys() - {package}:
        if _is_of(other, part):
            raise SettingError(
                f"{type(part).__name__} is from the package `{PACKAGES[other]}`, but its Trainer is from "
                f"`{PACKAGES[package]}`: the same code with different, incompatible classes. Import everything from "
                "`lightning.pytorch` and nothing from `pytorch_lightning`."
            )


def _is_of(package: str, part: object) -> bool:
    return any(f"{base.__module__}.".startswith(f"{package}.") for base in type(part).__mro__)
