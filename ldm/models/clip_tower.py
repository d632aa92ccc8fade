"""A CLIP text encoder beside others, as Stable Diffusion 3 has two of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ldm.errors import ConfigError
from ldm.models.conditioning import check_clip_skip
from ldm.nn.clip import CLIPTextTransformer
from ldm.nn.clip_sizes import TextConfig
from ldm.text.tokenizer import END, LENGTH, Tokenizer, clip_tokenizer


class CLIPTower(nn.Module):
    """One of the CLIP encoders: the last but one layer without the norm, and the pooled state.

    `pad` is the token that fills up a text. Where the tower `projects`, its pooled state is
    projected.
    """

    def __init__(self, config: TextConfig, pad: int, projects: bool) -> None:
        super().__init__()
        if config.vocab_size <= END or config.max_position_embeddings < LENGTH:
            raise ConfigError(f"a text encoder needs {END + 1} tokens and {LENGTH} positions")
        self.pad, self.max_length = pad, LENGTH
        self.transformer = CLIPTextTransformer(config, projects)
        self.projects = projects

    @property
    def tokenizer(self) -> Tokenizer:
        return clip_tokenizer()

    def hidden(self, rows: Sequence[Sequence[int]], clip_skip: int | None = None) -> Tensor:
        """Token ids [N][L] -> hidden states [N,L,D]; `clip_skip` counts layers from the last."""
        return self.read(rows, clip_skip)[0]

    def read(
        self, rows: Sequence[Sequence[int]], clip_skip: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `hidden`, with the pooled states [N,D]: those of the first end token, normed."""
        text_model = self.transformer.text_model
        check_clip_skip(clip_skip, len(text_model.encoder.layers))
        ids = torch.tensor(rows, device=text_model.final_layer_norm.weight.device)
        states = self.transformer.hidden_states(ids)
        ends = ((ids == END).cumsum(dim=-1) == 0).sum(dim=-1)
        last = states[-1][torch.arange(len(ids), device=ids.device), ends]
        pooled = text_model.final_layer_norm(last)
        if self.projects:
            pooled = self.transformer.text_projection(pooled)
        return states[-(clip_skip or 2)], pooled

    def unknown_words(self, text: str) -> list[str]:
        """Always []: the vocabulary is whole."""
        return []
