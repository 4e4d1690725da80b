"""Random orders of labelled examples, of which every prefix is a fair sample: validation sets, subsets."""

import torch
from torch import Tensor


def balanced_order(targets: Tensor, generator: torch.Generator) -> Tensor:
    """A random order of which every prefix is as balanced over classes as possible.

    So subsets are nested: the first 100 examples are among the first 1,000.

    Args:
        targets: (N,) int64 classes.
        generator: a generator on the CPU.

    Returns:
        (N,) indices.
    """
    order, rank_in_class, _ = _shuffle(targets, generator)
    return order[rank_in_class.argsort(stable=True)]


def proportionate_order(targets: Tensor, generator: torch.Generator) -> Tensor:
    """A random order of which every prefix has the class proportions of the whole.

    Args:
        targets: (N,) int64 classes.
        generator: a generator on the CPU.

    Returns:
        (N,) indices.
    """
    order, rank_in_class, class_size = _shuffle(targets, generator)
    return order[((rank_in_class + 0.5) / class_size).argsort(stable=True)]


def _shuffle(targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """A random order, and for each example in it, how many of its class come before and the size of its class."""
    order = torch.randperm(len(targets), generator=generator)
    shuffled = targets[order]
    class_size = shuffled.bincount()
    by_class = shuffled.argsort(stable=True)
    class_start = class_size.cumsum(0) - class_size
    rank_in_class = torch.empty_like(order)
    rank_in_class[by_class] = torch.arange(len(order)) - class_start[shuffled[by_class]]
    return order, rank_in_class, class_size[shuffled]
