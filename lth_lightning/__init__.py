"""Winning tickets with PyTorch Lightning: train, prune, rewind, repeat, in one `Trainer.fit`."""

from lth_lightning.data import ImageDataModule
from lth_lightning.errors import SettingError, TicketError
from lth_lightning.lottery import LotteryTicket
from lth_lightning.masks import MaskHooks, prunable_weights
from lth_lightning.module import ImageClassifier
from lth_lightning.progress import LotteryProgress
from lth_lightning.pruning import Criterion, Evidence, Magnitude, Pruning, Random
from lth_lightning.ticket import Ticket

__version__ = "0.1.0"

__all__ = [
    "Criterion",
    "Evidence",
    "ImageClassifier",
    "ImageDataModule",
    "LotteryProgress",
    "LotteryTicket",
    "Magnitude",
    "MaskHooks",
    "Pruning",
    "Random",
    "SettingError",
    "Ticket",
    "TicketError",
    "prunable_weights",
]
