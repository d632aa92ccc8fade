"""Stream a network's layers to a device or a precision, each only while it computes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_Tensors = dict[str, Any]


class Streamed:
    """Copies the parts of a module to a device when they are called, and frees them afterwards.

    The parts are the entries of module lists (the blocks of a UNet), and all other children. The
    weights stay in place; the copies on the device live for one call, so every call pays for the
    copying. With a `dtype` the copies have that precision.
    """

    def __init__(
        self, module: nn.Module, device: torch.device, dtype: torch.dtype | None = None
    ) -> None:
        self.device, self.dtype = device, dtype
        self.kept: list[tuple[nn.Module, _Tensors, _Tensors]] = []
        self.hooks = []
        for part in _parts(module):
            self.hooks.append(part.register_forward_pre_hook(self._bring))
            self.hooks.append(part.register_forward_hook(self._drop, always_call=True))

    def end(self) -> None:
        """Restore the module."""
        for hook in self.hooks:
            hook.remove()

    def _bring(self, part: nn.Module, _: Any) -> None:
        for module in part.modules():
            parameters, buffers = module._parameters, module._buffers
            self.kept.append((module, parameters, buffers))
            moved = {name: self._moved(own) for name, own in parameters.items()}
            module._parameters = {
                name: None if own is None else nn.Parameter(own, requires_grad=False)
                for name, own in moved.items()
            }
            module._buffers = {name: self._moved(own) for name, own in buffers.items()}

    def _moved(self, tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        dtype = self.dtype if tensor.is_floating_point() else None
        return tensor.to(self.device, dtype, non_blocking=True)

    def _drop(self, *_: Any) -> None:
        while self.kept:
            module, parameters, buffers = self.kept.pop()
            module._parameters, module._buffers = parameters, buffers


def _parts(module: nn.Module) -> list[nn.Module]:
    children = list(module.children())
    listed = [part for child in children if isinstance(child, nn.ModuleList) for part in child]
    return [child for child in children if not isinstance(child, nn.ModuleList)] + listed
