"""Fully connected networks."""

from collections.abc import Sequence
from math import prod

import torch.nn.functional as F
from torch import Tensor, nn

from lth_lightning.errors import SettingError
from lth_lightning.models.network import Network


class MLP(Network):
    """Fully connected layers with ReLU between them: `fc1`, `fc2`, …, `output`.

    Args:
        hidden: Widths of the hidden layers, first to last; empty for a linear classifier.

    Raises:
        SettingError: a width below 1; or as in `Network`.
    """

    def __init__(
        self,
        hidden: Sequence[int] = (300, 100),
        *,
        input_shape: tuple[int, int, int] = (1, 28, 28),
        num_classes: int = 10,
    ) -> None:
        super().__init__(input_shape, num_classes)
        if any(width < 1 for width in hidden):
            raise SettingError(f"{type(self).__name__}: each width in hidden must be at least 1, got {list(hidden)}.")
        self.hidden = list(hidden)
        features = prod(input_shape)
        for number, width in enumerate(hidden, start=1):
            self.add_module(f"fc{number}", nn.Linear(features, width))
            features = width
        self.output = nn.Linear(features, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        *hidden, output = self.children()
        x = images.flatten(1)
        for layer in hidden:
            x = F.relu(layer(x))
        return output(x)
