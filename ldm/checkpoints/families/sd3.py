"""Stable Diffusion 3 and 3.5, by the table of positions and the first norms and attentions.

Facts: Stability-AI/sd3.5 `sd3_infer.py`, and the steps and scales of the models' cards. Large
turbo has the keys of large; the YAML sd3.5-large-turbo has its defaults.
"""

from __future__ import annotations

from ldm.checkpoints.families.family import Family
from ldm.checkpoints.weights.keys import NETWORK
from ldm.jobs.job import Defaults

_POSITIONS = f"{NETWORK}pos_embed"
_TEXT = f"{NETWORK}context_embedder.weight"
_NORM = f"{NETWORK}joint_blocks.0.x_block.attn.ln_q.weight"
_SECOND = f"{NETWORK}joint_blocks.0.x_block.attn2.qkv.weight"


def _defaults(scale: float, steps: int, source: str) -> Defaults:
    return Defaults(1024, 1024, scale, steps, "dpmpp_2m", source, strength=0.8)


FAMILIES = (
    Family(
        name="sd3-medium",
        title="Stable Diffusion 3 medium",
        yaml="sd3/sd3-medium.yaml",
        prediction="flow",
        defaults=_defaults(7.0, 28, "the card of SD3 medium"),
        needs={_POSITIONS: (1, 36864, 1536), _TEXT: (1536, 4096)},
        lacks=(_NORM,),
    ),
    Family(
        name="sd3.5-medium",
        title="Stable Diffusion 3.5 medium",
        yaml="sd3/sd3.5-medium.yaml",
        prediction="flow",
        defaults=_defaults(4.5, 40, "the card of SD3.5 medium"),
        needs={
            _POSITIONS: (1, 147456, 1536),
            _TEXT: (1536, 4096),
            _NORM: (64,),
            _SECOND: (4608, 1536),
        },
    ),
    Family(
        name="sd3.5-large",
        title="Stable Diffusion 3.5 large",
        yaml="sd3/sd3.5-large.yaml",
        prediction="flow",
        defaults=_defaults(3.5, 28, "the card of SD3.5 large"),
        needs={_POSITIONS: (1, 36864, 2432), _TEXT: (2432, 4096), _NORM: (64,)},
        lacks=(_SECOND,),
    ),
)
