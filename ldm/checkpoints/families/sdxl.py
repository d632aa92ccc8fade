"""SDXL: its base, inpainting and refiner networks, by their first layers.

Facts: configs/inference and scripts/demo of generative-models; 7 is the scale that other programs
take for the base.
"""

from __future__ import annotations

from ldm.checkpoints.families.family import Family, Pattern
from ldm.checkpoints.weights.keys import NETWORK
from ldm.jobs.job import Defaults

_IN = f"{NETWORK}input_blocks.0.0.weight"
_LABEL = f"{NETWORK}label_emb.0.0.weight"
_CONTEXT = f"{NETWORK}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"


def _needs(channels: int) -> dict[str, Pattern]:
    return {_IN: (320, channels, 3, 3), _CONTEXT: (640, 2048), _LABEL: (1280, 2816)}


def _defaults(scale: float, source: str, strength: float = 0.75) -> Defaults:
    return Defaults(1024, 1024, scale, 50, "euler", source, strength=strength)


FAMILIES = (
    Family(
        name="sdxl",
        title="SDXL base",
        yaml="sdxl/sd_xl_base.yaml",
        prediction="eps",
        defaults=_defaults(7.0, "SDXL base"),
        needs=_needs(4),
        twin="sdxl-v",
    ),
    Family(
        name="sdxl-v",
        title="SDXL base, predicting v",
        yaml="sdxl/sd_xl_base_v.yaml",
        prediction="v",
        defaults=_defaults(7.0, "SDXL base"),
        needs=_needs(4),
        twin="sdxl",
    ),
    Family(
        name="sdxl-inpainting",
        title="SDXL inpainting",
        yaml="sdxl/sd_xl_inpainting.yaml",
        prediction="eps",
        defaults=_defaults(7.5, "SDXL inpainting"),
        needs=_needs(9),
        task="inpaint",
    ),
    Family(
        name="sdxl-refiner",
        title="SDXL refiner",
        yaml="sdxl/sd_xl_refiner.yaml",
        prediction="eps",
        defaults=_defaults(5.0, "SDXL refiner", strength=0.3),
        needs={_IN: (384, 4, 3, 3), _LABEL: (1536, 2560)},
    ),
)
