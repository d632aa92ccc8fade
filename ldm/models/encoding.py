"""How prompts become what a text encoder says of them: chunks, weights, and the layer to take.

docs/prompts.md defines all of it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ldm.models.clip_tower import CLIPTower
from ldm.models.conditioning import (
    BERTEmbedder,
    FrozenCLIPEmbedder,
    FrozenOpenCLIPEmbedder,
)
from ldm.text.chunks import Chunked, Token, chunked, rows
from ldm.text.comfy import parse_comfy
from ldm.text.prompt import parse

Reader = FrozenCLIPEmbedder | FrozenOpenCLIPEmbedder | BERTEmbedder | CLIPTower
"""An embedder that reads texts as tokens."""
READERS = (FrozenCLIPEmbedder, FrozenOpenCLIPEmbedder, BERTEmbedder, CLIPTower)


@dataclass(frozen=True)
class PromptEncoding:
    """How prompts are meant: `syntax` is "weights" or "plain" (each character as it is, and what
    is too long cut off); `clip_skip` is the layer of the encoder to take, 1 the last; `t5_length`
    the number of T5's tokens."""

    syntax: str = "plain"
    clip_skip: int | None = None
    t5_length: int | None = None

    def bare(self, text: str) -> str:
        """A prompt without its marks."""
        if self.syntax == "comfy":
            return " ".join(piece.text for piece in parse_comfy(text))
        return " ".join(piece.text for part in parse(text, self.syntax) for piece in part)


PLAIN = PromptEncoding()
_LEAST_RATIO = 0.01


Key = tuple[int, str, int, PromptEncoding, torch.dtype]
Encoded = tuple[Tensor, Tensor | None]
Lengths = tuple[list[int], list[int]]
"""The number of chunks of each prompt, and of each on the other side of the guidance."""


class Memory:
    """What the last texts came to, so that each is encoded once; it keeps `most` of them."""

    def __init__(self, most: int = 128) -> None:
        self.most = most
        self.kept: OrderedDict[Key, list[Encoded]] = OrderedDict()

    def recall(self, key: Key, make: Callable[[], list[Encoded]]) -> list[Encoded]:
        """The cached value of a key; makes it if it is missing."""
        if key not in self.kept:
            self.kept[key] = make()
        self.kept.move_to_end(key)
        encoded = self.kept[key]
        while len(self.kept) > self.most:
            self.kept.popitem(last=False)
        return encoded


def chunk_counts(
    embedder: Reader, texts: Sequence[str], encoding: PromptEncoding, beside: Sequence[str] = ()
) -> Lengths:
    """How many chunks prompts have, and those `beside` them, by default the same."""
    counts = [len(_chunked(embedder, text, encoding).chunks) for text in texts]
    return counts, [len(_chunked(embedder, text, encoding).chunks) for text in beside] or counts


def encode(
    embedder: Reader,
    texts: Sequence[str],
    encoding: PromptEncoding = PLAIN,
    beside: Sequence[str] = (),
    memory: Memory | None = None,
    *,
    place: int = 0,
    least: Lengths | None = None,
) -> tuple[Tensor, Tensor | None, list[str]]:
    """Prompts -> hidden states [B,L,D], their pooled state [B,D] where the embedder hands one on,
    and for each what was cut off its end, or "".

    An embedder beside others has a `place` among them, and its prompts get as many chunks as
    `least` says, so that all embedders have one L.

    Each chunk is encoded on its own, and a prompt's chunks follow each other in L. With a `memory`
    a prompt is encoded once, alone, and what it came to is kept for the next time. With `beside`,
    the prompts of the other side of the guidance, each row gets as many chunks as the longer of
    its two prompts has, the last ones empty; so both sides have one L. Rows of different lengths
    are repeated to their least common multiple, which attention does not see: an image does not
    depend on its neighbours' prompts. The pooled state is that of the first chunk, unweighted.
    """
    found = [_chunked(embedder, text, encoding) for text in texts]
    own, other = least or chunk_counts(embedder, texts, encoding, beside)
    counts = [max(pair) for pair in zip(own, other, strict=True)]
    lengths = counts
    if encoding.syntax == "comfy":  # which repeats both sides instead of filling one up
        counts, lengths = own, [*own, *other]
    if memory is None:
        encoded = _encoded(embedder, found, counts, encoding)
    else:
        encoded, dtype = [], next(embedder.parameters()).dtype
        for text, one, count in zip(texts, found, counts, strict=True):
            make = partial(_encoded, embedder, [one], [count], encoding)
            encoded += memory.recall((place, text, count, encoding, dtype), make)
    common = math.lcm(*lengths)
    hidden = [states.repeat(common // n, 1) for (states, _), n in zip(encoded, counts, strict=True)]
    pooled = [vector for _, vector in encoded if vector is not None]
    return torch.stack(hidden), torch.stack(pooled) if pooled else None, [x.cut for x in found]


def _encoded(
    embedder: Reader, found: Sequence[Chunked], counts: Sequence[int], encoding: PromptEncoding
) -> list[Encoded]:
    """Hidden states [L,D] and pooled state [D], if any, of prompts in so many chunks each."""
    chunks: list[list[Token]] = []
    for one, count in zip(found, counts, strict=True):
        chunks += one.filled(count)
    ids, weights = rows(chunks, embedder.tokenizer, embedder.pad, embedder.max_length)
    states, pooled = embedder.read(ids, encoding.clip_skip)
    factors = torch.tensor(weights, device=states.device)
    if encoding.syntax == "comfy":
        empty, _ = rows([[]], embedder.tokenizer, embedder.pad, embedder.max_length)
        hidden = interpolated(states, embedder.hidden(empty, encoding.clip_skip), factors)
    else:
        hidden = weighted(states, factors)
    whole = [own.flatten(0, 1) for own in torch.split(hidden, list(counts))]
    if pooled is None:
        return [(own, None) for own in whole]
    firsts = [own[0] for own in torch.split(pooled, list(counts))]
    return list(zip(whole, firsts, strict=True))


def weighted(hidden: Tensor, weights: Tensor) -> Tensor:
    """Hidden states z [N,L,D] of chunks times the weights w [N,L] of their tokens: w_l z_l / m.

    Dividing by m = mean(w z) / mean(z), over L and D, gives each chunk its mean back. Where all
    weights are 1, nothing changes to the bit. Source: AUTOMATIC1111's web UI, emphasis "Original".

    Ours is that m stays between the least and the greatest weight, and is at least 0.01. It does by
    itself where the means of the tokens have one sign; where they cancel it could be anything.
    """
    plain = (weights == 1).all(dim=1)
    if bool(plain.all()):
        return hidden
    z = hidden.float()
    scaled = z * weights[..., None]
    ratio = scaled.mean(dim=(1, 2)) / z.mean(dim=(1, 2))
    least, most = weights.amin(dim=1).clamp(min=_LEAST_RATIO), weights.amax(dim=1)
    ratio = torch.where(ratio.isnan(), 1, ratio).clamp(least, most)
    changed = (scaled / ratio[:, None, None]).to(hidden.dtype)
    return torch.where(plain[:, None, None], hidden, changed)


def interpolated(hidden: Tensor, empty: Tensor, weights: Tensor) -> Tensor:
    """Hidden states z [N,L,D] between those of an empty prompt e [1,L,D] and themselves.

    e + w (z - e), as ComfyUI weighs a token; a weight of 1 changes nothing to the bit.
    """
    z, e = hidden.float(), empty.float()
    changed = (e + weights[..., None] * (z - e)).to(hidden.dtype)
    return torch.where((weights == 1)[..., None], hidden, changed)


def _chunked(embedder: Reader, text: str, encoding: PromptEncoding) -> Chunked:
    room = embedder.max_length - 2
    return chunked(text, embedder.tokenizer, room, encoding.syntax)
