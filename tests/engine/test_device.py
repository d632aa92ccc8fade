from __future__ import annotations

import pytest
import torch

from ldm.engine import device
from ldm.engine.device import choose, choose_precision
from ldm.errors import JobError
from ldm.nn.packing import can_pack

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
    assert policy.keeps_freed
    assert policy.packed == torch.backends.mkldnn.is_available()
    assert choose("cpu", "bf16", "auto").packed == can_pack(torch.bfloat16, CPU)
    assert not choose("cpu", "fp16", "auto").packed


def test_int8_needs_a_cpu_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "can_quantize", lambda: True)
    for flags in ({"avx512_vnni"}, {"avx2", "avx_vnni"}):
        monkeypatch.setattr(device, "processor_flags", lambda flags=flags: frozenset(flags))
        policy = choose("cpu", "int8", "auto")
        assert (policy.precision, policy.dtype, policy.quantized) == ("int8", torch.float32, True)
    with pytest.raises(JobError, match="is for the CPU, not cuda: add --device cpu"):
        choose_precision("int8", torch.device("cuda"))
    monkeypatch.setattr(device, "processor_flags", lambda: frozenset({"avx512_bf16"}))
    with pytest.raises(JobError, match="needs a processor with VNNI"):
        choose_precision("int8", CPU)
    monkeypatch.setattr(device, "processor_flags", lambda: None)
    monkeypatch.setattr(device, "can_quantize", lambda: False)
    with pytest.raises(JobError, match="needs a processor with VNNI"):
        choose_precision("int8", CPU)
    assert not choose("cpu", "auto", "auto").quantized


@pytest.mark.parametrize("precision", ["auto", "bf16", "int8"])
def test_attention_is_rounded_where_that_is_quicker(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "can_quantize", lambda: True)
    for flags in ({"avx512_vnni"}, {"avx512_vnni", "avx512_bf16"}):
        monkeypatch.setattr(device, "processor_flags", lambda flags=flags: frozenset(flags))
        rounded = choose("cpu", precision, "auto").rounded
        assert rounded == (precision != "auto" and "avx512_bf16" in flags)
