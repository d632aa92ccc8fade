"""Encoder, decoder and the KL autoencoder made of them, with the originals' key names.

Source of the structure: CompVis `ldm/modules/diffusionmodules/model.py` and
`ldm/models/autoencoder.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.nn.attention import attention
from ldm.nn.upsampling import in_phases, phase_kernels


@dataclass(frozen=True)
class DiagonalGaussian:
    """The encoder's posterior: mean and log variance, each [B, embed_dim, h, w]."""

    mean: Tensor
    logvar: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> DiagonalGaussian:
        """Split [B, 2*embed_dim, h, w]; the log variance is clamped to [-30, 20]."""
        mean, logvar = moments.chunk(2, dim=1)
        return cls(mean, logvar.clamp(-30.0, 20.0))

    def mode(self) -> Tensor:
        return self.mean

    def sample(self, noise: Tensor) -> Tensor:
        """Mean plus deviation times `noise` (standard normal, the shape of the mean)."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Tensor:
        """Divergence from the standard normal, summed over all but the batch: [B], in nats."""
        terms = self.mean.square() + self.logvar.exp() - 1.0 - self.logvar
        return 0.5 * terms.flatten(1).sum(dim=1)


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


def _silu(norm: nn.Module, x: Tensor) -> Tensor:
    """SiLU of a norm's output, in place if no gradient needs both."""
    normed: Tensor = norm(x)
    return F.silu(normed, inplace=not normed.requires_grad)


class ResnetBlock(nn.Module):
    """Two normed SiLU convolutions, residual. [B, C, h, w] -> [B, C', h, w]."""

    def __init__(self, cin: int, cout: int, dropout: float = 0.0, groups: int = 32) -> None:
        super().__init__()
        self.norm1 = _norm(cin, groups)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.norm2 = _norm(cout, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(cin, cout, 1) if cin != cout else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(_silu(self.norm1, x))
        h = self.conv2(self.dropout(_silu(self.norm2, h)))
        out: Tensor = h + (x if self.nin_shortcut is None else self.nin_shortcut(x))
        return out


class AttnBlock(nn.Module):
    """Single-head self attention over pixels, residual. [B, C, h, w] -> the same shape."""

    def __init__(self, channels: int, groups: int = 32) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (f(normed).flatten(2).transpose(1, 2) for f in (self.q, self.k, self.v))
        h = attention(q, k, v, heads=1).transpose(1, 2).reshape(x.shape)
        out: Tensor = x + self.proj_out(h)
        return out


class _Downsample(nn.Module):
    """Strided convolution that pads at the right and bottom only. [B,C,h,w] -> [B,C,h/2,w/2]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return out


class _Upsample(nn.Module):
    """Repetition, then a convolution. [B,C,h,w] -> [B,C,2h,2w]."""

    in_phases = False  # see `upsample_in_phases`

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if self.in_phases and not torch.is_grad_enabled():
            kernels, bias = phase_kernels(self.conv.weight), self.conv.bias
            return in_phases(
                x, [partial(F.conv2d, weight=k, bias=bias, padding=1) for k in kernels]
            )
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))
        return out


def upsample_in_phases(module: nn.Module) -> None:
    """Switch an autoencoder's decoder to faster upsampling (`ldm.nn.upsampling`)."""
    for part in module.modules():
        if isinstance(part, _Upsample):
            part.in_phases = True


class _Level(nn.Module):
    """The blocks of one resolution, and the resize to the next, if any."""

    def __init__(self, channels: Sequence[int], attends: bool, dropout: float, groups: int) -> None:
        super().__init__()
        pairs = list(pairwise(channels))
        self.block = nn.ModuleList(ResnetBlock(cin, cout, dropout, groups) for cin, cout in pairs)
        self.attn = nn.ModuleList(AttnBlock(cout, groups) for _, cout in pairs if attends)
        self.downsample: _Downsample | None = None
        self.upsample: _Upsample | None = None

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[index](x)
        for resize in (self.downsample, self.upsample):
            if resize is not None:
                x = resize(x)
        return x


class _Middle(nn.Module):
    def __init__(self, channels: int, attends: bool, dropout: float, groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, dropout, groups)
        self.attn_1 = AttnBlock(channels, groups) if attends else nn.Identity()
        self.block_2 = ResnetBlock(channels, channels, dropout, groups)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block_2(self.attn_1(self.block_1(x)))
        return out


class Encoder(nn.Module):
    """Pixels [B, in_channels, H, W] -> features [B, z_channels (twice if double_z), H/f, W/f].

    Without `attends` no block attends, the middle one included.
    """

    def __init__(
        self,
        *,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        in_channels: int,
        resolution: int,
        z_channels: int,
        double_z: bool = True,
        attends: bool = True,
        dropout: float = 0.0,
        num_groups: int = 32,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.down = nn.ModuleList()
        width = ch
        for index, mult in enumerate(ch_mult):
            level = _Level(
                [width] + [ch * mult] * num_res_blocks,
                attends and resolution // 2**index in attn_resolutions,
                dropout,
                num_groups,
            )
            width = ch * mult
            if index != len(ch_mult) - 1:
                level.downsample = _Downsample(width)
            self.down.append(level)
        self.mid = _Middle(width, attends, dropout, num_groups)
        self.norm_out = _norm(width, num_groups)
        self.conv_out = nn.Conv2d(width, z_channels * (2 if double_z else 1), 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        out: Tensor = self.conv_out(_silu(self.norm_out, self.mid(h)))
        return out


class Decoder(nn.Module):
    """Features [B, z_channels, h, w] -> pixels [B, out_ch, h*f, w*f]; `attends` as in Encoder."""

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        resolution: int,
        z_channels: int,
        attends: bool = True,
        dropout: float = 0.0,
        tanh_out: bool = False,
        num_groups: int = 32,
    ) -> None:
        super().__init__()
        self.tanh_out = tanh_out
        width = ch * ch_mult[-1]
        self.conv_in = nn.Conv2d(z_channels, width, 3, padding=1)
        self.mid = _Middle(width, attends, dropout, num_groups)
        levels: list[_Level] = []
        for index, mult in reversed(list(enumerate(ch_mult))):
            level = _Level(
                [width] + [ch * mult] * (num_res_blocks + 1),
                attends and resolution // 2**index in attn_resolutions,
                dropout,
                num_groups,
            )
            width = ch * mult
            if index:
                level.upsample = _Upsample(width)
            levels.insert(0, level)
        self.up = nn.ModuleList(levels)
        self.norm_out = _norm(width, num_groups)
        self.conv_out = nn.Conv2d(width, out_ch, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(list(self.up)):
            h = level(h)
        h = self.conv_out(_silu(self.norm_out, h))
        return torch.tanh(h) if self.tanh_out else h


# All but "none" compute the same attention; the names select a kernel in the originals.
_ATTENTIONS = ("vanilla", "vanilla-xformers", "memory-efficient-cross-attn", "none")


def make_networks(ddconfig: Mapping[str, Any]) -> tuple[Encoder, Decoder]:
    """Both halves of an autoencoder; raises ValueError for an unknown attention type.

    `ddconfig` has the field names of the original YAMLs, and one of ours: `num_groups`, the groups
    of every norm (32). With ch 32, each group would be one channel, which erases flat colour.
    """
    names = ("ch", "ch_mult", "num_res_blocks", "attn_resolutions", "resolution", "z_channels")
    attention_type = ddconfig.get("attn_type", "vanilla")
    if attention_type not in _ATTENTIONS:
        known = ", ".join(_ATTENTIONS)
        raise ValueError(f"attn_type must be one of {known}, not {attention_type!r}")
    shared = {
        **{name: ddconfig[name] for name in names},
        "attends": attention_type != "none",
        "dropout": ddconfig.get("dropout", 0.0),
        "num_groups": ddconfig.get("num_groups", 32),
    }
    encoder = Encoder(
        in_channels=ddconfig["in_channels"], double_z=ddconfig.get("double_z", True), **shared
    )
    decoder = Decoder(out_ch=ddconfig["out_ch"], tanh_out=ddconfig.get("tanh_out", False), **shared)
    return encoder, decoder


class AutoencoderKL(nn.Module):
    """Variational autoencoder. Images are [B,3,H,W] in [-1,1]; latents are not scaled here.

    `ddconfig` as in `make_networks`. H and W must be multiples of `factor`. Without `quant_convs`
    (ours) the latents are those between encoder and decoder, as in Stable Diffusion 3.
    """

    quant_conv: nn.Module
    post_quant_conv: nn.Module

    def __init__(
        self, ddconfig: Mapping[str, Any], embed_dim: int, quant_convs: bool = True
    ) -> None:
        super().__init__()
        if not ddconfig.get("double_z", True):
            raise ValueError("a KL autoencoder needs double_z: true")
        self.encoder, self.decoder = make_networks(ddconfig)
        z_channels = ddconfig["z_channels"]
        if quant_convs:
            self.quant_conv = nn.Conv2d(2 * z_channels, 2 * embed_dim, 1)
            self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)
        elif embed_dim != z_channels:
            raise ValueError("embed_dim must be z_channels where quant_convs is false")
        else:
            self.quant_conv, self.post_quant_conv = nn.Identity(), nn.Identity()
        self.embed_dim = embed_dim
        self.factor = 2 ** (len(ddconfig["ch_mult"]) - 1)

    def moments(self, images: Tensor) -> Tensor:
        """[B,3,H,W] -> mean and log variance joined, [B,2*embed_dim,H/f,W/f]."""
        out: Tensor = self.quant_conv(self.encoder(images))
        return out

    def encode(self, images: Tensor) -> DiagonalGaussian:
        """[B,3,H,W] in [-1,1] -> posterior over [B,embed_dim,H/f,W/f]."""
        return DiagonalGaussian.from_moments(self.moments(images))

    def decode(self, z: Tensor) -> Tensor:
        """[B,embed_dim,h,w] -> images [B,3,h*f,w*f], near [-1,1] but not clamped."""
        out: Tensor = self.decoder(self.post_quant_conv(z))
        return out
