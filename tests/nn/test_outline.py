from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from ldm.nn.outline import outline
from tests.unneeded_imports import unneeded

PROGRAM = """
import sys
from ldm.nn.outline import outline
from ldm.checkpoints.config import read_config, resource
from ldm.models.registry import build

for name in sys.argv[1:]:
    with outline():
        model = build(read_config(resource("configs") / "stable-diffusion" / name))
    assert all(parameter.is_meta for parameter in model.parameters())
print(*sys.modules)
"""
YAMLS = ("v1-inference.yaml", "v2-inference.yaml", "v2-1-stable-unclip-l-inference.yaml")


def test_an_outline_needs_no_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *YAMLS], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert unneeded(set(done.stdout.split())) == []


def test_layers_are_drawn_again_afterwards() -> None:
    with outline():
        outlined = nn.Linear(2, 3)
    assert outlined.weight.is_meta
    torch.manual_seed(0)
    assert nn.Linear(2, 3).weight.abs().sum().item() > 0
