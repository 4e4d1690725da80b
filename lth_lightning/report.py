"""`python train.py report RUN [RUN …] [--out DIR]`: tables and figures from one run or many.

Several runs are taken as repetitions of one experiment that differ by seed, and are pooled: means, with the
least and the greatest value. Percent appears only in text for persons; rows hold fractions.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from lth_lightning.conclusion import summary
from lth_lightning.errors import SettingError
from lth_lightning.files import make_folder, replace_file
from lth_lightning.results import LayerRow, Row, densities, in_order, read_layers, read_rows
from lth_lightning.tables import markdown_table, table

__all__ = ["Run", "main", "summary", "table", "write_report"]

SETTINGS = {
    "data set": "data.dataset",
    "network": "model.net",
    "training a round": "lottery.train_for",
    "rewound to": "lottery.rewind_to",
    "seed": "seed_everything",
}
"""What report.md says about a run, and where config.yaml has it."""


# ------------------------------------------------------------------------------------- runs


@dataclass(frozen=True)
class Run:
    """A run folder, read: rows in order, and those of `SETTINGS` that its config.yaml has."""

    path: Path
    rows: list[Row]
    layers: list[LayerRow]
    settings: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> "Run":
        """Read a run folder; layers.csv and config.yaml may be missing.

        Raises:
            SettingError: there is no results.csv with at least one network, or a file cannot be read.
        """
        results, layers, config = (path / name for name in ("results.csv", "layers.csv", "config.yaml"))
        if not results.is_file():
            raise SettingError(
                f"report: {path} is no run folder: it has no results.csv. Give the folder that `fit` wrote (its "
                "run_dir), where results.csv stands beside config.yaml."
            )
        rows = in_order(read_rows(results))
        if not rows:
            raise SettingError(f"report: {results} has no row yet; the first is written when round 0 ends.")
        return cls(
            path,
            rows,
            in_order(read_layers(layers)) if layers.is_file() else [],
            _settings(config) if config.is_file() else {},
        )

    @property
    def name(self) -> str:
        """The folder's name, with its parent's where it is a number only: `quickstart/3`."""
        path = self.path.resolve()
        return f"{path.parent.name}/{path.name}" if path.name.isdigit() else path.name


def _settings(config: Path) -> dict[str, str]:
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingError(f"report: cannot read {config}: {error}") from error
    found = {label: _lookup(content, key.split(".")) for label, key in SETTINGS.items()}
    return {label: str(value) for label, value in found.items() if value is not None}


def _lookup(config: Any, keys: list[str]) -> Any:
    """The value under nested keys; of an object given by `class_path` the arguments, or at the end the class's name."""
    if not keys:
        is_object = isinstance(config, dict) and "class_path" in config
        return str(config["class_path"]).rpartition(".")[2] if is_object else config
    if not isinstance(config, dict):
        return None
    return _lookup((config.get("init_args") or config).get(keys[0]), keys[1:])


def check_comparable(runs: Sequence[Run]) -> None:
    """Refuse to pool runs that did not visit the same densities in the same rounds.

    Raises:
        SettingError: names the first round that differs, and in which runs.
    """
    first = densities(runs[0].rows)
    for run in runs[1:]:
        other = densities(run.rows)
        for number in sorted(first | other):
            if first.get(number) != other.get(number):
                raise SettingError(
                    f"report: these runs are not one experiment: round {number} is {_at(first, number)} in "
                    f"{runs[0].path} and {_at(other, number)} in {run.path}. Report on each alone."
                )


def _at(density: dict[int, float], number: int) -> str:
    return f"at density {density[number]!r}" if number in density else "missing"


# ------------------------------------------------------------------------------------- report


CAPTIONS = {
    "accuracy": "Test accuracy at the end of training. Band: least to greatest of n networks.",
    "early_stop": "The step of the lowest validation loss: the lower, the sooner the network has learned.",
    "layers": "What pruning leaves of each layer of the ticket.",
}


def write_report(runs: Sequence[Run], out: Path) -> list[Path]:
    """Write report.md and figures/*.png, *.svg into `out`; figures with nothing to show are left out.

    Returns:
        The files written, report.md first.

    Raises:
        SettingError: the runs cannot be pooled, or `out` cannot be written.
    """
    from lth_lightning import figures  # matplotlib: only who draws waits for it

    check_comparable(runs)
    rows, layers = pooled(runs), [row for run in runs for row in run.layers]
    title = title_of(runs)
    drawn = {
        "accuracy": figures.accuracy_figure(rows, title),
        "early_stop": figures.early_stop_figure(rows, title),
        "layers": figures.layers_figure(layers, title),
    }
    shown = {name: figure for name, figure in drawn.items() if figure}
    contents = {"report.md": _markdown(runs, rows, list(shown)).encode()}
    for name, figure in shown.items():
        for kind in ("png", "svg"):
            contents[f"figures/{name}.{kind}"] = figures.image_bytes(figure, kind)
    make_folder(out / "figures" if shown else out)
    for name, content in contents.items():
        replace_file(out / name, content)
    return [out / name for name in contents]


def pooled(runs: Sequence[Run]) -> list[Row]:
    """The rows of all runs, in order."""
    return in_order(row for run in runs for row in run.rows)


def title_of(runs: Sequence[Run]) -> str:
    """One line that says which runs these are: `LeNet300 on MNIST, 3 runs: lenet/1, lenet/2, lenet/3`."""
    names = [run.name for run in runs]
    listed = ", ".join(names) if len(names) <= 3 else f"{names[0]} … {names[-1]}"
    which = listed if len(names) == 1 else f"{len(names)} runs: {listed}"
    what = [runs[0].settings[label] for label in ("network", "data set") if label in runs[0].settings]
    return ", ".join([" on ".join(what), which]) if what else which


def _markdown(runs: Sequence[Run], rows: Sequence[Row], figures: Sequence[str]) -> str:
    settings = {label: list(dict.fromkeys(run.settings.get(label, "?") for run in runs)) for label in SETTINGS}
    facts = [f"- {label}: {', '.join(values)}" for label, values in settings.items() if values != ["?"]]
    parts = [
        f"# {title_of(runs)}",
        "\n".join([*facts, *(f"- run folder: `{run.path}`" for run in runs)]),
        summary(rows),
        *(f"![{CAPTIONS[name]}](figures/{name}.png)\n\n*{CAPTIONS[name]}*" for name in figures),
        "Test accuracies are those at the end of training, the best of each round in bold. Where several networks "
        "were pooled, the range from least to greatest stands in brackets.",
        markdown_table(rows),
    ]
    return "\n\n".join(parts) + "\n"


# ------------------------------------------------------------------------------------- command


def main(args: Sequence[str]) -> int:
    """`train.py report`: print table and conclusion, write the report, say where it lies."""
    given = _parser().parse_args(args)
    runs = _read_all(given.runs)
    out = given.out or (runs[0].path if len(runs) == 1 else runs[0].path.parent / "report")
    written = write_report(runs, out)
    console = Console(highlight=False, markup=False)
    console.print(table(pooled(runs), title_of(runs)))
    console.print(f"\n{summary(pooled(runs))}")
    console.print(f"\nReport: {written[0]}\nFigures: {out / 'figures'}", soft_wrap=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("train.py report", description="Tables and figures from one run or many.")
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", type=Path, help="run folder; several are pooled, as repetitions by seed"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        help="where report.md and figures/ go; default: the RUN, or with several the folder 'report' beside the first",
    )
    return parser


def _read_all(folders: Sequence[Path]) -> list[Run]:
    """Read each run once; an earlier report among several folders (`report runs/lenet/*`) is passed over."""
    if len(folders) > 1:
        folders = [folder for folder in folders if not _only_report(folder)] or folders
    twice = next((folder for folder in folders if [f.resolve() for f in folders].count(folder.resolve()) > 1), None)
    if twice:
        raise SettingError(f"report: {twice} was given twice; a run pooled with itself would feign a repetition.")
    return [Run.read(folder) for folder in folders]


def _only_report(folder: Path) -> bool:
    return (folder / "report.md").is_file() and not (folder / "results.csv").is_file()
