"""Experiment: one fit of a lottery, which starts each network, prunes, rewinds and records the results."""

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info

from lth_lightning.errors import RevivedError, SettingError
from lth_lightning.files import content_hash, make_folder
from lth_lightning.lottery import apart, best_weights, checkpoint
from lth_lightning.lottery.checkpoint import Progress
from lth_lightning.lottery.claim import claim
from lth_lightning.lottery.divergence import LossWatch
from lth_lightning.lottery.engine import NetworkEngine
from lth_lightning.lottery.epochs import check_order, enter_epoch, loads_anew, pruning_batches, seeks
from lth_lightning.lottery.plan import TrainedNetwork, steps_of_lengths
from lth_lightning.lottery.provenance import note_environment, ticket_info
from lth_lightning.lottery.recorder import Recorder, layer_rows
from lth_lightning.lottery.rewinding import Lineage
from lth_lightning.lottery.settings import in_words
from lth_lightning.lottery.summary_curves import SummaryCurves
from lth_lightning.pruning.held_mask import held_by
from lth_lightning.pruning.mask_hooks import MaskHooks
from lth_lightning.pruning.masks import Masks, dense_masks, density, share_of_zeros
from lth_lightning.pruning.prunable import check_norms, chosen, copies_of, left_out, prunable_weights
from lth_lightning.pruning.state import copied, fingerprint, full_state, load_state
from lth_lightning.runs.lock import FolderLock
from lth_lightning.runs.rows import RANDOM_CONTROLS, Row, network_key, write_curve, write_layers, write_rows
from lth_lightning.runs.score import write_score
from lth_lightning.tickets.packed_file import prunable_share
from lth_lightning.tickets.ticket import Ticket, check_storable
from lth_lightning.trainer import (
    bars,
    fit,
    lengths,
    processes,
    refusals,
    restart,
    resume,
    schedules,
    sub_runs,
    trainables,
)

if TYPE_CHECKING:
    from lth_lightning.lottery.callback import LotteryTicket

log = logging.getLogger(__name__)


class Experiment:
    """Trains the networks of one fit, one after the other.

    Args:
        lottery: the callback, with the settings; its hooks call this object.
        trainer: a Trainer whose fit has started, with new optimizers.
        progress: the progress so far: none, or a checkpoint's.
        fresh: what every network starts with besides its weights.
        asked: the length of the fit as the user set it, for its minimum.

    Attributes:
        masks: the masks of the network in training.
        recorder: the evaluations of that network.
        folder: the run's folder.
        summary: TensorBoard's curves over rounds.
        round_steps: optimizer steps per round.
    """

    def __init__(
        self,
        lottery: "LotteryTicket",
        trainer: L.Trainer,
        progress: Progress,
        fresh: restart.FreshFit,
        asked: fit.FitLength,
    ) -> None:
        self.lottery, self.trainer, self.progress, self.fresh = lottery, trainer, progress, fresh
        self._asked = asked
        self.module = trainer.lightning_module
        usual = lottery.prunable is prunable_weights
        rule = lottery.given.weights if lottery.given and usual else lottery.prunable
        self._stepped = trainables.stepped(trainer)
        self.weights = chosen(self.module, rule, self._stepped)
        self.share = {
            "parameters": sum(weight.numel() for weight in self.module.parameters()),
            "left_out": left_out(self.module, self.weights, self._stepped),
        }
        self.hooks = self._mask_hooks()
        lottery.engine.check(trainer)
        self.engine = NetworkEngine(lottery.engine, trainer, progress.ways, fresh.averaged_modules)
        self.masks: Masks = {}
        self._start = ""
        self._prunable_at_start = lottery.prunable(self.module).keys()
        self.watch = LossWatch()
        self.recorder = Recorder(lottery.recorded)
        if progress.recorder is not None:
            self.recorder.load_state_dict(progress.recorder)
        self.summary: SummaryCurves | None = None
        self._lock: FolderLock | None = None
        self._told_of_run = False  # set when nothing can be refused any more
        self._accumulated = trainer.accumulate_grad_batches

    def _mask_hooks(self) -> MaskHooks:
        trainer = self.trainer
        return MaskHooks(
            self.module,
            trainer.optimizers,
            before_forward=fit.others_act(trainer, fit.BEFORE_FORWARD),
            before_step=fit.others_act(trainer, fit.WITHIN_STEP) or not fit.has_only_known_layers(self.module),
        )

    # ------------------------------------------------------------------------ before the first network

    def take_initial_weights(self) -> None:
        """Copy θ₀, and check now what would otherwise fail rounds later."""
        progress, lottery = self.progress, self.lottery
        if not progress.resumed:
            progress.seed = self.trainer.strategy.broadcast(self._wanted_seed(otherwise=torch.initial_seed()))
        seed = self._wanted_seed(otherwise=progress.seed)
        facts = self.fresh.facts | fit.least_facts(self.trainer, self._asked)
        progress.settle("settings", in_words(lottery, seed, self.weights, facts))
        self.fresh.take_resumed_start(self.trainer)
        if not progress.resumed:
            progress.lineage = Lineage(dense_masks(self.weights), progress.seed)
            self._tell_of_pruned_start()
        check_storable(full_state(self.module))
        if lottery.given is None:
            sizes = {name: weight.numel() for name, weight in self.weights.items()}
            lottery.pruning.check(sizes, lottery.plan[-1].round)
        self._take_start()
        # `hold` sets both; other modules have attributes named `masks` too.
        if getattr(self.module, "masks", None) is not None and any(map(held_by, self.module.parameters())):
            raise SettingError("the module holds a ticket's masks (`hold`), but the lottery needs a dense network.")

    def _take_start(self) -> None:
        """Take θ₀ as the rewind point, settle how weights are drawn anew, and check tickets from files against it."""
        lottery, progress = self.lottery, self.progress
        if not progress.resumed:
            self._start = fingerprint(full_state(self.module))
            progress.lineage.copies = copies_of(self.module, self.weights, self._stepped)
            if lottery.rewind_to.amount == 0:
                progress.lineage.set_rewind_point(self.module, step=0)
        if lottery.given is not None:
            self._check_given_tickets()
        if any(network.variant == "random_reinit" for network in lottery.plan):
            progress.lineage.settle_fresh_weights(self.module, lottery.reinit, "lottery.controls: random_reinit")

    def _settle_start(self) -> None:
        """Include what `on_fit_start` and `on_train_start` of the module and other callbacks have set up.

        Raises:
            SettingError: they have frozen or released weights, so other weights are prunable than before.
        """
        lottery, lineage = self.lottery, self.progress.lineage
        self.fresh.capture(self.trainer, lambda: lottery.prunable(self.module))
        if changed := sorted(lottery.prunable(self.module).keys() ^ self._prunable_at_start):
            raise SettingError(
                f"{type(self.module).__name__}: on_fit_start or on_train_start has frozen or unfrozen {changed[0]}. "
                "Which weights are prunable is fixed before. Set requires_grad in `__init__` or `configure_model`."
            )
        if fingerprint(full_state(self.module)) != self._start:
            lineage.fresh = lineage.own = None
            self._take_start()

    def _tell_of_pruned_start(self) -> None:
        """Warn if the module is already pruned, as an earlier lottery leaves it."""
        zeros = share_of_zeros(self.weights)
        if self.lottery.given is None and zeros > 0.01 and self.trainer.is_global_zero:
            log.warning(
                "round 0 does not start from a new network: %.3g %% of the module's prunable weights are already 0, as "
                "after an earlier lottery or Ticket.apply. Pass a newly built module.",
                100 * zeros,
            )

    def _check_given_tickets(self) -> None:
        given, lineage = self.lottery.given, self.progress.lineage
        assert given is not None
        if given.needs_fresh_weights and lineage.own is None:
            # Drawn anew: with the ticket's seed a network would get the very weights that the ticket was found from.
            reinit = self.lottery.reinit
            lineage.settle_fresh_weights(self.module, reinit, given.asks_for_fresh_weights)
            lineage.own = lineage.fresh_weights(self.module, reinit, "transfer")
        given.check(self.module, self.weights, self.lottery.controls, lineage.own)
        if given.reinitialised and self.trainer.is_global_zero:
            log.warning(
                "lottery.tickets: these layers have another shape here, so they are reinitialised and kept whole: %s.",
                ", ".join(given.reinitialised.values()),
            )

    def _wanted_seed(self, otherwise: int) -> int:
        given = self.lottery.given_seed
        return given if given is not None else int(os.environ.get("PL_GLOBAL_SEED", otherwise))

    def claim_folder(self) -> None:
        """Lock the run's folder for this process, and prepare to record."""
        lottery, progress = self.lottery, self.progress
        others = self.trainer.callbacks[1:-1]  # without the lottery's own, first and last
        self.recorder.attach(self.trainer, with_test=lottery.evaluate_test, others=others)
        self.folder, self._lock = claim(self.trainer, progress, lottery.given_run_dir, lottery.folder_is_locked)
        progress.folder = str(self.folder.path)
        controls = any(network.variant != "ticket" for network in lottery.plan)
        refusals.refuse_to_share(self.trainer, self.folder.checkpoint, len(lottery.plan), controls=controls)
        self.summary = SummaryCurves(self.trainer, progress.results, lottery.score)

    def settle_lengths(self) -> None:
        """Convert lengths to steps."""
        lottery = self.lottery
        lengths.refuse_overfitting(self.trainer, shuffles_anew=loads_anew(self.trainer))
        self.epochs = lengths.epochs_of(self.trainer)
        latest = lottery.given.latest_rewind_step if lottery.given else 0
        self.round_steps, self.rewind_step = steps_of_lengths(
            lottery.train_for, lottery.rewind_to, self.epochs.steps, latest
        )
        if lottery.given is None and lottery.data_order == "same":
            check_order(self.trainer, self.epochs.place(self.rewind_step).batch)
        self.progress.settle("loaders", fit.loader_facts(self.trainer))
        rewind_step = self.rewind_step if lottery.given is None else latest
        schedules.check(self.trainer, self.epochs, rewind_step, passed=lottery.given is None)

    def rehearse_or_resume(self) -> None:
        """Try a criterion for initialisation once, so that it fails before any training; in a resumed fit, open the
        network whose weights the checkpoint restored."""
        lottery, progress = self.lottery, self.progress
        if progress.resumed and self.is_over:
            self._gather()
        at_initialisation = lottery.pruning.prune_from == "initialisation" and lottery.plan[-1].round > 0
        if not progress.resumed and lottery.given is None and at_initialisation:
            lineage = Lineage(dense_masks(self.weights), progress.seed, rewind_point=full_state(self.module))
            lottery.pruning.scores(*lineage.to_prune(lottery.pruning, 1, self.module, self._batches(1)))
        if progress.resumed and not self.is_over:
            if progress.begun:
                self.masks = progress.lineage.masks_of(self.network)
                self.fresh.check_resumed(self.trainer)
            assert progress.moment is not None
            resume.restore_weights(self.trainer, progress.moment)
            self.fresh.resume_averages()
            if progress.begun:  # a control trained apart has still to begin
                self._open_network()
            resume.restore(self.trainer, progress.moment, self.enter_epoch)
        progress.moment = None

    # ------------------------------------------------------------------------ one network

    @property
    def network(self) -> TrainedNetwork:
        """The network in training, or the next one."""
        return self.lottery.plan[self.progress.position]

    @property
    def is_over(self) -> bool:
        """Whether all networks of this fit are trained, or left to be trained apart."""
        until = self.progress.until
        return self.progress.position == (len(self.lottery.plan) if until is None else until)

    def first_step(self, network: TrainedNetwork) -> int:
        """Return the step at which a network starts: the rewind point's, except in round 0, which finds it.

        For tickets from files, the step of the one in training stands in for that of later ones.
        """
        if self.lottery.given is not None:
            return self.progress.lineage.rewind_step
        return 0 if network.round == 0 else self.rewind_step

    def planned_steps(self, network: TrainedNetwork) -> int:
        """Return a network's number of optimizer steps, unless something stops it early."""
        return 0 if network.variant == "pruned_only" else self.round_steps - self.first_step(network)

    def begin_network(self) -> None:
        """Start a network from the rewind point times the mask, with everything else new; or leave it out."""
        progress, network, plan = self.progress, self.network, self.lottery.plan
        if self._is_left_apart(network):
            progress.position += 1
            return
        resume.forget(self.trainer)
        if progress.position == 0 and not progress.resumed:
            self._settle_start()
        if progress.position == 0 or plan[progress.position - 1].round != network.round:
            self._begin_round(network.round)
        self.masks = progress.lineage.masks_of(network)
        start = progress.lineage.start_of(network, self.module, self.lottery.reinit)
        load_state(self.module, progress.lineage.masked(start, self.masks))
        step = self.first_step(network)
        epoch, _ = self.epochs.place(step)
        if self.fresh.restore(self.trainer, step, epoch, self.epochs.batches_before(step)):  # new optimizer objects
            self.hooks.remove()
            self.hooks = self._mask_hooks()
        if progress.lineage.schedules is not None and step == progress.lineage.rewind_step > 0:
            schedules.load(self.trainer, progress.lineage.schedules)
        elif step:
            schedules.advance(self.trainer, self.epochs, step)
        self.recorder.start_over()
        progress.best = None
        if self.lottery.keep is not None and network.variant != "pruned_only":
            progress.best = {"start": copied(progress.lineage.masked(start, self.masks))}
        progress.stopped, progress.begun = False, True
        self._open_network()
        if network.variant == "pruned_only":
            self.finish_network()

    def _begin_round(self, round: int) -> None:
        """Set this round's masks, by pruning or from a ticket's file, and the weights that it starts from."""
        lottery, lineage = self.lottery, self.progress.lineage
        lineage.order = round if lottery.data_order == "fresh" else 0
        if lottery.given is not None:
            lineage.take(lottery.given.load(round, self.module, lineage.own))
        elif round > 0:
            lineage.prune(lottery.pruning, round, self.module, self._batches(round))
            lineage.rewind(lottery.rewind)
            # Global pruning may prune a layer's last weight and cut later layers off from the input.
            lost = [name for name, mask in lineage.masks.items() if not bool(mask.any())]
            if lost and self.trainer.is_global_zero:
                log.warning(
                    "round %d: the last weight of %s has been pruned; scope `layerwise` would keep at least one.",
                    round,
                    ", ".join(lost),
                )

    def _batches(self, round: int) -> Any:
        return pruning_batches(self.trainer, self.progress.seed, round)

    def _open_network(self) -> None:
        """Set up what a network needs and no checkpoint holds: hooks, learning rates, sub-run, announcements."""
        trainer, network, lineage = self.trainer, self.network, self.progress.lineage
        name = f"round {network.round}, {network.variant}"
        processes.compare(trainer, name, masks=self.masks, weights=full_state(self.module))
        # A resumed network has been trained already, so that its own weights need not be finite any more.
        self.watch.start_over(trainer, network, lineage.start or full_state(self.module))
        check_norms(self.module, self.masks)
        self.hooks.enforce(self.masks)
        if network.round == 0 and self.lottery.rewind == "nothing":
            self.fresh.rates.note(trainer)
        if lineage.rates is not None:
            self.fresh.rates.hold(trainer, lineage.rates)
        self._enter_sub_run(fit.steps_done(trainer), network)
        bars.say_network(trainer, f"round {network.round} {network.name}")
        if not self._told_of_run:
            self._tell_share()
        self._announce("on_network_start", network, density(self.masks))
        masked = self.engine.begin(self.masks, network.round) if self.planned_steps(network) else self.masks
        if masked is not self.masks:
            self.hooks.enforce(masked)
        if not self._told_of_run:
            note_environment(trainer, self.folder, network.round, resumed=self.progress.resumed)
            if self.lottery.score is not None and trainer.is_global_zero:
                write_score(self.folder.score, self.lottery.score)
            self._told_of_run = True

    @property
    def begins_round(self) -> bool:
        """Whether the network in training is the first of its round, and at its start."""
        at_start = fit.steps_done(self.trainer) == self.first_step(self.network)
        return at_start and all(row.round != self.network.round for row in self.progress.results)

    def _enter_sub_run(self, step: int, network: TrainedNetwork) -> None:
        """Make loggers name what this network logs from now on."""
        results, begun = self.progress.results, step != self.first_step(network)
        of_round = [row for row in results if row.round == network.round]
        place = sub_runs.Place(
            network.round,
            network.title(density(self.masks)).removesuffix(f" {network.name}"),
            network.name,
            sum(row.steps for row in results) - self.first_step(network),
            self.begins_round,
        )
        done = {TrainedNetwork(row.round, row.variant, row.replicate).name for row in of_round}
        sub_runs.enter_sub_run(self.trainer, place, step if begun else 0, done.__contains__)

    def _tell_share(self) -> None:
        """Print the share of the network that densities refer to, above our display or as Lightning prints."""
        shapes = {name: list(weight.shape) for name, weight in self.weights.items()}
        say = getattr(self.trainer.progress_bar_callback, "say", rank_zero_info)
        say(f"Prunable: {prunable_share({'shapes': shapes, **self.share})}.")

    def finish_network(self) -> None:
        """Record the network's results; keep a ticket's weights for pruning and on disk."""
        progress, network, trainer = self.progress, self.network, self.trainer
        self.watch.check(trainer)
        self.fresh.check(trainer)
        self.check_pruned()
        self.watch.check_weights(self.module, fit.steps_done(trainer))
        self.recorder.complete(trainer)
        self.fresh.settle_averages(trainer)
        engine = self.engine.end() if self.planned_steps(network) else None
        if engine is not None:
            self.hooks.enforce(self.masks)
        row = self.recorder.row(trainer, network, self.masks, self.first_step(network), engine)
        progress.results.append(row)
        progress.layers += layer_rows(network, self.masks)
        if network.variant == "ticket":
            self._keep_ticket(row)
        self._keep_best(row)
        if trainer.is_global_zero:
            own = self._write_results()
            curve = self.folder.curve(network.round, network.variant, network.replicate)
            write_curve(curve, self.recorder.curve(network), own)
        assert self.summary is not None
        self.summary.add(trainer, network.name, row)
        self._announce("on_network_end", row)
        progress.position += 1
        progress.begun = False

    def _write_results(self) -> str | None:
        """Write results.csv and layers.csv; return the name of the columns of a score of the user's own."""
        own = self.lottery.score.key if self.lottery.score and self.lottery.score.is_own else None
        write_rows(self.folder.results, self.progress.results, own)
        write_layers(self.folder.layers, self.progress.layers)
        return own

    def _keep_ticket(self, row: Row) -> None:
        lottery, lineage, trainer = self.lottery, self.progress.lineage, self.trainer
        if lineage.start is None:
            raise SettingError(
                f"lottery.rewind_to: round 0 was stopped after {row.steps} steps, before the rewind point at "
                f"step {self.rewind_step}. Rewind to an earlier step, or let rounds run longer."
            )
        processes.share_buffers(trainer)
        trained = copied(full_state(self.module))
        if trainer.is_global_zero:
            path = self.folder.ticket(row.round)
            start = lineage.masked(lineage.start, lineage.masks)
            Ticket(lineage.masks, start, trained, self._ticket_info(row)).save(path)
            self.progress.ticket_hashes[row.round] = content_hash(path)
        lineage.trained = trained
        self.fresh.keep_ticket()
        if row.round == 0 and lottery.pruning.prune_from == "dense":
            lineage.dense = trained
        if row.round == 0 and lottery.rewind == "nothing":
            lineage.rates = self.fresh.rates.last or schedules.learning_rates(trainer)

    def _keep_best(self, row: Row) -> None:
        """Write the weights of the network's best evaluation, if they are kept, as a ticket file."""
        best = self.progress.best
        if best is None or "evaluation" not in best or not self.trainer.is_global_zero:
            return
        path = self.folder.best(row.round, row.variant, row.replicate)
        info = self._ticket_info(row) | {"variant": row.variant, "replicate": row.replicate}
        make_folder(path.parent)
        info |= best_weights.facts(best, self.lottery.score)
        Ticket(self.masks, best["start"], best["weights"], info).save(path)

    def _ticket_info(self, row: Row) -> dict[str, Any]:
        """Return the facts that the ticket file of a network stores."""
        lottery, lineage = self.lottery, self.progress.lineage
        as_given = {"train_for": lottery.train_for, "rewind_to": lottery.rewind_to}
        info = ticket_info(self.trainer, self.module, row, lineage, as_given, lottery.given, lottery.score)
        return info | self.share

    def leave_last_ticket(self) -> None:
        """Leave the module as the last ticket, not as the last control."""
        if self.progress.lineage.trained is not None:
            load_state(self.module, self.progress.lineage.trained)
            self.fresh.end(self.trainer)

    def _announce(self, hook: str, *args: Any) -> None:
        for callback in self.trainer.callbacks:
            if (method := getattr(callback, hook, None)) is not None:
                method(self.trainer, self.module, *args)

    # ------------------------------------------------------------------------ controls trained apart

    def _is_left_apart(self, network: TrainedNetwork) -> bool:
        """Whether a control is trained apart. If that is decided only now, leave a checkpoint for it, in which it is
        the next network and the last."""
        progress, asked = self.progress, self.lottery.leaves_apart
        if network.variant not in RANDOM_CONTROLS or progress.until is not None:
            return False
        control = apart.folder_of(self.folder, network)
        if control.taken or asked is None or not asked():
            return control.taken
        make_folder(control.checkpoint.parent)
        whole = vars(progress).copy()
        progress.until, progress.ticket_hashes, progress.best = progress.position + 1, {}, None
        progress.lineage = replace(progress.lineage, trained=None, dense=None)
        try:
            self._save(control.checkpoint)
        finally:
            vars(progress).update(whole)
        return True

    def _gather(self) -> None:
        """Take in the controls that were trained apart, so that the run is as if it had trained them itself."""
        progress, plan, trainer = self.progress, self.lottery.plan, self.trainer
        if not (left := self.lottery.left_apart):
            return
        apart.check_trained(self.folder, left)
        rows, layers = apart.results(self.folder, left)
        place = {network_key(network): i for i, network in enumerate(plan)}
        progress.results = sorted([*progress.results, *rows], key=lambda row: place[network_key(row)])
        progress.layers = sorted([*progress.layers, *layers], key=lambda row: place[network_key(row)])
        if trainer.is_global_zero:
            apart.take_files(self.folder, left)
            self._write_results()
        for row in [row for row in progress.results if row.variant == "ticket" and row.round >= left[0].round]:
            title = TrainedNetwork(row.round, row.variant).title(row.density)
            folder = title.removesuffix(f" {row.variant}")
            sub_runs.enter_sub_run(trainer, sub_runs.Place(row.round, folder, row.variant, 0, False), 0, lambda _: True)
            self._announce("on_controls_gathered", row.round)
        sub_runs.leave_sub_run(trainer)
        apart.take_points(trainer, self.folder, left)

    # ------------------------------------------------------------------------ within a network

    def enter_epoch(self, resumed_after: int = 0) -> None:
        """Make all randomness in this epoch a function of (seed, round, epoch), and end the epoch with the round.

        Args:
            resumed_after: batches of the epoch already done; the next one follows them.
        """
        trainer, lineage, step = self.trainer, self.progress.lineage, self.progress.epoch_start
        self.hooks.settle(seen=False)  # mask what hooks at an epoch's end have written to `weight.data`
        if self.lottery.train_for.epochs is not None or self.rewind_step or self.first_step(self.network):
            lengths.check_reloaded(trainer, self.epochs)
        # Also for a resumed epoch, whose start hook a GradientAccumulationScheduler misses.
        per_step = trainer.accumulate_grad_batches = self.epochs.batches_per_step(trainer.current_epoch)
        # Only a network that starts at a rewind point starts inside an epoch.
        before = self.epochs.place(step).batch if step == self.first_step(self.network) else 0
        # The rest of an epoch in another round's order; of an order of its own, the first batches are as good.
        skipped = before if lineage.order != self.network.round and not seeks(trainer) else 0
        self.fresh.limit_epoch(trainer, before, batches=(self.round_steps - step) * per_step, skipped=skipped)
        enter_epoch(trainer, lineage.seed, lineage.order, before, resumed_after, skipped)

    def after_batch(self, outputs: Any, batch: Any) -> None:
        """Check the loss, and save the rewind point when its step is done."""
        per_step = self.epochs.batches_per_step(self.trainer.current_epoch)
        lengths.check_accumulation(self.trainer, per_step)
        # Mask what another callback has just written, also to `weight.data` where no step precedes each forward pass.
        self.hooks.settle(seen=self.module.automatic_optimization and per_step == 1)
        step, lineage = fit.steps_done(self.trainer), self.progress.lineage
        self.watch.see(outputs, batch, step)
        self.engine.note_ways()
        if lineage.rewind_point is None and step == self.rewind_step:
            lengths.check_place(self.trainer, self.epochs.place(step), step)
            processes.share_buffers(self.trainer)
            lineage.set_rewind_point(self.module, self.rewind_step)
        self._note_schedules()

    def after_epoch(self) -> None:
        """Check what the end of the epoch has logged, and note schedules that the module moves there."""
        self._note_schedules()
        if fit.steps_done(self.trainer) > self.progress.epoch_start:  # false if the fit was resumed here
            self.recorder.look_at_training(self.trainer)

    def _note_schedules(self) -> None:
        lineage = self.progress.lineage
        at_rewind_point = fit.steps_done(self.trainer) == lineage.rewind_step > 0
        if at_rewind_point and self.network.round == 0 and self.lottery.given is None:
            lineage.schedules = schedules.state(self.trainer)

    @property
    def network_is_over(self) -> bool:
        """Whether the round is done, or another callback has ended it after the fit's `min_epochs`."""
        # A pass over the data counts whatever its number of steps: `on_train_batch_start` may end it early.
        epochs = self.lottery.train_for.epochs
        passed = epochs is not None and self.trainer.current_epoch >= epochs
        ended = self.progress.stopped and fit.may_stop(self.trainer, self._asked)
        return ended or passed or fit.steps_done(self.trainer) >= self.round_steps

    def take_stop(self) -> None:
        """Handle a request to stop: a callback's (EarlyStopping) ends the network, not the experiment; `max_time`
        ends the fit, which can be resumed."""
        if fit.time_is_up(self.trainer):
            self.trainer.fit_loop.min_epochs = 0
            return
        self.progress.stopped |= self.trainer.should_stop
        self.trainer.should_stop = False
        if self.progress.stopped and fit.may_stop(self.trainer, self._asked):
            self.fresh.end_epoch_here(self.trainer)

    def check_pruned(self) -> None:
        """Check that pruned weights are 0.

        Raises:
            RevivedError: one is not 0; the results so far are on disk.
        """
        try:
            self.hooks.check()
        except RevivedError as error:
            network, step = self.network, fit.steps_done(self.trainer)
            raise RevivedError(f"round {network.round}, {network.name}, step {step}: {error}") from None

    def after_validation(self) -> None:
        """Mask what hooks have written to `weight.data` in a validation, before the next forward pass."""
        self.hooks.settle(seen=False)

    def record(self) -> None:
        """Add a point to the learning curve: the validation just logged, and the test data."""
        self.watch.check(self.trainer)
        with self.fresh.averaged_weights(self.trainer):
            self.recorder.record(self.trainer)
            if (best := self.progress.best) is not None:
                state, point = full_state(self.module), self.recorder.last
                assert point is not None
                self.progress.best = best_weights.better(best, point, state, self.lottery.score)

    def checkpoint_inside_epoch(self) -> None:
        """Save a checkpoint between two batches, if one is due or time is up."""
        if not resume.is_inside_epoch(self.trainer) or resume.gradients_wait(self.trainer):
            return
        every = self.lottery.checkpoint_every_n_train_steps
        if (every and fit.steps_done(self.trainer) % every == 0) or self.trainer.should_stop:
            self.save_checkpoint(inside_epoch=True)

    def save_checkpoint(self, inside_epoch: bool = False) -> None:
        """Save, atomically, everything that a resumed fit needs to start from here."""
        if self.progress.begun:
            self.watch.check(self.trainer)
        if self.progress.until is not None and self.is_over:
            self.folder.checkpoint.unlink(missing_ok=True)  # which shows that the control is trained
            return
        self._save(self.folder.checkpoint, inside_epoch)
        if self.is_over and self.lottery.is_whole and self.trainer.is_global_zero:
            apart.remove(self.folder)

    def _save(self, path: Path, inside_epoch: bool = False) -> None:
        self.progress.moment = resume.capture(self.trainer, inside_epoch=inside_epoch)
        try:
            checkpoint.save(self.trainer, path)
        finally:
            self.progress.moment = None  # so that another callback's checkpoint has none

    def close(self) -> None:
        """Remove the hooks and unlock the folder."""
        bars.say_epochs(self.trainer)
        if self._lock is not None:
            self._lock.release()
            self._lock = None
            self.folder.remove_empty_folders()
        self.engine.close()
        self.hooks.remove()
        self.trainer.accumulate_grad_batches = self._accumulated  # a GradientAccumulationScheduler changes it per epoch
        if self.summary is not None:
            self.summary.close()
