"""The thousand classes of ImageNet by name, for class-conditional models."""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path

from ldm.errors import JobError, LdmError
from ldm.jobs.options import nearest

CLASSES = 1000


def class_number(name: str) -> str:
    """The number of a class given by number or by name ("golden retriever").

    Raises JobError for an unknown name, or a name of several classes.
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
    raise JobError(f"--class {name!r} is not an ImageNet class{nearest(text.lower(), titles)}")


@cache
def class_names() -> list[str]:
    """The class names in order, from torchvision's classifiers.

    They are parsed from a file of the installed package; importing it takes seconds, and torch.
    """
    spec = importlib.util.find_spec("torchvision")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "models" / "_meta.py"
        for node in ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else []:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.List):
                names = ast.literal_eval(node.value)
                if isinstance(names, list) and len(names) == CLASSES:
                    return [str(name) for name in names]
    raise LdmError("no class names found: the installed torchvision has none; use class numbers")
