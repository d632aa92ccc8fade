"""Building blocks of the UNet, under the originals' key names.

Source of the arithmetic: CompVis `ldm/modules/diffusionmodules/openaimodel.py` and `util.py`
(after OpenAI's guided diffusion).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.nn.attention import attention
from ldm.nn.rows import PointConv2d, VectorLinear


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal embedding of (possibly fractional) time steps: cosines, then sines.

    t [B] -> [B, dim] float32. Vaswani et al. 2017 (arXiv 1706.03762), section 3.5.
    """
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t.float()[:, None] * torch.exp(-math.log(max_period) * exponent)
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(embedding, (0, dim % 2))


class Downsample(nn.Module):
    """Halve height and width, by a strided convolution or by averaging [B,C,h,w]."""

    def __init__(self, channels: int, use_conv: bool, out_channels: int | None = None) -> None:
        super().__init__()
        self.op: nn.Module
        if use_conv:
            self.op = nn.Conv2d(channels, out_channels or channels, 3, stride=2, padding=1)
        else:
            self.op = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.op(x)
        return out


Size = tuple[int, int]


class Upsample(nn.Module):
    """Double height and width by repetition, then convolve if asked. [B,C,h,w] -> [B,C',2h,2w].

    With a `size` (height, width) of about the double, the result has that one: an odd side of a
    map was rounded when it was halved (as in diffusers and ComfyUI).
    """

    def __init__(self, channels: int, use_conv: bool, out_channels: int | None = None) -> None:
        super().__init__()
        self.conv = (
            nn.Conv2d(channels, out_channels or channels, 3, padding=1) if use_conv else None
        )

    def forward(self, x: Tensor, size: Size | None = None) -> Tensor:
        if is_double(x, size):
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        else:
            x = F.interpolate(x, size=size, mode="nearest")
        return x if self.conv is None else self.conv(x)


def is_double(x: Tensor, size: Size | None) -> bool:
    """Whether a size is twice that of a map [B,C,h,w], or not given."""
    return size is None or size == (2 * x.shape[-2], 2 * x.shape[-1])


class ResBlock(nn.Module):
    """Two convolutions with the time embedding added (or scaling and shifting) in between.

    x [B, C, h, w], emb [B, E] -> [B, out_channels, h, w]; `up` and `down` resize inside the block.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        out_channels: int,
        *,
        dropout: float = 0.0,
        use_scale_shift_norm: bool = False,
        up: bool = False,
        down: bool = False,
        num_groups: int = 32,
    ) -> None:
        super().__init__()
        self.use_scale_shift_norm = use_scale_shift_norm
        self.in_layers = nn.Sequential(
            nn.GroupNorm(num_groups, channels),
            nn.SiLU(),
            nn.Conv2d(channels, out_channels, 3, padding=1),
        )
        self.resize: nn.Module | None = None
        if up:
            self.resize = Upsample(channels, use_conv=False)
        elif down:
            self.resize = Downsample(channels, use_conv=False)
        emb_out = 2 * out_channels if use_scale_shift_norm else out_channels
        self.emb_layers = nn.Sequential(nn.SiLU(), VectorLinear(emb_channels, emb_out))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(num_groups, out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        self.skip_connection: nn.Module = (
            nn.Identity() if out_channels == channels else PointConv2d(channels, out_channels)
        )

    def forward(self, x: Tensor, emb: Tensor, size: Size | None = None) -> Tensor:
        if self.resize is None:
            h = self.in_layers(x)
        else:
            sized = (size,) if isinstance(self.resize, Upsample) else ()
            h = self.in_layers[2](self.resize(self.in_layers[:2](x), *sized))
            x = self.resize(x, *sized)
        emb = self.emb_layers(emb)[:, :, None, None]
        if self.use_scale_shift_norm:
            scale, shift = emb.chunk(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + emb)
        out: Tensor = self.skip_connection(x) + h
        return out


class AttentionBlock(nn.Module):
    """Self attention over pixels, residual, for models without text. [B,C,h,w] -> the same shape.

    `new_order` says how the channels of the joint projection are laid out: q, k, v each with all
    heads (new), or head by head with its q, k, v (the originals' default).
    """

    def __init__(
        self, channels: int, heads: int, new_order: bool = False, num_groups: int = 32
    ) -> None:
        super().__init__()
        self.heads = heads
        self.new_order = new_order
        self.norm = nn.GroupNorm(num_groups, channels)
        self.qkv = nn.Conv1d(channels, channels * 3, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.qkv(self.norm(x).flatten(2)).transpose(1, 2)
        if self.new_order:
            q, k, v = tokens.chunk(3, dim=-1)
        else:
            heads = tokens.reshape(*tokens.shape[:2], self.heads, 3, -1)
            q, k, v = (part.flatten(-2) for part in heads.unbind(dim=-2))
        h = self.proj_out(attention(q, k, v, self.heads).transpose(1, 2))
        out: Tensor = x + h.reshape(x.shape)
        return out
