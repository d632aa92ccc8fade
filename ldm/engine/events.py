"""What a run reports while it works: one stream of values, for any number of consumers.

A run takes an `OnEvent` and calls it; the terminal, `--progress jsonl` and a driver of workers are
consumers of it. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.engine.plan import Plan


@dataclass(frozen=True)
class Note:
    """A note: a value that was chosen, a flag that is ignored."""

    text: str


@dataclass(frozen=True)
class RunWarning:
    """A warning: the image may differ from what was expected."""

    text: str


@dataclass(frozen=True)
class JobFailed:
    """The error of a job after which the run goes on."""

    text: str


@dataclass(frozen=True)
class RunStarted:
    """All jobs are planned; `images` counts their images, including existing ones."""

    images: int
    jobs: int


@dataclass(frozen=True)
class ModelLoaded:
    """The model of `plan`, updated by loading, is ready on `device`."""

    plan: Plan
    device: str


@dataclass(frozen=True)
class BatchStarted:
    """`rows` images are generated together in `steps` steps, in a pass that may have a name."""

    rows: int
    steps: int
    name: str = ""


@dataclass(frozen=True)
class StepDone:
    """`step` of `steps` is done; `denoised` [B,C,h,w] is the estimate of the clean latent."""

    step: int
    steps: int
    denoised: Tensor | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class ImageExisted:
    """An image of the run exists already and is not generated again."""


@dataclass(frozen=True)
class ImageWritten:
    """An image is finished: the fields that `--json` prints, and its file, if it has one."""

    fields: Mapping[str, Any]
    path: Path | None


@dataclass(frozen=True)
class SheetWritten:
    """The grid of all images is written."""

    path: Path


@dataclass(frozen=True)
class ImagePlanned:
    """An image that a run would make, with `done` among its fields."""

    fields: Mapping[str, Any]


@dataclass(frozen=True)
class PlanExplained:
    """The values that would apply and their reasons, as text or JSON."""

    text: str


@dataclass(frozen=True)
class TimingsMeasured:
    """Where the time of a run went, as one line."""

    text: str


@dataclass(frozen=True)
class RunEnded:
    """A run ended: "done", "failed" (some jobs), "stopped" or "broken"."""

    status: str
    failed: int = 0


Event: TypeAlias = (
    Note
    | RunWarning
    | JobFailed
    | RunStarted
    | ModelLoaded
    | BatchStarted
    | StepDone
    | ImageExisted
    | ImageWritten
    | SheetWritten
    | ImagePlanned
    | PlanExplained
    | TimingsMeasured
    | RunEnded
)
OnEvent: TypeAlias = Callable[[Event], None]


def ignore(event: Event) -> None:
    """A consumer that ignores all events."""


def warn_once(report: OnEvent) -> OnEvent:
    """The same consumer, which gets each warning once."""
    reported: set[str] = set()

    def pass_on(event: Event) -> None:
        if isinstance(event, RunWarning):
            if event.text in reported:
                return
            reported.add(event.text)
        report(event)

    return pass_on
