"""The two LeNets of LeCun et al. 1998, "Gradient-based learning applied to document recognition"."""

import torch.nn.functional as F
from torch import Tensor, nn

from lth_lightning.models.mlp import MLP
from lth_lightning.models.network import Network


class LeNet300(MLP):
    """LeNet-300-100: the fully connected network of Frankle & Carbin 2019, section 2.

    266,610 parameters on MNIST, 266,200 of them weights, in `fc1`, `fc2`, `output`.

    Raises:
        SettingError: as in `Network`.
    """

    def __init__(self, *, input_shape: tuple[int, int, int] = (1, 28, 28), num_classes: int = 10) -> None:
        super().__init__([300, 100], input_shape=input_shape, num_classes=num_classes)


class LeNet5(Network):
    """LeNet-5 with its original widths 6-16-120-84 and the ReLU and max pooling common today.

    61,706 parameters on MNIST, in `conv1`, `conv2`, `fc1`, `fc2`, `output`. The first convolution pads by 2:
    LeCun et al. padded the 28 x 28 digits to 32 x 32.

    Raises:
        SettingError: images below 12 x 12; or as in `Network`.
    """

    def __init__(self, *, input_shape: tuple[int, int, int] = (1, 28, 28), num_classes: int = 10) -> None:
        super().__init__(input_shape, num_classes, smallest=12)
        channels, height, width = input_shape
        self.conv1 = nn.Conv2d(channels, 6, kernel_size=5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, kernel_size=5)
        self.fc1 = nn.Linear(16 * _side(height) * _side(width), 120)
        self.fc2 = nn.Linear(120, 84)
        self.output = nn.Linear(84, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.conv1(images), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.relu(self.fc2(x))
        return self.output(x)


def _side(side: int) -> int:
    """Return the height or width after padded convolution, pooling, convolution, pooling."""
    return (side // 2 - 4) // 2
