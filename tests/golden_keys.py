"""The full-size models' keys and shapes, from tests/golden/keys."""

from __future__ import annotations

import json
from pathlib import Path

from ldm.checkpoints.weights.keys import DDPM_BUFFERS

FOLDER = Path(__file__).parent / "golden" / "keys"

# Golden file -> packaged YAML and family.
MODELS = {
    "sd-v1": ("stable-diffusion/v1-inference", "v1"),
    "sd-v1-5-inpainting": ("stable-diffusion/v1-inpainting-inference", "v1-inpainting"),
    "sd-v2": ("stable-diffusion/v2-inference", "v2"),
    "sd-v2-v": ("stable-diffusion/v2-inference-v", "v2"),
    "sd-v2-inpainting": ("stable-diffusion/v2-inpainting-inference", "v2-inpainting"),
    "sd-v2-midas": ("stable-diffusion/v2-midas-inference", "v2-midas"),
    "sd-x4-upscaling": ("stable-diffusion/x4-upscaling", "x4"),
    "sd-v2-1-unclip-h": ("stable-diffusion/v2-1-stable-unclip-h-inference", "unclip-h"),
    "sd-v2-1-unclip-l": ("stable-diffusion/v2-1-stable-unclip-l-inference", "unclip-l"),
    "sdxl-base": ("sdxl/sd_xl_base", "sdxl"),
    "sdxl-inpainting": ("sdxl/sd_xl_inpainting", "sdxl-inpainting"),
    "sdxl-refiner": ("sdxl/sd_xl_refiner", "sdxl-refiner"),
    "cin256-v2": ("latent-diffusion/cin256-v2", "ldm-imagenet"),
    "ldm-celeba256": ("latent-diffusion/celebahq-ldm-vq-4", "ldm-vq4-256"),
    "ldm-ffhq256": ("latent-diffusion/ffhq-ldm-vq-4", "ldm-vq4-256"),
    "ldm-lsun_beds256": ("latent-diffusion/lsun_bedrooms-ldm-vq-4", "ldm-vq4-256"),
    "ldm-lsun_churches256": ("latent-diffusion/lsun_churches-ldm-kl-8", "ldm-churches"),
    "txt2img-1p4B": ("latent-diffusion/txt2img-1p4B-eval", "ldm-text"),
}
# The same for Stable Diffusion 3, whose files here have no text encoders.
SD3_MODELS = {
    "sd3-medium": ("sd3/sd3-medium", "sd3-medium"),
    "sd3.5-medium": ("sd3/sd3.5-medium", "sd3.5-medium"),
    "sd3.5-large": ("sd3/sd3.5-large", "sd3.5-large"),
}
# Golden file of a bare autoencoder -> a packaged YAML of it, or of a model that has it within.
AUTOENCODERS = {
    "autoencoder-kl-f32": "autoencoder/autoencoder_kl_8x8x64",
    "autoencoder-kl-f16": "autoencoder/autoencoder_kl_16x16x16",
    "autoencoder-kl-f8": "autoencoder/autoencoder_kl_32x32x4",
    "autoencoder-kl-f4": "autoencoder/autoencoder_kl_64x64x3",
    "autoencoder-vq-f4": "latent-diffusion/celebahq-ldm-vq-4",
    "autoencoder-vq-f4-noattn": "latent-diffusion/inpainting_big",
    "autoencoder-vq-f8": "latent-diffusion/cin-ldm-vq-f8",
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


def model_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Key -> shape of our model, with the DDPM buffers where SDXL's files have sigmas."""
    shapes = golden_shapes(name)
    if shapes.pop("denoiser.sigmas", None) is not None:
        shapes |= dict.fromkeys(DDPM_BUFFERS, (1000,))
    return shapes
