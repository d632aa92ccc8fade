"""Detect the family of a checkpoint from its header, without reading tensors or guessing."""

from __future__ import annotations

from pathlib import Path

from ldm.checkpoints.config import resource
from ldm.checkpoints.families import latent_diffusion, sd3, sdxl, stable_diffusion
from ldm.checkpoints.families.family import Family
from ldm.checkpoints.weights.header import Header
from ldm.checkpoints.weights.keys import Shapes, listed
from ldm.errors import CheckpointError

FAMILIES: dict[str, Family] = {
    family.name: family
    for module in (stable_diffusion, sdxl, sd3, latent_diffusion)
    for family in module.FAMILIES
}


def candidates(shapes: Shapes) -> list[Family]:
    """The families whose fingerprint matches a header; of twins only the first."""
    fitting = [family for family in FAMILIES.values() if family.matches(shapes)]
    names = {family.name for family in fitting}
    order = list(FAMILIES)
    return [
        family
        for family in fitting
        if family.twin not in names or order.index(family.name) < order.index(str(family.twin))
    ]


def detect(header: Header) -> Family:
    """Detect the family of a checkpoint; raises CheckpointError unless exactly one fits.

    Of a pair of twins, it returns the first: the header cannot distinguish them; the caller must.
    """
    fitting = candidates(header.shapes)
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        titles = " and ".join(family.title for family in fitting)
        raise CheckpointError(f"{header.path}: fits {titles}; choose one with --config")
    if all(key in header.shapes for key in latent_diffusion.AUTOENCODER_KEYS):
        raise CheckpointError(
            f"{header.path}: contains only an autoencoder; "
            "give the checkpoint of a whole model, and this file with --vae"
        )
    keys = listed((f"{key} {list(shape)}" for key, shape in header.shapes.items()), 3)
    raise CheckpointError(
        f"{header.path}: unknown model family (known: {', '.join(FAMILIES)}); "
        f"its {len(header.tensors)} keys begin with {keys}; "
        "name its YAML with --config or put it beside the file"
    )


def yaml_of(family: Family) -> Path:
    """The packaged YAML of a family."""
    return resource("configs") / family.yaml


def yaml_beside(checkpoint: Path) -> Path | None:
    """The YAML of the same name in the checkpoint's folder, else config.yaml there, if any.

    The originals used models/ldm/NAME/{config.yaml,model.ckpt}. A config.yaml counts only if it has
    a line `model:`, because many programs have a file of that name.
    """
    for suffix in (".yaml", ".yml"):
        path = checkpoint.with_suffix(suffix)
        if path.is_file():
            return path
    path = checkpoint.with_name("config.yaml")
    return path if path.is_file() and _is_of_a_model(path) else None


def _is_of_a_model(path: Path) -> bool:
    try:
        return any(line.startswith(b"model:") for line in path.read_bytes().splitlines())
    except OSError:
        return False
