"""Runs read back, in Python and in a notebook: results as DataFrames, figures, reports.

`RunFiles` is what a run's files hold, as rows. `Run` and `Runs` show the same to a person who works with pandas.
"""

import glob
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from lth_lightning.cards import card, table
from lth_lightning.errors import SettingError, unknown_name
from lth_lightning.report.aggregate import PooledRuns
from lth_lightning.report.charts import charts_of
from lth_lightning.report.command import report_folder
from lth_lightning.report.comparable import all_settings, check_comparable
from lth_lightning.report.comparison import full_names
from lth_lightning.report.conclusion import summary
from lth_lightning.report.tables import results_table
from lth_lightning.report.writer import CAPTIONS, figures_of, write_report
from lth_lightning.runs.folder import RESULTS
from lth_lightning.runs.rows import CurveRow, LayerRow, Record, Row, columns_of, types_of
from lth_lightning.runs.run import RunFiles, lookup, title_of
from lth_lightning.runs.score import Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

DTYPES = {int: "int64", float: "float64", str: "str", int | None: "Int64", float | None: "float64"}
"""The types of columns. A float that is not known is NaN, an integer that is not known `<NA>`."""
SCORE = "score"
"""The name of the figure of the score over density, whatever the score is."""


class _ReadBack:
    """What one run and several have in common; `files` are theirs."""

    def __init__(self, files: Sequence[RunFiles], *, named: bool) -> None:
        self._files, self._named = list(files), named

    @cached_property
    def results(self) -> "DataFrame":
        """A row a trained network, with the columns of results.csv; accuracies and densities are fractions.

        A score of your own has its columns, e.g. `test_f1`. Of several runs, the first column is the run's name.
        """
        return self._frame(Row, lambda run: run.rows)

    @cached_property
    def layers(self) -> "DataFrame":
        """A row a trained network and prunable layer, with the columns of layers.csv."""
        return self._frame(LayerRow, lambda run: run.layers)

    @cached_property
    def curves(self) -> "DataFrame":
        """A row an evaluation: the learning curves of all networks, with the columns of the files in curves/."""
        return self._frame(CurveRow, lambda run: run.curves)

    def results_with(self, *settings: str) -> "DataFrame":
        """`results` with a column a setting, named as it is given: `results_with("model.optimizer.lr", "dataset")`.

        Args:
            settings: names as in config.yaml, or their last parts where unambiguous. `tickets.KEY` is a setting of the
                run that found the tickets. An object (an optimizer, a network) is shown by its class's name.

        Raises:
            SettingError: no run has such a setting, a name is ambiguous, or a run has no config.yaml, as runs in
                Python have none.
        """
        found, names = self.results.copy(), full_names(settings, self._files, asked_by="results_with")
        for place, (column, name) in enumerate(zip(settings, names, strict=True), start=int(self._named)):
            values = [_setting(lookup(all_settings(run, self._files), name)) for run in self._files]
            per_row = [value for run, value in zip(self._files, values, strict=True) for _ in run.rows]
            found.insert(place, column, per_row)
        return found

    def figure(self, name: str = SCORE, densities: Sequence[float] | None = None) -> "Figure":
        """Draw a figure of the report; a notebook shows it inline. Several runs are pooled as repetitions.

        Args:
            name: `score` (the score over density), `early_stop`, `curves`, `layers` or `looks`. For accuracy, `score`
                and `accuracy` are the same.
            densities: the densities whose learning curves `curves` shows, as fractions.

        Raises:
            SettingError: the figure is unknown or has no data here, or the runs cannot be pooled.
        """
        check_comparable(self._files)
        experiment = PooledRuns(self._files)
        charts = charts_of(experiment, densities)
        wanted = experiment.reported.file if name == SCORE else name
        drawn = figures_of(experiment, {wanted: charts[wanted]} if wanted in charts else {})  # and `looks`
        if wanted not in drawn:
            known = {SCORE, *charts, *drawn}
            if name in CAPTIONS:
                raise SettingError(f"figure: no data for {name!r} here; choose from {', '.join(sorted(known))}.")
            raise unknown_name("figure", name, known)
        return _inline(drawn[wanted])

    def report(self, out: str | os.PathLike[str] | None = None, densities: Sequence[float] | None = None) -> Path:
        """Write the report of the run, or of several as repetitions of one experiment, as `train.py report` does.

        Args:
            out: the folder; by default the run's, or for several runs the folder `report` beside the first.
            densities: the densities whose learning curves are shown, as fractions.

        Returns:
            The path of report.html.

        Raises:
            SettingError: the runs cannot be pooled, or the folder cannot be written.
        """
        written = write_report(self._files, report_folder(self._files) if out is None else Path(out), densities)
        return next(path for path in written if path.name == "report.html")

    def _frame(self, kind: type[Record], rows_of: Callable[[RunFiles], Sequence[Record]]) -> "DataFrame":
        import pandas as pd  # half a second, which scripts that read no results need not wait for

        frames = [_frame(kind, rows_of(run), run.score) for run in self._files]
        if not self._named:
            return frames[0]
        for name, frame in zip(self._names(), frames, strict=True):
            frame.insert(0, "run", name)
        return pd.concat(frames, ignore_index=True)

    def _names(self) -> list[str]:
        """The runs' names, or their paths where two have the same name."""
        names = [run.name for run in self._files]
        return names if len(set(names)) == len(names) else [str(run.path) for run in self._files]


class Run(_ReadBack):
    """A run, read back from its folder.

    Args:
        files: what its files hold.

    Attributes:
        path: the run's folder.
        name: its name, preceded by the folder's above if it is only a number: `lenet/0`.
        settings: the content of its config.yaml; empty for a run in Python.
        score: the score that its networks are compared by.

    Example:
        >>> run = Run.read("runs/lenet/0")  # doctest: +SKIP
        >>> run.results.query("variant == 'ticket'").plot("density", "test_acc", logx=True)  # doctest: +SKIP
        >>> run.figure("accuracy")  # doctest: +SKIP
    """

    def __init__(self, files: RunFiles) -> None:
        super().__init__([files], named=False)
        self.path, self.name, self.settings, self.score = files.path, files.name, files.settings, files.score

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Run":
        """Read a run's folder; all files but results.csv may be missing.

        Raises:
            SettingError: the folder has no results.csv, or a file cannot be read.
        """
        return cls(RunFiles.read(Path(path)))

    def __fspath__(self) -> str:
        """Its folder, so that `best_ticket(run)` works, and whatever else takes a path."""
        return str(self.path)

    def __repr__(self) -> str:
        rounds = len({row.round for row in self._files[0].rows})
        return f"Run({title_of(self._files)}: {rounds} rounds, {len(self._files[0].rows)} networks)"

    def _repr_html_(self) -> str:
        experiment = PooledRuns(self._files)
        numbers = results_table(experiment)
        lines = [[cell.text for cell in line] for line in numbers.lines]
        return card(title_of(self._files), {}, summary(experiment), table(numbers.headers, lines))


class Runs(_ReadBack, Sequence[Run]):
    """Several runs, as a sequence of `Run`; DataFrames name the run in their first column."""

    def __init__(self, files: Sequence[RunFiles]) -> None:
        super().__init__(files, named=True)

    @overload
    def __getitem__(self, place: int) -> Run: ...
    @overload
    def __getitem__(self, place: slice) -> "Runs": ...
    def __getitem__(self, place: int | slice) -> "Run | Runs":
        return Runs(self._files[place]) if isinstance(place, slice) else Run(self._files[place])

    def __len__(self) -> int:
        return len(self._files)

    def __repr__(self) -> str:
        first, more = ", ".join(self._names()[:3]), " …" if len(self) > 3 else ""
        return f"Runs({len(self)}: {first}{more})"

    def _repr_html_(self) -> str:
        facts = list(dict.fromkeys(label for run in self._files for label in run.facts))
        lines = [
            [name, *(run.facts.get(label, "") for label in facts), str(len(run.rows))]
            for name, run in zip(self._names(), self._files, strict=True)
        ]
        return card(f"{len(self)} runs", {}, table(["run", *facts, "networks"], lines))


def read_runs(*patterns: str | os.PathLike[str]) -> Runs:
    """Read all runs whose folders match, e.g. `read_runs("runs/*/*")`. Other folders and files are skipped.

    Args:
        patterns: folders, with `*`, `?`, `[…]` and `**` as in a shell.

    Raises:
        SettingError: no folder that matches holds a run's results, or a run cannot be read.
    """
    paths = [path for pattern in patterns for path in _matching(os.fspath(pattern))]
    folders = {path.resolve(): path for path in paths if (path / RESULTS).is_file()}
    if not folders:
        given = ", ".join(os.fspath(pattern) for pattern in patterns) or "nothing"
        raise SettingError(
            f"read_runs: no run matches {given}. A run's folder holds {RESULTS}; give folders (runs/lenet/0) or a "
            "pattern of folders (runs/*/*)."
        )
    return Runs([RunFiles.read(path) for path in folders.values()])


def _matching(pattern: str) -> Iterator[Path]:
    """The paths that match, `lenet/2` before `lenet/10`."""

    def in_numbers(path: str) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path)]

    return map(Path, sorted(glob.glob(pattern, recursive=True), key=in_numbers))


def _frame(kind: type[Record], rows: Sequence[Record], score: Score) -> "DataFrame":
    import pandas as pd

    columns, types = columns_of(kind, score.key if score.is_own else None), types_of(kind)
    return pd.DataFrame(
        {
            column: pd.Series([getattr(row, name) for row in rows], dtype=DTYPES[types[name]])
            for name, column in columns.items()
        }
    )


def _setting(value: Any) -> Any:
    """A setting as a cell of a column: the class's name for an object, text for a list."""
    if isinstance(value, dict) and "class_path" in value:
        return str(value["class_path"]).rpartition(".")[2]
    return str(value) if isinstance(value, dict | list) else value


def _inline(figure: "Figure") -> "Figure":
    """The figure, shown by notebooks as a picture: they do so by themselves only once pyplot has been imported."""
    from matplotlib.figure import Figure

    class InlineFigure(Figure):
        def _repr_png_(self) -> bytes:
            out = io.BytesIO()
            self.savefig(out, format="png", dpi=100)
            return out.getvalue()

    figure.__class__ = InlineFigure
    return figure
