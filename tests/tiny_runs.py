"""Runs of the command line on a tiny model, and what they leave."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from ldm.cli.app import run
from ldm.images.texts import read_record
from tests.golden_data import GOLDEN
from tests.tiny_models import v1_tree, write

TINY = GOLDEN / "e2e" / "sd-v1-tiny"


QUICK = ["--model", "tiny", "--H", "16", "--W", "16", "--device", "cpu", "--steps", "1"]


SAMPLES = Path("outputs/txt2img-samples/samples")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a tiny model."""
    place(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LDM_MODELS", raising=False)
    return tmp_path


def place(folder: Path) -> None:
    models = folder / "models"
    models.mkdir()
    (models / "tiny.ckpt").write_bytes((TINY / "model.ckpt").read_bytes())
    write(v1_tree(), models / "tiny.yaml")


def draw(*words: str) -> int:
    return run(["txt2img", *QUICK, *words])


def jobs_of(folder: Path) -> list[tuple[str, int | None, int | None]]:
    records = [read_record(path) for path in sorted(folder.glob("*.png"))]
    return [(r.job.texts()[r.row], r.job.image_seeds()[r.row], r.job.steps) for r in records]


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.png"))
    }


# One process imports torch and forks a run for each word: the number of the write, the naming or
# the sync at which it kills itself, after half of what it was to write; or 0 for a whole run; or
# less, and it is killed from outside after so many milliseconds.
FORKS = """
import os, signal, sys, time
import torch
import ldm.engine.engine, ldm.models.load, ldm.runs.run
from ldm.cli.app import run

def deadly(call, left):
    def dies(*arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            if call is write:
                write(arguments[0], arguments[1][: len(arguments[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)
    return dies

write = os.write
for moment in map(int, sys.argv[1].split(",")):
    pid = os.fork()
    if moment < 0 and pid:
        time.sleep(-moment / 1000)
        os.kill(pid, signal.SIGKILL)
    if pid == 0:
        left = [moment]
        for name in ("write", "link", "fsync", "unlink"):
            setattr(os, name, deadly(getattr(os, name), left))
        code = run(sys.argv[2:])
        sys.stdout.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=sys.stderr)
"""


JOBS = "a\nb --s 2\nc --n_samples 2\nc --d 6\n"


def forks(folder: Path, moments: list[int], words: list[str], jobs: str = JOBS) -> list[int]:
    folder.mkdir()
    place(folder)
    (folder / "jobs.txt").write_text(jobs)
    argv = ["txt2img", *QUICK, "--from-file", "jobs.txt", "--seed", "3", "-q", *words]
    done = subprocess.run(
        [sys.executable, "-c", FORKS, ",".join(map(str, moments)), *argv],
        cwd=folder,
        env={"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return [int(line) for line in done.stderr.splitlines()]
