"""The record of what is done: torn lines, several processes, what makes two images the same."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.jobs.job import Job
from ldm.runs.manifest import NAME, Manifest, fingerprint, hash_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "samples" / "00000.png"
    path.parent.mkdir()
    path.write_bytes(b"image")
    return path


def test_what_is_noted_is_found_again(tmp_path: Path, image: Path) -> None:
    manifest = Manifest.open(tmp_path)
    assert manifest.done("a") is None
    manifest.add("a", image, 7)
    line = json.loads((tmp_path / NAME).read_text())
    assert line == {
        "fingerprint": "a",
        "path": "samples/00000.png",
        "seed": 7,
        "sha256": hashlib.sha256(b"image").hexdigest(),
    }
    again = Manifest.open(tmp_path)
    assert again.done("a") == image
    assert again.has(image)
    assert not again.has(image.with_name("00001.png"))
    assert again.done("b") is None


def test_an_image_that_is_gone_is_not_done(tmp_path: Path, image: Path) -> None:
    manifest = Manifest.open(tmp_path)
    manifest.add("a", image, 7)
    image.unlink()
    assert manifest.done("a") is None
    other = image.with_name("00001.png")
    other.write_bytes(b"again")
    manifest.add("a", other, 7)
    assert Manifest.open(tmp_path).done("a") == other


def test_an_image_that_was_asked_for_twice(tmp_path: Path, image: Path) -> None:
    other = image.with_name("00001.png")
    other.write_bytes(b"the same")
    manifest = Manifest.open(tmp_path)
    for path in (image, other, other):
        manifest.add("a", path, 7)
    again = Manifest.open(tmp_path)
    assert [again.done("a", taken) for taken in range(3)] == [image, other, None]
    image.unlink()
    assert [again.done("a", taken) for taken in range(2)] == [other, None]


@settings(max_examples=20)
@given(cut=st.integers(0, 400))
def test_a_line_that_was_cut_short(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("cut")
    images = [folder / f"{i}.png" for i in range(3)]
    for path in images:
        path.write_bytes(b"x")
    manifest = Manifest.open(folder)
    for number in range(2):
        manifest.add(f"mark {number}", images[number], number)
    content = manifest.path.read_bytes()
    manifest.path.write_bytes(content[:cut])
    whole = content[:cut].count(b"\n")
    again = Manifest.open(folder)
    assert [again.done(f"mark {i}") is not None for i in range(2)] == [whole > 0, whole > 1]
    again.add("mark 2", images[2], 2)
    assert Manifest.open(folder).done("mark 2") == images[2]
    assert [again.done(f"mark {i}") is not None for i in range(2)][:whole] == [True] * whole


def test_lines_of_another_kind_are_passed_over(tmp_path: Path, image: Path) -> None:
    lines = ["", "3", "[]", "null", "{}", '{"fingerprint": 3, "path": 4}', '{"run": []}', "\x00"]
    (tmp_path / NAME).write_text("\n".join(lines) + "\n")
    manifest = Manifest.open(tmp_path)
    assert manifest.paths == set()
    manifest.add("a", image, 1)
    assert Manifest.open(tmp_path).done("a") == image


def test_runs(tmp_path: Path, image: Path) -> None:
    manifest = Manifest.open(tmp_path)
    assert manifest.seed("r") is None
    manifest.note_seed("r", 5)
    assert Manifest.open(tmp_path).seed("r") == 5
    assert not manifest.complete("r")
    manifest.add("a", image, 1)
    manifest.note_complete("r", [image, image])
    again = Manifest.open(tmp_path)
    assert again.complete("r") == (image, image)
    assert again.seed("r") == 5
    assert not again.complete("other")
    again.note_complete("other", [tmp_path / "unknown.png"])
    assert not again.complete("other"), "of a file without a line nothing is known"
    image.unlink()
    assert not again.complete("r")


def test_one_sees_what_another_notes(tmp_path: Path, image: Path) -> None:
    first, second = Manifest.open(tmp_path), Manifest.open(tmp_path)
    first.add("a", image, 1)
    second.add("b", image, 1)
    assert first.done("b") == second.done("a") == image


def test_several_processes_write_whole_lines(tmp_path: Path, image: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from ldm.runs.manifest import Manifest\n"
        "folder, name = Path(sys.argv[1]), sys.argv[2]\n"
        "manifest = Manifest.open(folder)\n"
        "for i in range(25): manifest.note_seed(f'{name} {i} ' + 'x' * 5000, i)\n"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(n)], cwd=ROOT)
        for n in range(3)
    ]
    assert [process.wait() for process in started] == [0, 0, 0]
    lines = (tmp_path / NAME).read_text().splitlines()
    assert len({json.loads(line)["run"] for line in lines}) == 75


JOB = Job(prompt="a", seed=5, n_samples=3, steps=4)


def test_an_image_with_noise_of_its_own_is_known_in_any_batch() -> None:
    mark = fingerprint(JOB, 1, "hash", {})
    assert mark == fingerprint(replace(JOB, seed=6, n_samples=1), 0, "hash", {})
    listed = replace(JOB, prompt=None, prompts=("b", "a", "c"))
    assert mark == fingerprint(listed, 1, "hash", {})
    classes = replace(JOB, prompt=None, classes=("7",))
    assert fingerprint(classes, 1, "hash", {}) != mark


@pytest.mark.parametrize(
    "change",
    [{"prompt": "b"}, {"seed": 6}, {"steps": 5}, {"negative": "x"}, {"precision": "bf16"}],
)
def test_another_image_has_another_fingerprint(change: dict[str, str]) -> None:
    assert fingerprint(JOB, 0, "hash", {}) != fingerprint(replace(JOB, **change), 0, "hash", {})


def test_model_inputs_and_row_count() -> None:
    marks = {
        fingerprint(JOB, 0, "hash", {}),
        fingerprint(JOB, 1, "hash", {}),
        fingerprint(JOB, 0, "other", {}),
        fingerprint(JOB, 0, "hash", {"a.png": "1"}),
        fingerprint(JOB, 0, "hash", {"a.png": "2"}),
    }
    assert len(marks) == 5
    stream = replace(JOB, noise="stream")
    assert fingerprint(stream, 1, "h", {}) != fingerprint(replace(stream, n_samples=2), 1, "h", {})
    assert fingerprint(stream, 1, "h", {}) != fingerprint(replace(stream, skip_draws=3), 1, "h", {})


def test_the_order_of_keys_does_not_count() -> None:
    assert hash_of({"a": 1, "b": [2]}) == hash_of({"b": [2], "a": 1}) != hash_of({"a": 1})
