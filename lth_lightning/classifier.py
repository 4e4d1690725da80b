"""ImageClassifier: the LightningModule around any network that turns images into class scores."""

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torchmetrics import MeanMetric, MetricCollection

from lth_lightning.errors import SettingError, unknown_name
from lth_lightning.models import Network, initialise, reset
from lth_lightning.pruning.mask_hooks import MaskHooks
from lth_lightning.pruning.masks import Masks
from lth_lightning.pruning.prunable import prunable_weights

INTERVALS = ("epoch", "step")


class ImageClassifier(L.LightningModule):
    """Trains a network with cross-entropy; logs `train_loss` and loss and accuracy of validation and test data.

    It knows nothing of rounds. With `hold`, its optimizers keep a ticket's pruned weights at 0, so that a ticket
    can be trained by any Trainer, without the callback.

    Args:
        net: the network, from images (N, channels, height, width) to class scores (N, classes): a class of ours, or the
            import path of one of yours. Its arguments follow: `--model.net MLP --model.net.hidden [300,100]`.
        optimizer: the optimizer, a class of torch.optim. Its arguments follow: `--model.optimizer.lr 1.2e-3`; in a
            config they stand in `init_args`.
        lr_scheduler: the learning-rate schedule, a class of torch.optim.lr_scheduler; by default the rate stays.
        lr_scheduler_interval: whether the schedule counts `epoch` or `step`.
        init: how weights are drawn: `glorot_normal` (Frankle & Carbin 2019), `kaiming_normal`, or null for the
            network's own.
        num_classes: how many classes there are; on the command line the data say so.
        input_shape: (channels, height, width) of an image; on the command line the data say so. Given, the network
            is tried on such an image before training.

    Raises:
        SettingError: an unknown `init` or `lr_scheduler_interval`, or, in `setup`, a network that does not take
            the images or does not give one score a class.
    """

    def __init__(
        self,
        net: Network | nn.Module,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_scheduler_interval: str = "epoch",
        init: str | None = "glorot_normal",
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
        self._seen: list[tuple[Tensor, Tensor]] = []  # (N,) losses and (N,) hits of each batch that is evaluated
        self.train_loss = MeanMetric()  # a metric, so that a checkpoint inside an epoch can hold it
        # Convolutions on a CPU take two thirds of the time on images whose channels lie together in memory.
        convolves = any(isinstance(layer, _ConvNd) for layer in net.modules())
        self._layout = torch.channels_last if convolves else torch.contiguous_format
        if init is not None:
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw fresh weights from torch's global generator, the way `init` says."""
        if self.init is None:
            reset(self.net)
        else:
            initialise(self.net, self.init)

    def hold(self, masks: Masks) -> None:
        """Keep these weights pruned in any later fit: `module.hold(ticket.apply(module))`.

        Args:
            masks: by the names that `prunable_weights(self)` gives, as `Ticket.apply` returns them.
        """
        MaskHooks(prunable_weights(self), []).enforce(masks)
        self.masks = masks

    def setup(self, stage: str) -> None:
        """Try the network on an image, so that one that does not fit is found before anything is trained."""
        if self.input_shape is None:
            return
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                shape = tuple(self.net(torch.zeros(2, *self.input_shape, device=self.device)).shape)
        except (RuntimeError, ValueError) as error:
            raise SettingError(
                f"model.net: {type(self.net).__name__} does not take the data's images of shape "
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
        """Class scores (N, classes) of images (N, channels, height, width)."""
        return self.net(images.contiguous(memory_format=self._layout) if images.ndim == 4 else images)

    def configure_optimizers(self) -> Any:
        """The optimizer, its steps masked if a ticket is held, and the schedule."""
        optimizer = self.optimizer(self.parameters())
        if self.masks is not None:
            MaskHooks(prunable_weights(self), [optimizer]).enforce(self.masks)
        if self.lr_scheduler is None:
            return optimizer
        schedule = {"scheduler": self.lr_scheduler(optimizer), "interval": self.lr_scheduler_interval}
        return {"optimizer": optimizer, "lr_scheduler": {**schedule, "monitor": "val_loss"}}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The mean cross-entropy of a batch. Nothing is logged here: a `self.log` costs a sixth of LeNet's step."""
        images, targets = batch
        loss = F.cross_entropy(self(images), targets)
        # By hand: a torchmetrics `update` takes some 70 µs, this 9.
        self.train_loss.mean_value += loss.detach() * len(targets)
        self.train_loss.weight += len(targets)
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the mean loss of the epoch's training images."""
        self.log("train_loss", self.train_loss.mean_value / self.train_loss.weight, sync_dist=True)
        self.train_loss.reset()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Look at a batch of validation images."""
        self._look_at(batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Look at a batch of test images."""
        self._look_at(batch)

    def _look_at(self, batch: tuple[Tensor, Tensor]) -> None:
        images, targets = batch
        logits = self(images)
        self._seen.append((F.cross_entropy(logits, targets, reduction="none"), logits.argmax(dim=1) == targets))

    def on_validation_epoch_start(self) -> None:
        """Forget an evaluation that was interrupted."""
        self._seen.clear()

    def on_test_epoch_start(self) -> None:
        """Forget an evaluation that was interrupted."""
        self._seen.clear()

    def on_validation_epoch_end(self) -> None:
        """Log loss and accuracy over all validation images."""
        self._log_scores(self.val_scores)

    def on_test_epoch_end(self) -> None:
        """Log loss and accuracy over all test images."""
        self._log_scores(self.test_scores)

    def _log_scores(self, scores: MetricCollection) -> None:
        if self._seen:  # a process of many may have no image
            losses, hits = (torch.cat(values) for values in zip(*self._seen, strict=True))
            # Once an evaluation: an update a batch takes 200 µs, a sixth of the forward pass of a thousand images.
            scores[f"{scores.prefix}loss"].update(losses)
            scores[f"{scores.prefix}acc"].update(hits.float())
            self._seen.clear()
        self.log_dict(scores.compute(), sync_dist=True)  # alike on all ranks already; Lightning wants it said
        scores.reset()

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The class of each image, (N,)."""
        return self(batch[0]).argmax(dim=1)
