"""The command line from the outside: words in; files, lines and exit codes out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ldm.cli.app import run
from ldm.engine.plan import make_plan
from ldm.errors import LdmError
from ldm.images.texts import read_record
from ldm.jobs.legacy import ORIGINAL_FLAGS, SCRIPT_CHECKPOINTS
from tests.cpu_time import at_once
from tests.tiny_commands import QUICK, ROOT, error_of, fake_full_size, place_tiny

# --- quick answers --------------------------------------------------------------------------------


def python(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


PROBE = """
import sys
from ldm.cli.app import run
code = run({argv!r}, script={script!r})
assert "torch" not in sys.modules, "torch was imported"
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["--help"], 0),
        (["--version"], 0),
        (["txt2img", "--help"], 0),
        (["rerun", "--help"], 0),
        (["txt2img", "--prompt", "x", "--model", "tiny", "--print-config"], 0),
        ([], 2),
        (["txt2mg"], 2),
        (["txt2img"], 2),
        (["txt2img", "--promt", "x"], 2),
        (["txt2img", "--prompt", "x", "--steps", "many"], 2),
        (["txt2img", "--prompt", "x", "--model", "tiny", "--H", "0"], 2),
        (["txt2img", "--prompt", "x", "--model", "nowhere"], 2),
        (["txt2img", "--prompt", "x", "--model", "tiny", "--outdir", "models/sub/tiny.ckpt"], 2),
        (["info", "nowhere.png"], 2),
    ],
)
def test_answers_without_torch_and_at_once(home: Path, argv: list[str], code: int) -> None:
    at_once(lambda: python(PROBE.format(argv=argv, script=False)), code)


@pytest.mark.parametrize("entry", ["main()", "main_script('txt2img')"])
def test_torch_is_not_taken_apart_at_the_end(home: Path, entry: str) -> None:
    """What is registered for the end of the process is done, and what was said is said."""
    program = f"""
import atexit, sys, torch
from ldm.cli.app import main, main_script
class Left:
    def __del__(self): print("taken apart")
left = Left()
atexit.register(print, "last words")
sys.argv = ["ldm", "--no-such-flag"]
print("first words")
{entry}
"""
    done = python(program)
    assert (done.returncode, done.stdout) == (2, "first words\nlast words\n"), done.stderr
    assert "no-such-flag" in done.stderr


def test_a_full_size_file_is_described_without_torch(home: Path) -> None:
    path = fake_full_size(home / "full.safetensors", "sd-v1")
    probe = PROBE.format(argv=["info", str(path)], script=False)
    done = python(probe)
    assert done.returncode == 0, done.stderr


# --- errors: one line, exit code 2, nothing heavy -------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--promt", "x"], "no such option: --promt; did you mean --prompt?"),
        (["--n_", "2"], "--n_ could be any of"),
        (["--prompt"], "--prompt needs a value"),
        (["--prompt", "--steps", "3"], "--prompt needs a value"),
        (["a red apple"], "a prompt is given as --prompt"),
        ([], "--prompt is missing"),
        (["--prompt", "x", "--steps", "-1"], "--steps must be 1 to 1000, not -1"),
        (["--prompt", "x", "--steps", "1.5"], "--steps must be a whole number, not '1.5'"),
        (["--prompt", "x", "--scale", "big"], "--scale must be a number, not 'big'"),
        (["--prompt", "x", "--W", "0"], "--width must be 1 or more, not 0"),
        (["--prompt", "x", "--C", "16"], "--C 16: this model's latents have 4 channels"),
        (["--prompt", "x", "--f", "4"], "--f 4: this model has 8 pixels"),
        (["--prompt", "x", "--plms", "--dpm"], "give one"),
        (["--prompt", "x", "--plms", "--eta", "1"], "only with --eta 0"),
        (["--prompt", "x", "--sampler", "eulr"], "did you mean euler?"),
        (["--prompt", "x", "--model", "tyny"], "did you mean tiny?"),
        (["--prompt", "x", "--model", "models"], "is a folder"),
        (["--prompt", "x", "--config", "v1-inferense.yaml"], "did you mean v1-inference.yaml?"),
        (["--prompt", "x", "--config", "v2-inference.yaml"], "does not fit"),
        (["--prompt", "x", "--set", "model.params.scale_facto=1"], "scale_factor"),
        (["--prompt", "x", "--from-file", "none.txt"], "none.txt: cannot be read"),
        (["--prompt", "x", "--outdir", "models/sub/tiny.ckpt/x"], "cannot be written"),
        (["--prompt", "x", "-o", "a.bmp"], "must end in .png"),
        (["--prompt", "x", "-o", "a.png", "--n_iter", "2"], "the job makes 2"),
        (["--prompt", "x", "-o", "-", "--json"], "both use standard output"),
        (["--prompt", "x", "--laion400m"], "models/ldm/text2img-large/model.ckpt: no such file"),
        (["--prompt", "x", "--attention", "xformers"], "not installed"),
        (["--prompt", "x", "--device", "gpu"], "--device must be"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    home: Path, capfd: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    model = [] if "--model" in argv or "--laion400m" in argv else ["--model", "tiny"]
    assert run(["txt2img", *argv, *model]) == 2
    assert message in error_of(capfd)
    assert not list(home.glob("outputs/**/*.png"))


def test_a_truncated_or_foreign_checkpoint_is_refused(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = (home / "models/sub/tiny.ckpt").read_bytes()
    for name, content in (("cut.ckpt", whole[:-5000]), ("web.ckpt", b"<html>"), ("no.ckpt", b"")):
        (home / name).write_bytes(content)
        assert run(["txt2img", "--prompt", "x", "--model", name, *QUICK]) == 2
        assert name in error_of(capfd)


def test_debug_shows_the_traceback(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["txt2img", "--prompt", "x", "--model", "tiny", "--W", "0", "--debug"]) == 2
    error = capfd.readouterr().err
    assert "Traceback" in error
    assert error.splitlines()[-1].startswith("ldm: error: --width")


def test_a_fault_of_our_own_is_one_line_too(
    home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("ldm.runs.planning.make_plan", fail)
    assert run(["txt2img", "--prompt", "x"]) == 1
    assert error_of(capfd) == "ZeroDivisionError: oops (a fault of ldm; --debug shows where)"


# --- the old flags and the originals' lines -------------------------------------------------------


@pytest.mark.parametrize("flag", ORIGINAL_FLAGS)
def test_every_old_flag_is_known_in_both_spellings(
    flag: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for spelling in {
        flag,
        flag[:2] + flag[2:].replace("_", "-"),
        flag[:2] + flag[2:].replace("-", "_"),
    }:
        run(["img2img" if flag in ("--init-img", "--strength") else "txt2img", spelling, "1"])
        assert "no such option" not in capfd.readouterr().err


def test_the_readme_line_of_version_1(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place_tiny(home / SCRIPT_CHECKPOINTS["txt2img"])
    words = ["--prompt", "a photograph of an astronaut riding a horse", "--plms"]
    assert run(["txt2img", *words, "--print-config", "--json"], script=True) == 0
    told = {name: row["value"] for name, row in json.loads(capfd.readouterr().out).items()}
    assert told["checkpoint"] == SCRIPT_CHECKPOINTS["txt2img"]
    wanted = {"n_samples": 3, "n_iter": 2, "seed": 42, "scale": 7.5, "steps": 50, "width": 512}
    wanted |= {"sampler": "plms", "noise": "stream", "rng": "device", "schedule_compat": "ldm"}
    assert {name: told[name] for name in wanted} == wanted
    quick = ["--n_iter", "1", "--n_sample=2", "--ddim_steps", "2", "--H", "16", "--W", "16"]
    assert run(["txt2img", *words, *quick], script=True) == 0
    assert len(list(home.glob("outputs/txt2img-samples/samples/*.png"))) == 2


@pytest.mark.parametrize(
    ("name", "flags", "wanted"),
    [
        ("sd-v1", "", {"width": 512, "scale": 7.5, "n_iter": 2, "predicts": "eps"}),
        (
            "sd-v2-v",
            "--config configs/stable-diffusion/v2-inference-v.yaml --H 768 --W 768",
            {"width": 768, "scale": 9.0, "n_iter": 3, "predicts": "v", "steps": 50},
        ),
        (
            "sd-v2",
            "--config configs/stable-diffusion/v2-inference.yaml",
            {"width": 512, "scale": 9.0, "n_iter": 3, "predicts": "eps"},
        ),
        (
            "sd-v2-v",
            "--config configs/stable-diffusion/intel/v2-inference-v-bf16.yaml --H 768 --W 768 "
            "--precision full --device cpu --torchscript --ipex --bf16",
            {"width": 768, "precision": "bf16", "predicts": "v", "device": "cpu"},
        ),
        (
            "sd-v2",
            "--config configs/stable-diffusion/intel/v2-inference-fp32.yaml "
            "--n_samples 1 --n_iter 4 --precision full --device cpu --torchscript --ipex",
            {"n_samples": 1, "n_iter": 4, "precision": "full", "width": 512},
        ),
    ],
)
def test_the_readme_lines_on_full_size_files(
    home: Path, capfd: pytest.CaptureFixture[str], name: str, flags: str, wanted: dict[str, object]
) -> None:
    path = fake_full_size(home / "full.safetensors", name)
    words = ["--prompt", "a corgi is playing guitar", "--ckpt", str(path), *flags.split()]
    for script in (True, False):
        assert run(["txt2img", *words, "--print-config", "--json"], script=script) == 0
        captured = capfd.readouterr()
        told = {field: row["value"] for field, row in json.loads(captured.out).items()}
        if not script and "--n_iter" not in flags and "n_iter" in wanted:
            wanted = {**wanted, "n_iter": 1}
        assert {field: told[field] for field in wanted} == wanted
        assert captured.err.count("--ipex does nothing") == flags.count("--ipex")
        assert "Traceback" not in captured.err


def test_the_family_decides_what_is_not_given(home: Path) -> None:
    path = fake_full_size(home / "full.safetensors", "sd-v2-v")
    plan = make_plan({"prompt": "x", "model": str(path), "prediction": "v"})
    assert (plan.job.width, plan.job.scale, plan.job.steps) == (768, 9.0, 50)
    assert "768" in plan.why["width"]
    assert plan.why["seed"] == "drawn at random"
    for model, task in (("sd-v2-inpainting", "inpaint"), ("sd-x4-upscaling", "upscale")):
        other = fake_full_size(home / f"{model}.safetensors", model)
        with pytest.raises(LdmError, match=f"is a model for {task}, not for txt2img"):
            make_plan({"prompt": "x", "model": str(other)})
    odd = {"prompt": "x", "model": str(path), "prediction": "v", "width": 520}
    assert make_plan(odd).job.width == 520
    with pytest.raises(LdmError, match="multiple of 64"):
        make_plan(odd, script=True)


def test_models_are_found_by_name(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tiny", "tiny.ckpt", "sub/tiny", "models/sub/tiny.ckpt", "models/sub/tiny"):
        assert make_plan({"prompt": "x", "model": name}).header.path.name == "tiny.ckpt"
    place_tiny(home / "elsewhere" / "other.ckpt")
    monkeypatch.setenv("LDM_MODELS", os.pathsep.join(["nowhere", str(home / "elsewhere")]))
    assert make_plan({"prompt": "x", "model": "other"}).header.path.name == "other.ckpt"
    place_tiny(home / "elsewhere" / "deep" / "a" / "twice.ckpt")
    place_tiny(home / "elsewhere" / "deep" / "b" / "twice.ckpt")
    with pytest.raises(LdmError, match="fits several files"):
        make_plan({"prompt": "x", "model": "twice"})


# --- images -------------------------------------------------------------------------------------


def test_images_are_told_and_numbered_on(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    argv = ["txt2img", "--prompt", "a cat", "--model", "tiny", "--n_iter", "2", *QUICK]
    assert run([*argv, "--seed", "5"]) == 0
    captured = capfd.readouterr()
    out = "outputs/txt2img-samples"
    assert captured.out.splitlines() == [
        f"{out}/samples/00000.png",
        f"{out}/samples/00001.png",
        f"{out}/grid-0000.png",
    ]
    assert "seed 5" in captured.err
    assert run([*argv, "--json", "--skip_grid", "--seed", "6", "--quiet"]) == 0
    captured = capfd.readouterr()
    told = [json.loads(line) for line in captured.out.splitlines()]
    assert [row["path"] for row in told] == [f"{out}/samples/0000{i}.png" for i in (2, 3)]
    assert [row["seed"] for row in told] == [6, 7]
    assert told[0]["prompt"] == "a cat"
    assert told[0]["seconds"] > 0
    assert captured.err == ""
    # Image 1 of seed 5 is image 0 of seed 6.
    first, second = (Image.open(home / out / f"samples/0000{i}.png") for i in (1, 2))
    assert first.tobytes() == second.tobytes()


def test_a_drawn_seed_is_told_and_recorded(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    argv = ["txt2img", "--prompt", "x", "--model", "tiny", "--json", *QUICK]
    assert run([*argv, "-o", "a.png"]) == 0
    captured = capfd.readouterr()
    seed = json.loads(captured.out)["seed"]
    assert f"seed {seed} (drawn at random)" in captured.err
    assert run([*argv, "-o", "b.png", "--seed", "-1"]) == 0
    assert json.loads(capfd.readouterr().out)["seed"] != seed
    assert run([*argv, "-o", "c.png", "--seed", str(seed)]) == 0
    assert (home / "c.png").read_bytes() == (home / "a.png").read_bytes()
    assert run([*argv, "-o", "c.png"]) == 2
    assert "add --overwrite" in error_of(capfd)


def test_nothing_is_saved_when_nothing_is_wanted(home: Path) -> None:
    argv = ["txt2img", "--prompt", "x", "--model", "tiny", *QUICK, "--skip_save", "--skip_grid"]
    assert run(argv) == 0
    assert not (home / "outputs").exists()


def test_bytes_on_standard_output(home: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    argv = ["txt2img", "--prompt", "x", "--model", "tiny", "--seed", "3", *QUICK]
    assert run([*argv, "-o", "-"]) == 0
    content = capfdbinary.readouterr().out
    assert run([*argv, "-o", "a.png"]) == 0
    assert (home / "a.png").read_bytes() == content


def test_prompts_from_standard_input(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    argv = ["txt2img", "--from-file", "-", "--repeat", "2", "--model", "tiny", "--json", *QUICK]
    done = subprocess.run(
        [sys.executable, "-m", "ldm", *argv],
        input="a cat\n\n  \nein Hündchen 🐶\n",
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["prompt"] for row in told] == [
        "a cat",
        "a cat",
        "ein Hündchen 🐶",
        "ein Hündchen 🐶",
    ]


@pytest.mark.parametrize("flags", [[], ["--noise", "stream", "--fixed_code", "--eta", "0.5"]])
def test_info_and_rerun(home: Path, capfd: pytest.CaptureFixture[str], flags: list[str]) -> None:
    argv = ["txt2img", "--prompt", "a, b", "--negative", "dog", "--model", "tiny", *QUICK, *flags]
    assert (
        run([*argv, "--n_samples", "2", "--n_iter", "2", "--set", "model.params.scale_factor=0.2"])
        == 0
    )
    image = home / "outputs/txt2img-samples/samples/00003.png"
    capfd.readouterr()
    assert run(["info", str(image)]) == 0
    shown = capfd.readouterr().out
    assert "a, b\n" in shown
    assert "model.params.scale_factor=0.2" in shown
    assert run(["info", "--raw", str(image)]) == 0
    assert "Negative prompt: dog\nSteps: 2, Sampler: DDIM" in capfd.readouterr().out
    assert run(["info", "--json", str(image)]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["parameters"]["prompt"] == "a, b"
    assert told["ldm"]["job"]["overrides"] == ["model.params.scale_factor=0.2"]
    assert run(["rerun", str(image), "-o", "again.png"]) == 0
    assert (home / "again.png").read_bytes() == image.read_bytes()
    other = home / "other.ckpt"
    place_tiny(other)
    capfd.readouterr()
    assert run(["rerun", str(image), "--model", "other.ckpt", "--outdir", "new"]) == 0
    assert capfd.readouterr().out == "new/samples/00000.png\n"
    assert read_record(home / "new/samples/00000.png").job.model == "other.ckpt"


def test_rerun_of_another_file_of_that_name_is_refused(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["txt2img", "--prompt", "x", "--model", "tiny", *QUICK, "-o", "a.png"]) == 0
    path = home / "models/sub/tiny.ckpt"
    assert run(["convert", str(path), "models/sub/tiny.safetensors", "--precision", "fp32"]) == 0
    capfd.readouterr()
    assert run(["rerun", "a.png", "-o", "b.png"]) == 2
    assert "name that checkpoint with --model" in error_of(capfd)
    assert run(["rerun", "a.png", "-o", "b.png", "--model", "models/sub/tiny.safetensors"]) == 0
    assert "the image will differ" in capfd.readouterr().err


def test_the_bundled_model_is_named(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if not (ROOT / "models" / "emoji-128.safetensors").is_file():
        pytest.skip("no bundled model in this tree")
    assert run(["txt2img", "--prompt", "a red apple", "--steps", "2", "-o", "a.png"]) == 0
    assert "using the bundled model emoji-128" in capfd.readouterr().err
    with Image.open("a.png") as image:
        assert image.size == (128, 128)
