"""What earlier implementations got wrong (the table in SCIENCE.md), row by row: each made impossible here.

Most rows run on a fully connected network with Adam, on a residual network with batch norm, momentum, weight decay
and a schedule, and on somebody else's module with dropout and stock loaders.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from conftest import (
    Cut,
    Fit,
    assert_same,
    copies,
    digits,
    fit,
    make_trainer,
    mlp,
    of_experiments,
    resnet,
    train_by_hand,
)

from lth_lightning import Criterion, Evidence, LotteryTicket, Pruning, Ticket
from lth_lightning.pruning.masks import masked
from lth_lightning.pruning.state import fingerprint

Experiment = Callable[..., Fit]
REPOSITORY = Path(__file__).parents[2]


class EachStep(L.Callback):
    """Looks at pruned weights, their gradients and their optimizer state around every optimizer step."""

    def __init__(self) -> None:
        self.checked = 0

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, _: Any) -> None:
        for weight, mask in self._pruned(trainer):
            assert not weight.grad[~mask].any(), "a gradient that would count in the clipping norm"

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        for weight, mask in self._pruned(trainer):
            assert not weight[~mask].any()
            for state in trainer.optimizers[0].state[weight].values():
                if torch.is_tensor(state) and state.shape == mask.shape:
                    assert not state[~mask].any()
            self.checked += int(not mask.all())

    def _pruned(self, trainer: L.Trainer) -> Any:
        lottery = next(callback for callback in trainer.callbacks if isinstance(callback, LotteryTicket))
        masks = lottery.masks_in_force
        return [(lottery.prunable(trainer.lightning_module)[name], mask) for name, mask in masks.items()]


PLAIN: dict[str, Any] = {"rounds": 3, "train_for": "17it"}


def test_row_1_theta_0_is_never_aliased(experiment: Experiment) -> None:
    """The second and third rewind still find the initial weights, though the live ones were trained in place."""
    run = experiment.shared(**PLAIN)
    theta_0 = run.start(0)
    for round in (1, 2, 3):
        assert_same(run.start(round), masked(theta_0, run.ticket(round).masks))
    assert fingerprint(copies(run.module)) != fingerprint(theta_0)


def test_row_2_weights_are_reset_at_all(experiment: Experiment) -> None:
    run = experiment.shared(**PLAIN)
    trained, start = run.ticket(0).trained, run.start(1)
    for name, mask in run.ticket(1).masks.items():
        assert (start[name] != trained[name])[mask].float().mean() > 0.9


def test_row_3_momentum_schedule_and_batch_norm_are_rewound(experiment: Experiment) -> None:
    run = experiment.shared(**PLAIN)
    assert run.witness.momentum == [0, 0, 0, 0], "no optimizer state is carried over"
    assert len(set(run.witness.rates)) == 1, "the schedule starts again"
    for name, value in run.start(0).items():
        if "running" in name or "num_batches" in name:
            assert torch.equal(run.start(2)[name], value)
            assert not torch.equal(run.ticket(1).trained[name], value), "and there was something to rewind"


def test_row_4_biases_and_normalisation_are_not_pruned(experiment: Experiment) -> None:
    run = experiment.shared(**PLAIN)
    masks, state = run.ticket(2).masks, run.start(2)
    assert all(name.endswith("weight") and state[name].dim() > 1 for name in masks)
    for name, value in state.items():
        if name not in masks:
            assert torch.equal(value, run.start(0)[name])


WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"accumulate_grad_batches": 3},
    {"gradient_clip_val": 0.05},
    {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value", "accumulate_grad_batches": 2},
    {"precision": "bf16-mixed"},
)


@of_experiments(
    [("mlp", WAYS[0]), ("mlp", WAYS[1]), ("mlp", WAYS[4]), ("foreign", WAYS[2]), ("foreign", WAYS[3])], trainer=WAYS
)
def test_row_5_pruned_weights_stay_0_through_everything(experiment: Experiment, trainer: dict[str, Any]) -> None:
    look = EachStep()
    experiment(rounds=2, pruning=Pruning(rate=0.5), controls=["random_mask"], trainer=trainer, callbacks=(look,))
    assert look.checked > 0


def test_row_5_gradients_of_pruned_weights_do_not_count_in_the_clipping_norm(experiment: Experiment) -> None:
    settings = {"trainer": {"gradient_clip_val": 0.1}}
    run = experiment(rounds=1, train_for="10it", pruning=Pruning(rate=0.7), **settings)
    ticket = run.ticket(1)
    assert_same(ticket.trained, train_by_hand(run, ticket.rewind_point, ticket.masks, 0, 10, order=1, clip=0.1))


class AllEqual(Criterion):
    """Where `score <= threshold` would prune every weight."""

    def scores(self, evidence: Evidence) -> Any:
        return {name: torch.full_like(weight, 0.5) for name, weight in evidence.trained.items()}


def test_row_6_exactly_k_weights_go_and_ties_are_broken(tmp_path: Path) -> None:
    """Property-based, against NumPy, in test_pruning.py."""
    run = fit(mlp(), digits(), tmp_path, rounds=1, pruning=Pruning(rate=0.3, criterion=AllEqual()))
    for name, mask in run.ticket(1).masks.items():
        gone = mask.numel() * 3 // 10
        assert mask.flatten().tolist() == [False] * gone + [True] * (mask.numel() - gone), name


def test_row_7_ignored_layers_do_not_count_in_the_number_to_prune(tmp_path: Path) -> None:
    pruning = Pruning(rate=0.5, rates={"net.fc1.weight": 0.0}, scope="global")
    run = fit(mlp(), digits(), tmp_path, rounds=1, pruning=pruning)
    masks = run.ticket(1).masks
    assert masks.pop("net.fc1.weight").all()
    assert sum(int(mask.sum()) for mask in masks.values()) == (40 * 20 + 20 * 10) / 2


# Rows 8 and 16, several processes: test_processes.py.


def test_row_9_negative_weights_learn(experiment: Experiment) -> None:
    """`tensor < eps` in place of `tensor.abs() < eps` froze every negative weight."""
    run = experiment.shared(**PLAIN)
    start, trained = run.start(1), run.ticket(1).trained
    for name in run.ticket(1).masks:
        negative = start[name] < 0
        assert negative.any()
        assert (trained[name] != start[name])[negative].float().mean() > 0.9


def test_row_10_the_random_mask_is_another_mask(experiment: Experiment) -> None:
    run = experiment(rounds=1, pruning=Pruning(rate=0.5), controls=["random_mask"])
    for name, mask in run.ticket(1).masks.items():
        moved = run.start(1, "random_mask")[name] != 0
        expected = mask.numel() / 4  # kept by both, of two independent halves
        assert abs(int((moved & mask).sum()) - expected) < 6 * np.sqrt(mask.numel() * 3 / 16), name


def test_row_10_pruned_weights_never_return(experiment: Experiment) -> None:
    """Though 0 is the highest score there can be under a criterion that prefers small weights."""

    class SmallestSurvive(Criterion):
        def scores(self, evidence: Evidence) -> Any:
            return {name: -weight.abs() for name, weight in evidence.trained.items()}

    run = experiment(rounds=3, pruning=Pruning(rate=0.3, criterion=SmallestSurvive()))
    for round in (1, 2):
        before, after = run.ticket(round).masks, run.ticket(round + 1).masks
        assert not any((after[name] & ~before[name]).any() for name in after)


def test_row_11_every_image_is_counted_once_and_none_is_dropped(tmp_path: Path) -> None:
    """100 validation and 360 test images in batches of 77: accuracy over all of them, by hand."""
    run = fit(mlp(), digits(eval_batch_size=77), tmp_path, rounds=0)
    data = digits()
    data.setup("test")
    for loader, loss, accuracy, count in (
        (data.val_dataloader(), run.rows[0].val_loss, run.rows[0].val_acc, 100),
        (data.test_dataloader(), run.rows[0].test_loss, run.rows[0].test_acc, 360),
    ):
        images, targets = (torch.cat(parts) for parts in zip(*loader, strict=True))
        with torch.no_grad():
            logits = run.module(images)
        assert len(images) == count
        assert accuracy == pytest.approx(float((logits.argmax(1) == targets).double().mean()), abs=1e-6)
        assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, targets)), rel=1e-5)


def test_row_11_the_last_partial_batch_trains(tmp_path: Path) -> None:
    class Count(L.Callback):
        images = 0

        def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, _: int) -> None:
            self.images += len(batch[0])

    count = Count()
    fit(mlp(), digits(), tmp_path, rounds=0, train_for="2ep", callbacks=(count,))
    assert count.images == 2 * 250


def test_row_11_test_data_select_nothing(tmp_path: Path) -> None:
    """With other test labels nothing but the test columns changes: not the early-stop step, not the ticket."""
    runs = []
    for shift in (0, 1):
        torch.manual_seed(0)
        module, data = mlp(optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.05)), digits()
        data.setup("fit")
        images, targets = data._splits["test"]
        data._splits["test"] = (images, targets.roll(shift))
        settings = {"val_check_interval": 2, "check_val_every_n_epoch": None}
        runs.append(fit(module, data, tmp_path / str(shift), rounds=1, train_for="40it", trainer=settings))
    for ours, theirs in zip(runs[0].rows, runs[1].rows, strict=True):
        assert ours.early_stop_step == theirs.early_stop_step is not None
        assert ours.test_acc != theirs.test_acc
    assert_same(runs[0].ticket(1).trained, runs[1].ticket(1).trained)


def test_row_12_evaluation_leaves_batch_norm_alone(tmp_path: Path) -> None:
    often = fit(resnet(), digits(), tmp_path / "often", rounds=1, trainer={"val_check_interval": 1})
    counts = {n: int(v) for n, v in often.ticket(1).trained.items() if "num_batches" in n}
    assert set(counts.values()) == {10}, "10 steps, and none of the 20 evaluations"


def test_row_13_the_rewind_point_is_not_one_step_late(experiment: Experiment) -> None:
    """By a run that ends at the very step; lottery/test_callback.py compares with a plain loop."""
    run = experiment(rounds=1, train_for="10it", rewind_to="3it")
    short = experiment("short", rounds=0, train_for="3it")
    assert_same(run.ticket(0).rewind_point, short.ticket(0).trained)


@of_experiments([("foreign",)])
def test_row_14_a_resumed_fit_keeps_sparsity_chance_and_learning_rate(experiment: Experiment) -> None:
    """In the third epoch of round 1, after the schedule has moved; test_resume.py and test_kills.py cut elsewhere."""
    whole = experiment(rounds=1, train_for="21it")
    with pytest.raises(RuntimeError, match="cut"):
        experiment("cut", rounds=1, train_for="21it", callbacks=(Cut(21 + 16),))
    checkpoint = whole.lottery.folder.path.with_name("cut") / "checkpoints" / "last.ckpt"
    look = EachStep()
    resumed = experiment("cut", rounds=1, train_for="21it", ckpt_path=checkpoint, callbacks=(look,))
    assert look.checked > 0
    assert_same(resumed.ticket(1).trained, whole.ticket(1).trained)


def test_row_15_a_second_fit_with_the_same_callback_and_module(tmp_path: Path) -> None:
    """It neither crashes nor does nothing: it starts from the weights that the module has now."""
    callback, module = LotteryTicket(rounds=1, train_for="10it", seed=1), mlp()
    for _ in range(2):
        before = copies(module)
        make_trainer(callbacks=[callback], default_root_dir=tmp_path).fit(module, digits())
        assert [row.round for row in callback.results] == [0, 1]
        ticket = Ticket.load(callback.folder.ticket(1))
        assert_same(ticket.rewind_point, masked(before, ticket.masks))


@of_experiments([("mlp",), ("foreign",)])
def test_row_16_controls_hang_on_the_seed_alone(experiment: Experiment) -> None:
    """Not on what was drawn before: whatever the global generators did, the same reinitialisation."""
    torch.rand(5)
    one = experiment(rounds=1, controls=["random_reinit"])
    other = experiment("other", rounds=1, controls=["random_reinit", "random_mask"], control_replicates=2)
    assert_same(one.start(1, "random_reinit"), other.start(1, "random_reinit"))
