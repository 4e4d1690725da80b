"""`lottery.engine: sparse` gives what the dense engine gives, up to the order of addition, whatever surrounds it.

Tried, in float64, every parameter of every ticket within 1e-9: SGD with momentum and weight decay, Adam, AdamW,
RMSprop, Adagrad; MLP, Conv-2 with pooling, ResNet with batch norm, a foreign module; clipping, accumulation,
schedules, averages, several groups; late rewinding, learning-rate rewinding, fine-tuning; controls; two processes.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import (
    DIGITS,
    FOREIGN_METRICS,
    HANGS,
    THOROUGH,
    Cut,
    ForeignData,
    ForeignModule,
    assert_same,
    digits,
    fit,
    mlp,
    needs_compiler,
    resnet,
    weekly,
)
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn

from lth_lightning import Engine, ImageClassifier, Pruning, SettingError, Ticket
from lth_lightning.models import Conv2
from lth_lightning.pruning.survivors import survivors_of
from lth_lightning.runs.rows import read_rows

pytestmark = needs_compiler
REPOSITORY = Path(__file__).parents[2]
ALWAYS = Engine("sparse", below=0.9)
IN_PARTS = Engine("sparse", below=0.9, fused=False)


def conv2() -> ImageClassifier:
    optimizer = lambda weights: torch.optim.SGD(weights, lr=0.02, momentum=0.9, weight_decay=1e-3)  # noqa: E731
    return ImageClassifier(Conv2(**DIGITS), optimizer=optimizer, init="glorot_normal", **DIGITS)


def mlp_with(kind: type[torch.optim.Optimizer], **settings: Any) -> Callable[[], ImageClassifier]:
    return lambda: mlp(optimizer=lambda weights: kind(weights, **settings))


class Groups(ForeignModule):
    """Two groups of parameters with learning rates of their own."""

    def configure_optimizers(self) -> Any:
        *first, last = self.body
        weights = [weight for layer in first for weight in layer.parameters()]
        groups = [{"params": weights}, {"params": list(last.parameters()), "lr": 0.01}]
        return torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=1e-3)


LENGTH = "50it" if THOROUGH else "20it"
ONE_ROUND = {} if THOROUGH else {"rounds": 1}
SHORT = {} if THOROUGH else {"train_for": "12it", "controls": []}
FOREIGN = {"data": ForeignData, "metrics": FOREIGN_METRICS}
CASES: dict[str, tuple[Callable[[], L.LightningModule], dict[str, Any]]] = {
    "adam": (mlp, {"controls": ["random_reinit", "pruned_only"]}),
    "adamw": (mlp_with(torch.optim.AdamW, lr=2e-3, weight_decay=0.1), {"rewind_to": "3it"}),
    "momentum": (mlp_with(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-3), {"rewind": "learning_rate"}),
    "rmsprop": (mlp_with(torch.optim.RMSprop, lr=1e-3), {"rewind": "nothing"}),
    "adagrad": (mlp_with(torch.optim.Adagrad, lr=1e-2), ONE_ROUND),
    "in parts": (mlp, {**ONE_ROUND, "engine": IN_PARTS}),
    "conv2": (conv2, {**SHORT, "rounds": 1}),
    "resnet": (resnet, {**SHORT, "controls": ["random_mask"]}),
    "foreign": (ForeignModule, {**SHORT, **FOREIGN}),
    "groups": (Groups, {**SHORT, **FOREIGN}),
    "clipping": (mlp, {**ONE_ROUND, "trainer": {"gradient_clip_val": 0.01}}),
    "accumulation": (mlp, {**ONE_ROUND, "trainer": {"accumulate_grad_batches": 2}}),
    "averages": (mlp, {**ONE_ROUND, "callbacks": lambda: (EMAWeightAveraging(decay=0.8),)}),
    "schedule": (
        lambda: mlp(lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.5)),
        ONE_ROUND,
    ),
}


def run(folder: Path, case: str, engine: Engine | str, **given: Any) -> Any:
    make, settings = CASES[case]
    settings = {"train_for": LENGTH, "controls": [], **settings, **given}
    make_data, callbacks = settings.pop("data", digits), settings.pop("callbacks", tuple)
    if engine != "dense":
        engine = settings.pop("engine", engine)
    settings.pop("engine", None)
    trainer = {"precision": "64-true", **settings.pop("trainer", {})}
    torch.manual_seed(0)
    extra = settings.pop("more", ())
    return fit(
        make(), make_data(), folder, trainer=trainer, callbacks=(*callbacks(), *extra), engine=engine,
        pruning=Pruning(rate=0.6), **settings,
    )  # fmt: skip


LIKE_ANOTHER = ("adamw", "rmsprop", "groups")  # tests/sparse/test_training.py compares fused steps of each


@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step")
@pytest.mark.parametrize("case", [pytest.param(one, marks=weekly if one in LIKE_ANOTHER else ()) for one in CASES])
def test_it_trains_the_same(case: str, tmp_path: Path) -> None:
    dense, sparse = run(tmp_path / "dense", case, "dense"), run(tmp_path / "sparse", case, ALWAYS)
    for round in {row.round for row in dense.rows}:
        ours, theirs = sparse.ticket(round), dense.ticket(round)
        assert_same(ours.masks, theirs.masks)
        for name, value in theirs.trained.items():
            error = (ours.trained[name] - value).abs().max()
            assert error <= 1e-9 * value.abs().max().clamp(min=1e-12), (round, name, error)
    for ours, theirs in zip(sparse.rows, dense.rows, strict=True):
        assert ours.kept == theirs.kept and ours.val_loss == pytest.approx(theirs.val_loss, rel=1e-9)
        assert ours.engine == (None if ours.variant == "pruned_only" else "dense" if ours.round == 0 else "sparse")
        assert theirs.engine is None
    assert read_rows(tmp_path / "sparse/results.csv") == sparse.rows
    assert "engine" not in (tmp_path / "dense/results.csv").read_text()


class Peeks(L.Callback):
    """Notes what a callback sees of a network's layers while it trains, at its end, and in checkpoints."""

    def __init__(self) -> None:
        self.within: list[int] = []
        self.ends: list[tuple[type, torch.Size]] = []
        self.saved: list[torch.Size] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self.within.append(module.net.fc1._parameters["weight"].numel())
        checkpoint = trainer._checkpoint_connector.dump_checkpoint()
        self.saved.append(checkpoint["state_dict"]["net.fc1.weight"].shape)
        states = checkpoint["optimizer_states"][0]["state"]
        self.saved += [states[0]["exp_avg"].shape] if states else []

    def on_network_end(self, trainer: L.Trainer, module: Any, row: Any) -> None:
        self.ends.append((type(module.net.fc1), module.net.fc1.weight.shape))


def test_only_survivors_exist_while_it_trains_and_checkpoints_and_later_hooks_see_dense_layers(tmp_path: Path) -> None:
    peeks = Peeks()
    done = run(tmp_path, "adam", ALWAYS, controls=[], train_for="5it", more=(peeks,))
    sizes = [int(done.ticket(round).masks["net.fc1.weight"].sum()) for round in range(3)]
    assert peeks.within == [size for size in sizes for _ in range(5)]
    assert set(peeks.ends) == {(nn.Linear, torch.Size([40, 64]))}
    assert set(peeks.saved) == {torch.Size([40, 64])}
    assert all(survivors_of(weight) is None for weight in done.module.parameters())


@pytest.mark.parametrize(
    ("case", "step"),
    [
        *(("adam", 17), ("in parts", 17), ("averages", 20)),
        *(pytest.param("resnet", step, marks=weekly) for step in (17, 20)),
    ],
)
def test_a_cut_run_resumes_bit_for_bit(case: str, step: int, tmp_path: Path) -> None:
    settings = {"rounds": 2, "train_for": "10it", "checkpoint_every_n_train_steps": 1, "controls": ["random_reinit"]}
    whole = run(tmp_path / "whole", case, ALWAYS, **settings)
    with pytest.raises(RuntimeError, match="cut"):
        run(tmp_path / "cut", case, ALWAYS, **settings, more=(Cut(step),))
    run(tmp_path / "cut", case, ALWAYS, **settings, ckpt_path=tmp_path / "cut/checkpoints/last.ckpt")
    for round in range(3):
        names = [
            folder / "tickets" / f"round_{round:02}.safetensors" for folder in (tmp_path / "whole", tmp_path / "cut")
        ]
        assert names[0].read_bytes() == names[1].read_bytes()
    assert [row.engine for row in whole.rows] == ["dense", *["sparse"] * 4]


def test_a_resumed_network_computes_as_it_began(tmp_path: Path) -> None:
    """What was timed is not timed again, or a busy machine could decide otherwise."""
    settings = {"rounds": 2, "train_for": "10it", "checkpoint_every_n_train_steps": 1, "controls": []}
    with pytest.raises(RuntimeError, match="cut"):
        run(tmp_path / "cut", "resnet", Engine("sparse"), **settings, more=(Cut(17),))
    saved = torch.load(tmp_path / "cut/checkpoints/last.ckpt", weights_only=True)
    (ways,) = [state["ways"] for state in saved["callbacks"].values() if "ways" in state]
    assert set(ways.values()) <= {"sparse", "dense"} and len(ways) >= 6


def test_a_run_cannot_be_resumed_with_another_engine(tmp_path: Path) -> None:
    settings = {"train_for": "10it", "controls": []}
    with pytest.raises(RuntimeError, match="cut"):
        run(tmp_path / "cut", "adam", ALWAYS, **settings, more=(Cut(12),))
    with pytest.raises(SettingError, match=r"lottery\.engine was .*sparse"):
        run(tmp_path / "cut", "adam", "dense", **settings, ckpt_path=tmp_path / "cut/checkpoints/last.ckpt")


def test_either_engine_trains_the_others_tickets(tmp_path: Path) -> None:
    found = run(tmp_path / "found", "adam", ALWAYS, controls=[])
    for engine in ("dense", ALWAYS):
        again = run(
            tmp_path / str(hash(engine)), "adam", engine, controls=[], tickets=tmp_path / "found/tickets", rounds=None
        )
        for round in range(3):
            for name, value in found.ticket(round).trained.items():
                assert (again.ticket(round).trained[name] - value).abs().max() <= 1e-9 * value.abs().max()


@weekly
def test_two_processes_train_the_same_as_with_the_dense_engine(tmp_path: Path) -> None:
    flags = [
        *("--config=configs/quickstart.yaml", "--model.net=ResNet", "--model.net.depth=8", "--model.net.width=4"),
        *("--lottery.rounds=2", "--lottery.train_for=20it", "--lottery.pruning.rate=0.6", "--lottery.controls=[]"),
        *("--data.train_size=800", "--data.val_size=101", "--data.batch_size=20", "--trainer.precision=64-true"),
        *("--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"),
    ]
    for name, engine in (("dense", "dense"), ("sparse", "{name: sparse, below: 0.9}")):
        command = [
            sys.executable,
            "train.py",
            "fit",
            *flags,
            f"--run_dir={tmp_path / name}",
            f"--lottery.engine={engine}",
        ]
        subprocess.run(command, cwd=REPOSITORY, check=True, timeout=HANGS, capture_output=True)
    for round in range(3):
        ours, theirs = (
            Ticket.load(tmp_path / name / f"tickets/round_{round:02}.safetensors") for name in ("sparse", "dense")
        )
        for name, value in theirs.trained.items():
            assert (ours.trained[name] - value).abs().max() <= 1e-9 * value.abs().max().clamp(min=1e-12)


# ------------------------------------------------------------------------ what is refused


def _compiled() -> ImageClassifier:
    module = mlp()
    module.net = torch.compile(module.net, backend="eager")
    return module


class Mixes(torch.optim.SGD):
    """Somebody's own optimizer."""


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"trainer": {"precision": "bf16-mixed"}}, "32-true or 64-true, got bf16-mixed"),
        ({"module": mlp_with(Mixes, lr=0.1)}, "Mixes is not known to"),
        ({"module": _compiled}, "cannot be compiled, but net is by torch.compile"),
    ],
    ids=["precision", "optimizer", "compiled"],
)
def test_what_cannot_be_trained_sparse_is_refused_before_training(
    given: dict[str, Any], words: str, tmp_path: Path
) -> None:
    module = given.get("module", mlp)()
    with pytest.raises(SettingError, match=words):
        fit(module, digits(), tmp_path, engine="sparse", trainer=given.get("trainer"))
    assert not list(tmp_path.rglob("results.csv"))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("spars", "lottery.engine.*spars.*sparse"),
        ({"name": "sparse", "fuse": True}, "lottery.engine.*fuse.*fused"),
        ({"name": "sparse", "below": 20}, "at least 0 and at most 1; got 20"),
    ],
)
def test_a_setting_that_is_not_known_is_refused(given: Any, words: str) -> None:
    with pytest.raises(SettingError, match=words):
        Engine.of(given)


class ReadsItsWeight(ForeignModule):
    """Adds a penalty on a weight, which it reads itself."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) + 1e-3 * self.body[-1].weight.abs().sum()


def test_a_module_that_reads_a_weight_itself_trains_the_same(tmp_path: Path) -> None:
    found = {}
    for engine in ("dense", ALWAYS):
        torch.manual_seed(0)
        settings = {"trainer": {"precision": "64-true"}, "engine": engine, "metrics": FOREIGN_METRICS}
        done = fit(ReadsItsWeight(), ForeignData(), tmp_path / str(hash(engine)), **settings)
        found[engine == "dense"] = done.ticket(2).trained
    for name, value in found[True].items():
        assert (found[False][name] - value).abs().max() <= 1e-9 * value.abs().max().clamp(min=1e-12)
