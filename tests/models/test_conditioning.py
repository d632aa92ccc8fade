"""Embedders: the recorded originals, published keys, cut vocabularies and odd sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ldm.errors import ConfigError
from ldm.models.conditioning import (
    Conditioning,
    FrozenCLIPEmbedder,
    FrozenOpenCLIPEmbedder,
    kept_token_ids,
)
from ldm.models.image_embedders import (
    CLIPEmbeddingNoiseAugmentation,
    FrozenOpenCLIPImageEmbedder,
    resized,
)
from ldm.sampling.schedule import NoiseSchedule
from ldm.text.tokenizer import END, START, clip_tokenizer
from tests.golden_data import GOLDEN, case, tensors, text_tower, without
from tests.golden_keys import golden_shapes

TOLERANCE = 1e-5
UNCLIP = "modules/clip-image-unclip"
TINY = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
CAPTIONS = ["a red apple on a blue background", "cat and pizza, yellow background"]


# --- the value ---------------------------------------------------------------------------------


def test_stacking_puts_this_one_first() -> None:
    zero, one = torch.zeros(1, 3), torch.ones(2, 3)
    left = Conditioning(crossattn=zero, vector=zero, concat=zero, controls=(zero, one[:1]))
    right = Conditioning(crossattn=one, vector=one, concat=one, controls=(one, one))
    both = left.stack(right)
    for part in (both.crossattn, both.vector, both.concat, both.controls[0]):
        assert part is not None
        assert part[:, 0].tolist() == [0, 1, 1]
    assert both.controls[1].shape == (3, 3)
    assert Conditioning().stack(Conditioning()).crossattn is None


def test_stacking_needs_the_same_parts() -> None:
    x = torch.zeros(1, 3)
    with pytest.raises(ValueError, match="same kinds"):
        Conditioning(crossattn=x).stack(Conditioning(vector=x))
    with pytest.raises(ValueError, match="same number of controls"):
        Conditioning(controls=(x,)).stack(Conditioning())


def test_moving_keeps_whole_numbers_whole() -> None:
    whole, real = torch.tensor([3]), torch.zeros(1, 3)
    moved = Conditioning(crossattn=real, vector=whole, controls=(real,)).to(dtype=torch.float16)
    assert moved.crossattn is not None
    assert moved.vector is not None
    assert moved.crossattn.dtype == moved.controls[0].dtype == torch.float16
    assert moved.vector.dtype == torch.int64
    assert moved.to("meta").controls[0].is_meta
    assert moved.concat is None


# --- texts against the originals ---------------------------------------------------------------


def v1_embedder() -> FrozenCLIPEmbedder:
    embedder = FrozenCLIPEmbedder(text_config=case("modules/text-clip-v1/text_config.json"))
    embedder.load_state_dict(text_tower("text-clip-v1"))
    return embedder.requires_grad_(False)


def v2_embedder(layer: str = "last") -> FrozenOpenCLIPEmbedder:
    config = case("modules/text-openclip-v2/open_clip_config.json")
    embedder = FrozenOpenCLIPEmbedder(layer=layer, model_config=config)
    embedder.load_state_dict(text_tower("text-openclip-v2"))
    return embedder.requires_grad_(False)


@pytest.mark.parametrize(
    ("embedder", "name", "output"),
    [
        (v1_embedder, "text-clip-v1", "last_hidden_state"),
        (v2_embedder, "text-openclip-v2", "last"),
        (lambda: v2_embedder("penultimate"), "text-openclip-v2", "penultimate"),
    ],
)
def test_prompts_become_the_original_s_states(
    embedder: Callable[[], FrozenCLIPEmbedder | FrozenOpenCLIPEmbedder], name: str, output: str
) -> None:
    prompts = case(f"modules/{name}/case.json")["prompts"]
    hidden, cut = embedder().encode(prompts)
    assert (hidden - tensors(f"modules/{name}/outputs.safetensors")[output]).abs().max() < TOLERANCE
    assert cut[:-1] == [""] * (len(prompts) - 1)
    assert cut[-1]
    assert prompts[-1].strip().endswith(cut[-1])


@pytest.mark.parametrize("make", [v1_embedder, v2_embedder])
def test_half_precision_stays_half(make: Callable[[], nn.Module]) -> None:
    embedder: Any = make().to(torch.bfloat16)
    hidden, _ = embedder.encode(["a cat", ""])
    assert hidden.dtype == torch.bfloat16
    assert hidden.isfinite().all()


# --- keys and shapes of published checkpoints --------------------------------------------------


def _augmentation() -> CLIPEmbeddingNoiseAugmentation:
    return CLIPEmbeddingNoiseAugmentation(NoiseSchedule.from_betas("squaredcos_cap_v2"))


@pytest.mark.parametrize(
    ("model", "part", "build"),
    [
        ("sd-v1", "cond_stage_model", FrozenCLIPEmbedder),
        ("sd-v2", "cond_stage_model", FrozenOpenCLIPEmbedder),
        ("sd-v2-1-unclip-h", "cond_stage_model", FrozenOpenCLIPEmbedder),
        ("sd-v2-1-unclip-h", "embedder", FrozenOpenCLIPImageEmbedder),
        (
            "sd-v2-1-unclip-l",
            "embedder",
            lambda: FrozenOpenCLIPImageEmbedder("ViT-L-14-quickgelu", text_layers=True),
        ),
        ("sd-v2-1-unclip-h", "noise_augmentor", _augmentation),
    ],
)
def test_keys_and_shapes(model: str, part: str, build: Callable[[], nn.Module]) -> None:
    prefix = f"{part}."
    found = golden_shapes(model).items()
    expected = {key.removeprefix(prefix): shape for key, shape in found if key.startswith(prefix)}
    with torch.device("meta"):
        built = build()
    assert {key: tuple(x.shape) for key, x in built.state_dict().items()} == expected


def test_position_ids_are_whole_numbers() -> None:
    with torch.device("meta"):
        embedder = FrozenCLIPEmbedder()
    ids = embedder.get_buffer("transformer.text_model.embeddings.position_ids")
    assert (ids.dtype, tuple(ids.shape)) == (torch.int64, (1, 77))


# --- a cut vocabulary --------------------------------------------------------------------------


def cut_embedder() -> FrozenCLIPEmbedder:
    ids = kept_token_ids(CAPTIONS)
    config = {**TINY, "vocab_size": len(ids), "max_position_embeddings": 16}
    torch.manual_seed(3)
    embedder = FrozenCLIPEmbedder(text_config=config, max_length=16, kept_tokens=True)
    assert embedder.kept_tokens is not None
    embedder.kept_tokens.copy_(torch.tensor(ids))
    return embedder.requires_grad_(False)


def test_kept_token_ids() -> None:
    ids = kept_token_ids(CAPTIONS)
    assert ids == sorted(set(ids))
    assert ids[-2:] == [START, END]
    used = {token for caption in CAPTIONS for token in clip_tokenizer().encode(caption)}
    assert set(ids) == used | {START, END}
    assert kept_token_ids([]) == [START, END]


def test_a_cut_table_gives_what_the_whole_one_gives() -> None:
    cut = cut_embedder()
    assert cut.kept_tokens is not None
    whole = FrozenCLIPEmbedder(
        text_config={**TINY, "max_position_embeddings": 16}, max_length=16
    ).requires_grad_(False)
    state = cut.state_dict()
    key = "transformer.text_model.embeddings.token_embedding.weight"
    table = state[key][-1].repeat(49408, 1)  # unknown tokens read the end token's row
    table[state.pop("kept_tokens")] = state[key]
    whole.load_state_dict({**state, key: table})
    for texts in (CAPTIONS, ["a zeppelin on a red background", "🐱"]):
        assert torch.equal(cut.encode(texts)[0], whole.encode(texts)[0])


def test_unknown_words_are_told() -> None:
    embedder = cut_embedder()
    assert embedder.unknown_words("A RED cat, and pizza") == []
    assert embedder.unknown_words("a Zeppelin on red") == ["Zeppelin"]
    assert FrozenCLIPEmbedder(text_config=TINY).unknown_words("a Zeppelin") == []
    assert v2_embedder().unknown_words("a Zeppelin") == []


def test_the_list_of_tokens_is_part_of_the_state() -> None:
    embedder = cut_embedder()
    assert embedder.state_dict()["kept_tokens"].tolist() == kept_token_ids(CAPTIONS)
    assert "kept_tokens" not in FrozenCLIPEmbedder(text_config=TINY).state_dict()
    halved = embedder.half()
    assert halved.kept_tokens is not None
    assert halved.kept_tokens.dtype == torch.int64


# --- sizes that cannot be ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FrozenCLIPEmbedder("laion/other"), "'laion/other'.*text_config"),
        (lambda: FrozenCLIPEmbedder(max_length=78), "max_length 78"),
        (lambda: FrozenCLIPEmbedder(text_config={"vocab_size": 99}), "kept_tokens"),
        (lambda: FrozenOpenCLIPEmbedder(layer="first"), "last or penultimate"),
        (lambda: FrozenOpenCLIPEmbedder(arch="ViT-Z"), "model_config"),
        (lambda: FrozenOpenCLIPEmbedder(max_length=78), "max_length 78"),
        (
            lambda: FrozenOpenCLIPEmbedder(
                model_config={"embed_dim": 8, "text_cfg": {"vocab_size": 99}}
            ),
            "vocab_size 99",
        ),
    ],
)
def test_sizes_that_cannot_be(build: Callable[[], nn.Module], message: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=message):
        build()


# --- images ------------------------------------------------------------------------------------


def image_file(name: str) -> Tensor:
    pixels = np.asarray(Image.open(GOLDEN / UNCLIP / name), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1


@pytest.fixture(scope="module")
def image_embedder() -> FrozenOpenCLIPImageEmbedder:
    embedder = FrozenOpenCLIPImageEmbedder(model_config=case(f"{UNCLIP}/open_clip_config.json"))
    state = without("embedder.", tensors(f"{UNCLIP}/weights.safetensors"))
    # The recorded weights leave out the one table that images never read.
    state["model.token_embedding.weight"] = torch.zeros(49408, 16)
    embedder.load_state_dict(state)
    return embedder.requires_grad_(False)


@pytest.mark.parametrize("size", ["big", "small"])
def test_images_become_the_original_s_embeddings(
    image_embedder: FrozenOpenCLIPImageEmbedder, size: str
) -> None:
    expected = tensors(f"{UNCLIP}/outputs.safetensors")
    image = image_file(f"image_{size}.png")
    pixels = image_embedder.preprocess(image)[:, :, ::8, ::8]
    assert (pixels - expected[f"preprocessed_strided_{size}"]).abs().max() < TOLERANCE
    assert (image_embedder(image) - expected[f"embed_{size}"]).abs().max() < TOLERANCE


def test_embeddings_are_noised_as_in_the_original() -> None:
    config = case_yaml()["noise_aug_config"]["params"]
    schedule = config["noise_schedule_config"]
    augmentation = CLIPEmbeddingNoiseAugmentation(
        NoiseSchedule.from_betas(schedule["beta_schedule"], schedule["timesteps"]),
        config["timestep_dim"],
    )
    buffers = tensors(f"{UNCLIP}/noise_augmentor_buffers.safetensors")
    ours = augmentation.state_dict()
    assert ours.keys() == buffers.keys()
    for key, values in buffers.items():
        torch.testing.assert_close(ours[key], values, rtol=1e-6, atol=1e-7)
    given, expected = (
        tensors(f"{UNCLIP}/inputs.safetensors"),
        tensors(f"{UNCLIP}/outputs.safetensors"),
    )
    big, small = expected["embed_big"], expected["embed_small"]
    vector = augmentation(torch.cat([big, small, big]), given["noise_level"], given["noise"])
    assert (vector - expected["c_adm"]).abs().max() < TOLERANCE
    noised, level = vector.split([16, config["timestep_dim"]], dim=1)
    assert (noised - expected["noised"]).abs().max() < TOLERANCE
    assert (level - expected["noise_level_emb"]).abs().max() < TOLERANCE


def case_yaml() -> dict[str, Any]:
    import yaml

    found: dict[str, Any] = yaml.safe_load((GOLDEN / UNCLIP / "config.yaml").read_text())
    return found


@pytest.mark.parametrize("shape", [(8, 8), (8, 40), (40, 8), (5, 7), (63, 20)])
def test_resizing_keeps_flat_images_flat(shape: tuple[int, int]) -> None:
    flat = torch.full((2, 3, *shape), 0.25)
    assert resized(flat, 8).shape == (2, 3, 8, 8)
    assert (resized(flat, 8) - 0.25).abs().max() < 1e-6


def test_images_of_the_right_size_are_left_alone() -> None:
    image = torch.rand(1, 3, 8, 8)
    assert resized(image, 8) is image
