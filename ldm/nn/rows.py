"""Layers that are rounded by how many rows a batch has, and how that is kept from images.

A library takes another kernel for a product of few rows than for one of many, and its last bits are
others. So that an image does not depend on its neighbours in a batch, the layers here can take one
image after the other. They are the small ones; the large ones are the same at every size from two
rows on, where that was looked at: `ldm.engine.engine` looks each time.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_images: contextvars.ContextVar[int] = contextvars.ContextVar("images", default=1)


@contextlib.contextmanager
def image_by_image(images: int) -> Iterator[None]:
    """Let batches [B,...] go through the layers below in so many parts of B / images rows."""
    token = _images.set(images)
    try:
        yield
    finally:
        _images.reset(token)


class VectorLinear(nn.Linear):
    """A linear layer for what an image is told as one vector [B,C]: time, class, pooled text."""

    def forward(self, input: Tensor) -> Tensor:
        return _parted(input, lambda part: F.linear(part, self.weight, self.bias))


class PointConv2d(nn.Conv2d):
    """A convolution of single positions, 1x1, over [B,C,h,w]."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 1)

    def forward(self, input: Tensor) -> Tensor:
        return _parted(input, lambda part: F.conv2d(part, self.weight, self.bias))


def _parted(input: Tensor, layer: Callable[[Tensor], Tensor]) -> Tensor:
    images = _images.get()
    if images == 1:
        return layer(input)
    return torch.cat([layer(part) for part in torch.split(input, len(input) // images)])
