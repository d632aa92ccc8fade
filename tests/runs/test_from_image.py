"""Images of other programs made again: `ldm rerun`, `--from-image` and `ldm info`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldm.cli.app import run
from ldm.images.texts import read_record
from tests.foreign_images import (
    COMFY,
    COMFY_CUSTOM,
    TEXTS,
    WEBUI,
    write_exif,
    write_hidden,
    write_png,
)  # fmt: skip
from tests.tiny_commands import error_of, place_tiny

FAST = ["--device", "cpu", "--quiet"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a tiny model, models/mine.ckpt."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LDM_MODELS", raising=False)
    place_tiny(tmp_path / "models" / "mine.ckpt")
    return tmp_path


def webui(home: Path, **changes: str) -> str:
    """A text of the web UI that names the tiny model by its hash alone."""
    digest = hashlib.sha256((home / "models/mine.ckpt").read_bytes()).hexdigest()[:10]
    text = WEBUI.replace("6ce0161689", digest)
    for old, new in changes.items():
        text = text.replace(old, new)
    return text


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def test_rerun_makes_the_job_that_the_web_ui_wrote(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    comment = b"UNICODE\0" + webui(home).encode("utf-16-be")
    write_exif(home / "a.jpg", comment)
    assert run(["rerun", "a.jpg", "--device", "cpu", "-o", "again.png"]) == 0
    captured = capfd.readouterr()
    assert "not honoured from AUTOMATIC1111: Tiling: True" in captured.err
    assert "not honoured from AUTOMATIC1111: Lora hashes" in captured.err
    flags = [
        "--prompt", "a (red:1.2) cat, 8k\non a mat", "--negative", "blurry, dog", "--steps", "4",
        "--sampler", "DPM++ 2M Karras", "--scale", "6.5", "--seed", "4294967290", "--W", "24",
        "--H", "16", "--clip-skip", "2", "--rng", "cpu", "--ensd", "31337", "--model", "mine",
    ]  # fmt: skip
    assert run(["txt2img", *flags, *FAST, "-o", "flags.png"]) == 0
    assert pixels(home / "again.png") == pixels(home / "flags.png")
    job = read_record(home / "again.png").job
    assert (job.model, job.grid, job.clip_skip) == ("models/mine.ckpt", "karras", 2)
    capfd.readouterr()
    assert run(["info", "again.png"]) == 0
    shown = capfd.readouterr().out
    assert "ensd" in shown


def test_flags_override_and_other_commands_take_it(home: Path) -> None:
    write_png(home / "a.png", {"parameters": webui(home)})
    argv = ["--from-image", "a.png", *FAST]
    assert run(["txt2img", *argv, "--seed", "3", "--sampler", "euler", "-o", "b.png"]) == 0
    job = read_record(home / "b.png").job
    assert (job.seed, job.sampler, job.grid, job.steps) == (3, "euler", None, 4)
    assert job.prompt == "a (red:1.2) cat, 8k\non a mat"
    assert run(["img2img", *argv, "-i", "a.png", "--strength", "0.5", "-o", "c.png"]) == 0
    job = read_record(home / "c.png").job
    assert (job.task, job.init_img, job.seed) == ("img2img", "a.png", 4294967290)


def test_one_image_of_our_own_batch(home: Path) -> None:
    flags = ["--steps", "2", "--W", "24", "--H", "16", "--model", "mine", *FAST]
    assert run(["txt2img", "--prompt", "a cat", "--seed", "5", "--n_samples", "2", *flags]) == 0
    image = "outputs/txt2img-samples/samples/00001.png"
    assert run(["txt2img", "--from-image", image, *FAST, "-o", "b.png"]) == 0
    job = read_record(home / "b.png").job
    assert (job.seed, job.n_samples, job.prompt, job.model) == (6, 1, "a cat", "mine")


def test_a_batch_of_comfy_is_one_tensor(home: Path) -> None:
    graph = {**COMFY, "4": {**COMFY["4"], "inputs": {"ckpt_name": "sub\\mine.ckpt"}}}
    write_exif(home / "a.webp", Model=f"prompt:{json.dumps(graph)}")
    argv = ["--model", "mine", "--outdir", "flags", "--skip_grid", *FAST]
    assert run(["rerun", "a.webp", "--outdir", "out", *FAST]) == 0
    flags = [
        "--prompt", "a cat", "--negative", "blurry", "--seed", "77", "--steps", "4", "--scale",
        "5", "--sampler", "dpmpp_2m", "--grid", "karras", "--W", "24", "--H", "16", "--clip-skip",
        "2", "--n_samples", "2", "--noise", "stream", "--rng", "cpu", "--prompt-syntax", "comfy",
    ]  # fmt: skip
    assert run(["txt2img", *flags, *argv]) == 0
    for name in ("samples/00000.png", "samples/00001.png"):
        assert pixels(home / "out" / name) == pixels(home / "flags" / name)


def test_noise_of_the_steps_has_another_seed_with_ensd(home: Path) -> None:
    flags = [
        "txt2img", "--prompt", "a cat", "--seed", "5", "--steps", "3", "--W", "24", "--H", "16",
        "--model", "mine", *FAST,
    ]  # fmt: skip
    for sampler, same in (("euler", True), ("euler_a", False)):
        assert run([*flags, "--sampler", sampler, "-o", f"{sampler}.png"]) == 0
        assert run([*flags, "--sampler", sampler, "--ensd", "7", "-o", f"{sampler}7.png"]) == 0
        plain, moved = (pixels(home / f"{sampler}{end}.png") for end in ("", "7"))
        assert (plain == moved) is same
    assert run(["info", "euler_a7.png"]) == 0


REFUSED: dict[str, tuple[dict[str, str], list[str], str]] = {
    "nothing": ({}, [], "contains no settings"),
    "model": ({"parameters": WEBUI}, [], "made with model v1-5 and hash 6ce0161689, and no file"),
    "sampler": (
        {"parameters": WEBUI.replace("DPM++ 2M", "Magic")}, ["--model", "mine"],
        "--sampler 'Magic' is not known",
    ),
    "lora": ({"parameters": "<lora:x:1> " + WEBUI}, ["--model", "mine"], "LoRA"),
    "image": ({"prompt": json.dumps(COMFY_CUSTOM)}, [], "use ldm img2img --from-image"),
    "deep": ({"prompt": '{"a":' * 100_000}, [], "nested too deeply"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(home: Path, capfd: pytest.CaptureFixture[str], case: str) -> None:
    texts, flags, message = REFUSED[case]
    write_png(home / "a.png", texts)
    assert run(["rerun", "a.png", *flags]) == 2
    assert message in error_of(capfd)
    assert not (home / "outputs").exists()


@pytest.mark.parametrize("name", TEXTS)
def test_info_has_one_form(home: Path, capfd: pytest.CaptureFixture[str], name: str) -> None:
    write_png(home / "a.png", TEXTS[name])
    assert run(["info", "a.png"]) == 0
    lines = capfd.readouterr().out.splitlines()
    rows = dict(line.split(maxsplit=1) for line in lines if not line.startswith(" "))
    assert rows["program"] == name.removesuffix(" 1").removesuffix(" 2")
    needed = {"prompt", "negative", "seed", "steps", "sampler", "scale", "size"}
    assert needed <= rows.keys()
    assert rows["size"] == "24x16"
    assert run(["info", "--raw", "a.png"]) == 0
    raw = capfd.readouterr().out
    assert all(text in raw for text in TEXTS[name].values())
    assert run(["info", "--json", "a.png"]) == 0
    settings: dict[str, Any] = json.loads(capfd.readouterr().out)["settings"]
    assert str(settings["seed"]) == rows["seed"]


def test_info_reads_hidden_texts(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_hidden(home / "a.png", TEXTS["NovelAI"])
    assert run(["info", "a.png"]) == 0
    assert "program        NovelAI" in capfd.readouterr().out
    write_png(home / "b.png", {"Author": "me"})
    assert run(["info", "b.png"]) == 0
    out = capfd.readouterr().out
    assert "no information about how it was made" in out
    assert "Author" in out
