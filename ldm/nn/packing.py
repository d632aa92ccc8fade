"""Layers with weights packed in the memory layout of the CPU's kernels (oneDNN).

A plain convolution or linear layer reorders its weights at every call; at the lowest resolutions of
a network, with many weights and few pixels, that takes as long as the arithmetic. For sampling
only: a packed weight is not a parameter, and not in the `state_dict`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ldm.nn.layers import Upsample, is_double
from ldm.nn.upsampling import in_phases, in_phases_of_size, phase_kernels

# Smaller weights are not worth a copy.
_LEAST = 1 << 14


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether this build of torch packs weights of a dtype on a device."""
    if (
        device.type != "cpu"
        or not torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        or not hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
        or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    ):
        return False
    if dtype is torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype is torch.float32


class PackedConv2d(nn.Module):
    """A convolution [B,C,h,w] -> [B,C',h',w'] with a channels-last result."""

    packed: Tensor

    def __init__(self, layer: nn.Conv2d, weight: Tensor) -> None:
        super().__init__()
        assert not isinstance(layer.padding, str)
        self.settings = (
            list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups,
        )  # fmt: skip
        self.bias = layer.bias
        self.set_weight(weight)

    def set_weight(self, weight: Tensor) -> None:
        """Pack another weight."""
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *self.settings)
        self.register_buffer("packed", packed, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.packed, self.bias, *self.settings, "none", [], ""
        )
        return out


class PackedLinear(nn.Module):
    """A linear layer [..., D] -> [..., D']."""

    packed: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d, weight: Tensor) -> None:
        super().__init__()
        self.bias = layer.bias
        self.set_weight(weight)

    def set_weight(self, weight: Tensor) -> None:
        """Pack another weight [D',D], or that of a 1x1 convolution."""
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.flatten(1))
        self.register_buffer("packed", packed, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return out


class PackedPointConv2d(PackedLinear):
    """A 1x1 convolution as a linear layer: [B,C,h,w] -> [B,C',h,w].

    Packed as a convolution, it would have the layout for large maps, and be reordered at every call
    for small ones.
    """

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PackedUpsample(nn.Module):
    """Repetition and a 3x3 convolution, [B,C,h,w] -> [B,C',2h,2w], see `ldm.nn.upsampling`.

    With a `size` (height, width) the sides may be one less.
    """

    def __init__(self, layer: nn.Conv2d, weight: Tensor) -> None:
        super().__init__()
        self.bias = layer.bias
        kernels = phase_kernels(weight)
        self.phases = nn.ModuleList(PackedConv2d(layer, kernel) for kernel in kernels)

    def set_weight(self, weight: Tensor) -> None:
        """Pack another weight [C',C,3,3]."""
        for phase, kernel in zip(self.phases, phase_kernels(weight), strict=True):
            assert isinstance(phase, PackedConv2d)
            phase.set_weight(kernel)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        if size is None or is_double(x, size):
            return in_phases(x, list(self.phases))
        return in_phases_of_size(x, list(self.phases), self.bias, size)


def packable(module: nn.Module) -> list[str]:
    """The names of the weights that `pack` packs.

    Layers that process a batch image by image (`ldm.nn.rows`) are excluded: they are small.
    """
    return [
        f"{name}.weight"
        for name, layer in module.named_modules()
        if type(layer) in (nn.Conv2d, nn.Linear) and layer.weight.numel() >= _LEAST
    ]


@torch.inference_mode()
def pack(
    module: nn.Module,
    packed: Callable[[str], None] = lambda name: None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Replace a network's large layers one by one with packed layers of a dtype.

    The weights may have another precision; only one layer at a time exists twice in memory.
    `packed` is called with the name of each weight that is no longer needed.
    """
    names = packable(module)
    weights = (module.get_parameter(name) for name in names)
    most = max((each.numel() for each in weights if each.dtype is not dtype), default=0)
    room = torch.empty(most, dtype=dtype)
    for name in names:
        parent, _, own = name.removesuffix(".weight").rpartition(".")
        place = module.get_submodule(parent)
        layer = place.get_submodule(own)
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        weight: Tensor = layer.weight
        if weight.dtype is not dtype:
            weight = room[: weight.numel()].view(weight.shape).copy_(weight)
        if isinstance(layer, nn.Conv2d) and isinstance(place, Upsample):
            module.set_submodule(parent, PackedUpsample(layer, weight))
        elif isinstance(layer, nn.Conv2d) and _is_pointwise(layer):
            setattr(place, own, PackedPointConv2d(layer, weight.flatten(1)))
        elif isinstance(layer, nn.Conv2d):
            setattr(place, own, PackedConv2d(layer, weight))
        else:
            setattr(place, own, PackedLinear(layer, weight))
        packed(name)


def _is_pointwise(layer: nn.Conv2d) -> bool:
    plain = layer.kernel_size == layer.stride == (1, 1) and layer.groups == 1
    return plain and layer.padding in ((0, 0), "valid")
