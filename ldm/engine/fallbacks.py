"""What to try when a stage runs out of memory or returns NaN, in order.

    encode   whole, then with parts of the model moved to the main memory
    sample   together, then half as many images at once, then with parts moved
    decode   whole, then in tiles, then with parts moved

A fallback that helped once is used for later jobs from the start.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.engine.batch_noise import Draws
from ldm.engine.batching import Part, kinds
from ldm.engine.events import OnEvent, RunWarning
from ldm.engine.memory import OutOfMemory
from ldm.engine.problem import Problem, Start
from ldm.engine.stages import Stages
from ldm.errors import NonFiniteError
from ldm.images.sources import Sources
from ldm.images.tensors import ImageArray
from ldm.jobs.job import Job

OFFLOADED = "out of memory; moving unused parts of the model to the main memory, which is slower"
TILED = "out of memory while decoding; continuing in tiles (--vae-tiling on)"


class Fallbacks:
    """Runs stages, and goes on another way where one fails for want of memory or precision."""

    def __init__(self, stages: Stages) -> None:
        self.stages = stages
        self.most: int | None = None  # images at once that the memory suffices for
        self.tiled = False
        self._agreed: dict[object, bool] = {}

    def encode(
        self,
        batch: Job,
        sources: Sources,
        draws: Draws,
        report: OnEvent,
        start: Start | None = None,
    ) -> Problem:
        """Encode one batch into a Problem; `start` is the result of the pass before."""
        while True:
            try:
                tiling = self._tiling(batch)
                return self.stages.encode(batch, sources, draws, tiling, report, start)
            except OutOfMemory:
                if not self._moved_parts(report):
                    raise

    def sample(self, parts: Sequence[Part], report: OnEvent, *, exact: bool) -> None:
        """Give batches their latents: together, or by halves where that fails.

        It also counts as failed if `exact` and an image would differ from the one made alone, in
        any bit.
        """
        count = sum(part.count for part in parts)
        if self.most is None or count <= self.most:
            try:
                if len(parts) == 1 or not exact or self._agree(parts, report):
                    self._together(parts, report)
                    return
            except NonFiniteError:
                if len(parts) == 1:  # of several, one may have spoilt the others
                    raise
            except OutOfMemory:
                if count == 1:
                    if not self._moved_parts(report):
                        raise
                    self.sample(parts, report, exact=exact)
                    return
                self.most = (count + 1) // 2
                text = f"out of memory with {count} images at once; continuing with {self.most}"
                report(RunWarning(text))
        if len(parts) > 1:
            middle = (len(parts) + 1) // 2
            self.sample(parts[:middle], report, exact=exact)
            self.sample(parts[middle:], report, exact=exact)
        else:
            self._by_halves(parts[0], report, exact=exact)

    def decode(self, latent: Tensor, job: Job, report: OnEvent) -> ImageArray:
        """One image from its latent [1,C,h,w]."""
        while True:
            tiling = self._tiling(job)
            try:
                return self.stages.decode(latent, tiling, report)
            except OutOfMemory:
                if tiling == "auto":
                    self.tiled = True
                    report(RunWarning(TILED))
                elif not self._moved_parts(report):
                    raise

    def encode_images(self, images: Tensor, job: Job, report: OnEvent) -> Tensor:
        """The latents [B,C,h,w] of images [B,3,H,W]."""
        while True:
            tiling = self._tiling(job)
            try:
                return self.stages.encode_images(images, tiling, report)
            except OutOfMemory:
                if not self._moved_parts(report):
                    raise

    def _together(self, parts: Sequence[Part], report: OnEvent) -> None:
        latents = self.stages.sample(parts, report)
        sizes = [part.count for part in parts]
        for part, own in zip(parts, torch.split(latents, sizes), strict=True):
            part.latents = own

    def _by_halves(self, part: Part, report: OnEvent, *, exact: bool) -> None:
        halves = part.halves()
        for half in halves:
            self.sample([half], report, exact=exact)
        part.latents = torch.cat([half.latents for half in halves if half.latents is not None])
        part.draws = halves[-1].draws

    def _agree(self, parts: Sequence[Part], report: OnEvent) -> bool:
        """Whether batches of these shapes come out together as alone; computed once a shape."""
        key = (*(part.count for part in parts), parts[0].draws.shape, kinds(parts[0].problem))
        if key not in self._agreed:
            self._agreed[key] = self.stages.agree(parts, report)
        return self._agreed[key]

    def _moved_parts(self, report: OnEvent) -> bool:
        """Begin to move unused parts of the model away; False where that would not help."""
        started = self.stages.offload.start()
        if started:
            report(RunWarning(OFFLOADED))
        return started

    def _tiling(self, job: Job) -> str:
        return "on" if self.tiled and job.vae_tiling == "auto" else job.vae_tiling
