"""One row per trained network: results.csv, layers.csv and curves/, written and read back."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol, TypeVar, get_args, get_type_hints

from lth_lightning.errors import SettingError, unknown_name
from lth_lightning.files import replace_file

VARIANTS = ("ticket", "random_reinit", "random_mask", "pruned_only")
"""The variants of a network, in the order in which tables and figures show them."""
RANDOM_CONTROLS = ("random_reinit", "random_mask")
"""The variants that are trained to compare the ticket with; `pruned_only` is not trained."""

NetworkKey = tuple[int, str, int]
"""Round, variant and replicate: what names a network of a run."""


class OfNetwork(Protocol):
    """Anything that belongs to one network of a run."""

    @property
    def round(self) -> int:
        """0 is the dense network."""

    @property
    def variant(self) -> str:
        """One of `VARIANTS`."""

    @property
    def replicate(self) -> int:
        """Counts from 0."""


def network_key(one: OfNetwork) -> NetworkKey:
    """Return what names the network that a row, say, belongs to."""
    return one.round, one.variant, one.replicate


ENGINE = "engine"
"""The field whose column a file has only if the lottery chose between engines."""

OWN_SCORE = "_score"
"""How the fields end that hold a score of the user's own; their columns are named after it: `val_f1`."""


@dataclass(frozen=True)
class Row:
    """A trained network, a line of results.csv. `None` means not known (an empty field in the file).

    Accuracies and `density` are fractions; `early_stop_*` come from the evaluation that `early_stop` picks. `*_score`
    are the values of `LotteryTicket(score=...)`, unless that is accuracy or loss; the file has their columns
    (`val_f1`, `test_f1`, `early_stop_test_f1`) only then. `engine` is how the network was trained, `sparse` or `dense`;
    the file has it only if `LotteryTicket(engine="sparse")` chose.
    """

    round: int
    variant: str
    replicate: int
    density: float
    kept: int
    prunable: int
    steps: int
    seconds: float
    train_loss: float | None
    val_loss: float | None
    val_acc: float | None
    test_loss: float | None
    test_acc: float | None
    early_stop_step: int | None
    early_stop_val_loss: float | None
    early_stop_test_acc: float | None
    val_score: float | None = None
    test_score: float | None = None
    early_stop_test_score: float | None = None
    engine: str | None = None


@dataclass(frozen=True)
class LayerRow:
    """A prunable layer of a trained network, a line of layers.csv: `kept` of its `size` weights survive."""

    round: int
    variant: str
    replicate: int
    layer: str
    kept: int
    size: int
    density: float


@dataclass(frozen=True)
class CurveRow:
    """A point of a network's learning curve, a line of its file in curves/: an evaluation after `step` steps."""

    round: int
    variant: str
    replicate: int
    step: int
    val_loss: float | None
    val_acc: float | None
    test_loss: float | None
    test_acc: float | None
    val_score: float | None = None
    test_score: float | None = None


Record = TypeVar("Record", Row, LayerRow, CurveRow)


def in_order(rows: Iterable[Record]) -> list[Record]:
    """Sort rows by round, then by variant as in `VARIANTS`, then by replicate; ties (layers) keep their order."""
    return sorted(rows, key=lambda row: (row.round, VARIANTS.index(row.variant), row.replicate))


# ------------------------------------------------------------------------------------- files


def write_rows(path: Path, rows: Sequence[Row], score: str | None = None) -> None:
    """Replace results.csv as a whole; floats are written so that `read_rows` returns equal ones.

    `score` is the part of a column's name that stands for a score of the user's own: `f1` for `val_f1`.
    """
    _write(path, Row, rows, score)


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a results.csv.

    Raises:
        SettingError: the file cannot be read or is not a results.csv; the error names line and column.
    """
    return _read(path, Row)


def write_layers(path: Path, rows: Sequence[LayerRow]) -> None:
    """Replace layers.csv as a whole."""
    _write(path, LayerRow, rows)


def read_layers(path: Path) -> list[LayerRow]:
    """Read the rows of a layers.csv; errors as in `read_rows`."""
    return _read(path, LayerRow)


def write_curve(path: Path, rows: Sequence[CurveRow], score: str | None = None) -> None:
    """Write a network's learning curve to a file of its own, so that no file grows with the rounds; `score` as in
    `write_rows`."""
    _write(path, CurveRow, rows, score)


def read_curves(folder: Path) -> list[CurveRow]:
    """Read the learning curves in a run's curves/, by round, variant, replicate and step; empty if the folder does not
    exist. Errors as in `read_rows`."""
    return in_order(row for path in sorted(folder.glob("*.csv")) for row in _read(path, CurveRow))


def _write(path: Path, kind: type[Record], rows: Sequence[Record], score: str | None = None) -> None:
    columns = columns_of(kind, score, with_engine=any(getattr(row, ENGINE, None) is not None for row in rows))
    replace_file(path, as_csv(list(columns.values()), ([getattr(row, name) for name in columns] for row in rows)))


def columns_of(kind: type[Record], score: str | None, *, with_engine: bool = False) -> dict[str, str]:
    """The columns of a file by the names of their fields; `score` as in `write_rows`."""
    return {
        field.name: field.name.replace(OWN_SCORE, f"_{score}")
        for field in fields(kind)
        if (score is not None or not field.name.endswith(OWN_SCORE)) and (with_engine or field.name != ENGINE)
    }


def types_of(kind: type[Record]) -> dict[str, Any]:
    """The types of the fields: int, float, str, or one of the first two or None."""
    return get_type_hints(kind)


def as_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """A table as the content of a CSV file: None is an empty field, floats read back equal."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(map(_written, row) for row in rows)
    return text.getvalue().encode()


def _written(value: object) -> str:
    if value is None:
        return ""
    return repr(float(value)) if isinstance(value, float) else str(value)  # float(): NumPy's repr is not a number


def _read(path: Path, kind: type[Record]) -> list[Record]:
    try:
        reader = csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline=""), strict=True)
        header, *lines = list(reader) or [[]]
    except OSError as error:
        raise SettingError(f"cannot read {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise SettingError(f"{path} is not a CSV file: {error}") from error
    columns = columns_of(kind, _own_score(header, kind), with_engine=ENGINE in header)
    _check_header(path, header, list(columns.values()))
    return [_parsed(path, number, line, kind, list(columns)) for number, line in enumerate(lines, start=2)]


def _own_score(header: Sequence[str], kind: type[Record]) -> str | None:
    """The score of the user's own that a file has columns of; None if it has no more columns than any file."""
    more = header[len(columns_of(kind, None)) :]
    return more[0].removeprefix("val_") if more and more[0].startswith("val_") else None


def _check_header(path: Path, given: list[str], expected: list[str]) -> None:
    for number, (name, wanted) in enumerate(zip_longest(given, expected), start=1):
        if name != wanted:
            raise SettingError(
                f"{path} line 1, column {number}: expected {wanted or 'nothing'!r}, got {name or 'nothing'!r}; "
                f"the columns must be {', '.join(expected)}."
            )


def _parsed(path: Path, number: int, line: list[str], kind: type[Record], names: Sequence[str]) -> Record:
    known = types_of(kind)
    types = {name: known[name] for name in names}
    if len(line) != len(types):
        raise SettingError(f"{path} line {number}: must have {len(types)} fields, got {len(line)}.")
    values: dict[str, Any] = {}
    for text, (column, allowed) in zip(line, types.items(), strict=True):
        try:
            values[column] = _value(text, allowed)
        except ValueError as error:
            raise SettingError(f"{path} line {number}, column {column}: {text!r} is not a number.") from error
    if values["variant"] not in VARIANTS:
        raise unknown_name(f"{path} line {number}, column variant", values["variant"], VARIANTS)
    return kind(**values)


def _value(text: str, allowed: Any) -> object:
    """Convert `text` to the type of its field: int, float, str, or one of them or None."""
    if type(None) in get_args(allowed):
        return None if text == "" else get_args(allowed)[0](text)
    return allowed(text)


# ------------------------------------------------------------------------------------- what rows say


@dataclass(frozen=True)
class Evaluation:
    """Loss, accuracy and own score after `step` optimizer steps of the round, on validation and test data."""

    step: int
    val_loss: float | None
    val_acc: float | None
    test_loss: float | None
    test_acc: float | None
    val_score: float | None = None
    test_score: float | None = None


def early_stop(curve: Sequence[Evaluation]) -> Evaluation | None:
    """Find the paper's early-stopping iteration: the evaluation with the lowest validation loss.

    It is found afterwards; the network trains to the end (Frankle & Carbin 2019, section 2). On a tie the first
    evaluation counts. A NaN loss never counts.

    Returns:
        The evaluation, or None if no validation loss is known.
    """
    known = [(point.val_loss, number) for number, point in enumerate(curve) if not _unknown(point.val_loss)]
    return curve[min(known)[1]] if known else None


def _unknown(value: float | None) -> bool:
    return value is None or math.isnan(value)
