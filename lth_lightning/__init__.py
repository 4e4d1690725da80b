"""Winning tickets with PyTorch Lightning: train, prune, rewind, repeat, in one `Trainer.fit`.

Names are imported when they are first used (PEP 562), so that `train.py report` starts without Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lth_lightning.board import LotteryBoard
    from lth_lightning.data import ImageDataModule
    from lth_lightning.errors import SettingError, TicketError
    from lth_lightning.lottery import LotteryTicket
    from lth_lightning.masks import MaskHooks, prunable_weights
    from lth_lightning.module import ImageClassifier
    from lth_lightning.probe import Probe
    from lth_lightning.progress import LotteryProgress
    from lth_lightning.pruning import Criterion, Evidence, Magnitude, MagnitudeIncrease, Movement, Pruning, Random
    from lth_lightning.saliency import SNIP, GraSP, SynFlow
    from lth_lightning.ticket import Ticket

__version__ = "0.1.0"

_HOME = {
    "Criterion": "pruning",
    "Evidence": "pruning",
    "GraSP": "saliency",
    "ImageClassifier": "module",
    "ImageDataModule": "data",
    "LotteryBoard": "board",
    "LotteryProgress": "progress",
    "LotteryTicket": "lottery",
    "Magnitude": "pruning",
    "MagnitudeIncrease": "pruning",
    "MaskHooks": "masks",
    "Movement": "pruning",
    "Probe": "probe",
    "Pruning": "pruning",
    "Random": "pruning",
    "SNIP": "saliency",
    "SettingError": "errors",
    "SynFlow": "saliency",
    "Ticket": "ticket",
    "TicketError": "errors",
    "prunable_weights": "masks",
}

__all__ = [
    "SNIP",
    "Criterion",
    "Evidence",
    "GraSP",
    "ImageClassifier",
    "ImageDataModule",
    "LotteryBoard",
    "LotteryProgress",
    "LotteryTicket",
    "Magnitude",
    "MagnitudeIncrease",
    "MaskHooks",
    "Movement",
    "Probe",
    "Pruning",
    "Random",
    "SettingError",
    "SynFlow",
    "Ticket",
    "TicketError",
    "prunable_weights",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"lth_lightning.{_HOME[name]}"), name)
    raise AttributeError(f"module 'lth_lightning' has no attribute {name!r}")
