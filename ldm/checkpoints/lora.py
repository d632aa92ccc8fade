"""What a LoRA file, or one of its kin, changes in a model; without torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.checkpoints.folders import model_files
from ldm.checkpoints.weights.header import Header, read_header
from ldm.checkpoints.weights.keys import Shapes, listed
from ldm.checkpoints.weights.lora_keys import UNET, Name, Target, read_key, targets_of
from ldm.errors import CheckpointError
from ldm.jobs.options import nearest

# The width of the text states that a network attends to -> the family.
_WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "SDXL"}
_STATED = {"sd_v1": 768, "sd_v2": 1024, "sdxl": 2048, "stable-diffusion-v1": 768,
           "stable-diffusion-v2": 1024, "stable-diffusion-xl": 2048}  # fmt: skip


SUFFIXES = (".safetensors", ".pt", ".bin", ".ckpt")
PEFT = "adapter_model.safetensors"


@dataclass(frozen=True)
class Group:
    """The tensors of one module: role -> key in the file.

    `limited`: the norm of OFT's blocks is limited even where alpha is 0. `alpha` is what the
    metadata says of alpha / rank, where the file has no tensor for it; None where nothing does.
    """

    target: Target
    roles: Mapping[str, str]
    limited: bool = False
    alpha: float | None = None


@dataclass(frozen=True)
class LoraFile:
    """A LoRA file matched with a model: what it changes, and the keys that change nothing."""

    header: Header
    groups: tuple[Group, ...]
    unmatched: tuple[str, ...]

    @property
    def matched(self) -> int:
        """The number of tensors that have a place in the model."""
        return sum(len(group.roles) for group in self.groups)


def match_lora(path: Path | str, shapes: Shapes) -> LoraFile:
    """Match a file with a model of these keys and shapes.

    Raises CheckpointError where nothing matches, or the file is for another family.
    """
    header = read_header(path)
    names = {key: read_key(key) for key in header.tensors}
    if not any(name is not None and name.role != "ia3" for name in names.values()):
        raise CheckpointError(f"{path}: is no LoRA file: it has no tensors of an adapter")
    family, model = family_of(header), _WIDTHS.get(_width(shapes) or 0)
    if family is not None and model is not None and family != model:
        raise CheckpointError(f"{path}: is for {family}, and the model is {model}; use another")
    groups, unmatched = _grouped(header, names, targets_of(shapes))
    if not groups:
        whose = f"it is for {family}" if family else "it may be for another family"
        raise CheckpointError(
            f"{path}: none of its {len(names)} tensors has a place in this model; {whose} "
            f"({listed(unmatched, 3)})"
        )
    return LoraFile(header, groups, unmatched)


def find_lora(name: str) -> Path:
    """Find a file by path, or by its stem in a folder of LoRAs; raises CheckpointError."""
    path = Path(name).expanduser()
    for place in (path, path.with_name(f"{path.name}.safetensors"), path / PEFT):
        if place.is_file():
            return place
    files = [file.path for file in model_files(SUFFIXES) if file.kind == "LoRA"]
    wanted = name.lower()
    found = [f for f in files if wanted in (f.stem.lower(), f.name.lower())]
    different = {file.resolve() for file in found}
    if len(different) > 1:
        raise CheckpointError(f"LoRA {name} fits several files: {', '.join(map(str, found[:4]))}")
    if not found:
        hint = nearest(name, [file.stem for file in files])
        raise CheckpointError(
            f"LoRA {name}: no such file, nor in a folder lora of the models{hint}"
        )
    return found[0]


def family_of(header: Header) -> str | None:
    """The family that a file was trained for, by its shapes, else by its metadata."""
    for key, entry in header.tensors.items():
        name = read_key(key)
        if name is None or name.part != UNET or len(entry.shape) < 2:
            continue
        if name.role == "down" and name.module.endswith(("attn2_to_k", "attn2_to_v")):
            return _WIDTHS.get(entry.shape[1])
    for field in ("ss_base_model_version", "modelspec.architecture"):
        stated = header.metadata.get(field, "")
        for start, width in _STATED.items():
            if stated.startswith(start):
                return _WIDTHS[width]
    return None


def _width(shapes: Shapes) -> int | None:
    """The width of the text states that a model's network attends to."""
    ends = ("attn2.to_k.weight",)
    return next((shape[1] for key, shape in shapes.items() if key.endswith(ends)), None)


def _grouped(
    header: Header, names: Mapping[str, Name | None], table: Mapping[tuple[str, str], Target]
) -> tuple[tuple[Group, ...], tuple[str, ...]]:
    modules: dict[tuple[str, str], dict[str, str]] = {}
    limited: set[tuple[str, str]] = set()
    unmatched = []
    for key, name in names.items():
        place = None if name is None else (name.part, name.module)
        if name is None or place not in table:
            unmatched.append(key)
            continue
        modules.setdefault((name.part, name.module), {})[name.role] = key
        if name.limited:
            limited.add((name.part, name.module))
    settings = _peft_settings(header)
    groups = []
    for place, roles in modules.items():
        if set(roles) == {"ia3"} or set(roles) == {"alpha"}:  # a plain weight, no adapter's
            unmatched += roles.values()
            continue
        alpha = None if "alpha" in roles else _stated_scale(settings, place[0])
        groups.append(Group(table[place], roles, place in limited, alpha))
    return tuple(groups), tuple(unmatched)


def _peft_settings(header: Header) -> dict[str, Any]:
    """PEFT's settings, from the file's metadata or adapter_config.json beside it; {} without."""
    beside = header.path.with_name("adapter_config.json")
    text = header.metadata.get("lora_adapter_metadata", "{}")
    try:
        if header.path.name.startswith("adapter_model.") and beside.is_file():
            text = beside.read_text(encoding="utf-8")
        found = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        reason = f"its PEFT settings cannot be read ({error})"
        raise CheckpointError(f"{header.path}: {reason}") from None
    return found if isinstance(found, dict) else {}


def _stated_scale(settings: Mapping[str, Any], part: str) -> float | None:
    """alpha / rank (with rslora alpha / sqrt(rank)) of PEFT's settings; None where not stated."""
    prefix = "unet." if part == UNET else "text_encoder."
    alpha, rank = (settings.get(f"{prefix}{n}", settings.get(n)) for n in ("lora_alpha", "r"))
    if not isinstance(alpha, int | float) or not isinstance(rank, int) or rank < 1:
        return None
    is_root = settings.get(f"{prefix}use_rslora", settings.get("use_rslora"))
    return alpha / (math.sqrt(rank) if is_root else rank)
