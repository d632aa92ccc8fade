"""What conditions a network beside the noisy latent, and the embedders that make it from text.

Class and attribute names are those of the original YAMLs and checkpoints
(`ldm/modules/encoders/modules.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import ConfigError, JobError, UsageError
from ldm.nn.bert import TransformerWrapper
from ldm.nn.clip import CLIPTextTransformer, OpenCLIP
from ldm.nn.clip_sizes import CLIP_VIT_L_14, TextConfig, open_clip_config
from ldm.text.tokenizer import END, START, Tokenizer, clip_tokenizer, open_clip_tokenizer
from ldm.text.wordpiece import BertTokenizer, bert_tokenizer, find_vocabulary


@dataclass(frozen=True)
class Conditioning:
    """LDM's c_crossattn [B,L,D], c_adm [B,V] and c_concat [B,c,h,w], and what controls add.

    `vector` may be whole numbers [B], rows of a table; each of `controls` is [B,c,H,W].
    """

    crossattn: Tensor | None = None
    vector: Tensor | None = None
    concat: Tensor | None = None
    controls: tuple[Tensor, ...] = ()

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Conditioning:
        """The same on a device, floats in a dtype."""

        def moved(x: Tensor) -> Tensor:
            return x.to(device=device, dtype=dtype if x.is_floating_point() else None)

        return Conditioning(
            crossattn=None if self.crossattn is None else moved(self.crossattn),
            vector=None if self.vector is None else moved(self.vector),
            concat=None if self.concat is None else moved(self.concat),
            controls=tuple(map(moved, self.controls)),
        )

    def crop(self, rows: slice, columns: slice) -> Conditioning:
        """The same for a part of the latent; `controls` have no parts (none are tiled yet)."""
        if self.concat is None:
            return self
        return replace(self, concat=self.concat[..., rows, columns])

    def stack(self, other: Conditioning) -> Conditioning:
        """Both in one batch, self first. Raises ValueError if one has a part the other has not."""

        def joined(one: Tensor | None, two: Tensor | None) -> Tensor | None:
            if one is None or two is None:
                if one is not two:
                    raise ValueError("both sides of guidance need the same kinds of conditioning")
                return None
            return torch.cat([one, two])

        if len(self.controls) != len(other.controls):
            raise ValueError("both sides of guidance need the same number of controls")
        pairs = zip(self.controls, other.controls, strict=True)
        return Conditioning(
            crossattn=joined(self.crossattn, other.crossattn),
            vector=joined(self.vector, other.vector),
            concat=joined(self.concat, other.concat),
            controls=tuple(torch.cat(pair) for pair in pairs),
        )


def check_clip_skip(clip_skip: int | None, layers: int) -> None:
    """Raise JobError where a text encoder of so many layers has no such layer."""
    if clip_skip is not None and not 1 <= clip_skip <= layers:
        raise JobError(f"--clip-skip must be 1 to {layers} for this model, not {clip_skip}")


def kept_token_ids(captions: Iterable[str]) -> list[int]:
    """The token ids that captions use, start and end with them, in ascending order."""
    tokenizer = clip_tokenizer()
    return sorted({START, END}.union(*(tokenizer.encode(caption) for caption in captions)))


class FrozenCLIPEmbedder(nn.Module):
    """The text conditioner of v1: CLIP's last hidden state after the final norm.

    `text_config` (ours: field names of transformers' CLIPTextConfig) gives a tower of another
    size than ViT-L/14. With `kept_tokens` (ours) the embedding table has rows only for the ids
    listed, ascending, in the buffer of that name; any other id becomes the end token's row. With
    `pooled` (ours) the last place's state is handed to the network as a vector, too, as SDXL does:
    it then scales every block, which a network of few attentions learns from far sooner. With
    `layer` "hidden" the states are those after layer `layer_idx`, without the norm, as SDXL's.
    """

    kept_tokens: Tensor | None

    def __init__(
        self,
        version: str = "openai/clip-vit-large-patch14",
        max_length: int = 77,
        text_config: Mapping[str, Any] | None = None,
        kept_tokens: bool = False,
        pooled: bool = False,
        layer: str = "last",
        layer_idx: int | None = None,
    ) -> None:
        super().__init__()
        if text_config is None and "clip-vit-large-patch14" not in version:
            raise ConfigError(f"text encoder {version!r} is not known: describe it in text_config")
        config = CLIP_VIT_L_14 if text_config is None else TextConfig.read(text_config)
        if max_length > config.max_position_embeddings:
            raise ConfigError(
                f"max_length {max_length} is over text_config.max_position_embeddings "
                f"{config.max_position_embeddings}"
            )
        if config.vocab_size <= END and not kept_tokens:
            raise ConfigError(
                f"text_config.vocab_size {config.vocab_size} is under the {END + 1} tokens of "
                "CLIP: set kept_tokens to true"
            )
        if layer not in ("last", "hidden") or (layer == "hidden") != (layer_idx is not None):
            raise ConfigError(f"layer {layer!r} must be last, or hidden with a layer_idx")
        layers = config.num_hidden_layers
        if layer_idx is not None and not 1 <= layer_idx <= layers:
            raise ConfigError(f"layer_idx must be 1 to {layers}, not {layer_idx}")
        self.max_length = max_length
        self.pooled = pooled
        self.layer_idx = layer_idx
        self.transformer = CLIPTextTransformer(config)
        rows = torch.zeros(config.vocab_size, dtype=torch.long) if kept_tokens else None
        self.register_buffer("kept_tokens", rows)

    @property
    def tokenizer(self) -> Tokenizer:
        return clip_tokenizer()

    @property
    def pad(self) -> int:
        """The token that fills up a text: the end token once more."""
        return END

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, list[str]]:
        """Texts -> hidden states [B, max_length, D], and what was cut off each, or ""."""
        rows, cut = self.tokenizer.batch(texts, self.pad, self.max_length)
        return self.hidden(rows), cut

    def hidden(self, rows: Sequence[Sequence[int]], clip_skip: int | None = None) -> Tensor:
        """Token ids [N][L] -> hidden states [N,L,D] of a layer, after the final norm.

        `clip_skip` counts layers from the last, which is 1. Raises JobError for more than there
        are.
        """
        text_model = self.transformer.text_model
        check_clip_skip(clip_skip, len(text_model.encoder.layers))
        ids = torch.tensor(rows, device=text_model.final_layer_norm.weight.device)
        if self.kept_tokens is not None:
            row = torch.searchsorted(self.kept_tokens, ids)
            end = len(self.kept_tokens) - 1
            row = row.clamp(max=end)
            ids = torch.where(self.kept_tokens[row] == ids, row, end)
        states = self.transformer.hidden_states(ids)
        if self.layer_idx is not None:
            return states[self.layer_idx if clip_skip is None else -clip_skip]
        hidden: Tensor = text_model.final_layer_norm(states[-(clip_skip or 1)])
        return hidden

    def read(
        self, rows: Sequence[Sequence[int]], clip_skip: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As `hidden`, with the pooled states [N,D] if the network takes them."""
        hidden = self.hidden(rows, clip_skip)
        return hidden, pooled_state(self, hidden)

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text that a cut vocabulary does not have; [] for a whole one."""
        if self.kept_tokens is None:
            return []
        return self.tokenizer.split(text).words_outside(frozenset(self.kept_tokens.tolist()))


def pooled_state(embedder: nn.Module, hidden: Tensor) -> Tensor | None:
    """What an embedder hands to the network as a vector: the last of its states [...,L,D], or None.

    The tokens that follow a text in its chunk are end tokens, which have seen all of it.
    """
    if isinstance(embedder, FrozenCLIPEmbedder) and embedder.pooled:
        return hidden[..., -1, :]
    return None


class FrozenOpenCLIPEmbedder(nn.Module):
    """The text conditioner of v2 and SDXL: OpenCLIP's last or last but one layer.

    `normed` puts the final norm after it, as v2 does; `pooled` hands the pooled state to the
    network as well, as SDXL does. `model_config` (ours: field names of an open_clip model config)
    gives another size than `arch`.
    """

    def __init__(
        self,
        arch: str = "ViT-H-14",
        max_length: int = 77,
        layer: str = "last",
        model_config: Mapping[str, Any] | None = None,
        normed: bool = True,
        pooled: bool = False,
    ) -> None:
        super().__init__()
        if layer not in ("last", "penultimate"):
            raise ConfigError(f"layer {layer!r} must be last or penultimate")
        if normed and pooled:
            raise ConfigError("always_return_pooled goes with legacy: false")
        config = open_clip_config(arch, model_config)
        if max_length > config.text.context_length:
            raise ConfigError(
                f"max_length {max_length} is over text_cfg.context_length "
                f"{config.text.context_length}"
            )
        if config.text.vocab_size <= END:
            raise ConfigError(
                f"text_cfg.vocab_size {config.text.vocab_size} is under CLIP's {END + 1} tokens"
            )
        self.max_length = max_length
        self.layer = layer
        self.normed, self.pooled = normed, pooled
        self.model = OpenCLIP(config, text_layers=True, vision=False)

    @property
    def tokenizer(self) -> Tokenizer:
        return open_clip_tokenizer()

    @property
    def pad(self) -> int:
        """The token that fills up a text."""
        return 0

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, list[str]]:
        """Texts -> hidden states [B, max_length, width], and what was cut off each, or ""."""
        rows, cut = self.tokenizer.batch(texts, self.pad, self.max_length)
        return self.hidden(rows), cut

    def hidden(self, rows: Sequence[Sequence[int]], clip_skip: int | None = None) -> Tensor:
        """Token ids [N][L] -> hidden states [N,L,width] of a layer.

        `clip_skip` counts layers from the last, which is 1; the default is what `layer` names.
        Raises JobError for more than there are.
        """
        return self.read(rows, clip_skip)[0]

    def read(
        self, rows: Sequence[Sequence[int]], clip_skip: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As `hidden`, with the pooled states [N,embed_dim] if the network takes them."""
        check_clip_skip(clip_skip, len(self.model.transformer.resblocks))
        ids = torch.tensor(rows, device=self.model.ln_final.weight.device)
        skipped = int(self.layer == "penultimate") if clip_skip is None else clip_skip - 1
        if self.normed:
            return self.model.encode_text(ids, skip_last=skipped), None
        hidden, pooled = self.model.encode_pooled(ids, skip_last=skipped)
        return hidden, pooled if self.pooled else None

    def unknown_words(self, text: str) -> list[str]:
        """Always []: the vocabulary is whole."""
        return []


class BERTEmbedder(nn.Module):
    """The text conditioner of the text models from before Stable Diffusion: a transformer of its
    own, over the tokens of BERT.

    `bert_vocab` (ours) names the vocabulary file; without it the file lies beside the checkpoint.
    Without `use_tokenizer` the model takes token ids of something other than text.
    """

    def __init__(
        self,
        n_embed: int,
        n_layer: int,
        vocab_size: int = 30522,
        max_seq_len: int = 77,
        use_tokenizer: bool = True,
        bert_vocab: str | None = None,
    ) -> None:
        super().__init__()
        self.max_length = max_seq_len
        self.vocab_size = vocab_size
        self.use_tokenizer = use_tokenizer
        self.bert_vocab = bert_vocab
        self.folder = Path()
        self.transformer = TransformerWrapper(vocab_size, max_seq_len, n_embed, n_layer)

    def look_in(self, folder: Path) -> None:
        """Take the vocabulary from a checkpoint's folder; raises CheckpointError if it lacks."""
        self.folder = folder
        if self.use_tokenizer:
            _ = self.tokenizer

    @property
    def tokenizer(self) -> BertTokenizer:
        """Built at the first call; raises CheckpointError for a vocabulary missing or wrong.

        Raises UsageError if the model does not take text.
        """
        if not self.use_tokenizer:
            raise UsageError("this model is conditioned on token ids, not on text")
        path = find_vocabulary(self.folder, self.bert_vocab)
        tokenizer = bert_tokenizer(path)
        if tokenizer.size != self.vocab_size:
            raise ConfigError(
                f"{path}: has {tokenizer.size} tokens, this model was trained with "
                f"{self.vocab_size}: take the vocabulary of bert-base-uncased"
            )
        return tokenizer

    @property
    def pad(self) -> int:
        """The token that fills up a text."""
        return self.tokenizer.pad

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, list[str]]:
        """Texts -> hidden states [B, max_length, n_embed], and what was cut off each, or ""."""
        rows, cut = self.tokenizer.batch(texts, self.pad, self.max_length)
        return self.hidden(rows), cut

    def hidden(self, rows: Sequence[Sequence[int]], clip_skip: int | None = None) -> Tensor:
        """Token ids [N][L] -> hidden states [N,L,n_embed]; raises JobError for a `clip_skip`."""
        if clip_skip is not None:
            raise JobError("--clip-skip: this model's text encoder is not CLIP; omit it")
        out: Tensor = self(torch.tensor(rows, device=self.transformer.norm.weight.device))
        return out

    def read(
        self, rows: Sequence[Sequence[int]], clip_skip: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As `hidden`; there is no pooled state."""
        return self.hidden(rows, clip_skip), None

    def forward(self, ids: Tensor) -> Tensor:
        """Token ids [B, max_length at most] -> hidden states [B, L, n_embed]."""
        out: Tensor = self.transformer(ids)
        return out

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text for which there are no tokens."""
        return self.tokenizer.unknown_words(text) if self.use_tokenizer else []


IMAGENET_CLASSES = 1000


class ClassEmbedder(nn.Module):
    """The conditioner of class models: a row of a table for each class.

    The last class stands for none, but for a table of just ImageNet's 1000, which has none
    (`get_unconditional_conditioning` of Stability's ddpm.py; cin256-v2 has 1001 rows).
    """

    def __init__(self, embed_dim: int, n_classes: int = IMAGENET_CLASSES) -> None:
        super().__init__()
        self.n_classes = n_classes
        self.unconditional = None if n_classes == IMAGENET_CLASSES else n_classes - 1
        self.embedding = nn.Embedding(n_classes, embed_dim)

    def encode(self, texts: Sequence[str]) -> tuple[Tensor, list[str]]:
        """Class numbers as texts, "" for no class -> [B, 1, embed_dim], and "" for each.

        Raises JobError for what is no class of this model.
        """
        classes = [self._class(text) for text in texts]
        ids = torch.tensor(classes, device=self.embedding.weight.device)
        return self.embedding(ids)[:, None], [""] * len(texts)

    def _class(self, text: str) -> int:
        name = text.strip()
        if not name and self.unconditional is not None:
            return self.unconditional
        if not name:
            raise JobError(
                "this model was not trained without a class, so guidance has nothing to go by: "
                "use --scale 1"
            )
        if not (name.isdecimal() and int(name) < self.n_classes):
            raise JobError(f"class {name!r}: this model has the classes 0 to {self.n_classes - 1}")
        return int(name)

    def unknown_words(self, text: str) -> list[str]:
        """Always []: a wrong class is an error."""
        return []
