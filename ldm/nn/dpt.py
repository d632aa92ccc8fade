"""DPT-hybrid, the depth estimator of v2-midas checkpoints, under MiDaS's key names.

Ranftl et al. 2021 (arXiv 2103.13413): a ResNet computes the patches of a vision transformer, and
four feature maps, two from each, are fused from coarse to fine. Sources of the arithmetic: MiDaS
`midas/{dpt_depth,vit,blocks}.py`; timm `vit_base_resnet50_384` for the two networks inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.nn.attention import attention

MULTIPLE = 32  # of an input's sides: the coarsest feature map has one value per 32 pixels
_PATCH = 16


@dataclass(frozen=True)
class DPTSizes:
    """Sizes of a DPT-hybrid; the defaults are those of the published model.

    `stages` are (channels, blocks) of the ResNet; `taps` are the transformer blocks whose outputs
    become the two coarse feature maps; `grid` is the side, in patches, of the position table.
    """

    stem: int = 64
    stages: tuple[tuple[int, int], ...] = ((256, 3), (512, 4), (1024, 9))
    width: int = 768
    heads: int = 12
    layers: int = 12
    taps: tuple[int, int] = (8, 11)
    grid: int = 24
    features: int = 256
    classes: int = 1000


DPT_HYBRID = DPTSizes()


def _same(x: Tensor, size: int, stride: int) -> Tensor:
    """Pad like TensorFlow's SAME: outputs of ceil(side / stride), the odd pixel at the end."""
    missing = []
    for side in (x.shape[-1], x.shape[-2]):
        total = max((-(-side // stride) - 1) * stride + size - side, 0)
        missing += [total // 2, total - total // 2]
    return F.pad(x, missing) if any(missing) else x


class _StandardConv(nn.Conv2d):
    """A convolution with weights of mean 0 and variance 1 per output (arXiv 1903.10520)."""

    def __init__(self, cin: int, cout: int, size: int, stride: int = 1) -> None:
        super().__init__(cin, cout, size, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.float()  # 1e-8 underflows in half precision
        variance, mean = torch.var_mean(weight, (1, 2, 3), correction=0, keepdim=True)
        weight = ((weight - mean) * torch.rsqrt(variance + 1e-8)).to(x.dtype)
        return F.conv2d(_same(x, self.kernel_size[0], self.stride[0]), weight, None, self.stride)


class _ConvNorm(nn.Module):
    def __init__(self, cin: int, cout: int, size: int, stride: int) -> None:
        super().__init__()
        self.conv = _StandardConv(cin, cout, size, stride)
        self.norm = nn.GroupNorm(32, cout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x))
        return out


class _Bottleneck(nn.Module):
    def __init__(self, cin: int, cout: int, stride: int, first: bool) -> None:
        super().__init__()
        inner = cout // 4
        self.downsample = _ConvNorm(cin, cout, 1, stride) if first else None
        self.conv1 = _StandardConv(cin, inner, 1)
        self.norm1 = nn.GroupNorm(32, inner)
        self.conv2 = _StandardConv(inner, inner, 3, stride)
        self.norm2 = nn.GroupNorm(32, inner)
        self.conv3 = _StandardConv(inner, cout, 1)
        self.norm3 = nn.GroupNorm(32, cout)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        return F.relu(self.norm3(self.conv3(x)) + shortcut)


class _Stage(nn.Module):
    def __init__(self, cin: int, cout: int, count: int, stride: int) -> None:
        super().__init__()
        first = _Bottleneck(cin, cout, stride, first=True)
        rest = (_Bottleneck(cout, cout, 1, first=False) for _ in range(count - 1))
        self.blocks = nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(x)
        return out


class _Backbone(nn.Module):
    """Images [B,3,H,W] -> the output of each stage, at 1/4, 1/8 and 1/16 of the size."""

    def __init__(self, sizes: DPTSizes) -> None:
        super().__init__()
        self.stem = _ConvNorm(3, sizes.stem, 7, stride=2)
        self.stages = nn.Sequential()
        width = sizes.stem
        for index, (channels, count) in enumerate(sizes.stages):
            self.stages.append(_Stage(width, channels, count, stride=2 if index else 1))
            width = channels

    def forward(self, x: Tensor) -> list[Tensor]:
        # Padding the pool with zeros is safe, because no value is negative.
        x = F.max_pool2d(_same(F.relu(self.stem(x)), 3, 2), 3, 2)
        outputs = []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs


class _PatchEmbed(nn.Module):
    def __init__(self, sizes: DPTSizes) -> None:
        super().__init__()
        self.backbone = _Backbone(sizes)
        self.proj = nn.Conv2d(sizes.stages[-1][0], sizes.width, 1)


class _Attention(nn.Module):
    def __init__(self, sizes: DPTSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.qkv = nn.Linear(sizes.width, 3 * sizes.width)
        self.proj = nn.Linear(sizes.width, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        out: Tensor = self.proj(attention(q, k, v, self.heads))
        return out


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class _Block(nn.Module):
    def __init__(self, sizes: DPTSizes) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(sizes.width, eps=1e-6)
        self.attn = _Attention(sizes)
        self.norm2 = nn.LayerNorm(sizes.width, eps=1e-6)
        self.mlp = _Mlp(sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class _VisionTransformer(nn.Module):
    def __init__(self, sizes: DPTSizes) -> None:
        super().__init__()
        self.taps = sizes.taps
        self.grid = sizes.grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, sizes.grid**2 + 1, sizes.width))
        self.patch_embed = _PatchEmbed(sizes)
        self.blocks = nn.Sequential(*(_Block(sizes) for _ in range(sizes.layers)))
        # Layers of the original classifier; depth uses earlier outputs.
        self.norm = nn.LayerNorm(sizes.width, eps=1e-6)
        self.head = nn.Linear(sizes.width, sizes.classes)

    def forward(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Images [B,3,H,W] -> the ResNet's maps [B,C,h,w] and the tapped tokens [B,1+N,D]."""
        maps = self.patch_embed.backbone(images)
        patches = self.patch_embed.proj(maps[-1])
        rows, columns = patches.shape[-2:]
        x = patches.flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1)
        x = x + self._positions(rows, columns)
        tapped = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.taps:
                tapped.append(x)
        return maps, tapped

    def _positions(self, rows: int, columns: int) -> Tensor:
        """The table [1,1+rows*columns,D], resized to the patches of an image."""
        first, rest = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        table = rest.transpose(1, 2).reshape(1, -1, self.grid, self.grid)
        table = F.interpolate(table, size=(rows, columns), mode="bilinear", align_corners=False)
        return torch.cat([first, table.flatten(2).transpose(1, 2)], dim=1)


class _Readout(nn.Module):
    """Merge the class token into each patch: tokens [B,1+N,D] -> [B,N,D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(2 * width, width), nn.GELU())

    def forward(self, tokens: Tensor) -> Tensor:
        patches = tokens[:, 1:]
        readout = tokens[:, :1].expand_as(patches)
        out: Tensor = self.project(torch.cat([patches, readout], dim=-1))
        return out


class _Pretrained(nn.Module):
    """Images [B,3,H,W] -> four feature maps, at 1/4, 1/8, 1/16 and 1/32 of the size."""

    def __init__(self, sizes: DPTSizes) -> None:
        super().__init__()
        width = sizes.width
        self.model = _VisionTransformer(sizes)
        # Entries 1 and 2 of the originals transpose and unflatten, without parameters.
        nothing = (nn.Identity(), nn.Identity())
        self.act_postprocess3 = nn.Sequential(_Readout(width), *nothing, nn.Conv2d(width, width, 1))
        self.act_postprocess4 = nn.Sequential(
            _Readout(width),
            *nothing,
            nn.Conv2d(width, width, 1),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        maps, tapped = self.model(images)
        grid = (images.shape[-2] // _PATCH, images.shape[-1] // _PATCH)
        coarse = []
        for post, tokens in zip(
            (self.act_postprocess3, self.act_postprocess4), tapped, strict=True
        ):
            patches = post[0](tokens).transpose(1, 2).unflatten(2, grid)
            coarse.append(post[3:](patches))
        return [maps[0], maps[1], *coarse]


class _ResidualUnit(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv2(F.relu(self.conv1(F.relu(x))))
        return out


class _Fusion(nn.Module):
    """Add a finer map to the coarser result (none for the coarsest), and double its size."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(features, features, 1)
        self.resConfUnit1 = _ResidualUnit(features)
        self.resConfUnit2 = _ResidualUnit(features)

    def forward(self, finer: Tensor, below: Tensor | None = None) -> Tensor:
        x = self.resConfUnit2(finer if below is None else below + self.resConfUnit1(finer))
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        out: Tensor = self.out_conv(x)
        return out


class _Scratch(nn.Module):
    """Four feature maps, fine to coarse -> depth [B,1,H,W], at least 0."""

    def __init__(self, sizes: DPTSizes) -> None:
        super().__init__()
        features = sizes.features
        channels = (sizes.stages[0][0], sizes.stages[1][0], sizes.width, sizes.width)
        for level, count in enumerate(channels, start=1):
            reassemble = nn.Conv2d(count, features, 3, padding=1, bias=False)
            self.add_module(f"layer{level}_rn", reassemble)
            self.add_module(f"refinenet{level}", _Fusion(features))
        self.output_conv = nn.Sequential(
            nn.Conv2d(features, features // 2, 3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            nn.Conv2d(features // 2, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 1, 1),
        )

    def forward(self, maps: list[Tensor]) -> Tensor:
        x: Tensor | None = None
        for level in (4, 3, 2, 1):
            finer = self.get_submodule(f"layer{level}_rn")(maps[level - 1])
            x = self.get_submodule(f"refinenet{level}")(finer, x)
        return F.relu(self.output_conv(x))


class DPTDepthModel(nn.Module):
    """The network itself; the keys of MiDaS's own files start here."""

    def __init__(self, sizes: DPTSizes = DPT_HYBRID) -> None:
        super().__init__()
        self.pretrained = _Pretrained(sizes)
        self.scratch = _Scratch(sizes)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B,3,H,W] in [-1,1], sides multiples of 32 -> inverse depth [B,H,W], >= 0.

        Larger is nearer; scale and offset are arbitrary. The weights were trained near 384x384.
        Raises ValueError for other sides.
        """
        height, width = images.shape[-2:]
        if height % MULTIPLE or width % MULTIPLE:
            raise ValueError(f"sides must be multiples of {MULTIPLE}, not {width}x{height}")
        depth: Tensor = self.scratch(self.pretrained(images)).squeeze(1)
        return depth


class MiDaSInference(nn.Module):
    """`depth_model` of a v2-midas checkpoint (Stability `ldm/modules/midas/api.py`)."""

    def __init__(self, sizes: DPTSizes = DPT_HYBRID) -> None:
        super().__init__()
        self.model = DPTDepthModel(sizes)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights and of the computation."""
        return next(self.parameters()).dtype

    def forward(self, images: Tensor) -> Tensor:
        """Images [B,3,H,W] in [-1,1], any float type -> inverse depth [B,1,H,W], float32.

        Sides and errors as in `DPTDepthModel`.
        """
        depth: Tensor = self.model(images.to(self.dtype))
        return depth.unsqueeze(1).float()
