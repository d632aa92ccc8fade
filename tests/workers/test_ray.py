"""Workers on a Ray cluster: the same files as without one, whoever is killed."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ldm.errors import JobError
from ldm.workers.cluster import connect
from tests.interrupted_runs import OUT, lines_of
from tests.tiny_runs import QUICK, contents, draw
from tests.tiny_runs import home as home

JOBS = ["--prompt", "x", "--seed", "3", "--n_iter", "12", "--batch-size", "1", "-q"]
RAY = ["--engine", "ray", "--workers", "2"]

# Kills a worker, or the run itself, when the second image is written.
KILLS = """
import os, signal, sys
from pathlib import Path
from ldm.cli.app import run
from ldm.runs.writer import Writer

def below(pid):
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found = children.read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # a thread that has ended since
        for child in map(int, found):
            yield child
            yield from below(child)

def deadly(writer, result, path=None):
    path = write(writer, result, path)
    if writer.written == 2:
        found = list(below(os.getpid()))
        names = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in found}
        workers = [pid for pid, name in names.items() if name.startswith("ray::Worker")]
        print("workers", *workers, file=sys.stderr, flush=True)
        os.kill(workers[0] if sys.argv[1] == "worker" else os.getpid(), signal.SIGKILL)
    return path

write, Writer.write = Writer.write, deadly
sys.exit(run(sys.argv[2:]))
"""


def killing(whom: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("ray")
    if not Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists():
        pytest.skip("the system does not tell who started whom")
    return subprocess.run(
        [sys.executable, "-c", KILLS, whom, "txt2img", *QUICK, *words],
        cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip


def test_a_worker_is_killed(home: Path) -> None:
    done = killing("worker", home, *JOBS[:-1], *RAY)
    assert done.returncode == 0, done.stderr
    assert "a worker died" in done.stderr
    assert draw(*JOBS, "--outdir", "whole") == 0
    assert contents(home / OUT) == contents(home / "whole")
    lines = (home / OUT / "manifest.jsonl").read_bytes()
    assert lines == (home / "whole/manifest.jsonl").read_bytes()
    assert len(done.stdout.splitlines()) == 13  # paths, and nothing that Ray has to say


def test_the_driver_is_killed_and_gone_on_with(home: Path) -> None:
    done = killing("driver", home, *JOBS, *RAY)
    assert done.returncode == -signal.SIGKILL, done.stderr
    # The second image was written and has no line yet.
    assert len(lines_of(home / OUT)) == 1
    (told,) = (line for line in done.stderr.splitlines() if line.startswith("workers"))
    pids = told.split()[1:]
    assert len(pids) == 2
    end = time.monotonic() + 60
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert draw(*JOBS, "--resume") == 0
    assert draw(*JOBS, "--outdir", "whole") == 0
    assert contents(home / OUT) == contents(home / "whole")


def alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_what_goes_with_it(
    home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert draw("--prompt", "x", "--address", "auto") == 2
    assert "add --engine ray" in capfd.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(JobError, match="no Ray cluster answers there"):
        connect(f"127.0.0.1:{port}", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert draw("--prompt", "x", "--engine", "ray") == 2
    assert "pip install 'ldm-cli[ray]'" in capfd.readouterr().err
    assert not (home / "outputs").exists()
