"""What a text conditioner learns before there are images."""

from __future__ import annotations

import torch

from ldm.models.conditioning import FrozenCLIPEmbedder, kept_token_ids
from ldm.training.data import Scenes
from ldm.training.pretext import teach
from tests.emoji_font import EMOJI_FONT


def embedder(data: Scenes) -> FrozenCLIPEmbedder:
    ids = kept_token_ids(data.vocabulary())
    torch.manual_seed(0)
    made = FrozenCLIPEmbedder(
        max_length=20,
        kept_tokens=True,
        text_config={
            "vocab_size": len(ids),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "hidden_act": "quick_gelu",
            "max_position_embeddings": 20,
        },
    )
    assert made.kept_tokens is not None
    made.kept_tokens.copy_(torch.tensor(ids))
    torch.nn.init.normal_(made.transformer.text_model.embeddings.token_embedding.weight, std=0.4)
    return made


def test_captions_come_to_tell_their_facts() -> None:
    data = Scenes(EMOJI_FONT, seed=1, glyphs=["apple", "cat", "pizza", "car"], two_glyphs=0.0)
    early = teach(embedder(data), data.scene, 2, seed=1)
    late = teach(embedder(data), data.scene, 150, seed=1)
    assert early > 10  # about the logarithms of the numbers of answers: they are guessed
    assert late < 0.5 * early


def test_the_same_seed_teaches_the_same() -> None:
    data = Scenes(EMOJI_FONT, seed=1, glyphs=["apple", "cat"], two_glyphs=0.0)
    assert teach(embedder(data), data.scene, 3, 1) == teach(embedder(data), data.scene, 3, 1)
