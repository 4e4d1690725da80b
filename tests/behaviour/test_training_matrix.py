"""Every way to train: pruned weights stay exactly 0, and a round equals its ticket's training alone, bit for bit."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from conftest import Fit, assert_same, digits, fit, make_trainer, weekly
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop, lr_scheduler

from lth_lightning import LotteryTicket, MaskHooks
from lth_lightning.data.loader import TensorLoader
from lth_lightning.pruning.masks import Masks, masked
from lth_lightning.pruning.state import State
from lth_lightning.seeding import derive_seed

SEED = 7


def network() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.2), nn.Linear(24, 10)
    )


def convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(216, 10))


class Tied(nn.Module):
    """Two layers that share one weight, as encoders and decoders do."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(64, 40), nn.Linear(40, 10)
        self.first, self.second = nn.Linear(40, 40), nn.Linear(40, 40)
        self.second.weight = self.first.weight

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.first(self.into(images.flatten(1)).relu()).relu()
        return self.out(self.second(hidden).relu())


class Module(L.LightningModule):
    """Automatic optimization, by whatever `optimise` makes of the module."""

    def __init__(self, net: nn.Module, optimise: Callable[[L.LightningModule], Any]) -> None:
        super().__init__()
        self.net, self.optimise = net, optimise

    def configure_optimizers(self) -> Any:
        return self.optimise(self)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))


class Manual(Module):
    """One step of each optimizer in turn, on its own parameters and its own forward pass."""

    automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        for optimizer in self.optimizers():
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            self.clip_gradients(optimizer, gradient_clip_val=0.5)
            optimizer.step()
            self.untoggle_optimizer(optimizer)
        if (schedule := self.lr_schedulers()) is not None:
            schedule.step()


class ManualAccumulation(Module):
    """A step every second batch; what the last batch of a round adds up is left over."""

    automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx))
        if batch_idx % 2:
            optimizer.step()
            optimizer.zero_grad()


@dataclass
class Setup:
    """One way to train.

    Args:
        optimise: what `configure_optimizers` gives, from the module.
        state: the optimizer's tensors of a weight's shape, by key.
        rates: how many learning rates a network sees.
        trainer: the Trainer's arguments, made anew for each.
        train_for: the length of a round; by default one epoch of 7 batches and 2 more.
        reinit: whether random_reinit controls are trained too.
        available: whether this torch, on this machine, has it.
        compiler: the backend that the lottery's network is compiled with; the one that trains alone is not compiled.
    """

    optimise: Callable[[L.LightningModule], Any]
    state: set[str] = field(default_factory=set)
    rates: int = 1
    trainer: Callable[[], dict[str, Any]] = dict
    train_for: str = "9it"
    reinit: bool = False
    available: bool = True
    compiler: str | None = None
    net: Callable[[], nn.Module] = network
    kind: type[Module] = Module

    def module(self) -> Module:
        net = self.net()
        return self.kind(torch.compile(net, backend=self.compiler) if self.compiler else net, self.optimise)


MOMENTUM, MOMENTS = {"momentum_buffer"}, {"exp_avg", "exp_avg_sq"}


def adam(module: L.LightningModule) -> Optimizer:
    return Adam(module.parameters(), lr=5e-3)


def sgd(module: L.LightningModule) -> Optimizer:
    return SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)


def groups(module: L.LightningModule) -> Optimizer:
    """No decay for vectors, and a layer that learns faster."""
    vectors = [p for p in module.parameters() if p.ndim == 1]
    first, *others = [p for p in module.parameters() if p.ndim > 1]
    return SGD(
        [
            {"params": vectors},
            {"params": [first], "lr": 0.2, "weight_decay": 0.1},
            {"params": others, "weight_decay": 1e-3, "nesterov": True},
        ],
        lr=0.05,
        momentum=0.9,
    )


def two(module: L.LightningModule) -> list[Optimizer]:
    matrices, vectors = ([p for p in module.parameters() if (p.ndim > 1) == wanted] for wanted in (True, False))
    return [SGD(matrices, lr=0.1, momentum=0.9, weight_decay=1e-2), Adam(vectors, lr=1e-2)]


def layer_by_layer(module: L.LightningModule) -> Any:
    """An optimizer for each half of the network, and a schedule for the first."""
    parameters = list(module.parameters())
    optimizers = [Adam(parameters[:2], lr=1e-2), SGD(parameters[2:], lr=0.1, momentum=0.9)]
    return optimizers, [lr_scheduler.StepLR(optimizers[0], 2, gamma=0.5)]


def muon(module: L.LightningModule) -> Optimizer:
    return torch.optim.Muon([p for p in module.parameters() if p.ndim == 2], lr=1e-2)


def lbfgs(module: L.LightningModule) -> Optimizer:
    return torch.optim.LBFGS(module.parameters(), lr=0.1, max_iter=3, history_size=3)


def scheduled(make: Callable[[Optimizer, Any], Any], interval: str = "step", **more: Any) -> Callable[[Any], Any]:
    """SGD with the schedule that `make` gives from the optimizer and the trainer."""

    def optimise(module: L.LightningModule) -> Any:
        optimizer = sgd(module)
        schedule = {"scheduler": make(optimizer, module.trainer), "interval": interval, **more}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    return optimise


def one_cycle(optimizer: Optimizer, trainer: L.Trainer) -> Any:
    return lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=int(trainer.estimated_stepping_batches))


def warm_up_and_cosine(optimizer: Optimizer, _: L.Trainer) -> Any:
    parts = [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3), lr_scheduler.CosineAnnealingLR(optimizer, 6)]
    return lr_scheduler.SequentialLR(optimizer, parts, [3])


def plateau(optimizer: Optimizer, _: L.Trainer) -> Any:
    """Of a loss that falls, as if it were to rise: each look at it lowers the rate, but for the first."""
    return lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=0, factor=0.5)


def half(**scaler: Any) -> Callable[[], dict[str, Any]]:
    """Half precision with a real scaler, which Lightning's `precision: 16-mixed` lacks on the CPU."""
    return lambda: {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", **scaler))]}


def trainer(**settings: Any) -> Callable[[], dict[str, Any]]:
    return lambda: dict(settings)


OVERFLOW = {"init_scale": 2.0**21, "growth_interval": 2}  # the first steps' gradients exceed 65504, half's largest
BY_VALUE = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}

SETUPS = {
    "float32": Setup(adam, MOMENTS, reinit=True),
    "bf16-mixed": Setup(adam, MOMENTS, trainer=trainer(precision="bf16-mixed")),
    "bf16-true": Setup(sgd, MOMENTUM, trainer=trainer(precision="bf16-true"), reinit=True),
    "64-true": Setup(adam, MOMENTS, trainer=trainer(precision="64-true")),
    "16-mixed": Setup(adam, MOMENTS, trainer=half(growth_interval=4), reinit=True),
    "16-mixed, overflow": Setup(sgd, MOMENTUM, trainer=half(**OVERFLOW), reinit=True),
    "16-mixed, overflow, fused": Setup(
        lambda m: Adam(m.parameters(), lr=5e-3, fused=True), MOMENTS, trainer=half(**OVERFLOW)
    ),
    "16-mixed, overflow, clipping": Setup(
        adam, MOMENTS, trainer=lambda: {**half(**OVERFLOW)(), "gradient_clip_val": 0.5, "accumulate_grad_batches": 2}
    ),
    "16-mixed, two optimizers": Setup(two, MOMENTUM, trainer=half(**OVERFLOW), kind=Manual),
    "accumulate 2": Setup(sgd, MOMENTUM, trainer=trainer(accumulate_grad_batches=2)),
    "accumulate 3": Setup(adam, MOMENTS, trainer=trainer(accumulate_grad_batches=3)),
    # Without validation, which would clear the gradients that a round leaves over.
    "accumulate by hand": Setup(
        sgd, MOMENTUM, trainer=trainer(limit_val_batches=0), train_for="10it", kind=ManualAccumulation
    ),
    "clip norm": Setup(sgd, MOMENTUM, trainer=trainer(gradient_clip_val=0.5), reinit=True),
    "clip value": Setup(sgd, MOMENTUM, trainer=trainer(**BY_VALUE)),
    "clip norm, accumulate 3": Setup(sgd, MOMENTUM, trainer=trainer(gradient_clip_val=0.5, accumulate_grad_batches=3)),
    "clip value, accumulate 2": Setup(sgd, MOMENTUM, trainer=trainer(**BY_VALUE, accumulate_grad_batches=2)),
    "groups": Setup(groups, MOMENTUM, net=convolutions, reinit=True),
    "two optimizers": Setup(two, MOMENTUM, kind=Manual, reinit=True),
    "two optimizers, a schedule": Setup(layer_by_layer, MOMENTS | MOMENTUM, rates=5, kind=Manual),
    "lbfgs": Setup(lbfgs, {"d", "prev_flat_grad", "old_dirs", "old_stps"}),
    "adam, fused": Setup(lambda m: Adam(m.parameters(), lr=5e-3, fused=True), MOMENTS),
    "adam, capturable": Setup(
        lambda m: Adam(m.parameters(), lr=5e-3, capturable=True),
        MOMENTS,
        trainer=trainer(accelerator="gpu", devices=1),
        available=torch.cuda.is_available(),
    ),
    "adam, foreach": Setup(
        lambda m: Adam(m.parameters(), lr=5e-3, foreach=True, amsgrad=True), {*MOMENTS, "max_exp_avg_sq"}
    ),
    "sgd": Setup(lambda m: SGD(m.parameters(), lr=0.1, weight_decay=0.1), net=convolutions),
    "sgd, momentum, nesterov": Setup(
        lambda m: SGD(m.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1), MOMENTUM
    ),
    "adamw": Setup(lambda m: AdamW(m.parameters(), lr=5e-3, weight_decay=0.5), MOMENTS),
    "rmsprop": Setup(
        lambda m: RMSprop(m.parameters(), lr=1e-3, momentum=0.9, centered=True),
        {"square_avg", "grad_avg", "momentum_buffer"},
    ),
    "muon": Setup(muon, MOMENTUM, reinit=True, available=hasattr(torch.optim, "Muon")),
    "step": Setup(scheduled(lambda o, _: lr_scheduler.StepLR(o, 2)), MOMENTUM, rates=5),
    "step, every second": Setup(
        scheduled(lambda o, _: lr_scheduler.ExponentialLR(o, 0.5), frequency=2), MOMENTUM, rates=4
    ),
    "step, accumulate 2": Setup(
        scheduled(lambda o, _: lr_scheduler.StepLR(o, 2)), MOMENTUM, 5, trainer(accumulate_grad_batches=2)
    ),
    "epoch": Setup(scheduled(lambda o, _: lr_scheduler.ExponentialLR(o, 0.1), "epoch"), MOMENTUM, rates=2),
    "one cycle": Setup(scheduled(one_cycle), MOMENTUM, rates=9),
    "one cycle, epochs, accumulate 3": Setup(
        scheduled(one_cycle), MOMENTUM, 9, trainer(accumulate_grad_batches=3), "3ep"
    ),
    "plateau": Setup(scheduled(plateau, "epoch", monitor="val_loss"), MOMENTUM, rates=3, train_for="22it"),
    "plateau, validation inside": Setup(
        scheduled(plateau, "epoch", monitor="val_loss"), MOMENTUM, 3, trainer(val_check_interval=3), "22it"
    ),
    "warm-up": Setup(
        scheduled(lambda o, _: lr_scheduler.LambdaLR(o, lambda i: min(1, (i + 1) / 5))), MOMENTUM, rates=5
    ),
    "warm-up and cosine": Setup(scheduled(warm_up_and_cosine), MOMENTUM, rates=9),
    "adam, the rate a tensor": Setup(
        lambda m: [
            [o := Adam(m.parameters(), lr=torch.tensor(5e-3), fused=True)],
            [{"scheduler": lr_scheduler.StepLR(o, 2), "interval": "step"}],
        ],
        MOMENTS,
        rates=5,
    ),
    "compiled": Setup(adam, MOMENTS, compiler="eager"),
    "compiled, aot autograd": Setup(sgd, MOMENTUM, compiler="aot_eager"),
    "tied": Setup(sgd, MOMENTUM, net=Tied, reinit=True),
}


LIKE_ANOTHER = (
    *("16-mixed, overflow, fused", "accumulate 3", "clip norm, accumulate 3", "clip value, accumulate 2"),
    *("adam, fused", "adam, foreach", "sgd", "sgd, momentum, nesterov", "adamw", "step", "step, every second"),
    *("one cycle", "plateau", "warm-up", "compiled", "compiled, aot autograd", "64-true", "bf16-true"),
)
"""Setups that differ from another in a number, or in an implementation that torch promises to be equal."""


# ------------------------------------------------------------------------ what is looked at


def tensors(module: nn.Module) -> State:
    """Parameters and buffers themselves, under the names of a network that is not compiled."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return {name.replace("_orig_mod.", ""): value.data for name, value in named}


def on_cpu(state: State) -> State:
    return {name: value.cpu().clone() for name, value in state.items()}


def masked_parameters(module: nn.Module, masks: Masks) -> Iterator[tuple[nn.Parameter, Tensor]]:
    for name, parameter in module.named_parameters():
        if (mask := masks.get(name.replace("_orig_mod.", ""))) is not None:
            yield parameter, mask.to(parameter.device)


def state_of(optimizer: Optimizer, weight: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
    """The optimizer's tensors of the weight's shape, by key: LBFGS has them all in one vector, or in lists of such."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if not any(weight is p for p in parameters):
        return
    if isinstance(optimizer, torch.optim.LBFGS):
        sizes = [p.numel() for p in parameters]
        here = next(i for i, p in enumerate(parameters) if p is weight)
        for key, value in optimizer.state[parameters[0]].items():
            for vector in value if isinstance(value, list) else [value]:
                if torch.is_tensor(vector) and vector.shape == (sum(sizes),):
                    yield key, vector.split(sizes)[here].view_as(weight)
    else:
        for key, value in optimizer.state.get(weight, {}).items():
            if torch.is_tensor(value) and value.shape == weight.shape:
                yield key, value


class Watch(L.Callback):
    """Looks at what is pruned after every batch, and keeps what each network went through."""

    def __init__(self) -> None:
        self.looks = 0
        self.keys: set[str] = set()
        self.rates: list[list[float]] = []
        self.scales: list[list[float]] = []
        self.ends: list[State] = []

    def on_network_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.rates.append([])
        self.scales.append([])

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        _note(trainer, self.rates[-1], self.scales[-1])

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        (lottery,) = [callback for callback in trainer.callbacks if isinstance(callback, LotteryTicket)]
        for weight, mask in masked_parameters(module, lottery.masks_in_force):
            assert not weight[~mask].any()
            if weight.grad is not None and not self.spoilt_by_clipping(trainer, weight.grad[mask]):
                assert not weight.grad[~mask].any()
            for optimizer in trainer.optimizers:
                for key, value in state_of(optimizer, weight):
                    assert not value[~mask].any(), key
                    self.keys.add(key)
            self.looks += bool((~mask).any())

    def spoilt_by_clipping(self, trainer: L.Trainer, survivors: Tensor) -> bool:
        """A norm that overflowed makes NaN of 0 too, in a step that the scaler then skips."""
        clips = trainer.gradient_clip_val or not trainer.lightning_module.automatic_optimization
        return bool(clips) and hasattr(trainer.precision_plugin, "scaler") and not survivors.isfinite().all()

    def on_network_end(self, trainer: L.Trainer, module: L.LightningModule, row: Any) -> None:
        self.ends.append(on_cpu(tensors(module)))


def _note(trainer: L.Trainer, rates: list[float], scales: list[float]) -> None:
    rates.append(float(trainer.optimizers[0].param_groups[0]["lr"]))
    if (scaler := getattr(trainer.precision_plugin, "scaler", None)) is not None:
        scales.append(scaler.get_scale())


class Alone(L.Callback):
    """One network's training by itself: its start, its order of the data, its draws, and 0 where it is pruned."""

    def __init__(
        self, start: State, masks: Masks, order: int, loader: TensorLoader, seed: int = SEED, batches: int = 0
    ) -> None:
        self.start, self.masks, self.order, self.loader, self.seed = start, masks, order, loader, seed
        self.batches = batches  # to stop after, or 0
        self.rates: list[float] = []
        self.scales: list[float] = []

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for name, value in tensors(module).items():
            value.copy_(self.start[name])

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        torch.manual_seed(derive_seed(self.seed, "epoch", self.order, trainer.current_epoch))
        self.loader.seek(trainer.current_epoch, seed=derive_seed(SEED, "order", self.order))

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        _note(trainer, self.rates, self.scales)

    def on_after_backward(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for weight, mask in masked_parameters(module, self.masks):
            if weight.grad is not None:
                weight.grad[~mask] = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        for weight, mask in masked_parameters(module, self.masks):
            weight.data *= mask
        trainer.should_stop = len(self.rates) == self.batches


def train_alone(setup: Setup, start: State, masks: Masks, order: int, **settings: Any) -> tuple[State, Alone]:
    """A plain Trainer's fit of a new module; the lottery has no part in it."""
    data, module = digits(), replace(setup, compiler=None).module()
    data.setup("fit")
    amount, unit = int(setup.train_for[:-2]), setup.train_for[-2:]
    length = {{"it": "max_steps", "ep": "max_epochs"}[unit]: amount}
    if not module.automatic_optimization:  # the lottery takes each batch for a step, the Trainer each optimizer's step
        length = {}
        settings["batches"] = amount
    alone = Alone(start, masks, order, data.train_dataloader(), **settings)
    make_trainer(callbacks=[alone], **length, **setup.trainer()).fit(module, alone.loader, data.val_dataloader())
    return on_cpu(tensors(module)), alone


def run_lottery(setup: Setup, folder: Path, *callbacks: L.Callback) -> tuple[Fit, Watch]:
    watch = Watch()
    controls = ["random_reinit"] if setup.reinit else []
    run = fit(
        setup.module(),
        digits(),
        folder,
        trainer=setup.trainer(),
        callbacks=(*callbacks, watch),
        train_for=setup.train_for,
        controls=controls,
        evaluate_test=False,
        seed=SEED,
    )
    return run, watch


# ------------------------------------------------------------------------ what must be true


@pytest.mark.parametrize("name", [pytest.param(one, marks=weekly if one in LIKE_ANOTHER else ()) for one in SETUPS])
def test_every_network_equals_its_training_alone_and_what_is_pruned_stays_0(tmp_path: Path, name: str) -> None:
    setup = SETUPS[name]
    if not setup.available:
        pytest.skip("not in this torch, or on GPUs only")
    run, watch = run_lottery(setup, tmp_path)
    batches = len(watch.rates[0])
    assert watch.looks >= 2 * 2 * batches, "two weights or more, two rounds and more"
    assert watch.keys == setup.state
    assert {len(set(rates)) for rates in watch.rates} == {setup.rates}
    for i, network in enumerate(run.lottery.plan):
        ticket, start = run.ticket(network.round), on_cpu(run.witness.starts[i])
        if network.variant == "ticket":
            assert_same(start, masked(ticket.rewind_point, ticket.masks))
            assert_same(watch.ends[i], ticket.trained)
        trained, alone = train_alone(setup, start, ticket.masks, order=network.round)
        assert_same(watch.ends[i], trained)
        assert watch.rates[i] == alone.rates == watch.rates[0]
        assert watch.scales[i] == alone.scales
        for key, mask in ticket.masks.items():
            assert (trained[key] != start[key])[mask].float().mean() > 0.5, "survivors learn"


@pytest.fixture(scope="module")
def clipped(tmp_path_factory: pytest.TempPathFactory) -> Fit:
    return run_lottery(SETUPS["clip norm"], tmp_path_factory.mktemp("clipped"))[0]


@pytest.mark.parametrize("fault", ["dense", "another mask", "another order", "other draws", "a step less"])
def test_a_training_with_one_fault_is_found_to_differ(fault: str, clipped: Fit) -> None:
    setup, run = SETUPS["clip norm"], clipped
    ticket, order, settings = run.ticket(2), 2, {}
    masks = {name: mask.clone() for name, mask in ticket.masks.items()}
    match fault:
        case "dense":
            masks = {}
        case "another mask":
            first_pruned = tuple((~masks["net.1.weight"]).nonzero()[0])
            masks["net.1.weight"][first_pruned] = True
        case "another order":
            order = 1
        case "other draws":
            settings = {"seed": SEED + 1}
        case "a step less":
            setup = replace(setup, train_for="8it")
    with pytest.raises(AssertionError):
        assert_same(train_alone(setup, ticket.rewind_point, masks, order, **settings)[0], ticket.trained)


@pytest.mark.parametrize("what", ["weight", "gradient", "state"])
def test_a_pruned_entry_that_is_not_0_is_seen(tmp_path: Path, what: str) -> None:
    class Meddler(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, module: Module, *_: Any) -> None:
            weight = module.net[5].weight
            state = trainer.optimizers[0].state[weight]["momentum_buffer"]
            {"weight": weight.data, "gradient": weight.grad, "state": state}[what].add_(1e-30)

    with pytest.raises(AssertionError):
        run_lottery(SETUPS["clip norm"], tmp_path, Meddler())


# ------------------------------------------------------------------------ half precision


@pytest.mark.parametrize("name", [name for name in SETUPS if name.startswith("16-mixed, overflow")])
def test_overflow_skips_steps_and_every_network_starts_with_the_first_scale(tmp_path: Path, name: str) -> None:
    class Moved(L.Callback):
        """Whether a batch has changed the weights."""

        def __init__(self) -> None:
            self.weights: list[Tensor] = []
            self.seen: list[bool] = []

        def on_train_batch_start(self, trainer: L.Trainer, module: Module, *_: Any) -> None:
            self.before = module.net[5].weight.detach().clone()

        def on_train_batch_end(self, trainer: L.Trainer, module: Module, *_: Any) -> None:
            self.seen.append(not torch.equal(self.before, module.net[5].weight))

    setup, moved = SETUPS[name], Moved()
    run, watch = run_lottery(setup, tmp_path, moved)
    scaler = run.trainer.precision_plugin.scaler
    assert type(scaler) is torch.amp.GradScaler and scaler._scale.device.type == "cpu"
    batches = len(watch.rates[0])
    for i, scales in enumerate(watch.scales):
        assert scales[0] == OVERFLOW["init_scale"]
        assert min(scales) < scales[0] and scales[-1] != scales[0]
        fell = [after < before for before, after in pairwise(scales)]
        assert not any(m and f for m, f in zip(moved.seen[i * batches :], fell, strict=False)), "skipped"
        assert any(moved.seen[i * batches : (i + 1) * batches])


def test_an_infinite_gradient_of_a_pruned_weight_is_0_too() -> None:
    """Else a scaler would skip the step for it, and without one its momentum and weight would be NaN."""
    layer = nn.Linear(2, 1, bias=False)
    optimizer = SGD(layer.parameters(), lr=0.1, momentum=0.9)
    MaskHooks({"weight": layer.weight}, [optimizer]).enforce({"weight": torch.tensor([[True, False]])})
    for _ in range(2):
        (10 * layer(torch.tensor([[1.0, 3e38]]))).sum().backward()
        optimizer.step()
    assert layer.weight.grad.tolist() == [[20.0, 0.0]]
    assert layer.weight[0, 1] == 0
    assert optimizer.state[layer.weight]["momentum_buffer"][0, 1] == 0


# ------------------------------------------------------------------------ clipping


class Clipping(L.Callback):
    """Clips the survivors' gradients by hand, and compares them with those that each step was made with."""

    def __init__(self, limit: float, by: str) -> None:
        self.limit, self.by = limit, by
        self.clipped = 0
        self.steps = 0

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        (self.lottery,) = [callback for callback in trainer.callbacks if isinstance(callback, LotteryTicket)]
        self.module = module
        self.hooks = [optimizer.register_step_post_hook(self.compare) for optimizer in trainer.optimizers]

    def on_after_backward(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.raw = {p: p.grad.clone() for p in module.parameters() if p.grad is not None}

    def compare(self, optimizer: Optimizer, *_: Any) -> None:
        masks = dict(masked_parameters(self.module, self.lottery.masks_in_force))
        owned = [p for group in optimizer.param_groups for p in group["params"]]
        survivors = {p: (self.raw[p] * masks[p] if p in masks else self.raw[p]).double() for p in owned}
        norm = sum(float((gradient**2).sum()) for gradient in survivors.values()) ** 0.5
        for p, gradient in survivors.items():
            by_norm = gradient * min(1.0, self.limit / norm)
            expected = by_norm if self.by == "norm" else gradient.clamp(-self.limit, self.limit)
            torch.testing.assert_close(p.grad, expected.float(), rtol=1e-4, atol=1e-9)
            self.clipped += not torch.equal(expected, gradient)
        self.steps += 1


@pytest.mark.parametrize(
    ("name", "limit", "by", "steps"),
    [
        ("clip norm", 0.5, "norm", 9),
        ("clip norm, accumulate 3", 0.5, "norm", 9),
        ("two optimizers", 0.5, "norm", 18),
        ("clip value", 0.01, "value", 9),
        ("clip value, accumulate 2", 0.01, "value", 9),
    ],
)
def test_clipping_knows_only_survivors(tmp_path: Path, name: str, limit: float, by: str, steps: int) -> None:
    clipping = Clipping(limit, by)
    run, _ = run_lottery(SETUPS[name], tmp_path, clipping)
    assert clipping.steps == steps * len(run.rows)
    assert clipping.clipped > clipping.steps / 2


# ------------------------------------------------------------------------ compiled and tied networks


def test_a_network_is_compiled_once_for_all_rounds_and_its_tickets_fit_one_that_is_not(tmp_path: Path) -> None:
    compiled = 0

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        nonlocal compiled
        compiled += 1
        return graph.forward

    counts = []
    for rounds in (1, 5):
        torch.compiler.reset()
        compiled = 0
        module = Module(torch.compile(network(), backend=backend), adam)
        run = fit(module, digits(), tmp_path / f"{rounds}", rounds=rounds)
        counts.append(compiled)
    assert counts[0] == counts[1] > 0
    ticket, other = run.ticket(5), Module(network(), adam)
    assert list(ticket.masks) == ["net.1.weight", "net.5.weight"]
    ticket.apply(other, "trained")
    assert_same(tensors(other), ticket.trained)


def test_a_shared_weight_is_pruned_counted_and_rewound_once(tmp_path: Path) -> None:
    run, _ = run_lottery(SETUPS["tied"], tmp_path)
    sizes = {"net.into.weight": 64 * 40, "net.out.weight": 40 * 10, "net.first.weight": 40 * 40}
    for row in run.rows:
        kept = [int(run.ticket(row.round).masks[name].sum()) for name in sizes]
        assert (row.prunable, row.kept) == (sum(sizes.values()), sum(kept))
    for round in range(3):
        ticket = run.ticket(round)
        assert {name: mask.numel() for name, mask in ticket.masks.items()} == sizes
        assert "net.second.weight" not in ticket.rewind_point.keys() | ticket.trained.keys()
        other = Tied()
        ticket.apply(other, "trained")
        assert other.second.weight is other.first.weight
        assert torch.equal(other.second.weight, ticket.trained["net.first.weight"])
    assert run.module.net.second.weight is run.module.net.first.weight
    assert torch.equal(
        run.start(2)["net.first.weight"], run.start(0)["net.first.weight"] * ticket.masks["net.first.weight"]
    )
