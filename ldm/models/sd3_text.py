"""The three text encoders of Stable Diffusion 3: CLIP-L, CLIP-G and T5 side by side.

Source: Stability-AI/sd3.5 `sd3_infer.py` (get_cond) and `other_impls.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import ConfigError, JobError
from ldm.models.clip_tower import CLIPTower
from ldm.models.conditioning import Conditioning
from ldm.models.encoding import Encoded, Memory, PromptEncoding, chunk_counts, encode
from ldm.nn.clip_sizes import CLIP_VIT_BIG_G_14, CLIP_VIT_L_14, TextConfig
from ldm.nn.t5 import T5Encoder, T5Sizes
from ldm.text.sentencepiece import SentencePieceTokenizer, t5_tokenizer
from ldm.text.tokenizer import END

T5_LENGTHS = (77, 256)
"""Tokens of T5 for prompts that fit in so many, and for longer ones: as the models learnt."""
_ZERO_TOKENS = 256  # as in diffusers


class T5Tower(nn.Module):
    """T5 under the name that a checkpoint has for it."""

    def __init__(self, sizes: T5Sizes) -> None:
        super().__init__()
        self.transformer = T5Encoder(sizes)


class SD3TextEncoders(nn.Module):
    """Texts -> crossattn [B,L,D] and vector [B,V].

    The states of both CLIP towers lie side by side, filled up with zeros to T5's width D; those of
    T5 follow them in L. The pooled states make up the vector. `t5` says what there is of T5: file
    (all of it), zeros (256 tokens of zeros, as diffusers does without it), or none (no tokens, as
    ComfyUI does). The `*_config` (ours) are sizes other than the released ones.
    """

    clip_l: CLIPTower
    clip_g: CLIPTower
    t5xxl: T5Tower | None

    def __init__(
        self,
        t5: str = "file",
        clip_l_config: Mapping[str, Any] | None = None,
        clip_g_config: Mapping[str, Any] | None = None,
        t5_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if t5 not in ("file", "zeros", "none"):
            raise ConfigError(f"t5 {t5!r} must be file, zeros or none")
        own_l = CLIP_VIT_L_14 if clip_l_config is None else TextConfig.read(clip_l_config)
        own_g = CLIP_VIT_BIG_G_14 if clip_g_config is None else TextConfig.read(clip_g_config)
        sizes = T5Sizes() if t5_config is None else T5Sizes.read(t5_config)
        if own_l.hidden_size + own_g.hidden_size > sizes.d_model:
            raise ConfigError("the CLIP encoders together are wider than t5_config.d_model")
        self.clip_l = CLIPTower(own_l, pad=END, projects=False)
        self.clip_g = CLIPTower(own_g, pad=0, projects=True)
        self.t5xxl = T5Tower(sizes) if t5 == "file" else None
        self.t5 = t5
        self.width = sizes.d_model

    @property
    def t5_tokenizer(self) -> SentencePieceTokenizer:
        """T5's tokenizer."""
        return t5_tokenizer()

    def compute_t5_in(self, dtype: torch.dtype) -> None:
        """Compute T5 in a precision; instead of fp16, whose range does not suffice, in bf16."""
        if self.t5xxl is not None:
            in_range = torch.bfloat16 if dtype is torch.float16 else dtype
            self.t5xxl.transformer.dtype = in_range

    def condition(
        self,
        texts: Sequence[str],
        encoding: PromptEncoding,
        beside: Sequence[str] = (),
        memory: Memory | None = None,
    ) -> tuple[Conditioning, list[str]]:
        """Embed texts; also what was cut off the end of each, or "". See `Model.condition`.

        T5 reads a prompt without its marks. Raises JobError for prompts of different lengths, which
        cannot be one batch: the network attends to all tokens, and padding would change an image.
        """
        own, other = chunk_counts(self.clip_l, texts, encoding, beside)
        counts = [max(pair) for pair in zip(own, other, strict=True)]
        bare, bare_beside = ([encoding.bare(text) for text in side] for side in (texts, beside))
        lengths = self._t5_lengths(bare, bare_beside or bare, encoding)
        if len(set(zip(counts, lengths, strict=True))) > 1:
            raise JobError(
                "prompts of different lengths cannot share a batch with this model: "
                "omit --n_samples"
            )
        joined, vectors = [], []
        for place, tower in enumerate((self.clip_l, self.clip_g)):
            hidden, pooled, cuts = encode(
                tower, texts, encoding, beside, memory, place=place, least=(counts, counts)
            )
            joined.append(hidden)
            vectors.append(pooled)
        clip = torch.cat(joined, dim=-1)
        clip = F.pad(clip, (0, self.width - clip.shape[-1]))
        crossattn, t5_cuts = self._with_t5(clip, bare, lengths[0], encoding, memory)
        found = [one or two for one, two in zip(cuts, t5_cuts, strict=True)]
        pooled_states = [vector for vector in vectors if vector is not None]
        return Conditioning(crossattn, torch.cat(pooled_states, dim=-1)), found

    def unknown_words(self, text: str) -> list[str]:
        """Always []: the vocabularies are whole."""
        return []

    def _t5_lengths(
        self, texts: Sequence[str], beside: Sequence[str], encoding: PromptEncoding
    ) -> list[int]:
        """The number of T5's tokens for each row."""
        if self.t5 == "none":
            return [0] * len(texts)
        if encoding.t5_length is not None or self.t5 == "zeros":
            return [encoding.t5_length or _ZERO_TOKENS] * len(texts)
        least, most = T5_LENGTHS
        counts = [
            max(len(self.t5_tokenizer.split(text).ids) for text in pair)
            for pair in zip(texts, beside, strict=True)
        ]
        return [least if count < least else most for count in counts]

    def _with_t5(
        self,
        clip: Tensor,
        texts: Sequence[str],
        length: int,
        encoding: PromptEncoding,
        memory: Memory | None,
    ) -> tuple[Tensor, list[str]]:
        """The joined states with T5's after them, and what was cut off each text."""
        if self.t5xxl is None:
            return F.pad(clip, (0, 0, 0, length)), [""] * len(texts)
        rows, cuts = zip(*(self.t5_tokenizer.encode(text, length) for text in texts), strict=True)
        states = []
        for text, row in zip(texts, rows, strict=True):
            make = partial(self._t5_states, row, clip)
            key = (2, text, length, replace(encoding, t5_length=length), clip.dtype)
            states += make() if memory is None else memory.recall(key, make)
        hidden = torch.stack([state for state, _ in states])
        return torch.cat([clip, hidden], dim=1), list(cuts)

    def _t5_states(self, row: Sequence[int], clip: Tensor) -> list[Encoded]:
        """T5's hidden states [L,D] of token ids, in the precision and place of `clip`."""
        assert self.t5xxl is not None
        encoder = self.t5xxl.transformer
        ids = torch.tensor([row], device=clip.device)
        return [(encoder(ids)[0].to(clip.dtype), None)]
