"""Saves and restores what a module is between two batches, beyond the weights that Lightning restores.

Lightning loads a checkpoint into the module before it converts the precision, and only into buffers of the same names
and shapes. So every parameter and buffer is saved here as it is (what Lightning saves too is stored once), with the
layers in evaluation mode, the frozen parameters and the metrics. Other attributes: see `lost_attributes`.
"""

from collections.abc import Mapping
from typing import Any

import lightning as L
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchmetrics import MeanMetric, Metric, MetricTracker

from lth_lightning.errors import SettingError
from lth_lightning.pruning.state import State, full_state, load_state, stable_name
from lth_lightning.pruning.survivors import whole

METRICS_OWN = {*vars(MeanMetric())}  # attributes that every metric has


def tolerate_changed_buffers(trainer: L.Trainer, module: nn.Module) -> RemovableHandle:
    """Let Lightning's strict loading of a lottery's checkpoint pass over buffers that training has changed.

    They keep the values that the module was built with, as at the start of an uninterrupted fit, until `restore`.

    Args:
        trainer: the Trainer in `setup`, before a resumed fit loads its checkpoint.
        module: the module to train.

    Returns:
        A handle that undoes this.

    Raises:
        SettingError: (in the loading) a buffer belongs to a layer that the module does not have.
    """

    def pass_over(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        callbacks = trainer._checkpoint_connector._loaded_checkpoint.get("callbacks", {}).values()
        for moments in [state["moment"] for state in callbacks if isinstance(state, dict) and state.get("moment")]:
            if "persistent" in moments[0]:  # older checkpoints have no such entry
                _pass_over(module, state_dict, prefix, moments[0]["persistent"])

    return module.register_load_state_dict_pre_hook(pass_over)


def _pass_over(module: nn.Module, state_dict: dict[str, Any], prefix: str, saved: State) -> None:
    own = {name: buffer for name, buffer in module.state_dict().items() if stable_name(name) in _buffers(module)}
    owners = _owners(module)
    for key in list(state_dict):
        name = key.removeprefix(prefix)
        if name not in own and stable_name(name) in saved:
            if (owner := _owner_name(stable_name(name))) not in owners:
                raise SettingError(
                    f"ckpt_path: the checkpoint holds {name}, but {type(module).__name__} has no {owner} before "
                    "training. Create it in __init__; if it is from another module, resume with the one that the run "
                    "began with."
                )
            del state_dict[key]
    for name, buffer in own.items():
        value = state_dict.get(prefix + name)
        if value is None or (value.shape, value.dtype) != (buffer.shape, buffer.dtype):
            state_dict[prefix + name] = buffer


def capture(trainer: L.Trainer) -> dict[str, Any]:
    """Return the state that all processes share: tensors by reference, and numbers and text."""
    module = trainer.lightning_module
    parameters = {stable_name(name): parameter for name, parameter in module.named_parameters()}
    unsaved = unsaved_buffers(module)
    return {
        "parameters": {name: whole(parameter) for name, parameter in parameters.items()},
        "persistent": {name: value.detach() for name, value in _buffers(module).items() if name not in unsaved},
        "evaluating": [stable_name(name) for name, part in module.named_modules() if not part.training],
        "frozen": [name for name, parameter in parameters.items() if not parameter.requires_grad],
    }


def capture_own(trainer: L.Trainer) -> dict[str, Any]:
    """Return the state that each process has for itself: non-persistent buffers and metrics."""
    module = trainer.lightning_module
    return {
        "buffers": {name: buffer.detach().cpu() for name, buffer in unsaved_buffers(module).items()},
        "metrics": {name: _metric_state(metric) for name, metric in metrics_of(module).items()},
        "trackers": {name: len(tracker) for name, tracker in _trackers(module).items()},
    }


def restore(module: nn.Module, shared: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Restore what `capture` and `capture_own` returned; an older checkpoint may lack some of it."""
    restore_tensors(module, shared, own)
    if "evaluating" in shared:
        evaluating, frozen = set(shared["evaluating"]), set(shared["frozen"])
        for name, part in module.named_modules():
            part.training = stable_name(name) not in evaluating
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(stable_name(name) not in frozen)
    for name, metric in metrics_of(module).items():
        if name in own["metrics"]:
            _restore_metric(metric, own["metrics"][name])


def restore_tensors(module: nn.Module, shared: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Restore only parameters and buffers, once the module's precision and device are set up."""
    for name, tracker in _trackers(module).items():
        while len(tracker) < own.get("trackers", {}).get(name, 0):
            tracker.increment()
    owners, there = _owners(module), _buffers(module)
    unsaved = {stable_name(name): buffer for name, buffer in own["buffers"].items()}
    for name in unsaved.keys() - there.keys():
        if (owner := owners.get(_owner_name(name))) is not None:
            owner.register_buffer(name.rpartition(".")[2], None, persistent=False)
    state = {**shared["parameters"], **shared["persistent"]} if "parameters" in shared else full_state(module)
    state |= unsaved
    load_state(module, {name: value for name, value in state.items() if _owner_name(name) in owners})


# ------------------------------------------------------------------------ parameters and buffers


def unsaved_buffers(module: nn.Module) -> State:
    """Return non-persistent buffers, which no `state_dict` holds."""
    saved = {stable_name(name) for name in module.state_dict()}
    return {name: buffer for name, buffer in _buffers(module).items() if name not in saved}


def _buffers(module: nn.Module) -> State:
    return {stable_name(name): buffer for name, buffer in module.named_buffers(remove_duplicate=False)}


def _owners(module: nn.Module) -> dict[str, nn.Module]:
    return {stable_name(name): part for name, part in module.named_modules()}


def _owner_name(name: str) -> str:
    return name.rpartition(".")[0]


# ------------------------------------------------------------------------ metrics


def metrics_of(module: nn.Module) -> dict[str, Metric]:
    """Return the metrics among the module's submodules, by name."""
    return {name: part for name, part in module.named_modules() if isinstance(part, Metric)}


def _trackers(module: nn.Module) -> dict[str, MetricTracker]:
    return {name: part for name, part in module.named_modules() if isinstance(part, MetricTracker)}


def _metric_state(metric: Metric) -> dict[str, Any]:
    plain = {name: value for name, value in attributes_of(metric).items() if _is_plain(value)}
    return {
        "updates": metric._update_count,
        "states": {name: _on_cpu(value) for name, value in metric.metric_state.items()},
        "values": {name: _on_cpu(value) for name, value in plain.items()},
    }


def _restore_metric(metric: Metric, saved: Mapping[str, Any]) -> None:
    metric._update_count = saved["updates"]
    for name, value in {**saved["states"], **saved.get("values", {})}.items():
        setattr(metric, name, _moved(value, metric.device))


def attributes_of(metric: Metric) -> dict[str, Any]:
    """Return what a metric keeps besides its states, e.g. the extremes of a `MinMaxMetric`."""
    others = METRICS_OWN | metric.metric_state.keys()
    return {name: value for name, value in vars(metric).items() if name not in others}


def _is_plain(value: Any) -> bool:
    """Whether a checkpoint that loads with `weights_only` can hold the value."""
    if type(value) in (list, tuple):
        return all(_is_plain(entry) for entry in value)
    if type(value) is dict:
        return all(_is_plain(entry) for pair in value.items() for entry in pair)
    return type(value) in (type(None), bool, int, float, str, Tensor)


def _on_cpu(value: Any) -> Any:
    return _moved(value, "cpu")


def _moved(value: Any, device: Any) -> Any:
    """Copy the tensors in a value to a device, and the lists and dicts that hold them."""
    if isinstance(value, Tensor):
        return value.detach().to(device)
    if isinstance(value, list | tuple):
        return type(value)(_moved(entry, device) for entry in value)
    return {key: _moved(entry, device) for key, entry in value.items()} if isinstance(value, dict) else value
