"""The CLIP towers against the recorded originals, and against both libraries at random weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from ldm.errors import ConfigError
from ldm.nn.clip import CLIPTextTransformer, OpenCLIP
from ldm.nn.clip_sizes import OpenClipConfig, TextConfig, open_clip_config
from tests.golden_data import case, tensors, text_tower, without

TOLERANCE = 1e-5
OPEN_CLIP: dict[str, Any] = {
    "embed_dim": 12,
    "quick_gelu": True,
    "vision_cfg": {
        "image_size": 28,
        "layers": 2,
        "width": 48,
        "head_width": 16,
        "patch_size": 14,
        "mlp_ratio": 2.0,
    },
    "text_cfg": {"context_length": 16, "vocab_size": 99, "width": 24, "heads": 3, "layers": 3},
}


@pytest.fixture(scope="module")
def clip() -> CLIPTextTransformer:
    tower = CLIPTextTransformer(TextConfig.read(case("modules/text-clip-v1/text_config.json")))
    tower.load_state_dict(without("transformer.", text_tower("text-clip-v1")))
    return tower.requires_grad_(False)


@pytest.fixture(scope="module")
def open_clip() -> OpenCLIP:
    config = OpenClipConfig.read(case("modules/text-openclip-v2/open_clip_config.json"))
    tower = OpenCLIP(config, text_layers=True, vision=False)
    tower.load_state_dict(without("model.", text_tower("text-openclip-v2")))
    return tower.requires_grad_(False)


def test_v1_text_tower_agrees_with_the_original(clip: CLIPTextTransformer) -> None:
    ids = tensors("modules/text-clip-v1/inputs.safetensors")["input_ids"].long()
    expected = tensors("modules/text-clip-v1/outputs.safetensors")
    last = clip(ids)
    assert (last - expected["last_hidden_state"]).abs().max() < TOLERANCE
    penultimate = clip.hidden_states(ids)[-2]
    assert (penultimate - expected["hidden_state_penultimate"]).abs().max() < TOLERANCE
    first_end = (ids == 49407).int().argmax(dim=1)
    pooled = last[torch.arange(len(ids)), first_end]
    assert (pooled - expected["pooled"]).abs().max() < TOLERANCE


@pytest.mark.parametrize(("layer", "skip"), [("last", 0), ("penultimate", 1)])
def test_v2_text_tower_agrees_with_the_original(open_clip: OpenCLIP, layer: str, skip: int) -> None:
    ids = tensors("modules/text-openclip-v2/inputs.safetensors")["input_ids"].long()
    expected = tensors("modules/text-openclip-v2/outputs.safetensors")[layer]
    assert (open_clip.encode_text(ids, skip) - expected).abs().max() < TOLERANCE


def test_later_tokens_change_nothing_before_them(
    clip: CLIPTextTransformer, open_clip: OpenCLIP
) -> None:
    ids = torch.randint(49408, (1, 20), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[0, 12:] = 7
    for encode in (clip, open_clip.encode_text):
        same = (encode(ids) - encode(other)).abs().amax(dim=2)[0] < 1e-6
        assert same.tolist() == [True] * 12 + [False] * 8


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_v1_text_tower_agrees_with_transformers(activation: str) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    values: dict[str, Any] = {
        "vocab_size": 60,
        "hidden_size": 24,
        "intermediate_size": 50,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "hidden_act": activation,
        "max_position_embeddings": 11,
        "layer_norm_eps": 1e-3,
    }
    theirs: Any = CLIPTextModel(CLIPTextConfig(**values))
    theirs.eval()
    ours = CLIPTextTransformer(TextConfig.read(values))
    bare = without("text_model.", theirs.state_dict())
    found = {f"text_model.{key}": values for key, values in bare.items()}
    # Their newer versions leave this one out of the state.
    found.setdefault("text_model.embeddings.position_ids", torch.arange(11)[None])
    ours.load_state_dict(found)
    ids = torch.randint(60, (3, 11), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (ours(ids) - theirs(ids).last_hidden_state).abs().max() < TOLERANCE


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_open_clip_towers_agree_with_open_clip(quick_gelu: bool) -> None:
    from open_clip.model import CLIP  # type: ignore[import-untyped]

    values = {**copy.deepcopy(OPEN_CLIP), "quick_gelu": quick_gelu}
    torch.manual_seed(2)
    theirs = CLIP(**values).eval()
    ours = OpenCLIP(OpenClipConfig.read(values), text_layers=True, vision=True)
    ours.load_state_dict(theirs.state_dict())
    ids, images = torch.randint(99, (2, 16)), torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        assert (ours.visual(images) - theirs.encode_image(images)).abs().max() < TOLERANCE
        pooled = ours.encode_text(ids)[torch.arange(2), ids.argmax(dim=1)] @ ours.text_projection
        assert (pooled - theirs.encode_text(ids)).abs().max() < TOLERANCE


def test_the_defaults_are_transformers() -> None:
    """A config that transformers writes leaves out whatever equals its defaults."""
    from transformers import CLIPTextConfig

    theirs = CLIPTextConfig()
    ours = TextConfig()
    assert ours == TextConfig(**{name: getattr(theirs, name) for name in vars(ours)})
    assert TextConfig.read(theirs.to_diff_dict()) == ours


def test_the_named_models_are_open_clip_s() -> None:
    from open_clip import get_model_config  # type: ignore[import-untyped]

    for name in ("ViT-H-14", "ViT-L-14", "ViT-L-14-quickgelu"):
        assert open_clip_config(name, get_model_config(name)) == open_clip_config(name, None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_sise": 8}, "hidden_sise.*hidden_size"),
        ({"hidden_act": "relu"}, "hidden_act must be one of"),
        ({"hidden_act": 3}, "hidden_act must be text"),
        ({"hidden_size": "wide"}, "hidden_size must be a positive number"),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be a positive number"),
        ({"num_attention_heads": True}, "num_attention_heads must be a positive number"),
        ({"hidden_size": 10, "num_attention_heads": 3}, "must divide hidden_size"),
    ],
)
def test_text_configs_that_cannot_be(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TextConfig.read(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed": 8}, "model_config.embed is not known"),
        ({"embed_dim": None}, "embed_dim must be a positive number"),
        ({"text_cfg": 5}, "text_cfg must be a mapping"),
        ({"vision_cfg": {"mlp_ratio": 0}}, "vision_cfg.mlp_ratio must be a positive number"),
        ({"text_cfg": {"widht": 8}}, "text_cfg.widht is not known.*width"),
        ({"text_cfg": {"width": 10, "heads": 3}}, "heads must divide width"),
        ({"vision_cfg": {"width": 10, "head_width": 3}}, "head_width must divide width"),
    ],
)
def test_open_clip_configs_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OpenClipConfig.read({**OPEN_CLIP, **changes})


def test_unknown_arch() -> None:
    with pytest.raises(ConfigError, match=r"ViT-Z-9.*known are ViT-H-14"):
        open_clip_config("ViT-Z-9", None)
