"""The thousand classes of ImageNet by name, for models that are told a class."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path

from ldm.errors import JobError, LdmError
from ldm.jobs.options import nearest

CLASSES = 1000


def class_number(name: str) -> str:
    """A class by its number as it is, or by its name ("golden retriever") as its number.

    Raises JobError for a name that is not known, or that fits two classes.
    """
    text = name.strip()
    if text.isdecimal():
        return text
    titles = [title.lower() for title in class_names()]
    fits = [i for i, title in enumerate(titles) if title == text.lower()]
    if len(fits) == 1:
        return str(fits[0])
    if fits:
        numbers = " or ".join(map(str, fits))
        raise JobError(f"--class {name!r} is the name of several classes; give {numbers}")
    raise JobError(f"--class {name!r} is no class of ImageNet{nearest(text.lower(), titles)}")


@cache
def class_names() -> list[str]:
    """The names in order, which torchvision gives its classifiers.

    They are read from a file of the installed package: importing it takes seconds, and torch.
    """
    found = importlib.util.find_spec("torchvision")
    for folder in (found.submodule_search_locations or []) if found else []:
        path = Path(folder) / "models" / "_meta.py"
        for node in ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else []:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.List):
                names = ast.literal_eval(node.value)
                if isinstance(names, list) and len(names) == CLASSES:
                    return [str(name) for name in names]
    raise LdmError("the names of the classes come with torchvision, which lacks them: use numbers")
