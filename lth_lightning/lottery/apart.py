"""Controls trained apart from their run: in folders of their own, by other processes, and gathered at the end.

A control needs the ticket of its round and nothing else. At its turn the run leaves a checkpoint in the control's
folder, in which the control is the next network and the last, and goes on. A fit resumes it there like any run. When
all of them are trained, the run is resumed once more and takes in what they have left.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import lightning as L

from lth_lightning.errors import SettingError
from lth_lightning.files import make_folder, replace_file
from lth_lightning.lottery.plan import TrainedNetwork
from lth_lightning.runs.environment import Stretch, read_environment, write_environment
from lth_lightning.runs.folder import RunFolder
from lth_lightning.runs.rows import LayerRow, Row, network_key, read_layers, read_rows
from lth_lightning.trainer.sub_runs import copy_points, loggers_of


def missing(plan: Sequence[TrainedNetwork], rows: Sequence[Row]) -> list[TrainedNetwork]:
    """Return the networks without a row."""
    there = {network_key(row) for row in rows}
    return [network for network in plan if network_key(network) not in there]


def folder_of(run: RunFolder, network: TrainedNetwork) -> RunFolder:
    """Return the folder of a control that is trained apart."""
    return run.control(*network_key(network))


def check_trained(run: RunFolder, controls: Sequence[TrainedNetwork]) -> None:
    """Check that controls can be gathered.

    Raises:
        SettingError: one of them is not trained yet.
    """
    waiting = [folder_of(run, network) for network in controls if not folder_of(run, network).is_gatherable]
    if waiting:
        raise SettingError(
            f"ckpt_path: a sweep trains controls of {run.path} apart, and {waiting[0].path} is not done yet "
            f"({len(waiting)} of {len(controls)}). Repeat the sweep's command; or resume each in its own folder "
            "(--run_dir FOLDER --ckpt_path last), and then this run."
        )


def results(run: RunFolder, controls: Sequence[TrainedNetwork]) -> tuple[list[Row], list[LayerRow]]:
    """Read the rows of controls that were trained apart."""
    rows, layers = list[Row](), list[LayerRow]()
    for network in controls:
        folder = folder_of(run, network)
        rows += [row for row in read_rows(folder.results) if network_key(row) == network_key(network)]
        layers += [row for row in read_layers(folder.layers) if network_key(row) == network_key(network)]
    return rows, layers


def take_files(run: RunFolder, controls: Sequence[TrainedNetwork]) -> None:
    """Copy the curves and best weights of controls into the run, and record where they were trained, if elsewhere."""
    stretches = read_environment(run.environment)
    for network in controls:
        folder = folder_of(run, network)
        replace_file(run.curve(*network_key(network)), folder.curve(*network_key(network)).read_bytes())
        if (best := folder.best(*network_key(network))).is_file():
            make_folder(run.best(*network_key(network)).parent)
            replace_file(run.best(*network_key(network)), best.read_bytes())
        for there in read_environment(folder.environment)[-1:]:
            stretches = [*stretches[:-1], _joined(stretches[-1], there)] if stretches else []
    if stretches != read_environment(run.environment):
        write_environment(run.environment, stretches)


def _joined(here: Stretch, there: Stretch) -> Stretch:
    """The facts of both, where they differ joined as those of several processes."""
    facts = {
        name: value if there.facts.get(name, value) in value.split(" and ") else f"{value} and {there.facts[name]}"
        for name, value in here.facts.items()
    }
    return Stretch(here.from_round, facts)


def take_points(trainer: L.Trainer, run: RunFolder, controls: Sequence[TrainedNetwork]) -> None:
    """Copy what controls have logged for TensorBoard into the run's sub-runs."""
    loggers = loggers_of(trainer)
    if not loggers or not trainer.is_global_zero or not Path(loggers[0].log_dir).is_relative_to(run.path):
        return
    logs = Path(loggers[0].log_dir)
    sources: dict[str, list[tuple[Path, str]]] = {}
    for network in controls:
        for sub_run in sorted((folder_of(run, network).path / logs.relative_to(run.path)).glob("*/")):
            sources.setdefault(sub_run.name, []).append((sub_run, network.name))
    for name, found in sources.items():
        copy_points(found, logs / name)


def remove(run: RunFolder) -> None:
    """Remove the folders of controls, once a checkpoint of the run holds what they have left."""
    if run.controls.is_dir():
        shutil.rmtree(run.controls)
