"""Residual networks for CIFAR: He et al. 2016, "Deep residual learning for image recognition", section 4.2."""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from lth_lightning.errors import SettingError
from lth_lightning.models.network import Network


class ResNet(Network):
    """Three stages of n residual blocks with `width`, 2 `width` and 4 `width` channels: 6n + 2 layers.

    In a stage that halves the image, the first block's shortcut is a 1 x 1 convolution with batch norm (He et al.'s
    option B), as in OpenLTH. This matches the sizes that Frankle & Carbin 2019, figure 2, give for what they call
    Resnet-18: ResNet-20 on CIFAR-10 has 270,256 convolution weights (their 270K; 267,696 without shortcuts) and
    272,474 parameters, or 274,042 with the running statistics (their 274K).

    Layers are named `conv1`, `blocks.0.conv1`, …, `blocks.3.shortcut.conv`, …, `output`; `*shortcut*` matches the
    convolutions of the shortcuts.

    Args:
        depth: Number of layers, 6n + 2: 20, 32, 44, 56, 110, …; shortcuts do not count.
        width: Channels of the first stage.

    Raises:
        SettingError: a depth that is not 6n + 2, a width below 1; or as in `Network`.
    """

    def __init__(
        self,
        depth: int = 20,
        width: int = 16,
        *,
        input_shape: tuple[int, int, int] = (3, 32, 32),
        num_classes: int = 10,
    ) -> None:
        super().__init__(input_shape, num_classes)
        blocks_per_stage, rest = divmod(depth - 2, 6)
        if rest or blocks_per_stage < 1:
            nearest = [near for near in (depth - rest, depth - rest + 6) if near >= 8] or [8]
            raise SettingError(f"ResNet: depth must be 6n + 2, got {depth}; nearest {' and '.join(map(str, nearest))}.")
        if width < 1:
            raise SettingError(f"ResNet: width must be at least 1, got {width}.")
        self.depth, self.width = depth, width
        self.conv1 = nn.Conv2d(input_shape[0], width, kernel_size=3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential()
        channels = width
        for stage in range(3):
            for number in range(blocks_per_stage):
                stride = 2 if stage > 0 and number == 0 else 1
                self.blocks.append(_Block(channels, width * 2**stage, stride))
                channels = width * 2**stage
        self.output = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(images)))
        x = self.blocks(x)
        return self.output(x.mean(dim=(2, 3)))


class _Block(nn.Module):
    """Two 3 x 3 convolutions with batch norm, added to the shortcut around them."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, kernel_size=3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            projection = nn.Conv2d(channels_in, channels, kernel_size=1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(OrderedDict(conv=projection, norm=nn.BatchNorm2d(channels)))

    def forward(self, x: Tensor) -> Tensor:
        residual = F.relu(self.norm1(self.conv1(x)))
        residual = self.norm2(self.conv2(residual))
        return F.relu(residual + self.shortcut(x))
