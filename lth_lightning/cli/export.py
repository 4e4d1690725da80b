"""The command `export`: what a ticket costs when it runs, and files that run it elsewhere."""

import argparse
import copy
import csv
import ctypes
import functools
import io
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from lth_lightning.data.datamodule import ImageDataModule
from lth_lightning.errors import SettingError, unknown_name
from lth_lightning.files import replace_file
from lth_lightning.report.exported import ABOUT, COLUMNS, EXPORTED, exported_rows, exported_table
from lth_lightning.report.writer import write_report
from lth_lightning.runs.run import RunFiles
from lth_lightning.sparse.c_source import c_source
from lth_lightning.sparse.compaction import compacted
from lth_lightning.sparse.compile import Choice, compile
from lth_lightning.sparse.file import save, stored
from lth_lightning.sparse.graph import Graph, names_in
from lth_lightning.sparse.native import compiled
from lth_lightning.sparse.network import load
from lth_lightning.sparse.onnx_model import onnx_file, onnx_model, onnx_runtime
from lth_lightning.sparse.simplify import simplified
from lth_lightning.sparse.timing import in_turns
from lth_lightning.sparse.trace import trace
from lth_lightning.tickets.ticket import Ticket

FORMATS = ("torch", "onnx", "c")
SUFFIX = {"torch": ".sparse.safetensors", "onnx": ".onnx", "c": ".c"}
BATCH = 1000
PATIENCE = 20.0
"""Seconds after which a C file has classified enough test images."""
EXAMPLES = """\
examples:
  python train.py export runs/lenet/0                          # a table and a figure over all rounds
  python train.py export runs/lenet/0/tickets/round_12.safetensors --to c --int8
  python train.py export runs/lenet/0/tickets/round_12.safetensors --to onnx --out models
"""


@dataclass
class Export:
    """A ticket's network for inference, and what was measured of it.

    Args:
        path: the ticket's file.
        ticket: the ticket.
        module: the network with its trained weights, from raw images to scores.
        whole: its graph.
        graph: the same, compacted.
        accuracy: on the test images, of the compiled network; None without test data.
        size, dense_size: bytes of the file for `sparse.load`, and of the dense weights.
        choices: by batch size.
        other: milliseconds of the dense network in ONNX Runtime, by batch size.
    """

    path: Path
    ticket: Ticket
    module: nn.Module
    whole: Graph
    graph: Graph
    accuracy: float | None = None
    size: int = 0
    dense_size: int = 0
    choices: dict[int, Choice] = field(default_factory=dict)
    other: dict[int, float] = field(default_factory=dict)


def parser() -> argparse.ArgumentParser:
    """The argument parser of `train.py export`."""
    made = argparse.ArgumentParser(
        "train.py export",
        usage="python train.py export RUN_OR_TICKET [RUN_OR_TICKET …] [--to torch|onnx|c] [--batch_size N[,N…]]\n"
        "       [--int8] [--out DIR] [--data_dir DIR]",
        description="Size, accuracy and speed of tickets when they run; with --to, a file that runs them elsewhere.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("paths", metavar="RUN_OR_TICKET", nargs="+", type=Path, help="a run's folder, or a ticket's file")
    made.add_argument(
        "--to",
        metavar="FORMAT",
        help="torch: a small file that lth_lightning.sparse.load opens; onnx: the dense network without dead channels; "
        "c: one C99 file and its header, without libraries. Without it, a table is printed and written to export.md",
    )
    made.add_argument("--batch_size", metavar="N[,N…]", default="1,64", help="batch sizes to measure; default 1,64")
    made.add_argument("--int8", action="store_true", help="with --to c: one byte a weight")
    made.add_argument("--out", metavar="DIR", type=Path, help="where to write; by default each ticket's run")
    made.add_argument("--data_dir", metavar="DIR", help="where the data are, if not where the run found them")
    return made


def main(args: Sequence[str]) -> int:
    """Run `train.py export` and return the exit code.

    Raises:
        SettingError: a ticket, a format or a folder cannot be used.
    """
    given = parser().parse_args(args)
    if given.to is not None and given.to not in FORMATS:
        raise unknown_name("--to", given.to, FORMATS)
    if given.int8 and given.to != "c":
        raise SettingError("--int8 is for --to c: the other formats keep the weights as they are.")
    sizes = _batch_sizes(given.batch_size)
    folders = _by_folder([path for one in given.paths for path in _tickets(one)], given.out)
    for out in folders:
        _check_folder(out)
    exports = {out: [_read(path) for path in paths] for out, paths in folders.items()}
    for out, group in exports.items():
        if given.to is not None:
            _export(group, given.to, out, given.int8, given.data_dir)
        else:
            _compare(group, sizes, out, given.data_dir)
    return 0


def _by_folder(paths: Sequence[Path], out: Path | None) -> dict[Path, list[Path]]:
    """Return the tickets by the folder where their files go: `out`, or each ticket's own run.

    Raises:
        SettingError: two tickets would write the same files.
    """
    folders: dict[Path, list[Path]] = {}
    for path in dict.fromkeys(paths):
        folders.setdefault(out or _run_of(path) or path.parent, []).append(path)
    for group in folders.values():
        names = [path.stem for path in group]
        if double := next((name for name in names if names.count(name) > 1), None):
            raise SettingError(
                f"--out: several of the tickets are called {double}, so their files would overwrite each other. Export "
                "one run at a time, or leave out --out: then each run's files lie in its own folder."
            )
    return folders


def _export(exports: Sequence[Export], kind: str, out: Path, int8: bool, data_dir: str | None) -> None:
    """Write each ticket's file, and print its size and accuracy."""
    for one in exports:
        try:
            data = _test_data(_run_of(one.path), one.ticket, data_dir)
        except SettingError as error:  # the file can be written without them
            print(f"Accuracy is not measured: {error}")
            data = None
        file, *more = _write(one, kind, out, int8)
        print(f"{file}  {file.stat().st_size:,} bytes{_accuracy_of(one, file, kind, data)}", *more, sep="\n")


def _compare(exports: Sequence[Export], sizes: Sequence[int], out: Path, data_dir: str | None) -> None:
    """Measure each ticket; print the table and write it, beside what was measured of other tickets before."""
    for one in exports:
        _measure(one, sizes, _test_data(_run_of(one.path), one.ticket, data_dir))
        print(f"{one.path.stem}: {_percent(one.ticket.density)} of the weights")
        print(*one.choices.values(), sep="\n")
    measured = _rows(exports, sizes)
    print(exported_table(measured).markdown())
    rows = _joined(exported_rows(out), measured)
    replace_file(out / "export.md", _page(exported_table(rows).markdown()).encode())
    replace_file(out / EXPORTED, _csv(rows).encode())
    if len({row["ticket"] for row in rows}) > 1:
        print(_figure(rows, out))
    print(out / "export.md")
    if (out / "report.html").is_file() and (out / "results.csv").is_file():
        write_report([RunFiles.read(out)], out)
        print(out / "report.html")


def _joined(before: Sequence[dict[str, str]], measured: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Return rows by ticket and batch size; what is measured again replaces what was."""
    rows = {(row["ticket"], int(row["batch_size"])): row for row in [*before, *measured]}
    return [rows[key] for key in sorted(rows)]


def _batch_sizes(text: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) for part in parts):
        raise SettingError(f"--batch_size: {text!r} must be whole numbers of at least 1, separated by commas: 1,64.")
    return [int(part) for part in parts]


def _tickets(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = sorted((path / "tickets").glob("round_*.safetensors"))
    found = [one for one in found if one.stem.removeprefix("round_").isdigit()]
    if not found:
        raise SettingError(f"{path} is neither a ticket's file nor a run's folder with tickets/round_….safetensors.")
    return found


def _run_of(ticket: Path) -> Path | None:
    run = ticket.parent.parent
    return run if ticket.parent.name == "tickets" and (run / "results.csv").exists() else None


def _check_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        replace_file(out / ".export", b"")
        (out / ".export").unlink()
    except OSError as error:
        raise SettingError(f"--out: {out} cannot be written ({error.strerror or error}).") from error


@torch.no_grad()
def _read(path: Path) -> Export:
    ticket = Ticket.load(path)
    module = ticket.to_module()
    whole = simplified(trace(module, ticket.example()))
    return Export(path, ticket, module, whole, compacted(copy.deepcopy(whole)))


def _write(one: Export, kind: str, out: Path, int8: bool) -> list[Path]:
    file = out / f"{one.path.stem}{SUFFIX[kind]}"
    if kind == "torch":
        save(one.graph, file)
        return [file]
    if kind == "onnx":
        replace_file(file, onnx_model(one.graph, one.path.stem).SerializeToString())
        return [file]
    header, source = c_source(one.graph, one.path.stem, int8=int8, comment=_comment(one))
    replace_file(file.with_suffix(".h"), header.encode())
    replace_file(file, source.encode())
    return [file, file.with_suffix(".h")]


def _comment(one: Export) -> str:
    info = one.ticket.info
    what = " on ".join(str(info[key]) for key in ("architecture", "data") if info.get(key))
    raw = " It takes raw pixels, as the data set stores them." if info.get("normalisation") else ""
    return f"{what or 'A network'} at {_percent(one.ticket.density)} of its weights.{raw}"


def _test_data(run: Path | None, ticket: Ticket, data_dir: str | None) -> tuple[Tensor, Tensor] | None:
    """The raw test images of a ticket's run, and their classes; None if nothing says what they are."""
    config = None if run is None else run / "config.yaml"
    if config is None or not config.exists() or not ticket.info.get("normalisation"):
        print("Accuracy is not measured: the ticket does not lie in a run whose config.yaml names its images.")
        return None
    return _images(config, data_dir)


@functools.cache  # one run's tickets share them
def _images(config: Path, data_dir: str | None) -> tuple[Tensor, Tensor]:
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))["data"]
    settings |= {"data_dir": data_dir} if data_dir else {}
    data = ImageDataModule(**settings)
    data.setup("test")
    return data.raw_test_images()


@torch.no_grad()
def _measure(one: Export, sizes: Sequence[int], data: tuple[Tensor, Tensor] | None) -> None:
    example = one.ticket.example()
    one.dense_size = sum(value.numel() * value.element_size() for value in one.module.parameters())
    one.size = len(stored(one.graph))
    dense = _onnx_runtime(one)
    for size in sizes:
        network = compile(one.module, example, size, graph=one.whole)
        assert isinstance(network.choice, Choice)
        one.choices[size] = network.choice
        if dense is not None:
            batch = example.expand(size, *example.shape[1:]).contiguous()
            one.other[size] = in_turns([partial(network, batch), partial(dense, batch)])[1]
    if data is not None:
        one.accuracy = _accuracy(lambda images: network(images).argmax(1), data)[0]


def _accuracy(
    classes: Callable[[Tensor], Tensor], data: tuple[Tensor, Tensor], patience: float = float("inf")
) -> tuple[float, int]:
    """Return the share of test images that are classified rightly, and of how many."""
    right = seen = 0
    start = time.monotonic()
    for images, targets in zip(data[0].split(BATCH), data[1].split(BATCH), strict=True):
        right, seen = right + int((classes(images.float()) == targets).sum()), seen + len(targets)
        if time.monotonic() - start > patience:
            break
    return right / seen, seen


@torch.no_grad()
def _accuracy_of(one: Export, file: Path, kind: str, data: tuple[Tensor, Tensor] | None) -> str:
    """The accuracy of a file that was written, run as others will run it; empty if it cannot be measured here."""
    if data is None:
        return ""
    try:
        if kind == "torch":
            network = load(file)
            accuracy, seen = _accuracy(lambda images: network(images).argmax(1), data)
        elif kind == "onnx":
            run = onnx_file(file)
            accuracy, seen = _accuracy(lambda images: torch.from_numpy(run(images)[0]).argmax(1), data)
        else:
            with tempfile.TemporaryDirectory() as folder:
                predict = compiled(file, Path(folder) / "network.so").predict
                scores = torch.empty([size or 1 for size in one.graph.shapes[next(names_in(one.graph.outputs))]])
                pointer = ctypes.c_void_p(scores.data_ptr())
                accuracy, seen = _accuracy(
                    lambda images: torch.tensor([predict(ctypes.c_void_p(x.data_ptr()), pointer) for x in images]),
                    data,
                    PATIENCE,
                )
    except (ImportError, SettingError) as error:
        return f"  (accuracy not measured: {error})"
    return f"  accuracy {_percent(accuracy)}{'' if seen == len(data[1]) else f' of the first {seen:,} test images'}"


def _onnx_runtime(one: Export) -> Callable[[Tensor], Any] | None:
    """The dense network in ONNX Runtime, if it is installed and can run it."""
    try:
        return onnx_runtime(one.whole)
    except (ImportError, SettingError):
        return None


def _rows(exports: Sequence[Export], sizes: Sequence[int]) -> list[dict[str, str]]:
    rows = []
    for one in exports:
        facts = [one.path.stem, one.ticket.density, "" if one.accuracy is None else one.accuracy]
        for size in sizes:
            choice = one.choices[size]
            times = [choice.milliseconds[choice.way], choice.milliseconds["dense"], one.other.get(size, "")]
            row = [*facts, one.size, one.dense_size, size, choice.way, *times]
            rows.append(dict(zip(COLUMNS, map(str, row), strict=True)))
    return rows


def _page(table: str) -> str:
    return (
        f"# Tickets that run\n\n{table}\n\n{ABOUT} Medians of turns in one process with {torch.get_num_threads()} "
        f"threads, torch {torch.__version__}.\n"
    )


def _csv(rows: Sequence[dict[str, str]]) -> str:
    text = io.StringIO()
    written = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    written.writeheader()
    written.writerows(rows)
    return text.getvalue()


def _figure(rows: Sequence[dict[str, str]], out: Path) -> Path:
    """Draw time and size over density, each as a fraction of the dense network's, with accuracy below."""
    from matplotlib.figure import Figure  # a second that the other formats do not need

    tickets = {row["ticket"]: row for row in rows}.values()
    known = [row for row in tickets if row["accuracy"]]
    figure = Figure(figsize=(7, 6 if known else 4), layout="constrained")
    axes = figure.subplots(2 if known else 1, sharex=True, squeeze=False)[:, 0]
    for size in sorted({int(row["batch_size"]) for row in rows}):
        own = [row for row in rows if int(row["batch_size"]) == size]
        gains = [float(row["dense_milliseconds"]) / float(row["milliseconds"]) for row in own]
        axes[0].plot(_densities(own), gains, marker="o", label=f"faster, batch {size}")
    smaller = [int(row["dense_bytes"]) / int(row["bytes"]) for row in tickets]
    axes[0].plot(_densities(tickets), smaller, "--", color="0.4", label="smaller file")
    axes[0].set(xscale="log", yscale="log", ylabel="times, against dense torch")
    axes[0].set_yticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    axes[0].axhline(1, color="0.7", linewidth=1)
    axes[0].invert_xaxis()
    axes[0].legend(frameon=False)
    if known:
        axes[1].plot(_densities(known), [100 * float(row["accuracy"]) for row in known], marker="o", color="C3")
        axes[1].set(ylabel="test accuracy (%)")
    axes[-1].set_xlabel("weights remaining (%)")
    axes[-1].set_xticks([100, 50, 20, 10, 5, 2, 1], ["100", "50", "20", "10", "5", "2", "1"])
    for axis in axes:
        axis.minorticks_off()
    (out / "figures").mkdir(exist_ok=True)
    image = io.BytesIO()
    figure.savefig(image, dpi=150)
    path = out / "figures" / "export.png"
    replace_file(path, image.getvalue())
    return path


def _densities(rows: Iterable[dict[str, str]]) -> list[float]:
    """Return the densities of tickets in percent."""
    return [100 * float(row["density"]) for row in rows]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.4g} %"
