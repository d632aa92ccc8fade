"""Layers whose weights lie as the CPU's kernels read them (oneDNN), instead of in their own order.

A plain convolution or linear layer brings its weights into that order anew at every call: at the
lowest resolutions of a network, where weights are many and pixels few, that takes as long as the
arithmetic. For sampling alone: a packed weight is no parameter, and is in no `state_dict`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

# Smaller weights are not worth a copy.
_LEAST = 1 << 14


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this build of torch packs weights of a dtype on a device."""
    return (
        device.type == "cpu"
        and dtype is torch.float32
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


class PackedConv2d(nn.Module):
    """A convolution [B,C,h,w] -> [B,C',h',w'], its result with the channels last in memory."""

    packed: Tensor

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        assert not isinstance(layer.padding, str)
        self.settings = (
            list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups,
        )  # fmt: skip
        self.bias = layer.bias
        weight = torch.ops.mkldnn._reorder_convolution_weight(layer.weight, *self.settings)
        self.register_buffer("packed", weight, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.packed, self.bias, *self.settings, "none", [], ""
        )
        return out


class PackedLinear(nn.Module):
    """A linear layer [..., D] -> [..., D']."""

    packed: Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.bias = layer.bias
        weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight)
        self.register_buffer("packed", weight, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return out


@torch.inference_mode()
def pack(module: nn.Module, packed: Callable[[str], None] = lambda name: None) -> None:
    """Put packed layers in the place of a network's large ones, one by one.

    `packed` is told the name of each weight that is not needed any more.
    """
    # Names alone: a list of the layers would keep the weights that are to go.
    for name in [name for name, _ in module.named_modules()]:
        layer = module.get_submodule(name)
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.weight.numel() >= _LEAST:
            parent, _, own = name.rpartition(".")
            made = PackedConv2d(layer) if isinstance(layer, nn.Conv2d) else PackedLinear(layer)
            setattr(module.get_submodule(parent), own, made)
            packed(f"{name}.weight")
