"""How prompts become what a text encoder says of them: chunks, weights, and the layer to take.

docs/prompts.md defines all of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.conditioning import BERTEmbedder, FrozenCLIPEmbedder, FrozenOpenCLIPEmbedder
from ldm.text.chunks import Chunked, Token, chunked, rows
from ldm.text.prompt import parse

Reader = FrozenCLIPEmbedder | FrozenOpenCLIPEmbedder | BERTEmbedder
"""An embedder that reads texts as tokens."""
READERS = (FrozenCLIPEmbedder, FrozenOpenCLIPEmbedder, BERTEmbedder)


@dataclass(frozen=True)
class Wording:
    """How prompts are meant: `syntax` is "weights" or "plain" (each character as it is, and what
    is too long cut off); `clip_skip` is the layer of the encoder to take, 1 the last."""

    syntax: str = "plain"
    clip_skip: int | None = None

    def bare(self, text: str) -> str:
        """A prompt without its marks."""
        return " ".join(piece.text for part in parse(text, self.syntax) for piece in part)


PLAIN = Wording()
_LEAST_RATIO = 0.01


def encode(
    embedder: Reader, texts: Sequence[str], wording: Wording = PLAIN, beside: Sequence[str] = ()
) -> tuple[Tensor, Tensor | None, list[str]]:
    """Prompts -> hidden states [B,L,D], their pooled state [B,D] where the embedder hands one on,
    and for each what was cut off its end, or "".

    Each chunk is encoded on its own, and a prompt's chunks follow each other in L. With `beside`,
    the prompts of the other side of the guidance, each row gets as many chunks as the longer of
    its two prompts has, the last ones empty; so both sides have one L. Rows of different lengths
    are repeated to their least common multiple, which attention does not see: a picture does not
    depend on its neighbours' prompts. The pooled state is that of the first chunk, unweighted.
    """
    found = [_chunked(embedder, text, wording) for text in texts]
    others = [_chunked(embedder, text, wording) for text in beside] or found
    counts = [max(len(a.chunks), len(b.chunks)) for a, b in zip(found, others, strict=True)]
    chunks: list[list[Token]] = []
    for one, count in zip(found, counts, strict=True):
        chunks += one.filled(count)
    ids, weights = rows(chunks, embedder.tokenizer, embedder.pad, embedder.max_length)
    states = embedder.hidden(ids, wording.clip_skip)
    hidden = weighted(states, torch.tensor(weights, device=states.device))
    pooled = None
    if isinstance(embedder, FrozenCLIPEmbedder) and embedder.pooled:
        pooled = torch.stack([each[0, -1] for each in torch.split(states, counts)])
    common = math.lcm(*counts)
    parts = [each.flatten(0, 1) for each in torch.split(hidden, counts)]
    repeated = [part.repeat(common // count, 1) for part, count in zip(parts, counts, strict=True)]
    return torch.stack(repeated), pooled, [one.cut for one in found]


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


def _chunked(embedder: Reader, text: str, wording: Wording) -> Chunked:
    room = embedder.max_length - 2
    return chunked(text, embedder.tokenizer, room, wording.syntax)
