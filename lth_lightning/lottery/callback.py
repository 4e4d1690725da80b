"""LotteryTicket: the callback that turns one `Trainer.fit` into the whole lottery ticket experiment.

Frankle & Carbin 2019 (arXiv:1803.03635): train a network, prune its smallest weights, rewind the survivors to
what they were before training, train again, and so on. Late rewinding: Frankle et al. 2020 (arXiv:1912.05671);
learning-rate rewinding and fine-tuning: Renda et al. 2020 (arXiv:2003.02389).
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from lth_lightning.lottery import settings
from lth_lightning.lottery.checkpoint import Progress
from lth_lightning.lottery.experiment import Experiment
from lth_lightning.lottery.plan import (
    Length,
    check_initialisation,
    check_lengths,
    plan_networks,
    planned_rounds,
)
from lth_lightning.lottery.recorder import METRICS
from lth_lightning.lottery.rewinding import Lineage
from lth_lightning.lottery.summary_curves import SummaryCurves
from lth_lightning.pruning.masks import Masks
from lth_lightning.pruning.prunable import prunable_weights
from lth_lightning.pruning.pruning import Pruning
from lth_lightning.pruning.state import check_state
from lth_lightning.runs.folder import RunFolder
from lth_lightning.runs.rows import LayerRow, Row
from lth_lightning.tickets.transfer import GivenTickets
from lth_lightning.trainer import (
    evaluation,
    fast_step,
    fit,
    lengths,
    processes,
    refusals,
    restart,
    resume,
    sub_runs,
    watch,
)


class LotteryTicket(L.Callback):
    """Find winning tickets in any LightningModule: train, prune, rewind, repeat, inside one `Trainer.fit`.

    Every network, dense, ticket or control, starts with new optimizers, schedules and counters, from the
    rewind point times its mask. The fit ends by itself: `Trainer(max_epochs=-1)`. Other callbacks may follow by
    defining `on_network_start(trainer, module, network, density)` and `on_network_end(trainer, module, row)`, and the
    module by `on_network_start(network, density)` and `on_network_end(row)`: what training changes in attributes of
    theirs is theirs to set back.

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
        seed: what data order, dropout and controls depend on; by default that of `seed_everything`.
        run_dir: where results.csv, layers.csv, tickets/ and checkpoints/ go; by default the folder of the
            TensorBoardLogger or CSVLogger, or else the next number in runs/ below the trainer's `default_root_dir`.
        reinit: gives a fresh module, or the network that the module holds, for all that is drawn anew
            (`random_reinit`, `transfer`). By default the module is rebuilt where it is known how, and reset layer by
            layer elsewhere, if that gives the distribution of its weights at the start of the fit.

    Attributes:
        plan: the networks, in the order of training.

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
        reinit: Callable[[], nn.Module] | None = None,
    ) -> None:
        self.train_for = Length.parse(train_for, "lottery.train_for", ("it", "ep"))
        self.rewind_to = Length.parse(rewind_to, "lottery.rewind_to", ("it", "ep", "%"))
        check_lengths(self.train_for, self.rewind_to)
        settings.check_choices(rewind, data_order, metrics or {}, METRICS)
        settings.check_interval(checkpoint_every_n_train_steps)
        self.given = None if tickets is None else GivenTickets(Path(tickets), transfer, on_mismatch)
        if self.given is None:
            settings.check_transfer(transfer, on_mismatch)
            check_initialisation(pruning, rewind, controls)
        all_rounds = planned_rounds(rounds, pruning) if self.given is None else list(self.given.files)
        self.plan = plan_networks(all_rounds, controls, control_rounds, control_replicates, found=self.given is None)
        self.rewind, self.pruning, self.data_order = rewind, pruning, data_order
        self.controls, self.control_replicates = list(controls), control_replicates
        self.control_rounds = None if control_rounds is None else list(control_rounds)
        self.prunable, self.reinit = prunable, reinit
        self.metrics = {name: (metrics or {}).get(name, name) for name in METRICS}
        self.asked_metrics = frozenset(metrics or ())
        self.evaluate_test = evaluate_test
        self.checkpoint_every_n_train_steps = checkpoint_every_n_train_steps
        self.given_seed, self.given_run_dir = seed, run_dir
        self.folder_is_locked = False  # set by who has locked it before the fit: the command line
        refusals.name_mixed_packages()
        self._address = processes.await_home(self)
        self._fitting = False
        self._progress = Progress()
        self._experiment: Experiment | None = None

    # ------------------------------------------------------------------------ a fit, in its order

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse what cannot work, and let `configure_optimizers` see one round as the length of training."""
        sub_runs.leave_sub_run(trainer)
        self._fitting = stage == "fit"
        if not self._fitting:
            return
        self._progress, self._experiment = Progress(), None  # one callback may serve several fits
        self._length = fit.length(trainer)
        self._fresh = restart.FreshFit(trainer)
        lengths.refuse_rehearsals(trainer)
        refusals.refuse_what_cannot_work(trainer, pl_module)
        fit.call_first_and_last(trainer, self.between_epochs, watch.Watch(self._fresh), self)
        fit.show_length(trainer, fit.ENDLESS)
        lengths.show_round(trainer, epochs=self.train_for.epochs, steps=self.train_for.own_steps)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take θ₀, where DDP has made it equal on all ranks, and everything else a new network starts with."""
        check_state(pl_module)
        lengths.refuse_no_optimizer(trainer)
        self._fresh.capture(trainer, lambda: self.prunable(pl_module))
        self._experiment = Experiment(self, trainer, self._progress, self._fresh, self._length)
        self._experiment.take_initial_weights()
        processes.bring_home(trainer, self._address, self._progress.outcome)
        evaluation.guard_validation(trainer)
        self._experiment.claim_folder()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Turn lengths into steps, now that the length of an epoch is known, and resume what was in training."""
        processes.end_on_sigterm(trainer)
        self.experiment.settle_lengths()
        self.experiment.rehearse_or_resume()
        fast_step.install(trainer)
        if self.checkpoint_every_n_train_steps or fit.has_time_limit(trainer):
            resume.after_each_batch(trainer, self.experiment.checkpoint_inside_epoch)

    def between_epochs(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Where nothing of the last epoch is pending, and the next has not begun: end a network, start the next.

        After the last network, and when time is up, it ends the fit: Lightning's loop takes `StopIteration` for that.
        """
        experiment, progress = self.experiment, self._progress
        time_is_up = fit.time_is_up(trainer)
        if progress.begun:
            progress.stopped |= trainer.should_stop and not time_is_up
            trainer.should_stop &= time_is_up
            experiment.after_epoch()
            if experiment.network_is_over:
                experiment.finish_network()
        while not progress.begun and progress.position < len(self.plan):
            experiment.begin_network()
        all_done = progress.position == len(self.plan)
        if all_done:
            experiment.leave_last_ticket()
        progress.epoch_start = fit.steps_done(trainer)
        experiment.save_checkpoint()
        if time_is_up or all_done:
            raise StopIteration
        experiment.enter_epoch()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Take the rewind point when its step is done, and a wish to stop as this network's end."""
        self.experiment.after_batch(outputs, batch)
        self.experiment.take_stop()
        if fit.time_is_up(trainer):
            fit.leave_out_validation(trainer)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make sure that what is scored is the ticket."""
        if self._fitting and not trainer.sanity_checking:
            self.experiment.check_pruned()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add a point to the learning curve, test data included."""
        if self._fitting and not trainer.sanity_checking:
            self.experiment.record()
            self.experiment.take_stop()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say so where there was nothing to train on."""
        lengths.refuse_no_data(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """A scheduler that ends the job (SIGTERM) finds everything saved, where Lightning stops between two batches.

        Several processes do not stop at one batch for certain; they resume from the last checkpoint.
        """
        if not self._fitting:
            return
        at_rest = isinstance(exception, SIGTERMException) and resume.is_between_batches(trainer)
        try:
            if at_rest and self._progress.begun and trainer.world_size == 1:
                self._progress.stopped |= trainer.should_stop and not fit.time_is_up(trainer)
                self.experiment.save_checkpoint(inside_epoch=resume.is_inside_epoch(trainer))
        finally:
            self.teardown(trainer, pl_module, "fit")  # Lightning has no teardown after an exception

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Take off what the fit put on, as far as it came."""
        if not self._fitting:
            return
        fit.call_as_before(trainer, watch.Watch)
        self._fresh.release()
        lengths.show_fit(trainer)
        fit.show_length(trainer, self._length)
        evaluation.unguard_validation(trainer)
        resume.let_go(trainer)
        fast_step.remove(trainer)
        if self._experiment is not None:
            self._experiment.close()

    # ------------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Make the lottery's own checkpoints say where a resumed fit starts."""
        if self._progress.moment is not None:
            fit.settle_place(checkpoint, inside_epoch=self._progress.moment[0]["inside_epoch"])

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and text only, so that checkpoints load with `weights_only`."""
        if self._progress.moment is not None:
            self._progress.fresh = self._fresh.state_dict()
        if self._fitting and self._experiment is not None:
            self._progress.recorder = self._experiment.recorder.state_dict()
        return self._progress.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over where a checkpoint left off; other commands than `fit` take its weights alone.

        Raises:
            SettingError: another version saved the state, or it was saved where a fit cannot be resumed.
        """
        if self._fitting:
            self._progress = Progress.from_state_dict(state_dict)
            assert self._progress.fresh is not None
            self._fresh.load_state_dict(self._progress.fresh)

    def receive(self, outcome: dict[str, Any]) -> None:
        """Take over what a fit in processes that Lightning has started came to (ddp_spawn, ddp_fork)."""
        self._progress = Progress.from_state_dict(outcome)
        self._progress.moment = None

    # ------------------------------------------------------------------------ what others may ask

    @property
    def experiment(self) -> Experiment:
        """The experiment of the fit that runs, or that ran last."""
        assert self._experiment is not None, "no fit has started"
        return self._experiment

    @property
    def _lineage(self) -> Lineage:
        """What the rounds so far hand on to the next networks."""
        return self._progress.lineage

    @property
    def results(self) -> list[Row]:
        """A `Row` for each trained network, as they came."""
        return self._progress.results

    @property
    def layers(self) -> list[LayerRow]:
        """A `LayerRow` for each trained network and prunable weight."""
        return self._progress.layers

    @property
    def seed_in_use(self) -> int:
        """The seed that everything random depends on, once a fit has started."""
        return self._progress.seed

    @property
    def settings(self) -> dict[str, str]:
        """What this run was set to do, and from which data, in words; what a resumed run must have in common."""
        return {name: value for part in self._progress.settings.values() for name, value in part.items()}

    @property
    def folder(self) -> RunFolder:
        """The run's folder, once a fit has started."""
        assert self._progress.folder is not None, "no fit has started"
        return RunFolder(Path(self._progress.folder))

    @property
    def summary(self) -> SummaryCurves | None:
        """Where TensorBoard's curves over rounds go, once a fit has started."""
        return self._experiment.summary if self._experiment else None

    @property
    def masks_in_force(self) -> Masks:
        """The masks of the network that is in training; afterwards, in other processes, of the last ticket."""
        return self._experiment.masks if self._experiment else self._lineage.masks
