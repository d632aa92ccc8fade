from __future__ import annotations

import numpy as np
import pytest
import torch

from ldm.images.tensors import grid, to_image_array


def test_bytes_are_cut_off_not_rounded() -> None:
    values = torch.tensor([-2.0, -1.0, 0.0, 0.999, 1.0, 3.0])
    image = to_image_array(values.expand(3, 1, 6))
    assert image.shape == (1, 6, 3)
    assert image[0, :, 0].tolist() == [0, 0, 127, 254, 255, 255]


@pytest.mark.parametrize("columns", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_grid_is_torchvisions(count: int, columns: int) -> None:
    make_grid = pytest.importorskip("torchvision.utils").make_grid
    images = torch.rand(count, 3, 5, 4, generator=torch.Generator().manual_seed(count))
    wanted = (255.0 * make_grid(images, nrow=columns).permute(1, 2, 0).numpy()).astype(np.uint8)
    made = grid([to_image_array(image * 2 - 1) for image in images], columns)
    assert made.shape == wanted.shape
    assert np.abs(made.astype(int) - wanted).max() <= 1
