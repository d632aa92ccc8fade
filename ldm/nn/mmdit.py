"""The multimodal diffusion transformer (MMDiT) of Stable Diffusion 3 and 3.5.

Esser et al. 2024 (arXiv 2403.03206); the dual attention is 3.5 medium's (MMDiT-X). Attribute names
are the keys of the original checkpoints (Stability-AI/sd3.5 `mmditx.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.nn.attention import attention
from ldm.nn.layers import timestep_embedding
from ldm.nn.rows import VectorLinear

_FREQUENCIES = 256
_EPS = 1e-6


@dataclass(frozen=True)
class MMDiTConfig:
    """The sizes of a network, with the names of the original class.

    `x_block_self_attn_layers` are the blocks with a second attention, over the image alone. Raises
    ValueError for contradictory settings.
    """

    depth: int
    hidden_size: int
    num_heads: int
    pos_embed_max_size: int
    adm_in_channels: int
    context_dim: int
    in_channels: int = 16
    out_channels: int = 16
    patch_size: int = 2
    qk_norm: str | None = None
    x_block_self_attn_layers: Sequence[int] = ()

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError("num_heads must divide hidden_size")
        if self.qk_norm not in (None, "rms"):
            raise ValueError(f"qk_norm must be rms or null, not {self.qk_norm!r}")
        if any(not 0 <= layer < self.depth for layer in self.x_block_self_attn_layers):
            raise ValueError(f"x_block_self_attn_layers must be 0 to {self.depth - 1}")


class _RMSNorm(nn.Module):
    """Divides by the root mean square over the last axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, _EPS)


class _Attention(nn.Module):
    """The projections around an attention; the last block's text has none after it."""

    def __init__(self, width: int, heads: int, qk_norm: bool, projects: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        if projects:
            self.proj = nn.Linear(width, width)
        self.ln_q = _RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.ln_k = _RMSNorm(width // heads) if qk_norm else nn.Identity()

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B,L,D] -> q, k and v, each [B,L,D]."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self._normed(self.ln_q, q), self._normed(self.ln_k, k), v

    def _normed(self, norm: nn.Module, x: Tensor) -> Tensor:
        normed: Tensor = norm(x.view(*x.shape[:-1], self.heads, -1))
        return normed.flatten(-2)


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


def _modulation(width: int, parts: int) -> nn.Sequential:
    """Scales, shifts and gates [B, parts * width] from the vector of time and text."""
    return nn.Sequential(nn.SiLU(), VectorLinear(width, parts * width))


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, elementwise_affine=False, eps=_EPS)


def _modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale[:, None]) + shift[:, None]


class _Block(nn.Module):
    """One stream of a joint block: its own weights around the attention that it shares.

    `last` is the text's in the last block, which only gives keys and values; `dual` has a second
    attention of its own.
    """

    def __init__(self, config: MMDiTConfig, last: bool = False, dual: bool = False) -> None:
        super().__init__()
        width, heads, qk_norm = config.hidden_size, config.num_heads, config.qk_norm is not None
        self.dual = dual
        self.norm1 = _norm(width)
        self.attn = _Attention(width, heads, qk_norm, projects=not last)
        if dual:
            self.attn2 = _Attention(width, heads, qk_norm)
        if not last:
            self.norm2 = _norm(width)
            self.mlp = _Mlp(width)
        self.parts = 2 if last else 9 if dual else 6
        self.adaLN_modulation = _modulation(width, self.parts)

    def modulation(self, c: Tensor) -> list[Tensor]:
        """The parts [B,D] of the modulation, in the checkpoint's order."""
        return list(self.adaLN_modulation(c).chunk(self.parts, dim=1))

    def after(self, x: Tensor, mixed: Tensor, parts: Sequence[Tensor]) -> Tensor:
        """The stream [B,L,D] after the attention, whose result for it is `mixed`."""
        gate, shift_mlp, scale_mlp, gate_mlp = parts[2:6]
        out: Tensor = x + gate[:, None] * self.attn.proj(mixed)
        if self.dual:
            shift, scale, gate = parts[6:]
            q, k, v = self.attn2.split(_modulated(self.norm1(x), shift, scale))
            out = out + gate[:, None] * self.attn2.proj(attention(q, k, v, self.attn2.heads))
        inner: Tensor = self.mlp(_modulated(self.norm2(out), shift_mlp, scale_mlp))
        return out + gate_mlp[:, None] * inner


class _JointBlock(nn.Module):
    """Text and image with weights of their own, and one attention over both."""

    def __init__(self, config: MMDiTConfig, index: int) -> None:
        super().__init__()
        self.last = index == config.depth - 1
        self.context_block = _Block(config, last=self.last)
        self.x_block = _Block(config, dual=index in config.x_block_self_attn_layers)

    def forward(self, context: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """context [B,L,D], x [B,N,D], c [B,D] -> both streams; the last context is not changed."""
        blocks, streams = (self.context_block, self.x_block), (context, x)
        parts = [block.modulation(c) for block in blocks]
        triples = [
            block.attn.split(_modulated(block.norm1(stream), *own[:2]))
            for block, stream, own in zip(blocks, streams, parts, strict=True)
        ]
        q, k, v = (torch.cat(pair, dim=1) for pair in zip(*triples, strict=True))
        mixed = attention(q, k, v, self.x_block.attn.heads)
        of_context, of_x = mixed[:, : context.shape[1]], mixed[:, context.shape[1] :]
        if not self.last:
            context = self.context_block.after(context, of_context, parts[0])
        return context, self.x_block.after(x, of_x, parts[1])


class _VectorMlp(nn.Module):
    """Two layers over a vector of the whole image [B,C] -> [B,D]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            VectorLinear(channels, width), nn.SiLU(), VectorLinear(width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp(x)
        return out


class _PatchEmbed(nn.Module):
    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        side = config.patch_size
        self.proj = nn.Conv2d(config.in_channels, config.hidden_size, side, stride=side)


class _FinalLayer(nn.Module):
    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm_final = _norm(width)
        self.linear = nn.Linear(width, config.patch_size**2 * config.out_channels)
        self.adaLN_modulation = _modulation(width, 2)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        out: Tensor = self.linear(_modulated(self.norm_final(x), shift, scale))
        return out


class MMDiT(nn.Module):
    """Noisy latents [B,C,h,w], times [B], text [B,L,D] and vectors [B,V] -> velocities [B,C,h,w].

    A latent is divided into patches; sides that do not divide are filled up at the right and the
    bottom, and cropped in the result. Positions are rows of a table for a square, whose middle is
    taken.
    """

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.x_embedder = _PatchEmbed(config)
        self.t_embedder = _VectorMlp(_FREQUENCIES, width)
        self.y_embedder = _VectorMlp(config.adm_in_channels, width)
        self.context_embedder = nn.Linear(config.context_dim, width)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.pos_embed_max_size**2, width))
        self.joint_blocks = nn.ModuleList(_JointBlock(config, i) for i in range(config.depth))
        self.final_layer = _FinalLayer(config)
        self.in_channels = config.in_channels
        self.model_channels = width  # of the widest planes, which are half as wide and high

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.pos_embed.dtype

    @property
    def stride(self) -> int:
        """Latent positions that a patch covers along a side."""
        return self.config.patch_size

    def positions(self, height: int, width: int) -> Tensor:
        """The table's middle for so many patches, [1, height*width, D]; ValueError beyond it."""
        side = self.config.pos_embed_max_size
        if max(height, width) > side:
            most = side * self.config.patch_size
            raise ValueError(f"the network has positions for latents of at most {most}x{most}")
        top, left = (side - height) // 2, (side - width) // 2
        table = self.pos_embed.view(1, side, side, -1)
        return table[:, top : top + height, left : left + width].flatten(1, 2)

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor,
        skip_layers: Collection[int] = (),
    ) -> Tensor:
        """`timesteps` are 1000 times the noise level; blocks in `skip_layers` are left out."""
        height, width, side = *x.shape[-2:], self.config.patch_size
        x = F.pad(x, (0, -width % side, 0, -height % side))
        rows, columns = x.shape[-2] // side, x.shape[-1] // side
        hidden = self.x_embedder.proj(x).flatten(2).transpose(1, 2)
        hidden = hidden + self.positions(rows, columns)
        times = timestep_embedding(timesteps, _FREQUENCIES).to(x.dtype)
        c = self.t_embedder(times) + self.y_embedder(y)
        context = self.context_embedder(context)
        for index, block in enumerate(self.joint_blocks):
            if index not in skip_layers:
                context, hidden = block(context, hidden, c)
        patches: Tensor = self.final_layer(hidden, c)
        patches = patches.view(len(x), rows, columns, side, side, -1)
        image = patches.permute(0, 5, 1, 3, 2, 4)
        return image.flatten(4, 5).flatten(2, 3)[..., :height, :width]
