"""The folder that a command uses: a new one for a new run, or the folder of the run to resume."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from jsonargparse import Namespace
from lightning.fabric.utilities.rank_zero import _get_rank

from lth_lightning.errors import SettingError
from lth_lightning.runs.folder import CONFIG, RunFolder

RUN_DIR_VARIABLE = "LTH_LIGHTNING_RUN_DIR"  # passes the run's folder to the processes that DDP starts from this one


def is_first_process() -> bool:
    """Whether this is the first of a run's processes, according to torchrun, Slurm or Lightning's launcher. Works
    before a Trainer exists."""
    return _get_rank() in (None, 0) and int(os.environ.get("NODE_RANK", "0")) == 0


def wanted_run(settings: Namespace) -> Path | None:
    """The folder that the settings ask for; None for the next number.

    Raises:
        SettingError: `ckpt_path` does not name a run that can be resumed.
    """
    if int(os.environ.get("LOCAL_RANK", "0")) > 0 and RUN_DIR_VARIABLE in os.environ:
        return Path(os.environ[RUN_DIR_VARIABLE])
    if settings.ckpt_path == "last":
        return last_run(settings)
    given = Path(settings.run_dir) if settings.run_dir else None
    if settings.ckpt_path is None:
        return given
    return _run_of(Path(settings.ckpt_path), given)


def last_run(settings: Namespace) -> Path | None:
    """The run that `last` means: run_dir, the run whose own config.yaml was given, or this config's last one."""
    if settings.run_dir:
        return Path(settings.run_dir)
    config = _config(settings)
    if config is not None and config.name == CONFIG and RunFolder(config.parent).taken:
        return config.parent
    number = _last_number(numbered_runs(settings))
    return None if number is None else numbered_runs(settings) / str(number)


def numbered_runs(settings: Namespace) -> Path:
    """The folder of this experiment's numbered runs, runs/<config name>.

    For a run's own config.yaml, the name is the run's, or its parent's if the run's is a number.
    """
    config = _config(settings)
    if config is None:
        return Path("runs/run")
    run = config.resolve().parent
    own_name = run.parent.name if run.name.isdigit() else run.name
    return Path("runs") / (own_name if config.name == CONFIG else config.stem)


def _config(settings: Namespace) -> Path | None:
    return next((Path(str(path)) for path in settings.get("config") or [] if path is not None), None)


def _last_number(folder: Path) -> int | None:
    return max((int(run.name) for run in folder.glob("*") if run.name.isdigit()), default=None)


def _run_of(checkpoint: Path, run_dir: Path | None) -> Path:
    if checkpoint.suffix == ".safetensors":
        raise SettingError(
            f"ckpt_path: {checkpoint} is a ticket. Train it with --lottery.tickets {checkpoint}. To resume a run, "
            "use --ckpt_path last."
        )
    if not checkpoint.exists():
        raise SettingError(f"ckpt_path: {checkpoint} does not exist. `last` resumes the run in run_dir.")
    run = checkpoint.parent.parent
    if checkpoint.resolve() != RunFolder(run).checkpoint.resolve() or run_dir not in (None, run):
        raise SettingError(
            f"ckpt_path: {checkpoint} cannot be resumed{f' in {run_dir}' if run_dir else ''}: a run resumes only "
            "from its own checkpoints/last.ckpt. Give `last`, and the run's folder as run_dir."
        )
    return run


class Reservation:
    """A new run's folder: made and locked at once, so that no other run takes it, and removed if the run never starts.

    Args:
        path: the folder; None for the next number in `numbered`.
        numbered: the folder of numbered runs.

    Raises:
        SettingError: the folder holds a run, or cannot be written, or another process is writing to it.

    Attributes:
        path: the folder.
        lock: held until the owner of the reservation releases it.
    """

    def __init__(self, path: Path | None, numbered: Path) -> None:
        folder = path or numbered
        self._made = [folder for folder in (folder, *folder.parents) if not folder.exists()]
        try:
            self.path = path or self._next_number(numbered)
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingError(f"run_dir: cannot make the folder {folder}: {error.strerror}.") from error
        self.lock = RunFolder(self.path).lock()  # first: another run may just have started in the folder
        try:
            RunFolder(self.path).claim()
        except SettingError:
            self.lock.release()
            raise

    def _next_number(self, numbered: Path) -> Path:
        while True:
            last = _last_number(numbered)
            folder = numbered / str(0 if last is None else last + 1)
            try:
                folder.mkdir(parents=True)
            except FileExistsError:  # another run has just taken this number
                continue
            self._made.insert(0, folder)
            return folder

    def give_back(self) -> None:
        """Remove the folders made, unless the run has left something to resume from."""
        if not RunFolder(self.path).taken:
            RunFolder(self.path).remove_empty_folders()
            for folder in self._made:
                if folder == self.path:
                    shutil.rmtree(folder, ignore_errors=True)
                else:
                    with suppress(OSError):  # not empty: another run is there
                        folder.rmdir()
        self.lock.release()
