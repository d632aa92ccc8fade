"""Convert images to tensors and back, as in the originals."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ImageArray = NDArray[np.uint8]

PADDING = 2


def to_tensor(images: ImageArray, device: torch.device | str = "cpu") -> Tensor:
    """Images [B,H,W,3] as one tensor [B,3,H,W] in [-1,1], float32."""
    return torch.tensor(images).permute(0, 3, 1, 2).to(device).float() / 127.5 - 1


def to_image_array(image: Tensor) -> ImageArray:
    """An image [3,H,W] in [-1,1] as [H,W,3] bytes: clamped, then truncated, not rounded."""
    unit = ((image.float() + 1) / 2).clamp(0, 1).cpu().numpy()
    return (255.0 * unit.transpose(1, 2, 0)).astype(np.uint8)


def grid(images: list[ImageArray], columns: int) -> ImageArray:
    """Images of one size side by side on black, two pixels between and around them.

    A single image is returned as it is. The layout is torchvision.utils.make_grid(nrow=columns).
    """
    if len(images) == 1:
        return images[0]
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height, width, channels = images[0].shape
    step_y, step_x = height + PADDING, width + PADDING
    sheet = np.zeros((step_y * rows + PADDING, step_x * columns + PADDING, channels), np.uint8)
    for index, image in enumerate(images):
        y = (index // columns) * step_y + PADDING
        x = (index % columns) * step_x + PADDING
        sheet[y : y + height, x : x + width] = image
    return sheet
