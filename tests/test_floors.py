"""Imports go down only: every file of the package has a floor and never imports a higher one.

Imports inside functions count too. Floor 0 and the fronts must also be quick to import, so nothing
that they import at module level, directly or not, may import torch.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ldm"

# What stands on each floor; a name covers a module, or a package with all that is in it.
FLOORS: dict[int, set[str]] = {
    5: {
        "ldm.__main__",
        "ldm.cli",
        "ldm.commands",
        "ldm.runs",
        "ldm.drawing",
        "ldm.interrupts",
        "ldm.shell",
        "ldm.engines",
        "ldm.worker",
        "ldm.crew",
        "ldm.cluster",
        "ldm.sink",
        "ldm.progress",
        "ldm.tokens",
        "ldm.flags",
        "ldm.parameters",
        "ldm.help",
        "ldm.train",
        "ldm.stages",
        "ldm.recipe",
        "ldm.pretext",
        "ldm.diffusion",
        "ldm.hints",
        "ldm.layout",
        "ldm.data",
        "ldm.scenes",
        "ldm.glyphs",
    },
    4: {
        "ldm.plan",
        "ldm.places",
        "ldm.device",
        "ldm.images",
        "ldm.sheet",
        "ldm.tasks",
        "ldm.engine",
        "ldm.parts",
        "ldm.results",
        "ldm.draws",
        "ldm.memory",
        "ldm.output",
        "ldm.metadata",
        "ldm.batch",
    },
    3: {
        "ldm.weights",
        "ldm.registry",
        "ldm.targets",
        "ldm.section",
        "ldm.conditioning",
        "ldm.image_embedders",
        "ldm.wording",
        "ldm.model",
        "ldm.families",
        "ldm.load",
        "ldm.depth",
        "ldm.tiling",
        "ldm.tiled_autoencoder",
        "ldm.tiled_passes",
        "ldm.inventory",
        "ldm.description",
        "ldm.convert",
    },
    2: {"ldm.nn", "ldm.text"},
    1: {"ldm.schedule", "ldm.noise", "ldm.denoiser", "ldm.guidance", "ldm.samplers"},
    0: {
        "ldm.errors",
        "ldm.allocator",
        "ldm.garbage",
        "ldm.timing",
        "ldm.readahead",
        "ldm.job",
        "ldm.fields",
        "ldm.seeds",
        "ldm.options",
        "ldm.outputs",
        "ldm.tuning",
        "ldm.legacy",
        "ldm.config",
        "ldm.sizes",
        "ldm.inputs",
        "ldm.entries",
        "ldm.schema",
        "ldm.grammar",
        "ldm.manifest",
        "ldm.names",
        "ldm.pictures",
        "ldm.canvas",
        "ldm.sources",
        "ldm.imagenet",
        "ldm",
    },
}
# These answer before torch could be imported: `ldm --help`, a mistyped flag.
TORCH_FREE = {"ldm", "ldm.cli", "ldm.batch"} | FLOORS[0]


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


def floor_of(module: str) -> int | None:
    """The floor of the longest name that covers a module; `ldm` covers itself alone."""
    floors = {name: floor for floor, names in FLOORS.items() for name in names}
    name = module
    while "." in name:
        if name in floors:
            return floors[name]
        name = name.rpartition(".")[0]
    return floors[name] if module == name == "ldm" else None


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
def test_every_file_has_a_floor(module: str) -> None:
    assert floor_of(module) is not None, f"add {module} to FLOORS"


@pytest.mark.parametrize("module", FILES)
def test_imports_go_down_only(module: str) -> None:
    floor = floor_of(module)
    assert floor is not None
    wrong = []
    for imported in file_imports(module):
        if imported.name.split(".")[0] != "ldm":
            continue
        below = floor_of(imported.name)
        if below is None or below > floor:
            wrong.append(f"line {imported.line}: {imported.name} (floor {below})")
    assert not wrong, f"{module} is on floor {floor} and imports upwards: {wrong}"


@pytest.mark.parametrize("module", sorted(m for m in FILES if m in TORCH_FREE))
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
from ldm import config
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
    assert found >= {("a.b", True), ("ldm.config", True), ("ldm.errors", True), ("shown", True)}
    assert found >= {("ldm.nn.attention", True), ("in_class", True), ("late", False)}
    assert not [name for name, _ in found if name == "hidden"]


def test_a_package_covers_its_modules_but_ldm_does_not() -> None:
    assert floor_of("ldm.nn.some.thing") == 2
    assert floor_of("ldm") == 0
    assert floor_of("ldm.unheard_of") is None
