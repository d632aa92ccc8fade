"""Every command line of the README, the docs and the help runs, on tiny models of its names."""

from __future__ import annotations

import io
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from ldm.cli.app import main_script, run
from ldm.jobs.fields import SIZED, TASK_NAMES
from ldm.models.targets import DEPTH_MODELS
from ldm.nn.dpt import MiDaSInference
from tests.sd3_runs import write_sd3, write_sd35
from tests.test_readme import examples
from tests.textless_models import class_tree, free_tree
from tests.tiny_dpt import TINY_DPT
from tests.tiny_images import depth_tree, save, scene, square_mask, upscale_tree
from tests.tiny_models import make, state, v1_tree, write
from tests.tiny_unclip import place_unclip

IMAGES = ("sketch.png", "room.png", "statue.jpg", "small.png", "cat.png", "fox.png", "apple.png")
MASKS = ("sofa.png", "mask.png")
MIDAS = "ldm.modules.midas.api.MiDaSInference"
# Not run: a placeholder, hours of training, a cluster of other machines.
LEFT_OUT = ("...", "train", "--address")


def of_imagenet() -> dict[str, Any]:
    tree = class_tree()
    tree["model"]["params"]["cond_stage_config"]["params"]["n_classes"] = 1001
    return tree


def seeing_depth() -> dict[str, Any]:
    tree = depth_tree()
    tree["model"]["params"]["depth_stage_config"] = {"target": MIDAS}
    return tree


CHECKPOINTS = {
    "sd-v1-4.ckpt": v1_tree,
    "512-depth-ema.safetensors": seeing_depth,
    "x4-upscaler-ema.safetensors": upscale_tree,
    "ldm/celeba256/model.ckpt": free_tree,
    "ldm/cin256-v2/model.ckpt": of_imagenet,
}


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with everything that the documented lines name."""
    folder = tmp_path_factory.mktemp("documented")
    models = folder / "models"
    with pytest.MonkeyPatch.context() as patch:
        tiny = replace(DEPTH_MODELS[MIDAS], build=lambda *_: MiDaSInference(TINY_DPT))
        patch.setitem(DEPTH_MODELS, MIDAS, tiny)
        for name, tree_of in CHECKPOINTS.items():
            (models / name).parent.mkdir(parents=True, exist_ok=True)
            write(tree_of(), (models / name).with_suffix(".yaml"))
            save_file(state(make(tree_of())), models / name)
    place_unclip(models / "sd21-unclip-h.safetensors")
    place_sd3(folder)
    for name in IMAGES:
        save(folder / name, scene(64, 48))
    for name in MASKS:
        save(folder / name, square_mask(64, 48))
    save(folder / "depth.png", scene(64, 48)[..., 0])
    (folder / "jobs.csv").write_text("prompt,seed\na cat,1\na dog,2\n", encoding="utf-8")
    return folder


def place_sd3(folder: Path) -> None:
    """A network of version 3.5, and the files of its other components, each a whole model."""
    for ending in ("safetensors", "yaml"):
        path = write_sd35(folder).with_suffix(f".{ending}")
        path.replace(folder / "models" / f"sd3.5_medium.{ending}")
    whole = write_sd3(folder)
    for name in ("sd3_vae", "clip_l", "clip_g", "t5xxl_fp8_e4m3fn"):
        shutil.copy(whole, folder / f"{name}.safetensors")


@pytest.fixture
def home(stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it for one line, with an image that was made before."""
    folder = tmp_path / "home"
    shutil.copytree(stock, folder, copy_function=os.link)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("LDM_MODELS", raising=False)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    tiny = replace(DEPTH_MODELS[MIDAS], build=lambda *_: MiDaSInference(TINY_DPT))
    monkeypatch.setitem(DEPTH_MODELS, MIDAS, tiny)
    return folder


def quick(command: str, words: list[str]) -> list[str]:
    """The words with few steps and small sizes at the end, where the last one counts."""
    if command == "sample_diffusion":
        return [*words, "-n", "1", "-c", "1"]
    if command not in TASK_NAMES:
        return words
    sizes = ["--W", "64", "--H", "64"] if command in SIZED else []
    matrix = any(word.startswith("steps=") for word in words)
    return [*words, *sizes, *([] if matrix else ["--steps", "1"]), "--device", "cpu"]


def lines() -> list[Any]:
    """The lines to run, each once."""
    found = {
        " ".join([front, name, *words]): (front, name, words) for front, name, words in examples()
    }
    return [
        pytest.param(*line, id=name)
        for name, line in found.items()
        if not set(LEFT_OUT) & set(name.split())
    ]


@pytest.mark.parametrize(("front", "command", "words"), lines())
def test_the_line_runs(home: Path, front: str, command: str, words: list[str]) -> None:
    if "--engine" in words:
        pytest.importorskip("ray")
    if "outputs/txt2img-samples/samples/00000.png" in words:
        assert run(["txt2img", "--prompt", "a cat", *quick("txt2img", []), "-q"]) == 0
    if "-o" in words:
        (home / words[words.index("-o") + 1]).unlink(missing_ok=True)
    before = set(home.rglob("*"))
    if front == "script":
        with pytest.raises(SystemExit) as end:
            main_script(command, quick(command, words))
        assert not end.value.code
    else:
        assert run([command, *quick(command, words)]) == 0
    if (
        command not in ("tokens", "info", "models", "samplers", "schema", "shell")
        and "--dry-run" not in words
    ):
        assert set(home.rglob("*")) - before, "nothing was written"


def test_most_lines_are_run() -> None:
    assert len(lines()) > 30
