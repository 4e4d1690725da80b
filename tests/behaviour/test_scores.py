"""Modules that no accuracy judges: their score decides what rows, tables, figures and conclusions say.

Regression (MAE, less is better), multi-label F1, segmentation (IoU), a language model (perplexity), and a contrastive
loss without any metric; each on generated data, with a report at the end.
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import Fit, fit, weekly
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import JaccardIndex, Metric
from torchmetrics.classification import MultilabelF1Score
from torchmetrics.text import Perplexity

from lth_lightning import Score, SettingError, Ticket
from lth_lightning.report import figures
from lth_lightning.report.aggregate import PooledRuns
from lth_lightning.report.conclusion import summary
from lth_lightning.report.writer import write_report
from lth_lightning.runs.run import RunFiles


class Task(L.LightningModule):
    """Any network and loss, with at most one metric besides it."""

    def __init__(self, net: nn.Module, loss: Callable[..., Tensor], name: str = "", metric: Metric | None = None):
        super().__init__()
        self.net, self.loss, self.name = net, loss, name
        self.metrics = nn.ModuleDict({f"on_{split}": metric.clone() for split in ("val", "test")} if metric else {})

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(self.net(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def _evaluate(self, batch: list[Tensor], split: str) -> None:
        output = self.net(batch[0])
        self.log(f"{split}_loss", self.loss(output, batch[1]))
        if self.metrics:
            metric = self.metrics[f"on_{split}"]
            metric(output, batch[1])
            self.log(self.name.format(split), metric)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class Data(L.LightningDataModule):
    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__()
        self.parts = [TensorDataset(*part) for part in zip(x.split(len(x) // 3), y.split(len(x) // 3), strict=True)]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[0], batch_size=16, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[1], batch_size=16)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.parts[2], batch_size=16)


class Untested(Data):
    test_dataloader = L.LightningDataModule.test_dataloader  # as if there were none


class MeanAbsoluteError(Metric):
    """By hand, so that columns can be checked against a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        self.total += (output - target).abs().sum()
        self.count += target.numel()

    def compute(self) -> Tensor:
        return self.total / self.count


def regression(data: type[Data] = Data) -> tuple[Task, Data]:
    x = torch.randn(96, 5)
    net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 1), nn.Flatten(0))
    return Task(net, F.mse_loss, "{}_mae", MeanAbsoluteError()), data(x, 30 * x[:, 0] + x[:, 1] ** 2)


def labels() -> tuple[Task, Data]:
    x = torch.randn(96, 6)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    loss = F.binary_cross_entropy_with_logits
    return Task(net, lambda o, y: loss(o, y.float()), "{}_f1", MultilabelF1Score(3)), Data(x, (x[:, :3] > 0).long())


def segmentation() -> tuple[Task, Data]:
    x = torch.randn(48, 1, 8, 8)
    net = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 3, padding=1))
    iou = JaccardIndex(task="multiclass", num_classes=2)
    return Task(net, F.cross_entropy, "{}/iou", iou), Data(x, (x[:, 0] > 0.2).long())


class Last(nn.Module):
    """The output of a recurrent layer without its state."""

    def forward(self, outputs: tuple[Tensor, Any]) -> Tensor:
        return outputs[0]


def language() -> tuple[Task, Data]:
    text = torch.randint(7, (48, 1)).repeat(1, 9).cumsum(1) % 7  # each word tells the next
    net = nn.Sequential(nn.Embedding(7, 8), nn.LSTM(8, 12, batch_first=True), Last(), nn.Linear(12, 7))

    def loss(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output.flatten(0, 1), target.flatten())

    return Task(net, loss, "{}_perplexity", Perplexity()), Data(text[:, :-1], text[:, 1:])


def contrastive() -> tuple[Task, Data]:
    x = torch.randn(48, 6)

    def loss(output: Tensor, other: Tensor) -> Tensor:
        one = F.normalize(output, dim=1)
        return F.cross_entropy(one @ one.T.detach() / 0.5, torch.arange(len(one)))  # each example against the others

    return Task(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)), loss), Data(x, x)


@dataclass(frozen=True)
class Kind:
    make: Callable[[], tuple[Task, Data]]
    score: Score | None
    column: str
    said: str  # in the conclusion
    axis: str  # of the figure


KINDS = {
    "regression": Kind(regression, Score("val_mae", "min"), "test_mae", "has a test mae of ", "test mae"),
    "multi-label": Kind(labels, Score("val_f1"), "test_f1", " % test f1 (n = 1)", "test f1 (%)"),
    "segmentation": Kind(segmentation, Score("val/iou"), "test_iou", " % test iou (n = 1)", "test iou (%)"),
    "language": Kind(
        language, Score("val_perplexity", "min"), "test_perplexity", "has a test perplexity of ", "test perplexity"
    ),
    "contrastive": Kind(contrastive, None, "test_loss", "has a test loss of ", "test loss"),
}


def trained(kind: Kind, folder: Path, **settings: Any) -> Fit:
    torch.manual_seed(0)
    module, data = kind.make()
    settings = {"train_for": "4it", "rounds": 1, "controls": ["random_reinit"], **settings}
    return fit(module, data, folder, **({"score": kind.score} if kind.score else {}), **settings)


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


LIKE_ANOTHER = ("segmentation", "language")  # a score that is a fraction, and one to be small


@pytest.mark.parametrize("name", [pytest.param(one, marks=weekly if one in LIKE_ANOTHER else ()) for one in KINDS])
def test_rows_tables_figures_and_conclusions_follow_the_score(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "FILES", {"svg": figures.FILES["svg"]})  # the other kinds show the same
    kind = KINDS[name]
    trained(kind, tmp_path)
    if kind.score is not None:
        assert "_acc" not in caplog.text  # nobody misses what another score stands for
    scores = [float(row[kind.column]) for row in lines(tmp_path / "results.csv")]
    points = lines(tmp_path / "curves/round_01_ticket_0.csv")
    assert float(points[-1][kind.column]) == scores[1]
    run = RunFiles.read(tmp_path)
    experiment = PooledRuns([run])
    assert [experiment.scores["ticket"][number].mean for number in (0, 1)] == scores[:2]
    text = summary(experiment)
    assert kind.said in text and ("points" in text) == experiment.reported.score.is_fraction
    files = write_report([run], tmp_path / "report")
    assert tmp_path / "report/figures/score.svg" in files and tmp_path / "report/figures/curves.svg" in files
    svg = (tmp_path / "report/figures/score.svg").read_text()
    assert f"<!-- {kind.axis} -->" in svg
    assert kind.axis.partition(" (")[0] in (tmp_path / "report/report.html").read_text()
    assert lines(tmp_path / "report/statistics.csv")[0][kind.column] == str(scores[0])


def test_a_score_on_test_data_is_the_metric_of_the_whole_data(tmp_path: Path) -> None:
    done = trained(KINDS["regression"], tmp_path)
    torch.manual_seed(0)
    _, data = regression()
    x, y = data.parts[2].tensors
    assert done.rows[-2].variant == "ticket"
    done.module.eval()
    Ticket.load(done.lottery.folder.ticket(1)).apply(done.module, weights="trained")
    with torch.no_grad():
        error = float((done.module.net(x) - y).abs().mean())
    assert done.rows[-2].test_score == pytest.approx(error, rel=1e-6)


@pytest.mark.usefixtures("plain_figures")
def test_less_is_better_where_the_mode_says_so(tmp_path: Path) -> None:
    """The table's best, and the round that is compared, are those with the least error."""
    done = trained(KINDS["regression"], tmp_path, rounds=2)
    run = RunFiles.read(tmp_path)
    write_report([run], tmp_path)
    by_round = {row.round: row.test_score for row in done.rows if row.variant == "ticket"}
    reinit = {row.round: row.test_score for row in done.rows if row.variant == "random_reinit"}
    least = run.score.text(min(by_round[1], reinit[1]))
    assert f"**{least}**" in (tmp_path / "report.md").read_text()
    assert f"**{run.score.text(max(by_round[1], reinit[1]))}**" not in (tmp_path / "report.md").read_text()


def test_without_test_data_the_validation_score_is_reported_and_the_report_says_so(tmp_path: Path) -> None:
    kind = Kind(lambda: regression(Untested), Score("val_mae", "min"), "", "", "")
    done = trained(kind, tmp_path)
    assert done.rows[0].test_score is None
    text = summary(PooledRuns([RunFiles.read(tmp_path)]))
    assert "has a validation mae of" in text and "No test data were evaluated" in text


@pytest.mark.parametrize(
    ("score", "words"),
    [
        (Score("val_f2"), r"lottery\.score: the first validation has not logged val_f2 .*there: val_loss, val_mae"),
        (Score("val_mae", percent=True), r"lottery\.score: val_mae is logged as val_mae, with the value .*set "
                                         r"lottery\.score\.percent to false"),
    ],
)  # fmt: skip
def test_a_score_that_cannot_be_stops_the_run_at_the_first_validation(score: Score, words: str, tmp_path: Path) -> None:
    kind = Kind(regression, score, "", "", "")
    with pytest.raises(SettingError, match=words):
        trained(kind, tmp_path)


def test_a_resumed_run_has_the_same_score(tmp_path: Path) -> None:
    trained(KINDS["regression"], tmp_path)
    module, data = regression()
    settings: dict[str, Any] = {"train_for": "4it", "rounds": 1, "controls": ["random_reinit"]}
    with pytest.raises(SettingError, match=r"lottery\.score"):
        fit(module, data, tmp_path, ckpt_path=tmp_path / "checkpoints/last.ckpt", **settings)


def test_runs_with_different_scores_are_not_pooled(tmp_path: Path) -> None:
    trained(KINDS["regression"], tmp_path / "one")
    trained(Kind(regression, Score("val_mae", "min", tolerance=1.0), "", "", ""), tmp_path / "two", seed=8)
    with pytest.raises(SettingError, match="is judged by"):
        PooledRuns([RunFiles.read(tmp_path / "one"), RunFiles.read(tmp_path / "two")])


@pytest.mark.parametrize("given", ["val_mae", {"name": "val_mae", "mode": "min"}])
def test_a_score_may_be_given_by_its_name_or_its_settings(given: Any, tmp_path: Path) -> None:
    module, data = regression()
    done = fit(module, data, tmp_path, score=given, rounds=0, train_for="2it")
    assert done.lottery.score == (Score("val_mae") if isinstance(given, str) else Score("val_mae", "min"))
    with pytest.raises(SettingError, match=r"lottery\.score"):
        fit(module, data, tmp_path, score={"nmae": "val_mae"})
