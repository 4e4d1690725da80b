"""What `train.py export` measured of a run's tickets: export.csv as a table for readers, and its figure."""

import csv
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path

from lth_lightning.report.table import Cell, Table

EXPORTED = "export.csv"
COLUMNS = (
    *("ticket", "density", "accuracy", "bytes", "dense_bytes", "batch_size", "way"),
    *("milliseconds", "dense_milliseconds", "onnx_runtime_milliseconds"),
)
ABOUT = (
    "Sizes are bytes. Times are milliseconds for a batch, beside those of the dense network. Each layer runs in the "
    "way that was measured to be the fastest. Accuracy is the compiled network's, on the test images."
)


def exported_rows(run: Path) -> list[dict[str, str]]:
    """Return the rows of a run's export.csv; none if there is none, or another version wrote it."""
    path = run / EXPORTED
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return rows if rows and {*COLUMNS} <= {*rows[0]} else []


def exported_table(rows: Sequence[Mapping[str, str]]) -> Table:
    """Return a line a ticket: density, accuracy, sizes, and for each batch size the times and speed-ups.

    Args:
        rows: as in export.csv, with the names in `COLUMNS`; a row a ticket and batch size.
    """
    sizes = list(dict.fromkeys(row["batch_size"] for row in rows))
    others = any(row["onnx_runtime_milliseconds"] for row in rows)
    headers = ["ticket", "weights", "accuracy", "size", "dense"]
    for size in sizes:
        headers += [f"ms, batch {size}", "torch, dense", "speed-up"]
        headers += ["ONNX Runtime, dense", "speed-up"] if others else []
    lines = []
    for ticket in dict.fromkeys(row["ticket"] for row in rows):
        own = {row["batch_size"]: row for row in rows if row["ticket"] == ticket}
        first = next(iter(own.values()))
        line = [ticket, _percent(first["density"]), _percent(first["accuracy"]) if first["accuracy"] else ""]
        line += [f"{int(first[key]):,}" for key in ("bytes", "dense_bytes")]
        for size in sizes:
            row = own.get(size)
            time = float(row["milliseconds"]) if row else 0.0
            line.append(f"{time:.3f}" if row else "")
            for key in ("dense_milliseconds", *(["onnx_runtime_milliseconds"] if others else [])):
                dense = row[key] if row else ""
                line += [f"{float(dense):.3f}", f"{float(dense) / time:.1f}"] if dense else ["", ""]
        lines.append([Cell(text) for text in line])
    return Table(headers, lines)


def exported_figure(run: Path) -> str:
    """Return figures/export.png as an HTML image that needs no other file; empty if there is none."""
    path = run / "figures" / "export.png"
    if not path.is_file():
        return ""
    image = b64encode(path.read_bytes()).decode()
    return f'<p><img alt="Speed, size and accuracy over density" src="data:image/png;base64,{image}"></p>'


def _percent(fraction: str) -> str:
    return f"{100 * float(fraction):.4g} %"
