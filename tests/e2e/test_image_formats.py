"""Images in other formats than PNG: their records, names, sheets and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image, features

from ldm.cli.app import run
from ldm.images.texts import read_record, read_texts
from tests.tiny_commands import QUICK, error_of, place_tiny


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a tiny model."""
    place_tiny(tmp_path / "models" / "tiny.ckpt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LDM_MODELS", raising=False)
    return tmp_path


def generate(*words: str) -> int:
    argv = ["txt2img", "--model", "models/tiny.ckpt", "--prompt", "a cat", "--seed", "7", *QUICK]
    return run([*argv, "-q", *words])


@pytest.mark.parametrize("ending", ["jpg", "webp", "avif", "tif"])
def test_a_record_is_read_from_every_format(
    folder: Path, ending: str, capfd: pytest.CaptureFixture[str]
) -> None:
    if ending == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    assert generate("-o", f"a.{ending}") == 0
    assert read_record(folder / f"a.{ending}").job.seed == 7
    assert read_texts(folder / f"a.{ending}")["parameters"].startswith("a cat\nSteps: 2, Sampler:")
    capfd.readouterr()
    assert run(["info", f"a.{ending}", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["parameters"]["prompt"], found["ldm"]["job"]["seed"]) == ("a cat", 7)
    assert run(["rerun", f"a.{ending}", "-o", f"again.{ending}", "-q"]) == 0
    assert (folder / f"again.{ending}").read_bytes() == (folder / f"a.{ending}").read_bytes()


def test_numbered_images_and_their_sheet_are_resumed(folder: Path) -> None:
    words = ["--format-out", "jpeg", "--n_samples", "2", "--outdir", "out", "--quality", "90"]
    assert generate(*words) == 0
    names = ["samples/00000.jpg", "samples/00001.jpg"]
    assert sorted(path.as_posix() for path in Path("out").rglob("*.jpg")) == [
        "out/grid-0000.jpg",
        *(f"out/{name}" for name in names),
    ]
    before = [(folder / "out" / name).stat().st_mtime_ns for name in names]
    (folder / "out" / "manifest.jsonl").unlink()
    assert generate(*words, "--resume") == 0
    assert [(folder / "out" / name).stat().st_mtime_ns for name in names] == before
    assert len(list(Path("out/samples").iterdir())) == 2


def test_images_without_metadata(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert generate("-o", "{seed}.jpg", "--no-metadata") == 0
    assert read_texts(folder / "7.jpg") == {}
    with Image.open("7.jpg") as image:
        assert "exif" not in image.info
    assert generate("-o", "{seed}.jpg", "--no-metadata", "--resume") == 0
    capfd.readouterr()
    assert run(["rerun", "7.jpg", "-o", "again.jpg"]) == 2
    assert "contains no settings" in error_of(capfd)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "a.gif"], "must end in .png, .jpg"),
        (["-o", "a.png", "--format-out", "webp"], "a.png is not webp"),
        (["-o", "a.png", "--quality", "80"], "png loses nothing"),
        (["-o", "a.jpg", "--quality", "101"], "--quality must be 1 to 100"),
        (["-o", "a.jpg", "--format-out", "jpg"], "did you mean jpeg?"),
    ],
)
def test_refusals(words: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert generate(*words) == 2
    assert message in error_of(capfd)
    assert not list(Path().glob("a.*"))
