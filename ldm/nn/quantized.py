"""Layers that multiply 8-bit integers (oneDNN): the network of `--precision int8`.

Weights are quantized once to int8, with a scale per output channel. Inputs are quantized to uint8
at every call, with a scale per image (convolutions) or token (linear layers), so that no image
depends on the rest of its batch. Sums are exact, in 32 bits; outputs are float32. The scheme is
Jacob et al. 2018 (arXiv 1712.05877), symmetric, with dynamic scales.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ldm.nn.rows import PointConv2d

# Smaller weights are not worth rounding, for example the first and the last convolution.
_LEAST = 1 << 14
# The zero point among the numbers from 0 to 255, and the largest distance from it.
_ZERO = 128
_MOST = 127
_TINY = torch.finfo(torch.float32).tiny


def can_quantize() -> bool:
    """Whether this build of torch has 8-bit layers."""
    return (
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.onednn, "qconv2d_pointwise")
        and hasattr(torch.ops.onednn, "qlinear_pointwise")
    )


class Int8Conv2d(nn.Module):
    """A convolution [B,C,h,w] -> [B,C',h',w'], float32, with a channels-last result."""

    weight: Tensor
    scales: Tensor
    zeros: Tensor

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        assert not isinstance(layer.padding, str)
        self.settings = (
            list(layer.stride), list(layer.padding), list(layer.dilation), layer.groups,
        )  # fmt: skip
        self.bias = layer.bias
        self.set_weight(layer.weight)

    def set_weight(self, weight: Tensor) -> None:
        """Quantize another weight."""
        weight, scales = _rounded(weight)
        packed = torch.ops.onednn.qconv_prepack(weight, scales, 1.0, _ZERO, *self.settings)
        self.register_buffer("weight", packed, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.register_buffer("zeros", torch.zeros(len(scales), dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        # In memory order, so that each image is contiguous.
        images = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).flatten(1)
        scale = _scale(images)[:, :, None, None]
        out: Tensor = torch.ops.onednn.qconv2d_pointwise(
            _whole(x, scale), 1.0, _ZERO, self.weight, self.scales, self.zeros, None,
            *self.settings, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return _restored(out, scale, None if self.bias is None else self.bias[:, None, None])


class Int8Linear(nn.Module):
    """A linear layer [..., D] -> [..., D'], float32."""

    weight: Tensor
    scales: Tensor
    zeros: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.bias = layer.bias
        self.set_weight(layer.weight)

    def set_weight(self, weight: Tensor) -> None:
        """Quantize another weight."""
        weight, scales = _rounded(weight)
        packed = torch.ops.onednn.qlinear_prepack(weight, None)
        self.register_buffer("weight", packed, persistent=False)
        self.register_buffer("scales", scales, persistent=False)
        self.register_buffer("zeros", torch.zeros(len(scales), dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        scale = _scale(x)
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            _whole(x, scale), 1.0, _ZERO, self.weight, self.scales, self.zeros, None,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return _restored(out, scale, self.bias)


def _rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize a weight [N,...] to integers, with a scale [N] per output channel."""
    weight = weight.float()
    scales = weight.flatten(1).abs().amax(1).clamp_(min=_TINY).div_(_MOST)
    whole = weight / scales.view(-1, *[1] * (weight.dim() - 1))
    return whole.round_().clamp_(-_MOST, _MOST).to(torch.int8), scales


def _scale(x: Tensor) -> Tensor:
    """The scale of each row of x [...,D]: the value of one integer step, [...,1]."""
    largest = torch.maximum(x.amax(-1, keepdim=True), x.amin(-1, keepdim=True).neg_())
    return largest.clamp_(min=_TINY * _MOST).div_(_MOST)


def _whole(x: Tensor, scale: Tensor) -> Tensor:
    """x / scale as integers from 1 to 255; adding a half turns truncation into rounding."""
    return torch.addcmul(x.new_tensor(_ZERO + 0.5), x, scale.reciprocal()).to(torch.uint8)


def _restored(out: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    return out.mul_(scale) if bias is None else torch.addcmul(bias, out, scale, out=out)


def quantizable(module: nn.Module) -> list[str]:
    """The names of the weights that `quantize` quantizes."""
    return [
        f"{name}.weight"
        for name, layer in module.named_modules()
        if type(layer) in (nn.Conv2d, PointConv2d, nn.Linear) and layer.weight.numel() >= _LEAST
    ]


@torch.inference_mode()
def quantize(module: nn.Module, quantized: Callable[[str], None] = lambda name: None) -> None:
    """Replace a network's large layers one by one with 8-bit layers.

    The weights may have any precision. `quantized` is called with the name of each weight that is
    no longer needed.
    """
    for name in quantizable(module):
        place = name.removesuffix(".weight")
        layer = module.get_submodule(place)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        one = Int8Conv2d(layer) if isinstance(layer, nn.Conv2d) else Int8Linear(layer)
        module.set_submodule(place, one)
        quantized(name)
