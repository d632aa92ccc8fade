"""Reading the golden data under `tests/golden`, which the original implementations made.

Weights of two or more dimensions are stored as float8; the reference used just those values in
float32, and so they are given here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).parent / "golden"


def tensors(path: str) -> dict[str, Tensor]:
    """The tensors of a file such as "samplers/noise.safetensors"; float8 becomes float32."""
    loaded = load_file(GOLDEN / path)
    return {k: v.float() if v.dtype == torch.float8_e4m3fn else v for k, v in loaded.items()}


def case(path: str) -> dict[str, Any]:
    """A JSON file such as "modules/unet-v1/case.json"."""
    found: dict[str, Any] = json.loads((GOLDEN / path).read_text(encoding="utf-8"))
    return found


def module(name: str) -> dict[str, Tensor]:
    """The weights of a module's case, on top of the ones that it builds on."""
    base = case(f"modules/{name}/case.json").get("weights_base")
    return {**(module(base) if base else {}), **tensors(f"modules/{name}/weights.safetensors")}


def text_tower(name: str) -> dict[str, Tensor]:
    """The weights of a text tower such as "text-clip-v1"; rows of its table not given are zero."""
    found = tensors(f"modules/{name}/weights.safetensors")
    rows = tensors(f"modules/{name}/token_rows.safetensors")
    ids = rows.pop("__ids__").long()
    for key, values in rows.items():
        found[key] = torch.zeros(49408, values.shape[1]).index_copy(0, ids, values.float())
    return found


def whole(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The state of a model: its parts' weights by the prefix of their names."""
    return {
        prefix + key: values.contiguous()
        for prefix, part in parts.items()
        for key, values in part.items()
    }


def without(prefix: str, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, a prefix taken off their names."""
    return {key.removeprefix(prefix): values for key, values in found.items()}
