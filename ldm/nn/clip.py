"""CLIP towers: the text encoders of v1, v2 and SDXL, and the image encoder of v2.

Two key layouts for the same arithmetic: transformers' (v1 checkpoints) and open_clip's (v2).
Radford et al. 2021 (arXiv 2103.00020).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.nn.clip_sizes import OpenClipConfig, TextConfig


def activate(x: Tensor, name: str) -> Tensor:
    """`gelu` is exact; `quick_gelu` is the sigmoid approximation that OpenAI trained with."""
    return x * torch.sigmoid(1.702 * x) if name == "quick_gelu" else F.gelu(x)


def _attention(q: Tensor, k: Tensor, v: Tensor, heads: int, causal: bool) -> Tensor:
    q, k, v = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return out.transpose(1, 2).flatten(-2)


# --- transformers' layout -----------------------------------------------------------------------


class _SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        out: Tensor = self.out_proj(_attention(q, k, v, self.heads, causal=True))
        return out


class _Mlp(nn.Module):
    def __init__(self, width: int, inner: int, act: str) -> None:
        super().__init__()
        self.act = act
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(activate(self.fc1(x), self.act))
        return out


class _EncoderLayer(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.self_attn = _SelfAttention(width, config.num_attention_heads)
        self.layer_norm1 = nn.LayerNorm(width, eps=eps)
        self.mlp = _Mlp(width, config.intermediate_size, config.hidden_act)
        self.layer_norm2 = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        out: Tensor = x + self.mlp(self.layer_norm2(x))
        return out


class _Encoder(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_EncoderLayer(config) for _ in range(config.num_hidden_layers))


class _Embeddings(nn.Module):
    position_ids: Tensor

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        # In every released checkpoint, but unused.
        # On the CPU, because torch would import sympy for them on meta.
        positions = torch.arange(config.max_position_embeddings, device="cpu")
        self.register_buffer("position_ids", positions[None])

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]
        return out


class _TextModel(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        self.encoder = _Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class CLIPTextTransformer(nn.Module):
    """The text tower of v1. ids [B, L] -> hidden states [B, L, hidden_size].

    `forward` returns the last layer after the final norm; `hidden_states` all layers before the
    norm, starting with the embeddings. With `projects` there is a projection of pooled states.
    """

    def __init__(self, config: TextConfig, projects: bool = False) -> None:
        super().__init__()
        self.config = config
        self.text_model = _TextModel(config)
        if projects:
            self.text_projection = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def hidden_states(self, ids: Tensor) -> list[Tensor]:
        states = [self.text_model.embeddings(ids)]
        for layer in self.text_model.encoder.layers:
            states.append(layer(states[-1]))
        return states

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.text_model.final_layer_norm(self.hidden_states(ids)[-1])
        return out


# --- open_clip's layout -------------------------------------------------------------------------


class _JointAttention(nn.Module):
    """Attention with one matrix for q, k and v, as torch's MultiheadAttention names it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        if not self.in_proj_weight.is_meta:
            nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        out: Tensor = self.out_proj(_attention(q, k, v, self.heads, causal))
        return out


class _OpenMlp(nn.Module):
    def __init__(self, width: int, ratio: float, act: str) -> None:
        super().__init__()
        self.act = act
        self.c_fc = nn.Linear(width, int(width * ratio))
        self.c_proj = nn.Linear(int(width * ratio), width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c_proj(activate(self.c_fc(x), self.act))
        return out


class _ResidualBlock(nn.Module):
    def __init__(self, width: int, heads: int, ratio: float, act: str) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = _JointAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = _OpenMlp(width, ratio, act)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        x = x + self.attn(self.ln_1(x), causal)
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class _Transformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, ratio: float, act: str) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(
            _ResidualBlock(width, heads, ratio, act) for _ in range(layers)
        )


def _random(*shape: int, std: float) -> nn.Parameter:
    """A normally distributed parameter, by `nn.init`, which `outline` skips."""
    return nn.Parameter(nn.init.normal_(torch.empty(shape), std=std))


class OpenCLIPVisionTower(nn.Module):
    """Images [B, 3, S, S], already normalised, -> embeddings [B, embed_dim]."""

    def __init__(self, config: OpenClipConfig) -> None:
        super().__init__()
        vision, act = config.vision, "quick_gelu" if config.quick_gelu else "gelu"
        width, patches = vision.width, (vision.image_size // vision.patch_size) ** 2
        self.image_size = vision.image_size
        self.class_embedding = _random(width, std=width**-0.5)
        self.positional_embedding = _random(patches + 1, width, std=width**-0.5)
        self.proj = _random(width, config.embed_dim, std=width**-0.5)
        self.conv1 = nn.Conv2d(3, width, vision.patch_size, stride=vision.patch_size, bias=False)
        self.ln_pre = nn.LayerNorm(width)
        heads = width // vision.head_width
        self.transformer = _Transformer(width, vision.layers, heads, vision.mlp_ratio, act)
        self.ln_post = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], dim=1)
        x = self.ln_pre(x + self.positional_embedding)
        for block in self.transformer.resblocks:
            x = block(x, causal=False)
        out: Tensor = self.ln_post(x[:, 0]) @ self.proj
        return out


class OpenCLIP(nn.Module):
    """The parts of an open_clip model that a checkpoint holds.

    `text_layers` and `vision` select the towers: v2 has only the text tower, Stable unCLIP the
    vision tower (H) or both (L). Only SDXL uses the text projection; the other files have it, too.
    """

    def __init__(self, config: OpenClipConfig, *, text_layers: bool, vision: bool) -> None:
        super().__init__()
        text, act = config.text, "quick_gelu" if config.quick_gelu else "gelu"
        self.config = config
        self.positional_embedding = _random(text.context_length, text.width, std=0.01)
        self.text_projection = _random(text.width, config.embed_dim, std=text.width**-0.5)
        self.logit_scale = nn.Parameter(torch.empty(()).fill_(2.6592))
        if vision:
            self.visual = OpenCLIPVisionTower(config)
        if text_layers:
            self.transformer = _Transformer(
                text.width, text.layers, text.heads, text.mlp_ratio, act
            )
        self.token_embedding = nn.Embedding(text.vocab_size, text.width)
        self.ln_final = nn.LayerNorm(text.width)

    def encode_text(self, ids: Tensor, skip_last: int = 0) -> Tensor:
        """ids [B, L] -> [B, L, width], after all layers but the last `skip_last` and the norm."""
        out: Tensor = self.ln_final(self._through(ids, skip_last)[0])
        return out

    def encode_pooled(self, ids: Tensor, skip_last: int = 0) -> tuple[Tensor, Tensor]:
        """ids [B, L] -> [B, L, width] without the norm, and the pooled state [B, embed_dim].

        The first is after all layers but the last `skip_last`. The second is after all of them:
        the normed state at the end token, which has the highest id, projected.
        """
        hidden, rest = self._through(ids, skip_last)
        last = hidden
        for block in rest:
            last = block(last, causal=True)
        ends = last[torch.arange(len(ids), device=ids.device), ids.argmax(dim=-1)]
        pooled: Tensor = self.ln_final(ends) @ self.text_projection
        return hidden, pooled

    def _through(self, ids: Tensor, skip_last: int) -> tuple[Tensor, list[nn.Module]]:
        """The states after all layers but the last, and those layers."""
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        blocks = list(self.transformer.resblocks)
        count = len(blocks) - skip_last
        for block in blocks[:count]:
            x = block(x, causal=True)
        return x, blocks[count:]
