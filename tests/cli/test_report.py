"""Events for programs: their names and fields are a promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ldm.cli.report import Pace, Terminal, reporter
from ldm.engine.events import BatchStarted, RunEnded, RunStarted, StepDone
from ldm.jobs.outputs import OutputPlan
from tests.tiny_runs import draw
from tests.tiny_runs import home as home

IMAGE = {
    "path", "seed", "prompt", "negative", "width", "height", "steps", "sampler", "scale", "model",
    "grid", "hash", "seconds",
}  # fmt: skip
# A program may rely on these; there may be more one day, never fewer.
FIELDS = {
    "start": {"images", "jobs"},
    "note": {"text"},
    "warning": {"text"},
    "error": {"text"},
    "batch": {"rows", "steps", "done", "images"},
    "step": {"step", "steps", "done", "per_second", "seconds_left"},
    "image": {"done", "images", *IMAGE},
    "end": {"status", "images", "drawn", "there", "failed", "seconds"},
}


def events(capfd: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """Every line of standard error, each of which is an event."""
    found = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    for event in found:
        assert FIELDS[event["event"]] <= set(event), event
    return found


def kinds(found: list[dict[str, Any]]) -> list[str]:
    return [event["event"] for event in found if event["event"] != "note"]


def test_a_run_is_told_event_by_event(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--prompt", "x", "--n_iter", "2", "--steps", "2", "--seed", "1", "--progress", "jsonl"]
    assert draw(*words, "--batch-size", "1") == 0
    found = events(capfd)
    batch = ["batch", "step", "step", "image"]
    assert kinds(found) == ["start", *batch, *batch, "end"]
    steps = [event for event in found if event["event"] == "step"]
    assert [(e["step"], e["steps"], e["done"]) for e in steps] == [
        (1, 2, 0),
        (2, 2, 0),
        (1, 2, 1),
        (2, 2, 1),
    ]
    assert all(event["per_second"] > 0 for event in steps)
    assert steps[-1]["seconds_left"] == 0
    images = [event for event in found if event["event"] == "image"]
    assert [(e["done"], e["images"], e["seed"]) for e in images] == [(1, 2, 1), (2, 2, 2)]
    told = {"status": "done", "images": 2, "drawn": 2, "there": 0, "failed": 0}
    assert told.items() <= found[-1].items()


def test_both_streams_at_once(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--prompt", "x", "--seed", "1", "--progress", "jsonl", "--json", "--skip_grid"]
    assert draw(*words) == 0
    out, err = capfd.readouterr()
    (line,) = map(json.loads, out.splitlines())
    assert set(line) == IMAGE
    image = next(e for e in map(json.loads, err.splitlines()) if e["event"] == "image")
    assert line.items() <= image.items()


def test_what_fails_and_what_was_there_is_counted(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (home / "a.txt").write_text("a\nb --w 0\nc\n")
    words = ["--from-file", "a.txt", "--keep-going", "--seed", "1", "--progress", "jsonl"]
    assert draw(*words) == 3
    assert kinds(events(capfd))[0] == "error"
    assert draw(*words, "--resume") == 3
    told = {"status": "failed", "images": 2, "drawn": 0, "there": 2, "failed": 1}
    assert told.items() <= events(capfd)[-1].items()
    assert draw("--promt", "x", "--progress=jsonl") == 2
    assert events(capfd) == [
        {
            "event": "error",
            "text": "no such option: --promt; did you mean --prompt?",
            "exit_code": 2,
        }
    ]


def test_no_bar_where_there_is_no_terminal(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert draw("--prompt", "x", "--steps", "3") == 0
    assert "it/s" not in capfd.readouterr().err


class Screen:
    """A terminal that keeps what it shows."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        """Nothing waits."""

    def isatty(self) -> bool:
        return True


def test_a_bar_has_the_speed_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Screen()
    clock = iter(float(second) for second in range(1000))
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr("ldm.cli.report.time.perf_counter", lambda: next(clock))
    shown = Terminal(Pace(counts=False), quiet=False, has_bar=True)
    shown(RunStarted(images=4, jobs=1))
    shown(BatchStarted(rows=2, steps=2))
    shown(StepDone(1, 2))
    # One second for half of two images: three more for the other three.
    assert shown.bar.postfix == "0:03 for all"
    shown.bar.refresh()
    shown(StepDone(2, 2))
    shown(RunEnded("done"))
    assert "image 1 of 4" in terminal.text
    assert "it/s" in terminal.text
    for words in ({"progress": "none"}, {"quiet": True}):
        terminal.text = ""
        report = reporter(OutputPlan(**words))  # type: ignore[arg-type]
        for event in (RunStarted(images=4, jobs=1), BatchStarted(rows=2, steps=2)):
            report(event)
        assert not terminal.text
