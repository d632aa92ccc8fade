"""Weights, chunks and layers, against transformers' and open_clip's own text towers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.engine.device import Policy
from ldm.engine.engine import Engine
from ldm.engine.events import Event, RunWarning
from ldm.errors import JobError
from ldm.jobs.job import Job
from ldm.jobs.legacy import SCRIPT_DEFAULTS
from ldm.jobs.metadata import Record
from ldm.models.conditioning import (
    BERTEmbedder,
    ClassEmbedder,
    FrozenCLIPEmbedder,
    FrozenOpenCLIPEmbedder,
)
from ldm.models.encoding import PromptEncoding, encode, weighted
from ldm.models.model import Model
from ldm.text.tokenizer import END, START, clip_tokenizer
from tests.golden_data import case, text_tower, without
from tests.tiny_models import make, v1_tree

TOLERANCE = 1e-5
WEIGHTS = PromptEncoding("a1111")
LONG = "a photograph of a cat " * 20  # 100 tokens, no comma


@pytest.fixture(scope="module")
def v1() -> FrozenCLIPEmbedder:
    embedder = FrozenCLIPEmbedder(text_config=case("modules/text-clip-v1/text_config.json"))
    embedder.load_state_dict(text_tower("text-clip-v1"))
    torch.manual_seed(0)  # the recorded tower has few rows of its table
    table = embedder.transformer.text_model.embeddings.token_embedding.weight
    torch.nn.init.normal_(table, std=0.02)
    return embedder.requires_grad_(False)


@pytest.fixture(scope="module")
def v2() -> FrozenOpenCLIPEmbedder:
    config = case("modules/text-openclip-v2/open_clip_config.json")
    embedder = FrozenOpenCLIPEmbedder(layer="penultimate", model_config=config)
    embedder.load_state_dict(text_tower("text-openclip-v2"))
    return embedder.requires_grad_(False)


@pytest.fixture(scope="module")
def theirs(v1: FrozenCLIPEmbedder) -> Any:
    """The same tower as transformers' module."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = case("modules/text-clip-v1/text_config.json")
    model: Any = CLIPTextModel(CLIPTextConfig(**config)).eval()
    bare = without("text_model.", without("transformer.", dict(v1.state_dict())))
    bare.pop("embeddings.position_ids")
    prefix = "text_model." if any(k.startswith("text_model.") for k in model.state_dict()) else ""
    model.load_state_dict({f"{prefix}{key}": values for key, values in bare.items()}, strict=False)
    loaded = without("text_model.", model.state_dict())
    assert all(torch.equal(loaded[key], values) for key, values in bare.items())
    return model


def states(theirs: Any, words: list[str], layer: int = -1) -> Tensor:
    """A row [1,77,D] of words, a token each, after the final norm."""
    tokens = [clip_tokenizer().encode(word) for word in words]
    ids = [START, *(token for [token] in tokens), END]
    with torch.no_grad():
        ids = ids + [END] * (77 - len(ids))
        out = theirs(torch.tensor([ids]), output_hidden_states=True)
        norm = getattr(theirs, "text_model", theirs).final_layer_norm
        found: Tensor = norm(out.hidden_states[layer])
        return found


def reweighted(z: Tensor, weights: list[float]) -> Tensor:
    """The formula of the web UI, for one chunk; `weights` are those of the first tokens."""
    column = torch.ones(77)
    column[1 : 1 + len(weights)] = torch.tensor(weights)
    scaled = z * column[None, :, None]
    return scaled * (z.mean() / scaled.mean())


def text(
    embedder: Any, prompt: str, encoding: PromptEncoding = WEIGHTS, beside: str = ""
) -> Tensor:
    return encode(embedder, [prompt], encoding, [beside])[0]


# --- weights -----------------------------------------------------------------------------------


def test_weights_multiply_the_states_of_their_tokens(v1: FrozenCLIPEmbedder, theirs: Any) -> None:
    z = states(theirs, ["a", "red", "cat", "photograph"])
    expected = reweighted(z, [1, 1.3, 1.3 * 1.1, 1 / 1.1])
    ours = text(v1, "a (red (cat):1.3) [photograph]")
    assert (ours - expected).abs().max() < TOLERANCE
    assert (ours - z).abs().max() > 0.01


@pytest.mark.parametrize("prompt", ["", "A red apple, on a blue  background!"])
def test_a_prompt_without_marks_is_encoded_as_ever(
    v1: FrozenCLIPEmbedder, v2: FrozenOpenCLIPEmbedder, prompt: str
) -> None:
    for embedder in (v1, v2):
        for encoding in (WEIGHTS, PromptEncoding()):
            assert torch.equal(text(embedder, prompt, encoding), embedder.encode([prompt])[0])


def test_plain_syntax_takes_brackets_literally(v1: FrozenCLIPEmbedder) -> None:
    prompt = f"a (red:1.3) cat BREAK {LONG}"
    hidden, _, cut = encode(v1, [prompt], PromptEncoding("plain"))
    literal, tail = v1.encode([prompt])
    assert torch.equal(hidden, literal)
    assert cut == tail != [""]


def test_the_mean_is_restored_chunk_by_chunk() -> None:
    torch.manual_seed(0)
    z = torch.randn(2, 5, 3) + 2
    weights = torch.tensor([[1, 1.4, 0.3, 1, 1], [1.0, 1, 1, 1, 1]])
    out = weighted(z, weights)
    assert torch.equal(out[1], z[1])
    torch.testing.assert_close(out.mean(dim=(1, 2)), z.mean(dim=(1, 2)))
    share = out[0] / z[0]
    torch.testing.assert_close(share[1] / share[0], torch.full((3,), 1.4))
    torch.testing.assert_close(share[2] / share[0], torch.full((3,), 0.3))


@pytest.mark.parametrize("weight", [1.3, 0.7, 0.0, -1.0, 5.0])
def test_where_the_mean_says_nothing_weights_stay_bounded(weight: float) -> None:
    """Tokens of opposite means, which cancel: their ratio is noise, or no number at all."""
    for rest in (1e-6, 0.0, -1e-6):
        z = torch.tensor([[1.0, -1.0 + rest]])[..., None]
        out = weighted(z, torch.tensor([[1.0, weight]]))
        assert out.isfinite().all()
        low, high = 1 / max(weight, 1), 1 / max(min(weight, 1), 0.01)
        assert low - 1e-6 <= out[0, 0, 0] <= high + 1e-4


def test_half_precision_stays_half() -> None:
    out = weighted(torch.ones(1, 3, 2, dtype=torch.float16), torch.tensor([[1.0, 1.5, 1.0]]))
    assert out.dtype == torch.float16


# --- chunks ------------------------------------------------------------------------------------


def test_chunks_are_encoded_apart_and_follow_each_other(
    v1: FrozenCLIPEmbedder, theirs: Any
) -> None:
    words = LONG.split()
    ours = text(v1, f"{LONG} BREAK (cat:0.5)", beside="a")
    chunks = [words[:75], words[75:]]
    expected = [
        *(states(theirs, chunk) for chunk in chunks),
        reweighted(states(theirs, ["cat"]), [0.5]),
    ]
    assert ours.shape == (1, 3 * 77, 16)
    assert (ours - torch.cat(expected, dim=1)).abs().max() < TOLERANCE


def test_the_shorter_side_gets_empty_chunks(v1: FrozenCLIPEmbedder) -> None:
    cond, uncond = text(v1, LONG, beside="a cat"), text(v1, "a cat", beside=LONG)
    assert cond.shape == uncond.shape == (1, 2 * 77, 16)
    plain = v1.encode(["a cat", ""])[0]
    assert (uncond[0] - plain.flatten(0, 1)).abs().max() < TOLERANCE


def test_rows_of_a_batch_are_repeated_to_one_length(v1: FrozenCLIPEmbedder) -> None:
    prompts, beside = ["a cat", "b BREAK c", "b BREAK c BREAK a"], ["", "", ""]
    together, _, _ = encode(v1, prompts, WEIGHTS, beside)
    assert together.shape == (3, 6 * 77, 16)
    for row, prompt in zip(together, prompts, strict=True):
        alone = text(v1, prompt)[0]
        assert (row - alone.repeat(len(row) // len(alone), 1)).abs().max() < TOLERANCE


def test_an_image_does_not_depend_on_the_prompts_beside_it() -> None:
    model = make(v1_tree())
    prompts = ["a cat", f"a dog, {LONG}"]
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    sigma = torch.full((2,), 3.0)

    def denoised(rows: slice) -> Tensor:
        texts, negatives = prompts[rows], ["ugly"] * len(prompts[rows])
        cond, _ = model.condition(texts, WEIGHTS, negatives)
        uncond, _ = model.condition(negatives, WEIGHTS, texts)
        return model.denoiser(cond, uncond, 7.5)(x[rows], sigma[rows])

    together = denoised(slice(0, 2))
    for row in range(2):
        assert (denoised(slice(row, row + 1)) - together[row]).abs().max() < 1e-4


def test_pooled_is_the_first_chunk_s_without_weights(v1: FrozenCLIPEmbedder) -> None:
    v1.pooled = True
    try:
        _, pooled, _ = encode(v1, [f"(a:1.5) BREAK {LONG}", "a"], WEIGHTS)
    finally:
        v1.pooled = False
    assert pooled is not None
    expected = v1.encode(["a"])[0][0, -1]
    assert (pooled - expected).abs().max() < TOLERANCE


def test_other_embedders_read_the_same_grammar(tmp_path: Path) -> None:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", ",", "(", ")"]
    (tmp_path / "vocab.txt").write_text("\n".join(names))
    torch.manual_seed(0)
    bert = BERTEmbedder(8, 1, vocab_size=len(names), max_seq_len=12).requires_grad_(False)
    bert.look_in(tmp_path)
    assert torch.equal(text(bert, "a cat"), bert.encode(["a cat"])[0])
    assert text(bert, "a " * 15).shape == (1, 24, 8)
    assert not torch.equal(text(bert, "a (cat:1.2)"), bert.encode(["a cat"])[0])
    with pytest.raises(JobError, match="--clip-skip"):
        text(bert, "a", PromptEncoding("weights", 2))


# --- layers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_skip", [1, 2, 3])
def test_clip_skip_takes_an_earlier_layer(
    v1: FrozenCLIPEmbedder, theirs: Any, clip_skip: int
) -> None:
    expected = reweighted(states(theirs, ["a", "cat"], -clip_skip), [1, 1.2])
    ours = text(v1, "a (cat:1.2)", PromptEncoding("weights", clip_skip))
    assert (ours - expected).abs().max() < TOLERANCE


def test_clip_skip_counts_from_the_last_for_version_2_too(v2: FrozenOpenCLIPEmbedder) -> None:
    """There the model's own is the last but one."""
    own = text(v2, "a cat")
    assert torch.equal(text(v2, "a cat", PromptEncoding("weights", 2)), own)
    last = FrozenOpenCLIPEmbedder(
        layer="last", model_config=case("modules/text-openclip-v2/open_clip_config.json")
    )
    last.load_state_dict(v2.state_dict())
    with torch.no_grad():
        assert torch.equal(text(v2, "a cat", PromptEncoding("weights", 1)), text(last, "a cat"))
    assert not torch.equal(text(v2, "a cat", PromptEncoding("weights", 1)), own)


def test_layers_that_are_not_there(v1: FrozenCLIPEmbedder, v2: FrozenOpenCLIPEmbedder) -> None:
    for embedder in (v1, v2):
        for clip_skip in (0, -1, 99):
            with pytest.raises(JobError, match=r"--clip-skip must be 1 to \d"):
                text(embedder, "a", PromptEncoding("weights", clip_skip))


def test_models_without_a_text_encoder_read_nothing() -> None:
    model = make(v1_tree())
    model.cond_stage_model = ClassEmbedder(16, 21)
    assert model.condition(["7"], WEIGHTS)[0].crossattn is not None
    for embedder in (model.cond_stage_model, None):
        model.cond_stage_model = embedder
        with pytest.raises(JobError, match="no CLIP text encoder"):
            model.condition([""], PromptEncoding("weights", 2))


# --- the whole way -----------------------------------------------------------------------------


def test_the_infotext_keeps_the_prompt_as_it_was_written() -> None:
    job = Job(prompt="a (cat:1.3) BREAK b", negative="[x]", clip_skip=2, seed=1, scale=2.0)
    lines = Record(job, 0, "m", "h").infotext().split("\n")
    assert lines[:2] == ["a (cat:1.3) BREAK b", "Negative prompt: [x]"]
    assert "Clip skip: 2" in lines[2]


def test_bare_words() -> None:
    assert WEIGHTS.bare("a (zebra:1.3), [x] BREAK y").split() == ["a", "zebra", ",", "x", "y"]
    assert PromptEncoding().bare("a (b)") == "a (b)"


def test_scripts_take_prompts_literally() -> None:
    assert Job().prompt_syntax == "a1111"
    defaults = [job for versions in SCRIPT_DEFAULTS.values() for job in versions]
    assert {fields["prompt_syntax"] for fields in defaults} == {"plain"}


def drawn(model: Model, **fields: Any) -> tuple[list[Tensor], list[str]]:
    """The latents of a job of two steps, and its warnings."""
    small = {"width": 16, "height": 16, "steps": 2, "sampler": "ddim", "seed": 1, "scale": 3.0}
    events: list[Event] = []
    engine = Engine(model, Policy(torch.device("cpu"), torch.float32, "full"))
    latents = [result.latent for result in engine.run(Job(**{**small, **fields}), events.append)]
    return latents, [event.text for event in events if isinstance(event, RunWarning)]


def test_a_job_draws_by_its_weights_chunks_and_layer() -> None:
    model = make(v1_tree())
    prompt = "a (red:1.4) cat"
    [plain], _ = drawn(model, prompt="a red cat")
    [literal], _ = drawn(model, prompt=prompt, prompt_syntax="plain")
    [heavy], _ = drawn(model, prompt=prompt)
    [skipped], _ = drawn(model, prompt=prompt, clip_skip=2)
    found = [plain, literal, heavy, skipped]
    assert not any(torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])
    [escaped], _ = drawn(model, prompt="a \\(red:1.4\\) cat")
    assert torch.equal(escaped, literal)


def test_long_prompts_are_drawn_whole_or_cut_with_a_warning() -> None:
    model = make(v1_tree())
    ends = [f"{LONG}{end}" for end in ("red", "blue")]
    (red, blue), warnings = drawn(model, prompts=tuple(ends), n_samples=2, negative="a BREAK b")
    assert warnings == []
    assert not torch.equal(red, blue)
    [alone], _ = drawn(model, prompt=ends[0], negative="a BREAK b")
    assert (alone - red).abs().max() < 1e-4
    _, warnings = drawn(model, prompt=ends[0], prompt_syntax="plain")
    assert len(warnings) == 1
    assert "too long" in warnings[0]
