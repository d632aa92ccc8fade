"""What every task that begins with an image has in common: records, files of prompts, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from ldm.cli.app import run
from ldm.engine.plan import make_plan, resolve
from ldm.images.texts import read_record
from ldm.jobs.inputs import digest
from tests.odd_images import PNG_START, png_chunk, png_header
from tests.tiny_images import QUICK, place, read, save, scene, square_mask

ROOT = Path(__file__).parents[2]
# Each task, with each kind of model that can do it: what to say beside the model, with its prompt.
CASES: Mapping[str, tuple[str, str, list[str]]] = {
    "img2img": ("img2img", "text", ["-i", "in.png"]),
    "inpaint, held": ("inpaint", "text", ["-i", "in.png", "--mask", "mask.png"]),
    "inpaint, shown": ("inpaint", "inpaint", ["-i", "in.png", "--mask", "mask.png"]),
    "inpaint, textless": ("inpaint", "textless", ["-i", "in.png", "--mask", "mask.png"]),
    "depth2img": ("depth2img", "depth", ["-i", "in.png", "--depth", "depth.png"]),
    "upscale": ("upscale", "upscale", ["-i", "in.png"]),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model for each task."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("text", "inpaint", "textless", "depth", "upscale"):
        place(name, folder)
    return folder


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a small image, its mask and its depth."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LDM_MODELS", str(models))
    save(tmp_path / "in.png", scene(19, 13))
    save(tmp_path / "mask.png", square_mask(19, 13))
    save(tmp_path / "depth.png", scene(19, 13)[..., 0])
    return tmp_path


def words(case: tuple[str, str, list[str]], *more: str) -> list[str]:
    task, model, files = case
    return [task, *files, "--model", model, "--prompt", "a cat", *QUICK, *more]


@every_case
def test_an_image_is_made_again_from_its_record(
    case: tuple[str, str, list[str]], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = words(case, "--steps", "2", "--outdir", "out", "--skip_grid", "--json")
    assert run([*argv, "--n_samples", "2"]) == 0
    told = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [line["seed"] for line in told] == [7, 8]
    height, width = read(Path(told[1]["path"])).shape[:2]
    assert (told[1]["width"], told[1]["height"]) == (width, height)
    image = folder / "out" / "samples" / "00001.png"
    files = case[2][1::2]
    assert read_record(image).inputs == {name: digest(name) for name in files}
    assert run(["rerun", str(image), "-o", "again.png", "--quiet"]) == 0
    assert (folder / "again.png").read_bytes() == image.read_bytes()
    # Alone in its batch it is the same image but for round-off.
    assert run([*argv, "--seed", "8", "--outdir", "alone"]) == 0
    assert np.abs(read(folder / "alone/samples/00000.png") - read(image)).max() <= 1
    capfd.readouterr()
    for name in files:
        content = (folder / name).read_bytes()
        save(folder / name, 255 - read(folder / name).astype(np.uint8))
        assert run(["rerun", str(image), "-o", "third.png"]) == 2
        error = capfd.readouterr().err
        assert error.startswith(f"ldm: error: {name}: has changed")
        (folder / name).unlink()
        assert run(["rerun", str(image), "-o", "third.png"]) == 2
        error = capfd.readouterr().err
        assert error.startswith(f"ldm: error: {name}: no such file")
        assert str(image) in error
        (folder / name).write_bytes(content)
    assert not (folder / "third.png").exists()


@every_case
def test_a_file_of_prompts_and_what_would_apply(
    case: tuple[str, str, list[str]], folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "prompts.txt").write_text("a cat\na dog\n", encoding="utf-8")
    argv = words(case, "--steps", "1", "--outdir", "out")
    argv.remove("--prompt")
    argv.remove("a cat")
    assert run([*argv, "--from-file", "prompts.txt", "--n_samples", "2"]) == 0
    images = sorted((folder / "out" / "samples").iterdir())
    prompts = [read_record(path).job.texts()[read_record(path).row] for path in images]
    assert prompts == ["a cat", "a dog"]
    assert (folder / "out" / "grid-0000.png").exists()
    capfd.readouterr()
    assert run([*words(case), "--print-config", "--json"]) == 0
    shown = json.loads(capfd.readouterr().out)
    assert shown["task"]["value"] == case[0]
    assert shown["seed"] == {"value": 7, "why": "asked for"}
    factor = 4 if case[0] == "upscale" else 1
    assert (shown["width"]["value"], shown["height"]["value"]) == (19 * factor, 13 * factor)


# --- refusals -------------------------------------------------------------------------------------


def bad_files(folder: Path) -> None:
    """Files that no image can be made of, beside those that are good."""
    save(folder / "wide.png", square_mask(38, 13))
    save(folder / "black.png", np.zeros((13, 19), np.uint8))
    save(folder / "white.png", np.full((13, 19), 255, np.uint8))
    save(folder / "tiny.png", scene(4, 4))
    edge = np.zeros((13, 19), np.uint8)
    edge[:, :3] = 255
    save(folder / "edge.png", edge)
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no image", encoding="utf-8")
    (folder / "cut.png").write_bytes((folder / "in.png").read_bytes()[:-60])
    bomb = PNG_START + png_header(100_000, 100_000, 8, 2) + png_chunk(b"IDAT", b"")
    (folder / "bomb.png").write_bytes(bomb + png_chunk(b"IEND", b""))
    from PIL import Image

    frames = [Image.fromarray(scene(19, 13)), Image.fromarray(255 - scene(19, 13))]
    frames[0].save(folder / "film.gif", save_all=True, append_images=frames[1:])
    (folder / "nothing").mkdir()


I2I = ["img2img", "--model", "text", "--prompt", "a"]
INP = ["inpaint", "--model", "text", "--prompt", "a", "-i", "in.png"]
D2I = ["depth2img", "--model", "depth", "--prompt", "a", "-i", "in.png"]
UPS = ["upscale", "--model", "upscale"]

REFUSALS: list[tuple[list[str], str]] = [
    (I2I, "--init-img is missing"),
    ([*UPS], "--init-img is missing"),
    (["img2img", "--model", "text", "-i", "in.png"], "--prompt is missing"),
    (["inpaint", "--model", "inpaint", "-i", "in.png", "--mask", "mask.png"], "--prompt is"),
    (INP, "--mask is missing"),
    *(
        ([*start, "-i", name], f"{name}: {reason}")
        for start in (I2I, UPS)
        for name, reason in (
            ("nowhere.png", "no such file"),
            ("empty.png", "the file is empty"),
            ("text.png", "not an image, but text"),
            ("cut.png", "the image is damaged or incomplete"),
            ("bomb.png", "has more than"),
            ("film.gif", "is animated"),
            ("tiny.png", "is 4x4"),
            ("nothing", "no image in the folder"),
            ("nothing/*.png", "nothing matches"),
        )
    ),
    ([*INP, "--mask", "wide.png"], "wide.png: the mask is 38x13 and the image 19x13"),
    ([*INP, "--mask", "black.png"], "black.png: the mask is empty"),
    ([*INP, "--mask", "white.png"], "white.png: the mask covers the whole image"),
    ([*INP, "--mask", "black.png", "--mask-invert"], "covers the whole"),
    (
        [*INP, "--mask", "edge.png", "--fit", "crop", "--W", "8", "--H", "13"],
        "edge.png at 8x13: the mask is empty",
    ),
    ([*INP, "--mask", "cut.png"], "cut.png: the image is damaged"),
    ([*INP, "--mask", "mask.png", "--outpaint", "1,1,1,1"], "--mask and --outpaint"),
    ([*INP, "--outpaint", "1,2,3"], "--outpaint must be four"),
    ([*INP, "--outpaint", "1,2,3,x"], "--outpaint must be four"),
    ([*INP, "--outpaint", "0,0,0,0"], "adds nothing"),
    ([*INP, "--outpaint", "-8,0,0,0"], "--outpaint takes 0 to"),
    ([*INP, "--outpaint", "9999,0,0,0"], "--outpaint takes 0 to"),
    ([*INP, "--mask", "mask.png", "--feather", "-1"], "--feather must be"),
    ([*D2I], "no depth network"),
    ([*D2I, "--depth", "wide.png"], "wide.png: the depth map is 38x13"),
    ([*D2I, "--depth", "in.png"], "in.png: is coloured"),
    ([*D2I, "--depth", "black.png"], "black.png: the depth map is the same everywhere"),
    ([*D2I, "--depth-model", "nowhere.pt"], "--depth-model nowhere.pt: no such file"),
    ([*D2I, "--depth-model", "in.png"], "in.png: "),
    ([*D2I, "--depth", "depth.png", "--depth-model", "x.pt"], "--depth and --depth-model"),
    ([*D2I, "--depth", "depth.png", "--save-depth", "x.jpg"], "must end in .png"),
    *(
        ([*start, "--strength", value], "--strength must be 0 to 1")
        for start in ([*I2I, "-i", "in.png"], [*INP, "--mask", "mask.png"])
        for value in ("1.5", "-0.1", "nan")
    ),
    ([*UPS, "-i", "in.png", "--noise-level", "351"], "--noise-level must be 0 to 350"),
    ([*UPS, "-i", "in.png", "--noise-level", "-1"], "--noise-level must be 0 to 350"),
    ([*UPS, "-i", "in.png", "--tile", "8"], "--tile must be 32 or more"),
    ([*UPS, "-i", "in.png", "--W", "64"], "--W"),
    ([*I2I, "-i", "in.png", "--fit", "error", "--W", "32", "--H", "32"], "19x13"),
    ([*I2I, "-i", "in.png", "--fit", "floor-64"], "64 pixels per side"),
    ([*I2I, "-i", "in.png", "--W", "0"], "--width must be 1 or more"),
    ([*I2I, "-i", "in.png", "--vae", "nowhere.pt"], "--vae nowhere.pt: no such file"),
    ([*I2I, "-i", "in.png", "--vae", "in.png"], "in.png: "),
    (["img2img", "-m", "upscale", "-i", "in.png", "--prompt", "a"], "these can: text"),
    (["inpaint", "-m", "depth", *INP[3:], "--mask", "mask.png"], "these can: inpaint, text"),
    (["depth2img", "-m", "text", *D2I[3:], "--depth", "depth.png"], "these can: depth"),
    (["upscale", "-m", "textless", "-i", "in.png"], "these can: upscale"),
    (["txt2img", "-m", "inpaint", "--prompt", "a"], "these can: "),
]

PROBE = """
import contextlib, io, json, sys
from ldm.cli.app import run
for argv in json.load(sys.stdin):
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        code = run(argv)
    print(json.dumps([code, err.getvalue(), "torch" in sys.modules]))
"""


def test_bad_input_is_one_line_before_torch_and_nothing_is_written(folder: Path) -> None:
    bad_files(folder)
    before = sorted(folder.rglob("*"))
    lines = [argv for argv, _ in REFUSALS]
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        input=json.dumps([[*argv, "--quiet", "--outdir", "a/b"] for argv in lines]),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    wrong = []
    for (argv, message), (code, error, torch) in zip(REFUSALS, answers, strict=True):
        one = error.startswith("ldm: error: ") and error.count("\n") == 1
        if code != 2 or torch or not one or message not in error:
            wrong.append(f"{' '.join(argv)} -> {code}{' torch' if torch else ''} {error!r}")
    assert not wrong, "\n".join(wrong)
    assert sorted(folder.rglob("*")) == before


def test_a_file_that_is_no_autoencoder_for_the_model_is_refused(
    models: Path, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    start = [*I2I, "-i", "in.png", "--outdir", "out", "--vae"]
    assert run([*start, str(models / "textless.safetensors")]) == 2
    assert "does not fit this model" in capfd.readouterr().err
    assert not (folder / "out").exists()


def test_a_model_that_takes_no_text_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    argv = ["inpaint", "-m", "textless", "-i", "in.png", "--mask", "mask.png", "--print-config"]
    assert run([*argv, "--json"]) == 0
    told = capfd.readouterr()
    assert json.loads(told.out)["scale"] == {"value": 1.0, "why": "the model takes no text"}
    assert told.err.splitlines() == [
        "ldm: 19x13 is generated as 20x16 and cropped: the model takes no other sides"
    ]
    assert run([*argv, "--prompt", "a cat", "--scale", "3"]) == 0
    assert "takes no text: --prompt and --scale will do nothing" in capfd.readouterr().err


def test_a_measured_size_survives_what_loading_tells() -> None:
    plan = make_plan({"task": "img2img", "model": "text", "prompt": "a", "init_img": "in.png"})
    assert (plan.job.width, plan.job.height) == (19, 13)
    again = resolve(plan, plan.choice.family.defaults, plan.given)
    assert again.job == plan.job
