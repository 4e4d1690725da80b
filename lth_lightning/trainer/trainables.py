"""Which parameters a module has, which of them are trained, and in which groups: settled when a fit starts."""

from collections.abc import Callable, Mapping

import lightning as L
from torch import nn

from lth_lightning.errors import SettingError


class Trainables:
    """Holds a module to the parameters it had when the fit started.

    Which weights are prunable, what a density is of, and what a mask's hooks hang on follow from them.

    Args:
        trainer: at `on_fit_start`.
        prunable: gives the weights that may be pruned, by name, as they are at the call.
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

    def note_groups(self, trainer: L.Trainer) -> None:
        """Take the optimizers' parameter groups as they are for those of every network."""
        self._groups = _groups(trainer)

    def restore(self, module: nn.Module) -> None:
        """Let be trained what was trained at the start, by layers in the mode that they were in, without buffers that
        training has added."""
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(self._trained[name])
        for name, part in module.named_modules():
            part.training = self._modes.get(name, part.training)
            for buffer in [key for key, value in part._buffers.items() if value is None]:
                if buffer not in self._buffers.get(name, {buffer}):
                    del part._buffers[buffer]

    def check(self, trainer: L.Trainer) -> None:
        """Stop where training has changed them.

        Raises:
            SettingError: a parameter is new, gone, another object or of another shape or type; a weight can be pruned
                that could not be at the start; or an optimizer has other groups.
        """
        now = dict(trainer.lightning_module.named_parameters())
        for name in {**self._parameters, **now}:
            if (parameter := now.get(name)) is None:
                raise self._error(trainer, f"{name} is gone")
            if name not in self._parameters:
                raise self._error(trainer, f"{name} is new")
            if parameter is not self._parameters[name]:
                raise self._error(trainer, f"{name} is another object than before")
            if (parameter.shape, parameter.dtype) != self._shapes[name]:
                shape, dtype = self._shapes[name]
                now_is = f"{parameter.dtype} {tuple(parameter.shape)}"
                raise self._error(trainer, f"{name} was {dtype} {tuple(shape)} and is {now_is}")
        if any(parameter.requires_grad and not self._trained[name] for name, parameter in now.items()):
            for name in sorted(self._prunable().keys() - self._at_start.keys()):
                raise self._error(trainer, f"{name} was frozen (requires_grad) and is trained")
        if (groups := _groups(trainer)) != self._groups:
            raise self._error(trainer, f"the optimizers' groups had {self._groups} parameters and have {groups}")

    def _error(self, trainer: L.Trainer, what: str) -> SettingError:
        return SettingError(
            f"{type(trainer.lightning_module).__name__}, epoch {trainer.current_epoch}: {what}. Which weights can be "
            "pruned, and which optimizer trains them, is settled when the fit starts, and each network starts from "
            "there. Have all that is ever trained in place from the start, trained and in an optimizer's groups."
        )


def _groups(trainer: L.Trainer) -> list[list[int]]:
    return [[len(group["params"]) for group in optimizer.param_groups] for optimizer in trainer.optimizers]
