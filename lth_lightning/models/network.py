"""What all networks here have in common: images in, logits out, sized by the data."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from lth_lightning.errors import SettingError


class Network(nn.Module, ABC):
    """A classifier of images.

    Any `nn.Module` can be trained and pruned; this base marks the ones that come with the project, so that the
    command line can list them and knows that the data may fill in both arguments.

    Args:
        input_shape: Channels, height and width of an image.
        num_classes: Number of classes, which is the number of logits.
        smallest: Height and width that the architecture needs at least (each pooling halves them).

    Raises:
        SettingError: shape or classes make no sense, or the images are too small for the architecture.
    """

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, smallest: int = 1) -> None:
        super().__init__()
        name = type(self).__name__
        if len(input_shape) != 3 or min(input_shape) < 1:
            raise SettingError(
                f"{name}: input_shape is (channels, height, width), each 1 or more; got {tuple(input_shape)}."
            )
        if num_classes < 2:
            raise SettingError(f"{name}: num_classes is 2 or more; got {num_classes}.")
        _, height, width = input_shape
        if min(height, width) < smallest:
            raise SettingError(
                f"{name} needs images of at least {smallest} x {smallest} pixels; these are {height} x {width}. "
                "An MLP takes any size."
            )

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, channels, height, width)."""
