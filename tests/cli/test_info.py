"""What `ldm info` tells, from headers alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ldm.cli.info import describe, format_description
from ldm.errors import CheckpointError
from tests.golden_keys import MODELS, golden_shapes
from tests.tiny_models import TINY, v1_tree, write


def hollow(shapes: dict[str, tuple[int, ...]], path: Path, **metadata: str) -> Path:
    """A .safetensors file of a given header whose numbers are a hole in the file."""
    plan: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for key, shape in shapes.items():
        count = 1
        for length in shape:
            count *= length
        plan[key] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + 2 * count]}
        end += 2 * count
    head = json.dumps(plan).encode()
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + end)
    return path


@pytest.mark.parametrize("name", MODELS)
def test_published_models(name: str, tmp_path: Path) -> None:
    d = describe(hollow(golden_shapes(name), tmp_path / "m.safetensors"))
    assert d.fit is not None
    assert d.fit.good
    assert d.problem == ""
    assert d.config is not None
    assert "found from the header" in d.config
    assert d.parts["network"] > 2e8
    assert set(d.precisions) == {"F16"}


def test_v1_in_words(tmp_path: Path) -> None:
    text = format_description(describe(hollow(golden_shapes("sd-v1"), tmp_path / "m.safetensors")))
    assert "Stable Diffusion v1 (txt2img)" in text
    assert "eps" in text
    assert "F16 100%" in text
    assert "859.52 M" in text  # the network
    assert "123.06 M" in text  # the text encoder
    assert "83.65 M" in text  # the autoencoder
    assert "complete, no unknown keys" in text


def test_v2_leaves_the_prediction_open(tmp_path: Path) -> None:
    path = hollow(golden_shapes("sd-v2"), tmp_path / "m.safetensors")
    assert describe(path).prediction is None
    assert "measured when loaded" in format_description(describe(path))
    path = hollow(golden_shapes("sd-v2"), path, **{"modelspec.prediction_type": "v"})
    assert describe(path).prediction == "v (the file's modelspec.prediction_type)"


def test_missing_unknown_and_unused_keys(tmp_path: Path) -> None:
    shapes = golden_shapes("sd-v1")
    gone = "first_stage_model.quant_conv.bias"
    del shapes[gone]
    shapes |= {"mystery.weight": (3,), "model_ema.decay": (), "loss.logvar": ()}
    d = describe(hollow(shapes, tmp_path / "m.safetensors"))
    assert d.fit is not None
    assert d.fit.missing == (gone,)
    assert d.fit.unexpected == ("mystery.weight",)
    assert d.unused == 2
    text = format_description(d)
    assert f"missing 1: {gone}" in text
    assert "unexpected 1: mystery.weight" in text


def test_marker_keys_are_applied_or_reported(tmp_path: Path) -> None:
    shapes = {**golden_shapes("sd-v1"), "v_pred": (), "ztsnr": (), "nothing": (0,)}
    d = describe(hollow(shapes, tmp_path / "m.safetensors"))
    assert d.fit is not None
    assert d.fit.good
    assert d.prediction == "v (the file has the key v_pred)"
    assert d.remarks == ("has the key v_pred", "has the key ztsnr")
    shapes = {**golden_shapes("sd-v2"), "v_pred": (0,)}
    d = describe(hollow(shapes, tmp_path / "m.safetensors"))
    assert d.prediction == "v (the file has the key v_pred)"
    assert d.config is not None
    assert "v2-inference-v.yaml" in d.config


def test_a_yaml_beside_it_is_used(tmp_path: Path) -> None:
    (tmp_path / "tiny.ckpt").write_bytes((TINY / "model.ckpt").read_bytes())
    assert "unknown model family" in describe(tmp_path / "tiny.ckpt").problem
    write(v1_tree(), tmp_path / "tiny.yaml")
    d = describe(tmp_path / "tiny.ckpt")
    assert d.fit is not None
    assert d.fit.good
    assert d.metadata["global_step"] == "470000"


def test_a_stranger_is_described_all_the_same(tmp_path: Path) -> None:
    save_file({"lora.down": torch.zeros(2, 3)}, tmp_path / "lora.safetensors")
    d = describe(tmp_path / "lora.safetensors")
    assert d.family is None
    assert d.tensors == 1
    assert "unknown" in format_description(d)
    with pytest.raises(CheckpointError):
        describe(tmp_path / "none.safetensors")


def test_dropped_callbacks_are_told() -> None:
    text = format_description(describe(TINY / "pickled-callback.ckpt"))
    assert "ModelCheckpoint (named by the file, never made)" in text


def test_no_torch_is_needed(tmp_path: Path) -> None:
    path = hollow(golden_shapes("sd-v2-midas"), tmp_path / "m.safetensors")
    code = (
        "import sys\n"
        "from ldm.cli.info import describe, format_description\n"
        "format_description(describe(sys.argv[1]))\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
