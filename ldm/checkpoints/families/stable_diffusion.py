"""Stable Diffusion 1 and 2 with their special models, by the first layers of the network.

Facts: the original YAMLs (see configs/stable-diffusion) and the defaults of the original scripts:
CompVis/stable-diffusion and Stability-AI/stablediffusion, scripts/ and scripts/gradio.
"""

from __future__ import annotations

from ldm.checkpoints.families.family import Family, Pattern
from ldm.checkpoints.weights.keys import NETWORK
from ldm.jobs.job import Defaults

_IN = f"{NETWORK}input_blocks.0.0.weight"
_CONTEXT = f"{NETWORK}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
_LABEL = f"{NETWORK}label_emb."


def _needs(channels: int, context: int) -> dict[str, Pattern]:
    """The first convolution's input channels and the width of the text embedding."""
    return {_IN: (320, channels, 3, 3), _CONTEXT: (320, context)}


def _defaults(side: int, scale: float, source: str, steps: int = 50) -> Defaults:
    return Defaults(side, side, scale, steps, "ddim", source)


FAMILIES = (
    Family(
        name="v1",
        title="Stable Diffusion v1",
        yaml="stable-diffusion/v1-inference.yaml",
        prediction="eps",
        defaults=_defaults(512, 7.5, "v1 txt2img.py"),
        needs=_needs(4, 768),
        lacks=(_LABEL,),
    ),
    Family(
        name="v1-inpainting",
        title="Stable Diffusion v1, inpainting",
        yaml="stable-diffusion/v1-inpainting-inference.yaml",
        prediction="eps",
        defaults=_defaults(512, 7.5, "v1 inpainting"),
        needs=_needs(9, 768),
        lacks=(_LABEL,),
        task="inpaint",
    ),
    Family(
        name="v2",
        title="Stable Diffusion v2, base",
        yaml="stable-diffusion/v2-inference.yaml",
        prediction="eps",
        defaults=_defaults(512, 9.0, "v2 txt2img.py"),
        needs=_needs(4, 1024),
        lacks=(_LABEL,),
        twin="v2-v",
    ),
    Family(
        name="v2-v",
        title="Stable Diffusion v2, 768-v",
        yaml="stable-diffusion/v2-inference-v.yaml",
        prediction="v",
        defaults=_defaults(768, 9.0, "v2 txt2img.py, the size of the 768-v models"),
        needs=_needs(4, 1024),
        lacks=(_LABEL,),
        twin="v2",
    ),
    Family(
        name="v2-inpainting",
        title="Stable Diffusion v2, inpainting",
        yaml="stable-diffusion/v2-inpainting-inference.yaml",
        prediction="eps",
        defaults=_defaults(512, 10.0, "v2 gradio/inpainting.py", steps=45),
        needs=_needs(9, 1024),
        lacks=(_LABEL,),
        task="inpaint",
    ),
    Family(
        name="v2-midas",
        title="Stable Diffusion v2, depth",
        yaml="stable-diffusion/v2-midas-inference.yaml",
        prediction="eps",
        defaults=_defaults(512, 9.0, "v2 gradio/depth2img.py"),
        needs=_needs(5, 1024),
        lacks=(_LABEL,),
        task="depth2img",
    ),
    Family(
        name="x4",
        title="Stable Diffusion x4 upscaler",
        yaml="stable-diffusion/x4-upscaling.yaml",
        prediction="v",
        defaults=_defaults(512, 10.0, "v2 gradio/superresolution.py", steps=75),
        needs={_IN: (256, 7, 3, 3), f"{_LABEL}weight": (None, 1024)},
        task="upscale",
    ),
    Family(
        name="unclip-h",
        title="Stable unCLIP 2.1, ViT-H",
        yaml="stable-diffusion/v2-1-stable-unclip-h-inference.yaml",
        prediction="v",
        defaults=_defaults(768, 10.0, "v2 streamlit/stableunclip.py", steps=20),
        needs={**_needs(4, 1024), f"{_LABEL}0.0.weight": (1280, 2048)},
        task="variations",
    ),
    Family(
        name="unclip-l",
        title="Stable unCLIP 2.1, ViT-L",
        yaml="stable-diffusion/v2-1-stable-unclip-l-inference.yaml",
        prediction="v",
        defaults=_defaults(768, 10.0, "v2 streamlit/stableunclip.py", steps=20),
        needs={**_needs(4, 1024), f"{_LABEL}0.0.weight": (1280, 1536)},
        task="variations",
    ),
)
