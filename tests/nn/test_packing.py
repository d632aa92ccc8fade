from __future__ import annotations

import pytest
import torch
from torch import nn

from ldm.nn.packing import (
    PackedConv2d,
    PackedLinear,
    PackedPointConv2d,
    can_pack,
    pack,
    packable,
)
from ldm.nn.unet import UNetModel
from tests.tiny_network import network

pytestmark = pytest.mark.skipif(
    not can_pack(torch.float32, torch.device("cpu")), reason="this torch packs no weights"
)


@torch.inference_mode()
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 8, 8), (3, 6, 10)])
def test_a_packed_network_gives_the_same(
    layout: torch.memory_format, batch: int, height: int, width: int
) -> None:
    net = network()
    x = torch.randn(batch, 4, height, width).to(memory_format=layout)
    t, context = torch.full((batch,), 300.0), torch.randn(batch, 7, 128)
    plain = net(x, t, context)
    pack(net)
    kinds = [type(module) for module in net.modules()]
    assert PackedConv2d in kinds
    assert PackedLinear in kinds
    assert PackedPointConv2d in kinds
    assert (net(x, t, context) - plain).abs().max() < 1e-5 * plain.abs().max()


@torch.inference_mode()
def test_half_precision_becomes_full_layer_by_layer() -> None:
    net, half = network(), network()
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 700.0]), torch.randn(2, 7, 128)
    for name in packable(net):
        rounded = net.get_parameter(name).half()
        net.get_parameter(name).copy_(rounded)
        half.get_parameter(name).data = rounded
    pack(half)
    plain = net(x, t, context)
    assert (half(x, t, context) - plain).abs().max() < 1e-5 * plain.abs().max()


@torch.inference_mode()
@pytest.mark.skipif(
    not can_pack(torch.bfloat16, torch.device("cpu")), reason="this processor packs no bf16"
)
def test_bf16_is_as_near_to_full_precision_as_without() -> None:
    net, plain, packed = network(), network().bfloat16(), network()
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 700.0]), torch.randn(2, 7, 128)
    large = set(packable(packed))
    for name, parameter in packed.named_parameters():
        if name not in large:
            parameter.data = parameter.bfloat16()
    pack(packed, dtype=torch.bfloat16)
    assert {each.dtype for each in packed.state_dict().values()} == {torch.bfloat16}
    assert {each.dtype for each in packed.buffers()} == {torch.bfloat16}
    right = net(x, t, context)

    def error(half: UNetModel) -> float:
        out = half(x.bfloat16(), t, context.bfloat16())
        assert out.dtype is torch.bfloat16
        return (out.float() - right).square().mean().sqrt().item()

    assert 0 < error(packed) < 1.25 * error(plain) < 0.1 * right.std()


def test_what_is_packed_is_told_and_gone() -> None:
    net, told = network(), list[str]()
    small, large = {"out.2.weight", "input_blocks.0.0.weight"}, "middle_block.0.in_layers.2.weight"
    pack(net, told.append)
    assert large in told
    assert not small & set(told)
    assert "time_embed.0.weight" not in told  # it goes through image by image
    left = net.state_dict()
    assert large not in left
    assert small <= set(left)
    assert net.dtype is torch.float32


def test_strides_and_padding_are_kept() -> None:
    layer = nn.Sequential(nn.Conv2d(64, 64, 3, stride=2, padding=1, bias=False))
    x = torch.randn(1, 64, 9, 9)
    with torch.inference_mode():
        plain = layer(x)
        pack(layer)
        assert isinstance(layer[0], PackedConv2d)
        torch.testing.assert_close(layer(x), plain, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("stride", [1, 2])
def test_single_positions(stride: int) -> None:
    layer = nn.Sequential(nn.Conv2d(128, 192, 1, stride=stride))
    x = torch.randn(2, 128, 3, 5).to(memory_format=torch.channels_last)
    plain = layer(x)
    pack(layer)
    assert (type(layer[0]) is PackedPointConv2d) == (stride == 1)
    packed = layer(x)
    assert packed.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(packed, plain, rtol=1e-4, atol=1e-5)
