"""Conv-2, Conv-4 and Conv-6: the small VGGs of Frankle & Carbin 2019, figure 2 and section 3."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from lth_lightning.models.network import Network


class _PairedConvs(Network):
    """Pairs of 3 x 3 convolutions (`conv1`, `conv2`, …), each followed by max pooling; then `fc1`, `fc2`, `output`."""

    def __init__(self, widths: Sequence[int], input_shape: tuple[int, int, int], num_classes: int) -> None:
        shrink = 2 ** len(widths)
        super().__init__(input_shape, num_classes, smallest=shrink)
        features, height, width = input_shape
        for number, channels in enumerate(widths):
            self.add_module(f"conv{2 * number + 1}", nn.Conv2d(features, channels, kernel_size=3, padding=1))
            self.add_module(f"conv{2 * number + 2}", nn.Conv2d(channels, channels, kernel_size=3, padding=1))
            features = channels
        self.fc1 = nn.Linear(features * (height // shrink) * (width // shrink), 256)
        self.fc2 = nn.Linear(256, 256)
        self.output = nn.Linear(256, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        *convs, fc1, fc2, output = self.children()
        x = images
        for first, second in zip(convs[::2], convs[1::2], strict=True):
            x = F.relu(first(x))
            # ReLU after pooling equals ReLU before it, on a quarter of the numbers.
            x = F.relu(F.max_pool2d(second(x), 2))
        x = F.relu(fc1(x.flatten(1)))
        x = F.relu(fc2(x))
        return output(x)


class Conv2(_PairedConvs):
    """Conv-2: one pair of convolutions, of width 64. 4,301,642 parameters on CIFAR-10.

    Raises:
        SettingError: images below 2 x 2; or as in `Network`.
    """

    def __init__(self, *, input_shape: tuple[int, int, int] = (3, 32, 32), num_classes: int = 10) -> None:
        super().__init__([64], input_shape, num_classes)


class Conv4(_PairedConvs):
    """Conv-4: two pairs of convolutions, of widths 64 and 128. 2,425,930 parameters on CIFAR-10.

    Raises:
        SettingError: images below 4 x 4; or as in `Network`.
    """

    def __init__(self, *, input_shape: tuple[int, int, int] = (3, 32, 32), num_classes: int = 10) -> None:
        super().__init__([64, 128], input_shape, num_classes)


class Conv6(_PairedConvs):
    """Conv-6: three pairs of convolutions, of widths 64, 128 and 256. 2,262,602 parameters on CIFAR-10.

    This count follows from the layers in figure 2; the paper's 1.7M does not.

    Raises:
        SettingError: images below 8 x 8; or as in `Network`.
    """

    def __init__(self, *, input_shape: tuple[int, int, int] = (3, 32, 32), num_classes: int = 10) -> None:
        super().__init__([64, 128, 256], input_shape, num_classes)
