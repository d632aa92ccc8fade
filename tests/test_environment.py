"""The lists of what the project needs agree: pyproject.toml, environment.yaml and the code."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest brings it on Python 3.10
    import tomli as tomllib

TOP = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((TOP / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PROJECT["project"]

# The name to install, where it is not the name to import.
DISTRIBUTIONS = {"PIL": "pillow", "yaml": "pyyaml", "open_clip": "open_clip_torch"}
# Declared for a file that it installs, not for its code: the vocabulary.
NOT_IMPORTED = {"open-clip-torch"}


def by_name(requirements: list[str]) -> dict[str, SpecifierSet]:
    parsed = [Requirement(text) for text in requirements]
    return {canonicalize_name(r.name): r.specifier for r in parsed}


def declared() -> dict[str, SpecifierSet]:
    return by_name(PROJECT["dependencies"])


def extra(name: str) -> dict[str, SpecifierSet]:
    return by_name(PROJECT["optional-dependencies"][name])


def environment() -> tuple[list[str], list[str]]:
    """What environment.yaml wants of conda and of pip."""
    tree = yaml.safe_load((TOP / "environment.yaml").read_text(encoding="utf-8"))
    assert tree["name"] == "ldm"
    assert tree["channels"] == ["conda-forge"]
    conda = [entry for entry in tree["dependencies"] if isinstance(entry, str)]
    (pip,) = (entry["pip"] for entry in tree["dependencies"] if isinstance(entry, dict))
    return conda, pip


def imported_distributions(*folders: str) -> set[str]:
    """The distributions whose modules the files of these folders import, at any depth."""
    names: set[str] = set()
    for folder in folders:
        for path in (TOP / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names.update(alias.name.split(".")[0] for alias in node.names)
                elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                    names.add(node.module.split(".")[0])
    own = {"ldm", "benchmarks", "tests", "scripts", "__future__"}
    own |= {path.stem for path in (TOP / "tests").rglob("*.py")}
    return {
        canonicalize_name(DISTRIBUTIONS.get(name, name))
        for name in names - own - set(sys.stdlib_module_names)
    }


def test_conda_and_pip_want_the_same() -> None:
    conda, pip = environment()
    assert pip[-1] == ".", "the environment must install ldm itself"
    assert by_name(pip[:-1]) == declared()
    assert conda == [f"python{PROJECT['requires-python']}", "pip"]


def test_the_package_declares_what_it_imports() -> None:
    optional = set(extra("train")) | set(extra("xformers")) | set(extra("ray"))
    missing = imported_distributions("ldm") - set(declared()) - optional
    assert not missing, f"imported by ldm/ and not among the dependencies: {missing}"


def test_the_package_imports_what_it_declares() -> None:
    unused = set(declared()) - imported_distributions("ldm") - NOT_IMPORTED
    assert not unused, f"among the dependencies and never imported by ldm/: {unused}"


def test_the_tests_declare_what_they_import() -> None:
    known = set(declared()) | set(extra("test")) | {"tomli", "tomllib", "torchvision", "timm"}
    known |= {"openvino"}  # a peer of the benchmarks, left out where it is not installed
    missing = imported_distributions("tests", "benchmarks") - known
    assert not missing, f"imported by tests/ or benchmarks/ and not in the extra `test`: {missing}"


def test_training_can_be_tested() -> None:
    assert extra("train").items() <= extra("test").items()


@pytest.mark.parametrize("group", ["dependencies", "xformers", "train", "ray", "test"])
def test_ranges_have_a_floor_and_no_pin(group: str) -> None:
    for name, specifier in (declared() if group == "dependencies" else extra(group)).items():
        operators = {part.operator for part in specifier}
        assert ">=" in operators, f"{name} has no lowest version"
        assert not operators & {"==", "===", "~="}, f"{name} is pinned"


def test_no_lock_file_and_no_address_of_a_registry() -> None:
    """Where packages come from is the business of whoever installs them."""
    for pattern in ("*.lock", "requirements*.txt", "pip.conf"):
        assert not list(TOP.glob(pattern))
    for name in ("pyproject.toml", "environment.yaml", "Makefile", ".ci/run"):
        text = (TOP / name).read_text(encoding="utf-8")
        assert not re.search(r"https?://|index-url|find-links", text), name
