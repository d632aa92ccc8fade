"""The transformer of Stable Diffusion 3; tests/e2e/test_sd3.py compares whole runs."""

from __future__ import annotations

import pytest
import torch

from ldm.nn.mmdit import MMDiT, MMDiTConfig

CONFIG = MMDiTConfig(
    depth=3, hidden_size=32, num_heads=2, pos_embed_max_size=6, adm_in_channels=8, context_dim=12
)


@pytest.fixture(scope="module")
def network() -> MMDiT:
    torch.manual_seed(0)
    made = MMDiT(CONFIG).eval()
    with torch.no_grad():
        made.pos_embed.normal_()
    return made


def test_positions_are_the_middle_of_the_table(network: MMDiT) -> None:
    table = network.pos_embed.view(6, 6, 32)
    assert torch.equal(network.positions(2, 4)[0], table[2:4, 1:5].reshape(8, 32))
    with pytest.raises(ValueError, match="at most 12x12"):
        network.positions(7, 2)


@torch.inference_mode()
def test_sides_that_do_not_divide_and_layers_left_out(network: MMDiT) -> None:
    x, t = torch.randn(1, 16, 5, 8), torch.tensor([500.0])
    context, y = torch.randn(1, 4, 12), torch.randn(1, 8)
    out = network(x, t, context, y)
    assert out.shape == x.shape
    filled = network(torch.nn.functional.pad(x, (0, 0, 0, 1)), t, context, y)
    assert torch.allclose(out, filled[..., :5, :], atol=1e-6)
    assert not torch.allclose(out, network(x, t, context, y, skip_layers=(1,)))


def test_contradictory_sizes() -> None:
    with pytest.raises(ValueError, match="num_heads"):
        MMDiTConfig(2, 30, 4, 6, 8, 12)
    with pytest.raises(ValueError, match="qk_norm"):
        MMDiTConfig(2, 32, 4, 6, 8, 12, qk_norm="layer")
