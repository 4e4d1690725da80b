"""Lineage: the masks and weights that each round passes to the next; no Trainer, no files."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import nn

from lth_lightning.lottery.fresh_weights import FreshWeights, Reinit, how_to_draw
from lth_lightning.lottery.plan import TrainedNetwork
from lth_lightning.pruning.criteria import Evidence
from lth_lightning.pruning.masks import Masks, dense_masks, masked, shuffled
from lth_lightning.pruning.network_function import Batch, NetworkFunction
from lth_lightning.pruning.pruning import Pruning
from lth_lightning.pruning.state import State, copied, full_state
from lth_lightning.seeding import derive_seed
from lth_lightning.tickets.transfer import Taken


@dataclass
class Lineage:
    """The state that the tickets found so far pass to the next networks.

    Args:
        masks: the masks of this round's ticket.
        seed: the seed of all random draws in this round's networks.
        order: the round whose data order they use.
        rewind_step: the optimizer step of the rewind point.
        rewind_point: every parameter and buffer at that step; None until round 0 reaches it.
        schedules: the state of learning-rate schedules at that step.
        start: the weights that this round's networks start from, before masking: the rewind point or, unless
            `rewind` is `weights`, the trained weights that the masks were made from.
        trained: the last ticket after training.
        dense: round 0 after training, kept for one-shot pruning.
        rates: the learning rates that fine-tuning holds.
        own: weights drawn for tickets from files that are only partly taken over.
        fresh: how weights are drawn anew (the arguments of `FreshWeights`), if a setting needs it.
        copies: what starts as a copy of a prunable weight and no optimizer trains, with that weight's name.
    """

    masks: Masks
    seed: int = 0
    order: int = 0
    rewind_step: int = 0
    rewind_point: State | None = None
    schedules: dict[str, Any] | None = None
    start: State | None = None
    trained: State | None = None
    dense: State | None = None
    rates: list[list[float]] | None = None
    own: State | None = None
    fresh: dict[str, Any] | None = None
    copies: dict[str, str] = field(default_factory=dict)

    def set_rewind_point(self, module: nn.Module, step: int) -> None:
        """Save the current weights of `module` as the rewind point."""
        self.rewind_point = self.start = copied(full_state(module))
        self.rewind_step = step

    def prune(self, pruning: Pruning, round: int, module: nn.Module, batches: Callable[[int], list[Batch]]) -> None:
        """Make this round's masks from the last round's trained weights or, one-shot, from the dense network.

        Args:
            pruning: which weights to prune.
            round: 1 for the first pruning.
            module: the network.
            batches: returns a given number of training batches, for criteria that need data.
        """
        self.masks = pruning.prune(*self.to_prune(pruning, round, module, batches), round)

    def to_prune(
        self, pruning: Pruning, round: int, module: nn.Module, batches: Callable[[int], list[Batch]]
    ) -> tuple[Masks, Evidence]:
        """Return the masks to prune from and the criterion's evidence; arguments as for `prune`."""
        one_shot = pruning.prune_from != "last_round"
        trained = self.rewind_point if pruning.prune_from == "initialisation" else self.trained_before_pruning
        start = self.rewind_point if one_shot else self.start
        assert trained is not None and start is not None
        base = dense_masks(self.masks) if one_shot else self.masks
        evidence = Evidence(
            trained={name: trained[name] for name in base},
            # After a resume, `start` comes from a file and may be on another device than trained weights.
            start=masked({name: start[name].to(trained[name].device) for name in base}, base),
            generator=self._generator("pruning", round),
            network=NetworkFunction(module, trained, batches, derive_seed(self.seed, "probe", round)),
        )
        return base, evidence

    @property
    def trained_before_pruning(self) -> State | None:
        """The trained weights that this round's masks are made from."""
        return self.trained if self.dense is None else self.dense

    def rewind(self, way: str) -> None:
        """Set where this round's networks start: at the rewind point, or at the trained weights that were pruned."""
        self.start = self.rewind_point if way == "weights" else self.trained_before_pruning

    def take(self, taken: Taken) -> None:
        """Take over a ticket from a file: masks, weights, data order and, with its weights, its seed."""
        self.masks, self.start = taken.masks, taken.start
        self.rewind_point = taken.start if taken.whole is None else taken.whole
        self.order = int(taken.info["data_order"])
        self.seed = self.seed if taken.seed is None else taken.seed
        self.rewind_step, self.rates = taken.rewind_step, taken.rates

    def masks_of(self, network: TrainedNetwork) -> Masks:
        """Return a network's masks: the ticket's, or for `random_mask` the same shuffled within each layer."""
        if network.variant == "random_mask":
            return shuffled(self.masks, self._generator("random_mask", network.round, network.replicate))
        return self.masks

    def masked(self, state: State, masks: Masks) -> State:
        """Mask a network's start, with copies of its weights, which would otherwise start with pruned ones alive."""
        return masked(state, {**masks, **{copy: masks[source] for copy, source in self.copies.items()}})

    def start_of(self, network: TrainedNetwork, module: nn.Module, reinit: Reinit | None = None) -> State:
        """Return the weights that a network starts from, before masking."""
        if network.variant == "random_reinit":
            return self.fresh_weights(module, reinit, "random_reinit", network.round, network.replicate)
        if network.variant == "pruned_only":
            assert self.trained_before_pruning is not None
            return self.trained_before_pruning
        if network.variant == "random_mask":
            # Not `start`: trained weights are 0 where they were pruned, and another mask keeps some of those.
            assert self.rewind_point is not None
            return self.rewind_point
        return self.start if self.start is not None else copied(full_state(module))

    def settle_fresh_weights(self, module: nn.Module, reinit: Reinit | None, setting: str) -> None:
        """Settle how weights are drawn anew, while `module` holds θ₀; a resumed run reads it from its checkpoint.

        Args:
            module: the network; not changed.
            reinit: returns a fresh network.
            setting: the setting that asks for fresh weights.

        Raises:
            SettingError: fresh weights would not have θ₀'s distribution (`how_to_draw`).
        """
        if self.fresh is None:
            self.fresh = vars(how_to_draw(module, reinit, self.seed, self.masks, setting))

    def fresh_weights(self, module: nn.Module, reinit: Reinit | None, *purpose: str | int) -> State:
        """Draw new weights for what is trained, as settled before; the rest is the rewind point's.

        Args:
            module: the network; not changed.
            reinit: returns a fresh network.
            purpose: the purpose in words; the draw depends on it and the seed.
        """
        assert self.fresh is not None
        return FreshWeights(**self.fresh).draw(module, reinit, derive_seed(self.seed, *purpose), self.rewind_point)

    def _generator(self, *purpose: str | int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.seed, *purpose))

    def state_dict(self) -> dict[str, Any]:
        """Return tensors, numbers and lists, by the names of the arguments."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
