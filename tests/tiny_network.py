"""A small network with random weights."""

from __future__ import annotations

import torch

from ldm.nn.unet import UNetConfig, UNetModel


def network() -> UNetModel:
    torch.manual_seed(0)
    net = UNetModel(
        UNetConfig(
            in_channels=4,
            model_channels=64,
            out_channels=4,
            num_res_blocks=1,
            attention_resolutions=(2,),
            channel_mult=(1, 2),
            num_head_channels=32,
            use_spatial_transformer=True,
            context_dim=128,
        )
    )
    with torch.no_grad():
        for parameter in net.parameters():  # what training begins with is zero in places
            parameter.normal_(0, 0.05)
    return net.requires_grad_(False).eval()
