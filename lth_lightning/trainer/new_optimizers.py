"""New optimizers and schedules for each network, as if it had its own fit."""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from types import MethodType
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from lth_lightning.errors import SettingError
from lth_lightning.seeding import preserved_generators
from lth_lightning.trainer import fast_step
from lth_lightning.trainer.contents import Contents, attributes, changed, contents, is_torchs_own

# What torch itself attaches to optimizers: hooks, profiler names, flags for its warnings.
TORCHS_NOTES = (
    *("_optimizer_", "_opt_called", "_warned_", "_zero_grad_profile_name", "_patch_step", "_cuda_graph_"),
    *("_accelerator_graph_", "_step_count", "_is_initial", "_get_lr_called_within_step"),
)


class NewOptimizers:
    """Gives each network new optimizers and schedules.

    torch's own optimizers keep all their state in their `state_dict`, so loading the initial one makes them new.
    Others may keep weights or counters anywhere (Lookahead's slow weights, float32 masters, averages, a wrapped
    optimizer), which belong to the weights that they were created with. They are recreated by
    `configure_optimizers` if it returns new objects. If it returns the same objects, as the command line's own does,
    then after loading their initial `state_dict` every attribute must be as it was at the start.

    Args:
        trainer: the Trainer in `on_fit_start`, where optimizers are new even in a resumed fit, or at the first epoch.
        start: the `start` of the fit that is resumed.

    Raises:
        SettingError: an object that is not a `torch.optim.Optimizer` steps weights.
    """

    def __init__(self, trainer: L.Trainer, start: dict[str, Any] | None = None) -> None:
        self._trainer = trainer
        for optimizer in trainer.optimizers:
            _complete(optimizer)
        if start is not None:
            for one, state in zip(trainer.optimizers, start["optimizers"], strict=True):
                one.load_state_dict(copy.deepcopy(state))
            for config, state in zip(trainer.lr_scheduler_configs, start["schedules"], strict=True):
                config.scheduler.load_state_dict(copy.deepcopy(state))
        self.configs = list(trainer.lr_scheduler_configs)
        self.states = [copy.deepcopy(optimizer.state_dict()) for optimizer in trainer.optimizers]
        self.schedules = [copy.deepcopy(config.scheduler.state_dict()) for config in self.configs]
        self._contents = self._look(trainer)
        self._torchs_own = all(is_torchs_own(one) for one in _nested(trainer.optimizers, trainer.lightning_module))
        self._steppers = _Steppers(trainer)

    @property
    def start(self) -> dict[str, Any]:
        """The states that every network starts with, as a checkpoint may hold them."""
        return {"optimizers": self.states, "schedules": self.schedules}

    def restore(self, trainer: L.Trainer) -> bool:
        """Make optimizers and schedules new; call it with the network's starting weights loaded and counters at 0.

        Returns:
            Whether they are new objects, so that hooks must be set again.

        Raises:
            SettingError: they can neither be recreated nor be reset.
        """
        if self._torchs_own:
            self._load(trainer)
            if not changed(self._contents, self._look(trainer)):
                return False
        before = [*trainer.optimizers, *(config.scheduler for config in self.configs)]
        self._make(trainer)
        after = [*trainer.optimizers, *(config.scheduler for config in trainer.lr_scheduler_configs)]
        if not any(one is other for one in before for other in after):
            self._refuse_kept(trainer, before)
            self.configs = list(trainer.lr_scheduler_configs)
            self._steppers.start_over()
            return True
        self._load(trainer)
        self._refuse_stale(trainer)
        return False

    def outside(self) -> Contents:
        """Return what non-torch optimizers keep outside their `state_dict`, which no checkpoint holds.

        A wrapped optimizer's state counts too, unless it is its wrapper's own: the wrapper's `state_dict` may not hold
        it (SAM).
        """
        return {} if self._torchs_own else self._look(self._trainer, _Notes(saved_by=self._trainer.optimizers))

    def release(self) -> None:
        """Remove the step hook."""
        self._steppers.handle.remove()

    def _load(self, trainer: L.Trainer) -> None:
        for optimizer, state in zip(trainer.optimizers, self.states, strict=True):
            optimizer.load_state_dict(copy.deepcopy(state))
        trainer.strategy.lr_scheduler_configs = list(self.configs)
        for config, state in zip(self.configs, self.schedules, strict=True):
            config.scheduler.load_state_dict(copy.deepcopy(state))

    def _make(self, trainer: L.Trainer) -> None:
        strategy = trainer.strategy
        if getattr(strategy, "_model_averager", None) is not None:
            raise SettingError(
                f"trainer.strategy: {type(strategy).__name__} wraps the optimizers to average models, but "
                f"{_names(trainer.optimizers)} must be recreated for each network. Use an optimizer of torch.optim, or "
                "another communication hook."
            )
        with preserved_generators():
            strategy.setup_optimizers(trainer)
        strategy.setup_precision_plugin()
        _optimizers_to_device(strategy.optimizers, strategy.root_device)
        for optimizer in trainer.optimizers:
            _complete(optimizer)
        for optimizer, state in zip(trainer.optimizers, self.states, strict=False):
            for group, at_start in zip(optimizer.param_groups, state["param_groups"], strict=False):
                set_settings(group, settings_of(at_start))  # `on_train_start` may have changed them
        fast_step.leave_out_capture_checks(trainer)

    def _refuse_stale(self, trainer: L.Trainer) -> None:
        """Refuse optimizers that cannot be recreated and are not as they were at the start."""
        holds_weights = [
            path for path, words in self._look(trainer, _Notes(saved=False)).items() if words[:6] == "tensor"
        ]
        stale = changed(self._contents, self._look(trainer)) or (holds_weights if not self._torchs_own else [])
        if stale:
            raise SettingError(
                f"configure_optimizers: {_names(trainer.optimizers)} keeps {_listed(stale)} from network to network, "
                "outside its state_dict, and configure_optimizers returns the same object each time, so the last "
                "network would affect the next. Create new optimizers and schedules at each call of "
                "configure_optimizers; with the command line, in your own LightningModule."
            )

    def _refuse_kept(self, trainer: L.Trainer, old: list[Any]) -> None:
        """Refuse a module that stores an optimizer: it would still use the last network's."""
        for name, module in trainer.lightning_module.named_modules():
            for attribute, value in vars(module).items():
                values = value if isinstance(value, list | tuple) else [value]
                inner = [one._optimizer if isinstance(one, LightningOptimizer) else one for one in values]
                if any(one is other for one in inner for other in old):
                    raise SettingError(
                        f"{type(module).__name__}: {name + '.' if name else ''}{attribute} keeps an optimizer or "
                        f"schedule, but {_names(trainer.optimizers)} is recreated for each network. Call "
                        "self.optimizers() or self.lr_schedulers() where it is needed."
                    )

    def _look(self, trainer: L.Trainer, leave_out: "_Notes | None" = None) -> Contents:
        things: dict[str, Any] = {f"optimizer {i}": optimizer for i, optimizer in enumerate(trainer.optimizers)}
        if leave_out is None:
            things |= {f"schedule {i}": config.scheduler for i, config in enumerate(self.configs)}
        found = contents(things, _of_module(trainer.lightning_module), leave_out or _Notes())
        return {path.split(".", 1)[-1] if len(things) == 1 else path: words for path, words in found.items()}


class _Notes:
    """Decides which attributes of an optimizer or schedule to ignore.

    Args:
        saved: whether to follow every optimizer's `state` and `param_groups`.
        saved_by: optimizers of which these two are ignored, in whatever optimizer they are found.
    """

    def __init__(self, saved: bool = True, saved_by: Iterable[Optimizer] = ()) -> None:
        self._saved = saved
        # Objects, not their `id`s: a call of `configure_optimizers` in between would reuse those.
        self._held = [held for optimizer in saved_by for held in (optimizer.state, optimizer.param_groups)]

    def __call__(self, owner: Any, name: str) -> bool:
        if isinstance(owner, LRScheduler):
            return name == "optimizer" or name.startswith(TORCHS_NOTES)
        if not isinstance(owner, Optimizer):
            return False
        if name == "defaults":
            return True
        if name in ("state", "param_groups"):
            return not self._saved or any(getattr(owner, name) is held for held in self._held)
        if name == "step":
            return hasattr(getattr(owner, name), "_wrapped_by_lr_sched")
        return name.startswith(TORCHS_NOTES) or (is_torchs_own(owner) and name.startswith("_"))


class _Steppers:
    """Hooks into each step of every optimizer, and refuses unknown optimizers that step the module's weights."""

    def __init__(self, trainer: L.Trainer) -> None:
        self._trainer = trainer
        self.start_over()
        self.handle: RemovableHandle = register_optimizer_step_post_hook(self._hear)

    def start_over(self) -> None:
        self._known: dict[int, Optimizer] = {}

    def _hear(self, optimizer: Optimizer, *_: Any) -> None:
        if id(optimizer) in self._known:
            return
        module = self._trainer.lightning_module
        weights = {id(parameter) for parameter in module.parameters()}
        nested = _nested(self._trainer.optimizers, module)
        owned = any(id(parameter) in weights for group in optimizer.param_groups for parameter in group["params"])
        if owned and not any(optimizer is one for one in nested):
            raise SettingError(
                f"{type(module).__name__}: {type(optimizer).__name__} steps its weights, but configure_optimizers does "
                "not return it, so it is not reset for each network and no checkpoint holds it. Return it from "
                "configure_optimizers. An optimizer that steps during the backward pass cannot be used."
            )
        self._known[id(optimizer)] = optimizer


def _complete(optimizer: Any) -> None:
    """Give an optimizer that never called `Optimizer.__init__` the attributes that torch's step hooks need.

    Raises:
        SettingError: it is not a `torch.optim.Optimizer`.
    """
    if not isinstance(optimizer, Optimizer):
        raise SettingError(
            f"configure_optimizers: {type(optimizer).__name__} is not a torch.optim.Optimizer, so its steps cannot be "
            "hooked and pruned weights could come back. Derive it from torch.optim.Optimizer."
        )
    if "_optimizer_step_post_hooks" not in vars(optimizer):
        optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks = OrderedDict(), OrderedDict()
    if not getattr(optimizer.step, "hooked", False):
        step = optimizer.step

        def stepped(_: Optimizer, *args: Any, **more: Any) -> Any:
            return step(*args, **more)

        # Only on this instance: others of its class, used elsewhere, lack the hook attributes.
        hooked = Optimizer.profile_hook_step(stepped)
        hooked.hooked = True
        optimizer.step = MethodType(hooked, optimizer)  # type: ignore[method-assign]


def settings_of(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of an optimizer's group: everything but its parameters."""
    return {name: value for name, value in group.items() if name != "params"}


def set_settings(group: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """Set the settings of a group; tensors are written in place, as a captured graph reads that very tensor."""
    for name, value in settings.items():
        if isinstance(group.get(name), torch.Tensor):
            group[name].copy_(torch.as_tensor(value))
        else:
            group[name] = copy.deepcopy(value)


def _nested(optimizers: Iterable[Any], module: nn.Module) -> list[Optimizer]:
    """Return the optimizers and those that they wrap."""
    found: list[Optimizer] = []
    waiting = list(optimizers)
    while waiting:
        one = waiting.pop()
        if isinstance(one, Optimizer) and not any(one is other for other in found):
            found.append(one)
            for _, value in attributes(one):
                waiting += value if isinstance(value, list | tuple) else [value]
    return found


def _of_module(module: nn.Module) -> dict[int, Any]:
    things = [*module.modules(), *module.parameters(), *module.buffers()]
    return {id(thing): thing for thing in things}


def _names(optimizers: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(type(optimizer).__name__ for optimizer in optimizers))


def _listed(paths: list[str]) -> str:
    return ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
