"""An autoencoder is found in each layout of files, computes the same, and must fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ldm.checkpoints.weights.files import open_weights
from ldm.checkpoints.weights.header import read_header
from ldm.checkpoints.weights.vae_keys import autoencoder_keys, autoencoder_sources
from ldm.errors import CheckpointError
from ldm.nn.autoencoder import AutoencoderKL
from ldm.nn.vq import VQModelInterface

DDCONFIG: dict[str, Any] = {
    "double_z": True, "z_channels": 4, "resolution": 64, "in_channels": 3, "out_ch": 3, "ch": 32,
    "ch_mult": [1, 2, 2], "num_res_blocks": 1, "attn_resolutions": [16],
}  # fmt: skip
OLD_NAMES = {
    ".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn.",
}  # fmt: skip


def ours(**changes: Any) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL({**DDCONFIG, **changes}, changes.get("z_channels", 4)).eval()


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def saved(tensors: dict[str, Tensor], path: Path) -> Path:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return path


def sources(tensors: dict[str, Tensor], model: torch.nn.Module, folder: Path) -> dict[str, str]:
    header = read_header(saved(tensors, folder / "vae.safetensors"))
    return autoencoder_sources(header, shapes(model))


@pytest.mark.parametrize("names", ["new", "old", "old-conv"])
@torch.no_grad()
def test_the_same_images_as_diffusers(names: str, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(1)
    theirs = diffusers.AutoencoderKL(
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * 2 + ["AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 2,
    ).eval()
    for parameter in theirs.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    tensors = theirs.state_dict()
    if names != "new":
        for new, old in OLD_NAMES.items():
            tensors = {key.replace(new, old): value for key, value in tensors.items()}
        assert any(".proj_attn." in key for key in tensors)
    if names == "old-conv":
        tensors = {
            key: value[..., None, None] if ".attentions." in key and value.dim() == 2 else value
            for key, value in tensors.items()
        }
    model = ours()
    found = sources(tensors, model, tmp_path)
    assert sorted(found.values()) == sorted(tensors)
    weights = open_weights(read_header(tmp_path / "vae.safetensors"))
    model.load_state_dict(
        {key: weights[found[key]].view(own.shape) for key, own in model.state_dict().items()}
    )
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(1, 3, 32, 48, generator=generator) * 2 - 1
    z = torch.randn(1, 4, 8, 12, generator=generator)
    torch.testing.assert_close(
        model.encode(images).mean, theirs.encode(images).latent_dist.mean, atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(model.decode(z), theirs.decode(z).sample, atol=1e-4, rtol=1e-4)


def test_each_layout_of_the_originals(tmp_path: Path) -> None:
    model = ours()
    bare = model.state_dict()
    training = {
        "loss.discriminator.main.0.weight": torch.zeros(1),
        "model_ema.decay": torch.zeros(()),
    }
    assert sources({**bare, **training}, model, tmp_path) == {key: key for key in bare}
    whole = {f"first_stage_model.{key}": value for key, value in {**bare, **training}.items()}
    whole |= {"model.diffusion_model.out.2.bias": torch.zeros(4), "betas": torch.zeros(9)}
    assert sources(whole, model, tmp_path) == {key: f"first_stage_model.{key}" for key in bare}


def test_a_decoders_levels_are_counted_from_the_pixels() -> None:
    theirs = [f"decoder.up_blocks.{i}.resnets.0.conv1.weight" for i in range(4)]
    theirs += ["decoder.up_blocks.0.upsamplers.0.conv.bias", "encoder.conv_norm_out.bias"]
    assert list(autoencoder_keys(theirs)) == [
        *(f"decoder.up.{i}.block.0.conv1.weight" for i in (3, 2, 1, 0)),
        "decoder.up.3.upsample.conv.bias",
        "encoder.norm_out.bias",
    ]


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    model = ours()
    with pytest.raises(CheckpointError, match="latents of 16 channels, and the model has latents"):
        sources(ours(z_channels=16).state_dict(), model, tmp_path)
    with pytest.raises(CheckpointError, match="8 pixels per latent, and the model has 4 pixels"):
        sources(ours(ch_mult=[1, 2, 2, 2]).state_dict(), model, tmp_path)
    vq = VQModelInterface({**DDCONFIG, "double_z": False}, 4, 8)
    with pytest.raises(CheckpointError, match="has a codebook, and the model has no codebook"):
        sources(vq.state_dict(), model, tmp_path)
    with pytest.raises(CheckpointError, match="contains no known autoencoder"):
        sources({"model.diffusion_model.out.2.bias": torch.zeros(4)}, model, tmp_path)
    incomplete = dict(model.state_dict())
    del incomplete["encoder.mid.attn_1.q.weight"]
    with pytest.raises(CheckpointError, match=r"missing 1: encoder\.mid\.attn_1\.q\.weight"):
        sources(incomplete, model, tmp_path)
    with pytest.raises(CheckpointError, match=r"unexpected 1: encoder\.extra"):
        sources({**model.state_dict(), "encoder.extra": torch.zeros(1)}, model, tmp_path)
    with pytest.raises(CheckpointError, match=r"misshapen \d+"):
        sources(ours(ch=64).state_dict(), model, tmp_path)
