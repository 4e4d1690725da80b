"""Other people's callbacks, strategies and loaders beside the lottery; and numbers that go wrong."""

import logging
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import pytest
import torch
from conftest import (
    FOREIGN_METRICS,
    Cut,
    Fit,
    ForeignData,
    ForeignModule,
    Order,
    assert_same,
    copies,
    digits,
    fit,
    make_trainer,
    mlp,
    resnet,
    weekly,
)
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset

from lth_lightning import LotteryTicket, Pruning, SettingError, Ticket
from lth_lightning.errors import DataError, DivergedError
from lth_lightning.lottery.divergence import LossWatch, bad_entries
from lth_lightning.pruning.state import load_state
from lth_lightning.seeding import derive_seed

# ------------------------------------------------------------------------ averaged weights


class RoundAlone(L.Callback):
    """Gives a fit without the lottery a round's order of the data and its draws."""

    def __init__(self, round: int, seed: int) -> None:
        self.round, self.seed = round, seed

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        epoch = trainer.current_epoch
        torch.manual_seed(derive_seed(self.seed, "epoch", self.round, epoch))
        trainer.train_dataloader.seek(epoch, seed=derive_seed(self.seed, "order", self.round))


def averaging(kind: str) -> WeightAveraging:
    if kind == "equal":
        return WeightAveraging()
    return EMAWeightAveraging(decay=0.8, update_starting_at_step=3)


@pytest.mark.parametrize("kind", [pytest.param("equal", marks=weekly), "exponential"])
def test_averaged_weights_begin_anew_each_round(tmp_path: Path, kind: str) -> None:
    """A round ends as a fit of Lightning's own with the same callback ends, from the same start."""
    run = fit(resnet(), digits(), tmp_path, train_for="14it", controls=["random_reinit"], callbacks=(averaging(kind),))
    for round in range(3):
        ticket = run.ticket(round)
        alone = resnet()
        load_state(alone, run.start(0) if round == 0 else ticket.rewind_point)
        alone.hold(ticket.masks)
        trainer = make_trainer(max_epochs=2, callbacks=[averaging(kind), RoundAlone(round, seed=7)])
        trainer.fit(alone, digits())
        assert_same(copies(alone), ticket.trained)
        row = next(row for row in run.rows if (row.round, row.variant) == (round, "ticket"))
        assert trainer.callback_metrics["val_loss"] == row.val_loss
        assert trainer.test(alone, digits(), verbose=False)[0]["test_acc"] == row.test_acc
    assert_same(copies(run.module), run.ticket(2).trained)


@pytest.mark.parametrize("cut_at", [pytest.param(10, marks=weekly), pytest.param(17, marks=weekly), 25])
def test_averaged_weights_survive_a_resume(tmp_path: Path, cut_at: int) -> None:
    def run(folder: str, *more: L.Callback, **settings: Any) -> Fit:
        torch.manual_seed(0)
        callbacks = (averaging("exponential"), *more)
        settings = {"rounds": 1, "train_for": "14it", "checkpoint_every_n_train_steps": 3, **settings}
        return fit(resnet(), digits(), tmp_path / folder, callbacks=callbacks, **settings)

    whole = run("whole")
    with pytest.raises(RuntimeError, match="cut"):
        run("cut", Cut(cut_at))
    resumed = run("cut", ckpt_path=tmp_path / "cut" / "checkpoints" / "last.ckpt")
    for round in (0, 1):
        assert_same(whole.ticket(round).trained, resumed.ticket(round).trained)
    assert [row.val_loss for row in whole.rows] == [row.val_loss for row in resumed.rows]


def test_a_checkpoint_callback_saves_in_each_network_at_the_same_step(tmp_path: Path) -> None:
    class Counting(ModelCheckpoint):
        saved = 0

        def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
            self.saved += 1
            super()._save_checkpoint(trainer, filepath)

    theirs = Counting(tmp_path / "theirs", every_n_train_steps=7)
    fit(mlp(), digits(), tmp_path / "run", train_for="7it", trainer={"enable_checkpointing": True}, callbacks=(theirs,))
    assert theirs.saved == 3


def test_callbacks_hear_of_a_networks_first_epoch_and_of_none_of_the_last_ones(tmp_path: Path) -> None:
    class Look(L.Callback):
        def __init__(self) -> None:
            self.seen: list[Any] = []

        def on_network_start(self, *_: Any) -> None:
            self.seen.append([])

        def on_train_epoch_start(self, trainer: L.Trainer, *_: Any) -> None:
            self.seen[-1].append((trainer.current_epoch, trainer.global_step))

    look = Look()
    fit(mlp(), digits(), tmp_path, train_for="17it", rewind_to="9it", controls=["random_mask"], callbacks=(look,))
    assert look.seen == [[(0, 0), (1, 7), (2, 14)], *[[(1, 9), (2, 14)]] * 4]


def test_loaders_that_are_made_anew_begin_with_a_networks_first_epoch(tmp_path: Path) -> None:
    class Growing(ForeignData):
        sizes: ClassVar[list[int]] = []

        def train_dataloader(self) -> DataLoader:
            self.sizes.append(self.trainer.current_epoch)
            part = Subset(self.splits["train"], range(80 + 40 * self.trainer.current_epoch))
            return DataLoader(part, batch_size=40, shuffle=True)

    run = fit(
        ForeignModule(),
        Growing(),
        tmp_path,
        train_for="9it",
        metrics=FOREIGN_METRICS,
        trainer={"reload_dataloaders_every_n_epochs": 1},
    )
    assert [row.steps for row in run.rows] == [9, 9, 9]
    assert Growing.sizes == [0, *[0, 1, 2, 3] * 3], "2, 3 and 4 batches in each network, and one that is not begun"


# ------------------------------------------------------------------------ what is refused by name


def test_a_checkpoint_callback_that_would_overwrite_the_lotterys_own_is_refused(tmp_path: Path) -> None:
    theirs = ModelCheckpoint(tmp_path / "checkpoints", save_last=True, enable_version_counter=False)
    with pytest.raises(
        SettingError, match="ModelCheckpoint would overwrite .*last.ckpt, which the lottery resumes from"
    ):
        fit(mlp(), digits(), tmp_path, trainer={"enable_checkpointing": True}, callbacks=(theirs,))


def test_a_trainer_can_fit_after_a_fit_that_failed_at_its_start(tmp_path: Path) -> None:
    class Failing(ForeignModule):
        fails = True

        def configure_optimizers(self) -> Any:
            if self.fails:
                raise RuntimeError("no optimizer")
            return super().configure_optimizers()

    lottery = LotteryTicket(rounds=1, train_for="2ep", run_dir=tmp_path, metrics=FOREIGN_METRICS)
    trainer, module = make_trainer(callbacks=[lottery]), Failing()
    with pytest.raises(RuntimeError, match="no optimizer"):
        trainer.fit(module, ForeignData())
    module.fails = False
    trainer.fit(module, ForeignData())
    assert [row.steps for row in lottery.results] == [14, 14]
    assert trainer.callbacks[-1] is lottery and len(trainer.callbacks) == 1


def test_validating_beside_a_lottery_that_has_not_run_or_has(tmp_path: Path) -> None:
    class Count(ForeignModule):
        tested = 0

        def test_step(self, *args: Any) -> None:
            self.tested += 1
            super().test_step(*args)

    lottery = LotteryTicket(rounds=0, train_for="3it", run_dir=tmp_path, metrics=FOREIGN_METRICS)
    trainer, module = make_trainer(callbacks=[lottery]), Count()
    trainer.validate(module, ForeignData(), verbose=False)
    trainer.fit(module, ForeignData())
    before = module.tested
    trainer.validate(module, ForeignData(), verbose=False)
    assert module.tested == before


def test_stochastic_weight_averaging_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="StochasticWeightAveraging averages over the whole fit, across rounds"):
        fit(mlp(), digits(), tmp_path, callbacks=(StochasticWeightAveraging(1e-2),))


def test_strategies_that_shard_parameters_are_refused(tmp_path: Path) -> None:
    trainer = make_trainer()
    trainer._accelerator_connector.strategy = FSDPStrategy()
    with pytest.raises(SettingError, match="FSDPStrategy shards parameters, so no process holds the whole weights"):
        LotteryTicket(rounds=1, train_for="1it", run_dir=tmp_path).setup(trainer, mlp(), "fit")


# ------------------------------------------------------------------------ modules, loaders, commands


def test_loaders_without_a_data_module_and_several_for_validation(tmp_path: Path) -> None:
    class Several(ForeignModule):
        def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
            super().validation_step(batch, batch_idx)

    data = ForeignData()
    data.setup("fit")
    loaders = [data.val_dataloader(), data.test_dataloader()]
    metrics = {"val_loss": "valid/ce/dataloader_idx_0", "val_acc": "valid/accuracy/dataloader_idx_1"}
    lottery = LotteryTicket(rounds=2, train_for="10it", run_dir=tmp_path, metrics=metrics)
    make_trainer(callbacks=[lottery]).fit(Several(), data.train_dataloader(), loaders)
    assert [row.round for row in lottery.results] == [0, 1, 2]
    assert all(row.val_loss > 0 and 0 < row.val_acc <= 1 and row.test_acc is None for row in lottery.results)


def test_several_training_loaders_at_once(tmp_path: Path) -> None:
    class Pairs(ForeignModule):
        def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
            return super().training_step(batch["first"], batch_idx) + super().training_step(batch["second"], batch_idx)

    data = ForeignData()
    data.setup("fit")
    second = DataLoader(data.splits["test"], batch_size=100, shuffle=True)
    lottery = LotteryTicket(rounds=1, train_for="2ep", run_dir=tmp_path, metrics=FOREIGN_METRICS)
    make_trainer(callbacks=[lottery]).fit(
        Pairs(), {"first": data.train_dataloader(), "second": second}, data.val_dataloader()
    )
    assert [row.steps for row in lottery.results] == [14, 14]


def test_a_loader_with_a_generator_of_its_own_gives_tickets_and_controls_one_order(tmp_path: Path) -> None:
    class Data(ForeignData):
        def train_dataloader(self) -> DataLoader:
            generator = torch.Generator().manual_seed(5)
            return DataLoader(self.splits["train"], batch_size=40, shuffle=True, generator=generator)

    order = Order()
    fit(
        ForeignModule(),
        Data(),
        tmp_path,
        metrics=FOREIGN_METRICS,
        controls=["random_mask"],
        callbacks=(order,),
    )
    dense, first, first_control, second, second_control = order.seen
    assert first == first_control and second == second_control
    assert len({tuple(seen) for seen in (dense, first, second)}) == 3


def test_a_ticket_can_be_tested_validated_and_predicted_with_after_a_fit(tmp_path: Path) -> None:
    run = fit(mlp(), digits(), tmp_path, controls=["random_mask"])
    module = mlp()
    Ticket.load(run.lottery.folder.ticket(1)).apply(module, weights="trained")
    row = next(row for row in run.rows if row.round == 1)
    for trainer in (run.trainer, make_trainer()):
        assert trainer.test(module, digits(), verbose=False)[0]["test_acc"] == row.test_acc
        assert trainer.validate(module, digits(), verbose=False)[0]["val_loss"] == row.val_loss
        assert sum(len(batch) for batch in trainer.predict(module, digits())) == 360
    assert run.lottery.results == run.rows


# ------------------------------------------------------------------------ numbers that go wrong


class Diverging(ForeignModule):
    """Its loss is no number from some step on, in a given network."""

    def __init__(self, value: float, after: int) -> None:
        super().__init__()
        self.value, self.left = value, after

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.left -= 1
        return super().training_step(batch, batch_idx) * (self.value if self.left < 0 else 1.0)


@pytest.mark.parametrize(
    "value", [float("nan"), *(pytest.param(sign * float("inf"), marks=weekly) for sign in (1, -1))]
)
def test_a_loss_that_is_no_number_stops_the_run_and_leaves_its_tickets(tmp_path: Path, value: float) -> None:
    whole = fit(ForeignModule(), ForeignData(), tmp_path / "whole", metrics=FOREIGN_METRICS)
    torch.manual_seed(0)
    settings: dict[str, Any] = {"metrics": FOREIGN_METRICS, "controls": ["random_mask"]}
    with pytest.raises(DivergedError, match=f"round 1, random_mask, step 5: the training loss is {value}"):
        fit(Diverging(value, 24), ForeignData(), tmp_path / "run", **settings)
    tickets = sorted(path.name for path in (tmp_path / "run" / "tickets").iterdir())
    assert tickets == ["round_00.safetensors", "round_01.safetensors"]
    for name in tickets:
        assert Ticket.load(tmp_path / "run" / "tickets" / name).trained.keys() == whole.ticket(0).trained.keys()
    results = (tmp_path / "run" / "results.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in results[1:]] == [["0", "ticket"], ["1", "ticket"]]
    done = fit(
        ForeignModule(), ForeignData(), tmp_path / "run", ckpt_path=tmp_path / "run/checkpoints/last.ckpt", **settings
    )
    assert len(done.rows) == 5, "mended, the run goes on"


@pytest.mark.parametrize("at_once", [True, False])
def test_data_that_are_no_numbers_are_not_taken_for_training_that_diverges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """A learning rate would be looked for in vain. Where a loss is not read at once, the batch is not there later."""

    class Broken(ForeignData):
        def train_dataloader(self) -> DataLoader[Any]:
            images, targets = self.splits["train"].tensors
            images = images.clone()
            images[90, 0, 3, 3], images[91, 0, 0, 0] = float("nan"), float("inf")  # in the third batch
            return DataLoader(TensorDataset(images, targets), batch_size=40)

    start_over = LossWatch.start_over

    def as_chosen(self: LossWatch, *args: Any) -> None:
        start_over(self, *args)
        self._at_once = at_once

    monkeypatch.setattr(LossWatch, "start_over", as_chosen)
    where = r"\(entry 0: 2 of 40 examples\)" if at_once else r"\(in its tensors\)"
    words = f"round 0, ticket, step 3: the training loss is not finite because the batch contains .* {where}"
    with pytest.raises(DataError, match=words):
        fit(ForeignModule(), Broken(), tmp_path / "data", metrics=FOREIGN_METRICS)
    with pytest.raises(DivergedError, match="round 0, ticket, step 3: the training loss"):
        fit(Diverging(float("nan"), 2), ForeignData(), tmp_path / "training", metrics=FOREIGN_METRICS)


def test_what_is_bad_in_a_batch_is_named() -> None:
    bad = torch.tensor([1.0, float("nan"), float("-inf")])
    assert bad_entries((torch.ones(3, 2), torch.arange(3))) is None
    assert bad_entries({"pixels": [torch.ones(3), bad], "label": "text", "scale": bad[1]}) == (
        "entry pixels.1: 2 of 3 examples; entry scale: 1 of 1 examples"
    )


def test_weights_that_are_no_numbers_make_no_ticket(tmp_path: Path) -> None:
    """A module that shows no loss, as in manual optimization."""

    class Silent(ForeignModule):
        automatic_optimization = False

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            if self.trainer.global_step == 4:
                with torch.no_grad():
                    self.body[0].weight[0, 0, 0, 0] = float("nan")
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    with pytest.raises(DivergedError, match="round 0, ticket, step 10: body.0.weight has weights that are not finite"):
        fit(Silent(), ForeignData(), tmp_path, metrics=FOREIGN_METRICS)
    assert not list(tmp_path.glob("tickets/*"))


def test_a_layer_that_loses_its_last_weight_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = mlp()
    with torch.no_grad():
        module.net.fc2.weight.mul_(1e-3)  # the smallest of all
    frozen = mlp(optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    load_state(frozen, copies(module))
    with caplog.at_level(logging.WARNING, "lth_lightning"):
        run = fit(frozen, digits(), tmp_path, rounds=2, pruning=Pruning(rate=0.5, scope="global"))
    assert "round 1: the last weight of net.fc2.weight has been pruned; scope `layerwise` would" in caplog.text
    assert not run.ticket(1).masks["net.fc2.weight"].any()
    assert [row.round for row in run.rows] == [0, 1, 2], "the plan goes on: other layers have weights left"


def test_layerwise_pruning_leaves_a_weight_in_each_layer_or_is_refused(tmp_path: Path) -> None:
    pruning = Pruning(rate=0.9)
    run = fit(mlp(), digits(), tmp_path / "few", rounds=3, pruning=pruning, train_for="1it")
    assert all(mask.any() for mask in run.ticket(3).masks.values())
    with pytest.raises(SettingError, match=r"nothing left to prune in round \d+: .* Set lottery.rounds to"):
        fit(mlp(), digits(), tmp_path / "many", rounds=9, pruning=pruning, train_for="1it")


def test_hooks_are_taken_off_a_module_whose_fit_fails(tmp_path: Path) -> None:
    module = Diverging(float("nan"), 13)
    with pytest.raises(DivergedError):
        fit(module, ForeignData(), tmp_path, metrics=FOREIGN_METRICS)
    assert not any(parameter._post_accumulate_grad_hooks for parameter in module.parameters())
