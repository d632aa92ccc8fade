"""depth2img as a user meets it: words in; files and lines out."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ldm.cli.app import run
from ldm.engine.results import Result
from ldm.images.texts import read_record
from ldm.models.depth import load_depth_model
from ldm.models.model import Model
from ldm.models.targets import DEPTH_MODELS
from ldm.nn.dpt import MiDaSInference
from tests.image_task_runs import PROMPT, Models, away, draw
from tests.tiny_dpt import TINY_DPT, tiny_dpt
from tests.tiny_images import QUICK, depth_tree, save, scene
from tests.tiny_models import write

NEAR = ["-i", "in.png", "--depth", "depth.png"]


def test_depth_may_have_8_or_16_bits_and_be_inverted(models: Models, results: list[Result]) -> None:
    argv = ["-i", "in.png", *PROMPT, *models("depth")]
    depth = scene(75, 50)[..., 0]
    save(Path("deep.png"), depth.astype(np.uint16) * 257)
    save(Path("dark.png"), 255 - depth)
    draw("depth2img", *argv, "--depth", "depth.png")
    draw("depth2img", *argv, "--depth", "deep.png")
    draw("depth2img", *argv, "--depth", "dark.png", "--depth-invert")
    draw("depth2img", *argv, "--depth", "dark.png")
    eight, sixteen, inverted, other = (result.latent for result in results)
    assert torch.equal(sixteen, eight)
    assert away(inverted, eight) < 1e-4
    assert away(other, eight) > 1e-3


def test_from_noise_alone_the_demo_left_a_step_out(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It encoded the image all the same, so the first noise is the second draw."""
    seen: list[tuple[torch.Tensor, float]] = []
    predict = Model.predict

    def look(self: Model, x: torch.Tensor, t: torch.Tensor, *more: Any) -> torch.Tensor:
        seen.append((x, float(t[0])))
        return predict(self, x, t, *more)

    monkeypatch.setattr(Model, "predict", look)
    argv = [*NEAR, *PROMPT, *models("depth"), "--strength", "1", "--scale", "1"]
    draw("depth2img", *argv, "--rng", "cpu", "--noise", "stream", "--schedule-compat", "ldm")
    assert [t for _, t in seen] == [501, 251, 1]
    torch.manual_seed(7)
    _, second = torch.randn(1, 4, 16, 16), torch.randn(1, 4, 16, 16)
    assert torch.allclose(seen[0][0], second, atol=1e-5)
    seen.clear()
    draw("depth2img", *argv)
    assert [t for _, t in seen] == [751, 501, 251, 1]


@pytest.fixture
def seeing(models: Models, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The flags of a depth model that has a small depth network of its own."""
    target = "ldm.modules.midas.api.MiDaSInference"
    spec = replace(DEPTH_MODELS[target], build=lambda *_: MiDaSInference(TINY_DPT))
    monkeypatch.setitem(DEPTH_MODELS, target, spec)
    argv = models("depth")
    tree = depth_tree()
    tree["model"]["params"]["depth_stage_config"] = {"target": target}
    write(tree, folder / "seeing.yaml")
    network = {f"depth_model.{key}": value for key, value in tiny_dpt().state_dict().items()}
    save_file({**load_file(argv[1]), **network}, folder / "seeing.safetensors")
    return ["--model", "seeing.safetensors", *QUICK]


def test_depth_is_estimated_saved_and_taken_again(seeing: list[str], results: list[Result]) -> None:
    save(Path("in.png"), scene(96, 64))
    argv = ["-i", "in.png", *PROMPT, *seeing]
    draw("depth2img", *argv, "--save-depth", "seen.png")
    with Image.open("seen.png") as image:
        assert image.mode.startswith("I;16")
        seen = np.asarray(image)
    assert seen.shape == (64, 96)  # the image's own, so that it can be given with it
    assert (seen.min(), seen.max()) == (0, 65535)
    draw("depth2img", *argv, "--depth", "seen.png", "--save-depth", "again.png")
    draw("depth2img", *argv, "--depth", "seen.png", "--depth-invert")
    assert np.array_equal(np.asarray(Image.open("again.png")), seen)
    estimated, given, inverted = (result.latent for result in results)
    assert away(given, estimated) < 0.5 * away(inverted, estimated)


def test_another_depth_network_may_be_given(
    models: Models, seeing: list[str], results: list[Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "ldm.models.load.load_depth_model", partial(load_depth_model, sizes=TINY_DPT)
    )
    save_file(dict(tiny_dpt(1).model.state_dict()), "dpt.safetensors")
    argv = ["-i", "in.png", *PROMPT]
    draw("depth2img", *argv, *seeing)
    draw("depth2img", *argv, *seeing, "--depth-model", "dpt.safetensors")
    draw("depth2img", *argv, *models("depth"), "--depth-model", "dpt.safetensors")
    own, other, alone = (result.latent for result in results)
    assert away(other, own) > 1e-3
    assert torch.equal(alone, other)
    assert read_record(Path("out.png")).inputs.keys() == {"in.png", "dpt.safetensors"}


def test_a_checkpoint_that_lost_its_depth_network_takes_a_map(
    models: Models, seeing: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    Path("lost.yaml").write_bytes(Path("seeing.yaml").read_bytes())
    Path("lost.safetensors").write_bytes(Path(models("depth")[1]).read_bytes())
    lost = ["--model", "lost.safetensors", *QUICK]
    expected = draw("depth2img", *NEAR, *PROMPT, *models("depth"))
    assert (draw("depth2img", *NEAR, *PROMPT, *lost) == expected).all()
    capfd.readouterr()
    assert run(["depth2img", "-i", "in.png", *PROMPT, *lost]) == 2
    assert "--depth" in capfd.readouterr().err
