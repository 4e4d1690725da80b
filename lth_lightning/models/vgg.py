"""VGG with batch norm for CIFAR: Simonyan & Zisserman 2015, as modified by Liu et al. 2019."""

from torch import Tensor, nn

from lth_lightning.errors import SettingError
from lth_lightning.models.network import Network

WIDTHS = (64, 128, 256, 512, 512)
CONVS_PER_STAGE = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class VGG(Network):
    """Five stages of 3 x 3 convolutions with max pooling between them, the mean over pixels, one linear layer.

    The ImageNet network's large hidden layers are left out, as in Liu et al. 2019 ("Rethinking the value of
    network pruning") and Frankle & Carbin 2019, section 4. VGG-19 on CIFAR-10 has 20,035,018 parameters,
    20,018,880 of them convolution weights.

    Layers are named `features.conv1`, `features.norm1`, …, `output`.

    Args:
        depth: 11, 13, 16 or 19, as in the names of Simonyan & Zisserman's networks: the number of convolutions + 3.

    Raises:
        SettingError: another depth; images below 16 x 16; or as in `Network`.
    """

    def __init__(
        self,
        depth: int = 19,
        *,
        input_shape: tuple[int, int, int] = (3, 32, 32),
        num_classes: int = 10,
    ) -> None:
        super().__init__(input_shape, num_classes, smallest=16)
        if depth not in CONVS_PER_STAGE:
            raise SettingError(f"VGG: depth must be one of {', '.join(map(str, CONVS_PER_STAGE))}, got {depth}.")
        self.depth = depth
        self.features = nn.Sequential()
        channels, number = input_shape[0], 0
        for stage, (width, convs) in enumerate(zip(WIDTHS, CONVS_PER_STAGE[depth], strict=True)):
            if stage > 0:
                self.features.add_module(f"pool{stage}", nn.MaxPool2d(2))
            for _ in range(convs):
                number += 1
                self.features.add_module(
                    f"conv{number}", nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
                )
                self.features.add_module(f"norm{number}", nn.BatchNorm2d(width))
                self.features.add_module(f"relu{number}", nn.ReLU())
                channels = width
        self.output = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.output(self.features(images).mean(dim=(2, 3)))
