"""What a loader promises: the right numbers, each example once, and the same again whenever asked again."""

from collections import Counter
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lth_lightning.data import loader as loader_module
from lth_lightning.data.loader import TensorLoader, crop_and_flip
from lth_lightning.pruning.network_function import Batch

MEAN, STD = torch.tensor([100.0, 110.0, 120.0]), torch.tensor([50.0, 60.0, 70.0])


def raw_images(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def make_loader(count: int, batch_size: int, **settings: Any) -> TensorLoader:
    """A training loader whose targets are the examples' numbers, so that batches say what is in them."""
    settings = {"shuffle": True, "augment": True, "seed": 3} | settings
    return TensorLoader(raw_images(count), torch.arange(count), batch_size, normalise=(MEAN, STD), **settings)


def members(batches: list[Batch]) -> list[list[int]]:
    return [targets.tolist() for _, targets in batches]


def order(batches: list[Batch]) -> list[int]:
    return list(chain(*members(batches)))


def assert_same(batches: list[Batch], others: list[Batch]) -> None:
    """Bit for bit."""
    assert len(batches) == len(others)
    for (images, targets), (other_images, other_targets) in zip(batches, others, strict=True):
        assert torch.equal(targets, other_targets)
        assert torch.equal(images, other_images)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_batches_are_the_standardised_images_in_order_and_the_last_partial_batch_is_kept(dtype: torch.dtype) -> None:
    images, targets = raw_images(10).to(dtype), torch.arange(10)
    before = images.clone()
    loader = TensorLoader(images, targets, 4, normalise=(MEAN, STD))
    batches = list(loader)
    assert [len(x) for x, _ in batches] == [4, 4, 2]
    assert len(loader) == 3
    expected = (images.numpy().astype(np.float64) - MEAN.numpy()[:, None, None]) / STD.numpy()[:, None, None]
    np.testing.assert_allclose(torch.cat([x for x, _ in batches]).numpy(), expected, atol=1e-6)
    assert order(batches) == list(range(10))
    assert all(x.dtype == torch.float32 and y.dtype == torch.int64 for x, y in batches)
    assert torch.equal(images, before)


def test_an_epoch_is_a_new_order_of_every_example_and_a_function_of_seed_and_epoch() -> None:
    loader = make_loader(50, 8)
    epochs = [list(loader) for _ in range(3)]
    orders = [order(epoch) for epoch in epochs]
    assert all(sorted(seen) == list(range(50)) for seen in orders)
    assert len(set(map(tuple, orders))) == 3

    again = make_loader(50, 8)
    again.seek(2)
    assert_same(list(again), epochs[2])
    assert members(list(again)) not in [members(epoch) for epoch in epochs], "after epoch 2 comes epoch 3"
    again.seek(1, seed=4)
    assert members(list(again)) != members(epochs[1])
    again.seek(1, seed=3)
    assert_same(list(again), epochs[1])


def test_the_global_generator_neither_matters_nor_moves() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = list(make_loader(50, 8))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert_same(list(make_loader(50, 8)), first)


def test_crop_and_flip_equals_padding_slicing_and_mirroring_image_by_image() -> None:
    images = raw_images(81 * 2)
    top, left, flip = (grid.flatten() for grid in torch.meshgrid(*map(torch.arange, (9, 9, 2)), indexing="ij"))
    made = crop_and_flip(images, top, left, flip.bool())
    for image, y, x, mirrored, result in zip(images.numpy(), top, left, flip, made.numpy(), strict=True):
        expected = np.pad(image, ((0, 0), (4, 4), (4, 4)))[:, y : y + 8, x : x + 8]
        np.testing.assert_array_equal(result, expected[:, :, ::-1] if mirrored else expected)


def test_augmentation_draws_every_crop_and_mirroring_equally_often() -> None:
    image = torch.arange(1, 65, dtype=torch.uint8).view(1, 8, 8)
    padded = np.pad(image[0].numpy(), 4)
    crops = [padded[y : y + 8, x : x + 8] for y in range(9) for x in range(9)]
    variants = {variant.astype(np.float32).tobytes() for crop in crops for variant in (crop, crop[:, ::-1])}
    count = 100 * len(variants)
    unchanged = (torch.zeros(1), torch.ones(1))
    targets = torch.arange(count)
    loader = TensorLoader(image.expand(count, 1, 8, 8), targets, 1000, normalise=unchanged, augment=True)
    seen = Counter(x.numpy().tobytes() for images, _ in loader for x in images)
    assert seen.keys() == variants
    assert min(seen.values()) > 50
    assert max(seen.values()) < 150


@pytest.mark.parametrize("block_bytes", [1, 5_000, 10**9])
def test_block_size_changes_nothing(monkeypatch: pytest.MonkeyPatch, block_bytes: int) -> None:
    expected = list(make_loader(50, 7))
    monkeypatch.setattr(loader_module, "CPU_BLOCK_BYTES", block_bytes)
    assert_same(list(make_loader(50, 7)), expected)


@pytest.mark.parametrize("position", range(8))
def test_a_loader_resumed_anywhere_gives_the_remaining_batches_and_never_an_empty_epoch(position: int) -> None:
    loader = make_loader(50, 7)
    loader.seek(5)
    batches, following = list(loader), list(loader)
    assert len(batches) == 8

    stopped = make_loader(50, 7)
    stopped.seek(5)
    for _, _ in zip(range(position), stopped, strict=False):
        pass
    resumed = make_loader(50, 7, seed=99)
    resumed.load_state_dict(stopped.state_dict())
    assert_same(list(resumed), batches[position:])
    assert_same(list(resumed), following)

    resumed.seek(5, batch=position)
    assert_same(list(resumed), batches[position:])


def test_a_loader_saved_at_the_end_of_its_epoch_goes_on_with_the_next() -> None:
    loader = make_loader(50, 7)
    iterator = iter(loader)
    for _ in range(len(loader)):  # as Lightning does, which never asks for the batch after the last
        next(iterator)
    resumed = make_loader(50, 7)
    resumed.load_state_dict(loader.state_dict())
    assert_same(list(resumed), list(loader))


def test_seek_counts_even_after_the_iterator_was_made() -> None:
    loader = make_loader(50, 7)
    iterator = iter(loader)  # Lightning makes it before the hooks that call seek
    loader.seek(4)
    expected = make_loader(50, 7)
    expected.seek(4)
    assert_same(list(iterator), list(expected))


@pytest.mark.parametrize("batch", [-1, 8])
def test_a_start_beyond_the_epoch_is_refused(batch: int) -> None:
    with pytest.raises(ValueError, match="batches 0 to 7"):
        make_loader(50, 7).seek(0, batch=batch)


@pytest.mark.parametrize("count", [1, 2, 23, 24, 25, 31])
@pytest.mark.parametrize("world_size", [2, 3])
def test_the_ranks_of_a_training_divide_each_batch_of_one_process(count: int, world_size: int) -> None:
    whole = list(make_loader(count, 4 * world_size))
    image_of = {int(t): x for images, targets in whole for x, t in zip(images, targets, strict=True)}
    ranks = [list(make_loader(count, 4, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert {len(batches) for batches in ranks} == {len(whole)}, "a rank without a batch would hang the others"
    for step, (_, targets) in enumerate(whole):
        shares = [members(batches)[step] for batches in ranks]
        together = list(chain(*shares))
        assert set(together) == set(targets.tolist())
        assert len(together) == max(len(targets), world_size), "repeated only where a rank would have none"
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
    for batches in ranks:
        for images, targets in batches:
            assert all(torch.equal(image_of[int(t)], x) for x, t in zip(images, targets, strict=True))


@pytest.mark.parametrize("count", [1, 2, 23, 24, 25, 31])
@pytest.mark.parametrize("world_size", [2, 3])
def test_the_ranks_of_an_evaluation_see_every_example_exactly_once(count: int, world_size: int) -> None:
    loaders = [make_loader(count, 4, rank=r, world_size=world_size, shuffle=False) for r in range(world_size)]
    ranks = [list(loader) for loader in loaders]
    assert sorted(chain(*map(order, ranks))) == list(range(count))
    assert [len(loader) for loader in loaders] == [len(batches) for batches in ranks]
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1


def test_batches_may_be_kept_and_modified() -> None:
    expected, following = list(make_loader(50, 7)), make_loader(50, 7)
    following.seek(1)
    loader = make_loader(50, 7)
    weight = torch.ones(3, 1, 1, requires_grad=True)
    kept, losses = [], []
    for images, targets in loader:
        kept.append((images.clone(), targets.clone()))
        targets.zero_()
        images.add_(1.0)  # the loss of the batch before, from the same block, is still to be differentiated
        losses.append((images * weight).sum())
    torch.stack(losses).sum().backward()
    assert_same(kept, expected)
    assert_same(list(loader), list(following))


def test_what_inference_mode_drew_can_train() -> None:
    with torch.inference_mode():
        loader = make_loader(50, 7)
        iterator = iter(loader)
        first = next(iterator)
    for images, _ in [first, *iterator]:
        layer = torch.nn.Conv2d(3, 1, 1)
        layer(images).sum().backward()
        assert layer.weight.grad is not None


def test_lightning_finds_no_sampler_to_replace() -> None:
    assert not hasattr(make_loader(5, 2), "sampler")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_makes_the_same_batches_without_waiting_for_the_host() -> None:
    device = torch.device("cuda")
    loader = make_loader(50, 7, device=device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = list(loader)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(x.device.type == y.device.type == "cuda" for x, y in batches)
    assert_same([(x.cpu(), y.cpu()) for x, y in batches], list(make_loader(50, 7)))
