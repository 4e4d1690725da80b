"""LotteryTicket: the callback that turns one `Trainer.fit` into the whole lottery ticket experiment.

Frankle & Carbin 2019 (arXiv:1803.03635): train a network, prune its smallest weights, rewind the survivors to
their values before training, and repeat. Late rewinding: Frankle et al. 2020 (arXiv:1912.05671);
learning-rate rewinding and fine-tuning: Renda et al. 2020 (arXiv:2003.02389).
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from lth_lightning.lottery import plan, settings
from lth_lightning.lottery.best_weights import check_keep
from lth_lightning.lottery.checkpoint import Progress
from lth_lightning.lottery.engine import Engine
from lth_lightning.lottery.experiment import Experiment
from lth_lightning.lottery.metrics import Metrics
from lth_lightning.lottery.outcome import Outcome
from lth_lightning.lottery.rehearsal import Rehearsal
from lth_lightning.lottery.rewinding import Lineage
from lth_lightning.lottery.summary_curves import SummaryCurves
from lth_lightning.pruning.masks import Masks
from lth_lightning.pruning.prunable import prunable_weights
from lth_lightning.pruning.pruning import Pruning
from lth_lightning.pruning.state import check_state
from lth_lightning.runs.score import Score
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
    threads,
)
from lth_lightning.trainer.watch import Watch


class LotteryTicket(Outcome, L.Callback):
    """Find winning tickets in any LightningModule: train, prune, rewind, repeat, inside one `Trainer.fit`.

    Every network, dense, ticket or control, starts with new optimizers, schedules and counters, from the
    rewind point times its mask. The callback ends the fit: use `Trainer(max_epochs=-1)`. Other callbacks are notified
    through `on_network_start(trainer, module, network, density)` and `on_network_end(trainer, module, row)`, the module
    through `on_network_start(network, density)` and `on_network_end(row)`; both must reset their own attributes that
    training changes.

    Args:
        train_for: length of a round, in optimizer steps (`50000it`) or passes over the training data (`20ep`).
        rounds: how often to prune; round 0 is the dense network. Not needed with `pruning.densities` or `tickets`.
        rewind_to: the rewind point in round 0: `0it` (the initial weights), `500it`, `2ep`, or `5%` of a round.
            Later rounds start there and train for the rest of a round.
        rewind: `weights`: every round starts from the rewind point; `learning_rate`: from the last round's
            trained weights, with the schedule rewound; `nothing`: from the trained weights, at the learning rate
            that round 0 ended with, held constant (fine-tuning).
        pruning: which weights to prune.
        controls: networks to compare the ticket with, in the same fit, on the same batches: `random_reinit`
            (the ticket's mask, fresh weights), `random_mask` (the rewind point's weights, the ticket's mask shuffled
            within each layer), `pruned_only` (the last trained weights times the new mask, not trained).
        control_rounds: the rounds with controls; by default every round but the dense one.
        control_replicates: number of random_reinit and random_mask networks per round, each drawn anew.
        data_order: `fresh`: a new order of the data each round; `same`: round 0's order in every round.
        tickets: a ticket file, or a folder of them, to train instead of finding new tickets.
        transfer: what to take over from `tickets`: `mask_and_weights`; `mask_and_sign` (the weights' signs, with newly
            drawn magnitudes); or only the `mask` (newly drawn weights).
        on_mismatch: what to do with a layer of `tickets` whose shape differs (other images, other classes): `refuse`
            it, or `reinitialise` it and keep all its weights.
        prunable: a function from a module to its prunable weights by name.
        score: the metric by which networks are compared, e.g. `Score("val_f1")` or `Score("val_mae", mode="min")`; by
            default accuracy, or the loss of a module that logs no accuracy.
        metrics: the module's names for `train_loss`, `val_loss`, `val_acc`, `test_loss` and `test_acc`, if it logs
            them under other names, e.g. `{"val_loss": "valid/ce"}`.
        evaluate_test: also evaluate the test data at each validation (never used to select anything).
        keep: `best`: also keep each network's weights at its best validation score, as ticket files in best/.
        checkpoint_every_n_train_steps: also save checkpoints/last.ckpt every n optimizer steps, not only at the start
            of an epoch; for epochs too long to lose to a kill.
        seed: the seed for data order, dropout and controls; the default is that of `seed_everything`.
        run_dir: the folder for results.csv, layers.csv, tickets/ and checkpoints/; by default the folder of the
            TensorBoardLogger or CSVLogger, or else the next number in runs/ below the trainer's `default_root_dir`.
        reinit: returns a fresh module, or the network that the module holds, whenever weights are drawn anew
            (`random_reinit`, `transfer`). By default the module is rebuilt if its arguments are known, and otherwise
            reset layer by layer, provided this gives the distribution of its weights at the start of the fit.
        engine: `dense`, bit for bit what plain PyTorch gives; or `sparse`: only survivors exist, so that a step costs
            what is left of a layer wherever that is faster on this machine (a CPU). More settings: `Engine`.

    Attributes:
        plan: the networks, in training order.

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
        score: dict[str, Any] | Score | str | None = None,
        metrics: dict[str, str] | None = None,
        evaluate_test: bool = True,
        keep: str | None = None,
        checkpoint_every_n_train_steps: int | None = None,
        seed: int | None = None,
        run_dir: str | os.PathLike[str] | None = None,
        reinit: Callable[[], nn.Module] | None = None,
        engine: dict[str, Any] | Engine | str = "dense",
    ) -> None:
        self.train_for = plan.Length.parse(train_for, "lottery.train_for", ("it", "ep"))
        self.rewind_to = plan.Length.parse(rewind_to, "lottery.rewind_to", ("it", "ep", "%"))
        plan.check_lengths(self.train_for, self.rewind_to)
        settings.check_choices(rewind, data_order)
        settings.check_interval(checkpoint_every_n_train_steps)
        self.given = None if tickets is None else GivenTickets(Path(tickets), transfer, on_mismatch)
        if self.given is None:
            settings.check_transfer(transfer, on_mismatch)
            plan.check_initialisation(pruning, rewind, controls)
        all_rounds = plan.planned_rounds(rounds, pruning) if self.given is None else list(self.given.files)
        self.plan = plan.plan_networks(all_rounds, controls, control_rounds, control_replicates, found=tickets is None)
        self.rewind, self.pruning, self.data_order = rewind, pruning, data_order
        self.controls, self.control_replicates = list(controls), control_replicates
        self.control_rounds = None if control_rounds is None else list(control_rounds)
        self.prunable, self.reinit = prunable, reinit
        self.engine, self.score = Engine.of(engine), settings.as_score(score)
        self.recorded = Metrics(self.score, metrics or {})
        self.metrics = self.recorded.names
        check_keep(keep)
        self.evaluate_test, self.keep = evaluate_test, keep
        self.checkpoint_every_n_train_steps = checkpoint_every_n_train_steps
        self.given_seed, self.given_run_dir = seed, run_dir
        self.folder_is_locked = False  # the command line locks it before the fit and sets this
        self.leaves_apart: Callable[[], bool] | None = None  # a sweep sets this: whether controls are trained apart now
        refusals.name_mixed_packages()
        self._address = processes.await_home(self)
        self._fitting, self._rehearsal = False, Rehearsal(self)
        self._progress = Progress()
        self._experiment: Experiment | None = None

    # ------------------------------------------------------------------------ a fit, in its order

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse unsupported setups, and make `configure_optimizers` see one round as the length of training."""
        sub_runs.leave_sub_run(trainer)
        self._fitting = False
        if stage != "fit":
            return
        threads.enter()
        self._fitting = True
        self._progress, self._experiment = Progress(), None  # one callback may serve several fits
        self._length = fit.length(trainer)
        self._fresh = restart.FreshFit(trainer, pl_module)
        self._rehearsal.begin(trainer)
        refusals.refuse_what_cannot_work(trainer, pl_module)
        fit.call_first_and_last(trainer, self.between_epochs, Watch(self._fresh), self)
        fit.show_length(trainer, fit.ENDLESS)
        lengths.show_round(trainer, epochs=self.train_for.epochs, steps=self.train_for.own_steps)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Copy θ₀, now that DDP has made it equal on all ranks, and everything else that a new network starts with."""
        check_state(pl_module)
        lengths.refuse_no_optimizer(trainer)
        self._fresh.capture(trainer, lambda: self.prunable(pl_module))
        self._experiment = Experiment(self, trainer, self._progress, self._fresh, self._length)
        self._experiment.take_initial_weights()
        processes.bring_home(trainer, self._address, self._progress.outcome)
        evaluation.guard_validation(trainer, self._experiment.after_validation)
        self._experiment.claim_folder()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Convert lengths to steps, now that the length of an epoch is known, and resume a network in training."""
        processes.end_on_sigterm(trainer)
        self.experiment.settle_lengths()
        self.experiment.rehearse_or_resume()
        fast_step.install(trainer, self.experiment.engine.fused_step)
        if self.checkpoint_every_n_train_steps or fit.has_time_limit(trainer):
            resume.after_each_batch(trainer, self.experiment.checkpoint_inside_epoch)

    def between_epochs(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Between two epochs, with nothing of the last pending, end a network and start the next.

        After the last network, or when time is up, end the fit by the `StopIteration` that Lightning's loop catches.
        """
        experiment, progress = self.experiment, self._progress
        time_is_up = fit.time_is_up(trainer)
        if progress.begun:
            progress.stopped |= trainer.should_stop and not time_is_up
            trainer.should_stop &= time_is_up
            experiment.after_epoch()
            if experiment.network_is_over:
                experiment.finish_network()
        while not progress.begun and not experiment.is_over:
            experiment.begin_network()
        if experiment.is_over:
            experiment.leave_last_ticket()
        progress.epoch_start = fit.steps_done(trainer)
        experiment.save_checkpoint()
        if time_is_up or experiment.is_over:
            raise StopIteration
        experiment.enter_epoch()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Save the rewind point when its step is done, and treat a request to stop as the end of this network."""
        self.experiment.after_batch(outputs, batch)
        self.experiment.take_stop()
        if fit.time_is_up(trainer):
            fit.leave_out_validation(trainer)

    def on_validation_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int, *_: Any) -> None:
        """Check that the network to be scored is the ticket, whatever earlier hooks have written."""
        if self._fitting and not trainer.sanity_checking and batch_idx == 0:
            self.experiment.check_pruned()

    def on_validation_batch_end(self, trainer: L.Trainer, module: Any, _: Any, batch: Any, i: int, *more: Any) -> None:
        """Check again, after the module's own hooks, which are called last."""
        self.on_validation_batch_start(trainer, module, batch, i)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Add a point to the learning curve, test data included."""
        if self._fitting and not trainer.sanity_checking:
            self.experiment.record()
            self.experiment.take_stop()

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Raise an error if there were no data to train on."""
        lengths.refuse_no_data(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Save everything when SIGTERM ends the job and Lightning stops between two batches.

        Several processes may not stop at the same batch; they resume from the last checkpoint.
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
        """Undo whatever the fit has set up so far."""
        if not self._fitting:
            return
        threads.leave()
        fit.call_as_before(trainer)
        sub_runs.name_metrics_as_they_come(trainer)
        self._fresh.release()
        lengths.show_fit(trainer)
        fit.show_length(trainer, self._length)
        evaluation.unguard_validation(trainer)
        resume.let_go(trainer)
        fast_step.remove(trainer)
        if self._experiment is not None:
            self._experiment.close()
        self._rehearsal.end()

    # ------------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Record in the lottery's own checkpoints where a resumed fit starts."""
        if self._progress.moment is not None:
            fit.settle_place(checkpoint, inside_epoch=self._progress.moment[0]["inside_epoch"])

    def state_dict(self) -> dict[str, Any]:
        """Return tensors, numbers and text only, so that checkpoints load with `weights_only`."""
        if self._progress.moment is not None:
            self._progress.fresh = self._fresh.state_dict()
        if self._fitting and self._experiment is not None:
            self._progress.recorder = self._experiment.recorder.state_dict()
        return self._progress.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the progress from a checkpoint; commands other than `fit` use only its weights.

        Raises:
            SettingError: another version saved the state, or it was saved where a fit cannot be resumed.
        """
        if self._fitting:
            self._progress = Progress.from_state_dict(state_dict)
            assert self._progress.fresh is not None
            self._fresh.load_state_dict(self._progress.fresh)

    def receive(self, outcome: dict[str, Any]) -> None:
        """Take over the outcome of a fit in processes that Lightning started (ddp_spawn, ddp_fork)."""
        self._progress = Progress.from_state_dict(outcome)
        self._progress.moment = None

    # ------------------------------------------------------------------------ public properties

    @property
    def experiment(self) -> Experiment:
        """The experiment of the current fit, or of the last one."""
        assert self._experiment is not None, "no fit has started"
        return self._experiment

    @property
    def _lineage(self) -> Lineage:
        """The state that the rounds so far pass to the next networks."""
        return self._progress.lineage

    @property
    def summary(self) -> SummaryCurves | None:
        """TensorBoard's curves over rounds, once a fit has started."""
        return self._experiment.summary if self._experiment else None

    @property
    def masks_in_force(self) -> Masks:
        """The masks of the network in training; after a fit in other processes, the last ticket's."""
        return self._experiment.masks if self._experiment else self._lineage.masks
