"""Whole lotteries of networks whose weights are shared, strided, half, or prunable by somebody's own rule."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from conftest import Cut, assert_equal_runs, digits, draw_plainly, fit, mlp
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lth_lightning import Criterion, Evidence, SettingError, Ticket
from lth_lightning.cli.main import main
from lth_lightning.pruning.gradient_criteria import SNIP
from lth_lightning.pruning.pruning import Pruning
from lth_lightning.pruning.state import parameters_by_name
from lth_lightning.report.prunable_share import prunable_facts
from lth_lightning.runs.run import RunFiles


class Classifier(L.LightningModule):
    """Somebody's module around any network of images."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]).float(), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        scores = self(batch[0]).float()
        self.log("val_loss", F.cross_entropy(scores, batch[1]))
        self.log("val_acc", (scores.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


class Tied(nn.Module):
    """A language model of pixels: its head has the embedding's weight, and is trained through both."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(17, 8)
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 17, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, images: Tensor) -> Tensor:
        pixels = (images.flatten(1) > 0).long() * (torch.arange(64) % 16 + 1)
        return self.head(torch.tanh(self.body(self.embedding(pixels).mean(1))))[:, :10]


class Rows(nn.Module):
    """Reads an image row by row: recurrence, then attention, then a head."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(8, 6, batch_first=True, proj_size=4, bidirectional=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, images: Tensor) -> Tensor:
        rows, _ = self.recurrent(images[:, 0])
        return self.head(self.attention(rows, rows, rows)[0].mean(1))


def convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 10))


def channels_last() -> nn.Module:
    return convolutions().to(memory_format=torch.channels_last)


def transposed() -> nn.Module:
    net = convolutions()
    net[4].weight.data = net[4].weight.data.T.contiguous().T
    return net


def normed() -> nn.Module:
    net = convolutions()
    parametrizations.weight_norm(net[2])
    parametrizations.spectral_norm(net[4])
    return net


def half() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).to(torch.bfloat16)


def head(module: nn.Module) -> dict[str, nn.Parameter]:
    return {"net.head.weight": module.net.head.weight}  # type: ignore[union-attr, dict-item]


def body(module: nn.Module) -> dict[str, nn.Parameter]:
    return {"net.body.weight": module.net.body.weight}  # type: ignore[union-attr, dict-item]


NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "tied": (Tied, {}),
    "tied, asked for": (Tied, {"prunable": head}),
    "rows": (Rows, {}),
    "rows, scored by gradients": (
        Rows,
        {"pruning": Pruning(densities=[0.3], criterion=SNIP(), prune_from="initialisation", scope="global")},
    ),
    "channels_last": (channels_last, {}),
    "transposed": (transposed, {}),
    "normed": (normed, {}),
}
PRUNING = {"pruning": Pruning(rate=0.5), "rounds": 2}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_the_density_is_that_of_the_weights_and_tickets_need_no_rule(name: str, tmp_path: Path) -> None:
    make, settings = NETWORKS[name]
    settings = {**({} if "pruning" in settings else PRUNING), **settings}
    if "pruning" in settings and settings["pruning"].densities:
        settings["rounds"] = None
    run = fit(Classifier(make()), digits(), tmp_path / "run", controls=["random_mask"], **settings)
    last = run.rows[-2]
    weights = parameters_by_name(run.module, run.lottery.masks_in_force)
    assert last.variant == "ticket"
    assert last.prunable == sum(weight.numel() for weight in weights.values())
    assert sum(int(weight.count_nonzero()) for weight in weights.values()) == last.kept
    ticket = run.ticket(last.round)
    assert ticket.info["parameters"] == sum(weight.numel() for weight in run.module.parameters())
    other = make()  # outside its LightningModule, and nobody says what is prunable
    masks = ticket.apply(other, weights="trained")
    assert all(not weight[~masks[name]].any() for name, weight in parameters_by_name(other, masks).items())
    if settings.get("rounds"):
        again = fit(Classifier(make()), digits(), tmp_path / "again", tickets=run.lottery.folder.ticket(2), rounds=None)
        assert again.rows[-1].kept == last.kept
        assert list(again.ticket(2).masks) == list(ticket.masks)
        assert again.rows[-1].val_loss == last.val_loss


def test_a_tied_weight_has_one_name_in_masks_rows_and_tickets(tmp_path: Path) -> None:
    run = fit(Classifier(Tied()), digits(), tmp_path / "run", prunable=head, **PRUNING)
    assert list(run.lottery.masks_in_force) == ["net.embedding.weight"]
    assert {row.layer for row in run.lottery.layers} == {"net.embedding.weight"}
    assert run.ticket(2).info["left_out"] == {"net.body.weight": "not chosen"}
    left = fit(Classifier(Tied()), digits(), tmp_path / "left", **PRUNING)
    assert left.ticket(2).info["left_out"] == {"net.embedding.weight": "embeddings, shared with a layer"}


@pytest.mark.parametrize("make", [channels_last, transposed])
def test_tickets_are_the_same_however_weights_lie_in_memory(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    """Of untrained weights, as kernels for other layouts add in another order."""
    pruning = Pruning(densities=[0.5, 0.2], prune_from="initialisation")
    one, other = (
        fit(Classifier(net()), digits(), tmp_path / net.__name__, rounds=None, train_for="1it", pruning=pruning)
        for net in (convolutions, make)
    )
    for round in (1, 2):
        ours, theirs = one.ticket(round), other.ticket(round)
        assert all(torch.equal(mask, theirs.masks[name]) for name, mask in ours.masks.items())
        assert all(torch.equal(value, theirs.rewind_point[name]) for name, value in ours.rewind_point.items())


@pytest.mark.parametrize("make", [channels_last, normed])
def test_resumed_runs_are_the_same(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    fit(Classifier(make()), digits(), tmp_path / "whole", **PRUNING)
    with pytest.raises(RuntimeError, match="cut"):
        fit(Classifier(make()), digits(), tmp_path / "cut", callbacks=(Cut(17),), **PRUNING)
    again = fit(
        Classifier(make()), digits(), tmp_path / "cut", ckpt_path=tmp_path / "cut/checkpoints/last.ckpt", **PRUNING
    )
    assert len(again.rows) == 3
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_half_precision_throughout(tmp_path: Path) -> None:
    run = fit(Classifier(half()), digits(), tmp_path / "run", trainer={"precision": "bf16-true"}, **PRUNING)
    assert int(run.module.net[1].weight.count_nonzero()) == run.rows[-1].kept
    assert run.ticket(2).trained["net.1.weight"].dtype == torch.bfloat16


def lazy() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))


def complex_buffer() -> nn.Module:
    net = convolutions()
    net.register_buffer("phases", torch.ones(2, dtype=torch.complex128))
    return net


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(2, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.embedding((images.flatten(1) > 0).long()).mean(1)


def misspelt(module: nn.Module) -> dict[str, nn.Parameter]:
    return {"net.boby.weight": module.net.body.weight}  # type: ignore[union-attr, dict-item]


REFUSED: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "no such name": (Tied, {"prunable": misspelt}, "'net.boby.weight', but Classifier calls it 'net.body.weight'"),
    "nothing left": (lambda: nn.Sequential(Embedded()), {}, r"nothing to prune: .*net.0.embedding.weight \(embedd"),
    "lazy": (lazy, {}, "net.1.weight: LazyLinear takes its shape from the first batch"),
    "no type of a ticket's": (complex_buffer, {}, "net.phases is complex128, which a ticket's file cannot hold"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_before_training(name: str, tmp_path: Path) -> None:
    make, settings, message = REFUSED[name]
    module = Classifier(make())
    module.training_step = lambda *_: pytest.fail("it trains")  # type: ignore[method-assign, assignment]
    with pytest.raises(SettingError, match=message):
        fit(module, digits(), tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_a_lazy_network_that_has_seen_a_batch_is_right(tmp_path: Path) -> None:
    net = lazy()
    net(torch.zeros(1, 1, 8, 8))
    assert len(fit(Classifier(net), digits(), tmp_path / "run", **PRUNING).rows) == 3


class FirstRowFirst(Criterion):
    """A row of a weight goes before all others."""

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        return {name: torch.arange(weight.numel()).view(weight.shape) for name, weight in evidence.trained.items()}


def test_a_norm_of_nothing_stops_the_run_with_its_work_saved(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), parametrizations.weight_norm(nn.Linear(64, 10)))
    with pytest.raises(SettingError, match=r"net.1.weight: weight_norm or spectral_norm divides it by norms.* of 1 of"):
        fit(Classifier(net), digits(), tmp_path / "run", pruning=Pruning(rate=0.15, criterion=FirstRowFirst()))
    assert [row.round for row in RunFiles.read(tmp_path / "run").rows] == [0]
    assert (tmp_path / "run/tickets/round_00.safetensors").is_file()


class Heard(logging.Handler):
    """What a logger says."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def test_at_the_start_one_line_says_of_what_densities_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard()
    for package in ("lightning.pytorch", "pytorch_lightning"):  # they share one logger: that of the last imported
        logger = logging.getLogger(f"{package}.utilities.rank_zero")
        monkeypatch.setattr(logger, "handlers", [heard])
        caplog.set_level(logging.INFO, logger.name)
    run = fit(Classifier(Tied()), digits(), tmp_path / "run", **PRUNING)
    left_out = "embeddings, shared with a layer (net.embedding.weight)"
    share = f"64 weights, 30.8 % of all parameters; matrices left out: {left_out}"
    assert [line for line in heard.lines if "Prunable" in line] == [f"Prunable: {share}."]
    assert prunable_facts([RunFiles.read(run.lottery.folder.path)]) == {"prunable": share}


@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
def test_on_the_command_line_it_stands_above_the_table_and_in_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    draw_plainly(monkeypatch)
    lottery = ["--lottery.train_for", "2it", "--lottery.rounds", "1"]
    assert main(["fit", "--data.dataset", "Digits", "--model.net", "MLP", *lottery, "--run_dir", "run"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.startswith("Prunable: ")
    assert first.endswith("; matrices left out: none.")
    for report in ("report.md", "report.html"):
        assert first.removeprefix("Prunable: ").removesuffix(".") in (tmp_path / "run" / report).read_text()


def test_a_ticket_has_no_mask_of_a_weight_that_it_does_not_hold() -> None:
    module = mlp()
    with pytest.raises(SettingError, match=r"masks for net.head.weight, but its rewind point has no such"):
        Ticket({"net.head.weight": torch.ones(2, 2) > 0}, dict(module.named_parameters()))


def test_tickets_and_a_rule_that_are_both_given_must_agree(tmp_path: Path) -> None:
    run = fit(Classifier(Tied()), digits(), tmp_path / "run", prunable=head, **PRUNING)
    given = {"rounds": None, "tickets": run.lottery.folder.ticket(2)}
    with pytest.raises(SettingError, match="masks and prunable weights differ"):
        fit(Classifier(Tied()), digits(), tmp_path / "other", prunable=body, **given)
