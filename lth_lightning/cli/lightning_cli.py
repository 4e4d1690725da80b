"""Lightning's CLI with the lottery: the commands `fit`, `validate`, `test` and `predict` for any module and data."""

import csv
import logging
import os
import re
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console

from lth_lightning.cli.arguments import add_working_directory, completed, named_parts, program
from lth_lightning.cli.checkpoints import check_fits, read_checkpoint, state_of_callback
from lth_lightning.cli.main import answered, one_line_errors
from lth_lightning.cli.messages import LotteryParser
from lth_lightning.cli.parts import Made, part
from lth_lightning.cli.run_dir import (
    RUN_DIR_VARIABLE,
    Reservation,
    is_first_process,
    last_run,
    numbered_runs,
    wanted_run,
)
from lth_lightning.consoles import in_ci
from lth_lightning.display.tensorboard import LotteryBoard
from lth_lightning.display.terminal import LotteryProgress
from lth_lightning.errors import SettingError, WriteError
from lth_lightning.files import failure_to_write, is_failure_to_write, replace_file
from lth_lightning.lottery.callback import LotteryTicket
from lth_lightning.models.rebuild import GIVEN
from lth_lightning.report.aggregate import PooledRuns
from lth_lightning.report.conclusion import summary
from lth_lightning.report.tables import results_table
from lth_lightning.report.writer import write_report
from lth_lightning.runs.class_paths import named_as_today
from lth_lightning.runs.folder import CONFIG, RunFolder
from lth_lightning.runs.lock import FolderLock
from lth_lightning.runs.run import RunFiles, title_of
from lth_lightning.runs.settings import check_same
from lth_lightning.tickets.prediction import normalised, predictions
from lth_lightning.tickets.ticket import Ticket
from lth_lightning.trainer.memory import keep_freed_memory
from lth_lightning.trainer.sub_runs import SubRunLogger

TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": -1,  # the lottery ends the fit
    "enable_checkpointing": False,  # it writes checkpoints/last.ckpt itself
    "enable_model_summary": False,
    "enable_autolog_hparams": False,  # config.yaml holds them; TensorBoard would show an empty run
    "num_sanity_val_steps": 0,
}
HELP = {
    "fit": "Train a network, prune it, train the rest, and repeat. Most settings come from a config; flags after it "
    "override it: `--config FILE --lottery.rounds 5`.",
    "validate": "Loss and accuracy of the ticket or checkpoint that --ckpt_path names, on the validation images.",
    "test": "Loss and accuracy of the ticket or checkpoint that --ckpt_path names, on the official test images.",
    "predict": "The class of each image in --images (file, class, probability as CSV), or the class number of each "
    "official test image, one per line, for the ticket or checkpoint in --ckpt_path.",
}
EXAMPLES = """\
examples:
  {program} fit --config quickstart
  {program} fit --config quickstart --lottery.rounds 5 --run_dir runs/mine
  {program} fit --config quickstart --fast_dev_run              # a rehearsal: everything once, nothing kept
  {program} fit --config runs/mine/config.yaml --ckpt_path last     # resume after an interruption
"""
SEED_HELP = "Seed of everything random: weights, data order, controls. true: any seed; false: none set."
RUN_DIR_HELP = "The folder for all files of this run; by default runs/<config name>/<n>."
QUIET_HELP = "Print only a plain line per network, warnings, errors, and the location of the results."
CONTINUE_HELP = (
    "`last`: resume the run in run_dir, or the one whose config.yaml is given, or this config's last one; start a "
    "new run if there is none. Or the checkpoint of a run to resume (RUN/checkpoints/last.ckpt)."
)
WEIGHTS_HELP = (
    "Whose weights: a ticket's (RUN/tickets/round_03.safetensors), a checkpoint's (RUN/checkpoints/last.ckpt), or "
    "those of the `last` checkpoint of this config."
)
IMAGES_HELP = "A folder of image files, an image file, or a .npy array of raw images, to print the class of each."
RESIZE_HELP = "Resize image files that have another size than the network's images."
TENSORBOARD = "tensorboard"
# The names of the argument for pretrained weights in torchvision, timm and others.
PRETRAINED = ("weights", "pretrained", "weights_backbone", "pretrained_backbone", "checkpoint_path")


def is_quiet(settings: Namespace) -> bool:
    """Whether to print only the essentials: `--quiet`, or no progress display."""
    return bool(settings.quiet) or settings.trainer.enable_progress_bar is False


class SaveRunConfig(SaveConfigCallback):
    """Writes config.yaml, so that `fit --config RUN/config.yaml` repeats the run in a new folder.

    It also saves all settings in each checkpoint, where nobody edits them: a run is resumed only with these.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Do nothing yet: a refused run leaves no files."""

    def on_network_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """Save once, when all checks have passed."""
        if not self.already_saved and trainer.is_global_zero:
            self.save_config(trainer, pl_module, "fit")
            self._say_what_counts()
        self.already_saved = True

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write all settings except those of this run alone, which would override a `--run_dir` before `--config`."""
        config = self.config.clone()
        for name in ("run_dir", "ckpt_path", "quiet", "lottery.run_dir"):
            del config[name]
        if config["lottery.tickets"] is not None:  # a report looks for them from any working directory
            config["lottery.tickets"] = os.path.abspath(config["lottery.tickets"])
        text = self.parser.dump(config, skip_none=False)
        replace_file(Path(trainer.default_root_dir) / CONFIG, text.encode())

    def _say_what_counts(self) -> None:
        """Print which settings have no effect with tickets from files, as nobody would notice otherwise."""
        tickets, transfer = self.config["lottery.tickets"], self.config["lottery.transfer"]
        if tickets is not None and not is_quiet(self.config):
            unused = "lottery.rounds, .pruning, .rewind, .rewind_to, .data_order"
            unused += " and seed_everything" if transfer == "mask_and_weights" else ""
            print(f"The tickets of {tickets} determine what is otherwise set by {unused}.")

    def state_dict(self) -> dict[str, Any]:
        """The settings as text, so that checkpoints load with `weights_only`."""
        return {"settings": self._settings}

    @cached_property
    def _settings(self) -> str:
        return all_settings(self.parser, self.config)


def all_settings(parser: LightningArgumentParser, settings: Namespace) -> str:
    """The settings as JSON, with defaults and class paths, so that equal settings give equal text."""
    return parser.dump(settings, format="json", skip_none=False)


def dataset_argument(arg: str) -> str:
    """Read `--data.dataset.split` as `--data.dataset_args.split`: there a class's arguments are not a dict of their
    own, as they are for other classes, because a data set is named by a plain string."""
    return re.sub(r"^--data\.dataset\.(?=\w)", "--data.dataset_args.", arg)


@contextmanager
def quiet_writers(folder: Path) -> Iterator[None]:
    """Suppress tracebacks of threads that cannot write (TensorBoard's); their owners raise the error too."""

    def print_others(args: threading.ExceptHookArgs) -> None:
        if not is_failure_to_write(args.exc_value, folder):
            usual(args)

    usual, threading.excepthook = threading.excepthook, print_others
    try:
        yield
    finally:
        threading.excepthook = usual


def _missing_package(error: ModuleNotFoundError) -> SettingError:
    """Name the package that a class in the settings needs, from Python's error or from Lightning's own check."""
    needed = re.search(r"Requirement '([^']+)' not met", str(error))
    package = needed[1] if needed else error.name or str(error)
    *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
    owner = frame.f_locals.get("self")
    who = f"{type(owner).__name__} needs" if owner is not None else "a class in the settings needs"
    return SettingError(
        f"{who} the package {package}, which is not installed: pip install '{package}'. Or leave that class out."
    )


class LotteryCLI(LightningCLI):
    """The command line for modules and data of your own: parses it, runs its command, and ends the program on errors.

    A program of your own is `LotteryCLI(MyModule, MyDataModule)`, as with Lightning's CLI, and then takes the same
    commands as ours: `python my_program.py fit --lottery.rounds 10 --lottery.train_for 3ep --model.width 64`. Without
    arguments, or for what a config names by `class_path`, the classes come from the config.

    Args:
        model_class: the LightningModule; by default ImageClassifier. Its arguments are `--model.NAME`.
        datamodule_class: the LightningDataModule. Without one, a `model_class` brings its own loaders, and
            ImageClassifier takes ImageDataModule. Its arguments are `--data.NAME`.
        args: the command line without the program's name, the command first; by default sys.argv.
        trainer_defaults: defaults of the Trainer's settings.
        seed_everything_default: the default seed.

    Attributes:
        model, datamodule, trainer: what the command was run with.

    Raises:
        SystemExit: the command has failed, with one line on standard error (code 2: a setting is refused, and no files
            are left; 1: the run itself failed); or it was `report` or `--help` (code 0).
    """

    def __init__(
        self,
        model_class: Made | None = None,
        datamodule_class: Made | None = None,
        args: Sequence[str] | None = None,
        *,
        trainer_defaults: dict[str, Any] | None = None,
        seed_everything_default: bool | int = 1,
    ) -> None:
        given = list(sys.argv[1:] if args is None else args)
        with one_line_errors(), warnings.catch_warnings():
            if given[:1] == ["sweep"] and (model_class or datamodule_class):
                raise SettingError(
                    "sweep runs `python train.py`, which does not know the classes of this program. Name them in a "
                    "config (model: {class_path: …}), and use `python train.py sweep` or `lth sweep`."
                )
            if (code := answered(given)) is not None:
                raise SystemExit(code)
            # Lightning 2.6 on torch 2.15; only Lightning can fix it.
            warnings.filterwarnings(
                "ignore", ".*LeafSpec", FutureWarning, module=r"lightning\.pytorch\.utilities\._pytree$"
            )
            # Lightning warns about arguments that are not sys.argv. `main(args)` passes them on purpose.
            warnings.filterwarnings("ignore", "LightningCLI's args parameter", UserWarning)
            for name in ("lightning.pytorch", "lightning.fabric"):  # their notes on hardware would hide ours
                logging.getLogger(name).setLevel(logging.WARNING)
            keep_freed_memory()
            add_working_directory()
            self._run(model_class, datamodule_class, completed(given), trainer_defaults or {}, seed_everything_default)

    def _run(
        self,
        model_class: Made | None,
        datamodule_class: Made | None,
        args: list[str],
        trainer_defaults: dict[str, Any],
        seed: bool | int,
    ) -> None:
        self._reservation: Reservation | None = None
        self._lock: FolderLock | None = None
        self._rehearsal: tempfile.TemporaryDirectory[str] | None = None
        self._weights: Ticket | dict[str, Any] | None = None
        self._facts: dict[str, Any] = {}  # of the ticket that is used
        self._command = args[0]
        named = named_parts(args)
        self._model_part = part("model", named["model"], model_class)
        self._data_part = part("data", named["data"], datamodule_class)
        own_loaders = not self._model_part.is_ours and datamodule_class is None and not named["data"].mentioned
        self._has_data = not own_loaders
        epilog = EXAMPLES.format(program=program()) if args[0] == "fit" else None
        usage = f"{program()} {args[0]} --config FILE [--setting VALUE ...]"
        try:
            super().__init__(
                self._model_part.base,
                self._data_part.base,
                save_config_callback=SaveRunConfig,
                save_config_kwargs={"save_to_log_dir": False},
                trainer_defaults={**TRAINER_DEFAULTS, **trainer_defaults},
                seed_everything_default=seed,
                parser_class=LotteryParser,
                parser_kwargs={args[0]: {"description": HELP[args[0]], "usage": usage, "epilog": epilog}},
                auto_configure_optimizers=not self._model_part.is_ours,
                load_from_checkpoint_support=False,  # config.yaml holds the hyperparameters, not the checkpoint
                args=[dataset_argument(named_as_today(arg)) for arg in args],
            )
        except BaseException:
            if self._reservation is not None:
                self._reservation.give_back()
            raise
        finally:
            if self._lock is not None:
                self._lock.release()
            if self._rehearsal is not None:
                self._rehearsal.cleanup()

    # ------------------------------------------------------------------------ settings

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the command that runs (a parser takes 40 ms), with the Trainer's arguments that are not settings."""
        skipped = {"model", "datamodule", "dataloaders", "train_dataloaders", "val_dataloaders", "ckpt_path"}
        return {self._command: skipped}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the seed, with our help text."""
        parser.add_argument("--seed_everything", type=bool | int, default=self.seed_everything_default, help=SEED_HELP)

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add our settings first, in the help and in config.yaml, and the Trainer's many last."""
        parser.add_argument("--run_dir", type=str | None, default=None, metavar="DIR", help=RUN_DIR_HELP)
        ckpt_path_help = CONTINUE_HELP if self._command == "fit" else WEIGHTS_HELP
        parser.add_argument("--ckpt_path", type=str | None, default=None, metavar="FILE", help=ckpt_path_help)
        if self._command == "predict":
            parser.add_argument("--images", type=str | None, default=None, metavar="PATH", help=IMAGES_HELP)
            parser.add_argument("--resize", type=bool, default=False, help=RESIZE_HELP)
        parser.add_argument("--quiet", action="store_true", help=QUIET_HELP)
        parser.add_lightning_class_args(LotteryTicket, "lottery")
        for one in (self._data_part, self._model_part):
            if one is self._model_part or self._has_data:
                parser.add_lightning_class_args(one.base, one.name, subclass_mode=one.by_path)
        assert isinstance(parser, LotteryParser)
        parser.parts = [self._data_part, self._model_part]
        parser.add_lightning_class_args(L.Trainer, "trainer")
        defaults = {name: value for name, value in self.trainer_defaults.items() if name != "callbacks"}
        parser.set_defaults({f"trainer.{name}": value for name, value in defaults.items()})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link the number of classes and the image shape from the data to the model."""
        parser.set_defaults({"lottery.pruning.criterion": {"class_path": "lth_lightning.Magnitude"}})
        parser.link_arguments("run_dir", "lottery.run_dir")
        if self._model_part.is_ours and not self._model_part.by_path:
            parser.set_defaults({"model.init": "glorot_normal"})  # here a network is a class without weights
        if self._model_part.is_ours and self._data_part.is_ours:
            for name in ("num_classes", "input_shape"):
                parser.link_arguments(f"data.{name}", self._model_part.setting(name), apply_on="instantiate")

    @property
    def settings(self) -> Namespace:
        """The settings of the command that runs."""
        return self.config[self.subcommand]

    @property
    def lottery(self) -> LotteryTicket:
        """The callback, once it is made."""
        made: LotteryTicket = self._get(self.config_init, "lottery")
        return made

    @property
    def _quiet(self) -> bool:
        return is_quiet(self.settings)

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning would let settings of the checkpoint override the command line."""

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise SettingError(f"seed_everything: {error}.") from error

    # ------------------------------------------------------------------------ before anything is made

    def before_instantiate_classes(self) -> None:
        """Fit the network's size to the data, and find the run's folder or the weights to test."""
        if self._model_part.is_ours:
            self._settle_network(self._model_part.arguments(self.settings))
        if self.subcommand == "fit":
            self._settle_run_dir()
        else:
            self._find_weights()
            self._leave_out_the_lottery()

    def _settle_network(self, model: Namespace) -> None:
        """Fill in what the data determine of the network, and refuse what would silently have no effect."""
        network = model.net.get("init_args", Namespace())
        sized = [name for name in ("num_classes", "input_shape") if name in network]
        source: Any = model
        if self._data_part.is_ours:
            assert isinstance(self._data_part.made_by, type)
            source = self._data_part.made_by(**self._data_part.arguments(self.settings))
        elif sized and model.get("input_shape") is None:
            raise SettingError(
                "model.input_shape is missing: a data module of your own does not tell the size of its images. Set "
                "--model.input_shape [3,32,32] (channels, height, width) and --model.num_classes 10, say."
            )
        for name in sized:
            network[name] = getattr(source, name)
        for name in PRETRAINED:
            if network.get(name) and model.init is not None:
                raise SettingError(
                    f"model.net.{name} is {network[name]}, but model.init {model.init} would "
                    f"overwrite these weights. Keep them with --model.init null, or leave model.net.{name} out."
                )

    def _settle_run_dir(self) -> None:
        settings, first = self.settings, is_first_process()
        if settings.trainer.fast_dev_run:
            settings.ckpt_path, settings.run_dir = None, self._rehearsed_in(first)
        run_dir, resume = wanted_run(settings), settings.ckpt_path is not None
        checkpoint = RunFolder(run_dir).checkpoint if run_dir and resume else None
        if run_dir and checkpoint and checkpoint.exists():
            if first:
                self._lock = RunFolder(run_dir).lock()  # before it is read: another process may replace it
            settings.ckpt_path, self._weights = str(checkpoint), read_checkpoint(checkpoint)
            began_with = state_of_callback(self._weights, SaveRunConfig.__qualname__).get("settings")
            check_same(began_with, all_settings(self._parser(self.subcommand), settings))
        elif run_dir and resume and RunFolder(run_dir).taken:
            raise SettingError(
                f"ckpt_path: there is a run in {run_dir}, but no {checkpoint} to resume from. Start a new run in "
                "another run_dir."
            )
        else:
            settings.ckpt_path = None
            if first:
                self._reservation = Reservation(run_dir, numbered_runs(settings))
                run_dir, self._lock = self._reservation.path, self._reservation.lock
        run_dir = run_dir or numbered_runs(settings)  # torchrun's other processes get the actual one from the first
        settings.run_dir = settings.lottery.run_dir = os.environ[RUN_DIR_VARIABLE] = str(run_dir)
        if resume and first and not self._quiet:
            print(f"Resuming {run_dir}." if settings.ckpt_path else f"Nothing to resume in {run_dir}: starting.")

    def _rehearsed_in(self, first: bool) -> str | None:
        """A temporary folder for a rehearsal, which goes whatever happens."""
        if not first:
            return None
        self._rehearsal = tempfile.TemporaryDirectory(prefix="lth_rehearsal_", ignore_cleanup_errors=True)
        if not self._quiet:
            batches = max(2, int(self.settings.trainer.fast_dev_run))
            print(f"A rehearsal (fast_dev_run): two rounds of {batches} batches, with all that belongs to them.")
        return str(Path(self._rehearsal.name) / "rehearsal")

    def _find_weights(self) -> None:
        settings = self.settings
        given = settings.ckpt_path
        if given is None:
            raise SettingError(
                f"ckpt_path is missing: give the weights to {self.subcommand}, a ticket's "
                "(--ckpt_path RUN/tickets/round_03.safetensors) or a checkpoint's (RUN/checkpoints/last.ckpt)."
            )
        run = last_run(settings) if given == "last" else None
        if given == "last" and run is None:
            raise SettingError(f"ckpt_path: {numbered_runs(settings)} contains no run yet. Give a checkpoint.")
        path = RunFolder(run).checkpoint if run else Path(given)
        self._weights = Ticket.load(path) if path.suffix == ".safetensors" else read_checkpoint(path)

    def _leave_out_the_lottery(self) -> None:
        """Reset the lottery's settings: the files that lottery.tickets names may be missing."""
        lottery = self.settings.lottery
        lottery.tickets, lottery.rounds, lottery.controls, lottery.control_rounds = None, 0, [], None
        lottery.transfer, lottery.on_mismatch = "mask_and_weights", "refuse"
        self._parser(self.subcommand).callback_keys.clear()

    # ------------------------------------------------------------------------ model, data, trainer

    def instantiate_classes(self) -> None:
        """Let errors of networks and callbacks through; jsonargparse would keep only their text."""
        reasons: list[Exception] = []

        def instantiate(cls: type, *args: Any, **kwargs: Any) -> Any:
            try:
                return cls(*args, **kwargs)
            except Exception as error:
                reasons.append(error)
                raise

        for base in (torch.nn.Module, L.LightningDataModule, L.Callback, Logger):
            self.parser.add_instantiator(instantiate, base, subclasses=True)
        try:
            super().instantiate_classes()
        except (ValueError, ModuleNotFoundError) as error:
            reason = error if isinstance(error, SettingError) or not reasons else reasons[-1]
            if isinstance(reason, ModuleNotFoundError):
                raise _missing_package(reason) from reason
            if isinstance(reason, MisconfigurationException):
                raise SettingError(f"trainer.callbacks: {reason}") from reason
            raise reason from None

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Make a Trainer that writes only to the run's folder, with our progress display."""
        given = self._get(self.config_init, "trainer")
        if self._quiet:
            given.enable_model_summary = False
        if self.subcommand == "fit":
            self._equip_for_fit(given)
        else:
            given.logger = False
            if self.subcommand == "predict" or self._quiet or in_ci() or not sys.stdout.isatty():
                given.enable_progress_bar = False
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
            raise SettingError(f"trainer: {str(error).strip()}") from error
        if self._rehearsal is not None:  # a length that the experiment would refuse must not pass its rehearsal
            trainer.fit_loop.max_epochs, trainer.fit_loop.epoch_loop.max_steps = given.max_epochs, given.max_steps
        return trainer

    def _equip_for_fit(self, trainer: Namespace) -> None:
        run_dir = trainer.default_root_dir = self.settings.run_dir
        if trainer.logger in (None, True):
            trainer.logger = SubRunLogger(run_dir, name=TENSORBOARD, version="", default_hp_metric=False)
        callbacks = trainer.callbacks or []
        trainer.callbacks = list(callbacks) if isinstance(callbacks, list) else [callbacks]
        if self._quiet:
            trainer.callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, ProgressBar)]
        if trainer.fast_dev_run:  # without it alone Lightning adds this callback
            trainer.callbacks.append(SaveRunConfig(self._parser("fit"), self.settings, **self.save_config_kwargs))
        if any(isinstance(callback, ModelCheckpoint) for callback in trainer.callbacks):
            trainer.enable_checkpointing = True  # or Lightning refuses the callback
        has_display = any(isinstance(callback, ProgressBar) for callback in trainer.callbacks)
        if trainer.enable_progress_bar is not False and not has_display:
            plain = Console(highlight=False, force_terminal=False) if self._quiet else None
            trainer.callbacks.append(LotteryProgress(plain, rows_only=self._quiet))
        if not any(isinstance(callback, LotteryBoard) for callback in trainer.callbacks):
            trainer.callbacks.append(LotteryBoard(draw_at_end=False))  # `after_fit` draws

    def after_instantiate_classes(self) -> None:
        """Load the weights, or check that the network can be trained."""
        if isinstance(self._weights, Ticket):
            self._weights.apply(self.model, weights="trained")
            self._facts = self._weights.info
        elif self._weights is not None:
            check_fits(self._weights, self.model)
            if self.subcommand != "fit":
                self.model.load_state_dict(self._weights["state_dict"])
        if self.subcommand == "fit":
            self._note_network()
            self._try_optimizer()
            lottery = self.lottery
            lottery.folder_is_locked = self._lock is not None
            if lottery.reinit is None:
                lottery.reinit = self._way_to_draw_anew()
        self._weights = None

    def _note_network(self) -> None:
        """Note on the network how the config builds it, for its tickets; without weights that would be downloaded."""
        network, config = self.model, self.settings.model
        if "net" in config:
            network, config = self.model.net, config.net
        if "class_path" in config:
            arguments = config.get("init_args", Namespace()).clone().as_dict()
            kept = {name: value for name, value in arguments.items() if name not in PRETRAINED}
            setattr(network, GIVEN, {"class_path": config.class_path, "init_args": kept})

    def _way_to_draw_anew(self) -> Callable[[], torch.nn.Module] | None:
        """How to build the network again; None where the lottery knows by itself."""
        if not self._model_part.is_ours:
            return self._fresh_module
        ours = type(self.model.net).__module__.startswith("lth_lightning.")  # resets itself to the same bits
        return None if ours or self.model.init is not None else self._fresh_net

    def _fresh_module(self) -> torch.nn.Module:
        """Build the module again from its class and arguments, with new weights from the global generators."""
        parser = LightningArgumentParser(exit_on_error=False)
        parser.add_lightning_class_args(self._model_part.base, "model", subclass_mode=self._model_part.by_path)
        return parser.instantiate_classes(parser.parse_object({"model": self.settings.model})).model

    def _fresh_net(self) -> torch.nn.Module:
        """Build the network again from its class and arguments, with new weights from the global generators."""
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--net", type=torch.nn.Module)
        net = self._model_part.arguments(self.settings).net
        return parser.instantiate_classes(parser.parse_object({"net": net})).net

    def _try_optimizer(self) -> None:
        if not self._model_part.is_ours:
            return
        setting = "model.optimizer"
        try:
            optimizer = self.model.optimizer(self.model.parameters())
            setting = "model.lr_scheduler"
            if self.model.lr_scheduler is not None:
                self.model.lr_scheduler(optimizer)
        except (ValueError, TypeError, RuntimeError) as error:
            raise SettingError(f"{setting}: {error}") from error

    # ------------------------------------------------------------------------ the commands

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        return {**kwargs, "ckpt_path": self.settings.ckpt_path} if subcommand == "fit" else kwargs

    def _run_subcommand(self, subcommand: str) -> None:
        folder = Path(self.settings.run_dir or ".")
        try:
            with quiet_writers(folder):
                super()._run_subcommand(subcommand)
        except Exception as error:
            if (failure := failure_to_write(error, folder)) is not None:
                raise self._with_way_out(failure) from error
            *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
            refused = isinstance(error, (MisconfigurationException, ValueError, RuntimeError))
            if refused and frame.f_globals["__name__"].startswith("lightning."):  # one of Lightning's own settings
                raise SettingError(f"trainer: {str(error).strip()}") from error
            raise
        except SystemExit as stop:  # how Lightning ends, silently, on Ctrl+C and SIGTERM
            ended = isinstance(stop, SIGTERMException) or isinstance(stop.__context__, KeyboardInterrupt)
            if ended and subcommand == "fit" and self.trainer.is_global_zero:
                way_out = "Nothing was kept." if self._rehearsal else self._how_to_resume()
                print(f"Interrupted. {way_out}", file=sys.stderr)
            raise

    def _with_way_out(self, error: SettingError) -> SettingError:
        checkpoint = RunFolder(Path(self.settings.run_dir)).checkpoint if self.subcommand == "fit" else None
        if isinstance(error, WriteError) and checkpoint and checkpoint.exists():
            return WriteError(f"{error} {self._how_to_resume()}")
        return error

    def _how_to_resume(self) -> str:
        more = "more --trainer.max_time and " if self.settings.trainer.max_time else ""  # it covers the whole run
        return f"To resume, add {more}--ckpt_path last --run_dir {self.settings.run_dir} to the command."

    def predict(self, **kwargs: Any) -> None:
        """Print the class of each test image, in their order, or of each of the images that were given."""
        if self.settings.images is not None:
            self._classify(Path(self.settings.images))
            return
        for batch in self.trainer.predict(**kwargs) or []:
            print(*(batch.tolist() if isinstance(batch, torch.Tensor) and batch.ndim else [batch]), sep="\n")

    def _classify(self, images: Path) -> None:
        """Print file, class and probability of each image as CSV, normalised as the ticket says, or else the data."""
        facts = self._facts
        if not facts.get("normalisation"):
            data = self.datamodule
            data.prepare_data()
            data.setup("predict")
            known = {"normalisation": "normalisation", "input_shape": "input_shape", "classes": "class_names"}
            facts = {**facts, **{fact: getattr(data, name, None) for fact, name in known.items()}}
        found = predictions(normalised(self.model.eval(), facts), images, resize=self.settings.resize)
        table = csv.writer(sys.stdout, lineterminator="\n")
        table.writerow(["file", "class", "probability"])
        table.writerows([one.file, one.label, f"{one.probability:.4f}"] for one in found)

    def after_fit(self) -> None:
        """Show the results, write the report, and print where everything is."""
        if not self.trainer.is_global_zero:
            return
        run_dir = Path(self.settings.run_dir)
        lottery = self.lottery
        console = Console(highlight=False, markup=False, force_terminal=False if in_ci() else None)
        if self._rehearsal is not None:
            self._end_rehearsal(console, run_dir, len(lottery.results))
            return
        if not lottery.is_whole:
            console.print("A part of a run whose controls are trained apart. The sweep's command puts it together.")
            return
        try:
            self._report(console, run_dir)
        finally:  # a report may fail if a file was changed; the results exist all the same
            self._say_where(console, run_dir, len(lottery.results), len(lottery.plan))

    def _report(self, console: Console, run_dir: Path) -> None:
        if self.lottery.results:
            run = RunFiles.read(run_dir)
            write_report([run], run_dir)
            self._show_figures()
            if not self._quiet:
                console.print()
                experiment = PooledRuns([run])
                console.print(results_table(experiment, title_of([run]), brief=True).rich())
                console.print(summary(experiment), soft_wrap=not console.is_terminal)
                console.print()

    def _end_rehearsal(self, console: Console, run_dir: Path, networks: int) -> None:
        written = write_report([RunFiles.read(run_dir)], run_dir)
        console.print(
            f"This was a rehearsal: {networks} networks were trained on a few batches, pruned, evaluated and saved, "
            f"and a report of {len(written)} files was written. Nothing was kept, and the numbers mean nothing. Leave "
            "out fast_dev_run to run the experiment.",
            soft_wrap=True,
        )

    def _show_figures(self) -> None:
        board = next(one for one in self.trainer.callbacks if isinstance(one, LotteryBoard))  # type: ignore[attr-defined]
        board.draw()
        board.close()

    def _say_where(self, console: Console, run_dir: Path, done: int, planned: int) -> None:
        if done < planned:
            console.print(f"Stopped after {done} of {planned} networks. {self._how_to_resume()}", soft_wrap=True)
        console.print(f"Results, tickets and figures: {run_dir}", soft_wrap=True)
        if (run_dir / "report.html").is_file() and not self._quiet:
            console.print(f"Report, for a browser: {run_dir / 'report.html'}", soft_wrap=True)
        if (run_dir / TENSORBOARD).is_dir() and not self._quiet:
            console.print(f"Learning curves: tensorboard --logdir {run_dir / TENSORBOARD}", soft_wrap=True)
