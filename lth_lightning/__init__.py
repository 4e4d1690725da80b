"""Winning tickets with PyTorch Lightning: train, prune, rewind, repeat, in one `Trainer.fit`.

Names are imported on first use (PEP 562), so that `train.py report` starts without Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lth_lightning.classifier import ImageClassifier
    from lth_lightning.cli.lightning_cli import LotteryCLI
    from lth_lightning.data.datamodule import ImageDataModule
    from lth_lightning.data.diabetes import DiabetesData
    from lth_lightning.display.tensorboard import LotteryBoard
    from lth_lightning.display.terminal import LotteryProgress
    from lth_lightning.errors import SettingError, TicketError
    from lth_lightning.lottery.callback import LotteryTicket
    from lth_lightning.lottery.engine import Engine
    from lth_lightning.matching import best_ticket
    from lth_lightning.notebook import Run, read_runs
    from lth_lightning.pruning.criteria import Criterion, Evidence, Magnitude, MagnitudeIncrease, Movement, Random
    from lth_lightning.pruning.gradient_criteria import SNIP, GraSP, SynFlow
    from lth_lightning.pruning.mask_hooks import MaskHooks
    from lth_lightning.pruning.network_function import NetworkFunction
    from lth_lightning.pruning.prunable import prunable_weights
    from lth_lightning.pruning.pruning import Pruning
    from lth_lightning.regressor import Regressor
    from lth_lightning.runs.score import Score
    from lth_lightning.sweeps.sweep import sweep
    from lth_lightning.tickets.ticket import Ticket

__version__ = "0.2.0"

_HOME = {
    "Criterion": "pruning.criteria",
    "DiabetesData": "data.diabetes",
    "Engine": "lottery.engine",
    "Evidence": "pruning.criteria",
    "GraSP": "pruning.gradient_criteria",
    "ImageClassifier": "classifier",
    "ImageDataModule": "data.datamodule",
    "LotteryBoard": "display.tensorboard",
    "LotteryCLI": "cli.lightning_cli",
    "LotteryProgress": "display.terminal",
    "LotteryTicket": "lottery.callback",
    "Magnitude": "pruning.criteria",
    "MagnitudeIncrease": "pruning.criteria",
    "MaskHooks": "pruning.mask_hooks",
    "Movement": "pruning.criteria",
    "NetworkFunction": "pruning.network_function",
    "Pruning": "pruning.pruning",
    "Random": "pruning.criteria",
    "Regressor": "regressor",
    "Run": "notebook",
    "SNIP": "pruning.gradient_criteria",
    "Score": "runs.score",
    "SettingError": "errors",
    "SynFlow": "pruning.gradient_criteria",
    "Ticket": "tickets.ticket",
    "TicketError": "errors",
    "best_ticket": "matching",
    "prunable_weights": "pruning.prunable",
    "read_runs": "notebook",
    "sweep": "sweeps.sweep",
}

__all__ = [
    "SNIP",
    "Criterion",
    "DiabetesData",
    "Engine",
    "Evidence",
    "GraSP",
    "ImageClassifier",
    "ImageDataModule",
    "LotteryBoard",
    "LotteryCLI",
    "LotteryProgress",
    "LotteryTicket",
    "Magnitude",
    "MagnitudeIncrease",
    "MaskHooks",
    "Movement",
    "NetworkFunction",
    "Pruning",
    "Random",
    "Regressor",
    "Run",
    "Score",
    "SettingError",
    "SynFlow",
    "Ticket",
    "TicketError",
    "best_ticket",
    "prunable_weights",
    "read_runs",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"lth_lightning.{_HOME[name]}"), name)
    raise AttributeError(f"module 'lth_lightning' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
