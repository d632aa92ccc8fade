"""The depth network: the published checkpoint's keys, and other implementations' outputs."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from ldm.checkpoints.weights.depth_keys import transformers_names
from ldm.nn.dpt import DPTDepthModel, MiDaSInference
from tests.golden_keys import golden_shapes
from tests.tiny_dpt import TINY_DPT, tiny_dpt


def images(height: int, width: int, count: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(height + width)
    return torch.rand(count, 3, height, width, generator=generator) * 2 - 1


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Equal but for the round-off of another order of sums."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.std()


def test_keys_and_shapes() -> None:
    prefix = "depth_model."
    found = golden_shapes("sd-v2-midas").items()
    expected = {key.removeprefix(prefix): shape for key, shape in found if key.startswith(prefix)}
    assert len(expected) == 368
    with torch.device("meta"):
        model = MiDaSInference()
    assert {key: tuple(values.shape) for key, values in model.state_dict().items()} == expected


def test_depth_is_that_of_transformers() -> None:
    """At the size of the position table; transformers takes no oblong depth here."""
    dpt = pytest.importorskip("transformers.models.dpt")
    config = dpt.DPTConfig(
        is_hybrid=True,
        backbone_config={
            "model_type": "bit",
            "global_padding": "same",
            "layer_type": "bottleneck",
            "embedding_dynamic_padding": True,
            "embedding_size": TINY_DPT.stem,
            "hidden_sizes": [channels for channels, _ in TINY_DPT.stages],
            "depths": [count for _, count in TINY_DPT.stages],
            "out_features": ["stage1", "stage2", "stage3"],
        },
        hidden_size=TINY_DPT.width,
        intermediate_size=4 * TINY_DPT.width,
        num_hidden_layers=TINY_DPT.layers,
        num_attention_heads=TINY_DPT.heads,
        layer_norm_eps=1e-6,  # transformers' own default, 1e-12, is not the original's
        image_size=64,
        backbone_featmap_shape=[1, TINY_DPT.stages[-1][0], 4, 4],
        backbone_out_indices=[0, 1, *TINY_DPT.taps],
        neck_hidden_sizes=[128, 128, TINY_DPT.width, TINY_DPT.width],
        reassemble_factors=[1, 1, 1, 0.5],
        fusion_hidden_size=TINY_DPT.features,
    )
    theirs = dpt.DPTForDepthEstimation(config).eval()
    ours = tiny_dpt()
    state = {}
    for key, values in ours.model.state_dict().items():
        names = transformers_names(key)
        state.update(zip(names, values.chunk(len(names)), strict=True) if names else ())
    theirs.load_state_dict(state)  # strict: the table names each of its tensors
    x = images(64, 64, count=2)
    with torch.no_grad():
        expected = theirs(pixel_values=x).predicted_depth
    found = ours(x)[:, 0]
    assert_near(found, expected)


def test_tokens_are_those_of_timm() -> None:
    """timm's own ViT hybrid, which MiDaS takes apart, loads our keys as they are."""
    pytest.importorskip("timm")
    from timm.layers import StdConv2dSame
    from timm.models.resnetv2 import ResNetV2
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.vision_transformer_hybrid import HybridEmbed

    backbone = ResNetV2(
        layers=[count for _, count in TINY_DPT.stages],
        channels=[channels for channels, _ in TINY_DPT.stages],
        num_classes=0,
        global_pool="",
        preact=False,
        stem_type="same",
        stem_chs=TINY_DPT.stem,
        conv_layer=partial(StdConv2dSame, eps=1e-8),
    )
    theirs = VisionTransformer(
        img_size=64,
        patch_size=1,
        num_classes=TINY_DPT.classes,
        embed_dim=TINY_DPT.width,
        depth=TINY_DPT.layers,
        num_heads=TINY_DPT.heads,
        embed_layer=partial(HybridEmbed, backbone=backbone, proj=True),
    ).eval()
    ours = tiny_dpt().model.pretrained.model
    theirs.load_state_dict(ours.state_dict())
    x = images(64, 64)
    maps, tapped = ours(x)
    with torch.no_grad():
        expected = theirs.forward_intermediates(
            x,
            indices=list(TINY_DPT.taps),
            return_prefix_tokens=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        fine = theirs.patch_embed.backbone.stages[0](theirs.patch_embed.backbone.stem(x))
    assert_near(maps[0], fine)
    for tokens, (patches, first) in zip(tapped, expected, strict=True):
        assert_near(tokens, torch.cat([first, patches], dim=1))


def test_positions_follow_the_image() -> None:
    """A table that grows along its rows, seen at twice the height and half the width."""
    network = tiny_dpt().model.pretrained.model
    ramp = torch.arange(4.0).repeat_interleave(4)[None, :, None].expand(1, 16, TINY_DPT.width)
    network.pos_embed.data[:, 1:] = ramp
    table = network._positions(8, 2)
    assert torch.equal(table[:, :1], network.pos_embed[:, :1])
    rows = table[0, 1:, 0].reshape(8, 2)
    assert rows[:, 0].tolist() == [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]
    assert torch.equal(rows[:, 0], rows[:, 1])


def test_an_oblong_image_and_a_batch() -> None:
    """Sides are not mixed up: the transposed network of the transposed image sees the same."""
    network = tiny_dpt()
    x = images(64, 96, count=2)
    depth = network(x)
    assert depth.shape == (2, 1, 64, 96)
    assert depth.dtype == torch.float32
    assert_near(network(x[1:]), depth[1:])
    turned = tiny_dpt()
    table = turned.model.pretrained.model.pos_embed
    grid = table[:, 1:].reshape(1, 4, 4, -1).transpose(1, 2)
    table[:, 1:] = grid.reshape(1, 16, -1)
    for module in turned.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.transpose(2, 3)
    assert_near(turned(x.transpose(2, 3)).transpose(2, 3), depth)


def test_depth_is_never_negative() -> None:
    network = tiny_dpt()
    network.model.scratch.get_parameter("output_conv.4.bias").fill_(-1.0)
    depth = network(images(64, 64))
    assert depth.min() == 0


def test_half_precision_is_near() -> None:
    network = tiny_dpt()
    x = images(64, 64)
    full = network(x)
    half = network.to(torch.bfloat16)(x)
    assert half.dtype == torch.float32
    assert (half - full).abs().mean() < 0.1 * full.std()


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 80)])
def test_other_sides_are_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"multiples of 32, not {width}x{height}"):
        DPTDepthModel(TINY_DPT)(images(height, width))
