from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from ldm.nn.outline import outline

PROGRAM = """
import sys
from ldm.nn.outline import outline
from ldm.checkpoints.config import read_config, resource
from ldm.models.registry import build

with outline():
    model = build(read_config(resource("configs") / "stable-diffusion" / "v1-inference.yaml"))
assert all(parameter.is_meta for parameter in model.parameters())
print(sorted({"sympy", "torch._dynamo", "torch._inductor"} & set(sys.modules)))
"""


def test_an_outline_needs_no_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_layers_are_drawn_again_afterwards() -> None:
    with outline():
        outlined = nn.Linear(2, 3)
    assert outlined.weight.is_meta
    torch.manual_seed(0)
    assert nn.Linear(2, 3).weight.abs().sum().item() > 0
