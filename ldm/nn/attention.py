"""Attention, its interchangeable kernels, and the transformer block of the latent diffusion UNet.

Attribute names are the keys of the original checkpoints (CompVis `ldm/modules/attention.py`).
"""

from __future__ import annotations

import contextlib
import contextvars
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import UsageError

BACKENDS = ("auto", "sdpa", "xformers", "sliced", "math")
# Queries per slice of the "sliced" kernel: bounds the score matrix to this many rows.
SLICE_ROWS = 1024
# The same for `_in_bf16`, and the number of keys from which it beats a fused kernel.
_BF16_ROWS = 512
_BF16_KEYS = 1024
# Tokens per slice of a feed-forward on the CPU: the eight times wider result stays in the cache.
_TOKENS = 1024


@dataclass(frozen=True)
class AttentionPolicy:
    """The kernel for softmax(q k^T) v, and whether q and k are converted to float32 for it.

    `rounded` allows "auto" to use a bf16 kernel where that is faster.
    """

    backend: str = "auto"
    upcast: bool = False
    rounded: bool = False


_DEFAULT = AttentionPolicy()
_policy: contextvars.ContextVar[AttentionPolicy] = contextvars.ContextVar(
    "attention_policy", default=_DEFAULT
)


@contextlib.contextmanager
def attention_backend(
    backend: str = "auto", *, upcast: bool = False, rounded: bool = False
) -> Iterator[None]:
    """Choose the attention kernel for the networks that run inside this context.

    `upcast` corresponds to `ATTN_PRECISION=fp32` in the original v2 code: scores in float32; it
    overrides `rounded`, which allows bf16 for the slowest products on a CPU.
    Raises UsageError for an unknown kernel, or for xformers when it is not installed.
    """
    if backend not in BACKENDS:
        raise UsageError(f"attention {backend!r} is not known: choose one of {', '.join(BACKENDS)}")
    if backend == "xformers" and importlib.util.find_spec("xformers") is None:
        raise UsageError(
            "--attention xformers: the package is not installed: "
            "pip install xformers, or use --attention sdpa"
        )
    token = _policy.set(AttentionPolicy(backend, upcast, rounded and not upcast))
    try:
        yield
    finally:
        _policy.reset(token)


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head scaled dot-product attention, scale 1/sqrt(width of a head).

    q [B, N, heads*d], k and v [B, M, heads*d] -> [B, N, heads*d] in the dtype of v.
    """
    policy = _policy.get()
    dtype = v.dtype
    if policy.upcast:
        q, k, v = q.float(), k.float(), v.float()
    if policy.backend == "xformers":
        return _xformers(q, k, v, heads).to(dtype)
    q, k, v = (_by_head(x, heads).transpose(1, 2) for x in (q, k, v))
    if policy.backend == "sliced":
        slices = torch.split(q, SLICE_ROWS, dim=2)
        parts = [F.scaled_dot_product_attention(rows, k, v) for rows in slices]
        out = torch.cat(parts, dim=2)
    elif policy.backend == "math":
        scores = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        out = scores.softmax(dim=-1) @ v
    elif policy.backend == "auto" and policy.rounded and k.shape[2] >= _BF16_KEYS:
        out = _in_bf16(q, k, v)
    else:
        out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).flatten(-2).to(dtype)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """[B, N, heads*d] -> [B, N, heads, d].

    Contiguous: fused kernels reject a feature map's transpose, and torch would then fall back to
    a kernel that stores all N*M scores.
    """
    return x.contiguous().view(*x.shape[:-1], heads, -1)


def _in_bf16(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [B, heads, N, d], k and v [B, heads, M, d] -> [B, heads, N, d], bf16.

    For CPUs, whose fused kernel gains nothing from this precision, because its products are small.
    Here a slice of the scores stays in the cache. The last product is faster transposed.
    """
    q = q * q.shape[-1] ** -0.5
    q, k, v = (x.to(torch.bfloat16, memory_format=torch.contiguous_format) for x in (q, k, v))
    out = torch.empty_like(q)
    room = q.new_empty((2, min(_BF16_ROWS, q.shape[2]), k.shape[2]))
    heads = ([head for image in x for head in image] for x in (q, k, v, out))
    for queries, keys, values, results in zip(*heads, strict=True):
        columns = values.t().contiguous()
        for rows, result in zip(queries.split(_BF16_ROWS), results.split(_BF16_ROWS), strict=True):
            scores, shares = room[:, : len(rows)]
            torch.mm(rows, keys.t(), out=scores)
            torch.softmax(scores, -1, out=shares)
            result.copy_(torch.mm(columns, shares.t()).t())
    return out


def _xformers(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    from xformers.ops import memory_efficient_attention

    q, k, v = (_by_head(x, heads) for x in (q, k, v))
    out: Tensor = memory_efficient_attention(q, k, v)
    return out.flatten(-2)


class CrossAttention(nn.Module):
    """Attention of tokens to a context, or to themselves without one.

    x [B, N, query_dim], context [B, M, context_dim] -> [B, N, query_dim].
    """

    def __init__(self, query_dim: int, context_dim: int | None, heads: int, dim_head: int) -> None:
        super().__init__()
        inner = heads * dim_head
        context_dim = query_dim if context_dim is None else context_dim
        self.heads = heads
        self.to_q = nn.Linear(query_dim, inner, bias=False)
        self.to_k = nn.Linear(context_dim, inner, bias=False)
        self.to_v = nn.Linear(context_dim, inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, query_dim))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        out: Tensor = self.to_out(attention(q, k, v, self.heads))
        return out


class GEGLU(nn.Module):
    """Gated linear unit with an exact GELU gate (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_in, dim_out * 2)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        out: Tensor = value * F.gelu(gate)
        return out


class FeedForward(nn.Module):
    """GEGLU to four times the width, and back. The middle entry keeps the originals' numbering."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, dim * 4), nn.Identity(), nn.Linear(dim * 4, dim))

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or torch.is_grad_enabled():
            whole: Tensor = self.net(x)
            return whole
        parts = torch.split(x.flatten(0, -2), _TOKENS)
        return torch.cat([self.net(part) for part in parts]).view(x.shape)


class BasicTransformerBlock(nn.Module):
    """Self attention, attention to the context, feed-forward; each pre-normed and residual.

    With `disable_self_attn`, the first attention attends to the context as well (x4 upscaler).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        dim_head: int,
        context_dim: int | None,
        disable_self_attn: bool = False,
    ) -> None:
        super().__init__()
        self.disable_self_attn = disable_self_attn
        self.attn1 = CrossAttention(
            dim, context_dim if disable_self_attn else None, heads, dim_head
        )
        self.ff = FeedForward(dim)
        self.attn2 = CrossAttention(dim, context_dim, heads, dim_head)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        x = x + self.attn1(self.norm1(x), context if self.disable_self_attn else None)
        x = x + self.attn2(self.norm2(x), context)
        out: Tensor = x + self.ff(self.norm3(x))
        return out


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map, residual.

    x [B, C, h, w], context [B, L, D] -> [B, C, h, w]. `use_linear` projects tokens with a linear
    layer (v2) instead of a 1x1 convolution (v1): the same arithmetic, another weight shape.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        dim_head: int,
        depth: int,
        context_dim: int | None,
        disable_self_attn: bool = False,
        use_linear: bool = False,
        num_groups: int = 32,
    ) -> None:
        super().__init__()
        inner = heads * dim_head
        self.use_linear = use_linear
        self.norm = nn.GroupNorm(num_groups, channels, eps=1e-6)
        self.proj_in: nn.Module
        self.proj_out: nn.Module
        if use_linear:
            self.proj_in, self.proj_out = nn.Linear(channels, inner), nn.Linear(inner, channels)
        else:
            self.proj_in, self.proj_out = (
                nn.Conv2d(channels, inner, 1),
                nn.Conv2d(inner, channels, 1),
            )
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(inner, heads, dim_head, context_dim, disable_self_attn)
            for _ in range(depth)
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        height, width = x.shape[-2:]
        hidden = self.norm(x)
        if not self.use_linear:
            hidden = self.proj_in(hidden)
        hidden = hidden.flatten(2).transpose(1, 2)
        if self.use_linear:
            hidden = self.proj_in(hidden)
        for block in self.transformer_blocks:
            hidden = block(hidden, context)
        if self.use_linear:
            hidden = self.proj_out(hidden)
        hidden = hidden.transpose(1, 2).reshape(*hidden.shape[::2], height, width)
        if not self.use_linear:
            hidden = self.proj_out(hidden)
        out: Tensor = hidden + x
        return out
