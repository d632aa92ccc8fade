"""Images of image embeddings: Stable unCLIP, put together from the golden modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm.checkpoints.config import read_config, resource
from ldm.cli.app import run
from ldm.engine.batch_noise import Draws
from ldm.engine.plan import make_plan
from ldm.engine.results import Result
from ldm.images.texts import read_record
from ldm.models.conditioning import Conditioning
from ldm.models.model import Model
from ldm.models.registry import build
from tests.golden_data import tensors
from tests.tiny_commands import error_of
from tests.tiny_unclip import IMAGES, place_unclip

BIG, SMALL = str(IMAGES / "image_big.png"), str(IMAGES / "image_small.png")
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return place_unclip(tmp_path_factory.mktemp("unclip") / "unclip.safetensors")


@pytest.fixture
def vary(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the command on the tiny model with quick settings; gives its exit code."""
    monkeypatch.chdir(tmp_path)
    quick = ["-m", str(model), "--steps", "2", "--W", "32", "--H", "16", "--device", "cpu"]
    return lambda *words: run(["variations", *words, *quick])


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The vectors [B,V] that the network is told in the runs of a test, unconditional first."""
    found: list[Tensor] = []
    predict = Model.predict

    def look(self: Model, x: Tensor, t: Tensor, cond: Conditioning, *more: Any) -> Tensor:
        assert cond.vector is not None
        found.append(cond.vector)
        return predict(self, x, t, cond, *more)

    monkeypatch.setattr(Model, "predict", look)
    return found


# --- what the network is told ---------------------------------------------------------------------


@pytest.mark.parametrize(("row", "image"), [(0, BIG), (1, SMALL), (2, BIG)])
def test_the_embedding_is_the_originals(
    vary: Any, told: list[Tensor], monkeypatch: pytest.MonkeyPatch, row: int, image: str
) -> None:
    golden = tensors("modules/clip-image-unclip/inputs.safetensors")
    expected = tensors("modules/clip-image-unclip/outputs.safetensors")["c_adm"][row]
    start = Draws.__init__

    def recorded(self: Draws, *words: Any, **named: Any) -> None:
        start(self, *words, **named)
        self.first = golden["noise"][row : row + 1]

    monkeypatch.setattr(Draws, "__init__", recorded)
    level = str(int(golden["noise_level"][row]))
    assert vary("--image", image, "--noise-level", level, "--seed", "1", "-o", "a.png") == 0
    uncond, cond = told[0]
    assert (cond - expected).abs().max() < TOLERANCE
    assert not uncond.any()


def test_several_are_mixed_by_weight(vary: Any, told: list[Tensor]) -> None:
    golden = tensors("modules/clip-image-unclip/outputs.safetensors")
    big, small = golden["embed_big"][0], golden["embed_small"][0]
    both = ["--image", BIG, "--image", SMALL, "--noise-level", "0", "--seed", "1"]
    for weights, mean in (
        ([], (big + small) / 2),
        (["--weight", "3", "--weight", "1"], (3 * big + small) / 4),
        (["--weight=2", "--weight=-1"], 2 * big - small),
    ):
        told.clear()
        assert vary(*both, *weights, "-o", "a.png", "--overwrite") == 0
        # Level 0 adds some noise already: a two-hundredth part.
        assert (told[0][1, :16] - mean).abs().max() < 0.03
        assert (told[0][1, :16] - mean).abs().max() > 1e-4


def test_a_mixture_gets_noise_unless_told_otherwise(model: Path) -> None:
    given = {"task": "variations", "model": str(model), "seed": 1}
    assert make_plan({**given, "images": (BIG,)}).job.noise_level == 0
    assert make_plan({**given, "images": (BIG, SMALL)}).job.noise_level == 50
    assert make_plan({**given, "images": (BIG, SMALL), "noise_level": 7}).job.noise_level == 7


def test_in_a_stream_the_embeddings_noise_comes_first(
    vary: Any, told: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[Tensor] = []
    begin = Draws.start

    def look(self: Draws, rows: int) -> Tensor:
        starts.append(begin(self, rows))
        return starts[-1]

    monkeypatch.setattr(Draws, "start", look)
    stream = ["--noise", "stream", "--rng", "cpu", "--seed", "5", "--n_samples", "2"]
    assert vary("--image", BIG, "--noise-level", "999", *stream, "--skip_save") == 0
    torch.manual_seed(5)
    noise, first = torch.randn(2, 16), torch.randn(2, 4, 2, 4)
    assert torch.equal(starts[0], first)
    assert (told[0][2:, :16] - noise).abs().max() < 0.05  # of the image next to nothing is left


# --- images -------------------------------------------------------------------------------------


def test_rerun_gives_the_same_bytes(vary: Any) -> None:
    flags = ["--prompt", "a dog", "--negative", "a cat", "--scale", "3", "--noise-level", "100"]
    both = ["--image", BIG, "--image", SMALL, "--weight", "0.3", "--weight", "0.7"]
    assert vary(*both, *flags, "--n_samples", "2", "--seed", "4", "--outdir", "out") == 0
    path = Path("out/samples/00001.png")
    job = read_record(path).job
    assert (job.task, job.images, job.weights) == ("variations", (BIG, SMALL), ("0.3", "0.7"))
    assert run(["rerun", str(path), "-o", "again.png"]) == 0
    assert Path("again.png").read_bytes() == path.read_bytes()
    with Image.open(path) as image:
        assert image.size == (32, 16)


def test_a_changed_image_is_not_rerun(vary: Any, capfd: pytest.CaptureFixture[str]) -> None:
    Path("mine.png").write_bytes(Path(SMALL).read_bytes())
    assert vary("--image", "mine.png", "--seed", "4", "-o", "a.png") == 0
    Path("mine.png").write_bytes(Path(BIG).read_bytes())
    assert run(["rerun", "a.png", "-o", "b.png"]) == 2
    assert "mine.png: has changed since" in error_of(capfd)


def test_an_image_does_not_depend_on_its_batch(vary: Any, results: list[Result]) -> None:
    same = ["--image", BIG, "--noise-level", "500", "--outdir", "out"]
    assert vary(*same, "--n_samples", "3", "--seed", "10") == 0
    assert vary(*same, "--seed", "12") == 0
    # Kernels differ by batch, and a few steps let that grow.
    assert (results[3].latent - results[2].latent).abs().max() < 1e-3
    assert (results[1].latent - results[2].latent).abs().max() > 0.1


def test_image_prompt_and_level_matter(vary: Any) -> None:
    base = ["--seed", "3", "--image"]
    for name, words in {
        "a": [BIG],
        "b": [SMALL],
        "c": [BIG, "--prompt", "a dog"],
        "d": [BIG, "--negative", "a dog"],
        "e": [BIG, "--noise-level", "900"],
    }.items():
        assert vary(*base, *words, "-o", f"{name}.png") == 0
    made = [np.asarray(Image.open(f"{name}.png")).tobytes() for name in "abcde"]
    assert len(set(made)) == 5


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--image is missing: give an image to vary"),
        (["--image", "none.png"], "none.png: "),
        (["--image", "text.png"], "text.png: "),
        (["--image", BIG, "--weight", "1", "--weight", "2"], "given 2 times for 1 images"),
        (["--image", BIG, "--weight", "much"], "--weight must be a number, not 'much'"),
        (["--image", BIG, "--image", BIG, "--weight=1", "--weight=-1"], "add up to 0"),
        (["--image", BIG, "--noise-level", "1000"], "--noise-level must be 0 to 999, not 1000"),
        (["--image", BIG, "--mask", "x.png"], "--mask is no option of this command"),
    ],
)
def test_what_is_wrong_is_said_before_weights_are_read(
    vary: Any,
    capfd: pytest.CaptureFixture[str],
    unread: None,
    words: list[str],
    message: str,
) -> None:
    Path("text.png").write_text("no image")
    assert vary(*words) == 2
    assert message in error_of(capfd)
    assert not list(Path().glob("outputs/**/*.png"))


def test_the_model_is_for_nothing_else(model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["txt2img", "--prompt", "x", "-m", str(model)]) == 2
    assert "is a model for variations, not for txt2img" in error_of(capfd)


@pytest.mark.parametrize(("variant", "width"), [("l", 768), ("h", 1024)])
def test_both_published_variants(variant: str, width: int) -> None:
    yaml_path = f"configs/stable-diffusion/v2-1-stable-unclip-{variant}-inference.yaml"
    with torch.device("meta"):
        built = build(read_config(resource("configs").parent / yaml_path))
    assert built.embedder.model.visual.proj.shape[1] == width
    assert built.noise_augmentor.timestep_dim == width
    assert built.network.label_emb[0][0].weight.shape[1] == 2 * width
