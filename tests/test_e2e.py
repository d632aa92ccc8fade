"""Pictures of 2022: the original scripts' runs, repeated through `scripts/txt2img.py`.

The golden runs were made on a CPU in float32, without autocast, watermark or safety checker.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from golden_data import GOLDEN, case, tensors
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from ldm.cli import main_script, run
from ldm.metadata import read_record
from ldm.results import Result
from ldm.sink import Sink

E2E = GOLDEN / "e2e"
ROOT = Path(__file__).parents[1]
CASES = sorted(path.name for path in E2E.glob("v[12]-txt2img-*"))
# Round-off of other kernels and another order of sums, grown by a few steps of random networks.
LATENT_TOLERANCE = 1e-3


def read(path: Path) -> NDArray[np.int16]:
    with Image.open(path) as image:
        return np.asarray(image).astype(np.int16)


def with_text_tower(source: Path, target: Path, name: str, tower: Path) -> Path:
    """The YAML of a case with the sizes of its tiny text encoder written in."""
    tree = yaml.safe_load(source.read_text(encoding="utf-8"))
    stage = tree["model"]["params"]["cond_stage_config"]
    stage.setdefault("params", {})[name] = json.loads(tower.read_text(encoding="utf-8"))
    target.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return target


@pytest.fixture(scope="module")
def v2_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The modules of the v2 cases as one file, the token table at its full height."""
    state = {}
    for prefix, module in (
        ("model.diffusion_model.", "unet-v2"),
        ("first_stage_model.", "vae-kl-f8"),
        ("cond_stage_model.", "text-openclip-v2"),
    ):
        weights = tensors(f"modules/{module}/weights.safetensors")
        state |= {prefix + key: value.contiguous() for key, value in weights.items()}
    rows = tensors("modules/text-openclip-v2/token_rows.safetensors")
    ids = rows.pop("__ids__").long()
    for key, values in rows.items():
        table = torch.zeros(49408, values.shape[1])
        table[ids] = values.float()
        state[f"cond_stage_model.{key}"] = table
    path = tmp_path_factory.mktemp("v2") / "v2-tiny.safetensors"
    save_file(state, path)
    return path


def model_flags(name: str, folder: Path, v2_checkpoint: Path) -> list[str]:
    if name.startswith("v1"):
        tiny = E2E / "sd-v1-tiny"
        config = with_text_tower(
            tiny / "config.yaml", folder / "v1.yaml", "text_config", tiny / "text_config.json"
        )
        return ["--config", str(config), "--ckpt", str(tiny / "model.ckpt")]
    tower = GOLDEN / "modules/text-openclip-v2/open_clip_config.json"
    config = with_text_tower(E2E / name / "config.yaml", folder / "v2.yaml", "model_config", tower)
    return ["--config", str(config), "--ckpt", str(v2_checkpoint)]


def command_line(name: str, folder: Path, v2_checkpoint: Path) -> list[str]:
    recorded: list[str] = case(f"e2e/{name}/case.json")["cli"]
    words = [str(E2E / name / word) if word == "prompts.txt" else word for word in recorded]
    flags = model_flags(name, folder, v2_checkpoint)
    return [*words, *flags, "--outdir", str(folder / "out"), "--device", "cpu"]


def assert_same_pictures(name: str, out: Path) -> None:
    expected: list[str] = case(f"e2e/{name}/case.json")["images"]
    for image in expected:
        made = out / (image if image.startswith("grid") else f"samples/{image[7:]}")
        golden, ours = read(E2E / name / image), read(made)
        assert ours.shape == golden.shape, image
        assert np.abs(ours - golden).max() <= 1, image
    written = [*out.glob("*.png"), *out.glob("samples/*.png")]
    assert len(written) == len(expected)


def exit_code(argv: Sequence[str]) -> int:
    with pytest.raises(SystemExit) as caught:
        main_script("txt2img", argv)
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.mark.parametrize("name", CASES)
def test_the_originals_pictures(
    name: str, tmp_path: Path, v2_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: list[Result] = []
    write = Sink.write

    def collect(sink: Sink, result: Result) -> None:
        results.append(result)
        write(sink, result)

    monkeypatch.setattr(Sink, "write", collect)
    assert exit_code(command_line(name, tmp_path, v2_checkpoint)) == 0
    golden = tensors(f"e2e/{name}/outputs.safetensors")
    latents = [golden[key] for key in sorted(golden) if key.startswith("latents_")]
    expected = torch.cat(latents)
    ours = torch.stack([result.latent for result in results])
    assert ours.shape == expected.shape
    scale = max(1.0, float(expected.std()))
    assert float((ours - expected).abs().max()) <= LATENT_TOLERANCE * scale
    assert_same_pictures(name, tmp_path / "out")


def test_the_script_itself_from_another_folder(tmp_path: Path, v2_checkpoint: Path) -> None:
    name = "v1-txt2img-ddim"
    argv = command_line(name, tmp_path, v2_checkpoint)
    command = [sys.executable, str(ROOT / "scripts" / "txt2img.py"), *argv]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert_same_pictures(name, tmp_path / "out")
    assert len(done.stdout.splitlines()) == 5


@pytest.mark.parametrize("name", ["v1-txt2img-ddim-fixed-code", "v1-txt2img-plms"])
def test_the_cpu_generator_by_name(name: str, tmp_path: Path, v2_checkpoint: Path) -> None:
    """On a CPU, the generator of the device is the CPU's."""
    assert exit_code([*command_line(name, tmp_path, v2_checkpoint), "--rng", "cpu"]) == 0
    assert_same_pictures(name, tmp_path / "out")


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
        assert np.abs(read(path) - read(E2E / name / f"sample-{path.name}")).max() <= 1
