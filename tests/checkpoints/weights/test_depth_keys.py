from __future__ import annotations

import torch

from ldm.checkpoints.weights.depth_keys import (
    depth_sources,
    left_over,
    may_be_absent,
    transformers_names,
)
from ldm.nn.dpt import DPTDepthModel
from tests.golden_keys import golden_shapes

CHECKPOINT = "depth_model.model."


def keys() -> list[str]:
    with torch.device("meta"):
        return list(DPTDepthModel().state_dict())


def test_each_key_has_a_name_in_transformers_but_the_classifier() -> None:
    nameless = {key for key in keys() if not transformers_names(key)}
    assert nameless == {"pretrained.model.head.weight", "pretrained.model.head.bias"}
    names = [name for key in keys() for name in transformers_names(key)]
    assert len(set(names)) == len(names)


def test_names_that_count_otherwise() -> None:
    assert transformers_names("scratch.refinenet4.resConfUnit2.conv1.bias") == (
        "neck.fusion_stage.layers.0.residual_layer2.convolution1.bias",
    )
    assert transformers_names("scratch.layer1_rn.weight") == ("neck.convs.0.weight",)
    assert transformers_names("pretrained.model.blocks.11.attn.qkv.bias") == (
        "dpt.encoder.layer.11.attention.attention.query.bias",
        "dpt.encoder.layer.11.attention.attention.key.bias",
        "dpt.encoder.layer.11.attention.attention.value.bias",
    )
    assert transformers_names("pretrained.model.blocks.0.attn.qkv.bias.more") == ()


def test_the_three_layouts_are_told_apart() -> None:
    ours = keys()
    one = "scratch.output_conv.0.bias"
    assert depth_sources(ours, ours)[one] == (one,)
    checkpoint = golden_shapes("sd-v2-midas")
    sources = depth_sources(ours, checkpoint)
    assert sources[one] == (CHECKPOINT + one,)
    assert {name for names in sources.values() for name in names} <= set(checkpoint)
    assert left_over(checkpoint, sources) == ()
    theirs = [name for key in ours for name in transformers_names(key)]
    assert depth_sources(ours, theirs)[one] == ("head.head.0.bias",)
    assert depth_sources(ours, ["model.diffusion_model.out.0.bias"]) == {}


def test_what_is_left_over() -> None:
    ours = keys()
    sources = depth_sources(ours, ours)
    assert left_over([*ours, "pretrained.more"], sources) == ("pretrained.more",)
    checkpoint = [CHECKPOINT + key for key in ours]
    sources = depth_sources(ours, checkpoint)
    found = left_over([*checkpoint, "betas", f"{CHECKPOINT}more"], sources)
    assert found == (f"{CHECKPOINT}more",)


def test_depth_does_not_depend_on_what_may_be_absent() -> None:
    """Their gradient is none at all; that of every other tensor is something."""
    from tests.tiny_dpt import tiny_dpt

    network = tiny_dpt().requires_grad_(True)
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    loss: torch.Tensor = network(images).sum()
    torch.autograd.backward(loss)
    unused = {key for key, own in network.model.named_parameters() if own.grad is None}
    assert unused == {key for key, _ in network.model.named_parameters() if may_be_absent(key)}
    assert len(unused) == 8
