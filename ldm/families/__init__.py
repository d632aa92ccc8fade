"""Which family a checkpoint is of, from its header: no tensor is read, nothing is guessed."""

from __future__ import annotations

from pathlib import Path

from ldm.config import resource
from ldm.errors import CheckpointError
from ldm.families import stable_diffusion
from ldm.families.family import Family
from ldm.weights.header import Header
from ldm.weights.keys import Shapes, listed

FAMILIES: dict[str, Family] = {family.name: family for family in stable_diffusion.FAMILIES}


def candidates(shapes: Shapes) -> list[Family]:
    """The families whose fingerprint a header has; of twins the first."""
    found = [family for family in FAMILIES.values() if family.matches(shapes)]
    names = {family.name for family in found}
    order = list(FAMILIES)
    return [
        family
        for family in found
        if family.twin not in names or order.index(family.name) < order.index(str(family.twin))
    ]


def detect(header: Header) -> Family:
    """The family of a checkpoint; raises CheckpointError where none or more than one fits.

    Of a pair of twins it is the first: what its header does not tell is for the caller to find.
    """
    found = candidates(header.shapes)
    if len(found) == 1:
        return found[0]
    if found:
        titles = " and ".join(family.title for family in found)
        raise CheckpointError(f"{header.path}: fits {titles}; choose one with --config")
    keys = listed((f"{key} {list(shape)}" for key, shape in header.shapes.items()), 3)
    raise CheckpointError(
        f"{header.path}: of no known family ({', '.join(FAMILIES)}); its {len(header.tensors)} "
        f"keys begin with {keys}; name its YAML with --config or put it beside the file"
    )


def yaml_of(family: Family) -> Path:
    """The packaged YAML of a family."""
    return resource("configs") / family.yaml


def yaml_beside(checkpoint: Path) -> Path | None:
    """The YAML of the same name in the checkpoint's folder, if there is one."""
    beside = (checkpoint.with_suffix(suffix) for suffix in (".yaml", ".yml"))
    return next((path for path in beside if path.is_file()), None)
