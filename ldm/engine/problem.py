"""What a task gets beside its job, and the `Problem` that it makes of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ldm.engine.guides import Guide
from ldm.images.canvas import Pixels
from ldm.images.sources import Sources
from ldm.images.tensors import to_tensor
from ldm.models.encoding import Memory
from ldm.models.model import Model
from ldm.sampling.guidance import SkipLayers
from ldm.sampling.samplers import Sampler
from ldm.sampling.schedule import Schedule


@dataclass(frozen=True)
class Problem:
    """What to sample: a latent for each row of the `guides`, down the noise levels `sigmas`.

    There is a guide for each part of the steps, and there may be a scale for each row. With
    `init` (a clean latent [B,C,h,w]) the start is that with noise of the level `init_sigma`, else
    noise alone; with `mask` ([1,1,h,w], 1 is free) the rest is held to `init`. Where `noised`
    ([1,1,h,w]) is 1, the first noise of each row stands in place of `init`. `tile` is the side
    of the tiles to denoise in, in latent positions. `snaps` takes the nearest noise level of the
    model's for every other. `depth` [1,H,W] is what was estimated. `skip` guides away from the
    network without some layers. `warnings` name the words that the model cannot take in. `rescale`
    and `zero_snr` are as in `Model.denoiser`; `noise_scale` multiplies the noise of the sampler.
    """

    guides: tuple[Guide, ...]
    scale: float | tuple[float, ...]
    sampler: Sampler
    sigmas: Tensor
    schedule: Schedule
    options: dict[str, Any] = field(default_factory=dict)
    init: Tensor | None = None
    init_sigma: float = 0.0
    mask: Tensor | None = None
    noised: Tensor | None = None
    tile: int | None = None
    snaps: bool = False
    depth: Tensor | None = None
    skip: SkipLayers | None = None
    warnings: tuple[str, ...] = ()
    rescale: float = 0.0
    zero_snr: bool = False
    noise_scale: float = 1.0

    def numbers(self) -> list[Tensor | None]:
        """What the encoders gave."""
        sides = [side for guide in self.guides for side in guide.sides()]
        parts = [part for side in sides for part in (side.crossattn, side.concat, side.vector)]
        return [*parts, self.init]


@dataclass(frozen=True)
class Start:
    """The latents [B,C,h,w] that a pass starts from; its steps, and those of the pass `before`."""

    latents: Tensor
    steps: int
    before: int


@dataclass(frozen=True)
class Given:
    """What a task has beside its job: the model, the images, and its first draw.

    `first` [B,...] is noise of the shape that `first_draw` names, or None; `tiling` is how the
    autoencoder runs; `memory` keeps what texts came to. `start` is what the pass before came to,
    which a task goes on from instead of an image.
    """

    model: Model
    sources: Sources
    first: Tensor | None = None
    tiling: str = "auto"
    memory: Memory | None = None
    start: Start | None = None

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def images(self, pixels: Pixels, rows: int = 1) -> Tensor:
        """An image as [rows,3,H,W] in [-1,1] on the model's device."""
        return to_tensor(pixels[None], self.device).expand(rows, -1, -1, -1)

    def latents(self, images: Tensor) -> Tensor:
        """Images [B,3,H,W] as scaled latents: a sample where there is a first draw."""
        if self.first is None:
            alone = self.model.encode(images[:1], tiling=self.tiling)
            return alone.expand(len(images), -1, -1, -1)
        return self.model.encode(images, self.first, self.tiling)
