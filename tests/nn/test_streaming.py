from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ldm.nn.streaming import Streamed
from tests.tiny_network import network

CPU = torch.device("cpu")


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 4, 8, 8), torch.tensor([3.0, 700.0]), torch.randn(2, 7, 128)


@torch.inference_mode()
def test_it_computes_the_same_and_leaves_no_trace() -> None:
    net = network()
    plain = net(*inputs())
    places = {name: tensor.data_ptr() for name, tensor in net.state_dict().items()}
    streamed = Streamed(net, CPU)
    assert torch.equal(net(*inputs()), plain)
    streamed.end()
    assert torch.equal(net(*inputs()), plain)
    assert places == {name: tensor.data_ptr() for name, tensor in net.state_dict().items()}


def test_only_one_part_is_on_the_device_at_a_time() -> None:
    """The device is `meta`, which computes nothing, but knows what lies on it."""
    net = network()
    most = 0

    def look(*_: object) -> None:
        nonlocal most
        there = [each for each in net.parameters() if each.is_meta]
        most = max(most, sum(each.numel() for each in there))

    for module in net.modules():
        module.register_forward_hook(look)
    Streamed(net, torch.device("meta"))
    with torch.inference_mode(), torch.device("meta"):
        out = net(*(torch.empty_like(each, device="meta") for each in inputs()))
    assert out.is_meta
    assert not any(each.is_meta for each in net.parameters())
    assert 0 < most < sum(each.numel() for each in net.parameters()) / 2


def test_an_error_brings_everything_back() -> None:
    net = network()
    streamed = Streamed(net, torch.device("meta"))
    with pytest.raises(RuntimeError), torch.inference_mode():
        net(*inputs())  # these are not on the device
    streamed.end()
    assert not any(each.is_meta for each in net.parameters())
