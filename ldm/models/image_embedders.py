"""Embedders of images and maps, under the class and attribute names of the original YAMLs.

Source: CompVis and Stability `ldm/modules/encoders/modules.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import ConfigError, UsageError
from ldm.nn.clip import OpenCLIP
from ldm.nn.clip_sizes import open_clip_config
from ldm.nn.layers import timestep_embedding
from ldm.sampling.buffers import augmentor_buffers
from ldm.sampling.schedule import NoiseSchedule


class SpatialRescaler(nn.Module):
    """The conditioner of models that take a map: resizes it and mixes its channels."""

    def __init__(
        self,
        n_stages: int = 1,
        method: str = "bilinear",
        multiplier: float = 0.5,
        in_channels: int = 3,
        out_channels: int | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if method not in ("nearest", "bilinear", "bicubic", "area"):
            raise ConfigError(f"method {method!r} must be nearest, bilinear, bicubic or area")
        self.n_stages, self.method, self.multiplier = n_stages, method, multiplier
        self.channel_mapper = (
            None if out_channels is None else nn.Conv2d(in_channels, out_channels, 1, bias=bias)
        )

    def forward(self, maps: Tensor) -> Tensor:
        """[B, in_channels, H, W] -> [B, out_channels, h, w], a `Conditioning.concat`."""
        for _ in range(self.n_stages):
            maps = F.interpolate(maps, scale_factor=self.multiplier, mode=self.method)
        return maps if self.channel_mapper is None else self.channel_mapper(maps)

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, list[str]]:
        """Raises UsageError: this model takes no text."""
        raise UsageError("this model is conditioned on a map, not on text")

    def unknown_words(self, text: str) -> list[str]:
        """Always []."""
        return []


# Mean and deviation of CLIP's training images in [0,1]: red, green, blue.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)


class FrozenOpenCLIPImageEmbedder(nn.Module):
    """The image conditioner of Stable unCLIP: an open_clip vision tower.

    `text_layers` keeps the text tower's keys, which the checkpoint of the L variant has.
    """

    def __init__(
        self,
        arch: str = "ViT-H-14",
        model_config: Mapping[str, Any] | None = None,
        text_layers: bool = False,
    ) -> None:
        super().__init__()
        config = open_clip_config(arch, model_config)
        self.model = OpenCLIP(config, text_layers=text_layers, vision=True)

    def preprocess(self, images: Tensor) -> Tensor:
        """Images [B,3,H,W] in [-1,1] -> [B,3,S,S] of the tower's size, normalised; float32."""
        x = (resized(images.float(), self.model.visual.image_size) + 1) / 2
        return (x - x.new_tensor(_MEAN).view(3, 1, 1)) / x.new_tensor(_DEVIATION).view(3, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B,3,H,W] in [-1,1] -> embeddings [B, embed_dim]."""
        out: Tensor = self.model.visual(self.preprocess(images).to(self.model.visual.proj.dtype))
        return out


def resized(images: Tensor, size: int) -> Tensor:
    """Images [B,C,H,W] -> [B,C,size,size]: bicubic, corners kept, blurred before if they shrink.

    What kornia's resize(antialias=True) did for the originals: a Gaussian whose deviation is half
    of what the factor is over 1, in a window of two deviations to either side.
    """
    batch, channels, height, width = images.shape
    if height == width == size:
        return images
    if max(height, width) > size:
        rows, columns = _gaussian(height / size).to(images), _gaussian(width / size).to(images)
        up, left = len(rows) // 2, len(columns) // 2
        x = F.pad(images, (left, left, up, up), mode="reflect")
        x = x.reshape(batch * channels, 1, *x.shape[2:])
        x = F.conv2d(F.conv2d(x, rows.view(1, 1, -1, 1)), columns.view(1, 1, 1, -1))
        images = x.view(batch, channels, height, width)
    return F.interpolate(images, (size, size), mode="bicubic", align_corners=True)


def _gaussian(factor: float) -> Tensor:
    deviation = max((factor - 1) / 2, 0.001)
    reach = int(max(4 * deviation, 3)) // 2
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32)
    return torch.softmax(-((offsets / deviation) ** 2) / 2, dim=0)


class CLIPEmbeddingNoiseAugmentation(nn.Module):
    """Noise for image embeddings, with the level as an embedding beside it (Stable unCLIP).

    Its statistics are the identity, as the released YAMLs without `clip_stats_path` have it.
    """

    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor

    def __init__(self, schedule: NoiseSchedule, timestep_dim: int = 256) -> None:
        super().__init__()
        self.timestep_dim = timestep_dim
        for name, values in augmentor_buffers(schedule).items():
            self.register_buffer(name, values)

    def forward(self, embedding: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        """[B,D] at integer levels [B] with noise [B,D] -> noised embedding and the level's
        embedding joined, [B, D + timestep_dim]."""
        keep = self.sqrt_alphas_cumprod[level][:, None]
        add = self.sqrt_one_minus_alphas_cumprod[level][:, None]
        noised = keep * embedding + add * noise
        return torch.cat([noised, timestep_embedding(level, self.timestep_dim).to(noised)], dim=1)
