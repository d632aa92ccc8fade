"""What a run tells while it works, and what it gives. No torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ldm.jobs.metadata import Record

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.images.tensors import Picture


@dataclass(frozen=True)
class Event:
    """News of a run: a batch of `rows` begins (`total` steps), a step of it is done, or a warning's
    text."""

    kind: Literal["batch", "step", "warning"]
    done: int = 0
    total: int = 0
    text: str = ""
    rows: int = 0


OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class Result:
    """One picture, with everything needed to make it again.

    `latent` [C,h,w] is what was decoded, float32 on the CPU; `seconds` is its share of the time;
    `depth` [1,H,W] is the inverse depth that the network was shown, where it was, at the picture's
    size; `ready` counts the pictures that come next without another step.
    """

    picture: Picture
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


def warn_once(report: OnEvent) -> OnEvent:
    """The same listener, who is told of each warning once."""
    told: set[str] = set()

    def pass_on(event: Event) -> None:
        if event.kind != "warning" or event.text not in told:
            told.add(event.text)
            report(event)

    return pass_on
