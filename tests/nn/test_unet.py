"""The UNet agrees with the original's, variant by variant, and says no to what it cannot be."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from ldm.checkpoints.config import read_config
from ldm.nn.attention import BACKENDS, attention, attention_backend
from ldm.nn.unet import UNetConfig, UNetModel
from tests.golden_data import GOLDEN, case, tensors

VARIANTS = (
    "unet-v1",
    "unet-v2",
    "unet-inpaint",
    "unet-depth",
    "unet-upscale",
    "unet-unclip",
    "unet-uncond",
    "unet-uncond-updown",
)
INERT = {"image_size", "use_checkpoint", "use_fp16"}
# Outputs are of order 1 and pass some thirty layers in float32; 3e-6 was the largest seen.
TOLERANCE = 1e-5
SMALL: dict[str, Any] = {
    "in_channels": 4,
    "model_channels": 32,
    "out_channels": 4,
    "num_res_blocks": 1,
    "attention_resolutions": [1],
    "channel_mult": [1, 2],
    "num_heads": 2,
}


def weights(name: str) -> dict[str, torch.Tensor]:
    base = case(f"modules/{name}/case.json").get("weights_base")
    found = {} if base is None else weights(base)
    return {**found, **tensors(f"modules/{name}/weights.safetensors")}


def golden_network(name: str) -> UNetModel:
    params = read_config(GOLDEN / "modules" / name / "config.yaml").tree["params"]
    used = {key: value for key, value in params.items() if key not in INERT}
    network = UNetModel(UNetConfig(**used))
    network.load_state_dict(weights(name))
    return network


@torch.inference_mode()
def run(network: UNetModel, name: str) -> torch.Tensor:
    inputs = tensors(f"modules/{name}/inputs.safetensors")
    return network(
        inputs["x"], inputs["timesteps"], context=inputs.get("context"), y=inputs.get("y")
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_gives_the_originals_output(name: str) -> None:
    expected = tensors(f"modules/{name}/outputs.safetensors")["out"]
    assert (run(golden_network(name), name) - expected).abs().max() < TOLERANCE


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "xformers"])
@pytest.mark.parametrize("upcast", [False, True])
def test_every_attention_kernel_gives_the_same(backend: str, upcast: bool) -> None:
    expected = tensors("modules/unet-v1/outputs.safetensors")["out"]
    with attention_backend(backend, upcast=upcast):
        assert (run(golden_network("unet-v1"), "unet-v1") - expected).abs().max() < TOLERANCE


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "keys"), [(600, 1100), (2, 1024), (600, 77)])
def test_attention_in_bf16(tokens: int, keys: int, dtype: torch.dtype) -> None:
    """Where keys are many; each image as it is alone."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, n, 3 * 40, generator=generator).to(dtype) for n in (tokens, keys, keys)
    )
    plain = attention(q.float(), k.float(), v.float(), 3)
    with attention_backend(rounded=True, upcast=True):
        precise = attention(q, k, v, 3)
    with attention_backend(rounded=True):
        ours = attention(q, k, v, 3)
        alone = attention(q[1:], k[1:], v[1:], 3)
    assert ours.dtype is precise.dtype is dtype
    torch.testing.assert_close(ours[1:], alone, rtol=0, atol=0)
    assert (ours - plain).norm() < 0.02 * plain.norm()
    if dtype is torch.float32:
        torch.testing.assert_close(precise, plain)
        assert torch.equal(ours, plain) == (keys == 77)


def test_slices_are_put_together_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ldm.nn.attention.SLICE_ROWS", 7)
    expected = tensors("modules/unet-v1/outputs.safetensors")["out"]
    with attention_backend("sliced"):
        assert (run(golden_network("unet-v1"), "unet-v1") - expected).abs().max() < TOLERANCE


def test_a_level_may_have_no_block_of_its_own() -> None:
    network = UNetModel(UNetConfig(**{**SMALL, "num_res_blocks": [0, 1]}))
    out = network(torch.randn(1, 4, 8, 8), torch.tensor([3]))
    assert out.shape == (1, 4, 8, 8)
    assert len(network.input_blocks) == 3


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of torch's compiler, in torch 2.9
@pytest.mark.skipif(
    sys.version_info[:3] == (3, 13, 0), reason="torch's compiler refuses Python 3.13.0"
)
def test_the_network_can_be_traced_whole() -> None:
    network = UNetModel(UNetConfig(**SMALL, use_spatial_transformer=True, context_dim=8))
    explained = torch._dynamo.explain(network)(
        torch.randn(1, 4, 8, 8), torch.tensor([3]), torch.randn(1, 5, 8)
    )
    reasons = [each.reason for each in explained.break_reasons]
    old = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14)  # seen with 2.9 and 2.11
    if old and reasons and all("`ContextVar`" in reason for reason in reasons):
        pytest.skip("this torch cannot trace context variables: --compile compiles in parts")
    assert explained.graph_break_count == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": -1}, "num_heads"),
        ({"num_res_blocks": [1, 1, 1]}, "one entry for each of 2 levels"),
        ({"num_classes": "many"}, "num_classes"),
        ({"num_classes": "sequential"}, "num_classes"),
    ],
)
def test_settings_that_contradict_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNetModel(UNetConfig(**{**SMALL, **changes}))


def test_a_class_is_needed_exactly_by_a_conditional_network() -> None:
    x, t = torch.zeros(1, 4, 8, 8), torch.tensor([0])
    with pytest.raises(ValueError, match="y must be given"):
        UNetModel(UNetConfig(**SMALL))(x, t, y=torch.tensor([1]))
    with pytest.raises(ValueError, match="y must be given"):
        UNetModel(UNetConfig(**SMALL, num_classes=3))(x, t)
