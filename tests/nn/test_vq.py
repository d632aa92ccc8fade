"""The autoencoder with a codebook agrees with the original's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ldm.checkpoints.config import read_config
from ldm.errors import UsageError
from ldm.nn import vq
from ldm.nn.vq import VectorQuantizer, VQModelInterface
from tests.golden_data import GOLDEN, tensors

# Outputs are of order 1; 5e-6 was the largest difference seen.
TOLERANCE = 1e-5


def params() -> dict[str, Any]:
    path = GOLDEN / "modules" / "vq-f4" / "config.yaml"
    found: dict[str, Any] = read_config(path).tree["params"]
    del found["lossconfig"]
    return found


@pytest.fixture(scope="module")
def model() -> VQModelInterface:
    model = VQModelInterface(**params())
    model.load_state_dict(tensors("modules/vq-f4/weights.safetensors"))
    return model.requires_grad_(False).eval()


def test_it_gives_the_originals_output(model: VQModelInterface) -> None:
    inputs = tensors("modules/vq-f4/inputs.safetensors")
    expected = tensors("modules/vq-f4/outputs.safetensors")
    assert torch.equal(model.quantize.indices(inputs["z"]).flatten(), expected.pop("indices"))
    found = {
        "h": model.encode(inputs["x"]).mode(),
        "quantized": model.quantize(inputs["z"]),
        "decoded": model.decode(inputs["z"]),
        "decoded_not_quantized": model.decode(inputs["z"], quantise=False),
    }
    assert found.keys() == expected.keys()
    for key, values in found.items():
        assert (values - expected[key]).abs().max() < TOLERANCE, key
    assert not torch.allclose(found["decoded"], found["decoded_not_quantized"], atol=0.1)


def test_a_sample_is_the_mode(model: VQModelInterface) -> None:
    encoded = model.encode(torch.zeros(1, 3, 16, 16))
    assert encoded.mode().shape == (1, 3, 4, 4)
    assert torch.equal(encoded.sample(torch.ones(1, 3, 4, 4)), encoded.mean)


def test_the_codebook_gives_its_own_vectors_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vq, "_ROWS", 7)  # several rounds
    quantizer = VectorQuantizer(40, 3)
    numbers = torch.arange(40).view(2, 4, 5)
    z = quantizer.embedding(numbers).permute(0, 3, 1, 2)
    assert torch.equal(quantizer.indices(z + 1e-4), numbers)
    assert torch.equal(quantizer(z), z)


def test_half_precision_finds_the_same_vectors() -> None:
    quantizer = VectorQuantizer(500, 4).half()
    z = torch.randn(1, 4, 8, 8).half()
    exact = torch.cdist(
        z.double().permute(0, 2, 3, 1).flatten(0, 2), quantizer.embedding.weight.double()
    )
    chosen = exact.gather(1, quantizer.indices(z).view(-1, 1)).squeeze(1)
    torch.testing.assert_close(chosen, exact.amin(dim=1), rtol=1e-5, atol=1e-6)


def test_what_it_is_not(model: VQModelInterface) -> None:
    with pytest.raises(UsageError, match="moments"):
        model.moments(torch.zeros(1, 3, 16, 16))
    found = params()
    found["ddconfig"]["double_z"] = True
    with pytest.raises(ValueError, match="double_z"):
        VQModelInterface(**found)
