"""Who races: a bare PyTorch loop, `fit` with everything on, and Lightning the way its tutorials show."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from turns import Turn

CONFIGS = {
    "lenet": "lenet300_mnist",
    "conv2": "conv2_cifar10",
    "conv4": "conv4_cifar10",
    "resnet20": "resnet20_cifar10",
    "vgg19": "vgg19_cifar10",
}


@dataclass(frozen=True)
class Task:
    """What all train.

    Args:
        name: of CONFIGS; its config is what `fit` trains by.
        dataset: what `data.dataset` is set to.
        data_dir: its folder.
        batch_size: images a step.
        augment: crop and mirror.
        turn: steps a turn.
        turns: how many, the first half dense and the second half with masks that keep half of the weights.
        stock_turn: steps a turn of stock Lightning.
        steps: a round, where the whole config is run.
    """

    name: str
    dataset: str
    data_dir: str
    batch_size: int
    augment: bool
    turn: int
    turns: int
    stock_turn: int
    steps: int = 6000

    @property
    def dense_steps(self) -> int:
        """Steps before there are masks, the turn that does not count included."""
        return self.turn * (1 + self.turns // 2)

    def network(self) -> nn.Module:
        """As the config has it."""
        from lth_lightning.models import Conv2, Conv4, LeNet300, ResNet, initialise

        net = {"lenet": LeNet300, "conv2": Conv2, "conv4": Conv4, "resnet20": ResNet}[self.name]()
        initialise(net, "glorot_normal")
        return net

    def optimizer(self, parameters: Any, **more: Any) -> torch.optim.Optimizer:
        """As the config has it."""
        if self.name == "resnet20":
            return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4, **more)
        return torch.optim.Adam(parameters, lr=1.2e-3 if self.name == "lenet" else 2e-4, **more)

    def images(self) -> tuple[Tensor, Tensor]:
        """The official training images (N, C, H, W), uint8, and their classes."""
        from lth_lightning.data.datasets import read_images

        images, targets, _ = read_images(self.dataset, self.data_dir, train=True, download=False)
        return images, targets


class RandomMNIST:
    """Noise of MNIST's size, with torchvision's interface: a step's time does not depend on what the images show."""

    shape: tuple[int, ...] = (28, 28)
    sizes = (60_000, 10_000)

    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        generator = torch.Generator().manual_seed(int(train))
        size = self.sizes[0] if train else self.sizes[1]
        self.data = torch.randint(256, (size, *self.shape), dtype=torch.uint8, generator=generator)
        self.targets = torch.arange(size) % 10


class RandomCIFAR10(RandomMNIST):
    """Noise of CIFAR-10's size."""

    shape = (32, 32, 3)
    sizes = (50_000, 10_000)


class FewRandomCIFAR10(RandomCIFAR10):
    """A few images of that kind, where many networks would be evaluated for the sake of a few steps."""

    sizes = (1_000, 100)


# ------------------------------------------------------------------------------------- the bare loop


@dataclass(frozen=True)
class Bare:
    """A loop on tensors: nothing logged, counted, saved or evaluated. From half of the turns on it applies masks."""

    task: Task

    def __call__(self, turn: Turn) -> None:
        task = self.task
        torch.manual_seed(0)
        images, targets = task.images()
        net = task.network()
        optimizer = task.optimizer(net.parameters(), fused=True)
        weights = [parameter for name, parameter in net.named_parameters() if parameter.ndim > 1]
        masks = [(torch.rand_like(weight) < 0.5).float() for weight in weights]
        floats = None if task.augment else images.float().div_(255).sub_(0.5).div_(0.25)
        steps = 0
        turn.wait()
        while True:
            for members in torch.randperm(len(images)).split(task.batch_size):
                batch = augmented(images[members]) if floats is None else floats[members]
                optimizer.zero_grad()
                F.cross_entropy(net(batch), targets[members]).backward()
                optimizer.step()
                steps += 1
                if steps > task.dense_steps:
                    with torch.no_grad():
                        torch._foreach_mul_(weights, masks)
                turn.step()


def augmented(images: Tensor) -> Tensor:
    """Cropped, mirrored, normalised."""
    from lth_lightning.data.loader import crop_and_flip

    count = len(images)
    top, left = torch.randint(9, (2, count))
    return crop_and_flip(images, top, left, torch.rand(count) < 0.5).float().div_(255).sub_(0.5).div_(0.25)


# ------------------------------------------------------------------------------------- fit


RACE: dict[str, Turn] = {}


class TakesTurns(L.Callback):
    """Stops the clock of `fit` for what is timed by itself, and waits for its turns."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        from lth_lightning import LotteryTicket

        self._turn = RACE["turn"]
        experiment = next(one for one in trainer.callbacks if isinstance(one, LotteryTicket)).experiment
        self._time(trainer.fit_loop.epoch_loop.val_loop, "run", "evaluation")
        for name in ("finish_network", "begin_network"):
            self._time(experiment, name, "round's end")
        self._time(experiment, "save_checkpoint", "checkpoint")
        self._turn.wait()

    def on_train_batch_end(self, *_: Any) -> None:
        self._turn.step()

    on_train_batch_end.__module__ = "lth_lightning.benchmark"  # as a fit without it: nobody acts between the steps

    def _time(self, owner: Any, method: str, part: str) -> None:
        timed = getattr(owner, method)

        def aside(*args: Any, **kwargs: Any) -> Any:
            with self._turn.aside(part):
                return timed(*args, **kwargs)

        setattr(owner, method, aside)


@dataclass(frozen=True)
class Ours:
    """`python train.py fit` with results, tickets, TensorBoard, progress, masks and checkpoints."""

    task: Task
    more: dict[str, Any] = field(default_factory=dict)

    def __call__(self, turn: Turn) -> None:
        from lth_lightning.cli.main import main

        RACE["turn"] = turn
        with tempfile.TemporaryDirectory() as folder:
            main(fit_command(self.task, folder, **{"trainer.callbacks": "[contestants.TakesTurns]", **self.more}))


def fit_command(task: Task, folder: str, **more: object) -> list[str]:
    """The command without the callback that lets it race: a round of half of the turns, and another with masks."""
    settings = {
        "config": f"configs/{CONFIGS[task.name]}.yaml",
        "run_dir": f"{folder}/run",
        "data.dataset": task.dataset,
        "data.data_dir": task.data_dir,
        "data.augment": task.augment,
        "lottery.rounds": 1,
        "lottery.rewind_to": "0it",
        "lottery.controls": [],
        "lottery.train_for": f"{task.dense_steps}it",
        "lottery.pruning.rate": 0.5,
        "trainer.val_check_interval": 1.0,
        "trainer.check_val_every_n_epoch": 1,
        **more,
    }
    return ["fit", *(word for name, value in settings.items() for word in (f"--{name}", str(value)))]


# ------------------------------------------------------------------------------------- stock Lightning


class StockModule(L.LightningModule):
    """Logs loss and accuracy of each step, as tutorials do."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task, self.net = task, task.network()
        self.turn = RACE["turn"]

    def on_train_start(self) -> None:
        self.turn.wait()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        from torchmetrics.functional.classification import multiclass_accuracy

        logits = self.net(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        self.log("train_loss", loss, prog_bar=True)
        self.log("train_acc", multiclass_accuracy(logits, batch[1], num_classes=10, average="micro"), prog_bar=True)
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        self.turn.step()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.task.optimizer(self.parameters())


@dataclass(frozen=True)
class Stock:
    """torchvision's transforms in a DataLoader, accuracy and loss logged each step, Lightning's progress bar."""

    task: Task

    def __call__(self, turn: Turn) -> None:
        from torchvision.transforms import v2

        RACE["turn"] = turn
        images, targets = self.task.images()
        normalise = [v2.Normalize([0.5] * images.shape[1], [0.25] * images.shape[1])]
        steps = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()] if self.task.augment else []
        transform = v2.Compose([v2.ToImage(), *steps, v2.ToDtype(torch.float32, scale=True), *normalise])
        data = Transformed(images, targets, transform)
        loader = torch.utils.data.DataLoader(data, batch_size=self.task.batch_size, shuffle=True)
        with tempfile.TemporaryDirectory() as folder:
            trainer = L.Trainer(accelerator="cpu", max_epochs=-1, default_root_dir=folder)
            trainer.fit(StockModule(self.task), loader)


class Transformed(torch.utils.data.Dataset[Any]):
    """As torchvision's data sets: a PIL image at a time."""

    def __init__(self, images: Tensor, targets: Tensor, transform: Callable[[Any], Tensor]) -> None:
        from PIL import Image

        self._images = images.permute(0, 2, 3, 1).squeeze(-1).numpy()
        self._targets = targets.tolist()
        self._open, self._transform = Image.fromarray, transform

    def __len__(self) -> int:
        return len(self._targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(self._open(self._images[index])), self._targets[index]
