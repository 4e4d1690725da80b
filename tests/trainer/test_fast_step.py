"""The fast step is Lightning's own: the same hooks in the same order, the same counters, and the same weights."""

import gc
import inspect
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_same, copies, digits, fit, make_trainer, mlp, weekly
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lth_lightning import LotteryTicket
from lth_lightning.lottery.divergence import LossWatch
from lth_lightning.trainer import fast_step

STEP_HOOKS = (*fast_step.HOOKS, "on_train_epoch_start", "on_validation_end")


class Diary(L.Callback):
    """What happened in a fit, in its order; a callback only because none is looked into where a module keeps it."""

    def __init__(self) -> None:
        self.entries: list[Any] = []

    def note(self, who: str, hook: str, module: L.LightningModule, args: tuple[Any, ...]) -> None:
        self.entries.append((who, hook, module._current_fx_name, [_in_short(one) for one in args]))


def _in_short(thing: Any) -> Any:
    """Tensors by their sum, and whether they carry a graph; containers by what is in them; the rest by its type."""
    if isinstance(thing, Tensor):
        return tuple(thing.shape), thing.dtype, float(thing.detach().double().sum()), thing.requires_grad
    if isinstance(thing, dict):
        return {name: _in_short(value) for name, value in thing.items()}
    if isinstance(thing, list | tuple):
        return type(thing).__name__, [_in_short(part) for part in thing]
    return thing if isinstance(thing, int | float | None) else type(thing).__name__


class Listener(L.Callback):
    """Overrides every hook of a step, and logs in one."""

    def __init__(self, diary: Diary) -> None:
        self.diary = diary

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        self.diary.entries.append(_counters(trainer))
        self.diary.note("callback", "on_train_batch_start", module, args)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        self.diary.entries.append(_counters(trainer))
        self.diary.note("callback", "on_train_batch_end", module, args)
        self.log("from_callback", float(trainer.global_step), on_step=True)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.diary.entries.append(_counters(trainer))
        self.diary.note("callback", "on_validation_end", module, ())


def _listen(hook: str) -> Callable[..., None]:
    def listen(self: Listener, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        self.diary.note("callback", hook, module, args)

    return listen


for _hook in set(STEP_HOOKS) - vars(Listener).keys():
    setattr(Listener, _hook, _listen(_hook))


def _counters(trainer: L.Trainer) -> Any:
    loop = trainer.fit_loop.epoch_loop
    progress = [loop.batch_progress, loop.scheduler_progress, loop.automatic_optimization.optim_progress]
    known = {name: float(value) for name, value in trainer._logger_connector._callback_metrics.items()}
    return [loop._batches_that_stepped, trainer.global_step, known, *(one.state_dict() for one in progress)]


class Talker(L.LightningModule):
    """Overrides hooks too, and logs each step."""

    def __init__(self, diary: Diary) -> None:
        super().__init__()
        self.diary, self.net = diary, nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Dropout(0.1), nn.Linear(12, 10))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.diary.note("module", "training_step", self, (batch, batch_idx))
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.diary.note("module", "on_before_zero_grad", self, (optimizer,))

    def on_after_backward(self) -> None:
        self.diary.note("module", "on_after_backward", self, [p.grad for p in self.parameters()])

    def on_train_batch_end(self, *args: Any) -> None:
        self.diary.note("module", "on_train_batch_end", self, args)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


class SaysMore(Talker):
    def training_step(self, batch: tuple[Tensor, Tensor]) -> Any:  # without the batch's number
        return {"loss": super().training_step(batch, 0), "size": len(batch[1])}


class SkipsSome(Talker):
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Any:
        return None if batch_idx == 2 else super().training_step(batch, batch_idx)


class LeavesEpochs(Talker):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if self.trainer.current_epoch == 0 and batch_idx == 4 else None


class Moves(Talker):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] * 0.5, batch[1]


class Clips(Talker):
    def configure_gradient_clipping(self, optimizer: Any, **settings: Any) -> None:
        self.diary.note("module", "configure_gradient_clipping", self, (optimizer,))
        self.clip_gradients(optimizer, gradient_clip_val=0.01, gradient_clip_algorithm="norm")


class Closes(Talker):
    def configure_optimizers(self) -> Any:
        return torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3)


def scheduled(interval: str, kind: str) -> type[Talker]:
    class Scheduled(Talker):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)
            if kind == "plateau":
                scheduler: Any = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
            else:
                scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.7)
            schedule = {"scheduler": scheduler, "interval": interval, "monitor": "val_loss"}
            return {"optimizer": optimizer, "lr_scheduler": schedule}

    return Scheduled


class Curve(Logger):
    """What is logged, and at which step."""

    def __init__(self, diary: Diary) -> None:
        super().__init__()
        self.diary = diary

    name, version = "curve", 0

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.diary.entries.append(("logged", step, metrics))


Setup = tuple[type[Talker], dict[str, Any], Callable[[], tuple[L.Callback, ...]]]


def no_more() -> tuple[L.Callback, ...]:
    return ()


def early_stop() -> tuple[L.Callback, ...]:
    return (EarlyStopping("val_loss", patience=0, min_delta=10, check_on_train_epoch_end=False),)


SETUPS: dict[str, Setup] = {
    "plain": (Talker, {}, no_more),
    "logged every step": (Talker, {"log_every_n_steps": 1}, no_more),
    "evaluated every 3 steps": (Talker, {"val_check_interval": 3, "check_val_every_n_epoch": None}, no_more),
    "evaluated twice an epoch": (Talker, {"val_check_interval": 0.5}, no_more),
    "evaluated every second epoch": (Talker, {"check_val_every_n_epoch": 2}, no_more),
    "never evaluated": (Talker, {"limit_val_batches": 0}, no_more),
    "short epochs": (Talker, {"limit_train_batches": 3}, no_more),
    "clipped": (Talker, {"gradient_clip_val": 0.02}, no_more),
    "clipped in its own way": (Clips, {}, no_more),
    "accumulated": (Talker, {"accumulate_grad_batches": 2}, no_more),
    "bfloat16": (Talker, {"precision": "bf16-mixed"}, no_more),
    "double": (Talker, {"precision": "64-true"}, no_more),
    "schedule by steps": (scheduled("step", "step"), {}, no_more),
    "schedule by epochs": (scheduled("epoch", "step"), {}, no_more),
    "plateau by epochs": (scheduled("epoch", "plateau"), {}, no_more),
    "plateau by steps": (
        scheduled("step", "plateau"),
        {"val_check_interval": 1, "check_val_every_n_epoch": None},
        no_more,
    ),
    "stopped early": (Talker, {"val_check_interval": 3, "check_val_every_n_epoch": None}, early_stop),
    "a mapping, no number": (SaysMore, {}, no_more),
    "steps skipped": (SkipsSome, {}, no_more),
    "epochs left": (LeavesEpochs, {}, no_more),
    "batches changed on their way": (Moves, {}, no_more),
    "LBFGS": (Closes, {}, no_more),
}


def _diary_of(name: str, folder: Path) -> tuple[list[Any], dict[str, Tensor]]:
    make, trainer, more = SETUPS[name]
    torch.manual_seed(0)
    diary = Diary()
    module = make(diary)
    settings = {"logger": Curve(diary), "log_every_n_steps": 2, **trainer}
    fit(module, digits(), folder, trainer=settings, rounds=1, train_for="10it", callbacks=(Listener(diary), *more()))
    return diary.entries, copies(module)


LIKE_ANOTHER = (
    *("logged every step", "evaluated twice an epoch", "evaluated every second epoch", "double"),
    *("schedule by epochs", "plateau by steps"),
)


@pytest.mark.filterwarnings("ignore")  # Lightning's, of skipped steps and of hooks that a module has
@pytest.mark.parametrize("name", [pytest.param(one, marks=weekly if one in LIKE_ANOTHER else ()) for one in SETUPS])
def test_hooks_counters_logs_and_weights_are_those_of_lightnings_own_step(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick, quick_weights = _diary_of(name, tmp_path / "quick")
    monkeypatch.setattr(fast_step, "applies", lambda trainer: False)
    usual, usual_weights = _diary_of(name, tmp_path / "usual")
    assert any(entry[:2] == ("callback", "on_before_optimizer_step") for entry in usual)
    for one, other in zip(quick, usual, strict=False):  # entry by entry, so that the first that differs is shown
        assert one == other
    assert len(quick) == len(usual)
    assert_same(quick_weights, usual_weights)


def test_hooks_are_lightnings() -> None:
    """Every hook of a step that Lightning has is one that is called, or one that is left to it."""
    named_so = [
        name
        for name, _ in inspect.getmembers(L.Callback, inspect.isfunction)
        if ("train_batch" in name or "backward" in name or "zero_grad" in name or "optimizer" in name)
    ]
    assert sorted(named_so) == sorted(fast_step.HOOKS)


# ------------------------------------------------------------------------------------- where it applies


@pytest.fixture
def usual_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each step that Lightning's own loop takes."""
    taken: list[int] = []
    advance = _TrainingEpochLoop.advance

    def counted(self: Any, data_fetcher: Any) -> None:
        taken.append(self.global_step)
        advance(self, data_fetcher)

    monkeypatch.setattr(_TrainingEpochLoop, "advance", counted)
    return taken


def test_the_usual_fit_takes_fast_steps_only_and_gives_the_loop_back(usual_steps: list[int], tmp_path: Path) -> None:
    done = fit(mlp(), digits(), tmp_path)
    assert not usual_steps
    assert not {"advance", "on_advance_end"} & vars(done.trainer.fit_loop.epoch_loop).keys()
    assert not [name for name in vars(done.trainer.optimizers[0]) if name in fast_step.CAPTURE_CHECKS]


class Backward(Talker):
    def backward(self, loss: Tensor) -> None:
        loss.backward()


class OwnStep(Talker):
    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        optimizer.step(closure=optimizer_closure)


class ByHand(Talker):
    def __init__(self, diary: Diary) -> None:
        super().__init__(diary)
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(F.cross_entropy(self.net(batch[0]), batch[1]))
        optimizer.step()


@pytest.mark.parametrize(
    ("make", "trainer"),
    [
        (Backward, {}),
        (OwnStep, {}),
        (ByHand, {}),
        (Talker, {"profiler": "simple"}),
        (Talker, {"plugins": [MixedPrecision("16-mixed", "cpu")]}),
    ],
    ids=["backward", "optimizer_step", "manual optimization", "profiler", "scaled losses"],
)
def test_steps_that_are_not_the_usual_one_are_lightnings(
    make: type[Talker], trainer: dict[str, Any], usual_steps: list[int], tmp_path: Path
) -> None:
    fit(make(Diary()), digits(), tmp_path, rounds=1, train_for="4it", trainer=trainer)
    assert len(usual_steps) == 8


def test_it_is_switched_off_by_the_environment_and_on_by_default(
    usual_steps: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = []
    for value, steps in (("1", 0), ("0", 20)):
        monkeypatch.setenv("LTH_FAST_STEP", value)
        usual_steps.clear()
        torch.manual_seed(0)
        weights.append(copies(fit(mlp(), digits(), tmp_path / value, rounds=1).module))
        assert len(usual_steps) == steps
    assert_same(*weights)


def test_a_lightning_of_another_source_takes_its_own_steps(
    usual_steps: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another body of any one of the methods, as a new version would bring."""
    for i in range(len(fast_step.COPIED)):
        monkeypatch.setattr(fast_step, "COPIED", (*COPIED[:i], Backward.backward, *COPIED[i + 1 :]))
        assert fast_step.source_hash(fast_step.COPIED) not in fast_step.CHECKED
    fit(mlp(), digits(), tmp_path, rounds=1, train_for="4it")
    assert len(usual_steps) == 8


COPIED = fast_step.COPIED


# ------------------------------------------------------------------------------------- what a step must not do


WAITS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique", "item")


def fused() -> L.LightningModule:
    """As in configs; others count steps in tensors on the CPU, and read them there."""
    return mlp(optimizer=lambda parameters: torch.optim.Adam(parameters, lr=2e-3, fused=True))


class Waiting(TorchDispatchMode):
    """Counts what would make the host wait for a device: a number read, or a size that hangs on values."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put_") and any(
            isinstance(one, Tensor) and one.dtype == torch.bool for one in args[1]
        )
        if name in WAITS or by_mask:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def test_the_counter_of_waits_counts_them() -> None:
    values = torch.arange(4.0)
    for wait in (
        lambda: float(values.sum()),
        lambda: bool((values > 1).any()),
        lambda: values[values > 1],
        lambda: torch.equal(values, values.clone()),
    ):
        with Waiting() as waiting:
            wait()
        assert waiting.seen


@pytest.mark.skipif(torch.cuda.is_available(), reason="the test below counts on the device itself")
def test_no_step_reads_from_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the loader to the last hook, augmented, dense and masked, as it is done where the device is no CPU."""
    waits: list[list[str]] = []
    start_over, advance = LossWatch.start_over, fast_step.FastStep.advance

    def as_on_a_device(self: LossWatch, *args: Any) -> None:
        start_over(self, *args)
        self._at_once = False  # a loss is looked at on the device

    def counted(self: Any, data_fetcher: Any) -> None:
        with Waiting() as waiting:
            advance(self, data_fetcher)
        waits.append(waiting.seen)

    monkeypatch.setattr(LossWatch, "start_over", as_on_a_device)
    monkeypatch.setattr(fast_step.FastStep, "advance", counted)
    fit(fused(), digits(augment=True), tmp_path, rounds=1, train_for="14it", controls=["random_mask"])
    assert len(waits) == 3 * 14
    assert not any(waits)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_step_waits_for_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = fast_step.FastStep.advance

    def watched(self: Any, data_fetcher: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            advance(self, data_fetcher)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(fast_step.FastStep, "advance", watched)
    trainer = {"accelerator": "gpu", "devices": 1}
    fit(fused(), digits(augment=True), tmp_path, rounds=1, train_for="14it", trainer=trainer)


class Living(L.Callback):
    """How many tensors and hooks there are as each network starts."""

    def __init__(self) -> None:
        self.tensors: list[int] = []
        self.hooks: list[int] = []

    def on_network_start(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        gc.collect()
        kinds = Counter(map(type, gc.get_objects()))  # of a million things
        self.tensors.append(sum(count for kind, count in kinds.items() if issubclass(kind, Tensor)))
        on_weights = [len(weight._post_accumulate_grad_hooks or ()) for weight in module.parameters()]
        on_steps = len(trainer.optimizers[0]._optimizer_step_post_hooks)
        self.hooks.append(sum(on_weights) + on_steps + len(trainer.callbacks))


def test_nothing_grows_with_rounds(tmp_path: Path) -> None:
    living = Living()
    lottery = LotteryTicket(rounds=6, train_for="4it", run_dir=tmp_path)
    make_trainer(callbacks=[lottery, living]).fit(mlp(), datamodule=digits())
    assert living.hooks[1:] == living.hooks[1:2] * 6
    assert living.tensors[2:] == living.tensors[2:3] * 5
