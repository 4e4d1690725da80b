"""The callback: rounds, rewind points, controls, seeds, resuming, other people's callbacks."""

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

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
    assert_equal_runs,
    assert_same,
    copies,
    digits,
    fit,
    make_trainer,
    mlp,
    of_experiments,
    resnet,
    train_by_hand,
    weekly,
)
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import CombinedLoader
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, Subset

from lth_lightning import LotteryTicket, Magnitude, Movement, Pruning, SettingError, prunable_weights
from lth_lightning.pruning.masks import density, masked
from lth_lightning.runs.rows import Row, read_curves

Experiment = Callable[..., Fit]
ALL_CONTROLS = ("random_reinit", "random_mask", "pruned_only")
LATE: dict[str, Any] = {"rounds": 2, "train_for": "17it", "rewind_to": "5it", "controls": ALL_CONTROLS}
"""The run that most tests only read: rewound to within an epoch, with all controls."""


# ------------------------------------------------------------------------ rounds


def test_a_fit_trains_every_network_of_the_plan_for_its_length(experiment: Experiment) -> None:
    run = experiment.shared(**LATE)
    a_round = [("pruned_only", 0), ("ticket", 12), ("random_reinit", 12), ("random_mask", 12)]
    expected = [(0, "ticket", 17), *((r, *network) for r in (1, 2) for network in a_round)]
    assert [(row.round, row.variant, row.steps) for row in run.rows] == expected
    assert all(0 <= row.test_acc <= 1 and row.val_loss > 0 and row.test_loss > 0 for row in run.rows)


def test_rounds_of_epochs_take_the_steps_of_whole_epochs(tmp_path: Path) -> None:
    run = fit(mlp(), digits(), tmp_path, rounds=1, train_for="2ep")
    assert [row.steps for row in run.rows] == [14, 14]  # 250 images in batches of 40: 7 steps an epoch


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_lengths_count_optimizer_steps_under_accumulation(tmp_path: Path, accumulate: int) -> None:
    class Count(L.Callback):
        steps = 0

        def on_before_optimizer_step(self, *_: Any) -> None:
            self.steps += 1

    count = Count()
    settings = {"accumulate_grad_batches": accumulate}
    run = fit(mlp(), digits(), tmp_path, rounds=1, train_for="9it", trainer=settings, callbacks=(count,))
    assert [row.steps for row in run.rows] == [9, 9]
    assert count.steps == 18


@of_experiments(
    [("mlp", "0it"), ("foreign", "5it"), ("resnet", "1ep"), ("mlp", "50%")], rewind_to=["0it", "5it", "1ep", "50%"]
)
def test_every_round_equals_a_plain_loop_bit_for_bit(experiment: Experiment, rewind_to: str) -> None:
    """From its ticket's rewind point, with its mask, on its order of the data: momentum, decay, batch norm, dropout,
    schedule and the place inside the epoch included."""
    k = {"0it": 0, "5it": 5, "1ep": 7, "50%": 8}[rewind_to]
    settings = {**LATE, "rewind_to": rewind_to, "controls": ("random_reinit",)}
    run = experiment.shared(**LATE) if rewind_to == LATE["rewind_to"] else experiment(**settings)
    for round in range(3):
        ticket, first = run.ticket(round), k if round else 0
        start = ticket.rewind_point if round else run.start(0)
        assert_same(ticket.trained, train_by_hand(run, start, ticket.masks, first, 17, order=round))


@of_experiments([("mlp", 1), ("resnet", 7), ("foreign", 8)], k=[1, 7, 8])
def test_the_rewind_point_is_what_exactly_k_steps_lead_to(experiment: Experiment, k: int) -> None:
    run = experiment(rounds=2, train_for="10it", rewind_to=f"{k}it")
    after_k = train_by_hand(run, run.start(0), {}, 0, k, order=0)
    for round in (1, 2):
        assert_same(run.start(round), masked(after_k, run.ticket(round).masks))
        assert run.rows[round].steps == 10 - k


def last_ticket(run: Fit) -> Row:
    return [row for row in run.rows if row.variant == "ticket"][-1]


def test_a_ticket_trained_alone_from_its_file_gives_the_weights_of_its_round(experiment: Experiment) -> None:
    run = experiment.shared(**LATE)
    path = run.lottery.folder.ticket(2)
    alone = experiment("alone", rounds=None, train_for="17it", tickets=path, seed=99)
    assert [(row.round, row.steps) for row in alone.rows] == [(2, 12)]
    assert_same(alone.ticket(2).trained, run.ticket(2).trained)
    assert alone.rows[0].test_acc == last_ticket(run).test_acc


def test_a_folder_of_tickets_is_trained_with_controls(tmp_path: Path) -> None:
    run = fit(mlp(), digits(), tmp_path / "run", rounds=2)
    again = fit(
        mlp(), digits(), tmp_path / "again", rounds=None, tickets=run.lottery.folder.tickets, controls=["random_mask"]
    )
    assert [(r.round, r.variant) for r in again.rows] == [(r, v) for r in range(3) for v in ("ticket", "random_mask")]
    assert [r.test_acc for r in again.rows if r.variant == "ticket"] == [r.test_acc for r in run.rows]


def test_a_ticket_trains_in_any_trainer_with_hold(tmp_path: Path) -> None:
    run = fit(resnet(), digits(), tmp_path, rounds=2)
    module, ticket = resnet(), run.ticket(2)
    module.hold(ticket.apply(module))
    make_trainer(max_epochs=2).fit(module, digits())
    assert density({n: w != 0 for n, w in prunable_weights(module).items()}) == pytest.approx(ticket.density)
    with pytest.raises(SettingError, match="holds a ticket's masks"):
        fit(module, digits(), tmp_path / "again")


def test_one_shot_pruning_takes_every_mask_from_the_dense_network(tmp_path: Path) -> None:
    pruning = Pruning(densities=[0.6, 0.4, 0.05], prune_from="dense")
    run = fit(mlp(), digits(), tmp_path, rounds=None, pruning=pruning, controls=["pruned_only"])
    dense = run.ticket(0).trained
    for round in (1, 2, 3):
        masks = run.ticket(round).masks
        for name, mask in masks.items():
            smallest_kept, largest_gone = dense[name][mask].abs().min(), dense[name][~mask].abs().max()
            assert smallest_kept >= largest_gone
        assert_same(run.start(round, "pruned_only"), masked(dense, masks))
        assert run.rows[2 * round].density == pytest.approx([0.6, 0.4, 0.05][round - 1], abs=0.002)


@of_experiments([("mlp",), ("foreign",)])
def test_iterative_pruning_takes_masks_from_the_round_before_and_they_nest(experiment: Experiment) -> None:
    run = experiment(rounds=3, controls=["pruned_only"], pruning=Pruning(rate=0.4, scope="global"))
    for before, after in pairwise(map(run.ticket, range(4))):
        gone = {name: before.masks[name] & ~after.masks[name] for name in after.masks}
        assert not any((after.masks[name] & ~before.masks[name]).any() for name in after.masks)
        scores = torch.cat([before.trained[name][mask].abs() for name, mask in gone.items()])
        kept = torch.cat([before.trained[name][mask].abs() for name, mask in after.masks.items()])
        assert scores.max() <= kept.min()
        assert_same(run.start(after.info["round"], "pruned_only"), masked(before.trained, after.masks))


def test_learning_rate_rewinding_keeps_the_weights_and_restarts_the_schedule(tmp_path: Path) -> None:
    run = fit(resnet(), digits(), tmp_path, rounds=2, train_for="17it", rewind="learning_rate")
    for round in (1, 2):
        assert_same(run.start(round), masked(run.ticket(round - 1).trained, run.ticket(round).masks))
    assert run.witness.rates == [0.05, 0.05, 0.05]


@pytest.mark.parametrize(("rewind", "rewind_to"), [("learning_rate", "0it"), ("nothing", "4it"), ("weights", "4it")])
def test_one_shot_tickets_go_on_from_the_network_that_was_pruned(tmp_path: Path, rewind: str, rewind_to: str) -> None:
    """The dense one, not the last ticket, whose weights are 0 where another density's mask may keep them."""
    pruning = Pruning(densities=[0.5, 0.2], prune_from="dense", criterion=Movement())
    run = fit(mlp(), digits(), tmp_path, rounds=None, pruning=pruning, rewind=rewind, rewind_to=rewind_to)
    dense, rewind_point = run.ticket(0).trained, run.ticket(0).rewind_point
    for round in (1, 2):
        masks = run.ticket(round).masks
        assert_same(run.start(round), masked(rewind_point if rewind == "weights" else dense, masks))
        for name, mask in masks.items():
            moved = (dense[name] - rewind_point[name]).abs()
            assert moved[mask].min() >= moved[~mask].max()


def test_fine_tuning_goes_on_at_the_last_learning_rate(tmp_path: Path) -> None:
    class Rates(L.Callback):
        def __init__(self) -> None:
            self.seen: list[float] = []

        def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
            self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    rates = Rates()
    run = fit(resnet(), digits(), tmp_path, rounds=2, train_for="17it", rewind="nothing", callbacks=(rates,))
    for round in (1, 2):
        assert_same(run.start(round), masked(run.ticket(round - 1).trained, run.ticket(round).masks))
    assert rates.seen == [0.05] * 14 + [0.025] * (3 + 17 + 17)  # StepLR halves it after two epochs


def test_schedules_that_plan_by_the_length_of_training_see_one_round(tmp_path: Path) -> None:
    class OneCycle(ForeignModule):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            self.planned = self.trainer.estimated_stepping_batches
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=self.planned)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    for train_for, steps in (("17it", 17), ("3ep", 21)):
        run = fit(
            OneCycle(), ForeignData(), tmp_path / train_for, rounds=2, train_for=train_for, metrics=FOREIGN_METRICS
        )
        assert run.module.planned == steps
        assert [row.steps for row in run.rows] == [steps] * 3


def test_manual_optimization(tmp_path: Path) -> None:
    class Manual(ForeignModule):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            self.clip_gradients(optimizer, gradient_clip_val=0.1)
            optimizer.step()

    run = fit(Manual(), ForeignData(), tmp_path, rounds=2, train_for="10it", metrics=FOREIGN_METRICS)
    assert [row.steps for row in run.rows] == [10, 10, 10]
    for name, mask in run.ticket(2).masks.items():
        assert not run.ticket(2).trained[name][~mask].any()


@pytest.mark.filterwarnings("ignore:You defined a")
def test_loaders_without_a_length_train_rounds_of_steps(tmp_path: Path) -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            yield from ((torch.randn(1, 8, 8), torch.tensor(i % 10)) for i in range(100))

    class Module(ForeignModule):
        def train_dataloader(self) -> Any:
            return DataLoader(Stream(), batch_size=20)

    callback = LotteryTicket(rounds=1, train_for="8it", seed=1, run_dir=tmp_path)
    make_trainer(callbacks=[callback]).fit(Module())
    assert [row.steps for row in callback.results] == [8, 8]  # one epoch of 5 and 3 more
    with pytest.raises(SettingError, match="no length"):
        make_trainer(callbacks=[LotteryTicket(rounds=1, train_for="1ep", run_dir=tmp_path / "b")]).fit(Module())


# ------------------------------------------------------------------------ controls and chance


def test_controls_keep_the_tickets_count_in_every_layer(experiment: Experiment) -> None:
    run = experiment.shared(**LATE)
    for round in (1, 2):
        kept = {
            v: [row.kept for row in run.lottery.layers if (row.round, row.variant) == (round, v)]
            for v in ("ticket", *ALL_CONTROLS)
        }
        assert len({tuple(counts) for counts in kept.values()}) == 1
        ticket = run.ticket(round)
        for name, mask in ticket.masks.items():
            survivors = {v: run.start(round, v)[name] != 0 for v in ("random_reinit", "random_mask")}
            assert torch.equal(survivors["random_reinit"], mask), "the ticket's mask"
            assert int(survivors["random_mask"].sum()) == int(mask.sum())
            theta = run.ticket(0).rewind_point[name]
            assert not torch.equal(survivors["random_mask"], mask), "another mask"
            assert torch.equal(run.start(round, "random_mask")[name], theta * survivors["random_mask"]), "θ_k elsewhere"
            assert not (run.start(round, "random_reinit")[name] == theta)[mask].any(), "fresh weights"


def test_replicates_are_drawn_anew_and_all_hang_on_the_seed(tmp_path: Path) -> None:
    def run(folder: str, seed: int) -> Fit:
        torch.manual_seed(0)
        settings: dict[str, Any] = {"controls": ["random_reinit", "random_mask"], "control_replicates": 2}
        return fit(mlp(), digits(), tmp_path / folder, rounds=1, seed=seed, **settings)

    first, again, other = run("a", 1), run("b", 1), run("c", 2)
    for ours, same, different in zip(
        first.witness.starts[2:], again.witness.starts[2:], other.witness.starts[2:], strict=True
    ):
        assert_same(ours, same)
        assert not torch.equal(ours["net.fc1.weight"], different["net.fc1.weight"])
    assert not torch.equal(
        first.start(1, "random_mask")["net.fc1.weight"], first.start(1, "random_mask", 1)["net.fc1.weight"]
    )
    assert not torch.equal(
        first.start(1, "random_reinit")["net.fc1.weight"], first.start(1, "random_reinit", 1)["net.fc1.weight"]
    )


def test_control_rounds_restrict_the_controls(tmp_path: Path) -> None:
    run = fit(mlp(), digits(), tmp_path, rounds=3, controls=["random_mask"], control_rounds=[2])
    assert [(row.round, row.variant) for row in run.rows if row.variant != "ticket"] == [(2, "random_mask")]


@of_experiments([("mlp", "fresh"), ("foreign", "fresh"), ("foreign", "same")], data_order=["fresh", "same"])
def test_a_rounds_networks_see_the_data_in_one_order(experiment: Experiment, data_order: str) -> None:
    order = Order()
    experiment(rounds=2, data_order=data_order, controls=["random_reinit", "random_mask"], callbacks=(order,))
    dense, *rest = order.seen
    first, second = rest[:3], rest[3:]
    assert first[0] == first[1] == first[2]
    assert second[0] == second[1] == second[2]
    distinct = len({tuple(seen) for seen in (dense, first[0], second[0])})
    assert distinct == {"fresh": 3, "same": 1}[data_order]


class Stream(IterableDataset):
    """Four epochs' worth of what ForeignData trains on, without a length."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __iter__(self) -> Any:
        return (self.data[int(i)] for i in torch.randperm(4 * len(self.data)) % len(self.data))


class StreamData(ForeignData):
    def train_dataloader(self) -> DataLoader:
        return DataLoader(Stream(self.splits["train"]), batch_size=40)


class TwoLoaders(ForeignData):
    mode = "max_size"

    def train_dataloader(self) -> Any:
        short = DataLoader(Subset(self.splits["train"], range(240)), batch_size=40, shuffle=True)
        return CombinedLoader([super().train_dataloader(), short], self.mode)


class OfTwo(ForeignModule):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return sum(super(OfTwo, self).training_step(one, batch_idx) for one in batch if one is not None)


class AllTargets(Order):
    """Of several loaders too; counts the dense network's batches."""

    batches = 0

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        self.batches += len(self.seen) == 1
        for one in batch if isinstance(batch[0], list) else [batch]:
            if one is not None:  # a loader that has ended
                super().on_train_batch_start(trainer, module, one, batch_idx)


LOADERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "stock": (ForeignModule, ForeignData, {}),
    "accumulated": (ForeignModule, ForeignData, {"accumulate_grad_batches": 2}),
    "without a length": (ForeignModule, StreamData, {"check_val_every_n_epoch": None, "val_check_interval": 5}),
    "two": (OfTwo, TwoLoaders, {}),
    "seekable": (mlp, digits, {}),
}


@pytest.mark.parametrize(
    ("loader", "first"),
    [*((one, 3) for one in LOADERS), *(pytest.param(one, 10, marks=() if one == "two" else weekly) for one in LOADERS)],
)
def test_the_same_order_goes_on_from_the_rewind_point(loader: str, first: int, tmp_path: Path) -> None:
    make, data, trainer = LOADERS[loader]
    settings: dict[str, Any] = {
        **{"data_order": "same", "train_for": "13it", "rewind_to": f"{first}it", "rounds": 1, "trainer": trainer},
        **{"evaluate_test": False},
        **({} if loader == "seekable" else {"metrics": FOREIGN_METRICS}),
    }

    def run(folder: str, order: Order, *more: L.Callback, **given: Any) -> None:
        torch.manual_seed(0)
        fit(make(), data(), tmp_path / folder, callbacks=(order, *more), **settings, **given)

    run("whole", whole := AllTargets())
    dense, ticket = whole.seen
    assert ticket == dense[-len(ticket) :] and 0 < len(ticket) < len(dense)
    if first == 10:
        return
    with pytest.raises(RuntimeError, match="cut"):
        run("cut", AllTargets(), Cut(whole.batches + 3), checkpoint_every_n_train_steps=1)
    run("cut", rest := AllTargets(), ckpt_path=tmp_path / "cut" / "checkpoints" / "last.ckpt")
    assert 0 < len(rest.seen[-1]) < len(ticket) and ticket[-len(rest.seen[-1]) :] == rest.seen[-1]
    assert_equal_runs(tmp_path / "whole", tmp_path / "cut")


def test_an_order_that_depends_on_all_draws_before_the_rewind_point_is_refused(tmp_path: Path) -> None:
    data = TwoLoaders()
    data.mode = "max_size_cycle"
    settings: dict[str, Any] = {"data_order": "same", "train_for": "1ep", "metrics": FOREIGN_METRICS}
    with pytest.raises(SettingError, match="lottery.data_order: same cannot be kept from a rewind point inside an"):
        fit(OfTwo(), data, tmp_path / "refused", rewind_to="3it", **settings)
    fit(OfTwo(), data, tmp_path / "run", rewind_to="0it", rounds=0, **settings)


@of_experiments([("mlp",), ("foreign",)])
def test_how_often_is_evaluated_does_not_change_what_is_trained(experiment: Experiment) -> None:
    """Though the stock validation loader shuffles, from the generator that dropout draws from."""
    often = experiment(trainer={"val_check_interval": 2})
    never = experiment("never", trainer={"limit_val_batches": 0}, evaluate_test=False)
    assert_same(often.ticket(2).trained, never.ticket(2).trained)
    assert never.rows[2].val_acc is None
    assert never.rows[2].test_acc is None


def test_early_stop_columns_are_the_evaluation_of_the_lowest_loss_and_curves_hold_all(
    tmp_path: Path,
) -> None:
    class Curve(L.Callback):
        def __init__(self) -> None:
            self.points: list[list[tuple[float, int]]] = []

        def on_network_start(self, *_: Any) -> None:
            self.points.append([])

        def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
            self.points[-1].append((float(trainer.callback_metrics["val_loss"]), trainer.global_step))

    curve = Curve()
    fast = mlp(optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.05))
    settings = {"val_check_interval": 5, "check_val_every_n_epoch": None}
    run = fit(fast, digits(), tmp_path, rounds=1, train_for="60it", trainer=settings, callbacks=(curve,))
    for row, points in zip(run.rows, curve.points, strict=True):
        assert [step for _, step in points] == list(range(5, 61, 5)), "every 5 steps of the round, the last included"
        loss, step = min(points)
        assert (row.early_stop_val_loss, row.early_stop_step) == (loss, step)
        assert row.val_loss == points[-1][0]
        kept = [point for point in read_curves(run.lottery.folder.curves) if point.round == row.round]
        assert [(point.val_loss, point.step) for point in kept] == points
        assert kept[-1].test_acc == row.test_acc


# ------------------------------------------------------------------------ resuming


@of_experiments([("foreign", 22)], cut_at=[22])
def test_a_resumed_run_ends_bit_for_bit_as_an_uninterrupted_one(
    experiment: Experiment, cut_at: int, tmp_path: Path
) -> None:
    whole = experiment.shared(**LATE)
    with pytest.raises(RuntimeError, match="cut"):
        experiment("cut", **LATE, callbacks=(Cut(cut_at),))
    resumed = experiment("cut", **LATE, ckpt_path=tmp_path / "cut/checkpoints/last.ckpt")
    assert_equal_runs(whole.lottery.folder.path, resumed.lottery.folder.path)
    assert_same(copies(whole.module), copies(resumed.module))


@pytest.mark.parametrize(
    "way",
    [
        pytest.param({"rewind": "learning_rate"}, marks=weekly),  # usually in tests/behaviour/test_kills.py
        {"rewind": "nothing"},
        {"pruning": Pruning(prune_from="dense")},
    ],
)
def test_a_resumed_run_of_another_kind_ends_the_same(tmp_path: Path, way: dict[str, Any]) -> None:
    """Cut in round 2: a network trains 17 steps, rewound ones 12."""
    settings: dict[str, Any] = {"rounds": 2, "train_for": "17it", "rewind_to": "5it", "metrics": FOREIGN_METRICS, **way}
    whole = fit(ForeignModule(), ForeignData(), tmp_path / "whole", **settings)
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match="cut"):
        fit(ForeignModule(), ForeignData(), tmp_path / "cut", **settings, callbacks=(Cut(37),))
    checkpoint = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    fit(ForeignModule(), ForeignData(), tmp_path / "cut", **settings, ckpt_path=checkpoint)
    assert_equal_runs(whole.lottery.folder.path, tmp_path / "cut")


def test_tickets_from_files_resume_too(tmp_path: Path) -> None:
    run = fit(mlp(), digits(), tmp_path / "run", rounds=2, train_for="17it", rewind_to="5it")
    settings: dict[str, Any] = {"rounds": None, "train_for": "17it", "tickets": run.lottery.folder.tickets}
    whole = fit(mlp(), digits(), tmp_path / "whole", **settings, controls=["random_reinit"])
    with pytest.raises(RuntimeError, match="cut"):
        fit(mlp(), digits(), tmp_path / "cut", **settings, controls=["random_reinit"], callbacks=(Cut(45),))
    checkpoint = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    fit(mlp(), digits(), tmp_path / "cut", **settings, controls=["random_reinit"], ckpt_path=checkpoint)
    assert_equal_runs(whole.lottery.folder.path, tmp_path / "cut")


@pytest.mark.parametrize("rewind", ["weights", "learning_rate", "nothing"])
def test_a_random_mask_keeps_the_rewind_points_weights_and_no_zero(tmp_path: Path, rewind: str) -> None:
    """The last round's trained weights are 0 where they were pruned; the shuffled mask keeps some of those."""
    run = fit(mlp(), digits(), tmp_path, rounds=3, rewind=rewind, controls=["random_mask"])
    for round in (1, 2, 3):
        start = run.start(round, "random_mask")
        for name, mask in run.ticket(round).masks.items():
            assert int((start[name] != 0).sum()) == int(mask.sum())
            assert torch.equal(start[name], run.start(0)[name] * (start[name] != 0))


def test_controls_of_tickets_from_files_are_those_of_their_round(experiment: Experiment, tmp_path: Path) -> None:
    """A ticket's file lacks the weights it has pruned; the dense ticket beside it has them."""
    controls = ["random_reinit", "random_mask"]
    run = experiment.shared(**LATE)
    tickets = shutil.copytree(run.lottery.folder.tickets, tmp_path / "tickets")
    path = tickets / run.lottery.folder.ticket(2).name
    again = experiment("again", rounds=None, train_for="17it", tickets=path, controls=controls)
    trained = [row for row in run.rows if row.round == 2 and row.variant != "pruned_only"]
    rows = [(row.variant, row.density, row.test_acc, row.val_loss) for row in trained]
    assert [(row.variant, row.density, row.test_acc, row.val_loss) for row in again.rows] == rows
    alone = path.rename(path.with_name("alone.safetensors"))
    path.with_name("round_00.safetensors").unlink()
    with pytest.raises(SettingError, match=r"random_mask needs weights that alone.safetensors has pruned"):
        experiment("alone", rounds=None, train_for="17it", tickets=alone, controls=controls)


def test_tickets_take_the_place_of_rounds(tmp_path: Path) -> None:
    run = fit(mlp(), digits(), tmp_path / "run", rounds=1)
    again = fit(mlp(), digits(), tmp_path / "again", rounds=12, tickets=run.lottery.folder.tickets)
    assert [row.round for row in again.rows] == [0, 1]


def test_no_hook_is_left_on_the_module_after_a_fit(tmp_path: Path) -> None:
    run = fit(mlp(), digits(), tmp_path)
    assert not any(parameter._post_accumulate_grad_hooks for parameter in run.module.parameters())
    assert "run" not in vars(run.trainer.fit_loop.epoch_loop.val_loop)


def test_resuming_a_finished_run_ends_at_once_with_its_results_and_its_last_ticket(tmp_path: Path) -> None:
    run = fit(mlp(), digits(), tmp_path, controls=["random_mask"])
    again = fit(
        mlp(),
        digits(),
        tmp_path,
        controls=["random_mask"],
        ckpt_path=run.lottery.folder.checkpoint,
        callbacks=(Cut(1),),
    )
    assert again.rows == run.rows
    checkpoint = torch.load(run.lottery.folder.checkpoint, weights_only=True)
    assert_same(checkpoint["state_dict"], run.ticket(2).trained)
    assert_same(copies(again.module), run.ticket(2).trained)


def test_resuming_with_other_settings_is_refused_and_says_which(tmp_path: Path) -> None:
    run = fit(mlp(), digits(), tmp_path)
    with pytest.raises(SettingError, match=r"lottery.train_for was 10it, is 11it\."):
        fit(mlp(), digits(), tmp_path, train_for="11it", ckpt_path=run.lottery.folder.checkpoint)


def test_a_folder_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    fit(mlp(), digits(), tmp_path)
    before = (tmp_path / "results.csv").read_bytes()
    with pytest.raises(SettingError, match="already holds a run"):
        fit(mlp(), digits(), tmp_path)
    assert (tmp_path / "results.csv").read_bytes() == before


# ------------------------------------------------------------------------ other people's things


def test_early_stopping_ends_the_round_and_not_the_experiment(experiment: Experiment) -> None:
    monitor = EarlyStopping(experiment.val_loss, patience=1, min_delta=100.0)  # nothing improves by 100
    run = experiment(rounds=2, train_for="30it", callbacks=(monitor,))
    assert [row.steps for row in run.rows] == [14, 14, 14]  # the second validation ends it, each round anew


def test_a_round_0_that_is_stopped_before_the_rewind_point_is_an_error(tmp_path: Path) -> None:
    stopper = EarlyStopping("val_loss", patience=1, min_delta=100.0)
    with pytest.raises(SettingError, match="stopped after 14 steps, before the rewind point at step 20"):
        fit(mlp(), digits(), tmp_path, train_for="30it", rewind_to="20it", callbacks=(stopper,))


def test_early_stopping_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    stopper = EarlyStopping("val_loss", patience=1, min_delta=100.0, check_on_train_epoch_end=False)
    settings = {"val_check_interval": 2}
    run = fit(mlp(), digits(), tmp_path, rounds=1, train_for="30it", trainer=settings, callbacks=(stopper,))
    assert [row.steps for row in run.rows] == [4, 4]  # evaluated at 2 and, no better, at 4


def test_model_checkpoint_and_learning_rate_monitor_work_beside_it(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path / "theirs", save_top_k=-1, every_n_epochs=1)
    logger = TensorBoardLogger(tmp_path, name="logs", version="", default_hp_metric=False)
    settings = {"enable_checkpointing": True, "logger": logger}
    run = fit(
        resnet(),
        digits(),
        tmp_path / "run",
        rounds=1,
        train_for="14it",
        trainer=settings,
        callbacks=(checkpoint, LearningRateMonitor()),
    )
    assert len(list((tmp_path / "theirs").glob("*.ckpt"))) == 4
    last = torch.load(
        checkpoint.best_model_path
        or checkpoint.last_model_path
        or next((tmp_path / "theirs").glob("*step=14-v1.ckpt")),
        weights_only=True,
    )
    for name, mask in run.ticket(1).masks.items():
        assert last["state_dict"][name].shape == mask.shape


def test_a_second_fit_with_the_same_callback_starts_over(tmp_path: Path) -> None:
    callback = LotteryTicket(rounds=2, train_for="10it", seed=7)
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        make_trainer(callbacks=[callback], default_root_dir=tmp_path).fit(mlp(), digits())
        results.append([(row.round, row.density, row.test_acc) for row in callback.results])
    assert results[0] == results[1]
    assert len(results[0]) == 3


def test_the_module_is_left_with_the_last_ticket_and_can_be_tested(experiment: Experiment) -> None:
    run = experiment.shared(**LATE)
    assert_same(copies(run.module), run.ticket(2).trained)
    metrics = run.trainer.test(run.module, run.make_data(), verbose=False)[0]
    assert metrics[run.lottery.metrics["test_acc"]] == last_ticket(run).test_acc


def test_own_rule_of_what_may_be_pruned(tmp_path: Path) -> None:
    def only_the_first(module: nn.Module) -> dict[str, nn.Parameter]:
        return dict(list(prunable_weights(module).items())[:1])

    run = fit(mlp(), digits(), tmp_path, prunable=only_the_first)
    assert list(run.ticket(2).masks) == ["net.fc1.weight"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": -1}, "lottery.rounds must be at least 0 .* got -1"),
        ({"rounds": None}, "lottery.rounds is missing"),
        ({"rounds": 2, "pruning": Pruning(densities=[0.5])}, "Leave out lottery.rounds"),
        ({"train_for": "10"}, "lottery.train_for must be .* got '10'"),
        ({"train_for": "3 epochs"}, "lottery.train_for"),
        ({"train_for": "0it"}, "train_for must be above 0, got 0it"),
        ({"train_for": "5%"}, "lottery.train_for"),
        ({"rewind_to": "10it"}, "lottery.rewind_to must be .* got 10it"),
        ({"rewind_to": "100%"}, "lottery.rewind_to"),
        ({"rewind": "weight"}, "Did you mean 'weights'"),
        ({"data_order": "new"}, "lottery.data_order"),
        ({"controls": ["reinit"]}, "Did you mean 'random_reinit'"),
        ({"controls": ["random_mask", "random_mask"]}, "twice"),
        ({"control_rounds": [3]}, r"round 3 is beyond lottery.rounds 2; raise that to 3, or choose from 1, 2"),
        ({"control_rounds": [0]}, "round 0 cannot have controls"),
        ({"control_replicates": 0}, "control_replicates"),
        ({"metrics": {"accuracy": "x"}}, "lottery.metrics"),
        ({"rounds": None, "tickets": "nowhere"}, "nowhere"),
    ],
)
def test_settings_that_cannot_be_honoured_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        LotteryTicket(**{"rounds": 2, "train_for": "10it", **settings})


def test_what_only_the_data_can_tell_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="before the end of a round of 10 steps .*, got step 14"):
        fit(mlp(), digits(), tmp_path / "a", rewind_to="2ep", callbacks=(Cut(1),))
    with pytest.raises(SettingError, match="max_epochs is 5"):
        fit(mlp(), digits(), tmp_path / "b", trainer={"max_epochs": 5})
    with pytest.raises(SettingError, match="nothing left to prune in round 32"):
        fit(mlp(), digits(), tmp_path / "c", rounds=90, callbacks=(Cut(1),))


# ------------------------------------------------------------------------ what is shown


def test_tensorboard_has_a_sub_run_for_each_round_with_steps_from_0(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="tensorboard", version="", default_hp_metric=False)
    run = fit(
        mlp(),
        digits(),
        tmp_path / "run",
        rounds=2,
        train_for="14it",
        controls=["random_mask"],
        trainer={"logger": logger},
    )
    folder = tmp_path / "tensorboard"
    titles = {0: "round 00 100%", 1: "round 01 80%", 2: "round 02 64%"}
    assert {path.name for path in folder.iterdir() if path.is_dir()} == set(titles.values())
    for row in run.rows:
        points = _scalars(folder / titles[row.round], f"val_loss/{row.variant}")
        assert [step for step, _ in points] == [6, 13]
        last = _scalars(folder / titles[row.round], f"rounds/test_acc/{row.variant}")
        assert last == [(row.round, pytest.approx(row.test_acc))]


def _scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tickets_beat_their_controls_on_real_digits(tmp_path: Path) -> None:
    """The hypothesis itself (SCIENCE.md): at 4 % of the weights, averaged over two seeds."""
    accuracy: dict[str, list[float]] = {"ticket": [], "random_reinit": [], "random_mask": []}
    for seed in (1, 2):
        torch.manual_seed(seed)
        module = mlp(optimizer=lambda parameters: torch.optim.Adam(parameters, lr=2e-3))
        pruning = Pruning(densities=[0.3, 0.1, 0.04])
        settings: dict[str, Any] = {
            "train_for": "150it",
            "pruning": pruning,
            "controls": ["random_reinit", "random_mask"],
        }
        data = digits(train_size=None, batch_size=60)
        run = fit(
            module,
            data,
            tmp_path / str(seed),
            rounds=None,
            seed=seed,
            control_rounds=[3],
            trainer={"limit_val_batches": 0},
            **settings,
        )
        for row in run.rows[-3:]:
            accuracy[row.variant].append(row.test_acc)
    means = {variant: sum(values) / 2 for variant, values in accuracy.items()}
    assert means["ticket"] > means["random_reinit"] + 0.05
    assert means["ticket"] > means["random_mask"] + 0.05


# ------------------------------------------------------------------------ every network finds a new trainer


class Gradients(L.Callback):
    """Whether any gradient was left when a network started, and what the trainer counted."""

    def __init__(self) -> None:
        self.left_over: list[int] = []
        self.counts: list[tuple[int, int, dict[str, Any]]] = []

    def on_network_start(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        self.left_over.append(sum(parameter.grad is not None for parameter in module.parameters()))
        self.counts.append((trainer.global_step, trainer.current_epoch, dict(trainer.callback_metrics)))


def test_no_gradient_count_or_metric_of_the_last_network_is_left(experiment: Experiment) -> None:
    look = Gradients()
    experiment(rounds=2, train_for="8it", callbacks=(look,))
    assert look.left_over == [0, 0, 0]
    assert look.counts == [(0, 0, {})] * 3


def test_a_late_rewound_network_counts_from_the_rewind_point(tmp_path: Path) -> None:
    look = Gradients()
    fit(mlp(), digits(), tmp_path, rounds=1, train_for="20it", rewind_to="9it", callbacks=(look,))
    assert [(step, epoch) for step, epoch, _ in look.counts] == [(0, 0), (9, 1)]


def test_evaluation_every_n_steps_counts_the_steps_of_the_round(tmp_path: Path) -> None:
    """A round's length is no multiple of the interval, and the last step of a round is evaluated all the same."""

    class Steps(L.Callback):
        def __init__(self) -> None:
            self.seen: list[list[int]] = []

        def on_network_start(self, *_: Any) -> None:
            self.seen.append([])

        def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
            self.seen[-1].append(trainer.global_step)

    steps = Steps()
    settings = {"val_check_interval": 4, "check_val_every_n_epoch": None}
    fit(mlp(), digits(), tmp_path / "a", rounds=2, train_for="10it", trainer=settings, callbacks=(steps,))
    assert steps.seen == [[4, 8, 10]] * 3
    steps = Steps()
    fit(mlp(), digits(), tmp_path / "b", rounds=1, train_for="10it", callbacks=(steps,))
    assert steps.seen == [[7, 10]] * 2, "every epoch, and the part of one that ends the round"


def test_early_stopping_sees_the_part_of_an_epoch_that_ends_a_round(tmp_path: Path) -> None:
    """Its metric is there though the epoch is cut short: by default it would be missing, and an error."""
    stopper = EarlyStopping("val_loss", patience=50)
    run = fit(mlp(), digits(), tmp_path, rounds=1, train_for="3it", callbacks=(stopper,))
    assert [row.steps for row in run.rows] == [3, 3]


def test_plateau_schedules_start_new_each_round(tmp_path: Path) -> None:
    class Plateau(ForeignModule):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=100.0)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "valid/ce"}}

    run = fit(Plateau(), ForeignData(), tmp_path, rounds=2, train_for="4ep", rewind_to="2ep", metrics=FOREIGN_METRICS)
    assert run.witness.rates == [0.1, 0.1, 0.1]
    assert run.trainer.optimizers[0].param_groups[0]["lr"] < 0.1, "it did fall"


def test_random_masks_differ_from_round_to_round(tmp_path: Path) -> None:
    rules = {"net.fc1.weight": 0.5, "*": 0.0}  # the count in fc1 is the same in both runs of round 1 and 2
    run = fit(mlp(), digits(), tmp_path, rounds=2, pruning=Pruning(rates=rules), controls=["random_mask"])
    first, second = (run.start(round, "random_mask")["net.fc1.weight"] != 0 for round in (1, 2))
    both = int((first & second).sum()) / int(second.sum())
    assert 0.4 < both < 0.6, "two independent draws: half of the second's survivors are in the first"


def test_frozen_weights_and_constants_are_the_same_in_a_reinitialised_network(tmp_path: Path) -> None:
    class Frozen(ForeignModule):
        def __init__(self) -> None:
            super().__init__()
            self.body[0].weight.requires_grad_(False)
            self.register_buffer("scale", torch.tensor(3.0))

    run = fit(Frozen(), ForeignData(), tmp_path, rounds=1, controls=["random_reinit"], metrics=FOREIGN_METRICS)
    ticket, reinit = run.start(1), run.start(1, "random_reinit")
    assert list(run.ticket(1).masks) == ["body.5.weight"]
    assert torch.equal(ticket["body.0.weight"], reinit["body.0.weight"])
    assert torch.equal(ticket["scale"], reinit["scale"])
    assert not torch.equal(ticket["body.5.bias"], reinit["body.5.bias"])


@pytest.mark.parametrize("prune_from", ["last_round", "dense"])
def test_a_criterion_sees_what_the_round_started_with(tmp_path: Path, prune_from: str) -> None:
    seen: list[Any] = []

    class Look(Magnitude):
        def scores(self, evidence: Any) -> Any:
            seen.append(evidence)
            return super().scores(evidence)

    pruning = Pruning(rate=0.3, criterion=Look(), prune_from=prune_from)
    run = fit(mlp(), digits(), tmp_path, rounds=2, pruning=pruning, rewind="learning_rate")
    for round, evidence in enumerate(seen, start=1):
        source = 0 if prune_from == "dense" else round - 1
        for name in evidence.start:
            assert torch.equal(evidence.start[name], run.start(source)[name])
            assert torch.equal(evidence.trained[name], run.ticket(source).trained[name])


def test_a_resumed_run_has_no_point_twice_in_tensorboard(tmp_path: Path) -> None:
    def logger() -> dict[str, Any]:
        return {"logger": TensorBoardLogger(tmp_path, name="tensorboard", version="", default_hp_metric=False)}

    settings: dict[str, Any] = {"rounds": 1, "train_for": "28it"}
    with pytest.raises(RuntimeError, match="cut"):
        fit(mlp(), digits(), tmp_path / "run", trainer=logger(), callbacks=(Cut(28 + 10),), **settings)
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    run = fit(mlp(), digits(), tmp_path / "run", trainer=logger(), ckpt_path=checkpoint, **settings)
    for row in run.rows:
        folder = tmp_path / "tensorboard" / f"round {row.round:02d} {100 * row.density:.3g}%"
        steps = [step for step, _ in _scalars(folder, "val_loss/ticket")]
        assert sorted(steps) == [6, 13, 20, 27]  # event files of one second are read in any order
        assert [step for step, _ in _scalars(folder, "rounds/test_acc/ticket")] == [row.round]
