"""Images of 2022: the original scripts' runs, repeated through `scripts/txt2img.py`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors.torch import save_file

from ldm.cli.app import main_script, run
from ldm.engine.results import Result
from ldm.images.texts import read_record
from tests.golden_data import case
from tests.golden_runs import (
    E2E,
    OPEN_CLIP_TOWER,
    assert_image,
    assert_results,
    images_of,
    v1_flags,
    v2_state,
    with_text_tower,
)
from tests.tiny_images import read

ROOT = Path(__file__).parents[2]
CASES = sorted(path.name for path in E2E.glob("v[12]-txt2img-*"))


@pytest.fixture(scope="module")
def v2_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The modules of the v2 cases as one file, the token table at its full height."""
    path = tmp_path_factory.mktemp("v2") / "v2-tiny.safetensors"
    save_file(v2_state("unet-v2", "vae-kl-f8"), path)
    return path


def model_flags(name: str, folder: Path, v2_checkpoint: Path) -> list[str]:
    if name.startswith("v1"):
        return v1_flags(folder)
    yaml = E2E / name / "config.yaml"
    config = with_text_tower(yaml, folder / "v2.yaml", "model_config", OPEN_CLIP_TOWER)
    return ["--config", str(config), "--ckpt", str(v2_checkpoint)]


def command_line(name: str, folder: Path, v2_checkpoint: Path) -> list[str]:
    recorded: list[str] = case(f"e2e/{name}/case.json")["cli"]
    words = [str(E2E / name / word) if word == "prompts.txt" else word for word in recorded]
    flags = model_flags(name, folder, v2_checkpoint)
    return [*words, *flags, "--outdir", str(folder / "out"), "--device", "cpu"]


def assert_same_images(name: str, out: Path) -> None:
    expected = images_of(name)
    for image in expected:
        made = out / (image if image.startswith("grid") else f"samples/{image[7:]}")
        assert_image(read(made), E2E / name / image)
    written = [*out.glob("*.png"), *out.glob("samples/*.png")]
    assert len(written) == len(expected)


def exit_code(argv: Sequence[str]) -> int:
    with pytest.raises(SystemExit) as caught:
        main_script("txt2img", argv)
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize("name", CASES)
def test_the_originals_images(
    name: str, tmp_path: Path, v2_checkpoint: Path, results: list[Result]
) -> None:
    assert exit_code(command_line(name, tmp_path, v2_checkpoint)) == 0
    assert_results(name, results)
    assert_same_images(name, tmp_path / "out")


def test_the_script_itself_from_another_folder(tmp_path: Path, v2_checkpoint: Path) -> None:
    name = "v1-txt2img-ddim"
    argv = command_line(name, tmp_path, v2_checkpoint)
    command = [sys.executable, str(ROOT / "scripts" / "txt2img.py"), *argv]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert_same_images(name, tmp_path / "out")
    assert len(done.stdout.splitlines()) == 5


@pytest.mark.parametrize("name", ["v1-txt2img-ddim-fixed-code", "v1-txt2img-plms"])
def test_the_cpu_generator_by_name(name: str, tmp_path: Path, v2_checkpoint: Path) -> None:
    """On a CPU, the generator of the device is the CPU's."""
    assert exit_code([*command_line(name, tmp_path, v2_checkpoint), "--rng", "cpu"]) == 0
    assert_same_images(name, tmp_path / "out")


@pytest.mark.parametrize("name", ["v1-txt2img-ddim-fixed-code", "v1-txt2img-from-file"])
def test_rerun_makes_the_same_bytes(name: str, tmp_path: Path, v2_checkpoint: Path) -> None:
    """The last image of a stream: everything that was drawn before it must be passed over."""
    assert exit_code(command_line(name, tmp_path, v2_checkpoint)) == 0
    image = tmp_path / "out" / "samples" / "00003.png"
    assert read_record(image).job.skip_draws > 0
    again = tmp_path / "again.png"
    assert run(["rerun", str(image), "-o", str(again)]) == 0
    assert again.read_bytes() == image.read_bytes()


def test_a_short_last_batch_is_drawn_too(tmp_path: Path, v2_checkpoint: Path) -> None:
    """The originals stopped with an error; its images are those of a full batch."""
    name = "v1-txt2img-from-file"
    argv = command_line(name, tmp_path, v2_checkpoint)
    lines = (E2E / name / "prompts.txt").read_text(encoding="utf-8").splitlines()
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\ufeff" + "\n\n".join(lines[:3]) + "\n", encoding="utf-8")
    argv[argv.index(str(E2E / name / "prompts.txt"))] = str(prompts)
    assert exit_code(argv) == 0
    made = sorted((tmp_path / "out" / "samples").iterdir())
    assert [path.name for path in made] == ["00000.png", "00001.png", "00002.png"]
    for path in made:
        assert_image(read(path), E2E / name / f"sample-{path.name}")
