"""The text transformer against PyTorch's own encoder layers, and against plain sums."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.nn.bert import TransformerWrapper

HEADS = 8


def random(dim: int, depth: int) -> TransformerWrapper:
    model = TransformerWrapper(50, 12, dim, depth)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0, 0.05 if parameter.dim() > 1 else 0.5)
    return model.requires_grad_(False).eval()


def their_layer(state: dict[str, Tensor], index: int) -> nn.TransformerEncoderLayer:
    """PyTorch's pre-normed layer with the weights of an attention and a feed-forward."""
    a, f = f"attn_layers.layers.{2 * index}.", f"attn_layers.layers.{2 * index + 1}."
    projections = [state[f"{a}1.to_{name}.weight"] for name in "qkv"]
    theirs = nn.TransformerEncoderLayer(
        512, HEADS, 2048, 0.0, F.gelu, batch_first=True, norm_first=True
    )
    weights = {
        "self_attn.in_proj_weight": torch.cat(projections),
        "self_attn.in_proj_bias": torch.zeros(3 * 512),
        "self_attn.out_proj.weight": state[f"{a}1.to_out.weight"],
        "self_attn.out_proj.bias": state[f"{a}1.to_out.bias"],
    }
    for ours, name in ((f"{a}0", "norm1"), (f"{f}0", "norm2")):
        weights |= {f"{name}.{kind}": state[f"{ours}.{kind}"] for kind in ("weight", "bias")}
    for ours, name in ((f"{f}1.net.0.0", "linear1"), (f"{f}1.net.2", "linear2")):
        weights |= {f"{name}.{kind}": state[f"{ours}.{kind}"] for kind in ("weight", "bias")}
    theirs.load_state_dict(weights)
    return theirs.requires_grad_(False).eval()


def test_it_is_a_pre_normed_transformer() -> None:
    """At width 512, where eight heads of 64 are as wide as the model, as PyTorch's must be."""
    torch.manual_seed(0)
    model = random(512, 2)
    state = model.state_dict()
    ids = torch.randint(0, 50, (2, 12))
    x = state["token_emb.weight"][ids] + state["pos_emb.emb.weight"]
    for index in range(2):
        x = their_layer(state, index)(x)
    expected = F.layer_norm(x, (512,), state["norm.weight"], state["norm.bias"])
    torch.testing.assert_close(model(ids), expected, rtol=1e-4, atol=1e-4)


def test_heads_are_64_wide_whatever_the_width() -> None:
    torch.manual_seed(0)
    model = random(24, 1)
    state = model.state_dict()
    ids = torch.randint(0, 50, (1, 5))
    x = state["token_emb.weight"][ids[0]] + state["pos_emb.emb.weight"][:5]
    layer = "attn_layers.layers.0."
    normed = F.layer_norm(x, (24,), state[f"{layer}0.weight"], state[f"{layer}0.bias"])
    q, k, v = (
        (normed @ state[f"{layer}1.to_{name}.weight"].T).view(5, HEADS, 64) for name in "qkv"
    )
    scores = torch.einsum("ihd,jhd->hij", q, k) / 8
    seen = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).reshape(5, HEADS * 64)
    x = x + seen @ state[f"{layer}1.to_out.weight"].T + state[f"{layer}1.to_out.bias"]
    layer = "attn_layers.layers.1."
    normed = F.layer_norm(x, (24,), state[f"{layer}0.weight"], state[f"{layer}0.bias"])
    wide = F.gelu(normed @ state[f"{layer}1.net.0.0.weight"].T + state[f"{layer}1.net.0.0.bias"])
    x = x + wide @ state[f"{layer}1.net.2.weight"].T + state[f"{layer}1.net.2.bias"]
    expected = F.layer_norm(x, (24,), state["norm.weight"], state["norm.bias"])
    torch.testing.assert_close(model(ids)[0], expected, rtol=1e-4, atol=1e-5)


def test_every_token_counts_the_padding_too() -> None:
    model = random(24, 2)
    ids = torch.zeros(1, 6, dtype=torch.long)
    other = ids.clone()
    other[0, 5] = 1
    assert not torch.allclose(model(ids)[0, 0], model(other)[0, 0])
