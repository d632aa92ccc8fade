"""What a run tells on standard error: notes, warnings, a bar for people or events for programs.

With `--progress jsonl` each line is one JSON object, and `event` says of what kind: docs/batch.md
has the fields of each. Fields are added to them, never taken out or renamed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import typer

from ldm.jobs.outputs import OutputPlan

if TYPE_CHECKING:
    from ldm.engine.results import Event


def teller(outputs: OutputPlan) -> Callable[[str], None]:
    """How notes are told: on standard error, unless they are not wanted."""
    if outputs.progress == "jsonl":
        return lambda text: emit("note", text=text)
    return (
        (lambda text: None)
        if outputs.quiet
        else (lambda text: typer.echo(f"ldm: {text}", err=True))
    )


def complain(outputs: OutputPlan, text: str) -> None:
    """Tell an error after which the run goes on."""
    if outputs.progress == "jsonl":
        emit("error", text=text)
    else:
        typer.echo(f"ldm: error: {text}", err=True)


def emit(event: str, **fields: Any) -> None:
    """Tell an event as a line of JSON."""
    sys.stderr.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stderr.flush()


class Progress:
    """News of a run of so many images: a bar on a terminal, or events; warnings each once.

    The time left is that of the run, as long as its images go on as they did so far. It `counts`
    images where several workers draw: then nobody tells of steps.
    """

    def __init__(
        self, outputs: OutputPlan, images: int, jobs: int = 1, *, counts: bool = False
    ) -> None:
        self.tell = teller(outputs)
        self.events = outputs.progress == "jsonl"
        auto = outputs.progress == "auto" and not outputs.quiet
        self.shown = auto and sys.stderr.isatty()
        self.images, self.jobs, self.counts = images, jobs, counts
        self.done = 0  # images, those that were there included
        self.drawn = 0
        self.rows = 1  # images in the batch
        self.began: float | None = None  # the first batch; loading is not counted
        self.batch_began = 0.0
        self.bar: Any = None
        self.told: set[str] = set()

    def __call__(self, event: Event) -> None:
        if event.kind == "warning":
            self._warn(event.text)
        elif event.kind == "batch":
            self._begin(event)
        else:
            self._step(event)

    def image(self, told: Mapping[str, Any]) -> None:
        """An image is finished; `told` is what --json tells of it."""
        self.done += 1
        self.drawn += 1
        if self.events:
            emit("image", done=self.done, images=self.images, **told)
        elif self.shown and self.counts:
            self._count()

    def clear(self) -> None:
        """Make room for a line on the terminal."""
        if self.bar is not None:
            self.bar.clear()

    def there(self) -> None:
        """An image was there already."""
        self.done += 1

    def end(self, status: str, failed: int = 0) -> None:
        """The run has come to its end: done, failed, stopped or broken."""
        self._close()
        if self.events:
            seconds = 0.0 if self.began is None else time.perf_counter() - self.began
            there = self.done - self.drawn
            counts = {"images": self.images, "drawn": self.drawn, "there": there, "failed": failed}
            emit("end", status=status, **counts, seconds=round(seconds, 3))

    def __enter__(self) -> Progress:
        if self.events:
            emit("start", images=self.images, jobs=self.jobs)
        if self.counts:
            self.began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def _warn(self, text: str) -> None:
        if text in self.told:
            return
        self.told.add(text)
        self._close()
        if self.events:
            emit("warning", text=text)
        else:
            self.tell(f"warning: {text}")

    def _begin(self, event: Event) -> None:
        self.batch_began = time.perf_counter()
        self.began = self.batch_began if self.began is None else self.began
        self.rows = event.rows
        if self.events:
            emit("batch", rows=event.rows, steps=event.total, done=self.done, images=self.images)
        elif self.shown:
            from tqdm import tqdm

            self._close()
            total = f" of {self.images}" if self.images > 1 else ""
            name = f"image {self.done + 1}{total}" if total else None
            self.bar = tqdm(total=event.total, leave=False, unit="it", desc=name)

    def _count(self) -> None:
        from tqdm import tqdm

        if self.bar is None:
            before = self.done - 1
            self.bar = tqdm(total=self.images, initial=before, leave=False, unit="image")
        self.bar.update(self.done - self.bar.n)

    def _step(self, event: Event) -> None:
        left = self._left(event.done / event.total)
        if self.events:
            rate = event.done / max(time.perf_counter() - self.batch_began, 1e-9)
            told = {"step": event.done, "steps": event.total, "done": self.done}
            emit("step", **told, per_second=round(rate, 3), seconds_left=round(left, 1))
        elif self.bar is not None:
            if self.images > 1:
                self.bar.set_postfix_str(f"{_clock(left)} for all", refresh=False)
            self.bar.update(event.done - self.bar.n)
            if event.done == event.total:
                self._close()  # before the paths of the pictures are told

    def _left(self, share: float) -> float:
        """Seconds to the end of the run, after a share of the batch's steps."""
        assert self.began is not None
        ready = self.drawn + self.rows * share
        missing = max(0.0, self.images - self.done - self.rows * share)
        return (time.perf_counter() - self.began) / ready * missing

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _clock(seconds: float) -> str:
    """Seconds as 1:05 or 2:00:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
