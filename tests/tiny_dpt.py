"""A DPT-hybrid of small sizes with random weights."""

from __future__ import annotations

import torch

from ldm.nn.dpt import DPTSizes, MiDaSInference

TINY_DPT = DPTSizes(
    stem=32,
    stages=((128, 1), (128, 2), (256, 1)),
    width=32,
    heads=2,
    layers=5,
    taps=(2, 4),
    grid=4,
    features=16,
    classes=10,
)


@torch.no_grad()
def tiny_dpt(seed: int = 0) -> MiDaSInference:
    """The network, each layer contributing.

    The ResNet's convolutions and the tokens of the first block are small, so that the epsilons of
    their normalisations matter.
    """
    torch.manual_seed(seed)
    network = MiDaSInference(TINY_DPT)
    for key, own in network.named_parameters():
        if ".backbone." in key and own.ndim == 4:
            own.normal_(0, 1e-3)
        elif "patch_embed.proj" in key or key.endswith(("cls_token", "pos_embed")):
            own.normal_(0, 3e-4)
        elif "norm" in key and key.endswith("weight"):
            own.normal_(1, 0.2)
        else:
            own.normal_(0, 0.15)
    network.model.scratch.get_parameter("output_conv.4.bias").fill_(5.0)
    return network.requires_grad_(False).eval()
