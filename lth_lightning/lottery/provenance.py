"""What a ticket says of itself: where it comes from, and how it was trained."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import lightning as L

from lth_lightning.lottery.rewinding import Lineage
from lth_lightning.runs.rows import Row

if TYPE_CHECKING:
    from lth_lightning.lottery.callback import LotteryTicket


def architecture(module: L.LightningModule) -> str:
    """The class of the network that is trained."""
    return type(getattr(module, "net", module)).__name__


def data_name(trainer: L.Trainer) -> str:
    """The data set's name, or else the class of the DataModule."""
    datamodule = trainer.datamodule
    return str(getattr(datamodule, "dataset", type(datamodule).__name__))


def image_shape(trainer: L.Trainer, module: L.LightningModule) -> list[int] | None:
    """(channels, height, width) of an image, where module or DataModule say so by an `input_shape`."""
    datamodule = trainer.datamodule
    known = getattr(module, "input_shape", None) or getattr(datamodule, "input_shape", None)
    if not isinstance(known, Sequence) or len(known) != 3 or not all(isinstance(size, int) for size in known):
        return None
    return list(known)


def ticket_info(trainer: L.Trainer, lottery: "LotteryTicket", lineage: Lineage, row: Row) -> dict[str, Any]:
    """What a round's ticket says of itself, as JSON values."""
    module, given = trainer.lightning_module, lottery.given
    return {
        "architecture": architecture(module),
        "data": data_name(trainer),
        "input_shape": image_shape(trainer, module),
        "round": row.round,
        "seed": lineage.seed,
        "data_order": lineage.order,
        "train_for": str(lottery.train_for),
        "rewind_to": str(lottery.rewind_to),
        "rewind_step": lineage.rewind_step,
        "transfer": given.transfer if given else None,
        "reinitialised": list(given.reinitialised) if given else [],
        "learning_rates": lineage.rates,
        "val_acc": row.val_acc,
        "test_acc": row.test_acc,
    }
