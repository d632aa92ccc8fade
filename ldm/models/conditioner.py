"""Embedders side by side: the conditioner of SDXL, from texts and from numbers.

Class names are those of the original YAMLs (generative-models, `sgm/modules/encoders/modules.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ldm.errors import ConfigError
from ldm.models.conditioning import Conditioning
from ldm.models.encoding import READERS, Lengths, Memory, PromptEncoding, chunk_counts, encode
from ldm.nn.layers import timestep_embedding

TEXT_KEY = "txt"
# The numbers that an embedder may take, and how many of each: (height, width), (top, left), one.
NUMBER_KEYS: Mapping[str, int] = {
    "original_size_as_tuple": 2,
    "crop_coords_top_left": 2,
    "target_size_as_tuple": 2,
    "aesthetic_score": 1,
}


@dataclass(frozen=True)
class Extras:
    """What conditions one side of the guidance besides a text for each row.

    `second` are the texts of the encoders after the first, for each row, and `second_beside` those
    of the other side; () for the same ones as the first. `numbers` go by their `input_key`. With
    `zeros` all that the texts came to is replaced by zeros.
    """

    second: tuple[str, ...] = ()
    second_beside: tuple[str, ...] = ()
    numbers: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    zeros: bool = False


NO_EXTRAS = Extras()


class ConcatTimestepEmbedderND(nn.Module):
    """Numbers [B,N] -> the sinusoidal embeddings of each, side by side [B,N*outdim]."""

    def __init__(self, outdim: int) -> None:
        super().__init__()
        self.outdim = outdim

    def forward(self, numbers: Tensor) -> Tensor:
        return timestep_embedding(numbers.flatten(), self.outdim).view(len(numbers), -1)


class GeneralConditioner(nn.Module):
    """An ordered list of embedders, each with the `input_key` of what it takes.

    Hidden states of texts lie side by side in `crossattn`; pooled states and the embeddings of
    numbers follow each other in `vector`.
    """

    def __init__(self, embedders: Iterable[nn.Module], keys: Sequence[str]) -> None:
        super().__init__()
        self.embedders = nn.ModuleList(embedders)
        self.keys = tuple(keys)
        for embedder, key in zip(self.embedders, keys, strict=True):
            if isinstance(embedder, READERS) != (key == TEXT_KEY):
                raise ConfigError(f"input_key {key!r} does not fit {type(embedder).__name__}")
        if TEXT_KEY not in self.keys:
            raise ConfigError(f"no embedder has the input_key {TEXT_KEY}")

    def condition(
        self,
        texts: Sequence[str],
        encoding: PromptEncoding,
        beside: Sequence[str] = (),
        memory: Memory | None = None,
        extras: Extras = NO_EXTRAS,
    ) -> tuple[Conditioning, list[str]]:
        """Embed texts and numbers; also what was cut off the end of each text, or "".

        See `Model.condition`.
        """
        pairs = self._texts(texts, beside, extras)
        least = self._lengths(pairs, encoding)
        hidden, vectors, cuts = [], [], [""] * len(texts)
        for place, (embedder, key) in enumerate(zip(self.embedders, self.keys, strict=True)):
            if isinstance(embedder, READERS):
                own, other = pairs[place]
                states, pooled, cut = encode(
                    embedder, own, encoding, other, memory, place=place, least=least
                )
                hidden.append(states)
                cuts = [one or two for one, two in zip(cuts, cut, strict=True)]
                if pooled is not None:
                    vectors.append(torch.zeros_like(pooled) if extras.zeros else pooled)
            else:
                numbers = torch.tensor(extras.numbers[key], device=hidden[0].device)
                embedded: Tensor = embedder(numbers.expand(len(texts), -1))
                vectors.append(embedded.to(hidden[0].dtype))
        crossattn = torch.cat(hidden, dim=-1)
        crossattn = torch.zeros_like(crossattn) if extras.zeros else crossattn
        return Conditioning(crossattn, torch.cat(vectors, dim=-1) if vectors else None), cuts

    def unknown_words(self, text: str) -> list[str]:
        """Always []: the vocabularies are whole."""
        return []

    def _texts(
        self, texts: Sequence[str], beside: Sequence[str], extras: Extras
    ) -> dict[int, tuple[Sequence[str], Sequence[str]]]:
        """What each reader reads, by its place, and the texts of the other side."""
        places = [place for place, key in enumerate(self.keys) if key == TEXT_KEY]
        second = (extras.second or texts, extras.second_beside or beside)
        return {place: second if place else (texts, beside) for place in places}

    def _lengths(
        self,
        pairs: Mapping[int, tuple[Sequence[str], Sequence[str]]],
        encoding: PromptEncoding,
    ) -> Lengths:
        """The most chunks that any reader has of a row, on this side and on the other."""
        counts = []
        for place, (own, other) in pairs.items():
            embedder = self.embedders[place]
            assert isinstance(embedder, READERS)
            counts.append(chunk_counts(embedder, own, encoding, other))
        own_counts, other_counts = zip(*counts, strict=True)
        own_most = [max(row) for row in zip(*own_counts, strict=True)]
        return own_most, [max(row) for row in zip(*other_counts, strict=True)]
