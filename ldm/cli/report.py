"""What a run shows: paths and JSON on standard output, notes and a progress bar on standard error.

With `--progress jsonl` each line of standard error is one JSON object, and `event` names its kind;
docs/batch.md has the fields of each. Fields are added to them, never removed or renamed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import typer

from ldm.engine.events import (
    BatchStarted,
    Event,
    ImageExisted,
    ImagePlanned,
    ImageWritten,
    JobFailed,
    ModelLoaded,
    Note,
    OnEvent,
    PlanExplained,
    RunEnded,
    RunStarted,
    RunWarning,
    SheetWritten,
    StepDone,
    TimingsMeasured,
)
from ldm.engine.explain import summary
from ldm.jobs.outputs import OutputPlan


def reporter(outputs: OutputPlan) -> OnEvent:
    """The consumer of a command's events, as its flags ask for it."""
    progress: Terminal | JsonLines
    if outputs.progress == "jsonl":
        progress = JsonLines(Pace(counts=outputs.spread))
    else:
        bar = outputs.progress == "auto" and not outputs.quiet and sys.stderr.isatty()
        progress = Terminal(Pace(counts=outputs.spread), quiet=outputs.quiet, has_bar=bar)
    printer = Printer(as_json=outputs.json)

    def report(event: Event) -> None:
        if isinstance(event, ImageWritten):
            progress.clear()  # make room for the path
        printer(event)
        progress(event)

    return report


class Pace:
    """How far a run is, and how long the rest will take at the pace so far.

    Existing images take no time. Loading is not counted: the clock starts with the first batch, or,
    where workers do the work and it `counts` images instead of steps, with the run.
    """

    def __init__(self, *, counts: bool) -> None:
        self.counts = counts
        self.images = self.jobs = 0
        self.done = 0  # images, existing ones included
        self.generated = 0
        self.rows = 1  # images in the current batch
        self.began: float | None = None
        self.batch_began = 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self.images, self.jobs = event.images, event.jobs
            self.began = time.perf_counter() if self.counts else None
        elif isinstance(event, BatchStarted):
            self.batch_began = time.perf_counter()
            self.began = self.batch_began if self.began is None else self.began
            self.rows = event.rows
        elif isinstance(event, ImageExisted):
            self.done += 1
        elif isinstance(event, ImageWritten):
            self.done += 1
            self.generated += 1

    def seconds(self) -> float:
        """Seconds since the clock started."""
        return 0.0 if self.began is None else time.perf_counter() - self.began

    def seconds_left(self, share: float) -> float:
        """Seconds to the end of the run, after a share (0 to 1) of the batch's steps."""
        ready = self.generated + self.rows * share
        missing = max(0.0, self.images - self.done - self.rows * share)
        return self.seconds() / ready * missing


class Printer:
    """Standard output: the path of each file, or one JSON object a line."""

    def __init__(self, *, as_json: bool) -> None:
        self.as_json = as_json

    def __call__(self, event: Event) -> None:
        if isinstance(event, ImageWritten):
            if self.as_json:
                typer.echo(json.dumps(event.fields))
            elif event.path is not None:
                typer.echo(event.path)
        elif isinstance(event, SheetWritten) and not self.as_json:
            typer.echo(event.path)
        elif isinstance(event, ImagePlanned):
            typer.echo(json.dumps(event.fields) if self.as_json else _planned_line(event.fields))
        elif isinstance(event, PlanExplained):
            typer.echo(event.text)


class Terminal:
    """Standard error for people: notes, warnings, errors and, on a terminal, a bar."""

    def __init__(self, pace: Pace, *, quiet: bool, has_bar: bool) -> None:
        self.pace, self.quiet, self.has_bar = pace, quiet, has_bar
        self.bar: Any = None

    def __call__(self, event: Event) -> None:
        self.pace(event)
        if isinstance(event, Note):
            self._note(event.text)
        elif isinstance(event, RunWarning):
            self._note(f"warning: {event.text}")
        elif isinstance(event, ModelLoaded):
            self._note(summary(event.plan, event.device))
        elif isinstance(event, JobFailed):
            self._line(f"error: {event.text}")
        elif isinstance(event, TimingsMeasured):
            self._line(event.text)
        elif isinstance(event, RunEnded):
            self._close()
        elif self.has_bar:
            self._move(event)

    def clear(self) -> None:
        """Make room for a line on the terminal."""
        if self.bar is not None:
            self.bar.clear()

    def _note(self, text: str) -> None:
        if not self.quiet:
            self._line(text)

    def _line(self, text: str) -> None:
        self._close()
        typer.echo(f"ldm: {text}", err=True)

    def _move(self, event: Event) -> None:
        if isinstance(event, BatchStarted):
            self._open(event)
        elif isinstance(event, StepDone) and self.bar is not None:
            if self.pace.images > 1:
                left = _clock(self.pace.seconds_left(event.step / event.steps))
                self.bar.set_postfix_str(f"{left} for all", refresh=False)
            self.bar.update(event.step - self.bar.n)
            if event.step == event.steps:
                self._close()  # before the paths of the images are printed
        elif isinstance(event, ImageWritten) and self.pace.counts:
            self._count()

    def _open(self, event: BatchStarted) -> None:
        from tqdm import tqdm

        self._close()
        pace = self.pace
        place = f"image {pace.done + 1} of {pace.images}" if pace.images > 1 else ""
        name = ", ".join(word for word in (place, event.name) if word)
        self.bar = tqdm(total=event.steps, leave=False, unit="it", desc=name or None)

    def _count(self) -> None:
        from tqdm import tqdm

        pace = self.pace
        if self.bar is None:
            self.bar = tqdm(total=pace.images, initial=pace.done - 1, leave=False, unit="image")
        self.bar.update(pace.done - self.bar.n)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


class JsonLines:
    """Standard error for programs: one JSON object a line."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace

    def __call__(self, event: Event) -> None:
        pace = self.pace
        pace(event)
        if isinstance(event, Note | TimingsMeasured):
            emit("note", text=event.text)
        elif isinstance(event, ModelLoaded):
            emit("note", text=summary(event.plan, event.device))
        elif isinstance(event, RunWarning):
            emit("warning", text=event.text)
        elif isinstance(event, JobFailed):
            emit("error", text=event.text)
        elif isinstance(event, RunStarted):
            emit("start", images=event.images, jobs=event.jobs)
        elif isinstance(event, BatchStarted):
            named = {"pass": event.name} if event.name else {}
            emit(
                "batch",
                rows=event.rows,
                steps=event.steps,
                done=pace.done,
                images=pace.images,
                **named,
            )
        elif isinstance(event, StepDone):
            self._step(event)
        elif isinstance(event, ImageWritten):
            emit("image", done=pace.done, images=pace.images, **event.fields)
        elif isinstance(event, RunEnded):
            self._end(event)

    def clear(self) -> None:
        """Nothing to clear."""

    def _step(self, event: StepDone) -> None:
        left = self.pace.seconds_left(event.step / event.steps)
        rate = event.step / max(time.perf_counter() - self.pace.batch_began, 1e-9)
        emit(
            "step",
            step=event.step,
            steps=event.steps,
            done=self.pace.done,
            per_second=round(rate, 3),
            seconds_left=round(left, 1),
        )

    def _end(self, event: RunEnded) -> None:
        pace = self.pace
        emit(
            "end",
            status=event.status,
            images=pace.images,
            drawn=pace.generated,
            there=pace.done - pace.generated,
            failed=event.failed,
            seconds=round(pace.seconds(), 3),
        )


def emit(event: str, **fields: Any) -> None:
    """Write an event as a line of JSON to standard error."""
    sys.stderr.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stderr.flush()


def _planned_line(fields: Mapping[str, Any]) -> str:
    where = fields["path"] or "-"
    size = f"{fields['width']}x{fields['height']}"
    steps = f"{fields['steps']} step{'' if fields['steps'] == 1 else 's'} of {fields['sampler']}"
    steps += f" on {fields['grid']}" if fields["grid"] else ""
    steps += f", scale {fields['scale']:g}"
    prompt = json.dumps(fields["prompt"], ensure_ascii=False)
    done = "  (done)" if fields["done"] else ""
    return f"{where}  {size}  {steps}, seed {fields['seed']}  {prompt}{done}"


def _clock(seconds: float) -> str:
    """Seconds as 1:05 or 2:00:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
