"""Passes: further engine jobs that go on from the images of one, before they are decoded.

A job names its passes in its fields, so a record holds the whole chain and `ldm rerun` repeats
it. A new pass is a `Pass` in `passes_of`: the job that it runs, and how the latents of the batch
before become the ones that it starts from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm.images.canvas import Pixels
from ldm.jobs.hires import Size, grid_steps, parse_hires
from ldm.jobs.job import Job

LATENT_MODES = {
    "latent": "bilinear",
    "latent-bicubic": "bicubic",
    "latent-nearest": "nearest-exact",
}
IMAGE_FILTERS = {"lanczos": Image.Resampling.LANCZOS}


@dataclass(frozen=True)
class Pass:
    """One engine job that starts from the batch before it.

    One of the two functions is given: `enlarge_latents` makes latents [B,C,h,w] of the size of
    `job` from those before; `enlarge_image` an image [H,W,3] of its size from the decoded one.
    `name` is what progress calls it; `steps` of those of its job are taken.
    """

    name: str
    job: Job
    steps: int
    enlarge_latents: Callable[[Tensor], Tensor] | None = None
    enlarge_image: Callable[[Pixels], Pixels] | None = None


def passes_of(batch: Job, factor: int) -> list[Pass]:
    """The passes that follow the sampling of a resolved batch, in order.

    `factor` is the number of pixels per latent position.
    """
    return [] if batch.hires is None else [_hires(batch, factor)]


def _hires(batch: Job, factor: int) -> Pass:
    """Denoise the enlarged image again: the hires fix of AUTOMATIC1111's web UI.

    It takes all of `hires_steps`, as there: the schedule is made longer, and its last ones run.
    """
    size = parse_hires(batch.hires or "")
    assert isinstance(size, tuple)
    assert batch.hires_strength is not None
    assert batch.hires_steps is not None
    steps = batch.hires_steps
    total = grid_steps(steps, batch.hires_strength)
    job = replace(
        batch,
        task="img2img",
        width=size[0],
        height=size[1],
        steps=total,
        strength=steps / total if batch.hires_strength else 0.0,
        hires=None,
    )
    upscaler = batch.hires_upscaler or ""
    if upscaler in LATENT_MODES:
        mode = LATENT_MODES[upscaler]
        place = (size[0] // factor, size[1] // factor)
        return Pass("hires", job, steps, enlarge_latents=lambda x: enlarged_latents(x, place, mode))
    chosen = IMAGE_FILTERS[upscaler]
    return Pass("hires", job, steps, enlarge_image=lambda x: enlarged_image(x, size, chosen))


def covering(source: Size, wanted: Size) -> tuple[Size, Size]:
    """The size at which a source covers the wanted one, and the corner to crop from."""
    share = max(wanted[0] / source[0], wanted[1] / source[1])
    size = (max(wanted[0], round(source[0] * share)), max(wanted[1], round(source[1] * share)))
    return size, ((size[0] - wanted[0]) // 2, (size[1] - wanted[1]) // 2)


def enlarged_latents(latents: Tensor, wanted: Size, mode: str) -> Tensor:
    """Latents [B,C,h,w] resized to cover (width, height), the middle of them cropped."""
    size, (left, top) = covering((latents.shape[-1], latents.shape[-2]), wanted)
    # Without a filter before: the web UI's plain modes have none.
    whole = F.interpolate(latents.float(), size=size[::-1], mode=mode)
    whole = whole[..., top : top + wanted[1], left : left + wanted[0]]
    return whole.to(latents.dtype).contiguous()


def enlarged_image(image: Pixels, wanted: Size, chosen: Image.Resampling) -> Pixels:
    """An image [H,W,3] resized to cover (width, height), the middle of it cropped."""
    size, (left, top) = covering((image.shape[1], image.shape[0]), wanted)
    whole = np.asarray(Image.fromarray(image).resize(size, chosen))
    return whole[top : top + wanted[1], left : left + wanted[0]]
