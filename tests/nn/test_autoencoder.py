"""The autoencoder agrees with the original's, and its posterior is a Gaussian."""

from __future__ import annotations

import pytest
import torch
import torch.nn.attention

from ldm.checkpoints.config import read_config
from ldm.nn.autoencoder import AttnBlock, AutoencoderKL, DiagonalGaussian
from tests.golden_data import GOLDEN, tensors

# Outputs are of order 1; 5e-6 was the largest difference seen.
TOLERANCE = 1e-5


@pytest.mark.parametrize("name", ["vae-kl-f8", "vae-kl-f4"])
@torch.inference_mode()
def test_it_gives_the_originals_output(name: str) -> None:
    params = read_config(GOLDEN / "modules" / name / "config.yaml").tree["params"]
    model = AutoencoderKL(params["ddconfig"], params["embed_dim"])
    model.load_state_dict(tensors(f"modules/{name}/weights.safetensors"))
    inputs = tensors(f"modules/{name}/inputs.safetensors")
    expected = tensors(f"modules/{name}/outputs.safetensors")
    posterior = model.encode(inputs["x"])
    found = {
        "moments": model.moments(inputs["x"]),
        "mode": posterior.mode(),
        "sample": posterior.sample(inputs["noise"]),
        "decoded": model.decode(inputs["z"]),
    }
    assert found.keys() == expected.keys()
    for key, values in found.items():
        assert (values - expected[key]).abs().max() < TOLERANCE, key


def test_the_log_variance_is_bounded() -> None:
    posterior = DiagonalGaussian.from_moments(torch.tensor([0.0, 99.0]).view(1, 2, 1, 1))
    assert posterior.logvar.item() == 20.0


def test_the_divergence_is_that_of_torch() -> None:
    mean, logvar = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
    ours = DiagonalGaussian(mean, logvar).kl()
    normal = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    theirs = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(ours, theirs.flatten(1).sum(dim=1))


def test_groups_of_the_norms_can_be_set() -> None:
    ddconfig = {
        "ch": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [], "in_channels": 3,
        "out_ch": 3, "resolution": 16, "z_channels": 4, "double_z": True, "num_groups": 4,
    }  # fmt: skip
    model = AutoencoderKL(ddconfig, 4)
    assert model.encoder.norm_out.num_groups == 4
    assert model.decode(model.encode(torch.zeros(1, 3, 16, 16)).mode()).shape == (1, 3, 16, 16)


def test_a_single_z_is_refused() -> None:
    with pytest.raises(ValueError, match="double_z"):
        AutoencoderKL(
            {
                "double_z": False, "ch": 32, "ch_mult": [1], "num_res_blocks": 1,
                "attn_resolutions": [], "in_channels": 3, "out_ch": 3, "resolution": 8,
                "z_channels": 4,
            },
            4,
        )  # fmt: skip


@torch.inference_mode()
def test_attention_is_left_to_a_fused_kernel() -> None:
    # The one that holds all scores takes memory that grows with the square of the pixels.
    block = AttnBlock(32)
    with torch.nn.attention.sdpa_kernel([torch.nn.attention.SDPBackend.FLASH_ATTENTION]):
        assert block(torch.randn(1, 32, 8, 8)).shape == (1, 32, 8, 8)
