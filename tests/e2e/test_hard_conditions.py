"""Runs in trouble: no room, no permission, no reader, no folder any more, stopped, not alone.

Whatever happens, what was done is kept, and what was not is said.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ldm.engine.cancel import Cancel, Cancelled
from ldm.engine.results import Result
from ldm.runs import files
from ldm.runs.interrupts import Interrupts
from ldm.runs.manifest import Manifest
from ldm.runs.writer import Writer
from tests.interrupted_runs import OUT, interrupted, lines_of
from tests.interrupted_runs import interrupts as interrupts
from tests.tiny_runs import QUICK, SAMPLES, contents, draw, forks, place
from tests.tiny_runs import home as home

FOUR = ["--prompt", "x", "--seed", "3", "--n_iter", "4", "--skip_grid"]


def noted(folder: Path) -> list[str]:
    return sorted(line["path"] for line in lines_of(folder))


@pytest.fixture
def whole(home: Path) -> dict[str, str]:
    """What the four images should be."""
    assert draw(*FOUR, "--outdir", "whole", "-q") == 0
    return contents(home / "whole")


# --- no room, no permission -----------------------------------------------------------------------


def test_a_disk_that_is_full(
    home: Path,
    whole: dict[str, str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sync, left = os.fsync, [4]  # an image, its line, an image, its line

    def full(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        assert draw(*FOUR) == 1
    said = capfd.readouterr().err
    assert "No space left on device; 2 of 4 images are in outputs" in said
    assert noted(home / OUT) == ["samples/00000.png", "samples/00001.png"]
    assert not list((home / OUT).rglob("*.tmp"))
    assert draw(*FOUR, "--resume") == 0
    assert contents(home / OUT) == whole


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if mount("-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)):
        pytest.skip("only root may mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=False)


def mount(*words: str) -> int:
    if shutil.which("mount") is None:
        return 1
    return subprocess.run(["mount", *words], check=False, capture_output=True).returncode


def test_a_small_disk(home: Path, small_disk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [*FOUR[:-3], "--n_iter", "20", "--skip_grid"]
    assert draw(*words, "--outdir", "whole", "-q") == 0
    assert draw(*words, "--outdir", str(small_disk / "out")) == 1
    said = capfd.readouterr().err
    kept = sorted((small_disk / "out" / "samples").glob("*.png"))
    assert 0 < len(kept) < 20
    assert "No space left on device" in said
    assert f" of 20 images are in {small_disk}" in said
    assert all(path.read_bytes().endswith(b"IEND\xaeB`\x82") for path in kept)
    assert mount("-o", "remount,size=1m", str(small_disk)) == 0
    assert draw(*words, "--outdir", str(small_disk / "out"), "--resume") == 0
    assert contents(small_disk / "out") == contents(home / "whole")
    assert mount("-o", "remount,ro", str(small_disk)) == 0
    assert draw(*words, "--outdir", str(small_disk / "out")) == 2
    assert "cannot be written (Read-only file system)" in capfd.readouterr().err


def test_a_folder_without_permission(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    (home / "locked").mkdir(mode=0o500)
    assert draw(*FOUR, "--outdir", "locked") == 2
    assert "--outdir locked/samples: cannot be written" in capfd.readouterr().err


def test_a_folder_that_is_deleted(
    home: Path,
    whole: dict[str, str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = Writer.write

    def deleted_after_two(writer: Writer, result: Result, path: Path | None = None) -> Path | None:
        path = write(writer, result, path)
        if writer.written == 2:
            shutil.rmtree(home / OUT)
        return path

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "write", deleted_after_two)
        # The second is deleted before its line is written.
        assert draw(*FOUR) == 1
    assert "No such file or directory; 2 of 4 images are in outputs" in capfd.readouterr().err
    add = Manifest.add

    def deleted_after_two_lines(manifest: Manifest, *told: Any) -> None:
        add(manifest, *told)
        if len(manifest.paths) == 2:
            shutil.rmtree(home / OUT)

    monkeypatch.setattr(Manifest, "add", deleted_after_two_lines)
    assert draw(*FOUR) == 3
    assert "2 of 4 images are gone: another program deleted them" in capfd.readouterr().err
    assert noted(home / OUT) == ["samples/00002.png", "samples/00003.png"]
    monkeypatch.undo()
    monkeypatch.chdir(home)
    assert draw(*FOUR, "--resume") == 0
    assert sorted(contents(home / OUT).values()) == sorted(whole.values())


def rmtree(folder: Path) -> None:
    shutil.rmtree(folder)


# --- stopped --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("interrupts")
def test_stopped_once_the_image_in_work_is_finished(
    home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(monkeypatch, 1)
    assert draw(*FOUR, "--batch-size", "1") == 130
    said = capfd.readouterr().err
    assert "press Ctrl-C again to stop at once" in said
    assert "stopped; 2 of 4 images are in outputs" in said
    assert noted(home / OUT) == ["samples/00000.png", "samples/00001.png"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("interrupts")
def test_stopped_once_all_images_of_a_batch_are_finished(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(monkeypatch, 1)
    assert draw(*FOUR, "--n_samples", "3", "--batch-size", "1") == 130
    assert len(list((home / SAMPLES).iterdir())) == 3


@pytest.mark.usefixtures("interrupts")
def test_stopped_once_all_images_that_are_drawn_together_are_finished(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(monkeypatch, 1)
    assert draw(*FOUR, "--batch-size", "3") == 130
    assert len(list((home / SAMPLES).iterdir())) == 3


@pytest.mark.usefixtures("interrupts")
def test_stopped_twice_at_once(
    home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(monkeypatch, 2)
    assert draw(*FOUR) == 130
    assert "stopped; 1 of 4 images are in outputs" in capfd.readouterr().err
    assert noted(home / OUT) == ["samples/00000.png"]


@pytest.mark.usefixtures("interrupts")
def test_stopped_at_once_where_nothing_is_in_work() -> None:
    with pytest.raises(KeyboardInterrupt), Interrupts(Cancel(), quiet=True):
        os.kill(os.getpid(), signal.SIGINT)
    cancel = Cancel()
    with Interrupts(cancel, quiet=True) as interrupts:
        interrupts.busy = True
        os.kill(os.getpid(), signal.SIGINT)
        cancel.check_step()
        with pytest.raises(Cancelled):
            cancel.check()


def test_a_reader_that_goes_away(home: Path) -> None:
    words = ["txt2img", *QUICK, "--prompt", "x", "--n_iter", "200", "--skip_grid"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ldm", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == f"{SAMPLES}/00000.png\n"
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 1
    count = len(list((home / SAMPLES).glob("*.png")))
    assert 1 < count < 200
    assert f"standard output was closed by its reader; {count} of 200 images are in outputs" in said
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    assert len(noted(home / OUT)) == count


# --- not alone ------------------------------------------------------------------------------------

# One process imports torch and forks two runs into one folder.
TWO = """
import os, sys
import torch
import ldm.engine.engine, ldm.models.load, ldm.runs.run
from ldm.cli.app import run

for seed in ("100", "200"):
    if os.fork() == 0:
        code = run([*sys.argv[1:], "--seed", seed])
        sys.stdout.flush()
        os._exit(code)
print([os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(2)], file=sys.stderr)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    place(tmp_path)
    words = ["txt2img", *QUICK, "--prompt", "x", "--n_iter", "8", "-q"]
    done = subprocess.run(
        [sys.executable, "-c", TWO, *words],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stderr == "[0, 0]\n"
    names = [f"samples/{number:05d}.png" for number in range(16)]
    assert noted(tmp_path / OUT) == names
    assert sorted(path for path in contents(tmp_path / OUT) if path.startswith("s")) == names
    assert sorted(done.stdout.split()) == sorted(
        str(OUT / name) for name in (*names, "grid-0000.png", "grid-0001.png")
    )
    seeds = [line["seed"] for line in lines_of(tmp_path / OUT)]
    assert sorted(seeds) == [*range(100, 108), *range(200, 208)]


# --- killed ---------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.skipif("LDM_SOAK" not in os.environ, reason="takes minutes; make soak runs it")
def test_fifty_kills_of_a_hundred_images(tmp_path: Path) -> None:
    """Half of them at a write, a naming or a sync, half of them whenever the time has come."""
    jobs = (
        "".join(f"prompt {n} --n_samples {1 + n % 3} --s {1 + n % 2}\n" for n in range(50)) + "z\n"
    )
    assert forks(tmp_path / "whole", [0], [], jobs) == [0]
    chance = random.Random(5)
    moments = [
        chance.randint(1, 10) if turn % 2 else -chance.randint(1, 300) for turn in range(50)
    ]  # fmt: skip
    codes = forks(tmp_path / "killed", [*moments, 0], ["--resume"], jobs)
    assert codes[-1] == 0
    assert codes.count(-9) >= 45  # where much is drawn in between, nothing is left to be killed at
    whole = contents(tmp_path / "whole" / "outputs")
    assert len([name for name in whole if "/samples/" in name]) == 100
    assert contents(tmp_path / "killed" / "outputs") == whole
