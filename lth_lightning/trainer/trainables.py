"""Trainables: which parameters a module has, which are trained, and in which groups; fixed when a fit starts."""

from collections.abc import Callable, Mapping

import lightning as L
from torch import nn

from lth_lightning.errors import SettingError
from lth_lightning.pruning.survivors import shape_of


class Trainables:
    """Checks that a module keeps the parameters that it had when the fit started.

    The prunable weights, the densities and the masks' hooks depend on them.

    Args:
        trainer: the Trainer in `on_fit_start`.
        prunable: returns the prunable weights, by name, at the time of the call.
    """

    def __init__(self, trainer: L.Trainer, prunable: Callable[[], Mapping[str, nn.Parameter]]) -> None:
        module = trainer.lightning_module
        self._prunable = prunable
        self._at_start = prunable()
        self._parameters = dict(module.named_parameters())
        self._trained = {name: parameter.requires_grad for name, parameter in self._parameters.items()}
        self._shapes = {name: (parameter.shape, parameter.dtype) for name, parameter in self._parameters.items()}
        self._modes = {name: part.training for name, part in module.named_modules()}
        self._buffers = {name: set(part._buffers) for name, part in module.named_modules()}
        self.note_groups(trainer)

    def state_dict(self) -> dict[str, dict[str, bool]]:
        """Return which parameters are trained, and which layers are in training mode, at the start of a network."""
        return {"trained": self._trained, "modes": self._modes}

    def load_state_dict(self, state: Mapping[str, dict[str, bool]]) -> None:
        """Restore what `state_dict` returned."""
        self._trained, self._modes = state["trained"], state["modes"]

    def note_groups(self, trainer: L.Trainer) -> None:
        """Record the optimizers' current parameter groups as those of every network."""
        self._groups = _groups(trainer)

    def restore(self, module: nn.Module) -> None:
        """Restore which parameters are trained and the mode of each layer, and remove buffers that training has
        added."""
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(self._trained[name])
        for name, part in module.named_modules():
            part.training = self._modes.get(name, part.training)
            for buffer in [key for key, value in part._buffers.items() if value is None]:
                if buffer not in self._buffers.get(name, {buffer}):
                    del part._buffers[buffer]

    def check(self, trainer: L.Trainer) -> None:
        """Check that training has not changed the parameters or their groups.

        Raises:
            SettingError: a parameter is new, missing, another object, or of another shape or dtype; a weight is
                prunable that was not at the start; or an optimizer has other groups.
        """
        now = dict(trainer.lightning_module.named_parameters())
        for name in {**self._parameters, **now}:
            if (parameter := now.get(name)) is None:
                raise self._error(trainer, f"{name} is missing")
            if name not in self._parameters:
                raise self._error(trainer, f"{name} is new")
            if parameter is not self._parameters[name]:
                raise self._error(trainer, f"{name} is another object than before")
            if (shape_of(parameter), parameter.dtype) != self._shapes[name]:
                shape, dtype = self._shapes[name]
                now_is = f"{parameter.dtype} {tuple(shape_of(parameter))}"
                raise self._error(trainer, f"{name} was {dtype} {tuple(shape)} and is {now_is}")
        if any(parameter.requires_grad and not self._trained[name] for name, parameter in now.items()):
            for name in sorted(self._prunable().keys() - self._at_start.keys()):
                raise self._error(trainer, f"{name} was frozen (requires_grad) and is now trained")
        if (groups := _groups(trainer)) != self._groups:
            raise self._error(trainer, f"the optimizers' groups had {self._groups} parameters and have {groups}")

    def _error(self, trainer: L.Trainer, what: str) -> SettingError:
        return SettingError(
            f"{type(trainer.lightning_module).__name__}, epoch {trainer.current_epoch}: {what}. The prunable weights "
            "and their optimizers are fixed when the fit starts, as each network starts from there. Create every "
            "parameter before the fit, with requires_grad and in an optimizer's groups."
        )


def stepped(trainer: L.Trainer) -> set[int]:
    """Return the `id` of each parameter that an optimizer trains."""
    optimizers = trainer.optimizers
    return {id(parameter) for one in optimizers for group in one.param_groups for parameter in group["params"]}


def _groups(trainer: L.Trainer) -> list[list[int]]:
    return [[len(group["params"]) for group in optimizer.param_groups] for optimizer in trainer.optimizers]
