"""Where the time of a run goes: named phases, and how often each was entered.

Outside of `timed` a phase costs nothing and is noted nowhere. One phase inside another counts for
the inner one alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

PHASES = ("imports", "load", "text", "steps", "decode", "save")
"""What a run is made of, in its order: torch and the engine are imported; the checkpoint is mapped,
converted and packed; texts and images are encoded; the network denoises; the autoencoder decodes;
files are encoded and written."""


@dataclass
class Timings:
    """Seconds and entries of each phase; `began` is when the measuring did."""

    began: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)
    entries: dict[str, int] = field(default_factory=dict)
    ended: float | None = None
    open: list[float] = field(default_factory=list)

    def summary(self) -> str:
        """One line for people, with what is in no phase as "other"."""
        whole = (self.ended or time.perf_counter()) - self.began
        parts = [f"{name} {self.seconds[name]:.2f} s{self._often(name)}" for name in self._found()]
        other = whole - sum(self.seconds.values())
        return f"time: {', '.join(parts)}, other {other:.2f} s; {whole:.2f} s in all"

    def _found(self) -> list[str]:
        return [name for name in PHASES if name in self.seconds]

    def _often(self, name: str) -> str:
        return f" ({self.entries[name]} times)" if self.entries[name] > 1 else ""


_current: ContextVar[Timings | None] = ContextVar("timings", default=None)


@contextmanager
def timed() -> Iterator[Timings]:
    """Note the phases that are run through inside."""
    timings = Timings()
    token = _current.set(timings)
    try:
        yield timings
    finally:
        timings.ended = time.perf_counter()
        _current.reset(token)


@contextmanager
def phase(name: str) -> Iterator[None]:
    """A part of the run that has a name of `PHASES`."""
    timings = _current.get()
    if timings is None:
        yield
        return
    start = time.perf_counter()
    timings.open.append(0.0)  # what phases inside this one will have taken
    try:
        yield
    finally:
        whole = time.perf_counter() - start
        own = whole - timings.open.pop()
        timings.seconds[name] = timings.seconds.get(name, 0.0) + own
        timings.entries[name] = timings.entries.get(name, 0) + 1
        if timings.open:
            timings.open[-1] += whole
