"""The models of CompVis/latent-diffusion (2021 and 2022), by their first layers and conditioners.

Facts: its configs/latent-diffusion and models/ldm, scripts/{sample_diffusion,txt2img,inpaint}.py
and notebooks. Its sample_diffusion.py samples with eta 1, its other scripts with eta 0.
"""

from __future__ import annotations

from ldm.checkpoints.families.family import Family, Pattern
from ldm.checkpoints.weights.keys import NETWORK
from ldm.jobs.job import Defaults

_IN = f"{NETWORK}input_blocks.0.0.weight"
_CONTEXT = f"{NETWORK}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
_CODEBOOK = "first_stage_model.quantize.embedding.weight"
_CLASSES = "cond_stage_model.embedding.weight"
_TOKENS = "cond_stage_model.transformer.token_emb.weight"
_MAPPER = "cond_stage_model.channel_mapper.weight"
# An autoencoder in a separate file has these keys, without a prefix.
AUTOENCODER_KEYS = ("encoder.conv_in.weight", "decoder.conv_in.weight", "decoder.conv_out.weight")


def _family(
    name: str,
    title: str,
    yaml: str,
    task: str,
    defaults: Defaults,
    needs: dict[str, Pattern],
) -> Family:
    yaml = f"latent-diffusion/{yaml}.yaml"
    return Family(name, title, yaml, "eps", defaults, needs, (f"{NETWORK}label_emb.",), task)


def _defaults(source: str, scale: float = 1.0, steps: int = 50, side: int = 256) -> Defaults:
    return Defaults(side, side, scale, steps, "ddim", source)


def _first(width: int, channels: int) -> dict[str, Pattern]:
    """The network's first convolution."""
    return {_IN: (width, channels, 3, 3)}


_SAMPLE = _defaults("latent-diffusion sample_diffusion.py")

FAMILIES = (
    _family(
        "ldm-vq4-256",
        "LDM-4, unconditional (CelebA-HQ, FFHQ or LSUN bedrooms: the keys are the same)",
        "celebahq-ldm-vq-4",
        "sample",
        _SAMPLE,
        {**_first(224, 3), _CODEBOOK: (8192, 3)},
    ),
    _family(
        "ldm-churches",
        "LDM-8, unconditional, LSUN churches",
        "lsun_churches-ldm-kl-8",
        "sample",
        _SAMPLE,
        {**_first(192, 4), "scale_factor": ()},
    ),
    _family(
        "ldm-imagenet-f8",
        "LDM-8, ImageNet classes, the first",
        "cin-ldm-vq-f8",
        "sample",
        _SAMPLE,
        {**_first(256, 4), _CLASSES: (1000, 512)},
    ),
    _family(
        "ldm-imagenet",
        "LDM-4, ImageNet classes, version 2",
        "cin256-v2",
        "sample",
        _defaults("latent-diffusion notebook latent_imagenet_diffusion", scale=3.0, steps=20),
        {**_first(192, 3), _CLASSES: (1001, 512)},
    ),
    _family(
        "ldm-text",
        "latent diffusion text to image, 1.45 billion",
        "txt2img-1p4B-eval",
        "txt2img",
        _defaults("latent-diffusion txt2img.py", scale=5.0, steps=200),
        {**_first(320, 4), _CONTEXT: (320, 1280), _TOKENS: (30522, 1280)},
    ),
    _family(
        "ldm-text-256",
        "latent diffusion text to image, the small one",
        "text2img256",
        "txt2img",
        _defaults("latent-diffusion txt2img.py", scale=5.0, steps=200),
        {**_first(192, 3), _TOKENS: (30522, 640)},
    ),
    _family(
        "ldm-layout",
        "latent diffusion from boxes, OpenImages",
        "layout2img-openimages256",
        "layout2img",
        _SAMPLE,
        {**_first(128, 3), _TOKENS: (8192, 512)},
    ),
    _family(
        "ldm-inpainting",
        "latent diffusion inpainting, without text",
        "inpainting_big",
        "inpaint",
        _defaults("v1 inpaint.py", side=512),
        {**_first(256, 7), _CODEBOOK: (8192, 3)},
    ),
    _family(
        "ldm-superres",
        "latent diffusion superresolution x4",
        "bsr_sr",
        "upscale",
        _defaults("latent-diffusion notebook_helpers.py", steps=100),
        {**_first(160, 6), _CODEBOOK: (8192, 3)},
    ),
    _family(
        "ldm-semantic",
        "latent diffusion from maps, landscapes (256 or 512: the keys are the same)",
        "semantic_synthesis256",
        "map2img",
        _SAMPLE,
        {**_first(128, 6), _MAPPER: (3, 182, 1, 1)},
    ),
)
