"""The tutorial notebook runs from its first cell to its last, shows what it promises, and is stored without outputs."""

import base64
import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import HANGS, weekly

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "configs" / "tutorial.ipynb"
PNG = b"\x89PNG"


def outputs_of(cell: nbformat.NotebookNode, kind: str) -> list[str]:
    return [output.data[kind] for output in cell.outputs if kind in output.get("data", {})]


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> list[nbformat.NotebookNode]:
    """The notebook's code cells, executed in a new kernel, as Jupyter does."""
    notebook = nbformat.read(TUTORIAL, as_version=4)
    nbformat.validate(notebook)
    folder = tmp_path_factory.mktemp("project") / "configs"
    folder.mkdir()
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", paths)
        for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):  # nobody's own settings
            patch.setenv(name, str(tmp_path_factory.mktemp("jupyter")))
        client = NotebookClient(
            notebook,
            timeout=HANGS,
            startup_timeout=HANGS,
            resources={"metadata": {"path": str(folder)}},
        )
        client.execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_stored_without_outputs() -> None:
    for cell in nbformat.read(TUTORIAL, as_version=4).cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.filterwarnings("ignore")  # as a notebook would show them
def test_its_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a few steps a network, and here: a kernel would load everything anew."""
    folder = tmp_path / "configs"
    folder.mkdir()
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    sources = [cell.source for cell in nbformat.read(TUTORIAL, as_version=4).cells if cell.cell_type == "code"]
    assert "".join(sources).count('train_for="4ep"') == 1
    for source in sources:
        exec(compile(source.replace('"4ep"', '"4it"'), str(TUTORIAL), "exec"), names)
    for lottery in (names["one_shot"], names["iterative"]):
        assert [row.round for row in lottery.results if row.variant == "ticket"] == [0, 1, 2, 3, 4]
        assert lottery.folder.path.resolve().parent == (tmp_path / "runs").resolve()
    assert len(names["accuracy"]) == 5 and len(names["says"]) == 8


@weekly
def test_each_experiment_prints_a_line_a_network(cells: list[nbformat.NotebookNode]) -> None:
    fits = [cell for cell in cells if "= experiment(" in cell.source]
    assert len(fits) == 2
    for cell in fits:
        lines = printed(cell).splitlines()
        assert sum("ticket" in line and "%" in line for line in lines) == 5
        assert sum("random_reinit" in line for line in lines) == 4
        assert not any("Epoch" in line for line in lines)


@weekly
def test_results_are_a_table(cells: list[nbformat.NotebookNode]) -> None:
    (table,) = [
        page for cell in cells for page in outputs_of(cell, "text/html") if "<table" in page and "density" in page
    ]
    assert "one-shot" in table and "iterative" in table and "random_reinit" in table


@weekly
def test_both_pictures_are_shown_inline(cells: list[nbformat.NotebookNode]) -> None:
    pictures = {cell.source: outputs_of(cell, "image/png") for cell in cells if ".figure(" in cell.source}
    assert len(pictures) == 3
    for shown in pictures.values():
        assert len(shown) == 1 and base64.b64decode(shown[0]).startswith(PNG)
    one_shot, iterative = (shown for source, shown in pictures.items() if "accuracy" in source)
    assert one_shot != iterative


@weekly
def test_the_ticket_shows_its_layers_and_classifies(cells: list[nbformat.NotebookNode]) -> None:
    (card,) = [page for cell in cells for page in outputs_of(cell, "text/html") if "Ticket of MLP on Digits" in page]
    assert "net.fc1.weight" in card and "weights kept: <b>16 %" in card
    assert "truth: [0, 1, 2, 3, 4, 5, 6, 7]" in printed(cells[-1])
