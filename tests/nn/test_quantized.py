from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ldm.engine.device import computes_in
from ldm.nn.quantized import Int8Conv2d, Int8Linear, can_quantize, quantizable, quantize
from ldm.nn.rows import PointConv2d
from tests.tiny_network import network

pytestmark = pytest.mark.skipif(
    not (computes_in("int8") and can_quantize()), reason="no 8-bit arithmetic here"
)

torch.manual_seed(0)
LAYERS: dict[str, nn.Module] = {
    "3x3": nn.Conv2d(32, 64, 3, padding=1),
    "strided": nn.Conv2d(48, 64, 3, stride=2, padding=1, bias=False),
    "1x1": PointConv2d(128, 256),
    "linear": nn.Linear(128, 256),
    "without bias": nn.Linear(256, 128, bias=False),
}


def quantized(layer: nn.Module) -> nn.Module:
    place = nn.Sequential(layer.requires_grad_(False))
    quantize(place)
    assert isinstance(place[0], Int8Conv2d | Int8Linear)
    return place


def given(layer: nn.Module, batch: int = 3) -> Tensor:
    """Something for a layer, each image of it many times as large as the one before."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, 10, 256) if isinstance(layer, nn.Linear) else (batch, 256, 9, 12)
    x = torch.randn(shape, generator=generator)
    if isinstance(layer, nn.Linear):
        x = x[..., : layer.in_features]
    elif isinstance(layer, nn.Conv2d):
        x = x[:, : layer.in_channels]
    return x * torch.logspace(0, 4, batch).view(-1, *[1] * (x.dim() - 1))


@torch.inference_mode()
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_layer_is_near(name: str, layout: torch.memory_format) -> None:
    layer = LAYERS[name]
    x = given(layer)
    if x.dim() == 4:
        x = x.to(memory_format=layout)
    plain, ours = layer(x), quantized(layer)(x)
    assert ours.shape == plain.shape
    assert ours.dtype is torch.float32
    for one, other in zip(ours, plain, strict=True):  # small images as near as large ones
        assert (one - other).norm() < 0.02 * other.norm()


@torch.inference_mode()
@pytest.mark.parametrize("name", LAYERS)
def test_an_image_does_not_depend_on_its_neighbours(name: str) -> None:
    layer, x = quantized(LAYERS[name]), given(LAYERS[name])
    together = layer(x)
    for row in range(len(x)):
        assert torch.equal(together[row : row + 1], layer(x[row : row + 1]))


@torch.inference_mode()
@pytest.mark.parametrize("name", LAYERS)
def test_nothing_and_what_is_no_number(name: str) -> None:
    layer, plain = quantized(LAYERS[name]), LAYERS[name]
    x = torch.zeros_like(given(plain))
    torch.testing.assert_close(layer(x), plain(x))
    x[0].view(-1)[0] = torch.nan
    assert layer(x)[0].isnan().any()  # is seen, and not rounded to a number
    assert layer(x)[1:].isfinite().all()


@torch.inference_mode()
def test_weights_are_rounded_as_their_channel_needs() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(128, 256, bias=False).requires_grad_(False)
    layer.weight *= torch.logspace(-6, 6, 256)[:, None]
    x = given(layer)
    ours, plain = quantized(layer)(x), layer(x)
    assert ((ours - plain).norm(dim=(0, 1)) < 0.03 * plain.norm(dim=(0, 1))).all()


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_network_is_near_and_told(dtype: torch.dtype) -> None:
    net, told = network(), list[str]()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 8, 8, generator=generator)
    t, context = torch.tensor([3.0, 300.0, 900.0]), torch.randn(3, 7, 128, generator=generator)
    plain = net(x, t, context)
    names = quantizable(net)
    for name in names:
        parameter = net.get_parameter(name)
        parameter.data = parameter.data.to(dtype)
    quantize(net, told.append)
    ours = net(x, t, context)
    assert (ours - plain).norm() < 0.05 * plain.norm()
    assert not torch.equal(ours, plain)
    left = net.state_dict()
    assert told == names
    assert not set(names) & set(left)
    # The first and the last layer, and what is told of time, stay as they are.
    assert {"input_blocks.0.0.weight", "out.2.weight", "time_embed.0.weight"} <= set(left)
    assert any("skip_connection" in name for name in names)
    assert net.dtype is torch.float32
