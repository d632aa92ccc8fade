"""The denoising UNet of latent diffusion, v1 and v2 dialects, with the originals' key names.

Source of the structure: CompVis and Stability-AI `ldm/modules/diffusionmodules/openaimodel.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ldm.nn.attention import SpatialTransformer
from ldm.nn.layers import AttentionBlock, Downsample, ResBlock, Upsample, timestep_embedding
from ldm.nn.rows import VectorLinear


class TimestepEmbedSequential(nn.Sequential):
    """A sequence whose members each take what they need of (x, time embedding, context)."""

    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None = None) -> Tensor:  # type: ignore[override]
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


@dataclass(frozen=True)
class _Parts:
    """Makes the blocks of a network, all with the same settings."""

    emb_channels: int
    dropout: float
    use_scale_shift_norm: bool
    resblock_updown: bool
    conv_resample: bool
    num_heads: int
    num_head_channels: int
    num_heads_upsample: int
    new_order: bool
    transformer: bool
    context_dim: int | None
    legacy: bool
    use_linear: bool
    num_groups: int

    def __post_init__(self) -> None:
        if self.num_heads == -1 and self.num_head_channels == -1:
            raise ValueError("one of num_heads and num_head_channels must be set")

    def res(self, cin: int, cout: int, *, up: bool = False, down: bool = False) -> ResBlock:
        return ResBlock(
            cin,
            self.emb_channels,
            cout,
            dropout=self.dropout,
            use_scale_shift_norm=self.use_scale_shift_norm,
            up=up,
            down=down,
            num_groups=self.num_groups,
        )

    def down(self, ch: int) -> nn.Module:
        if self.resblock_updown:
            return self.res(ch, ch, down=True)
        return Downsample(ch, self.conv_resample)

    def up(self, ch: int) -> nn.Module:
        if self.resblock_updown:
            return self.res(ch, ch, up=True)
        return Upsample(ch, self.conv_resample)

    def attention(self, ch: int, depth: int, no_self: bool, upward: bool = False) -> nn.Module:
        if self.num_head_channels == -1:
            heads, dim_head = self.num_heads, ch // self.num_heads
            if upward and not self.transformer and self.num_heads_upsample != -1:
                heads = self.num_heads_upsample
        else:
            heads, dim_head = ch // self.num_head_channels, self.num_head_channels
        if not self.transformer:
            return AttentionBlock(ch, heads, self.new_order, self.num_groups)
        if self.legacy:
            dim_head = ch // heads
        return SpatialTransformer(
            ch,
            heads,
            dim_head,
            depth,
            self.context_dim,
            no_self,
            self.use_linear,
            self.num_groups,
        )


class UNetModel(nn.Module):
    """Noise (or v) prediction network.

    `forward(x [B,in_channels,h,w], timesteps [B], context [B,L,context_dim]?, y?)
    -> [B,out_channels,h,w]`; y is [B] integers (`num_classes` an integer), [B,1] floats
    ("continuous") or [B,adm_in_channels] ("sequential"). h and w must be multiples of
    2**(levels - 1). Parameters carry the names of the original YAMLs; `num_groups` is ours, for
    narrow networks: a group of one or two channels normalises away what is added to a channel.
    """

    def __init__(
        self,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int | Sequence[int],
        attention_resolutions: Sequence[int],
        dropout: float = 0.0,
        channel_mult: Sequence[int] = (1, 2, 4, 8),
        conv_resample: bool = True,
        num_classes: int | str | None = None,
        num_heads: int = -1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        use_spatial_transformer: bool = False,
        transformer_depth: int | Sequence[int] = 1,
        context_dim: int | None = None,
        legacy: bool = True,
        disable_self_attentions: Sequence[bool] | None = None,
        num_attention_blocks: Sequence[int] | None = None,
        disable_middle_self_attn: bool = False,
        use_linear_in_transformer: bool = False,
        adm_in_channels: int | None = None,
        num_groups: int = 32,
    ) -> None:
        super().__init__()
        levels = len(channel_mult)
        widths = [mult * model_channels for mult in channel_mult]
        depths = _per_level(transformer_depth, levels)
        blocks = _per_level(num_res_blocks, levels)
        make = _Parts(
            emb_channels=model_channels * 4,
            dropout=dropout,
            use_scale_shift_norm=use_scale_shift_norm,
            resblock_updown=resblock_updown,
            conv_resample=conv_resample,
            num_heads=num_heads,
            num_head_channels=num_head_channels,
            num_heads_upsample=num_heads_upsample,
            new_order=use_new_attention_order,
            transformer=use_spatial_transformer,
            context_dim=context_dim,
            legacy=legacy,
            use_linear=use_linear_in_transformer,
            num_groups=num_groups,
        )
        no_self = disable_self_attentions or [False] * levels
        self.in_channels = in_channels
        self.model_channels = model_channels
        self.num_classes = num_classes
        self.levels = levels

        def attends(level: int, block: int) -> bool:
            limited = num_attention_blocks is not None and block >= num_attention_blocks[level]
            return 2**level in attention_resolutions and not limited

        self.time_embed = nn.Sequential(
            VectorLinear(model_channels, make.emb_channels),
            nn.SiLU(),
            VectorLinear(make.emb_channels, make.emb_channels),
        )
        if num_classes is not None:
            self.label_emb = _label_embedding(num_classes, adm_in_channels, make.emb_channels)

        first = nn.Conv2d(in_channels, model_channels, 3, padding=1)
        self.input_blocks = nn.ModuleList([TimestepEmbedSequential(first)])
        skips, ch = [model_channels], model_channels
        for level, width in enumerate(widths):
            for block in range(blocks[level]):
                layers: list[nn.Module] = [make.res(ch, width)]
                ch = width
                if attends(level, block):
                    layers.append(make.attention(ch, depths[level], no_self[level]))
                self.input_blocks.append(TimestepEmbedSequential(*layers))
                skips.append(ch)
            if level != levels - 1:
                self.input_blocks.append(TimestepEmbedSequential(make.down(ch)))
                skips.append(ch)

        self.middle_block = TimestepEmbedSequential(
            make.res(ch, ch),
            make.attention(ch, depths[-1], disable_middle_self_attn),
            make.res(ch, ch),
        )

        self.output_blocks = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for block in range(blocks[level] + 1):
                layers = [make.res(ch + skips.pop(), width)]
                ch = width
                if attends(level, block):
                    layers.append(make.attention(ch, depths[level], no_self[level], upward=True))
                if level and block == blocks[level]:
                    layers.append(make.up(ch))
                self.output_blocks.append(TimestepEmbedSequential(*layers))

        self.out = nn.Sequential(
            nn.GroupNorm(num_groups, ch), nn.SiLU(), nn.Conv2d(ch, out_channels, 3, padding=1)
        )

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the weights are held in."""
        return next(self.parameters()).dtype

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
            h = module(torch.cat([h, skips.pop()], dim=1), emb, context)
        out: Tensor = self.out(h)
        return out


def _per_level(value: int | Sequence[int], levels: int) -> list[int]:
    if isinstance(value, int):
        return [value] * levels
    if len(value) != levels:
        raise ValueError(f"{list(value)} must have one entry for each of {levels} levels")
    return list(value)


def _label_embedding(num_classes: int | str, adm_in_channels: int | None, width: int) -> nn.Module:
    """Embedding of y: a table of classes, of one number, or of a vector."""
    if isinstance(num_classes, int):
        return nn.Embedding(num_classes, width)
    if num_classes == "continuous":
        return VectorLinear(1, width)
    if num_classes == "sequential" and adm_in_channels is not None:
        first, last = VectorLinear(adm_in_channels, width), VectorLinear(width, width)
        return nn.Sequential(nn.Sequential(first, nn.SiLU(), last))
    raise ValueError(f"num_classes {num_classes!r} is not an integer, 'continuous' or 'sequential'")
