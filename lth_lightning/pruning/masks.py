"""Masks: which of the weights that may be pruned (`prunable`) are kept.

A mask is a bool tensor of its weight's shape, True = kept; `Masks` maps a weight's name to its mask.
Nothing here knows of rounds, of Lightning or of a criterion.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from lth_lightning.errors import SettingError
from lth_lightning.pruning.state import State

Masks = dict[str, Tensor]


def dense_masks(weights: Mapping[str, Tensor]) -> Masks:
    """Masks that keep everything, contiguous however the weights lie in memory."""
    return {name: torch.ones(weight.shape, dtype=torch.bool, device=weight.device) for name, weight in weights.items()}


def check_masks(masks: Masks, weights: Mapping[str, Tensor]) -> None:
    """Guard the concept where masks enter: bool entries, and one mask of the same shape for each weight.

    Raises:
        SettingError: a mask is missing, superfluous, not bool, or of another shape.
    """
    if odd := sorted(masks.keys() ^ weights.keys()):
        raise SettingError(f"masks and prunable weights differ in {', '.join(odd)}.")
    for name, mask in masks.items():
        if mask.dtype != torch.bool:
            raise SettingError(f"the mask of {name} holds {mask.dtype}; a mask is bool, True = kept.")
        if mask.shape != weights[name].shape:
            raise SettingError(
                f"the mask of {name} has shape {tuple(mask.shape)}, its weight {tuple(weights[name].shape)}."
            )


def count_kept(masks: Masks) -> int:
    """How many weights survive."""
    return sum(int(mask.sum()) for mask in masks.values())


def count_prunable(masks: Masks) -> int:
    """How many weights there are, pruned or not."""
    return sum(mask.numel() for mask in masks.values())


def density(masks: Masks) -> float:
    """Surviving weights over prunable weights, in [0, 1]."""
    return count_kept(masks) / count_prunable(masks)


def share_of_zeros(weights: Mapping[str, Tensor]) -> float:
    """The share of weights that are exactly 0, as pruned ones are. A weight that is 0 throughout was drawn so."""
    zeros = sum(int((weight == 0).sum()) for weight in weights.values() if bool((weight != 0).any()))
    return zeros / max(1, sum(weight.numel() for weight in weights.values()))


def masked(state: Mapping[str, Tensor], masks: Masks) -> State:
    """A copy of `state` (parameters and buffers by name) whose pruned weights are +0.0.

    Not a product: -0.5 * 0 is -0.0, and a file that leaves pruned weights out gives +0.0 back.
    """
    return {
        name: value.masked_fill(~masks[name].to(value.device), 0.0) if name in masks else value.clone()
        for name, value in state.items()
    }


def shuffled(masks: Masks, generator: torch.Generator) -> Masks:
    """Each mask with its entries in random order: the same count in each layer, in other places.

    The control `random_mask`: it keeps how sparse each layer is and nothing else of the ticket's structure
    (the randomly sampled networks of Frankle & Carbin 2019, figure 1). `generator` lives on the CPU.
    """
    # Drawn in the order of names, whatever the order of `masks`, so that a ticket's file gives the same draws.
    draws = {name: torch.randperm(masks[name].numel(), generator=generator) for name in sorted(masks)}
    return {name: mask.flatten()[draws[name].to(mask.device)].view_as(mask) for name, mask in masks.items()}
