"""What a network is told beside the noisy latent, and the embedders that make it from text.

Class and attribute names are those of the original YAMLs and checkpoints
(`ldm/modules/encoders/modules.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import ConfigError
from ldm.nn.clip import CLIPTextTransformer, OpenCLIP, TextConfig, open_clip_config
from ldm.nn.layers import timestep_embedding
from ldm.schedule import NoiseSchedule, augmentor_buffers
from ldm.text.tokenizer import END, START, Tokenizer, clip_tokenizer, open_clip_tokenizer


@dataclass(frozen=True)
class Conditioning:
    """LDM's c_crossattn [B,L,D], c_adm [B,V] and c_concat [B,c,h,w], and what controls add."""

    crossattn: Tensor | None = None
    vector: Tensor | None = None
    concat: Tensor | None = None
    controls: tuple[Any, ...] = ()

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Conditioning:
        """The same on a device, floats in a dtype."""

        def moved(x: Tensor | None) -> Tensor | None:
            if x is None:
                return None
            return x.to(device=device, dtype=dtype if x.is_floating_point() else None)

        return replace(
            self,
            crossattn=moved(self.crossattn),
            vector=moved(self.vector),
            concat=moved(self.concat),
        )

    def stack(self, other: Conditioning) -> Conditioning:
        """Both in one batch, self first. Raises ValueError if one has a part the other has not."""

        def joined(one: Tensor | None, two: Tensor | None) -> Tensor | None:
            if one is None or two is None:
                if one is not two:
                    raise ValueError("both sides of guidance need the same kinds of conditioning")
                return None
            return torch.cat([one, two])

        return replace(
            self,
            crossattn=joined(self.crossattn, other.crossattn),
            vector=joined(self.vector, other.vector),
            concat=joined(self.concat, other.concat),
            controls=self.controls + other.controls,
        )


def kept_token_ids(captions: Iterable[str]) -> list[int]:
    """The token ids that captions use, start and end with them, in ascending order."""
    tokenizer = clip_tokenizer()
    return sorted({START, END}.union(*(tokenizer.encode(caption) for caption in captions)))


class FrozenCLIPEmbedder(nn.Module):
    """The text conditioner of v1: CLIP's last hidden state after the final norm.

    `text_config` (ours: field names of transformers' CLIPTextConfig) gives a tower of another
    size than ViT-L/14. With `kept_tokens` (ours) the embedding table has rows only for the ids
    listed, ascending, in the buffer of that name; any other id becomes the end token's row.
    """

    kept_tokens: Tensor | None

    def __init__(
        self,
        version: str = "openai/clip-vit-large-patch14",
        max_length: int = 77,
        text_config: Mapping[str, Any] | None = None,
        kept_tokens: bool = False,
    ) -> None:
        super().__init__()
        if text_config is None and "clip-vit-large-patch14" not in version:
            raise ConfigError(f"text encoder {version!r} is not known: describe it in text_config")
        config = TextConfig.read(text_config or {})
        if max_length > config.max_position_embeddings:
            raise ConfigError(
                f"max_length {max_length} is over text_config.max_position_embeddings "
                f"{config.max_position_embeddings}"
            )
        self.max_length = max_length
        self.transformer = CLIPTextTransformer(config)
        rows = torch.zeros(config.vocab_size, dtype=torch.long) if kept_tokens else None
        self.register_buffer("kept_tokens", rows)

    @property
    def tokenizer(self) -> Tokenizer:
        return clip_tokenizer()

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, list[str]]:
        """Texts -> hidden states [B, max_length, D], and what was cut off each, or ""."""
        rows, cut = self.tokenizer.batch(texts, END, self.max_length)
        ids = torch.tensor(rows, device=self.transformer.text_model.final_layer_norm.weight.device)
        if self.kept_tokens is not None:
            row = torch.searchsorted(self.kept_tokens, ids)
            end = len(self.kept_tokens) - 1
            row = row.clamp(max=end)
            ids = torch.where(self.kept_tokens[row] == ids, row, end)
        hidden: Tensor = self.transformer(ids)
        return hidden, cut

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that a cut vocabulary does not have; [] for a whole one."""
        if self.kept_tokens is None:
            return []
        return self.tokenizer.split(text).words_outside(frozenset(self.kept_tokens.tolist()))


class FrozenOpenCLIPEmbedder(nn.Module):
    """The text conditioner of v2: OpenCLIP's last or last but one layer, then the final norm.

    `model_config` (ours: field names of an open_clip model config) gives another size than `arch`.
    """

    def __init__(
        self,
        arch: str = "ViT-H-14",
        max_length: int = 77,
        layer: str = "last",
        model_config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if layer not in ("last", "penultimate"):
            raise ConfigError(f"layer {layer!r} must be last or penultimate")
        config = open_clip_config(arch, model_config)
        if max_length > config.text.context_length:
            raise ConfigError(
                f"max_length {max_length} is over text_cfg.context_length "
                f"{config.text.context_length}"
            )
        self.max_length = max_length
        self.layer = layer
        self.model = OpenCLIP(config, text_layers=True, vision=False)

    @property
    def tokenizer(self) -> Tokenizer:
        return open_clip_tokenizer()

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, list[str]]:
        """Texts -> hidden states [B, max_length, width], and what was cut off each, or ""."""
        rows, cut = self.tokenizer.batch(texts, 0, self.max_length)
        ids = torch.tensor(rows, device=self.model.ln_final.weight.device)
        return self.model.encode_text(ids, skip_last=self.layer == "penultimate"), cut

    def unknown_words(self, text: str) -> list[str]:
        """Always []: the vocabulary is whole."""
        return []


class FrozenOpenCLIPImageEmbedder(nn.Module):
    """The image conditioner of Stable unCLIP: an open_clip vision tower.

    `text_layers` keeps the text tower's keys, which the checkpoint of the L variant has.
    """

    def __init__(
        self,
        arch: str = "ViT-H-14",
        model_config: Mapping[str, Any] | None = None,
        text_layers: bool = False,
    ) -> None:
        super().__init__()
        config = open_clip_config(arch, model_config)
        self.model = OpenCLIP(config, text_layers=text_layers, vision=True)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B,3,S,S] at the tower's size, normalised by CLIP's mean and deviation
        -> embeddings [B, embed_dim]."""
        out: Tensor = self.model.visual(images)
        return out


class CLIPEmbeddingNoiseAugmentation(nn.Module):
    """Noise for image embeddings, with the level as an embedding beside it (Stable unCLIP).

    Its statistics are the identity, as the released YAMLs without `clip_stats_path` have it.
    """

    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor

    def __init__(self, schedule: NoiseSchedule, timestep_dim: int = 256) -> None:
        super().__init__()
        self.timestep_dim = timestep_dim
        for name, values in augmentor_buffers(schedule).items():
            self.register_buffer(name, values)

    def forward(self, embedding: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        """[B,D] at integer levels [B] with noise [B,D] -> noised embedding and the level's
        embedding joined, [B, D + timestep_dim]."""
        keep = self.sqrt_alphas_cumprod[level][:, None]
        add = self.sqrt_one_minus_alphas_cumprod[level][:, None]
        noised = keep * embedding + add * noise
        return torch.cat([noised, timestep_embedding(level, self.timestep_dim).to(noised)], dim=1)
