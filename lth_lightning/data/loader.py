"""Batches cut from tensors in memory: no worker processes, no Python per image, and all chance repeatable.

Everything random is a pure function of (seed, epoch, example), so an epoch can be repeated alone, resumed in
its middle, or shared among processes, and gives the same images each time.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from lth_lightning.seeding import derive_seed

Batch = tuple[Tensor, Tensor]

CROP_PADDING = 4  # pixels on each side, as in He et al. 2016 (arXiv:1512.03385, section 4.2)

# Batches are made together, in blocks of about this many bytes: the fixed cost of some ten tensor operations
# is then paid once a block. On a CPU larger blocks leave the cache and are slower again; on an accelerator only
# the number of operations counts.
CPU_BLOCK_BYTES = 2 * 2**20
ACCELERATOR_BLOCK_BYTES = 64 * 2**20


def rank_share(order: Tensor, batch_size: int, rank: int, world_size: int, *, equal_batches: bool) -> Tensor:
    """What one process takes of an epoch: of each global batch, its contiguous part.

    A global batch is `world_size * batch_size` consecutive entries of `order`. The last one may be smaller and
    is divided as evenly as possible.

    Args:
        order: (N,) indices in the order of the epoch, the same on every rank.
        batch_size: examples a batch and process.
        rank: this process, from 0 to world_size - 1.
        world_size: number of processes.
        equal_batches: if the last global batch has fewer examples than there are ranks, the ranks without one
            repeat one of it, so that all ranks take equally many steps (in training a collective would hang
            otherwise). Without it nothing is repeated, and such ranks have a batch less.

    Returns:
        (n,) indices; each `batch_size` of them, and what remains, are a batch.
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
    """Pad each image with zeros, cut it back to its size, and mirror some left to right: one batched gather.

    The same as torchvision's `RandomCrop(size, padding=padding)` and `RandomHorizontalFlip` image by image.

    Args:
        images: (B, C, H, W), any type.
        top: (B,) first row kept of the padded image, from 0 to 2 * padding.
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
    """Batches of images and targets that are in memory as tensors, on the CPU or on an accelerator.

    An iterable of (float32 images (B, C, H, W), int64 targets (B,)); the last, smaller batch is kept. Batches
    are the consumer's own: to keep, and to modify in place. One iteration at a time; each is an epoch, counted
    from 0 unless `seek` says otherwise.

    With several processes, rank r takes its part of each global batch (`rank_share`): the ranks' batches
    together are the batches of one process with `world_size * batch_size`. When shuffled (training) all ranks
    have equally many batches; otherwise (evaluation) every example comes exactly once over all ranks.

    Args:
        images: (N, C, H, W), uint8 or floating point, raw.
        targets: (N,) int64.
        batch_size: examples a batch and process.
        normalise: (C,) mean and (C,) standard deviation of raw values; batches are (raw - mean) / std.
        shuffle: a new order each epoch.
        augment: random crop of the image padded by 4 zeros, and random mirroring, drawn anew each epoch.
        seed: what order and augmentation hang on, together with the epoch.
        rank: this process.
        world_size: number of processes.
        device: where images and targets live and batches are made; None: where they are.

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
        mean, std = (values.double().view(-1, 1, 1) for values in normalise)
        self._images = images.to(device)
        self._targets = targets.to(device)
        self._factor = (1 / std).float().to(device)
        self._shift = (-mean / std).float().to(device)
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.augment = augment
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._length = -(-len(self._share(torch.arange(len(targets)))) // batch_size)
        self.seek(0)

    def __len__(self) -> int:
        """Batches of this rank in a full epoch."""
        return self._length

    def seek(self, epoch: int, batch: int = 0, seed: int | None = None) -> None:
        """Let the next iteration give the batches of `epoch` from `batch` on.

        Args:
            epoch: from 0.
            batch: batches of the epoch to leave out, fewer than it has.
            seed: the seed from now on, in place of the one before.

        Raises:
            ValueError: the epoch has no such batch.
        """
        if not 0 <= batch < max(self._length, 1):
            raise ValueError(f"batch is {batch}; an epoch has batches 0 to {self._length - 1}.")
        self.seed = self.seed if seed is None else seed
        self.epoch = epoch
        self.batches_given = batch
        self._next = (epoch, batch)

    def state_dict(self) -> dict[str, int]:
        """The place that the current iteration has reached; Lightning puts it into checkpoints."""
        return {"seed": self.seed, "epoch": self.epoch, "batches_given": self.batches_given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration give what was left of the epoch; if nothing was, the next epoch."""
        epoch, given = state["epoch"], state["batches_given"]
        if given >= self._length:
            epoch, given = epoch + 1, 0
        self.seek(epoch, given, state["seed"])

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing below happens before its first batch is asked for. Lightning creates an
        # iterator well before it calls the hooks in which `seek` is called.
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
        """This rank's (n,) indices of the epoch, and crop and flip (3, N) of every example there is.

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

    @torch.inference_mode(mode=False)  # a batch can train, whoever asked for the first of its block
    def _make_batches(self, members: Tensor, draws: Tensor) -> list[Batch]:
        images = self._images.index_select(0, members)
        if self.augment:
            top, left, flip = draws[:, members]
            images = crop_and_flip(images, top, left, flip.bool())
        images = images.to(torch.float32).mul_(self._factor).add_(self._shift)
        targets = self._targets.index_select(0, members)
        # `.data`: a version counter of its own, so that autograd does not take the modification of one batch
        # for that of another from the same block.
        parts = zip(torch.split(images, self.batch_size), torch.split(targets, self.batch_size), strict=True)
        return [(batch.data, classes.data) for batch, classes in parts]
