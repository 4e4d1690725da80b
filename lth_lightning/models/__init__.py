"""The networks of the lottery ticket papers: plain modules that know nothing of experiments."""

from lth_lightning.models.conv import Conv2, Conv4, Conv6
from lth_lightning.models.initialise import initialise, reset
from lth_lightning.models.lenet import LeNet5, LeNet300
from lth_lightning.models.mlp import MLP
from lth_lightning.models.network import Network
from lth_lightning.models.resnet import ResNet
from lth_lightning.models.vgg import VGG

__all__ = ["MLP", "VGG", "Conv2", "Conv4", "Conv6", "LeNet5", "LeNet300", "Network", "ResNet", "initialise", "reset"]
