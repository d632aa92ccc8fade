"""Images of any size: every multiple of the autoencoder's factor, and what is cropped from one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.cli.app import main_script, run
from ldm.nn.packing import can_pack, pack
from tests.tiny_images import read
from tests.tiny_models import make, v1_tree
from tests.tiny_runs import place

WORDS = ["--prompt", "a cat", "--device", "cpu", "--steps", "2", "--seed", "3"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a tiny model of factor 4, whose network halves its input once."""
    place(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LDM_MODELS", raising=False)
    return tmp_path


def generate(home: Path, width: int, height: int, *words: str) -> np.ndarray:
    size = ["--W", str(width), "--H", str(height), "-o", "out.png", "--overwrite"]
    assert run(["txt2img", "--model", "tiny", *WORDS, *size, *words]) == 0
    return read(home / "out.png")


@pytest.mark.parametrize("size", [(200, 120), (24, 40), (72, 12)])
def test_any_multiple_of_the_factor(home: Path, size: tuple[int, int]) -> None:
    assert generate(home, *size).shape == (size[1], size[0], 3)


def test_other_sizes_are_cropped(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cropped = generate(home, 37, 22)
    assert capfd.readouterr().err.count("37x22 is generated as 40x24 and cropped") == 1
    whole = generate(home, 40, 24)
    assert (cropped == whole[:22, :37]).all()
    assert "cropped" not in capfd.readouterr().err


def test_a_script_keeps_the_rule_of_the_originals(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main_script("txt2img", ["--ckpt", "models/tiny.ckpt", *WORDS, "--W", "36"])
    assert end.value.code == 2
    assert "--width must be a multiple of" in capfd.readouterr().err


def test_hires_fix_needs_a_multiple(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert generate(home, 24, 40, "--hires", "1.5").shape == (56, 32, 3)
    assert (
        run(["txt2img", "--model", "tiny", *WORDS, "--W", "37", "--H", "24", "--hires", "2"]) == 2
    )
    assert "must be a multiple of" in capfd.readouterr().err


@torch.inference_mode()
@pytest.mark.skipif(
    not can_pack(torch.float32, torch.device("cpu")), reason="this torch packs no weights"
)
@pytest.mark.parametrize("size", [(5, 7), (6, 9), (1, 3)])
def test_a_packed_network_takes_odd_maps(size: tuple[int, int]) -> None:
    network = make(v1_tree()).network.to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, *size).contiguous(memory_format=torch.channels_last)
    context = torch.randn(2, 77, network.input_blocks[1][1].proj_in.in_channels)
    t = torch.tensor([5, 500])
    width = next(p for n, p in network.named_parameters() if "attn2.to_k" in n).shape[1]
    context = torch.randn(2, 77, width)
    plain = network(x, t, context)
    assert plain.shape == x.shape
    pack(network)
    torch.testing.assert_close(network(x, t, context), plain, rtol=1e-3, atol=1e-3)
