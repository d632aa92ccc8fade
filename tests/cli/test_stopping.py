"""A run that is stopped keeps what is finished; help of every command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from ldm.cli.app import EXAMPLES, SCRIPT_COMMANDS, run
from ldm.engine.results import Result
from ldm.runs.writer import Writer
from tests.tiny_commands import QUICK, ROOT, error_of


def test_stopping_keeps_what_is_finished(
    home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Writer.write

    def stop_at_second(writer: Writer, result: Result, path: Path | None = None) -> Path | None:
        if writer.written == 1:
            raise KeyboardInterrupt
        return write(writer, result, path)

    monkeypatch.setattr(Writer, "write", stop_at_second)
    argv = ["txt2img", "--prompt", "x", "--model", "tiny", "--n_iter", "3", *QUICK]
    assert run(argv) == 130
    assert "stopped; 1 of 3 images are in outputs" in error_of(capfd)
    assert [path.name for path in home.rglob("*.png")] == ["00000.png"]


def test_a_real_interrupt(home: Path) -> None:
    argv = ["txt2img", "--prompt", "x", "--model", "tiny", "--n_iter", "1000", *QUICK]
    process = subprocess.Popen(
        [sys.executable, "-m", "ldm", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
        # A shell starts background jobs with interrupts ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "images are in outputs" in error.splitlines()[-1]
    folder = home / "outputs/txt2img-samples/samples"
    images = sorted(folder.iterdir())
    assert images
    for path in images:
        with Image.open(path) as image:
            image.load()


@pytest.mark.parametrize("command", EXAMPLES)
def test_the_help_of_a_command_has_an_example(
    command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    run([command, "--help"])
    start = f"python scripts/{command}.py" if command in SCRIPT_COMMANDS else f"ldm {command}"
    assert f"Example: {start} " in " ".join(capfd.readouterr().out.split())
