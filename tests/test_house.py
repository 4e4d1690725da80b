"""The house: which room may import which, and that only `trainer` touches Lightning's insides."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

PACKAGE = Path(__file__).parents[1] / "lth_lightning"
FOUNDATION = {"errors", "seeding", "files", "images", "cards", "consoles"}
MAY_IMPORT: dict[str, set[str]] = {
    **{name: set() for name in FOUNDATION},
    "pruning": set(),
    "models": set(),
    "data": set(),
    "runs": set(),
    "sparse": {"pruning"},
    "tickets": {"pruning", "sparse"},
    "trainer": {"pruning"},
    "classifier": {"pruning", "models"},
    "regressor": set(),
    "lottery": {"pruning", "tickets", "trainer", "runs", "models", "notebook", "sparse"},
    "report": {"runs", "tickets.packed_file"},
    "notebook": {"runs", "report"},
    "matching": {"runs", "report", "tickets"},
    "display": {"lottery", "report", "runs", "trainer"},
    "sweeps": {"runs", "report", "notebook", "cli"},
}
"""What each room imports beside itself and the foundation; PROGRAM and the package's own names may import all."""
PROGRAM = ("cli", "__main__")
WITHOUT_TORCH = ("errors", "files", "cards", "runs", "report", "notebook", "tickets.packed_file")


def modules() -> dict[str, Path]:
    """Every module of the package by its name below it: `pruning.masks`."""
    paths = [path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"]
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in paths}


def imports(path: Path) -> Iterator[str]:
    """The full name of each module that a file imports, in functions and for types too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            yield from (f"{module}.{name.name}" for name in node.names)


def room_of(name: str) -> str:
    return name.partition(".")[0]


@pytest.mark.parametrize("name", modules())
def test_a_room_imports_only_what_it_may(name: str) -> None:
    room = room_of(name)
    if room in PROGRAM:
        return
    allowed = {room, *FOUNDATION, *MAY_IMPORT[room]}
    for imported in imports(modules()[name]):
        package, _, inner = imported.partition(".")
        if package == "lth_lightning" and inner and not inner.startswith("__"):
            assert any(inner == one or inner.startswith(f"{one}.") for one in allowed), f"{name} imports {inner}"


def test_every_room_has_a_rule() -> None:
    assert {room_of(name) for name in modules()} == {*MAY_IMPORT, *PROGRAM}


@pytest.mark.parametrize("name", [name for name in modules() if name.startswith(WITHOUT_TORCH)])
def test_what_a_report_needs_imports_no_torch(name: str) -> None:
    for imported in imports(modules()[name]):
        assert imported.partition(".")[0] not in ("torch", "lightning", "torchvision"), f"{name} imports {imported}"


def private_names(path: Path) -> Iterator[str]:
    """Attributes with a leading underscore of anything but `self` and `cls`, and such names that are imported."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                yield node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "lightning":
            yield from (name.name for name in node.names if name.name.startswith("_"))


def names_of_lightning() -> set[str]:
    """Every private attribute, method and class that Lightning's own source defines."""
    import lightning

    found = set()
    for path in Path(lightning.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
    return {name for name in found if name.startswith("_") and not name.startswith("__")}


def test_only_the_trainer_touches_lightnings_insides() -> None:
    theirs = names_of_lightning() - vars(nn.Module()).keys()
    assert "_should_accumulate" in theirs
    ours = {
        node.attr if isinstance(node, ast.Attribute) else node.name
        for path in modules().values()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        or (isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store))
    }
    touched = {
        (name, private)
        for name, path in modules().items()
        if room_of(name) not in ("trainer", "cli")
        for private in private_names(path)
        if private in theirs and private not in ours
    }
    assert not touched
