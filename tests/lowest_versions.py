"""Print the lowest declared version of every dependency as pip constraints (make test-lowest)."""

from __future__ import annotations

import re
from pathlib import Path

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def constraints(text: str) -> list[str]:
    """`name==version` for each entry of the project's `dependencies`."""
    entries = text.partition("\ndependencies = [")[2].partition("\n]")[0]
    return [f"{name}=={version}" for name, version in re.findall(r'"([\w-]+)>=([\d.]+)', entries)]


if __name__ == "__main__":
    print("\n".join(constraints(PROJECT.read_text(encoding="utf-8"))))  # noqa: T201
