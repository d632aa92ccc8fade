"""The text transformer of latent diffusion's first text models, with the originals' key names.

It shares only its vocabulary with BERT: CompVis `BERTEmbedder` was trained from scratch with the
diffusion model. Source of the structure: CompVis `ldm/modules/x_transformer.py` (after
lucidrains/x-transformers).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.nn.attention import attention

_HEADS, _DIM_HEAD = 8, 64


class _SelfAttention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        inner = _HEADS * _DIM_HEAD
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_k = nn.Linear(dim, inner, bias=False)
        self.to_v = nn.Linear(dim, inner, bias=False)
        self.to_out = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.to_out(attention(self.to_q(x), self.to_k(x), self.to_v(x), _HEADS))
        return out


class _FeedForward(nn.Module):
    """Four times the width with an exact GELU. The middle entry keeps the originals' numbering."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        widen = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU())
        self.net = nn.Sequential(widen, nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out


class _Layers(nn.Module):
    """Attention and feed-forward in turn, each pre-normed and residual, as pairs (norm, block)."""

    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for _ in range(depth):
            for block in (_SelfAttention(dim), _FeedForward(dim)):
                self.layers.append(nn.ModuleList([nn.LayerNorm(dim), block]))

    def forward(self, x: Tensor) -> Tensor:
        for pair in self.layers:
            norm, block = pair.children()
            x = x + block(norm(x))
        return x


class _Positions(nn.Module):
    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(length, dim)


class TransformerWrapper(nn.Module):
    """Token ids [B,L], L up to `max_seq_len` -> hidden states [B,L,dim] after the final norm.

    Every token attends to every other, padding included. `to_logits` is in the checkpoints, unused.
    """

    def __init__(self, num_tokens: int, max_seq_len: int, dim: int, depth: int) -> None:
        super().__init__()
        self.token_emb = nn.Embedding(num_tokens, dim)
        self.pos_emb = _Positions(max_seq_len, dim)
        self.attn_layers = _Layers(dim, depth)
        self.norm = nn.LayerNorm(dim)
        self.to_logits = nn.Linear(dim, num_tokens)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        x = self.token_emb(ids) + F.embedding(places, self.pos_emb.emb.weight)
        out: Tensor = self.norm(self.attn_layers(x))
        return out
