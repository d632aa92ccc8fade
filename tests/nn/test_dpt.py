"""The depth network has the keys and shapes of the published checkpoint."""

from __future__ import annotations

import pytest
import torch

from ldm.nn.dpt import MiDaSInference
from tests.golden_keys import golden_shapes


def test_keys_and_shapes() -> None:
    prefix = "depth_model."
    found = golden_shapes("sd-v2-midas").items()
    expected = {key.removeprefix(prefix): shape for key, shape in found if key.startswith(prefix)}
    assert len(expected) == 368
    with torch.device("meta"):
        model = MiDaSInference()
    assert {key: tuple(values.shape) for key, values in model.state_dict().items()} == expected


def test_the_forward_pass_is_to_come() -> None:
    with torch.device("meta"):
        model = MiDaSInference()
    with pytest.raises(NotImplementedError, match="depth2img"):
        model(torch.empty(1, 3, 384, 384, device="meta"))
