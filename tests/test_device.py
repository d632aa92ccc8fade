from __future__ import annotations

import pytest
import torch

from ldm import device
from ldm.device import choose, choose_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (None, set()),
        (frozenset({"avx2"}), {"fp16", "bf16"}),
        (frozenset({"avx512f", "avx512_bf16"}), {"fp16"}),
        (frozenset({"amx_bf16", "avx512_fp16"}), set()),
    ],
)
def test_slow_precisions_are_told(
    flags: frozenset[str] | None, told: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "processor_flags", lambda: flags)
    for name in ("full", "fp16", "bf16", "auto"):
        resolved, notes = choose_precision(name, CPU)
        assert resolved == ("full" if name == "auto" else name)
        assert bool(notes) == (name in told), name
        assert all(name in note for note in notes)
    assert not choose_precision("bf16", torch.device("cuda"))[1]


def test_how_things_lie_in_memory() -> None:
    policy = choose("cpu", "auto", "auto")
    assert policy.channels_last
    assert policy.packed == torch.backends.mkldnn.is_available()
    assert not choose("cpu", "bf16", "auto").packed
