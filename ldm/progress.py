"""What a run tells on standard error: notes, warnings and a bar."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from ldm.outputs import OutputPlan
from ldm.plan import Plan

if TYPE_CHECKING:
    from ldm.engine import Engine, Event


def teller(outputs: OutputPlan) -> Callable[[str], None]:
    """How notes are told: on standard error, unless they are not wanted."""
    return (
        (lambda text: None)
        if outputs.quiet
        else (lambda text: typer.echo(f"ldm: {text}", err=True))
    )


def summary(plan: Plan, engine: Engine) -> str:
    """A line on what will be drawn, and on what."""
    job, policy = plan.job, engine.policy
    scale = "" if job.scale == 1 else f", scale {job.scale:g}"
    drawn = " (drawn at random)" if plan.why["seed"] == "drawn at random" else ""
    return (
        f"{engine.name} on {policy.device}, {policy.precision} precision; {job.count()} x "
        f"{job.width}x{job.height}, {job.steps} steps of {job.sampler}{scale}, "
        f"seed {job.seed}{drawn}"
    )


def shows_progress(outputs: OutputPlan) -> bool:
    """Whether there is someone to see a bar."""
    return not outputs.quiet and sys.stderr.isatty()


class Progress:
    """A bar of the steps of each batch on a terminal; warnings everywhere, each once."""

    def __init__(self, tell: Callable[[str], None], *, shown: bool) -> None:
        self.tell = tell
        self.shown = shown
        self.bar: Any = None
        self.told: set[str] = set()

    def __call__(self, event: Event) -> None:
        if event.kind == "warning":
            if event.text in self.told:
                return
            self.told.add(event.text)
            self._end()
            self.tell(f"warning: {event.text}")
        elif event.kind == "batch" and self.shown:
            from tqdm import tqdm

            self._end()
            self.bar = tqdm(total=event.total, leave=False, unit="step")
        elif self.bar is not None:
            self.bar.update(event.done - self.bar.n)
            if event.done == event.total:
                self._end()  # before the paths of the pictures are told

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
