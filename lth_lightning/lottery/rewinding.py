"""Lineage: what each round hands on to the next, masks and weights; no Trainer, no files."""

from collections.abc import Callable
from dataclasses import dataclass, fields
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
    """The tickets found so far, as far as the next networks depend on them.

    Args:
        masks: this round's ticket's.
        seed: what everything random in this round's networks hangs on, together with …
        order: … the round whose order of the data they see.
        rewind_step: the optimizer step of the rewind point.
        rewind_point: every parameter and buffer at that step; None until round 0 gets there.
        schedules: where learning-rate schedules stood at that step.
        start: the weights that this round's networks start from, before their masks: the rewind point, or
            with other ways to rewind the trained weights that its masks were made from.
        trained: the last ticket after training.
        dense: round 0 after training, kept for one-shot pruning.
        rates: the learning rates that fine-tuning holds.
        own: weights drawn for tickets from files of which not all is taken over.
        fresh: how weights are drawn anew (`FreshWeights`' arguments), where anything asks for it.
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

    def set_rewind_point(self, module: nn.Module, step: int) -> None:
        """Take the weights of `module` as they are now for the rewind point."""
        self.rewind_point = self.start = copied(full_state(module))
        self.rewind_step = step

    def prune(self, pruning: Pruning, round: int, module: nn.Module, batches: Callable[[int], list[Batch]]) -> None:
        """Make this round's masks from what the last round trained, or, one-shot, from the dense network.

        Args:
            pruning: which weights go.
            round: 1 for the first pruning.
            module: the network, and …
            batches: … so many batches of its training data, for criteria that ask for them.
        """
        self.masks = pruning.prune(*self.to_prune(pruning, round, module, batches), round)

    def to_prune(
        self, pruning: Pruning, round: int, module: nn.Module, batches: Callable[[int], list[Batch]]
    ) -> tuple[Masks, Evidence]:
        """The masks to go on from, and what the criterion may look at; arguments as for `prune`."""
        one_shot = pruning.prune_from != "last_round"
        trained = self.rewind_point if pruning.prune_from == "initialisation" else self.trained_before_pruning
        start = self.rewind_point if one_shot else self.start
        assert trained is not None and start is not None
        base = dense_masks(self.masks) if one_shot else self.masks
        evidence = Evidence(
            trained={name: trained[name] for name in base},
            # After a resume `start` comes from a file, and what was trained since does not.
            start=masked({name: start[name].to(trained[name].device) for name in base}, base),
            generator=self._generator("pruning", round),
            network=NetworkFunction(module, trained, batches, derive_seed(self.seed, "probe", round)),
        )
        return base, evidence

    @property
    def trained_before_pruning(self) -> State | None:
        """The trained weights that this round's masks were, or will be, made from."""
        return self.trained if self.dense is None else self.dense

    def rewind(self, way: str) -> None:
        """Settle where this round's networks start: at the rewind point, or where the network ended that was pruned."""
        self.start = self.rewind_point if way == "weights" else self.trained_before_pruning

    def take(self, taken: Taken) -> None:
        """Go on with what a ticket's file brings: masks, weights, order of the data, and with its weights its seed."""
        self.masks, self.start = taken.masks, taken.start
        self.rewind_point = taken.start if taken.whole is None else taken.whole
        self.order = int(taken.info["data_order"])
        self.seed = self.seed if taken.seed is None else taken.seed
        self.rewind_step, self.rates = taken.rewind_step, taken.rates

    def masks_of(self, network: TrainedNetwork) -> Masks:
        """A network's masks: the ticket's, or for `random_mask` the same shuffled within each layer."""
        if network.variant == "random_mask":
            return shuffled(self.masks, self._generator("random_mask", network.round, network.replicate))
        return self.masks

    def start_of(self, network: TrainedNetwork, module: nn.Module, reinit: Reinit | None = None) -> State:
        """The weights that a network starts from, before its masks."""
        if network.variant == "random_reinit":
            return self.fresh_weights(module, reinit, "random_reinit", network.round, network.replicate)
        if network.variant == "pruned_only":
            assert self.trained_before_pruning is not None
            return self.trained_before_pruning
        if network.variant == "random_mask":
            # Not `start`: what the last round trained is 0 wherever a weight was pruned, and another mask keeps those.
            assert self.rewind_point is not None
            return self.rewind_point
        return self.start if self.start is not None else copied(full_state(module))

    def settle_fresh_weights(self, module: nn.Module, reinit: Reinit | None, setting: str) -> None:
        """Settle how weights are drawn anew, while `module` holds θ₀; a resumed run knows it from its checkpoint.

        Args:
            module: the network, left as it is.
            reinit: gives a fresh one.
            setting: what asks for fresh weights.

        Raises:
            SettingError: they would not be of θ₀'s distribution (`how_to_draw`).
        """
        if self.fresh is None:
            self.fresh = vars(how_to_draw(module, reinit, self.seed, self.masks, setting))

    def fresh_weights(self, module: nn.Module, reinit: Reinit | None, *purpose: str | int) -> State:
        """New weights for what is trained, as has been settled; the rest as at the rewind point.

        Args:
            module: the network, left as it is.
            reinit: gives a fresh one.
            purpose: what they are for; the draw depends on it and the seed.
        """
        assert self.fresh is not None
        return FreshWeights(**self.fresh).draw(module, reinit, derive_seed(self.seed, *purpose), self.rewind_point)

    def _generator(self, *purpose: str | int) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.seed, *purpose))

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and lists, by the names of the arguments."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
