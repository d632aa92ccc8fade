"""Hints: a network's additional inputs in training, computed from the scene.

A mask and the masked image, the depth of the glyphs, or the downscaled image: the same inputs that
`ldm.engine.tasks` prepares for an inpainting model, a depth model or an upscaler.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ldm.engine.tasks import mask_place
from ldm.errors import ConfigError
from ldm.images.canvas import latent_mask
from ldm.images.tensors import to_tensor
from ldm.models.conditioning import Conditioning
from ldm.models.depth import depth_concat, depth_from_map
from ldm.models.model import Model
from ldm.nn.autoencoder import DiagonalGaussian

ImageArrays = NDArray[np.uint8]
Encode = Callable[[Tensor], Tensor]
_MARGIN = 6  # the most pixels that a mask extends beyond its glyph, on each side


class Hint(Protocol):
    """One kind of hint."""

    def keep(self, images: ImageArrays, layers: ImageArrays, first: int, encode: Encode) -> Kept:
        """The tensors [B,...] to compute once for scenes first, first + 1, ..., by name.

        images uint8 [B,H,W,3]; layers uint8 [B,H,W], 0 background, then back to front; `encode`
        returns the moments [B,2C,h,w] of images [B,3,H,W] in [-1,1].
        """
        ...

    def show(self, kept: Kept, cond: Conditioning, generator: torch.Generator) -> Conditioning:
        """The condition of a step, with the hint of its scenes; random parts are drawn again."""
        ...


Kept = dict[str, Tensor]


class MaskHint:
    """A box around one of the glyphs, and the image with grey inside, as in Stable Diffusion."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def keep(self, images: ImageArrays, layers: ImageArrays, first: int, encode: Encode) -> Kept:
        masks = np.stack([hole(plane, first + row) for row, plane in enumerate(layers)])
        moments = encode(to_tensor(images) * torch.from_numpy(1 - masks)[:, None])
        small = np.stack([latent_mask(mask, *moments.shape[-2:]) for mask in masks])
        return {"mask": torch.from_numpy(small)[:, None].to(torch.uint8), "hidden": moments}

    def show(self, kept: Kept, cond: Conditioning, generator: torch.Generator) -> Conditioning:
        posterior = DiagonalGaussian.from_moments(kept["hidden"].float())
        noise = torch.randn(posterior.mean.shape, generator=generator)
        hidden = posterior.sample(noise) * self.model.scale_factor
        return replace(cond, concat=torch.cat([kept["mask"].float(), hidden], dim=1))


class DepthHint:
    """The depth of the glyphs, of which the front ones are nearer."""

    def __init__(self, model: Model) -> None:
        self.factor = model.factor

    def keep(self, images: ImageArrays, layers: ImageArrays, first: int, encode: Encode) -> Kept:
        size = (layers.shape[1] // self.factor, layers.shape[2] // self.factor)
        planes = [depth_concat(depth_from_map(plane), size) for plane in layers]
        return {"depth": torch.cat(planes).half()}

    def show(self, kept: Kept, cond: Conditioning, generator: torch.Generator) -> Conditioning:
        return replace(cond, concat=kept["depth"].float())


class SmallHint:
    """The image at the latent's size, with noise of a level that the network gets as input."""

    def __init__(self, model: Model) -> None:
        self.noising, self.factor = model.low_scale_model, model.factor

    def keep(self, images: ImageArrays, layers: ImageArrays, first: int, encode: Encode) -> Kept:
        from PIL import Image

        size = (images.shape[2] // self.factor, images.shape[1] // self.factor)
        small = [
            np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
            for image in images
        ]
        return {"small": torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).contiguous()}

    def show(self, kept: Kept, cond: Conditioning, generator: torch.Generator) -> Conditioning:
        low = kept["small"].float() / 127.5 - 1
        high = self.noising.max_noise_level
        level = torch.randint(high, (len(low),), generator=generator)
        noise = torch.randn(low.shape, generator=generator)
        return replace(cond, concat=self.noising(low, level, noise), vector=level)


def find_hint(model: Model) -> Hint | None:
    """The hint for a model's network, or None if it is conditioned on text alone.

    Raises ConfigError for a number of input channels that fits no hint.
    """
    more = model.network.in_channels - model.latent_channels
    if not more:
        return None
    if hasattr(model, "low_scale_model"):
        return SmallHint(model)
    if mask_place(model) == "first":
        return MaskHint(model)
    if more == 1:
        return DepthHint(model)
    raise ConfigError(
        f"unet_config.params.in_channels: {more} channels besides the latent's fit neither a mask "
        "with its image, nor a depth map, nor a small image"
    )


def hole(layers: NDArray[np.uint8], index: int) -> NDArray[np.float32]:
    """A box [H,W] of ones around one of the glyphs of a scene, slightly larger than it."""
    rng = np.random.default_rng((index, 77))
    glyph = rng.integers(1, int(layers.max()) + 1) if layers.max() else 0
    rows, columns = np.nonzero(layers == glyph)
    mask = np.zeros(layers.shape, np.float32)
    top, left, bottom, right = rng.integers(1, _MARGIN + 1, size=4)
    mask[
        max(0, rows.min() - top) : rows.max() + 1 + bottom,
        max(0, columns.min() - left) : columns.max() + 1 + right,
    ] = 1
    return mask
