"""Tickets on disk: bit for bit, small, and refused where they are damaged or made for another network."""

from pathlib import Path

import pytest
import torch
from conftest import assert_same, copies, mlp, resnet
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from lth_lightning import ImageClassifier, Ticket, TicketError, prunable_weights
from lth_lightning.models import MLP, LeNet300
from lth_lightning.pruning.masks import masked


def make_ticket(module: nn.Module, density: float, seed: int = 0) -> Ticket:
    generator = torch.Generator().manual_seed(seed)
    masks = {n: torch.rand(w.shape, generator=generator) < density for n, w in prunable_weights(module).items()}
    trained = {name: value + 1 for name, value in copies(module).items()}
    return Ticket(masks, masked(copies(module), masks), masked(trained, masks), {"round": 3, "seed": 1})


@pytest.mark.parametrize("make", [mlp, resnet])
def test_a_ticket_comes_back_bit_for_bit(make: type, tmp_path: Path) -> None:
    ticket = make_ticket(make(), 0.3)
    ticket.save(tmp_path / "ticket.safetensors")
    back = Ticket.load(tmp_path / "ticket.safetensors")
    assert_same(back.masks, ticket.masks)
    assert_same(back.rewind_point, ticket.rewind_point)
    assert_same(back.trained, ticket.trained)
    assert (back.info["round"], back.info["seed"], back.density) == (3, 1, ticket.density)


@settings(max_examples=30)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), density=st.floats(0, 1), seed=st.integers(0, 99))
def test_masks_of_any_size_survive_their_packing(rows: int, columns: int, density: float, seed: int) -> None:
    import tempfile

    ticket = make_ticket(nn.Linear(columns, rows), density, seed)
    with tempfile.TemporaryDirectory() as folder:
        ticket.save(Path(folder) / "t.safetensors")
        back = Ticket.load(Path(folder) / "t.safetensors")
    assert_same(back.masks, ticket.masks)
    assert_same(back.rewind_point, ticket.rewind_point)


def test_files_shrink_with_the_density(tmp_path: Path) -> None:
    net = LeNet300()
    for density in (1.0, 0.036):
        make_ticket(net, density).save(tmp_path / f"{density}")
    assert (tmp_path / "0.036").stat().st_size < 0.1 * (tmp_path / "1.0").stat().st_size


def test_apply_sets_weights_and_buffers_in_place_and_returns_masks_by_the_modules_names() -> None:
    source, target = resnet(), resnet()
    ticket = make_ticket(source, 0.5)
    held = [id(parameter) for parameter in target.parameters()]
    masks = ticket.apply(target)
    assert_same(copies(target), ticket.rewind_point)
    assert masks.keys() == prunable_weights(target).keys()
    assert held == [id(parameter) for parameter in target.parameters()]
    ticket.apply(target, weights="trained")
    assert_same(copies(target), ticket.trained)


def test_a_ticket_fits_the_network_inside_and_outside_its_lightning_module() -> None:
    module = mlp()
    ticket = make_ticket(module, 0.5)
    bare = mlp().net
    masks = ticket.apply(bare)
    assert list(masks) == [name.removeprefix("net.") for name in ticket.masks]
    assert torch.equal(bare.fc1.weight, ticket.rewind_point["net.fc1.weight"])
    back = make_ticket(bare, 0.5).apply(mlp())
    assert list(back) == list(ticket.masks)


def test_a_ticket_for_another_network_is_refused_with_what_does_not_fit() -> None:
    ticket = make_ticket(mlp(), 0.5)
    ticket.info["architecture"] = "MLP"
    with pytest.raises(TicketError, match=r"made for MLP, does not fit ImageClassifier.*only in the network"):
        ticket.apply(resnet())
    with pytest.raises(TicketError, match=r"net.fc1.bias \(ticket \(40,\), network \(300,\)\)"):
        ticket.apply(ImageClassifier(LeNet300(input_shape=(1, 8, 8))))


def test_a_layer_with_a_weight_of_another_shape_is_filled_as_a_whole() -> None:
    """Its bias fits, and belongs to the weights that do not."""
    ticket = make_ticket(mlp(), 0.5)
    other = ImageClassifier(MLP([40, 20], input_shape=(3, 8, 8)), input_shape=(3, 8, 8))
    fresh = {name: torch.full_like(value, 7.0) for name, value in copies(other).items()}
    fitting = ticket.fit_to(other, fresh)
    filled = [name for name, value in fitting.rewind_point.items() if bool((value == 7.0).all())]
    assert filled == ["net.fc1.weight", "net.fc1.bias"]
    assert fitting.masks["net.fc1.weight"].shape == (40, 192)
    assert bool(fitting.masks["net.fc1.weight"].all())
    assert torch.equal(fitting.masks["net.fc2.weight"], ticket.masks["net.fc2.weight"])


def test_damage_is_found(tmp_path: Path) -> None:
    path = tmp_path / "ticket.safetensors"
    make_ticket(mlp(), 0.5).save(path)
    whole = path.read_bytes()
    for cut in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(TicketError, match="ticket.safetensors"):
            Ticket.load(path)
    flipped = bytearray(whole)
    flipped[-10] ^= 1
    path.write_bytes(bytes(flipped))
    with pytest.raises(TicketError, match="hash"):
        Ticket.load(path)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a ticket")
    save_file({"weight": torch.ones(3)}, tmp_path / "other")
    torch.save({"weight": torch.ones(3)}, tmp_path / "pickle")
    for name in ("text", "other", "pickle", "missing"):
        with pytest.raises(TicketError, match=name):
            Ticket.load(tmp_path / name)


def test_a_failed_write_leaves_the_old_ticket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ticket.safetensors"
    ticket = make_ticket(mlp(), 0.5)
    ticket.save(path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ValueError, match=r"ticket.safetensors: No space left"):
        make_ticket(mlp(), 0.1).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["ticket.safetensors"]
