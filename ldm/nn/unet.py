"""The denoising UNet of latent diffusion, in v1, v2 and SDXL variants, with the originals' keys.

Source of the structure: CompVis and Stability-AI `ldm/modules/diffusionmodules/openaimodel.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldm.nn.attention import SpatialTransformer
from ldm.nn.layers import AttentionBlock, Downsample, ResBlock, Upsample, timestep_embedding
from ldm.nn.packing import PackedUpsample
from ldm.nn.rows import VectorLinear


class TimestepEmbedSequential(nn.Sequential):
    """A sequence whose members each take what they need of (x, time embedding, context, size).

    `size` (height, width) is that of the map which the result is joined with.
    """

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        emb: Tensor,
        context: Tensor | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb, size)
            elif isinstance(layer, Upsample | PackedUpsample):
                x = layer(x, size)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


@dataclass(frozen=True)
class UNetConfig:
    """The settings of a network, with the names of the original YAMLs.

    Lists have one entry per level; -1 means that a number of heads is not given. `num_groups` is
    ours, for narrow networks: a group of one or two channels would normalise away the embedding
    added to it. Raises ValueError for contradictory settings.
    """

    in_channels: int
    model_channels: int
    out_channels: int
    num_res_blocks: int | Sequence[int]
    attention_resolutions: Sequence[int]
    dropout: float = 0.0
    channel_mult: Sequence[int] = (1, 2, 4, 8)
    conv_resample: bool = True
    num_classes: int | str | None = None
    num_heads: int = -1
    num_head_channels: int = -1
    num_heads_upsample: int = -1
    use_scale_shift_norm: bool = False
    resblock_updown: bool = False
    use_new_attention_order: bool = False
    use_spatial_transformer: bool = False
    transformer_depth: int | Sequence[int] = 1
    transformer_depth_middle: int | None = None
    context_dim: int | None = None
    legacy: bool = True
    disable_self_attentions: Sequence[bool] | None = None
    num_attention_blocks: Sequence[int] | None = None
    disable_middle_self_attn: bool = False
    use_linear_in_transformer: bool = False
    adm_in_channels: int | None = None
    num_groups: int = 32

    def __post_init__(self) -> None:
        if self.num_heads == -1 and self.num_head_channels == -1:
            raise ValueError("one of num_heads and num_head_channels must be set")

    @property
    def emb_channels(self) -> int:
        """Width of the time embedding."""
        return 4 * self.model_channels

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [mult * self.model_channels for mult in self.channel_mult]

    @property
    def blocks(self) -> list[int]:
        """Residual blocks of each level on the way down; there is one more on the way up."""
        return self._per_level(self.num_res_blocks)

    @property
    def depths(self) -> list[int]:
        """Transformer blocks in each attention of each level."""
        return self._per_level(self.transformer_depth)

    def attends(self, level: int, block: int) -> bool:
        """Whether a level attends after a block."""
        counts = self.num_attention_blocks
        limited = counts is not None and block >= counts[level]
        return 2**level in self.attention_resolutions and not limited

    def _per_level(self, value: int | Sequence[int]) -> list[int]:
        levels = len(self.channel_mult)
        if isinstance(value, int):
            return [value] * levels
        if len(value) != levels:
            raise ValueError(f"{list(value)} must have one entry for each of {levels} levels")
        return list(value)


class _Parts:
    """Builds the blocks of a network, all with the same settings."""

    def __init__(self, config: UNetConfig) -> None:
        self.config = config
        self.depths = config.depths

    def res(self, cin: int, cout: int, *, up: bool = False, down: bool = False) -> ResBlock:
        return ResBlock(
            cin,
            self.config.emb_channels,
            cout,
            dropout=self.config.dropout,
            use_scale_shift_norm=self.config.use_scale_shift_norm,
            up=up,
            down=down,
            num_groups=self.config.num_groups,
        )

    def down(self, ch: int) -> nn.Module:
        if self.config.resblock_updown:
            return self.res(ch, ch, down=True)
        return Downsample(ch, self.config.conv_resample)

    def up(self, ch: int) -> nn.Module:
        if self.config.resblock_updown:
            return self.res(ch, ch, up=True)
        return Upsample(ch, self.config.conv_resample)

    def attention(self, ch: int, level: int, *, upward: bool = False) -> nn.Module:
        """The attention of a level."""
        no_self = self.config.disable_self_attentions
        depth = self.depths[level]
        return self._attention(ch, depth, bool(no_self and no_self[level]), upward)

    def middle(self, ch: int) -> nn.Module:
        """The attention between the downward and upward paths."""
        depth = self.config.transformer_depth_middle
        depth = self.depths[-1] if depth is None else depth
        return self._attention(ch, depth, self.config.disable_middle_self_attn, False)

    def _attention(self, ch: int, depth: int, no_self: bool, upward: bool) -> nn.Module:
        config = self.config
        if config.num_head_channels == -1:
            heads, dim_head = config.num_heads, ch // config.num_heads
            if upward and not config.use_spatial_transformer and config.num_heads_upsample != -1:
                heads = config.num_heads_upsample
        else:
            heads, dim_head = ch // config.num_head_channels, config.num_head_channels
        if not config.use_spatial_transformer:
            return AttentionBlock(ch, heads, config.use_new_attention_order, config.num_groups)
        if config.legacy:
            dim_head = ch // heads
        return SpatialTransformer(
            ch,
            heads,
            dim_head,
            depth,
            config.context_dim,
            no_self,
            config.use_linear_in_transformer,
            config.num_groups,
        )


class UNetModel(nn.Module):
    """Noise (or v) prediction network.

    `forward(x [B,in_channels,h,w], timesteps [B], context [B,L,context_dim]?, y?)
    -> [B,out_channels,h,w]`; y is [B] integers (`num_classes` an integer), [B,1] floats
    ("continuous") or [B,adm_in_channels] ("sequential").
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        make, blocks, first = _Parts(config), config.blocks, config.model_channels
        self.in_channels = config.in_channels
        self.model_channels = first
        self.num_classes = config.num_classes
        self.levels = len(config.channel_mult)
        self.time_embed = nn.Sequential(
            VectorLinear(first, config.emb_channels),
            nn.SiLU(),
            VectorLinear(config.emb_channels, config.emb_channels),
        )
        if config.num_classes is not None:
            self.label_emb = _label_embedding(config)

        conv_in = nn.Conv2d(config.in_channels, first, 3, padding=1)
        self.input_blocks = nn.ModuleList([TimestepEmbedSequential(conv_in)])
        skips, ch = [first], first
        for level, width in enumerate(config.widths):
            for block in range(blocks[level]):
                layers: list[nn.Module] = [make.res(ch, width)]
                ch = width
                if config.attends(level, block):
                    layers.append(make.attention(ch, level))
                self.input_blocks.append(TimestepEmbedSequential(*layers))
                skips.append(ch)
            if level != self.levels - 1:
                self.input_blocks.append(TimestepEmbedSequential(make.down(ch)))
                skips.append(ch)

        self.middle_block = TimestepEmbedSequential(
            make.res(ch, ch), make.middle(ch), make.res(ch, ch)
        )

        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(config.widths))):
            for block in range(blocks[level] + 1):
                layers = [make.res(ch + skips.pop(), width)]
                ch = width
                if config.attends(level, block):
                    layers.append(make.attention(ch, level, upward=True))
                if level and block == blocks[level]:
                    layers.append(make.up(ch))
                self.output_blocks.append(TimestepEmbedSequential(*layers))

        norm = nn.GroupNorm(config.num_groups, ch)
        conv_out = nn.Conv2d(ch, config.out_channels, 3, padding=1)
        self.out = nn.Sequential(norm, nn.SiLU(), conv_out)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.parameters()).dtype

    @property
    def stride(self) -> int:
        """Latent positions that one of the lowest level covers along a side."""
        return int(2 ** (self.levels - 1))

    def forward(
        self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        if (y is not None) != (self.num_classes is not None):
            raise ValueError("y must be given exactly when the network is class-conditional")
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels).to(x.dtype))
        if y is not None:
            emb = emb + self.label_emb(y)
        skips = []
        h = x
        for module in self.input_blocks:
            h = module(h, emb, context)
            skips.append(h)
        h = self.middle_block(h, emb, context)
        for module in self.output_blocks:
            joined = torch.cat([h, skips.pop()], dim=1)
            h = module(joined, emb, context, _size(skips[-1]) if skips else None)
        out: Tensor = self.out(h)
        return out


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]


def _label_embedding(config: UNetConfig) -> nn.Module:
    """Embedding of y: a table of classes, of one number, or of a vector."""
    num_classes, width = config.num_classes, config.emb_channels
    if isinstance(num_classes, int):
        return nn.Embedding(num_classes, width)
    if num_classes == "continuous":
        return VectorLinear(1, width)
    if num_classes == "sequential" and config.adm_in_channels is not None:
        first, last = VectorLinear(config.adm_in_channels, width), VectorLinear(width, width)
        return nn.Sequential(nn.Sequential(first, nn.SiLU(), last))
    raise ValueError(f"num_classes {num_classes!r} is not an integer, 'continuous' or 'sequential'")
