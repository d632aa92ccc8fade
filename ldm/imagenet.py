"""The thousand classes of ImageNet by name, for models that are told a class."""

from __future__ import annotations

from ldm.errors import JobError
from ldm.job import nearest


def class_number(name: str) -> str:
    """A class by its number as it is, or by its name ("golden retriever") as its number.

    Names are those that torchvision gives its classifiers; it is imported for a name only. Raises
    JobError for a name that is not known, or that fits two classes.
    """
    text = name.strip()
    if text.isdecimal():
        return text
    from torchvision.models import ResNet50_Weights  # type: ignore[import-untyped]

    titles = [title.lower() for title in ResNet50_Weights.DEFAULT.meta["categories"]]
    fits = [i for i, title in enumerate(titles) if title == text.lower()]
    if len(fits) == 1:
        return str(fits[0])
    if fits:
        numbers = " or ".join(map(str, fits))
        raise JobError(f"--class {name!r} is the name of several classes; give {numbers}")
    raise JobError(f"--class {name!r} is no class of ImageNet{nearest(text.lower(), titles)}")
