"""The result of a run: one image and everything needed to make it again. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ldm.jobs.metadata import Record

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.images.tensors import ImageArray


@dataclass(frozen=True)
class Result:
    """One image, with everything needed to make it again.

    `latent` [C,h,w] is what was decoded, float32 on the CPU; `seconds` is its share of the time;
    `depth` [1,H,W] is the inverse depth that the network was shown, where it was, at the image's
    size; `ready` counts the images that come next without another step.
    """

    image: ImageArray
    record: Record
    latent: Tensor
    seconds: float
    depth: Tensor | None = None
    ready: int = 0

    @property
    def prompt(self) -> str:
        """The text it was made from."""
        return self.record.job.texts()[self.record.row]

    @property
    def seed(self) -> int:
        """Its own seed, or that of the stream it belongs to."""
        return self.record.job.image_seeds()[self.record.row]
