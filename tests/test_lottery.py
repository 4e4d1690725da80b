"""The callback: rounds, rewind points, controls, seeds, resuming, other people's callbacks."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import FOREIGN_METRICS, Fit, ForeignData, ForeignModule, assert_same, copies, digits, fit, make_trainer, mlp, resnet
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lth_lightning import LotteryTicket, Pruning, SettingError, Ticket
from lth_lightning.masks import density, masked

Experiment = Callable[..., Fit]
ALL_CONTROLS = ("random_reinit", "random_mask", "pruned_only")


def test_a_fit_trains_every_network_of_the_plan_for_its_length(experiment: Experiment) -> None:
    run = experiment(rounds=2, train_for="10it", controls=ALL_CONTROLS)
    variants = [(row.round, row.variant, row.steps) for row in run.rows]
    a_round = [("pruned_only", 0), ("ticket", 10), ("random_reinit", 10), ("random_mask", 10)]
    assert variants == [(0, "ticket", 10), *((r, *network) for r in (1, 2) for network in a_round)]
    assert all(0 <= row.test_acc <= 1 and row.val_loss > 0 and row.test_loss > 0 for row in run.rows)


def test_rounds_of_epochs_take_the_steps_of_whole_epochs(tmp_path: Path) -> None:
    run = fit(mlp(), digits(), tmp_path, rounds=1, train_for="2ep")
    assert [row.steps for row in run.rows] == [14, 14]  # 250 images in batches of 40: 7 steps an epoch


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_steps_are_optimizer_steps_under_accumulation(tmp_path: Path, accumulate: int) -> None:
    class Count(L.Callback):
        steps = 0

        def on_before_optimizer_step(self, *_: Any) -> None:
            self.steps += 1

    count = Count()
    settings = {"accumulate_grad_batches": accumulate}
    run = fit(mlp(), digits(), tmp_path, rounds=1, train_for="9it", trainer=settings, callbacks=(count,))
    assert [row.steps for row in run.rows] == [9, 9]
    assert count.steps == 18


@pytest.mark.parametrize("rewind_to", ["0it", "4it", "7it", "9it", "1ep", "50%"])
def test_every_later_round_starts_from_the_rewind_point_times_its_mask(experiment: Experiment, rewind_to: str) -> None:
    """The rewind point is what exactly k steps of a plain fit lead to, neither one more nor one less."""
    run = experiment(rounds=3, train_for="14it", rewind_to=rewind_to)
    k = {"1ep": 7, "50%": 7}.get(rewind_to) or int(rewind_to.removesuffix("it"))
    after = experiment.__closure__ and _weights_after(k, run)
    for round in (1, 2, 3):
        ticket = Ticket.load(run.ticket(round))
        assert_same(run.witness.starts[round], masked(after, ticket.masks))
        assert run.rows[round].steps == 14 - k


def _weights_after(steps: int, run: Fit) -> dict[str, torch.Tensor]:
    """Train the first network again, for `steps` only."""
    module = type(run.module)() if isinstance(run.module, ForeignModule) else (mlp() if "net.fc1.weight" in run.witness.starts[0] else resnet())
    data, settings = (ForeignData(), {"metrics": FOREIGN_METRICS}) if isinstance(module, ForeignModule) else (digits(), {})
    if steps == 0:
        return run.witness.starts[0]
    module.load_state_dict({n: v for n, v in run.witness.starts[0].items() if n in module.state_dict()})
    folder = run.lottery.folder.path.with_name(f"after{steps}")
    short = fit(module, data, folder, rounds=0, train_for=f"{steps}it", **settings)
    return copies(short.module)
