"""Imports go down only: each room of the package stands on a floor and imports lower floors alone.

Rooms of one floor do not import each other. Imports inside functions count too. What answers before
torch could be imported (`ldm --help`, a mistyped flag, a plan) imports no torch at module level,
neither directly nor through what it imports.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ldm"

# The rooms of docs/architecture.md: a folder of ldm/, or a file that lies in it.
FLOORS: dict[str, int] = {
    "ldm.__main__": 9,
    "ldm.cli": 8,
    "ldm.runs": 7,
    "ldm.training": 7,
    "ldm.workers": 6,
    "ldm.engine": 5,
    "ldm.models": 4,
    "ldm.checkpoints": 3,
    "ldm.sampling": 3,
    "ldm.images": 3,
    "ldm.nn": 2,
    "ldm.text": 2,
    "ldm.jobs": 1,
    "ldm.errors": 0,
    "ldm": 0,
}
# No file of these rooms needs torch to be imported; nor do single files of other rooms.
TORCH_FREE_ROOMS = {"ldm", "ldm.errors", "ldm.jobs", "ldm.checkpoints", "ldm.cli"}
TORCH_FREE_FILES = {"ldm.engine.plan", "ldm.runs.run", "ldm.workers.pool"}
# Those that give or take tensors.
WITH_TORCH = {"ldm.checkpoints.convert", "ldm.checkpoints.weights.files"}


@dataclass(frozen=True)
class Import:
    """One imported module; `at_import` tells an import that runs when the file is imported."""

    name: str
    line: int
    at_import: bool


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str | None:
    """The room that a file lies in; None for a file that lies in none."""
    room = ".".join(module.split(".")[:2])
    return room if room in FLOORS else None


def imports_of(module: str, source: str, *, is_package: bool = False) -> list[Import]:
    """Every import of a file, those of TYPE_CHECKING blocks left out, relative ones resolved."""
    package = module if is_package else module.rpartition(".")[0]
    found: list[Import] = []

    def visit(node: ast.AST, at_import: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child, at_import)
            return
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                kept = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*kept, base]).strip(".")
            found.append(Import(base, node.lineno, at_import))
            for alias in node.names:
                if f"{base}.{alias.name}" in FILES:
                    found.append(Import(f"{base}.{alias.name}", node.lineno, at_import))
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, at_import and not inside)

    visit(ast.parse(source), True)
    return found


def file_imports(module: str) -> list[Import]:
    path = FILES[module]
    source = path.read_text(encoding="utf-8")
    return imports_of(module, source, is_package=path.name == "__init__.py")


def with_parents(module: str) -> list[str]:
    """A dotted name and the packages that importing it imports first: ["a", "a.b", "a.b.c"]."""
    parts = module.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


@pytest.mark.parametrize("module", FILES)
def test_every_file_lies_in_a_room(module: str) -> None:
    assert room_of(module) is not None, f"{module}: move it into a room, or add its room to FLOORS"


@pytest.mark.parametrize("room", sorted(name for name in FLOORS if FILES[name].stem == "__init__"))
def test_every_room_says_what_it_is_for(room: str) -> None:
    assert ast.get_docstring(ast.parse(FILES[room].read_text(encoding="utf-8")))


@pytest.mark.parametrize("module", FILES)
def test_imports_go_down_only(module: str) -> None:
    room = room_of(module)
    assert room is not None
    wrong = []
    for imported in file_imports(module):
        other = room_of(imported.name)
        if other is None and imported.name.split(".")[0] == "ldm":
            wrong.append(f"line {imported.line}: {imported.name} lies in no room")
        elif other is not None and other != room and FLOORS[other] >= FLOORS[room]:
            wrong.append(f"line {imported.line}: {imported.name} (floor {FLOORS[other]})")
    assert not wrong, f"{module} is on floor {FLOORS[room]} and may import lower ones: {wrong}"


def needs_no_torch(module: str) -> bool:
    in_room = room_of(module) in TORCH_FREE_ROOMS and module not in WITH_TORCH
    return in_room or module in TORCH_FREE_FILES


@pytest.mark.parametrize("module", sorted(filter(needs_no_torch, FILES)))
def test_no_torch_within_reach(module: str) -> None:
    reached = {module: "itself"}
    queue = [module]
    while queue:
        current = queue.pop()
        for imported in file_imports(current):
            if not imported.at_import:
                continue
            assert imported.name.split(".")[0] not in {"torch", "torchvision"}, (
                f"{current}, line {imported.line}, imports {imported.name}; "
                f"it is reached by importing {module} (from {reached[current]})"
            )
            for name in with_parents(imported.name):
                if name in FILES and name not in reached:
                    reached[name] = current
                    queue.append(name)


def test_the_reader_of_imports_sees_every_kind() -> None:
    source = """
import a.b
from ldm import jobs
from . import errors
from .nn import attention
if TYPE_CHECKING:
    import hidden
else:
    import shown
class C:
    import in_class
    def f(self):
        from late import g
h = lambda: __import__("dynamic")
"""
    found = {(i.name, i.at_import) for i in imports_of("ldm.x", source)}
    assert found >= {
        ("a.b", True),
        ("ldm.jobs", True),
        ("ldm.errors", True),
        ("shown", True),
    }
    assert found >= {("ldm.nn.attention", True), ("in_class", True), ("late", False)}
    assert not [name for name, _ in found if name == "hidden"]


def test_a_room_covers_its_files_and_ldm_does_not() -> None:
    assert room_of("ldm.nn.some.thing") == "ldm.nn"
    assert room_of("ldm") == "ldm"
    assert room_of("ldm.unheard_of") is None
