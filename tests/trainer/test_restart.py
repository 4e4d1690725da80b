"""Every network starts new: optimizers, schedules, callbacks, buffers, parameters. What a module keeps itself is told.

Tried, each in a fit of several networks, and held against a plain loop from the ticket's own start where it trains.

Optimizers and schedules:

- All of torch.optim (tests/behaviour/test_training_matrix.py): in place, from the `state_dict` they began with.
- Lookahead, with and without `Optimizer.__init__`; float32 masters; a counter of its own; Lion: made anew.
- torch's Adam with a `step` that closes over a counter; LambdaLR whose function counts: found stale, made anew.
- Of pytorch_optimizer 4.1: Lookahead, ScheduleFreeAdamW, ScheduleFreeSGD, Ranger, Prodigy, DAdaptAdam, Lion, AdaBelief,
RAdam, Shampoo, NovoGrad, Adan, Lamb, SWATS, GrokFastAdamW; of timm 1.0: SGD, SGDP, AdamW, NAdamW, LAMB, LARS,
  MADGRAD, Lion, Adan, Adafactor, AdafactorBigVision, Mars, Muon, Lookahead over SGD and Adam: bit for bit a plain
  loop's.
- The same where `configure_optimizers` returns one object each time, as the command line's does: refused, but for
  Lion, which keeps all in `state` and is found to be new.
- An optimizer that the module puts aside, steps itself or in the backward pass; one not of torch's kind: refused.
- rewind="nothing": the rate of the dense network's last step, held; schedules are still to be seen.
- `global_step` of manual optimization with several steps a batch, at a late rewind: the dense network's.
- Weights, buffers, modes, rates and frozen biases set in `on_fit_start`, `on_train_start`: every network's start. A
  weight matrix frozen there: refused.
- A `state_dict` that does not hold all of it, resumed inside a network: refused at the resume. SAM too, whose base
  optimizer has momentum; resumed if the base has no state, or if SAM's `state_dict` holds it.
- Schedules by steps or epochs of any frequency, by hand in a step or at an epoch's end, OneCycleLR with its momentum,
  warm restarts, at a late rewind: where they stood at the rewind point. ReduceLROnPlateau: new. A frequency that does
  not divide the rewind point's place in its epoch, tickets from files with schedules moved by hand: refused.

What a module changes:

- Number, text, list, dict, set, deque, array, generator, tensor that is not a buffer; an attribute of an object, of a
  submodule or of a class; hyperparameters; a module hidden in a list; a dataset that it fills; a GradScaler: told,
  once.
- Metrics of torchmetrics, logged or not: MaxMetric, MinMaxMetric, MetricTracker, collections, in lists, in callbacks,
  updated before the fit, made in `setup("test")`: as at the start of the fit, also in networks after a resume.
- `trainer.gradient_clip_val` and the like, set while it trains: as at the start of the fit.
- What it empties itself before it trains or evaluates, what it sets in `on_network_start`, metrics, constants that are
  made late: not told.
- A buffer that grows, appears, becomes None, changes type, is not persistent: as it was at the rewind point.
- A parameter that appears, goes, is replaced, changes shape; a weight that is unfrozen; groups that are added: refused.
- A bias that is unfrozen, a weight that is frozen, a layer put into evaluation mode: as it was at the start.

Other callbacks:

- EarlyStopping, SpikeDetection, ModelCheckpoint, averages (test_guests.py): new in each network; at the end a
  ModelCheckpoint speaks of the last ticket.
- ModelCheckpoint(enable_version_counter=False), BaseFinetuning, BackboneFinetuning: refused.
- Timer (the whole fit's), LearningRateMonitor, DeviceStatsMonitor: nothing of theirs decides anything.
- People's own with both `state_dict` and `load_state_dict`, data modules too: loaded anew, also after a resume.
- Numbers, text, generators of people's own, of class or object, and of a data module: told. What they set in
  `on_network_start`, what they only add to lists and dicts, what Lightning's base class keeps: not told.

Training data: datasets, samplers, batch samplers and collate functions with counters or generators: told, in a time
that does not grow with the data. Generators and epochs that each epoch sets: not told.
"""

import collections
import contextlib
import itertools
import logging
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Cut, Fit, Order, assert_same, copies, digits, fit, make_trainer, train_by_hand
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    ModelCheckpoint,
    SpikeDetection,
    TQDMProgressBar,
)
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, CosineAnnealingWarmRestarts, ExponentialLR, LambdaLR, OneCycleLR
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchmetrics import MaxMetric, MeanMetric, MetricCollection, SumMetric
from torchmetrics.wrappers import MetricTracker, MinMaxMetric

from lth_lightning import SettingError
from lth_lightning.trainer.contents import changed, contents


class Module(L.LightningModule):
    """A small network, trained by whatever `optimise` makes of the module."""

    def __init__(self, optimise: Callable[[L.LightningModule], Any] | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
        self._optimise = [optimise or (lambda module: SGD(module.parameters(), lr=0.1, momentum=0.9))]

    def configure_optimizers(self) -> Any:
        return self._optimise[0](self)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        logits = self.net(batch[0])
        self.log("val_loss", F.cross_entropy(logits, batch[1]))
        self.log("val_acc", (logits.argmax(1) == batch[1]).float().mean())


def run_of(make: Callable[[], L.LightningModule], folder: Path, **settings: Any) -> Fit:
    torch.manual_seed(0)
    run = fit(make(), digits(), folder, evaluate_test=False, **settings)
    run.make_module = make
    return run


# ------------------------------------------------------------------------ optimizers and schedules


def lookahead(whole: bool) -> Callable[[L.LightningModule], Any]:
    """A class of its own each: torch gives a class its hooks with the first that calls `Optimizer.__init__`."""

    class Lookahead(Optimizer):
        """Zhang et al. 2019: every third step, weights go half of the way that they have come, from slow ones."""

        def __init__(self, base: Optimizer) -> None:
            if whole:
                super().__init__(base.param_groups, {})
            self.base, self.count = base, 0
            self.param_groups, self.state, self.defaults = base.param_groups, base.state, base.defaults
            self.slow = [p.detach().clone() for p in base.param_groups[0]["params"]]

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            loss = self.base.step(closure)
            self.count += 1
            if self.count % 3 == 0:
                for p, q in zip(self.param_groups[0]["params"], self.slow, strict=True):
                    q.lerp_(p, 0.5)
                    p.copy_(q)
            return loss

        def zero_grad(self, set_to_none: bool = True) -> None:
            self.base.zero_grad(set_to_none)

        def state_dict(self) -> dict[str, Any]:
            return self.base.state_dict()

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.base.load_state_dict(state)
            self.param_groups, self.state = self.base.param_groups, self.base.state

    return lambda module: Lookahead(Adam(module.parameters(), 1e-2))


class Masters(SGD):
    """Steps copies of the weights, and copies them back."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr)
        self.masters = {p: p.detach().double() for group in self.param_groups for p in group["params"]}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure() if closure else None
        for p, master in self.masters.items():
            p.copy_(master.sub_(self.param_groups[0]["lr"] * p.grad))
        return loss


class WarmUp(SGD):
    """Counts its steps, and takes smaller ones at first."""

    steps = 0

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        self.param_groups[0]["lr"] = 0.1 * min(1.0, self.steps / 8)
        return super().step(closure)


class Lion(Optimizer):
    """All its state where torch looks for it."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                p.sub_(mean.lerp(p.grad, 0.1).sign_(), alpha=group["lr"])
                mean.lerp_(p.grad, 0.01)
        return loss


def patched(module: L.LightningModule) -> Optimizer:
    optimizer, counter = Adam(module.parameters(), lr=1e-2), [0]
    step = optimizer.step

    def slower(closure: Any = None) -> Any:
        counter[0] += 1
        optimizer.param_groups[0]["lr"] = 1e-2 / counter[0]
        return step(closure)

    optimizer.step = slower  # type: ignore[method-assign]
    return optimizer


def counting_schedule(module: L.LightningModule) -> Any:
    optimizer, counter = SGD(module.parameters(), lr=0.1, momentum=0.9), itertools.count(1)
    schedule = LambdaLR(optimizer, lambda _: 1 / next(counter))
    return [optimizer], [{"scheduler": schedule, "interval": "epoch"}]


STALE: dict[str, Callable[[L.LightningModule], Any]] = {
    "lookahead": lookahead(whole=True),
    "lookahead without Optimizer.__init__": lookahead(whole=False),
    "masters": lambda module: Masters(module.parameters(), lr=0.1),
    "warm-up": lambda module: WarmUp(module.parameters(), lr=0.1),
    "a step that closes over a counter": patched,
    "a schedule that counts": counting_schedule,
}
OPTIMIZERS = STALE | {"lion": lambda module: Lion(module.parameters(), lr=1e-3)}


def same_each_time(optimise: Callable[[L.LightningModule], Any]) -> Callable[[L.LightningModule], Any]:
    """As the command line's automatic `configure_optimizers` does it."""
    made: list[Any] = []

    def once(module: L.LightningModule) -> Any:
        made.append(optimise(module) if not made else made[0])
        return made[0]

    return once


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_network_is_trained_as_by_an_optimizer_that_was_made_for_it(name: str, tmp_path: Path) -> None:
    run = run_of(lambda: Module(OPTIMIZERS[name]), tmp_path, train_for="14it", controls=["random_mask"])
    for round in range(3):
        masks = run.ticket(round).masks
        alone = train_by_hand(run, run.start(round), masks, first_step=0, last_step=14, order=round)
        assert_same(alone, run.ticket(round).trained)
        assert all(not (weight[~masks[key]] != 0).any() for key, weight in alone.items() if key in masks)


@pytest.mark.parametrize("name", STALE)
def test_an_optimizer_that_can_neither_be_made_anew_nor_be_found_new_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="configure_optimizers: .* keeps .* from network to network"):
        run_of(lambda: Module(same_each_time(OPTIMIZERS[name])), tmp_path)
    if name in ("lookahead", "masters"):
        assert not list(tmp_path.glob("tickets/*")), "before anything is trained"


def test_an_optimizer_that_keeps_all_in_its_state_may_be_the_same_each_time(tmp_path: Path) -> None:
    one, other = (
        run_of(lambda make=make: Module(make(OPTIMIZERS["lion"])), tmp_path / make.__name__)  # type: ignore[misc]
        for make in (same_each_time, lambda optimise: optimise)
    )
    assert_same(one.ticket(2).trained, other.ticket(2).trained)


def test_optimizers_of_torch_stay_the_same_objects(tmp_path: Path) -> None:
    class Look(L.Callback):
        seen: ClassVar[list[Any]] = []

        def on_network_start(self, trainer: L.Trainer, *_: Any) -> None:
            self.seen.append(trainer.optimizers[0])

    run_of(Module, tmp_path, callbacks=(Look(),))
    assert all(optimizer is Look.seen[0] for optimizer in Look.seen) and len(Look.seen) == 3


class Rates(L.Callback):
    """The learning rate and momentum of each step, by network."""

    def __init__(self) -> None:
        self.seen: list[list[tuple[float, float]]] = []

    def on_network_start(self, *_: Any) -> None:
        self.seen.append([])

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        group = optimizer.param_groups[0]
        self.seen[-1].append((float(group["lr"]), float(group["momentum"])))


def scheduled(make: Callable[[Optimizer], Any], **config: Any) -> Callable[[L.LightningModule], Any]:
    def optimise(module: L.LightningModule) -> Any:
        optimizer = SGD(module.parameters(), lr=0.1, momentum=0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": make(optimizer), **config}}

    return optimise


class MovesItself(Module):
    """Manual optimization: a schedule for steps, and what it does to momentum by hand where an epoch ends."""

    automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()
        if batch_idx % 2:
            self.lr_schedulers().step()  # type: ignore[union-attr]

    def on_train_epoch_end(self) -> None:
        self.optimizers().param_groups[0]["momentum"] *= 0.9  # type: ignore[union-attr]
        self.lr_schedulers().step()  # type: ignore[union-attr]


SCHEDULES: dict[str, tuple[type[Module], Callable[[Optimizer], Any], dict[str, Any], str, dict[str, Any]]] = {
    "every third batch": (
        *(Module, lambda o: ExponentialLR(o, 0.5)),
        *({"interval": "step", "frequency": 3}, "10it", {}),
    ),
    "every third batch, accumulated": (
        *(Module, lambda o: ExponentialLR(o, 0.5)),
        *({"interval": "step", "frequency": 3}, "11it", {"accumulate_grad_batches": 2}),
    ),
    "every second epoch": (Module, lambda o: ExponentialLR(o, 0.5), {"frequency": 2}, "17it", {}),
    "one cycle": (Module, lambda o: OneCycleLR(o, 0.2, total_steps=22), {"interval": "step"}, "9it", {}),
    "warm restarts": (Module, lambda o: CosineAnnealingWarmRestarts(o, 3), {"interval": "step"}, "8it", {}),
    "by hand, inside an epoch": (MovesItself, lambda o: ExponentialLR(o, 0.5), {}, "9it", {}),
    "by hand, between epochs": (MovesItself, lambda o: ExponentialLR(o, 0.5), {}, "2ep", {}),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_move_on_from_the_rewind_point_as_in_the_dense_network(name: str, tmp_path: Path) -> None:
    kind, make, config, rewind_to, trainer = SCHEDULES[name]
    settings = {"rounds": 1, "train_for": "21it", "rewind_to": rewind_to, "trainer": trainer}
    rates = Rates()
    run_of(lambda: kind(scheduled(make, **config)), tmp_path / "whole", callbacks=(rates,), **settings)
    dense, ticket = rates.seen
    assert len(dense) == 21 and len(set(dense)) > 1
    assert ticket == dense[{"2ep": 14}.get(rewind_to) or int(rewind_to[:-2]) :]
    if trainer or kind is MovesItself:
        return
    # From files the schedule cannot be known, and is counted: as Lightning moves it.
    given = Rates()
    more = {"rounds": None, "tickets": tmp_path / "whole" / "tickets", "callbacks": (given,)}
    run_of(lambda: kind(scheduled(make, **config)), tmp_path / "given", **{**settings, **more})
    assert given.seen[1] == ticket


def test_schedules_at_the_rewind_point_come_back_with_a_resume(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"rounds": 1, "train_for": "21it", "rewind_to": "9it"}
    seen = []
    for name in ("whole", "cut"):
        rates = Rates()
        callbacks = (rates, Cut(16)) if name == "cut" else (rates,)
        with pytest.raises(RuntimeError, match="cut") if name == "cut" else contextlib.nullcontext():
            run_of(lambda: MovesItself(SCHEDULES_BY_HAND), tmp_path / name, callbacks=callbacks, **settings)
        seen.append(rates.seen)
    last, rates = tmp_path / "cut" / "checkpoints" / "last.ckpt", Rates()
    run_of(lambda: MovesItself(SCHEDULES_BY_HAND), tmp_path / "cut", callbacks=(rates,), ckpt_path=last, **settings)
    assert rates.seen[-1] == seen[0][-1] and len(seen[1]) == 1


SCHEDULES_BY_HAND = scheduled(lambda optimizer: ExponentialLR(optimizer, 0.5))


def test_schedules_that_would_move_at_other_steps_are_refused_before_training(tmp_path: Path) -> None:
    every_second = scheduled(lambda optimizer: ExponentialLR(optimizer, 0.5), interval="step", frequency=2)
    with pytest.raises(SettingError, match=r"ExponentialLR moves every 2 batches.*step 10, lies after 3.*multiple of"):
        run_of(lambda: Module(every_second), tmp_path / "odd", train_for="14it", rewind_to="10it")
    assert not list(tmp_path.glob("odd/results.csv"))
    settings: dict[str, Any] = {"rounds": 1, "train_for": "9it", "rewind_to": "4it"}
    run_of(lambda: MovesItself(SCHEDULES_BY_HAND), tmp_path / "source", **settings)
    with pytest.raises(SettingError, match=r"moved by the module itself .*step 4, the rewind point of the tickets"):
        run_of(
            lambda: MovesItself(SCHEDULES_BY_HAND),
            tmp_path / "given",
            **{**settings, "rounds": None, "tickets": tmp_path / "source" / "tickets"},
        )


@pytest.mark.parametrize("by_hand", [False, True])
def test_fine_tuning_holds_the_rate_of_the_dense_networks_last_step(by_hand: bool, tmp_path: Path) -> None:
    """A schedule moves once more after that step; OneCycleLR and cosine are near 0 there. It stays visible."""

    class Logs(MovesItself if by_hand else Module):  # type: ignore[misc]
        def on_train_batch_end(self, *_: Any) -> None:
            shown.append(self.lr_schedulers().get_last_lr()[0])

    shown: list[float] = []
    rates = Rates()
    optimise = scheduled(lambda optimizer: CosineAnnealingLR(optimizer, 10 if by_hand else 2), interval="epoch")
    run = run_of(lambda: Logs(optimise), tmp_path, train_for="14it", rewind="nothing", callbacks=(rates,))
    dense, *later = ([rate for rate, _ in network] for network in rates.seen)
    assert dense[0] == 0.1 and dense[-1] < 0.1
    assert later == [[dense[-1]] * 14] * 2 and shown[14:] == [dense[-1]] * 28
    assert not hasattr(run.trainer.lr_scheduler_configs[0].scheduler, "_moving"), "the schedule is as it was"


class Counts(Rates):
    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        self.seen[-1].append(trainer.global_step)  # type: ignore[arg-type]

    def on_before_optimizer_step(self, *_: Any) -> None:
        pass


def test_global_step_counts_several_steps_a_batch_from_the_rewind_point_on(tmp_path: Path) -> None:
    class Twice(MovesItself):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            super().training_step(batch, batch_idx)
            self.optimizers().step()  # type: ignore[union-attr]

    counts = Counts()
    run_of(
        lambda: Twice(SCHEDULES_BY_HAND),
        tmp_path,
        rounds=1,
        train_for="14it",
        rewind_to="6it",
        callbacks=(counts,),
    )
    assert counts.seen == [list(range(0, 28, 2)), list(range(12, 28, 2))]


# ------------------------------------------------------------------------ what hooks set up at the start


class SetUp(Module):
    def __init__(self, optimise: Callable[[L.LightningModule], Any] | None = None) -> None:
        super().__init__(optimise)
        self.register_buffer("scale", torch.ones(()))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self.scale * super().training_step(batch, batch_idx)

    def set_up(self) -> None:
        """What a test is about."""


class EvaluatesItsNorm(SetUp):
    def __init__(self) -> None:
        super().__init__()
        self.net.insert(2, nn.BatchNorm1d(12))

    def set_up(self) -> None:
        self.net[2].eval()


class FreezesABias(SetUp):
    def set_up(self) -> None:
        self.net[1].bias.requires_grad_(False)


class InitialisesAnew(SetUp):
    def set_up(self) -> None:
        self.net[1].weight.data.copy_(torch.linspace(-0.1, 0.1, 12 * 64).sin().view(12, 64))


class SetsARate(SetUp):
    def set_up(self) -> None:
        self.trainer.optimizers[0].param_groups[0]["lr"] = 0.5


class FillsABuffer(SetUp):
    def set_up(self) -> None:
        self.scale.fill_(3.0)


@pytest.mark.filterwarnings("ignore:Found 1 module", "ignore:You defined a `validation_step`")
@pytest.mark.parametrize(
    ("kind", "hook"),
    [
        (EvaluatesItsNorm, "on_train_start"),
        (FreezesABias, "on_fit_start"),
        (InitialisesAnew, "on_fit_start"),
        (SetsARate, "on_train_start"),
        (FillsABuffer, "on_train_start"),
    ],
)
def test_what_hooks_set_up_at_the_start_is_every_networks_start(kind: type[SetUp], hook: str, tmp_path: Path) -> None:
    def make() -> L.LightningModule:
        return type(kind.__name__, (kind,), {hook: lambda self: self.set_up()})()

    rates, seen = Rates(), Batches()
    run = run_of(make, tmp_path / "whole", rounds=1, callbacks=(rates, seen))
    torch.manual_seed(0)
    plain = make()
    make_trainer(max_steps=10, limit_val_batches=0).fit(plain, DataLoader(seen.batches[:10], batch_size=None))
    assert_same(copies(plain), run.ticket(0).trained)
    assert rates.seen[0] == rates.seen[1]
    with pytest.raises(RuntimeError, match="cut"):
        run_of(make, tmp_path / "cut", rounds=1, callbacks=(Cut(9),))
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    again = run_of(make, tmp_path / "cut", rounds=1, ckpt_path=last)
    assert_same(again.ticket(1).trained, run.ticket(1).trained)


class Batches(L.Callback):
    def __init__(self) -> None:
        self.batches: list[Any] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        self.batches.append([part.clone() for part in batch])


def test_a_copy_that_is_made_at_the_start_of_the_fit_starts_with_the_mask_of_its_source(tmp_path: Path) -> None:
    class Follows(Module):
        def __init__(self) -> None:
            super().__init__()
            self.target = nn.Linear(64, 12)

        def on_fit_start(self) -> None:
            self.target.load_state_dict(self.net[1].state_dict())

        def configure_optimizers(self) -> Any:
            return SGD(self.net.parameters(), lr=0.1)

    run = run_of(Follows, tmp_path, rounds=1)
    pruned = ~run.ticket(1).masks["net.1.weight"]
    assert pruned.any() and not run.start(1)["target.weight"][pruned].any()


def test_weights_that_are_frozen_after_the_prunable_ones_are_counted_are_refused(tmp_path: Path) -> None:
    class Freezes(Module):
        def on_train_start(self) -> None:
            self.net[1].weight.requires_grad_(False)

    with pytest.raises(
        SettingError, match=r"Freezes: on_fit_start or on_train_start has frozen or unfrozen net.1.weig"
    ):
        run_of(Freezes, tmp_path)
    assert not list(tmp_path.glob("tickets/*"))


# ------------------------------------------------------------------------ optimizers of the module's own


def test_an_optimizer_that_the_module_puts_aside_is_refused(tmp_path: Path) -> None:
    class Aside(Module):
        automatic_optimization = False

        def on_fit_start(self) -> None:
            self.mine = [self.optimizers()]

    with pytest.raises(SettingError, match=r"Aside: mine keeps an optimizer or schedule, but Lion is recreated"):
        run_of(lambda: Aside(OPTIMIZERS["lion"]), tmp_path)


def test_an_optimizer_that_is_not_returned_is_refused_at_its_first_step(tmp_path: Path) -> None:
    class During(Module):
        """Each layer is stepped as soon as its gradient is there."""

        def on_fit_start(self) -> None:
            self.inner = {p: SGD([p], lr=0.1, momentum=0.9) for p in self.parameters()}
            for p, optimizer in self.inner.items():
                p.register_post_accumulate_grad_hook(lambda _, optimizer=optimizer: optimizer.step())

    with pytest.raises(SettingError, match=r"During: SGD steps its weights, but configure_optimizers does not return"):
        run_of(During, tmp_path)


def test_what_is_no_optimizer_of_torch_is_refused(tmp_path: Path) -> None:
    class Duck:
        def __init__(self, base: Optimizer) -> None:
            self.base, self.param_groups, self.state, self.defaults = base, base.param_groups, base.state, base.defaults
            self.step, self.zero_grad = base.step, base.zero_grad
            self.state_dict, self.load_state_dict = base.state_dict, base.load_state_dict

    with pytest.raises(SettingError, match=r"Duck is not a torch.optim.Optimizer"):
        run_of(lambda: Module(lambda module: Duck(SGD(module.parameters(), lr=0.1))), tmp_path)


def test_what_a_checkpoint_does_not_hold_of_an_optimizer_is_found_out_at_the_resume(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"train_for": "21it", "rounds": 1}
    for name, cut_at in (("lookahead", 25), ("lion", 37), ("lookahead", 37)):
        folder = tmp_path / f"{name} {cut_at}"
        whole = run_of(lambda name=name: Module(OPTIMIZERS[name]), tmp_path / f"whole {folder.name}", **settings)  # type: ignore[misc]
        with pytest.raises(RuntimeError, match="cut"):
            run_of(lambda name=name: Module(OPTIMIZERS[name]), folder, callbacks=(Cut(cut_at),), **settings)  # type: ignore[misc]

        def resume(folder: Path = folder, name: str = name) -> Fit:
            last = folder / "checkpoints" / "last.ckpt"
            return run_of(lambda: Module(OPTIMIZERS[name]), folder, ckpt_path=last, **settings)

        if (name, cut_at) == ("lookahead", 37):
            with pytest.raises(SettingError, match="ckpt_path: Lookahead keeps .* outside its state_dict"):
                resume()
        else:  # at a network's start Lookahead has nothing of its own yet
            assert_same(resume().ticket(1).trained, whole.ticket(1).trained)


class SAM(Optimizer):
    """Foret et al. 2021, as in davda54/sam: its `state_dict` holds nothing of the optimizer that it wraps."""

    def __init__(self, module: nn.Module, whole: bool, **settings: Any) -> None:
        super().__init__(module.parameters(), settings)
        self.base = SGD(self.param_groups, **settings)
        self.param_groups, self.whole = self.base.param_groups, whole

    @torch.no_grad()
    def step(self, closure: Any) -> Any:  # type: ignore[override]
        loss = torch.enable_grad()(closure)()
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for weight in weights:
            self.state[weight]["old"] = weight.clone()
            weight.add_(0.05 * weight.grad / weight.grad.norm().clamp(min=1e-12))
        torch.enable_grad()(closure)()
        for weight in weights:
            weight.copy_(self.state[weight]["old"])
        self.base.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | ({"base": self.base.state_dict()} if self.whole else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict({name: state[name] for name in ("state", "param_groups")})
        if self.whole:
            self.base.load_state_dict(state["base"])
        self.base.param_groups = self.param_groups


@pytest.mark.parametrize(("momentum", "whole"), [(0.9, False), (0.9, True), (0.0, False)])
def test_the_momentum_inside_sam_is_resumed_or_refused(momentum: float, whole: bool, tmp_path: Path) -> None:
    def make() -> Module:
        return Module(lambda module: SAM(module, whole, lr=0.1, momentum=momentum))

    settings: dict[str, Any] = {"rounds": 1, "train_for": "9it"}
    with pytest.raises(RuntimeError, match="cut"):
        run_of(make, tmp_path / "cut", callbacks=(Cut(17),), **settings)
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    if momentum and not whole:
        with pytest.raises(SettingError, match=r"SAM keeps base\.state\[0\]\['momentum_buffer'\] outside its state_d"):
            run_of(make, tmp_path / "cut", ckpt_path=last, **settings)
    else:
        resumed = run_of(make, tmp_path / "cut", ckpt_path=last, **settings)
        assert_same(resumed.ticket(1).trained, run_of(make, tmp_path / "whole", **settings).ticket(1).trained)


# ------------------------------------------------------------------------ what a module keeps in attributes


class Holder:
    def __init__(self) -> None:
        self.value = 1.0


class Grows(Dataset):
    """A replay buffer."""

    def __init__(self) -> None:
        self.seen: list[int] = []


class Keeps(Module):
    """Changes one thing at each step, by `change`."""

    shared: ClassVar[list[int]] = []

    def __init__(self, prepare: Callable[[Any], None], change: Callable[[Any], None]) -> None:
        super().__init__()
        prepare(self)
        self._change = [change]
        self.shared.clear()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self._change[0](self)
        return super().training_step(batch, batch_idx)


def setting(**values: Any) -> Callable[[Any], None]:
    return lambda module: [setattr(module, name, value) for name, value in values.items()] and None


def shrink(module: Any) -> None:
    module.temperature *= 0.5


TOLD: dict[str, tuple[Callable[[Any], None], Callable[[Any], None], str]] = {
    "number": (setting(temperature=1.0), shrink, r"temperature \(1.0, now 0.0009765625\)"),
    "text": (setting(phase="a"), lambda m: setattr(m, "phase", m.phase + "b"), r"phase \('a', now 'abbbbbbbbbb'\)"),
    "list": (setting(seen=[]), lambda m: m.seen.append(1), "seen"),
    "dict": (setting(counts={}), lambda m: m.counts.update(n=m.counts.get("n", 0) + 1), "counts"),
    "nested": (setting(a={"b": [0]}), lambda m: m.a["b"].append(3), "a"),
    "set": (setting(ids=set()), lambda m: m.ids.add(len(m.ids)), "ids"),
    "deque": (setting(last=collections.deque([0], 3)), lambda m: m.last.append(m.last[-1] + 1), "last"),
    "array": (setting(prior=np.ones(3)), lambda m: m.prior.__imul__(0.9), "prior"),
    "tensor that is not a buffer": (setting(mean=torch.ones(3)), lambda m: m.mean.mul_(0.9), "mean"),
    "generator of Python's": (setting(dice=random.Random(0)), lambda m: m.dice.random(), "dice"),
    "generator of torch's": (
        setting(dice=torch.Generator()),
        lambda m: torch.rand(1, generator=m.dice),
        "dice",
    ),
    "generator of NumPy's": (setting(dice=np.random.default_rng(0)), lambda m: m.dice.random(), "dice"),
    "object": (setting(holder=Holder()), lambda m: setattr(m.holder, "value", m.holder.value + 1), r"holder.value"),
    "submodule": (lambda m: None, lambda m: setattr(m.net[2], "rate", getattr(m.net[2], "rate", 1) / 2), r"net.2.rate"),
    "hidden module": (
        lambda m: setattr(m, "teachers", [nn.Linear(2, 2)]),
        lambda m: m.teachers[0].weight.data.mul_(0.9),
        "teachers",
    ),
    "class": (lambda m: None, lambda m: m.shared.append(1), "Keeps.shared"),
    "hyperparameter": (
        lambda m: m.save_hyperparameters({"alpha": 1.0}),
        lambda m: m.hparams.update(alpha=m.hparams.alpha / 2),
        "_hparams",
    ),
    "dataset": (lambda m: setattr(m, "replay", Grows()), lambda m: m.replay.seen.append(1), r"replay.seen \(0 entries"),
    "scaler": (
        setting(scaler=torch.amp.GradScaler("cpu", init_scale=4.0)),
        lambda m: m.scaler.update(2 * m.scaler.get_scale() if m.scaler.scale(torch.ones(1)) else None),
        "scaler",
    ),
    "lazily made": (lambda m: None, lambda m: setattr(m, "ema", getattr(m, "ema", 0) + 1), "ema"),
}


def heard(
    caplog: pytest.LogCaptureFixture, make: Callable[[], L.LightningModule], folder: Path, **more: Any
) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "lth_lightning"):
        run_of(make, folder, **more)
    others = "lth_lightning.lottery.recorder"  # says that nothing logs train_loss
    return [record.getMessage() for record in caplog.records if record.name != others]


@pytest.mark.parametrize("what", TOLD)
def test_what_training_changes_in_a_module_and_nobody_restores_is_told_once(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepare, change, words = TOLD[what]
    (told,) = heard(caplog, lambda: Keeps(prepare, change), tmp_path)
    assert re.match(rf"Keeps: training has changed {words}\W", told), told


def test_what_a_module_sets_back_itself_is_not_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Tidy(Module):
        """What people write: lists for an epoch, sums for an evaluation, metrics, things that stay as they are."""

        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters({"width": 12})
            self.losses: list[Tensor] = []
            self.scores: list[Tensor] = []
            self.total, self.temperature, self.metric = 0, 1.0, MeanMetric()
            self.example_input_array = torch.zeros(1, 1, 8, 8)

        def on_network_start(self, network: Any, density: float) -> None:
            self.temperature = 1.0
            self.heard = density

        def on_network_end(self, row: Any) -> None:
            del self.heard

        def on_train_epoch_start(self) -> None:
            self.losses = []

        def on_validation_epoch_start(self) -> None:
            self.scores.clear()
            self.total = 0

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            self.losses.append(loss.detach())
            self.metric(loss)
            self.log("train_loss", self.metric, on_epoch=True)
            self.temperature *= 0.5
            self.positions = torch.arange(8)
            return loss

        def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            super().validation_step(batch, batch_idx)
            self.scores.append(self.net(batch[0]))
            self.total += len(batch[0])

    assert heard(caplog, Tidy, tmp_path / "tidy") == []
    assert heard(caplog, lambda: Module(OPTIMIZERS["lookahead"]), tmp_path / "module") == []


class Metered(Module):
    """Metrics of all kinds, none of which is logged as an object, so that nobody resets them."""

    def __init__(self) -> None:
        super().__init__()
        self.best, self.extremes = MaxMetric(), MinMaxMetric(MeanMetric())
        self.history = MetricTracker(MeanMetric(), maximize=True)
        self.both = MetricCollection([MeanMetric(), MaxMetric()])
        self.hidden, self.begun = [SumMetric()], SumMetric()
        self.begun.update(3)
        self.begun.persistent(True)
        self.starts: list[Any] = []

    def setup(self, stage: str) -> None:
        if stage == "test":
            self.late = SumMetric()

    def on_network_start(self, network: Any, density: float) -> None:
        every = [self.best, self.extremes._base_metric, *self.both.values(), *self.hidden, self.begun, self.late]
        counts = [metric.update_count for metric in every]
        extremes = (float(self.extremes.min_val), float(self.extremes.max_val))
        self.starts.append((counts, extremes, self.history.n_steps, float(self.begun.compute())))

    def on_validation_epoch_start(self) -> None:
        self.history.increment()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)
        for metric in (self.best, self.extremes, self.history, self.both, *self.hidden, self.begun, self.late):
            metric.update(batch[0].mean() + len(self.starts))
        self.extremes.compute()

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log_dict(self.both(batch[0].mean()))


FRESH = ([0, 0, 0, 0, 0, 1, 0], (float("inf"), float("-inf")), 0, 3.0)
AS_TESTED = {"metrics": {"test_loss": "MeanMetric"}, "train_for": "14it", "rounds": 1}


def metered(folder: Path, **settings: Any) -> Fit:
    return fit(Metered(), digits(), folder, **{**AS_TESTED, **settings})


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")  # of torchmetrics, in a test without batches
def test_metrics_start_in_each_network_as_at_the_start_of_the_fit(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"controls": ["random_mask"]}
    assert metered(tmp_path / "whole", **settings).module.starts == [FRESH] * 3
    with pytest.raises(RuntimeError, match="cut"):
        metered(tmp_path / "cut", callbacks=(Cut(10),), **settings)
    resumed = metered(tmp_path / "cut", ckpt_path=tmp_path / "cut" / "checkpoints" / "last.ckpt", **settings)
    assert resumed.module.starts == [FRESH] * 2, "those of the networks after the one that is resumed"


def test_settings_of_the_trainer_that_training_changes_are_set_back(tmp_path: Path) -> None:
    class Clips(Module):
        seen: ClassVar[list[Any]] = []

        def on_train_epoch_start(self) -> None:
            self.seen.append(self.trainer.gradient_clip_val)
            self.trainer.gradient_clip_val = 0.001

    run_of(Clips, tmp_path, train_for="2ep", trainer={"gradient_clip_val": 0.5})
    assert Clips.seen == [0.5, 0.001] * 3


def test_a_module_hears_of_its_networks_and_not_of_one_that_is_resumed(tmp_path: Path) -> None:
    class Hears(Module):
        heard: ClassVar[list[Any]] = []

        def on_network_start(self, network: Any, density: float) -> None:
            self.heard.append((network.round, density))

        def on_network_end(self, row: Any) -> None:
            self.heard.append(row.round)

    settings: dict[str, Any] = {"train_for": "14it", "rounds": 1}
    with pytest.raises(RuntimeError, match="cut"):
        run_of(Hears, tmp_path, callbacks=(Cut(24),), **settings)
    assert [entry if isinstance(entry, int) else entry[0] for entry in Hears.heard] == [0, 0, 1]
    run_of(Hears, tmp_path, ckpt_path=tmp_path / "checkpoints" / "last.ckpt", **settings)
    assert [entry if isinstance(entry, int) else entry[0] for entry in Hears.heard] == [0, 0, 1, 1]
    assert Hears.heard[0] == (0, 1.0)


def test_a_second_fit_on_a_ticket_is_told_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = Module()
    assert heard(caplog, lambda: module, tmp_path / "first") == []
    (told,) = heard(caplog, lambda: module, tmp_path / "second")
    assert "round 0 does not start from a new network: 35.9 % of the module's prunable weights are already 0" in told


# ------------------------------------------------------------------------ buffers and parameters


class Bank(Module):
    """Buffers that grow, appear, vanish and change type while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("grows", torch.zeros(0, 2))
        self.register_buffer("appears", None)
        self.register_buffer("vanishes", torch.ones(3))
        self.register_buffer("converts", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("passing", torch.zeros(1), persistent=False)
        self.starts: list[Any] = []

    def on_network_start(self, network: Any, density: float) -> None:
        self.starts.append({name: None if value is None else value.tolist() for name, value in self._buffers.items()})

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.grows = torch.cat([self.grows, torch.ones(1, 2)])
        self.appears, self.vanishes = torch.ones(2), None
        self.converts = self.converts.double() + 1
        self.passing = torch.cat([self.passing, self.passing])[:4]
        if "late" not in self._buffers:
            self.register_buffer("late", torch.zeros(2))
        return super().training_step(batch, batch_idx)


def test_buffers_start_as_at_the_rewind_point_whatever_became_of_them(tmp_path: Path) -> None:
    run = run_of(Bank, tmp_path, controls=["random_reinit", "pruned_only"])
    trained_ones = [row.variant != "pruned_only" for row in run.rows]
    first, *others = itertools.compress(run.module.starts, trained_ones)
    assert first == {"grows": [], "appears": None, "vanishes": [1.0] * 3, "converts": [0, 0], "passing": [0.0]}
    assert all(start == first for start in others) and len(others) == 4
    assert run.module.grows.shape == (10, 2) and run.module.converts.dtype == torch.float64
    assert run.module.passing.shape == (4,) and "passing" not in run.module.state_dict()
    trained = Bank()
    run.ticket(2).apply(trained, weights="trained")
    assert_same(copies(trained), copies(run.module))


CHANGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "appears": (lambda m: setattr(m, "extra", nn.Parameter(torch.ones(1))), "extra is new"),
    "goes": (lambda m: m.net[3].register_parameter("bias", None), "net.3.bias is missing"),
    "is replaced": (
        lambda m: setattr(m.net[1], "weight", nn.Parameter(m.net[1].weight.detach().clone())),
        "net.1.weight is another object",
    ),
    "changes shape": (
        lambda m: setattr(m.net[3].bias, "data", torch.zeros(11)),
        r"net.3.bias was torch.float32 \(10,\) and is torch.float32 \(11,\)",
    ),
    "is unfrozen": (
        lambda m: m.net[1].requires_grad_(True),
        r"net.1.weight was frozen \(requires_grad\) and is now trained",
    ),
    "joins a group": (
        lambda m: m.optimizers().optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]}),
        r"the optimizers' groups had \[\[4\]\] parameters and have \[\[4, 1\]\]",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_parameter_that_training_changes_for_good_stops_the_run(what: str, tmp_path: Path) -> None:
    change, words = CHANGES[what]

    class Changes(Module):
        def __init__(self) -> None:
            super().__init__()
            self.net[1].requires_grad_(what != "is unfrozen")

        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                change(self)

    with pytest.raises(SettingError, match=rf"Changes, epoch 1: {words}"):
        run_of(Changes, tmp_path, train_for="3ep")


def test_what_is_frozen_or_unfrozen_in_training_starts_as_in_the_first_network(tmp_path: Path) -> None:
    class Thaws(Module):
        def __init__(self) -> None:
            super().__init__()
            self.net[3].bias.requires_grad_(False)
            self.starts: list[Any] = []

        def on_train_batch_start(self, *_: Any) -> None:
            trained, modes = [p.requires_grad for p in self.parameters()], [part.training for part in self.modules()]
            if self.global_step == 0:
                self.starts.append((trained, modes))
            self.net[3].bias.requires_grad_(True)
            self.net[1].weight.requires_grad_(self.global_step < 5)
            self.net[2].eval()

    run = run_of(Thaws, tmp_path)
    assert run.module.starts == [([True, True, True, False], [True] * 6)] * 3


# ------------------------------------------------------------------------ other callbacks


@pytest.mark.parametrize("controls", [[], ["random_mask"]])
def test_the_best_checkpoint_is_that_of_the_last_ticket(controls: list[str], tmp_path: Path) -> None:
    class Look(L.Callback):
        def __init__(self) -> None:
            self.ends: list[Any] = []

        def on_network_end(self, trainer: L.Trainer, *_: Any) -> None:
            best = trainer.checkpoint_callback
            kept = {Path(path).name: float(score) for path, score in best.best_k_models.items()}
            self.ends.append((Path(best.best_model_path).name, float(best.best_model_score), kept))

    look, theirs = Look(), ModelCheckpoint(tmp_path / "theirs", "{epoch}", "val_loss", save_top_k=2, save_last=True)
    trainer = {"enable_checkpointing": True}
    run = run_of(
        Module, tmp_path / "run", train_for="3ep", controls=controls, callbacks=(theirs, look), trainer=trainer
    )
    assert len({name for name, _, _ in look.ends}) == len(run.rows), "no network's best overwrites another's"
    for (name, score, kept), row in zip(look.ends, run.rows, strict=True):
        curve = (run.lottery.folder.curve(row.round, row.variant, row.replicate)).read_text().splitlines()
        column = curve[0].split(",").index("val_loss")
        losses = sorted(float(line.split(",")[column]) for line in curve[1:])
        assert [score, *sorted(kept.values())] == pytest.approx([losses[0], *losses[:2]])
        assert all((tmp_path / "theirs" / file).is_file() for file in (name, *kept))
    last = next(i for i, row in reversed(list(enumerate(run.rows))) if row.variant == "ticket")
    assert Path(theirs.best_model_path).name == look.ends[last][0]
    best = run.trainer.test_best = run.trainer.validate(run.module, digits(), ckpt_path="best", verbose=False)[0]
    assert best["val_loss"] == pytest.approx(look.ends[last][1])
    masks = run.ticket(2).masks
    weights = dict(run.module.named_parameters())
    assert all(not bool(weights[name][~mask].any()) for name, mask in masks.items())
    assert Path(theirs.last_model_path).is_file()

    class Weights(L.Callback):
        def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            self.seen = copies(module)

    run.trainer.callbacks.append(weights := Weights())
    run.trainer.validate(run.module, digits(), ckpt_path="last", verbose=False)
    assert_same(weights.seen, run.ticket(2).trained)


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_the_best_checkpoint_survives_a_resume_in_a_control(tmp_path: Path) -> None:
    def run(folder: str, *more: L.Callback, **settings: Any) -> ModelCheckpoint:
        theirs = ModelCheckpoint(tmp_path / f"theirs {folder}", monitor="val_loss")
        settings |= {"train_for": "14it", "rounds": 1, "controls": ["random_mask"]}
        run_of(Module, tmp_path / folder, callbacks=(theirs, *more), trainer={"enable_checkpointing": True}, **settings)
        return theirs

    whole = run("whole")
    with pytest.raises(RuntimeError, match="cut"):
        run("cut", Cut(40))
    resumed = run("cut", ckpt_path=tmp_path / "cut" / "checkpoints" / "last.ckpt")
    assert Path(resumed.best_model_path).name == Path(whole.best_model_path).name
    assert resumed.best_model_score == whole.best_model_score


def test_a_checkpoint_callback_that_would_overwrite_another_networks_files_is_refused(tmp_path: Path) -> None:
    theirs = ModelCheckpoint(tmp_path / "theirs", monitor="val_loss", enable_version_counter=False)
    trainer = {"enable_checkpointing": True}
    with pytest.raises(SettingError, match="would overwrite one network's files with the next one's"):
        run_of(Module, tmp_path / "run", callbacks=(theirs,), trainer=trainer)
    run_of(Module, tmp_path / "dense", rounds=0, callbacks=(theirs,), trainer=trainer)


def test_a_last_checkpoint_that_cannot_be_made_the_tickets_is_refused(tmp_path: Path) -> None:
    theirs = ModelCheckpoint("memory://theirs", save_last=True)
    settings: dict[str, Any] = {"callbacks": (theirs,), "trainer": {"enable_checkpointing": True}, "rounds": 1}
    with pytest.raises(SettingError, match=r"ModelCheckpoint.save_last=True. writes to memory:.* that of a control"):
        run_of(Module, tmp_path / "refused", controls=["random_mask"], train_for="1it", **settings)


def test_a_loss_that_is_high_again_is_not_a_spike(tmp_path: Path) -> None:
    run_of(Module, tmp_path, train_for="28it", callbacks=(SpikeDetection(atol=1.0, rtol=1.0),))


def test_finetuning_callbacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="BackboneFinetuning freezes weights and unfreezes them later"):
        run_of(Module, tmp_path, callbacks=(BackboneFinetuning(),))


@pytest.mark.parametrize(
    ("least", "steps"),
    [({}, 7), ({"min_epochs": 3}, 21), ({"min_steps": 16}, 16), ({"min_epochs": 2, "min_steps": 9}, 14)],
)
def test_no_network_is_stopped_before_its_least_length(least: dict[str, int], steps: int, tmp_path: Path) -> None:
    stop = EarlyStopping("val_loss", patience=1, divergence_threshold=-1.0)  # at once
    run = run_of(Module, tmp_path, train_for="5ep", callbacks=(stop,), trainer=least)
    assert [row.steps for row in run.rows] == [steps] * 3


def test_a_run_is_not_resumed_with_another_least_length(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="cut"):
        run_of(Module, tmp_path, callbacks=(Cut(9),), trainer={"min_epochs": 2})
    last = tmp_path / "checkpoints" / "last.ckpt"
    with pytest.raises(SettingError, match=r"trainer.min_epochs was 2, is 1; trainer.min_steps was not set, is 3"):
        run_of(Module, tmp_path, ckpt_path=last, trainer={"min_epochs": 1, "min_steps": 3})
    run_of(Module, tmp_path, ckpt_path=last, trainer={"min_epochs": 2})


def test_a_stop_inside_an_epoch_shortens_no_later_one(tmp_path: Path) -> None:
    class Stops(L.Callback):
        networks = 0

        def on_network_start(self, *_: Any) -> None:
            self.networks += 1

        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.should_stop = self.networks == 1 and trainer.global_step == 3

    order = Order()
    stop = EarlyStopping("val_loss", patience=9)  # needs a validation in each epoch
    run = run_of(Module, tmp_path, train_for="16it", callbacks=(Stops(), stop, order))
    assert [row.steps for row in run.rows] == [3, 16, 16]
    assert [len(seen) for seen in order.seen] == [120, *[250 + 250 + 80] * 2], "epochs of 7, 7 and 2 batches"


# ------------------------------------------------------------------------ what callbacks and data keep


class WarmsUp(L.Callback):
    """Counts steps, as a class's default and as its own attribute."""

    steps = 0

    def __init__(self) -> None:
        self.starts: list[int] = []  # records, and is told to nobody
        self.rounds: dict[str, list[int]] = {"seen": []}

    def on_network_start(self, trainer: L.Trainer, module: L.LightningModule, network: Any, density: float) -> None:
        self.starts.append(self.steps)
        self.rounds["seen"].append(network.round)
        self.name = network.name

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps += 1


class SavesItself(WarmsUp):
    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


class SetsItself(WarmsUp):
    def on_network_start(self, *args: Any) -> None:
        super().on_network_start(*args)
        self.steps = 0


class Bar(TQDMProgressBar):
    """What its base class counts is Lightning's."""

    mine = 0

    def on_train_batch_end(self, *args: Any) -> None:
        super().on_train_batch_end(*args)
        self.mine += 1


def test_what_a_callback_counts_is_told_unless_it_saves_or_sets_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counts = WarmsUp()
    (told,) = heard(caplog, Module, tmp_path / "counts", callbacks=(counts,))
    assert told.startswith("Module: training has changed callback WarmsUp.steps (0, now 10). ")
    assert "Set a callback's in its on_network_start(trainer, module, network, density)" in told
    assert counts.starts == [0, 10, 20]
    for callback in (SavesItself(), SetsItself()):
        assert heard(caplog, Module, tmp_path / type(callback).__name__, callbacks=(callback,)) == []
    settings: dict[str, Any] = {"callbacks": (Bar(),), "trainer": {"enable_progress_bar": True}}
    (told,) = heard(caplog, Module, tmp_path / "bar", **settings)
    assert "changed callback Bar.mine (0, now 10)." in told


def test_a_callback_that_saves_itself_starts_anew_in_each_network_after_a_resume_too(tmp_path: Path) -> None:
    whole, cut, resumed = SavesItself(), SavesItself(), SavesItself()
    run_of(Module, tmp_path / "whole", callbacks=(whole,))
    with pytest.raises(RuntimeError, match="cut"):
        run_of(Module, tmp_path / "cut", callbacks=(cut, Cut(19)))
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    run_of(Module, tmp_path / "cut", callbacks=(resumed,), ckpt_path=last)
    assert whole.starts == [0, 0, 0] and cut.starts == [0, 0] and resumed.starts == [7, 0], "one in mid-network"
    assert whole.steps == resumed.steps == 10


class Noisy(Dataset):
    """A generator of its own; whoever asks it for entries moves it."""

    def __init__(self) -> None:
        self.dice = np.random.default_rng(0)

    def __len__(self) -> int:
        return 80

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((1, 8, 8), self.dice.random(), dtype=torch.float32), index % 10


class Sampled(torch.utils.data.Sampler):
    epochs = 0

    def __iter__(self) -> Any:
        self.epochs += 1
        return iter(range(self.epochs, 80 + self.epochs))

    def __len__(self) -> int:
        return 80


class Batched(Sampled):
    def __iter__(self) -> Any:
        return (list(range(i, i + 20)) for i in super().__iter__() if i % 20 == 0)

    def __len__(self) -> int:
        return 3


class Collates:
    calls = 0

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, batch: Any) -> Any:
        self.calls += 1
        return torch.utils.data.default_collate(batch)


def constant(size: int = 100) -> TensorDataset:
    return TensorDataset(torch.ones(size, 1, 8, 8), torch.arange(size) % 10)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


LOADERS: dict[str, tuple[Callable[[], DataLoader], str]] = {
    "a dataset's generator": (lambda: DataLoader(Noisy(), 20), "dataset.dice"),
    "one inside another": (
        lambda: DataLoader(torch.utils.data.Subset(Noisy(), range(40)), 20),
        "dataset.dataset.dice",
    ),
    "a sampler's counter": (lambda: DataLoader(constant(), 20, sampler=Sampled()), "sampler.epochs"),
    "a batch sampler's": (lambda: DataLoader(constant(), batch_sampler=Batched()), "batch_sampler.epochs"),
    "a collate function's": (lambda: DataLoader(constant(), 20, collate_fn=Collates()), "collate_fn.calls"),
    "stock": (lambda: DataLoader(constant(), 20, shuffle=True), ""),
    "stock, a generator that is seeded": (lambda: DataLoader(constant(), 20, shuffle=True, generator=seeded()), ""),
    "a distributed sampler": (
        lambda: DataLoader(constant(), 20, sampler=torch.utils.data.DistributedSampler(constant(), 1, 0)),
        "",
    ),
}


@pytest.mark.parametrize("name", LOADERS)
def test_what_training_data_keep_from_network_to_network_is_told(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make, words = LOADERS[name]

    class Data(L.LightningDataModule):
        def train_dataloader(self) -> DataLoader:
            return make()

        def val_dataloader(self) -> DataLoader:
            return DataLoader(constant(20), 20)

    torch.manual_seed(0)
    with caplog.at_level(logging.WARNING, "lth_lightning.trainer.watch"):
        fit(Module(), Data(), tmp_path, train_for="5it", evaluate_test=False)
    told = [record.getMessage() for record in caplog.records if record.name == "lth_lightning.trainer.watch"]
    assert len(told) == bool(words), told
    assert all(f"Module: training has changed train loader.{words}" in one for one in told)


def test_what_a_data_module_keeps_is_told_or_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded: list[int] = []

    class Levels(type(digits())):  # type: ignore[misc]
        level = 0

        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            self.level += 1
            return batch

    class Saves(Levels):
        def state_dict(self) -> dict[str, Any]:
            return {"level": self.level}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.level = state["level"]
            loaded.append(self.level)

    for kind, told in ((Levels, 1), (Saves, 0)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "lth_lightning.trainer.watch"):
            fit(Module(), kind(dataset="Digits", train_size=80, val_size=40), tmp_path / kind.__name__)
        lines = [one.getMessage() for one in caplog.records if one.name == "lth_lightning.trainer.watch"]
        assert len(lines) == told and all("data module Levels.level (1, now " in line for line in lines)
    assert loaded == [0, 0]


def test_large_data_are_compared_by_a_sample() -> None:
    class Counted(list):
        asked = 0

        def __iter__(self) -> Any:
            for entry in super().__iter__():
                Counted.asked += 1
                yield entry

    class Large(Dataset, collections.abc.Sequence):
        def __init__(self) -> None:
            self.names, self.counter = Counted(range(10**5)), [0]
            self.images = torch.empty(1).expand(10**12)
            self.pixels = np.broadcast_to(np.zeros(1), (10**12,))
            self.file = "x" * 10**6
            self.nested = {i: {j: [j] for j in range(10**3)} for i in range(10**2)}

        def __getitem__(self, index: Any) -> Any:
            raise AssertionError("drawn from")

        def __len__(self) -> int:
            return 10**12

    large = Large()
    before = contents({"loader": large}, {}, lambda *_: False)
    assert Counted.asked <= 31 and len(before) <= 501
    large.counter[0] += 1
    large.names.append(0)
    now = contents({"loader": large}, {}, lambda *_: False)
    assert changed(before, now) == ["loader.names", "loader.counter[0]"]
