"""The conditioner of SDXL: two text encoders and numbers, as generative-models has it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from ldm.checkpoints.config import Config
from ldm.errors import ConfigError, JobError
from ldm.models.conditioner import Extras
from ldm.models.encoding import PLAIN, Memory, PromptEncoding
from ldm.models.model import Model
from ldm.models.registry import build
from tests.golden_data import case, tensors
from tests.tiny_sdxl import base_state, sdxl_tree

NAME = "modules/sdxl-conditioner"
PROMPTS: list[str] = case(f"{NAME}/case.json")["prompts"]
SIZES = Extras(
    numbers={
        "original_size_as_tuple": (64, 96),
        "crop_coords_top_left": (0, 8),
        "target_size_as_tuple": (64, 96),
    }
)
# Between two versions of torch the golden data itself moves by 3e-4: one tower is 8 wide.
TOLERANCE = 1e-3
WEIGHTS = PromptEncoding("a1111")


@pytest.fixture(scope="module")
def model() -> Model:
    model = build(Config("sdxl.yaml", sdxl_tree())).requires_grad_(False).eval()
    state = model.state_dict()
    state.update(base_state())
    model.load_state_dict(state)
    return model


def numbers(row: int) -> dict[str, tuple[float, ...]]:
    inputs = tensors(f"{NAME}/inputs.safetensors")
    return {key: tuple(inputs[key][row].tolist()) for key in SIZES.numbers}


@pytest.mark.parametrize("row", range(len(PROMPTS)))
def test_the_originals_outputs(row: int, model: Model) -> None:
    golden = tensors(f"{NAME}/outputs.safetensors")
    cond, cut = model.condition([PROMPTS[row]], PLAIN, extras=Extras(numbers=numbers(row)))
    empty, _ = model.condition([""], PLAIN, extras=Extras(numbers=numbers(row)))
    zeros, _ = model.condition([""], PLAIN, extras=Extras(numbers=numbers(row), zeros=True))
    assert cut == [""]
    for side, prefix, suffix in (
        (cond, "", ""),
        (empty, "uc_", "_empty_prompt"),
        (zeros, "uc_", "_force_zero"),
    ):
        for name in ("crossattn", "vector"):
            expected = golden[f"{prefix}{name}{suffix}"][row]
            ours = getattr(side, name)[0]
            assert float((ours - expected).abs().max()) <= TOLERANCE


def hidden(model: Model, texts: Sequence[str], extras: Extras = SIZES) -> torch.Tensor:
    cond, _ = model.condition(texts, WEIGHTS, memory=Memory(), extras=extras)
    assert cond.crossattn is not None
    return cond.crossattn


def test_each_encoder_reads_its_own_prompt(model: Model) -> None:
    width = 8
    both, first, second = (hidden(model, [text]) for text in ("a cat", "a cat", "two dogs"))
    extras = Extras(second=("two dogs",), numbers=SIZES.numbers)
    mixed = hidden(model, ["a cat"], extras)
    assert torch.equal(mixed[..., :width], first[..., :width])
    assert torch.equal(mixed[..., width:], second[..., width:])
    assert not torch.equal(mixed, both)


def test_weights_and_long_prompts_reach_both_encoders(model: Model) -> None:
    long = ", ".join(["a red cube"] * 30)
    assert hidden(model, [long]).shape == (1, 2 * 77, 16)
    plain, strong = hidden(model, ["a cat"]), hidden(model, ["a (cat:1.5)"])
    assert not torch.equal(plain[..., :8], strong[..., :8])
    assert not torch.equal(plain[..., 8:], strong[..., 8:])
    # A longer second prompt lengthens the first encoder's part, too, and both sides.
    extras = Extras(second=(long,), second_beside=("",), numbers=SIZES.numbers)
    assert hidden(model, ["a cat"], extras).shape == (1, 2 * 77, 16)
    other = Extras(second=("",), second_beside=(long,), numbers=SIZES.numbers)
    uncond, _ = model.condition([""], WEIGHTS, ["a cat"], extras=other)
    assert uncond.crossattn is not None
    assert uncond.crossattn.shape == (1, 2 * 77, 16)


def test_clip_skip_counts_as_others_do(model: Model) -> None:
    """The last but one layer of both towers is the default, and others' clip skip 2."""
    usual = hidden(model, ["a cat"])
    states = [
        model.condition(["a cat"], PromptEncoding("a1111", skip), extras=SIZES)[0].crossattn
        for skip in (1, 2)
    ]
    assert states[1] is not None
    assert torch.equal(states[1], usual)
    assert states[0] is not None
    assert not torch.equal(states[0], usual)
    with pytest.raises(JobError, match="--clip-skip must be 1 to"):
        model.condition(["a cat"], PromptEncoding("a1111", 99), extras=SIZES)


def test_bad_sections_are_named() -> None:
    tree = sdxl_tree()
    embedders = tree["model"]["params"]["conditioner_config"]["params"]["emb_models"]
    embedders[2]["input_key"] = "fps_id"
    with pytest.raises(ConfigError, match=r"emb_models\[2\].input_key must be one of txt"):
        build(Config("sdxl.yaml", tree))
    embedders[2]["input_key"] = "txt"
    with pytest.raises(ConfigError, match="'txt' does not fit ConcatTimestepEmbedderND"):
        build(Config("sdxl.yaml", tree))
    embedders[2]["target"] = "sgm.modules.encoders.modules.FrozenT5Embedder"
    with pytest.raises(ConfigError, match="is not known, and never imported"):
        build(Config("sdxl.yaml", tree))
