"""Masks: which of the prunable weights (`prunable`) are kept.

A mask is a bool tensor of its weight's shape, True = kept; `Masks` maps a weight's name to its mask.
Nothing here knows about rounds, Lightning or criteria.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from lth_lightning.errors import SettingError
from lth_lightning.pruning.state import State

Masks = dict[str, Tensor]


def dense_masks(weights: Mapping[str, Tensor]) -> Masks:
    """Return masks that keep everything; they are contiguous, whatever the weights' memory layout."""
    return {name: torch.ones(weight.shape, dtype=torch.bool, device=weight.device) for name, weight in weights.items()}


def check_masks(masks: Masks, weights: Mapping[str, Tensor]) -> None:
    """Check masks where they enter: bool entries, and one mask of the same shape for each weight.

    Raises:
        SettingError: a mask is missing, superfluous, not bool, or of another shape.
    """
    if odd := sorted(masks.keys() ^ weights.keys()):
        raise SettingError(f"masks and prunable weights differ in {', '.join(odd)}.")
    for name, mask in masks.items():
        if mask.dtype != torch.bool:
            raise SettingError(f"the mask of {name} must be bool (True = kept), got {mask.dtype}.")
        if mask.shape != weights[name].shape:
            raise SettingError(
                f"the mask of {name} has shape {tuple(mask.shape)}, its weight {tuple(weights[name].shape)}."
            )


def count_kept(masks: Masks) -> int:
    """Count the surviving weights."""
    return sum(int(mask.sum()) for mask in masks.values())


def count_prunable(masks: Masks) -> int:
    """Count all prunable weights, pruned or not."""
    return sum(mask.numel() for mask in masks.values())


def density(masks: Masks) -> float:
    """Return surviving over prunable weights, in [0, 1]."""
    return count_kept(masks) / count_prunable(masks)


def share_of_zeros(weights: Mapping[str, Tensor]) -> float:
    """Return the share of weights that are exactly 0. Tensors of only zeros are skipped: they were initialised so."""
    zeros = sum(int((weight == 0).sum()) for weight in weights.values() if bool((weight != 0).any()))
    return zeros / max(1, sum(weight.numel() for weight in weights.values()))


def masked(state: Mapping[str, Tensor], masks: Masks) -> State:
    """Return a copy of `state` (parameters and buffers by name) with pruned weights set to +0.0.

    This is not a product: -0.5 * 0 is -0.0, but a ticket file, which omits pruned weights, restores them as +0.0.
    """
    return {
        name: value.masked_fill(~masks[name].to(value.device), 0.0) if name in masks else value.clone()
        for name, value in state.items()
    }


def shuffled(masks: Masks, generator: torch.Generator) -> Masks:
    """Shuffle the entries of each mask: the same number kept in each layer, at random positions.

    This is the control `random_mask`. It keeps each layer's sparsity and nothing else of the ticket's structure
    (the randomly sampled networks of Frankle & Carbin 2019, figure 1). `generator` is a CPU generator.
    """
    # Drawn in name order, whatever the order of `masks`, so that a ticket's file gives the same draws.
    draws = {name: torch.randperm(masks[name].numel(), generator=generator) for name in sorted(masks)}
    return {name: mask.flatten()[draws[name].to(mask.device)].view_as(mask) for name, mask in masks.items()}
