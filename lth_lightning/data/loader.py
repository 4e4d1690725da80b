"""Batches sliced from tensors in memory: no worker processes, no Python per image, and repeatable randomness.

All randomness is a pure function of (seed, epoch, example). So an epoch can be repeated alone, resumed in the
middle, or shared among processes, and yields the same images each time.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from lth_lightning.images import scale_of
from lth_lightning.seeding import derive_seed

Batch = tuple[Tensor, Tensor]

CROP_PADDING = 4  # pixels on each side, as in He et al. 2016 (arXiv:1512.03385, section 4.2)

# Batches are made in blocks of about this many bytes, so that the fixed cost of some ten tensor operations is
# paid once per block. On a CPU, larger blocks exceed the cache and are slower again. On an accelerator only the
# number of operations counts.
CPU_BLOCK_BYTES = 2 * 2**20
ACCELERATOR_BLOCK_BYTES = 64 * 2**20


def rank_share(order: Tensor, batch_size: int, rank: int, world_size: int, *, equal_batches: bool) -> Tensor:
    """Select one process's share of an epoch: its contiguous part of each global batch.

    A global batch is `world_size * batch_size` consecutive entries of `order`. The last one may be smaller and
    is divided as evenly as possible.

    Args:
        order: (N,) indices in the order of the epoch, the same on every rank.
        batch_size: examples per batch and process.
        rank: this process, from 0 to world_size - 1.
        world_size: number of processes.
        equal_batches: if the last global batch has fewer examples than there are ranks, ranks without an example
            repeat one, so that all ranks take equally many steps (otherwise a collective would hang in
            training). If False, nothing is repeated, and such ranks have one batch fewer.

    Returns:
        (n,) indices; every `batch_size` of them form a batch, and so does the remainder.
    """
    global_batch = batch_size * world_size
    whole = len(order) // global_batch
    mine = order[: whole * global_batch].view(whole, world_size, batch_size)[:, rank].flatten()
    rest = order[whole * global_batch :]
    last = rest.tensor_split(world_size)[rank]
    if equal_batches and len(rest) > len(last) == 0:
        last = rest[rank % len(rest)].unsqueeze(0)
    return torch.cat([mine, last])


def crop_and_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int = CROP_PADDING) -> Tensor:
    """Pad each image with zeros, crop it to its size, and mirror some left to right, in one batched gather.

    Equal to torchvision's `RandomCrop(size, padding=padding)` and `RandomHorizontalFlip` for each image.

    Args:
        images: (B, C, H, W), any type.
        top: (B,) first row of the padded image that is kept, from 0 to 2 * padding.
        left: (B,) first column kept, likewise.
        flip: (B,) bool, True = mirrored.
        padding: rows and columns of zeros on each side.

    Returns:
        (B, C, H, W) new images.
    """
    batch, channels, height, width = images.shape
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    columns = left[:, None] + torch.where(flip[:, None], columns.flip(0), columns)
    padded = F.pad(images, [padding] * 4)
    pixels = (rows[:, :, None] * padded.shape[-1] + columns[:, None, :]).view(batch, 1, -1)
    return padded.flatten(2).gather(2, pixels.expand(-1, channels, -1)).view_as(images)


class TensorLoader:
    """Loads batches of images and targets from tensors in memory, on the CPU or on an accelerator.

    An iterable of (float32 images (B, C, H, W), int64 targets (B,)); the last, smaller batch is kept. The consumer
    may keep batches and modify them in place. Only one iteration at a time is allowed. Each iteration is an epoch,
    counted from 0 unless `seek` sets another.

    With several processes, rank r takes its part of each global batch (`rank_share`). The ranks' batches together
    equal those of one process with `world_size * batch_size`. When shuffled (training), all ranks have equally
    many batches. Otherwise (evaluation), every example comes exactly once over all ranks.

    Args:
        images: (N, C, H, W), uint8 or floating point, raw.
        targets: (N,) int64.
        batch_size: examples per batch and process.
        normalise: (C,) mean and (C,) standard deviation of raw values; batches are (raw - mean) / std.
        shuffle: a new order each epoch.
        augment: random crop of the image padded by 4 zeros, and random mirroring, drawn anew each epoch.
        seed: determines order and augmentation, together with the epoch.
        rank: this process.
        world_size: number of processes.
        device: where images and targets are stored and batches are made; None: where they are now.

    Example:
        >>> images, targets = torch.zeros(10, 1, 8, 8, dtype=torch.uint8), torch.arange(10)
        >>> loader = TensorLoader(images, targets, 4, normalise=(torch.zeros(1), torch.ones(1)), shuffle=True)
        >>> [len(batch_targets) for _, batch_targets in loader]
        [4, 4, 2]
    """

    def __init__(
        self,
        images: Tensor,
        targets: Tensor,
        batch_size: int,
        *,
        normalise: tuple[Tensor, Tensor],
        shuffle: bool = False,
        augment: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
    ) -> None:
        factor, shift = scale_of(*normalise)
        self._images = images.to(device)
        self._targets = targets.to(device)
        self._factor, self._shift = factor.to(device), shift.to(device)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.augment = augment
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._length = -(-len(self._share(torch.arange(len(targets)))) // batch_size)
        self.seek(0)

    def __len__(self) -> int:
        """The number of batches of this rank in a full epoch."""
        return self._length

    def seek(self, epoch: int, batch: int = 0, seed: int | None = None) -> None:
        """Let the next iteration start at batch `batch` of `epoch`.

        Args:
            epoch: the epoch, from 0.
            batch: the number of batches to skip, fewer than the epoch has.
            seed: the seed from now on; None keeps the current one.

        Raises:
            ValueError: the epoch has no such batch.
        """
        if not 0 <= batch < max(self._length, 1):
            raise ValueError(f"batch is {batch}; must be one of the epoch's batches 0 to {self._length - 1}.")
        self.seed = self.seed if seed is None else seed
        self.epoch = epoch
        self.batches_given = batch
        self._next = (epoch, batch)

    def state_dict(self) -> dict[str, int]:
        """The position of the current iteration, which Lightning saves in checkpoints."""
        return {"seed": self.seed, "epoch": self.epoch, "batches_given": self.batches_given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration yield the rest of the epoch, or the next epoch if none is left."""
        epoch, given = state["epoch"], state["batches_given"]
        if given >= self._length:
            epoch, given = epoch + 1, 0
        self.seek(epoch, given, state["seed"])

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing below runs until the first batch is requested. Lightning creates an
        # iterator well before it calls the hooks that call `seek`.
        self.epoch, self.batches_given = self._next
        self._next = (self.epoch + 1, 0)
        indices, draws = self._draw_epoch()
        block_bytes = CPU_BLOCK_BYTES if indices.device.type == "cpu" else ACCELERATOR_BLOCK_BYTES
        block = self.batch_size * max(1, block_bytes // (4 * self._images[0].numel() * self.batch_size))
        for start in range(self.batches_given * self.batch_size, len(indices), block):
            for batch in self._make_batches(indices[start : start + block], draws):
                self.batches_given += 1
                yield batch

    def _share(self, order: Tensor) -> Tensor:
        return rank_share(order, self.batch_size, self.rank, self.world_size, equal_batches=self.shuffle)

    def _draw_epoch(self) -> tuple[Tensor, Tensor]:
        """Draw this rank's (n,) indices of the epoch, and crop and flip (3, N) of all examples.

        Drawn on the CPU, so that they are the same for every device, and moved once.
        """
        count, device = len(self._targets), self._targets.device
        order, draws = torch.arange(count), torch.empty(3, 0, dtype=torch.long)
        if self.shuffle:
            order = torch.randperm(count, generator=self._generator("order"))
        if self.augment:
            generator = self._generator("augment")
            corners = torch.randint(2 * CROP_PADDING + 1, (2, count), generator=generator)
            draws = torch.cat([corners, torch.randint(2, (1, count), generator=generator)])
        return self._share(order).to(device, non_blocking=True), draws.to(device, non_blocking=True)

    def _generator(self, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.seed, purpose, self.epoch))

    @torch.inference_mode(mode=False)  # so that batches can train even if their block was begun under inference mode
    def _make_batches(self, members: Tensor, draws: Tensor) -> list[Batch]:
        images = self._images.index_select(0, members)
        if self.augment:
            top, left, flip = draws[:, members]
            images = crop_and_flip(images, top, left, flip.bool())
        images = images.to(torch.float32).mul_(self._factor).add_(self._shift)
        targets = self._targets.index_select(0, members)
        # `.data` has its own version counter, so that autograd does not confuse modifications of batches from
        # the same block.
        parts = zip(torch.split(images, self.batch_size), torch.split(targets, self.batch_size), strict=True)
        return [(batch.data, classes.data) for batch, classes in parts]
