"""LotteryTicket: the callback that turns one `Trainer.fit` into the whole lottery ticket experiment.

Frankle & Carbin 2019 (arXiv:1803.03635): train a network, prune its smallest weights, rewind the survivors to
what they were before training, train again, and so on. Late rewinding: Frankle et al. 2020 (arXiv:1912.05671);
learning-rate rewinding and fine-tuning: Renda et al. 2020 (arXiv:2003.02389).
"""

import functools
import io
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from lth_lightning.errors import SettingError, unknown_name
from lth_lightning.files import content_hash, make_folder, replace_file
from lth_lightning.lottery.divergence import LossWatch
from lth_lightning.lottery.plan import (
    Length,
    TrainedNetwork,
    check_initialisation,
    check_lengths,
    plan_networks,
    planned_rounds,
)
from lth_lightning.lottery.recorder import METRICS, Recorder, layer_rows
from lth_lightning.lottery.rewinding import Lineage
from lth_lightning.lottery.summary_curves import SummaryCurves
from lth_lightning.pruning.mask_hooks import MaskHooks
from lth_lightning.pruning.masks import Masks, dense_masks, density, masked, prunable_weights
from lth_lightning.pruning.network_function import Batch
from lth_lightning.pruning.pruning import Pruning
from lth_lightning.pruning.state import copied, fingerprint, full_state, load_state
from lth_lightning.runs.folder import RunFolder, free_folder
from lth_lightning.runs.lock import FolderLock
from lth_lightning.runs.rows import Evaluation, LayerRow, Row, write_curve, write_layers, write_rows
from lth_lightning.seeding import derive_seed, preserved_generators, seed_global_generators
from lth_lightning.tickets.ticket import Ticket
from lth_lightning.tickets.transfer import GivenTickets
from lth_lightning.trainer import evaluation, fast_step, fit, lengths, processes, restart, resume
from lth_lightning.trainer.sub_runs import enter_sub_run, leave_sub_run

log = logging.getLogger(__name__)

REWINDS = ("weights", "learning_rate", "nothing")
DATA_ORDERS = ("fresh", "same")


def architecture(module: L.LightningModule) -> str:
    """The class of the network that is trained."""
    return type(getattr(module, "net", module)).__name__


def data_name(trainer: L.Trainer) -> str:
    """The data set's name, or else the class of the DataModule."""
    return str(getattr(trainer.datamodule, "dataset", type(trainer.datamodule).__name__))


def image_shape(trainer: L.Trainer, module: L.LightningModule) -> list[int] | None:
    """(channels, height, width) of an image, where module or DataModule say so by an `input_shape`."""
    known = getattr(module, "input_shape", None) or getattr(trainer.datamodule, "input_shape", None)
    if not isinstance(known, Sequence) or len(known) != 3 or not all(isinstance(size, int) for size in known):
        return None
    return list(known)


@runtime_checkable
class SeekableLoader(Protocol):
    """A loader whose order is a function of a seed and an epoch; it can start in the middle of one."""

    def seek(self, *, seed: int, epoch: int, batch: int) -> None:
        """Let the next iteration give this epoch's batches, from `batch` on."""


class _First(L.Callback):
    """Ends a network and begins the next before other callbacks hear that an epoch starts: theirs is the new one's."""

    def __init__(self, lottery: "LotteryTicket") -> None:
        self._lottery = lottery

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._lottery.between_epochs(trainer, pl_module)


class LotteryTicket(L.Callback):
    """Find winning tickets in any LightningModule: train, prune, rewind, repeat, inside one `Trainer.fit`.

    Every network, dense, ticket or control, starts with new optimizers, schedules and counters, from the
    rewind point times its mask. The fit ends by itself: `Trainer(max_epochs=-1)`. Other callbacks may follow by
    defining `on_network_start(trainer, module, network, density)` and `on_network_end(trainer, module, row)`.

    Args:
        train_for: length of a round, in optimizer steps (`50000it`) or passes over the training data (`20ep`).
        rounds: how often to prune; round 0 is the dense network. Not needed with `pruning.densities` or `tickets`.
        rewind_to: the rewind point in round 0: `0it` (the initial weights), `500it`, `2ep`, or `5%` of a round.
            Later rounds start there and train what is left of a round.
        rewind: `weights`: every round starts from the rewind point; `learning_rate`: from the last round's
            trained weights, with the schedule rewound; `nothing`: from the trained weights, at the learning rate
            that round 0 ended with, held constant (fine-tuning).
        pruning: which weights go.
        controls: networks to compare the ticket with, in the same fit, on the same batches: `random_reinit`
            (the ticket's mask, fresh weights), `random_mask` (the rewind point's weights, the ticket's mask shuffled
            within each layer), `pruned_only` (the last trained weights times the new mask, not trained).
        control_rounds: the rounds that have controls; by default every round but the dense one.
        control_replicates: how many random_reinit and random_mask networks a round, each drawn anew.
        data_order: `fresh`: a new order of the data each round; `same`: round 0's order in every round.
        tickets: a ticket file, or a folder of them, to train in place of finding new ones.
        transfer: what is taken over from `tickets`: `mask_and_weights`; `mask_and_sign` (the weights' signs, with newly
            drawn magnitudes); or the `mask` alone (newly drawn weights).
        on_mismatch: a layer of `tickets` that has another shape here (other images, other classes): `refuse` it, or
            `reinitialise` it and keep all its weights.
        prunable: the rule that says which weights may be pruned, a function from a module to its weights by name.
        metrics: names under which the module logs `train_loss`, `val_loss`, `val_acc`, `test_loss` and
            `test_acc`, where it uses others, e.g. `{"val_loss": "valid/ce"}`.
        evaluate_test: evaluate the test data too at each validation (it never selects anything).
        checkpoint_every_n_train_steps: save checkpoints/last.ckpt every n optimizer steps too, and not only where an
            epoch starts: for epochs so long that a kill should not lose one.
        seed: what data order, dropout and controls hang on; by default that of `seed_everything`.
        run_dir: where results.csv, layers.csv, tickets/ and checkpoints/ go; by default the logger's folder.

    Attributes:
        results: a `Row` for each trained network, as they came.
        layers: a `LayerRow` for each trained network and prunable weight.
        plan: the networks, in the order of training.
        masks_in_force: the masks of the network that is in training.
        folder: the run's folder, once a fit has started.
        seed_in_use: the seed that everything random hangs on, once a fit has started.
        summary: where TensorBoard's curves over rounds go, once a fit has started.

    Raises:
        SettingError: a value out of range, or settings that contradict each other.

    Example:
        >>> lottery = LotteryTicket(rounds=10, train_for="3ep", pruning=Pruning(rate=0.2))
    """

    def __init__(
        self,
        *,
        train_for: str,
        rounds: int | None = None,
        rewind_to: str = "0it",
        rewind: str = "weights",
        pruning: Pruning = Pruning(),  # noqa: B008 (frozen)
        controls: Sequence[str] = (),
        control_rounds: Sequence[int] | None = None,
        control_replicates: int = 1,
        data_order: str = "fresh",
        tickets: str | os.PathLike[str] | None = None,
        transfer: str = "mask_and_weights",
        on_mismatch: str = "refuse",
        prunable: Callable[[nn.Module], dict[str, nn.Parameter]] = prunable_weights,
        metrics: dict[str, str] | None = None,
        evaluate_test: bool = True,
        checkpoint_every_n_train_steps: int | None = None,
        seed: int | None = None,
        run_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.train_for = Length.parse(train_for, "lottery.train_for", ("it", "ep"))
        self.rewind_to = Length.parse(rewind_to, "lottery.rewind_to", ("it", "ep", "%"))
        check_lengths(self.train_for, self.rewind_to)
        for setting, given, allowed in (("rewind", rewind, REWINDS), ("data_order", data_order, DATA_ORDERS)):
            if given not in allowed:
                raise unknown_name(f"lottery.{setting}", given, allowed)
        if odd := sorted((metrics or {}).keys() - set(METRICS)):
            raise unknown_name("lottery.metrics", odd[0], METRICS)
        self.rewind = rewind
        self.pruning = pruning
        self.data_order = data_order
        self.given = None if tickets is None else GivenTickets(Path(tickets), transfer, on_mismatch)
        if tickets is None and (transfer, on_mismatch) != ("mask_and_weights", "refuse"):
            raise SettingError(
                f"lottery.transfer is {transfer} and lottery.on_mismatch {on_mismatch}, but there is nothing to take "
                "over: name the tickets (--lottery.tickets RUN/tickets)."
            )
        found = self.given is None
        if found:
            check_initialisation(pruning, rewind, controls)
        all_rounds = planned_rounds(rounds, pruning) if self.given is None else list(self.given.files)
        self.plan = plan_networks(all_rounds, controls, control_rounds, control_replicates, found=found)
        self.controls, self.control_replicates = list(controls), control_replicates
        self.control_rounds = None if control_rounds is None else list(control_rounds)
        self.prunable = prunable
        self.metrics = {name: (metrics or {}).get(name, name) for name in METRICS}
        self._asked_metrics = frozenset(metrics or ())
        self.evaluate_test = evaluate_test
        if (every := checkpoint_every_n_train_steps) is not None and every < 1:
            raise SettingError(f"lottery.checkpoint_every_n_train_steps: {every}; give 1 or more steps, or null.")
        self.checkpoint_every_n_train_steps = every
        self._given_seed = seed
        self._given_run_dir = run_dir
        self.folder_is_locked = False  # set by who has locked it before the fit: the command line
        self._fitting = False
        self._lock: FolderLock | None = None
        self._hooks: MaskHooks | None = None
        self.summary: SummaryCurves | None = None
        self._forget()

    def _forget(self) -> None:
        """Start over: one callback may serve several fits."""
        self.results: list[Row] = []
        self.layers: list[LayerRow] = []
        self._position = 0  # in the plan
        self._begun = False  # whether the network at that position is in training
        self._stopped = False  # whether another callback has ended it early
        self._epoch_start = 0  # the step that this epoch began at
        self.seed_in_use = 0
        self._lineage = Lineage({})
        self.masks_in_force: Masks = {}
        self._scores = Recorder(self.metrics, self._asked_metrics)
        self._watch = LossWatch()
        self._moment: list[resume.Moment] | None = None  # while one is written, or to go on from
        self._resumed = False
        self._settings_in_use: dict[str, dict[str, str]] = {}
        self._resumed_folder: str | None = None
        self._ticket_hashes: dict[int, str] = {}  # of the tickets written so far

    # ------------------------------------------------------------------------ what a fit does, in its order

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse what cannot work, and let `configure_optimizers` see one round as the length of training."""
        leave_sub_run(trainer)
        self._fitting = stage == "fit"
        if not self._fitting:
            return
        self._forget()
        self._length = fit.length(trainer)
        self._accumulate = trainer.accumulate_grad_batches
        fit.refuse_what_cannot_work(trainer)
        lengths.refuse_rehearsals(trainer)
        if trainer.max_steps != -1 or trainer.max_epochs not in (-1, None, 1000):  # 1000 is Lightning's own default
            raise SettingError(
                f"trainer.max_epochs is {trainer.max_epochs} and trainer.max_steps {trainer.max_steps}: the lottery "
                "ends the fit itself, after its rounds. Leave both at -1 and set lottery.train_for."
            )
        # Last of all, so as to see what the other callbacks did to a batch. A new list, as Lightning is going through
        # the old one.
        others = [
            callback for callback in trainer.callbacks if callback is not self and not isinstance(callback, _First)
        ]
        trainer.callbacks = [_First(self), *others, self]
        self._fresh = restart.FreshFit(trainer)
        fit.show_length(trainer, fit.ENDLESS)
        whole, in_steps = int(self.train_for.amount), self.train_for.unit == "it"
        lengths.show_round(trainer, epochs=None if in_steps else whole, steps=whole if in_steps else None)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take θ₀, where DDP has made it equal on all ranks, and everything else a new network starts with."""
        lengths.refuse_no_optimizer(trainer)
        self._fresh.capture(trainer)
        self._weights = self.prunable(pl_module)
        self._hooks = MaskHooks(self._weights, trainer.optimizers)
        if not self._resumed:
            self.seed_in_use = trainer.strategy.broadcast(self._wanted_seed(otherwise=torch.initial_seed()))
        self._settle("settings", self._settings(trainer))
        if not self._resumed:
            self._lineage = Lineage(dense_masks(self._weights), self.seed_in_use)
            if self.rewind_to.amount == 0:
                self._lineage.set_rewind_point(pl_module, step=0)
        self._check_plan(trainer, pl_module)
        evaluation.guard_validation(trainer)
        self._scores.attach(trainer, with_test=self.evaluate_test)
        self.folder = self._claim_folder(trainer)
        fit.refuse_to_share(trainer, self.folder.checkpoint)
        self.summary = SummaryCurves(trainer, self.results)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Turn lengths into steps, now that the length of an epoch is known."""
        processes.end_on_sigterm(trainer)
        seekable = any(isinstance(loader, SeekableLoader) for loader in fit.train_loaders(trainer))
        lengths.refuse_overfitting(trainer, shuffles_anew=seekable)
        self._epochs = lengths.epochs_of(trainer)
        if self._epochs.batches is None and "ep" in (self.train_for.unit, self.rewind_to.unit):
            raise SettingError(
                f"lottery.train_for is {self.train_for} and lottery.rewind_to {self.rewind_to}, but the training "
                "loader has no length to count epochs by; give both in steps, e.g. 5000it."
            )
        self.round_steps = self.train_for.steps(self._epochs.steps)
        self._settle("loaders", fit.loader_facts(trainer))
        self._rewind_step = self.rewind_to.steps(self._epochs.steps, self.round_steps)
        latest = max(self._rewind_step, self.given.latest_rewind_step if self.given else 0)
        if latest >= self.round_steps:
            raise SettingError(
                f"lottery.rewind_to: the rewind point is step {latest}, not before the end of a round of "
                f"{self.round_steps} steps ({self.train_for})."
            )
        if not self._resumed:
            self._rehearse_pruning(trainer, pl_module)
        if self._begun:  # a resumed network: its weights came with the checkpoint, its hooks do not
            self.masks_in_force = self._lineage.masks_of(self.network)
            self._open_network(trainer, pl_module)
            assert self._moment is not None
            resume.go_on(trainer, self._moment, lambda done: self._enter_epoch(trainer, done))
        self._moment = None
        fast_step.install(trainer)
        if self.checkpoint_every_n_train_steps or fit.has_time_limit(trainer):
            resume.after_each_batch(trainer, lambda: self._checkpoint_inside_epoch(trainer))

    def between_epochs(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Where nothing of the last epoch is pending, and the next has not begun: end a network, start the next.

        After the last network, and when time is up, it ends the fit: Lightning's loop takes `StopIteration` for that.
        """
        time_is_up = self._time_is_up(trainer)
        if self._begun:
            self._watch.check(trainer)
            if fit.steps_done(trainer) > self._epoch_start:  # and not resumed here
                self._scores.look_at_training(trainer)
            self._stopped |= trainer.should_stop and not time_is_up
        if self._begun and self._network_is_over(trainer):
            self._finish_network(trainer, pl_module)
        while not self._begun and self._position < len(self.plan):
            self._begin_network(trainer, pl_module)
        if self._position == len(self.plan) and self._lineage.trained is not None:
            load_state(pl_module, self._lineage.trained)  # leave the last ticket, not whichever control came last
            self._fresh.restart_averages(trainer)
        self._epoch_start = fit.steps_done(trainer)
        self._save_checkpoint(trainer)
        if time_is_up or self._position == len(self.plan):
            raise StopIteration
        self._enter_epoch(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Look at the loss, take the rewind point when its step is done, and a wish to stop as this network's end."""
        lengths.check_accumulation(trainer, self._epochs.batches_per_step(trainer.current_epoch))
        self._watch.see(outputs, batch, fit.steps_done(trainer))
        if self._lineage.rewind_point is None and fit.steps_done(trainer) == self._rewind_step:
            lengths.check_place(trainer, self._epochs.place(self._rewind_step), self._rewind_step)
            processes.share_buffers(trainer)
            self._lineage.set_rewind_point(pl_module, self._rewind_step)
        self._hear_stop(trainer)
        if self._time_is_up(trainer):
            fit.leave_out_validation(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add a point to the learning curve, test data included."""
        if self._fitting and not trainer.sanity_checking:
            self._watch.check(trainer)
            with self._fresh.averaged_weights(trainer):
                self._scores.record(trainer)
            self._hear_stop(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say so where there was nothing to train on."""
        lengths.refuse_no_data(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """A scheduler that ends the job (SIGTERM) finds everything saved, where Lightning stops between two batches.

        Several processes do not stop at one batch for certain; they go on from the last checkpoint.
        """
        if not self._fitting:
            return
        at_rest = isinstance(exception, SIGTERMException) and resume.is_between_batches(trainer)
        try:
            if at_rest and self._begun and trainer.world_size == 1:
                self._stopped |= trainer.should_stop and not self._time_is_up(trainer)
                self._save_checkpoint(trainer, inside_epoch=resume.is_inside_epoch(trainer))
        finally:
            self.teardown(trainer, pl_module, "fit")  # Lightning has no teardown after an exception

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take off what the fit put on, as far as it came."""
        if not self._fitting:
            return
        trainer.callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, _First)]
        lengths.show_fit(trainer)
        fit.show_length(trainer, self._length)
        trainer.accumulate_grad_batches = self._accumulate  # which a GradientAccumulationScheduler sets by the epoch
        evaluation.unguard_validation(trainer)
        resume.let_go(trainer)
        fast_step.remove(trainer)
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        if self._hooks is not None:
            self._hooks.remove()
        if self.summary is not None:
            self.summary.close()

    # ------------------------------------------------------------------------ one network

    @property
    def network(self) -> TrainedNetwork:
        """The network that is in training, or comes next."""
        return self.plan[self._position]

    @property
    def last_evaluation(self) -> Evaluation | None:
        """The last point of the learning curve of the network in training."""
        return self._scores.last

    @property
    def settings(self) -> dict[str, str]:
        """What this run was set to do, and from which data, in words; what a resumed run must have in common."""
        return {name: value for part in self._settings_in_use.values() for name, value in part.items()}

    def _begin_network(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Start from the rewind point times the mask, with everything else new."""
        network = self.network
        if self._position == 0 or self.plan[self._position - 1].round != network.round:
            self._begin_round(trainer, module, network.round)
        masks = self.masks_in_force = self._lineage.masks_of(network)
        load_state(module, masked(self._lineage.start_of(network, module), masks))
        step = self.first_step(network)
        epoch, _ = self._epochs.place(step)
        self._fresh.restore(trainer, step, epoch, self._epochs.batches_before(step))
        self._fresh.advance_schedulers(trainer, step, epoch)
        self._scores.start_over()
        self._stopped, self._begun = False, True
        self._open_network(trainer, module)
        if network.variant == "pruned_only":
            self._finish_network(trainer, module)

    def _begin_round(self, trainer: L.Trainer, module: L.LightningModule, round: int) -> None:
        """The masks of this round, pruned from what the last one trained or read from a file, and where to start."""
        lineage = self._lineage
        lineage.order = round if self.data_order == "fresh" else 0
        if self.given is not None:
            lineage.take(self.given.load(round, module, lineage.own))
        elif round > 0:
            lineage.prune(self.pruning, round, module, self._batches(trainer, round))
            lineage.rewind(self.rewind)
            self._tell_of_lost_layers(trainer, round)

    def _batches(self, trainer: L.Trainer, round: int) -> Callable[[int], list[Batch]]:
        """Gives so many batches of training data to prune by: a function of (seed, round), the same on all processes.

        Loaders are left anywhere, as each epoch begins with its own place.
        """
        seed = derive_seed(self.seed_in_use, "pruning data", round)

        @functools.cache
        def batches(count: int) -> list[Batch]:
            with preserved_generators():
                seed_global_generators(derive_seed(seed, *processes.draws_of_rank(trainer)))
                for loader in fit.train_loaders(trainer):
                    if isinstance(loader, SeekableLoader):
                        loader.seek(seed=seed, epoch=0, batch=0)
                fit.seed_loaders(trainer, seed, epoch=0)
                return processes.joined(trainer, fit.first_batches(trainer, count))

        return batches

    def _rehearse_pruning(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Score the weights as they are, so that a criterion that cannot fails before anything is trained."""
        if self.given is not None or self.plan[-1].round == 0 or self.pruning.prune_from != "initialisation":
            return
        lineage = Lineage(dense_masks(self._weights), self.seed_in_use, rewind_point=full_state(module))
        self.pruning.scores(*lineage.to_prune(self.pruning, 1, module, self._batches(trainer, 1)))

    def _tell_of_lost_layers(self, trainer: L.Trainer, round: int) -> None:
        """Global pruning may take a layer's last weight; what is behind it then hears nothing of the input."""
        lost = [name for name, mask in self._lineage.masks.items() if not bool(mask.any())]
        if lost and trainer.is_global_zero:
            log.warning(
                "round %d: pruning has taken the last weight of %s; scope `layerwise` would keep at least one.",
                round,
                ", ".join(lost),
            )

    def _open_network(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """What a network needs that no checkpoint holds."""
        network, masks = self.network, self.masks_in_force
        self._compare_processes(trainer, module)
        self._watch.start_over(trainer, network)
        assert self._hooks is not None
        self._hooks.enforce(masks)
        if self._lineage.rates is not None:
            self._fresh.hold_learning_rates(trainer, self._lineage.rates)
        step = fit.steps_done(trainer)
        enter_sub_run(trainer, network.title(density(masks)), 0 if step == self.first_step(network) else step)
        self._announce(trainer, "on_network_start", network, density(masks))

    def _compare_processes(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """A criterion, a `prunable` or a reset may have drawn differently on each process."""
        for what, tensors in (("masks", self.masks_in_force), ("weights", full_state(module))):
            if trainer.world_size > 1 and not processes.agree(trainer, fingerprint(tensors)):
                raise RuntimeError(
                    f"round {self.network.round}, {self.network.variant}: the processes start with different {what}. "
                    "Criteria, `prunable` and resets must give each process the same."
                )

    def _network_is_over(self, trainer: L.Trainer) -> bool:
        # A pass over the data is one, of however many steps: `on_train_batch_start` may leave it early.
        passed = self.train_for.unit == "ep" and trainer.current_epoch >= self.train_for.amount
        return self._stopped or passed or fit.steps_done(trainer) >= self.round_steps

    def _finish_network(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write down what became of the network; a ticket's weights are kept, for pruning and on disk."""
        network, masks = self.network, self.masks_in_force
        self._watch.check_weights(module, fit.steps_done(trainer))
        self._scores.complete(trainer)
        self._fresh.settle_averages(trainer)
        row = self._scores.row(trainer, network, masks, self.first_step(network))
        self.results.append(row)
        self.layers += layer_rows(network, masks)
        if network.variant == "ticket":
            self._keep_trained(trainer, module, row)
        if trainer.is_global_zero:
            write_rows(self.folder.results, self.results)
            write_layers(self.folder.layers, self.layers)
            write_curve(
                self.folder.curve(network.round, network.variant, network.replicate), self._scores.curve(network)
            )
        assert self.summary is not None
        self.summary.add(row)
        self._announce(trainer, "on_network_end", row)
        self._position += 1
        self._begun = False

    def _keep_trained(self, trainer: L.Trainer, module: L.LightningModule, row: Row) -> None:
        lineage = self._lineage
        if lineage.start is None:
            raise SettingError(
                f"lottery.rewind_to: round 0 was stopped early, after {row.steps} steps, before the rewind point at "
                f"step {self._rewind_step}. Rewind to an earlier step, or let rounds run longer."
            )
        processes.share_buffers(trainer)
        trained = copied(full_state(module))
        if trainer.is_global_zero:
            start = masked(lineage.start, lineage.masks)
            info = self._ticket_info(trainer, module, row)
            Ticket(lineage.masks, start, trained, info).save(self.folder.ticket(row.round))
            self._ticket_hashes[row.round] = content_hash(self.folder.ticket(row.round))
        lineage.trained = trained
        if row.round == 0 and self.pruning.prune_from == "dense":
            lineage.dense = trained
        if row.round == 0 and self.rewind == "nothing":
            lineage.rates = fit.learning_rates(trainer)

    def first_step(self, network: TrainedNetwork) -> int:
        """The step of its round that a network starts at: the rewind point's, but for the network that finds it.

        Known once training has started; of tickets from files, that of the one in training stands for those to come.
        """
        if self.given is not None:
            return self._lineage.rewind_step
        return 0 if network.round == 0 else self._rewind_step

    def planned_steps(self, network: TrainedNetwork) -> int:
        """The optimizer steps that training it takes, unless something stops it; known once training has started."""
        return 0 if network.variant == "pruned_only" else self.round_steps - self.first_step(network)

    def _ticket_info(self, trainer: L.Trainer, module: L.LightningModule, row: Row) -> dict[str, Any]:
        return {
            "architecture": architecture(module),
            "data": data_name(trainer),
            "input_shape": image_shape(trainer, module),
            "round": row.round,
            "seed": self._lineage.seed,
            "data_order": self._lineage.order,
            "train_for": str(self.train_for),
            "rewind_to": str(self.rewind_to),
            "rewind_step": self._lineage.rewind_step,
            "transfer": self.given.transfer if self.given else None,
            "reinitialised": list(self.given.reinitialised) if self.given else [],
            "learning_rates": self._lineage.rates,
            "val_acc": row.val_acc,
            "test_acc": row.test_acc,
        }

    # ------------------------------------------------------------------------ one epoch

    def _enter_epoch(self, trainer: L.Trainer, resumed_after: int = 0) -> None:
        """Make all that is random in this epoch a function of (seed, round, epoch), and cut it at the round's end.

        Args:
            trainer: at the epoch's start, or where a resumed fit goes on with it.
            resumed_after: batches of it that are done; the next is the one after.
        """
        epoch, step, lineage = trainer.current_epoch, self._epoch_start, self._lineage
        seed = derive_seed(lineage.seed, "order", lineage.order)
        seed_global_generators(
            derive_seed(lineage.seed, "epoch", lineage.order, epoch, *processes.draws_of_rank(trainer))
        )
        if self.train_for.unit == "ep" or self._rewind_step or self.first_step(self.network):
            lengths.check_reloaded(trainer, self._epochs)
        # For a resumed epoch too, in which a GradientAccumulationScheduler does not hear of its start.
        per_step = self._epochs.batches_per_step(epoch)
        trainer.accumulate_grad_batches = per_step
        # Only a network that starts at a rewind point starts inside an epoch.
        before = self._epochs.place(step).batch if step == self.first_step(self.network) else 0
        loaders = fit.train_loaders(trainer)
        seekable = [loader for loader in loaders if isinstance(loader, SeekableLoader)]
        to_skip = 0 if len(loaders) == len(seekable) == 1 else resumed_after  # several take turns in ways of their own
        for loader in seekable:
            loader.seek(seed=seed, epoch=epoch, batch=before + resumed_after - to_skip)
        fit.seed_loaders(trainer, seed, epoch)
        self._fresh.limit_epoch(trainer, already=before, batches=(self.round_steps - step) * per_step)
        fit.renew_iterator(trainer)
        resume.skip_batches(trainer, to_skip)

    def _hear_stop(self, trainer: L.Trainer) -> None:
        """A callback's wish to stop (EarlyStopping) ends the network, not the experiment; running out of
        `max_time` ends the fit, to be resumed."""
        if not trainer.should_stop:
            return
        if self._time_is_up(trainer):
            trainer.fit_loop.min_epochs = 0
            return
        trainer.should_stop = False
        self._stopped = True
        fit.end_epoch_here(trainer)

    def _time_is_up(self, trainer: L.Trainer) -> bool:
        return trainer.should_stop and fit.out_of_time(trainer)

    # ------------------------------------------------------------------------ results, files, checkpoints

    def _announce(self, trainer: L.Trainer, hook: str, *args: Any) -> None:
        for callback in trainer.callbacks:
            if (method := getattr(callback, hook, None)) is not None:
                method(trainer, trainer.lightning_module, *args)

    def _wanted_seed(self, otherwise: int) -> int:
        return self._given_seed if self._given_seed is not None else int(os.environ.get("PL_GLOBAL_SEED", otherwise))

    def _claim_folder(self, trainer: L.Trainer) -> RunFolder:
        """The folder of this run, the same on all ranks; one that holds another run, or is in use, is refused."""
        resumed = self._resumed
        usual = trainer.log_dir if trainer.loggers else os.path.join(trainer.default_root_dir, "runs")
        chosen = Path(self._given_run_dir or (self._resumed_folder if resumed else None) or usual or ".")
        if trainer.is_global_zero:
            folder = RunFolder(chosen if self._given_run_dir or resumed else free_folder(chosen))
            make_folder(folder.path)
            self._lock = None if self.folder_is_locked else folder.lock()
            if resumed:
                folder.check_tickets(self._ticket_hashes)
                folder.prepare()
            else:
                folder.claim()
            chosen = folder.path
        return RunFolder(Path(trainer.strategy.broadcast(str(chosen))))

    def _check_plan(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Find out now what would otherwise fail rounds later."""
        sizes = {name: weight.numel() for name, weight in self._weights.items()}
        self.pruning.check(sizes, 0 if self.given is not None else self.plan[-1].round)
        if self.given is not None:
            self._check_given(trainer, self.given, module)
        if getattr(module, "masks", None) is not None:
            raise SettingError("the module holds masks of its own (`hold`); the lottery starts from a dense network.")
        for network in self.plan:
            if network.variant == "random_reinit":
                self._lineage.fresh_weights(module)
                break

    def _check_given(self, trainer: L.Trainer, given: GivenTickets, module: L.LightningModule) -> None:
        if given.needs_fresh_weights and self._lineage.own is None:
            # Drawn anew, as a seed gives a network the very weights that a ticket of that seed was found from.
            self._lineage.own = self._lineage.fresh_weights(module, "transfer")
        given.check(module, self._weights, self.controls, self._lineage.own)
        if given.reinitialised and trainer.is_global_zero:
            log.warning(
                "lottery.tickets: of another shape here, so re-initialised and kept whole: %s.",
                ", ".join(given.reinitialised.values()),
            )

    def _settings(self, trainer: L.Trainer) -> dict[str, str]:
        """What a resumed run must have in common with the run it resumes, in words."""
        pruning = {name: getattr(self.pruning, name) for name in ("rate", "rates", "densities", "prune_from", "scope")}
        settings = {
            "seed": self._wanted_seed(otherwise=self.seed_in_use),
            "lottery.train_for": self.train_for,
            "lottery.rewind_to": self.rewind_to,
            "lottery.rewind": self.rewind,
            "lottery.data_order": self.data_order,
            "lottery.rounds": self.plan[-1].round,
            "lottery.controls": self.controls,
            "lottery.control_rounds": self.control_rounds,
            "lottery.control_replicates": self.control_replicates,
            "lottery.transfer": self.given.transfer if self.given else None,
            "lottery.on_mismatch": self.given.on_mismatch if self.given else None,
            "lottery.metrics": self.metrics,
            "lottery.evaluate_test": self.evaluate_test,
            **{f"lottery.pruning.{name}": value for name, value in pruning.items()},
            "lottery.pruning.criterion": restart.described(self.pruning.criterion),
            **(self.given.contents() if self.given else {}),
            **{f"shape of {name}": list(weight.shape) for name, weight in self._weights.items()},
        }
        return {name: str(value) for name, value in settings.items()} | self._fresh.facts(trainer)

    def _settle(self, kind: str, now: dict[str, str]) -> None:
        """Note the settings of this run; where it goes on with a checkpoint they must be those of the run before."""
        then = self._settings_in_use[kind] if self._resumed else now
        differ = [name for name in {**then, **now} if then.get(name) != now.get(name)]
        if differ:
            words = [f"{name} was {then.get(name, 'not there')}, is {now.get(name, 'not there')}" for name in differ]
            raise SettingError(f"ckpt_path: the checkpoint is of a run with other settings: {'; '.join(words)}.")
        self._settings_in_use = {**self._settings_in_use, kind: now}

    def _checkpoint_inside_epoch(self, trainer: L.Trainer) -> None:
        """Between two batches: save if it is time to, or if time is up."""
        if not resume.is_inside_epoch(trainer) or trainer.fit_loop._should_accumulate():
            return
        every = self.checkpoint_every_n_train_steps
        if (every and fit.steps_done(trainer) % every == 0) or trainer.should_stop:
            self._save_checkpoint(trainer, inside_epoch=True)

    def _save_checkpoint(self, trainer: L.Trainer, inside_epoch: bool = False) -> None:
        """Everything a resumed fit needs to go on from here, as a whole or not at all."""
        if self._begun:
            self._watch.check(trainer)
        self._moment = resume.capture(trainer, inside_epoch=inside_epoch)
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        self._moment = None  # another callback's checkpoint has none
        if trainer.is_global_zero:
            # Not `trainer.save_checkpoint`, which writes to TMPDIR first, syncs nothing and makes lost folders anew.
            content = io.BytesIO()
            torch.save(checkpoint, content)
            replace_file(self.folder.checkpoint, content.getbuffer())
        trainer.strategy.barrier("last.ckpt")

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Make the lottery's own checkpoints say where a resumed fit goes on."""
        if self._moment is not None:
            fit.settle_place(checkpoint, inside_epoch=self._moment[0]["inside_epoch"])

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and text only, so that checkpoints load with `weights_only`."""
        return {
            "settings": self._settings_in_use,
            "seed": self.seed_in_use,
            "position": self._position,
            "begun": self._begun,
            "stopped": self._stopped,
            "epoch_start": self._epoch_start,
            "moment": self._moment,
            "lineage": self._lineage.state_dict(),
            "scores": self._scores.state_dict(),
            "ticket_hashes": self._ticket_hashes,
            "folder": str(self.folder.path) if hasattr(self, "folder") else None,
            "results": [asdict(row) for row in self.results],
            "layers": [asdict(row) for row in self.layers],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over where a checkpoint left off; other commands than `fit` take its weights alone.

        Raises:
            SettingError: the state is none of this version's, or was saved where a fit cannot go on.
        """
        if not self._fitting:
            return
        try:
            self._settings_in_use = state_dict["settings"]
            self._resumed_folder = state_dict["folder"]
            self._ticket_hashes = state_dict["ticket_hashes"]
            self.seed_in_use = state_dict["seed"]
            self._position = state_dict["position"]
            self._begun = state_dict["begun"]
            self._stopped = state_dict["stopped"]
            self._epoch_start = state_dict["epoch_start"]
            self._moment = state_dict["moment"]
            self._lineage = Lineage(**state_dict["lineage"])
            self._scores.load_state_dict(state_dict["scores"])
            self.results = [Row(**row) for row in state_dict["results"]]
            self.layers = [LayerRow(**row) for row in state_dict["layers"]]
        except (KeyError, TypeError) as error:
            raise SettingError(f"the checkpoint was written by another version of lth_lightning ({error}).") from error
        if self._moment is None:
            raise SettingError(
                "ckpt_path: another callback (ModelCheckpoint, say) saved this checkpoint, where a batch, a validation "
                "or a round had not ended, and no run can go on from there to the same result. The lottery saves its "
                f"own: {RunFolder(Path(self._resumed_folder or '')).checkpoint}."
            )
        self._resumed = True
