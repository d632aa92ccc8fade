"""Runs that are stopped by Ctrl-C, and the lines of their manifests."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ldm.engine.results import Result
from ldm.runs.writer import Writer
from tests.tiny_runs import home as home

OUT = Path("outputs/txt2img-samples")


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of images in a manifest."""
    lines = map(json.loads, (folder / "manifest.jsonl").read_text().splitlines())
    return [line for line in lines if "path" in line]


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Ctrl-C as Python has it by itself."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Ctrl-C, so many times, as the second image is about to be written."""
    write = Writer.write

    def pressed(writer: Writer, result: Result, path: Path | None = None) -> Path | None:
        for _ in range(times if writer.written == 1 else 0):
            os.kill(os.getpid(), signal.SIGINT)
        return write(writer, result, path)

    monkeypatch.setattr(Writer, "write", pressed)
