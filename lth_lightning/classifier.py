"""ImageClassifier: a LightningModule around any network that maps images to class scores."""

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanMetric, MetricCollection

from lth_lightning.errors import SettingError, unknown_name
from lth_lightning.images import memory_format_for
from lth_lightning.models import Network, initialise, reset
from lth_lightning.pruning.mask_hooks import MaskHooks
from lth_lightning.pruning.masks import Masks

INTERVALS = ("epoch", "step")


class ImageClassifier(L.LightningModule):
    """Trains a network with cross-entropy; logs `train_loss`, and loss and accuracy on validation and test data.

    The module does not know about rounds. After `hold`, its optimizers keep a ticket's pruned weights at 0, so any
    Trainer can train a ticket without the callback.

    Args:
        net: the network, from images (N, channels, height, width) to class scores (N, classes): a built-in class, or
            the import path of your own. Its arguments follow: `--model.net MLP --model.net.hidden [300,100]`.
        optimizer: the optimizer, a class of torch.optim. Its arguments follow: `--model.optimizer.lr 1.2e-3`; in a
            config they go under `init_args`.
        lr_scheduler: the learning-rate schedule, a class of torch.optim.lr_scheduler; the default is a constant rate.
        lr_scheduler_interval: whether the schedule steps every `epoch` or every `step`.
        init: how weights are initialised: `glorot_normal` (Frankle & Carbin 2019; the command line's default) or
            `kaiming_normal`; null keeps the network's own weights, for example pretrained ones.
        num_classes: number of classes; the command line takes it from the data.
        input_shape: (channels, height, width) of an image; the command line takes it from the data. If given, the
            network is tried on such an image before training.

    Raises:
        SettingError: an unknown `init` or `lr_scheduler_interval`; or, in `setup`, a network that does not accept
            the images or does not return one score per class.
    """

    def __init__(
        self,
        net: Network | nn.Module,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: str = "epoch",
        init: str | None = None,
        num_classes: int = 10,
        input_shape: tuple[int, int, int] | None = None,
    ) -> None:
        super().__init__()
        if lr_scheduler_interval not in INTERVALS:
            raise unknown_name("model.lr_scheduler_interval", lr_scheduler_interval, INTERVALS)
        self.net = net
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_scheduler_interval = lr_scheduler_interval
        self.init = init
        self.num_classes = num_classes
        self.input_shape = input_shape
        self.masks: Masks | None = None
        scores = MetricCollection({"loss": MeanMetric(), "acc": MeanMetric()}, compute_groups=False)
        self.val_scores = scores.clone(prefix="val_")
        self.test_scores = scores.clone(prefix="test_")
        self._seen: list[tuple[Tensor, Tensor]] = []  # (N,) losses and (N,) hits of each evaluated batch
        self.train_loss = MeanMetric()  # a metric, so that mid-epoch checkpoints include it
        self._layout = memory_format_for(net)
        if init is not None:
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh weights from torch's global generator, as `init` specifies."""
        if self.init is None:
            reset(self.net)
        else:
            initialise(self.net, self.init)

    def hold(self, masks: Masks) -> None:
        """Keep the masked weights pruned in any later fit: `module.hold(ticket.apply(module))`.

        Args:
            masks: masks by this module's parameter names, as `Ticket.apply` returns them.

        Raises:
            SettingError: a mask's shape differs from its weight's, or the module has no such weight.
        """
        MaskHooks(self).enforce(masks)
        self.masks = masks

    def setup(self, stage: str) -> None:
        """Try the network on an image, so that a network that does not fit fails before training."""
        if self.input_shape is None:
            return
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                # The network's type, as `setup("test")` within a fit follows the precision.
                dtype = next((weight.dtype for weight in self.net.parameters()), None)
                image = torch.zeros(2, *self.input_shape, device=self.device, dtype=dtype)
                shape = tuple(self.net(image).shape)
        except (RuntimeError, ValueError) as error:
            raise SettingError(
                f"model.net: {type(self.net).__name__} does not accept the data's images of shape "
                f"{tuple(self.input_shape)} (channels, height, width): {error}"
            ) from error
        finally:
            self.train(training)
        if shape != (2, self.num_classes):
            raise SettingError(
                f"model.net: {type(self.net).__name__} turns 2 images into {shape}; the data's "
                f"{self.num_classes} classes need (2, {self.num_classes})."
            )

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores (N, classes) for images (N, channels, height, width)."""
        return self.net(images.contiguous(memory_format=self._layout) if images.ndim == 4 else images)

    forward.is_plain = True  # type: ignore[attr-defined]  # see `training_step`

    def configure_optimizers(self) -> Any:
        """Return the optimizer and the schedule; the optimizer's steps are masked if a ticket is held."""
        optimizer = self.optimizer(self.parameters())
        if self.masks is not None:
            MaskHooks(self, [optimizer]).enforce(self.masks)
        if self.lr_scheduler is None:
            return optimizer
        schedule = {"scheduler": self.lr_scheduler(optimizer), "interval": self.lr_scheduler_interval}
        return {"optimizer": optimizer, "lr_scheduler": {**schedule, "monitor": "val_loss"}}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return a batch's mean cross-entropy, without logging: a `self.log` would cost a sixth of LeNet's step."""
        images, targets = batch
        loss = F.cross_entropy(self(images), targets)
        self.note_loss(loss.detach(), len(targets))
        return loss

    # Only the cross-entropy of `net`, so that a sparse engine may run it in another way; a subclass's has no such mark.
    training_step.is_plain = True  # type: ignore[attr-defined]

    def note_loss(self, loss: Tensor, count: int) -> None:
        """Count a batch's mean loss for the epoch's `train_loss`; `count`: images in it."""
        # Updated by hand in 9 µs; a torchmetrics `update` takes some 70.
        self.train_loss.mean_value += loss * count
        self.train_loss.weight += count

    def on_train_epoch_end(self) -> None:
        """Log the mean loss over the epoch's training images."""
        self.log("train_loss", self.train_loss.mean_value / self.train_loss.weight, sync_dist=True)
        self.train_loss.reset()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Collect the losses and hits of a batch of validation images."""
        self._look_at(batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Collect the losses and hits of a batch of test images."""
        self._look_at(batch)

    def _look_at(self, batch: tuple[Tensor, Tensor]) -> None:
        images, targets = batch
        logits = self(images)
        self._seen.append((F.cross_entropy(logits, targets, reduction="none"), logits.argmax(dim=1) == targets))

    def on_validation_epoch_start(self) -> None:
        """Discard what an interrupted validation collected."""
        self._seen.clear()

    def on_test_epoch_start(self) -> None:
        """Discard what an interrupted test collected."""
        self._seen.clear()

    def on_validation_epoch_end(self) -> None:
        """Log loss and accuracy over all validation images."""
        self._log_scores(self.val_scores)

    def on_test_epoch_end(self) -> None:
        """Log loss and accuracy over all test images."""
        self._log_scores(self.test_scores)

    def _log_scores(self, scores: MetricCollection) -> None:
        if self._seen:  # one of many processes may have received no image
            losses, hits = (torch.cat(values) for values in zip(*self._seen, strict=True))
            # Once per evaluation: one update per batch takes 200 µs, a sixth of a forward pass of a thousand images.
            scores[f"{scores.prefix}loss"].update(losses)
            scores[f"{scores.prefix}acc"].update(hits.float())
            self._seen.clear()
        self.log_dict(scores.compute(), sync_dist=True)  # already equal on all ranks; Lightning warns without it
        scores.reset()

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the predicted class of each image, (N,)."""
        return self(batch[0]).argmax(dim=1)
