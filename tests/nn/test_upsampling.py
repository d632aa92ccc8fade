from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ldm.nn.autoencoder import _Upsample, upsample_in_phases
from ldm.nn.layers import Upsample
from ldm.nn.packing import PackedUpsample, can_pack, pack

LAYOUTS = [torch.contiguous_format, torch.channels_last]


@torch.inference_mode()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_decoder_gives_the_same(layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    layer = _Upsample(12)
    x = torch.randn(2, 12, 5, 3).to(memory_format=layout)
    plain = layer(x)
    upsample_in_phases(layer)
    quick = layer(x)
    assert quick.is_contiguous(memory_format=layout)
    torch.testing.assert_close(quick, plain, rtol=1e-5, atol=1e-6)


@torch.inference_mode()
@pytest.mark.skipif(
    not can_pack(torch.float32, torch.device("cpu")), reason="this torch packs no weights"
)
def test_a_packed_network_gives_the_same() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(Upsample(48, use_conv=True, out_channels=64))
    x = torch.randn(2, 48, 4, 6).to(memory_format=torch.channels_last)
    plain = net(x)
    pack(net)
    assert type(net[0]) is PackedUpsample
    torch.testing.assert_close(net(x), plain, rtol=1e-5, atol=1e-6)


def test_in_training_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, called = _Upsample(4), list[bool]()
    upsample_in_phases(layer)
    repeat = F.interpolate
    monkeypatch.setattr(F, "interpolate", lambda *a, **k: called.append(True) or repeat(*a, **k))
    layer(torch.randn(1, 4, 2, 2)).sum().backward()
    assert called
    assert layer.conv.weight.grad is not None
