"""Network: the base class of all networks here, which map images to logits and take their sizes from the data."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from lth_lightning.errors import SettingError


class Network(nn.Module, ABC):
    """A classifier of images.

    Any `nn.Module` can be trained and pruned. This base marks the networks of this project, so that the command line
    can list them and fill in both arguments from the data. A network keeps each argument of its constructor in an
    attribute of the same name, so that `Ticket.to_module` can build it again.

    Args:
        input_shape: Channels, height and width of an image.
        num_classes: Number of classes, which is the number of logits.
        smallest: Minimum height and width for the architecture (each pooling halves them).

    Raises:
        SettingError: the shape or the number of classes is invalid, or the images are too small.
    """

    def __init__(self, input_shape: tuple[int, int, int], num_classes: int, smallest: int = 1) -> None:
        super().__init__()
        name = type(self).__name__
        if len(input_shape) != 3 or min(input_shape) < 1:
            raise SettingError(
                f"{name}: input_shape must be (channels, height, width), each at least 1, got {tuple(input_shape)}."
            )
        if num_classes < 2:
            raise SettingError(f"{name}: num_classes must be at least 2, got {num_classes}.")
        _, height, width = input_shape
        if min(height, width) < smallest:
            raise SettingError(
                f"{name} needs images of at least {smallest} x {smallest} pixels, got {height} x {width}. "
                "An MLP accepts any size."
            )
        self.input_shape, self.num_classes = tuple(input_shape), num_classes

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes) of images (N, channels, height, width)."""
