"""Lightning's CLI with our module, data and callback: the commands `fit`, `validate`, `test` and `predict`."""

import os
import re
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from jsonargparse import Namespace
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from rich.console import Console

from lth_lightning import report
from lth_lightning.data import ImageDataModule
from lth_lightning.errors import SettingError, unknown_name
from lth_lightning.lottery import LotteryTicket
from lth_lightning.models import Network
from lth_lightning.module import ImageClassifier
from lth_lightning.parsing import LotteryParser
from lth_lightning.progress import LotteryProgress
from lth_lightning.pruning import Criterion
from lth_lightning.run_folder import RunFolder
from lth_lightning.ticket import Ticket

TRAINER_DEFAULTS: dict[str, Any] = {
    "max_epochs": -1,  # the lottery ends the fit
    "enable_checkpointing": False,  # it writes checkpoints/last.ckpt itself
    "enable_model_summary": False,
    "enable_autolog_hparams": False,  # config.yaml holds them; TensorBoard would show an empty run
    "num_sanity_val_steps": 0,
}
CONFIG, CURVES = "config.yaml", "tensorboard"
_RUN_DIR_VARIABLE = "LTH_LIGHTNING_RUN_DIR"


def _classes_for(key: str) -> list[str]:
    """Short names of the classes that a setting can name, for errors."""
    base = {
        "model.net": Network,
        "lottery.pruning.criterion": Criterion,
        "model.optimizer": torch.optim.Optimizer,
        "model.lr_scheduler": torch.optim.lr_scheduler.LRScheduler,
    }.get(key)
    names, todo = set(), [base] if base else []
    while todo:
        cls = todo.pop()
        todo += cls.__subclasses__()
        if cls is not base and not cls.__name__.startswith("_"):
            names.add(cls.__name__)
    return sorted(names)


class SaveRunConfig(SaveConfigCallback):
    """Writes config.yaml, so that `fit --config RUN/config.yaml` repeats the run in a folder of its own."""

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        config = self.config.clone()
        config.run_dir = config.ckpt_path = None
        config.lottery.run_dir = None
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.parser.save(config, folder / CONFIG, skip_none=False, overwrite=True, multifile=False)


class LotteryCLI(LightningCLI):
    """Lightning's `fit`, `validate`, `test` and `predict` for ImageClassifier, ImageDataModule and LotteryTicket.

    Args:
        args: the command line without the program's name; None for the process's own.
    """

    def __init__(self, args: list[str] | None = None) -> None:
        super().__init__(
            ImageClassifier,
            ImageDataModule,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            parser_class=LotteryParser,
            parser_kwargs={"description": "Find winning tickets: train, prune, rewind, repeat."},
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=1,
            auto_configure_optimizers=False,
            args=args,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add `--run_dir` and the lottery's settings; the data say how many classes there are."""
        help = "Where all of this run goes; by default runs/<config name>/<n>."
        parser.add_argument("--run_dir", type=str | None, default=None, help=help)
        parser.add_lightning_class_args(LotteryTicket, "lottery")
        parser.set_defaults({"lottery.pruning.criterion": {"class_path": "lth_lightning.pruning.Magnitude"}})
        parser.link_arguments("run_dir", "lottery.run_dir")
        for name in ("num_classes", "input_shape"):
            parser.link_arguments(f"data.{name}", f"model.{name}", apply_on="instantiate")

    @property
    def settings(self) -> Namespace:
        """The settings of the subcommand that runs."""
        return self.config[self.subcommand]

    def before_instantiate_classes(self) -> None:
        """Size the network by the data, and settle where the run goes."""
        settings = self.settings
        data = ImageDataModule(**settings.data)
        network = settings.model.net.get("init_args", Namespace())
        for name in ("num_classes", "input_shape"):
            if name in network:
                network[name] = getattr(data, name)
        self._ticket = None
        if self.subcommand == "fit":
            self._settle_run_dir(settings)
        elif str(settings.get("ckpt_path") or "").endswith(".safetensors"):
            self._ticket, settings.ckpt_path = Ticket.load(settings.ckpt_path), None

    def _settle_run_dir(self, settings: Namespace) -> None:
        resume = settings.ckpt_path == "last"
        started_by_us = int(os.environ.get("LOCAL_RANK", 0)) > 0 and os.environ.get(_RUN_DIR_VARIABLE)
        run_dir = Path(settings.run_dir or started_by_us or self._default_run_dir(resume))
        os.environ[_RUN_DIR_VARIABLE] = str(run_dir)  # for the processes that DDP starts from this one
        settings.run_dir = settings.lottery.run_dir = str(run_dir)
        folder = RunFolder(run_dir)
        if resume:
            settings.ckpt_path = str(folder.checkpoint) if folder.checkpoint.exists() else None
            if rank_zero_only.rank == 0:
                print(f"Continuing {run_dir}." if settings.ckpt_path else f"Nothing to continue in {run_dir}: starting.")
        if rank_zero_only.rank == 0 and settings.ckpt_path is None:
            folder.claim()

    def _default_run_dir(self, resume: bool) -> Path:
        """runs/<config name>/<n>, with the next free n, or to resume the last one in use."""
        given = [Path(str(path)) for path in self.settings.get("config") or []]
        name = "run"
        if given:  # a run's own config.yaml stands for the config that the run was started with
            name = given[0].resolve().parent.parent.name if given[0].name == CONFIG else given[0].stem
        parent = Path("runs") / name
        numbers = [int(folder.name) for folder in parent.glob("*") if folder.name.isdigit()]
        last = max(numbers, default=-1)
        return parent / str(last if resume and numbers else last + 1)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """A Trainer that keeps everything in the run's folder, with our progress display."""
        trainer = self._get(self.config_init, "trainer")
        if self.subcommand != "fit":
            return super().instantiate_trainer(logger=False, **kwargs)
        kwargs["default_root_dir"] = self.settings.run_dir
        if trainer.logger in (None, True):
            kwargs["logger"] = TensorBoardLogger(
                self.settings.run_dir, name=CURVES, version="", default_hp_metric=False
            )
        if trainer.enable_progress_bar is not False:
            trainer.callbacks = [*(trainer.callbacks or []), LotteryProgress()]
        return super().instantiate_trainer(**kwargs)

    def after_instantiate_classes(self) -> None:
        """Load the ticket that `--ckpt_path` names."""
        if self._ticket is not None:
            self._ticket.apply(self.model, weights="trained")

    def after_fit(self) -> None:
        """Show the results, write the report, and say where everything lies."""
        if not self.trainer.is_global_zero:
            return
        run_dir = Path(self.settings.run_dir)
        run = report.Run.read(run_dir)
        report.write_report([run], run_dir)
        if self._get(self.config_init, "trainer").enable_progress_bar is False:
            return
        console = Console(highlight=False, markup=False)
        console.print(report.table(run.rows, report.title_of([run])))
        console.print(report.summary(run.rows), soft_wrap=True)
        console.print(f"\nResults, tickets and figures: {run_dir}", soft_wrap=True)
        console.print(f"Learning curves: tensorboard --logdir {run_dir / CURVES}", soft_wrap=True)
