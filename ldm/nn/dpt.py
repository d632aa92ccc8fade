"""DPT-hybrid, the depth estimator inside v2-midas checkpoints, under MiDaS's key names.

Ranftl et al. 2021 (arXiv 2103.13413). The modules hold the weights; the forward pass comes with
the depth2img command.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_WIDTH, _LAYERS, _PATCHES = 768, 12, (384 // 16) ** 2
_FEATURES = 256
# (width inside, width out, blocks) of the three ResNet stages that make the patches.
_STAGES = ((64, 256, 3), (128, 512, 4), (256, 1024, 9))


class _ConvNorm(nn.Module):
    def __init__(self, cin: int, cout: int, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, size, bias=False)
        self.norm = nn.GroupNorm(32, cout)


class _Bottleneck(nn.Module):
    def __init__(self, cin: int, inner: int, cout: int) -> None:
        super().__init__()
        if cin != cout:
            self.downsample = _ConvNorm(cin, cout, 1)
        self.conv1 = nn.Conv2d(cin, inner, 1, bias=False)
        self.norm1 = nn.GroupNorm(32, inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, bias=False)
        self.norm2 = nn.GroupNorm(32, inner)
        self.conv3 = nn.Conv2d(inner, cout, 1, bias=False)
        self.norm3 = nn.GroupNorm(32, cout)


class _Stage(nn.Module):
    def __init__(self, cin: int, inner: int, cout: int, count: int) -> None:
        super().__init__()
        widths = [cin] + [cout] * (count - 1)
        self.blocks = nn.Sequential(*(_Bottleneck(width, inner, cout) for width in widths))


class _Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = _ConvNorm(3, 64, 7)
        stages, width = [], 64
        for inner, cout, count in _STAGES:
            stages.append(_Stage(width, inner, cout, count))
            width = cout
        self.stages = nn.Sequential(*stages)


class _PatchEmbed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = _Backbone()
        self.proj = nn.Conv2d(1024, _WIDTH, 1)


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(_WIDTH, 3 * _WIDTH)
        self.proj = nn.Linear(_WIDTH, _WIDTH)


class _Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(_WIDTH, 4 * _WIDTH)
        self.fc2 = nn.Linear(4 * _WIDTH, _WIDTH)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(_WIDTH)
        self.attn = _Attention()
        self.norm2 = nn.LayerNorm(_WIDTH)
        self.mlp = _Mlp()


class _VisionTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, _WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, _PATCHES + 1, _WIDTH))
        self.patch_embed = _PatchEmbed()
        self.blocks = nn.Sequential(*(_Block() for _ in range(_LAYERS)))
        self.norm = nn.LayerNorm(_WIDTH)
        self.head = nn.Linear(_WIDTH, 1000)  # of the classifier it came from


class _Readout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(2 * _WIDTH, _WIDTH), nn.GELU())


class _Pretrained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = _VisionTransformer()
        # Entries 1 and 2 transpose and unflatten; they hold nothing.
        nothing = (nn.Identity(), nn.Identity())
        self.act_postprocess3 = nn.Sequential(_Readout(), *nothing, nn.Conv2d(_WIDTH, _WIDTH, 1))
        self.act_postprocess4 = nn.Sequential(
            _Readout(),
            *nothing,
            nn.Conv2d(_WIDTH, _WIDTH, 1),
            nn.Conv2d(_WIDTH, _WIDTH, 3, stride=2, padding=1),
        )


class _ResidualUnit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(_FEATURES, _FEATURES, 3, padding=1)
        self.conv2 = nn.Conv2d(_FEATURES, _FEATURES, 3, padding=1)


class _Fusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(_FEATURES, _FEATURES, 1)
        self.resConfUnit1 = _ResidualUnit()
        self.resConfUnit2 = _ResidualUnit()


def _reassemble(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, _FEATURES, 3, padding=1, bias=False)


class _Scratch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1_rn = _reassemble(256)
        self.layer2_rn = _reassemble(512)
        self.layer3_rn = _reassemble(_WIDTH)
        self.layer4_rn = _reassemble(_WIDTH)
        self.refinenet1 = _Fusion()
        self.refinenet2 = _Fusion()
        self.refinenet3 = _Fusion()
        self.refinenet4 = _Fusion()
        self.output_conv = nn.Sequential(
            nn.Conv2d(_FEATURES, 128, 3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            nn.Conv2d(128, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 1, 1),
        )


class DPTDepthModel(nn.Module):
    """The network itself; MiDaS keys start here."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained = _Pretrained()
        self.scratch = _Scratch()


class MiDaSInference(nn.Module):
    """`depth_model` of a v2-midas checkpoint. Images [B,3,H,W] in [-1,1] -> depth [B,1,H,W]."""

    def __init__(self) -> None:
        super().__init__()
        self.model = DPTDepthModel()

    def forward(self, images: Tensor) -> Tensor:
        """Not there yet; raises NotImplementedError."""
        raise NotImplementedError("depth estimation comes with the depth2img command")
