"""The full-size models' keys and shapes, from tests/golden/keys."""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = Path(__file__).parent / "golden" / "keys"

# Golden file -> packaged YAML and family.
MODELS = {
    "sd-v1": ("v1-inference", "v1"),
    "sd-v1-5-inpainting": ("v1-inpainting-inference", "v1-inpainting"),
    "sd-v2": ("v2-inference", "v2"),
    "sd-v2-v": ("v2-inference-v", "v2"),
    "sd-v2-inpainting": ("v2-inpainting-inference", "v2-inpainting"),
    "sd-v2-midas": ("v2-midas-inference", "v2-midas"),
    "sd-x4-upscaling": ("x4-upscaling", "x4"),
    "sd-v2-1-unclip-h": ("v2-1-stable-unclip-h-inference", "unclip-h"),
    "sd-v2-1-unclip-l": ("v2-1-stable-unclip-l-inference", "unclip-l"),
}


def golden_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Key -> shape; `__base__` names a file to start from, `__removed__` keys of it to drop."""
    content = json.loads((FOLDER / f"{name}.json").read_text())
    base = content.get("__base__")
    shapes = golden_shapes(base.removesuffix(".json")) if base else {}
    for key in content.get("__removed__", []):
        del shapes[key]
    own = {key: tuple(shape) for key, shape in content.items() if not key.startswith("__")}
    return {**shapes, **own}
