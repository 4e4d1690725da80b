"""Tickets on other data, other networks and other optimizers: what is taken over, and what is not."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import (
    DIGITS,
    Cut,
    Fit,
    assert_equal_runs,
    assert_same,
    copies,
    digits,
    fit,
    mlp,
    resnet,
    train_by_hand,
    weekly,
)

from lth_lightning import ImageClassifier, SettingError, Ticket
from lth_lightning.models import MLP
from lth_lightning.pruning.masks import density, masked


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """A run of two rounds, at learning rates that move weights across 0."""
    torch.manual_seed(0)
    return fit(mlp(), digits(), tmp_path_factory.mktemp("found") / "run", rewind_to="4it")


@pytest.fixture
def transfer(found: Fit, tmp_path: Path) -> Callable[..., Fit]:
    """`transfer("mask", …)` trains the tickets of `found`, of which it takes over so much."""

    def run(transfer: str, folder: str = "run", **settings: object) -> Fit:
        torch.manual_seed(0)  # the very weights that `found` began with
        module = settings.pop("module", None) or mlp()
        given = {"rounds": None, "tickets": found.lottery.folder.tickets, "transfer": transfer, **settings}
        return fit(module, digits(), tmp_path / folder, **given)

    return run


def wide(classes: int = 12) -> ImageClassifier:
    """The network of `found` for more classes."""
    return ImageClassifier(MLP([40, 20], input_shape=DIGITS["input_shape"], num_classes=classes), num_classes=classes)


def test_weights_go_with_the_mask_by_default_and_nothing_of_the_runs_own(found: Fit, transfer: Callable) -> None:
    other = transfer("mask_and_weights", seed=3)
    for round in range(3):
        assert_same(other.ticket(round).rewind_point, found.ticket(round).rewind_point)
        assert_same(other.ticket(round).trained, found.ticket(round).trained) if round else None


def test_the_mask_alone_comes_with_fresh_weights_the_same_in_every_round(found: Fit, transfer: Callable) -> None:
    run = transfer("mask")
    own = run.start(0)
    theirs = found.start(0)
    for name, weight in own.items():
        if name.endswith("weight"):
            assert not (weight == theirs[name]).any(), "fresh, though module and seed are those that found the tickets"
            assert float(weight.std()) == pytest.approx(float(theirs[name].std()), rel=0.2), (
                "drawn from the same distribution"
            )
    for round in range(3):
        assert_same(run.ticket(round).masks, found.ticket(round).masks)
        assert_same(run.start(round), masked(own, run.ticket(round).masks))
        assert run.rows[round].steps == 10, "from step 0, wherever the tickets were rewound to"
    assert run.ticket(2).info["transfer"] == "mask"


def test_fresh_weights_hang_on_the_runs_seed(transfer: Callable) -> None:
    one, again, other = (transfer("mask", name, seed=seed) for name, seed in (("a", 5), ("b", 5), ("c", 6)))
    assert_same(one.start(0), again.start(0))
    assert not torch.equal(one.start(0)["net.fc1.weight"], other.start(0)["net.fc1.weight"])


def test_everything_random_hangs_on_the_runs_seed_where_its_weights_do(transfer: Callable, tmp_path: Path) -> None:
    """Or runs of several seeds would be no repetitions; and the tickets they write are as good as any."""
    controls = ["random_reinit", "random_mask"]
    one, other = (transfer("mask_and_sign", f"{seed}", seed=seed, controls=controls) for seed in (5, 6))
    for variant in controls:
        assert not torch.equal(one.start(2, variant)["net.fc1.weight"], other.start(2, variant)["net.fc1.weight"])
    assert one.ticket(2).info["seed"] == 5
    alone = fit(mlp(), digits(), tmp_path / "alone", rounds=None, tickets=one.lottery.folder.ticket(2), seed=99)
    assert_same(alone.ticket(2).trained, one.ticket(2).trained)


def test_signs_come_with_fresh_magnitudes(found: Fit, transfer: Callable) -> None:
    run, mask_only = transfer("mask_and_sign", "signs", controls=["random_mask"]), transfer("mask", "mask")
    for round in range(3):
        masks = run.ticket(round).masks
        start, theirs, fresh = run.start(round), found.ticket(round).rewind_point, mask_only.start(round)
        for name, mask in masks.items():
            assert torch.equal(start[name][mask].sign(), theirs[name][mask].sign())
            assert not torch.equal(start[name][mask].sign(), fresh[name][mask].sign())
            assert torch.equal(start[name].abs(), fresh[name].abs())
        for name in start.keys() - masks.keys():
            assert torch.equal(start[name], fresh[name]), "biases come with the weights"
    whole = found.ticket(0).rewind_point
    control = run.start(2, "random_mask")
    for name in run.ticket(2).masks:
        kept = control[name] != 0
        assert torch.equal(control[name][kept].sign(), whole[name][kept].sign()), "pruned weights' signs too"


def test_training_goes_on_from_what_was_taken_over(transfer: Callable) -> None:
    run = transfer("mask_and_sign")
    run.make_module, run.make_data = mlp, digits
    for round in range(3):
        expected = train_by_hand(run, run.start(round), run.ticket(round).masks, 0, 10, order=round)
        assert_same(run.ticket(round).trained, expected)


@pytest.mark.parametrize(
    "way", [pytest.param("mask", marks=weekly), pytest.param("mask_and_sign", marks=weekly), "mask_and_weights"]
)
def test_layers_of_another_shape_start_anew_and_whole_and_are_named(
    found: Fit, transfer: Callable, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    with caplog.at_level(logging.WARNING):
        run = transfer(way, module=wide(), on_mismatch="reinitialise", controls=["random_reinit", "random_mask"])
    said = [record.getMessage() for record in caplog.records if "reinitialised" in record.getMessage()]
    assert len(said) == 1
    assert (
        "net.output.weight (ticket (10, 20), network (12, 20)), net.output.bias (ticket (10,), network (12,))"
        in said[0]
    )
    for round in range(3):
        ticket, theirs = run.ticket(round), found.ticket(round)
        assert ticket.info["reinitialised"] == ["net.output.weight", "net.output.bias"]
        assert density({"": ticket.masks["net.output.weight"]}) == 1
        assert torch.equal(ticket.masks["net.fc1.weight"], theirs.masks["net.fc1.weight"])
        assert bool((ticket.rewind_point["net.output.weight"] != 0).all())
        assert_same({"": ticket.rewind_point["net.output.weight"]}, {"": run.start(0)["net.output.weight"]})
        if way == "mask_and_weights":
            assert torch.equal(ticket.rewind_point["net.fc1.weight"], theirs.rewind_point["net.fc1.weight"])


def test_a_layer_of_another_shape_is_refused_with_the_way_out(transfer: Callable) -> None:
    with pytest.raises(SettingError, match=r"output.weight \(ticket \(10, 20\), network \(12, 20\)\).*reinitialise"):
        transfer("mask", module=wide())
    with pytest.raises(SettingError, match="only in the network"):
        transfer("mask", module=resnet(), on_mismatch="reinitialise")


def test_a_choice_that_there_is_not_or_that_nothing_follows_from_is_refused(transfer: Callable, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"lottery.transfer: 'signs' is unknown; choose from mask, mask_and_sign"):
        transfer("signs")
    with pytest.raises(SettingError, match=r"lottery.on_mismatch: 'drop' is unknown; choose from refuse, reinitialise"):
        transfer("mask", on_mismatch="drop")
    with pytest.raises(SettingError, match=r"lottery.transfer is mask .* lottery.tickets is not set"):
        fit(mlp(), digits(), tmp_path / "none", transfer="mask")


def test_random_mask_needs_the_dense_ticket_only_where_weights_are_taken_over(found: Fit, transfer: Callable) -> None:
    alone = found.lottery.folder.ticket(2).rename(found.lottery.folder.path / "alone.safetensors")
    try:
        assert [row.variant for row in transfer("mask", tickets=alone, controls=["random_mask"]).rows] == [
            "ticket",
            "random_mask",
        ]
        with pytest.raises(SettingError, match="random_mask needs weights"):
            transfer("mask_and_sign", "again", tickets=alone, controls=["random_mask"])
    finally:
        alone.rename(found.lottery.folder.ticket(2))


def test_a_transfer_that_is_cut_goes_on_to_the_same_end(transfer: Callable, tmp_path: Path) -> None:
    whole = transfer("mask", "whole", module=wide(), on_mismatch="reinitialise", controls=["random_reinit"])
    with pytest.raises(RuntimeError, match="cut"):
        transfer(
            "mask", "cut", module=wide(), on_mismatch="reinitialise", controls=["random_reinit"], callbacks=(Cut(37),)
        )
    transfer(
        "mask",
        "cut",
        module=wide(),
        on_mismatch="reinitialise",
        controls=["random_reinit"],
        ckpt_path=tmp_path / "cut/checkpoints/last.ckpt",
    )
    assert_equal_runs(whole.lottery.folder.path, tmp_path / "cut")


def test_a_ticket_of_a_transfer_stands_alone(transfer: Callable) -> None:
    run = transfer("mask")
    module = mlp()
    masks = Ticket.load(run.lottery.folder.ticket(2)).apply(module)
    assert_same(copies(module), run.start(2))
    assert density(masks) == pytest.approx(run.rows[2].density)
