"""What all peers are given: a prompt, and checkpoints of full size with random numbers.

Keys and shapes are those of Stable Diffusion v1. The checkpoints lie in a folder of their own, are
made once, and take 11 GB for all three.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.checkpoints.config import read_config, resource

if TYPE_CHECKING:
    from torch import Tensor

PROMPT = "a red apple on a blue background"  # for whoever draws
YAML = "stable-diffusion/v1-inference.yaml"
KINDS = ("fp16.safetensors", "fp32.safetensors", "fp32.ckpt")
# A random network's output has an amplitude that a schedule does not expect; it stays finite.
_BIAS = 0.01


def checkpoint(folder: Path, kind: str) -> Path:
    """The checkpoint of a kind in a folder, made if it is not there."""
    path = folder / f"random-v1-{kind}"
    if path.exists():
        return path
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    # Half precision's numbers in all of them, so that all give the same images.
    tensors = {key: tensor.half().to(_dtype(tensor, kind)) for key, tensor in _tensors()}
    part = path.with_suffix(".part")
    if path.suffix == ".ckpt":
        torch.save({"state_dict": tensors, "global_step": 0}, part)
    else:
        save_file(tensors, part)
    part.replace(path)
    os.sync()  # or the writing would be measured with the first reading
    return path


def _dtype(tensor: Tensor, kind: str) -> Any:
    import torch

    if not tensor.is_floating_point():
        return tensor.dtype
    return torch.float16 if kind.startswith("fp16") else torch.float32


def _tensors() -> Iterator[tuple[str, Tensor]]:
    """Keys and random tensors of about the amplitudes that trained ones have."""
    import torch

    from ldm.models.registry import build
    from ldm.nn.outline import outline

    with outline():
        model = build(read_config(resource("configs") / YAML))
    pool = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0))
    for key, own in model.state_dict().items():
        if not own.is_meta:
            yield key, own
        elif not own.is_floating_point():
            yield key, torch.arange(own.numel()).reshape(own.shape)
        else:
            copies = -(-own.numel() // len(pool))
            numbers = pool.repeat(copies)[: own.numel()].reshape(own.shape)
            if own.dim() > 1:
                fan_in = own.shape[-1] if "embedding" in key else math.prod(own.shape[1:])
                yield key, numbers * fan_in**-0.5
            else:
                yield key, _BIAS * numbers + (1.0 if key.endswith("weight") else 0.0)


def diffusers_folder(folder: Path) -> Path:
    """The configuration of v1 as diffusers reads it from a folder, vocabulary included."""
    from ldm.text.tokenizer import vocabulary

    place = folder / "diffusers-v1"
    names, merges = vocabulary()
    tokens = {name: i for i, name in enumerate([*names, "<|startoftext|>", "<|endoftext|>"])}
    for part, name, content in (
        ("", "model_index.json", _INDEX),
        ("unet", "config.json", _UNET),
        ("vae", "config.json", _VAE),
        ("text_encoder", "config.json", _TEXT),
        ("scheduler", "scheduler_config.json", _SCHEDULER),
        ("tokenizer", "tokenizer_config.json", _TOKENIZER),
        ("tokenizer", "vocab.json", tokens),
    ):
        (place / part).mkdir(parents=True, exist_ok=True)
        _write(place / part / name, content)
    lines = "\n".join(f"{left} {right}" for left, right in merges)
    (place / "tokenizer" / "merges.txt").write_text(f"#version: 0.2\n{lines}\n", "utf-8")
    return place


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content), "utf-8")


_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
_WIDTHS = [320, 640, 1280, 1280]
_UNET = {
    "_class_name": "UNet2DConditionModel",
    "attention_head_dim": 8,
    "block_out_channels": _WIDTHS,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "sample_size": 64,
}
_VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "sample_size": 512,
}
_TEXT = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
_SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
_TOKENIZER = {
    "tokenizer_class": "CLIPTokenizer",
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<|endoftext|>",
    "unk_token": "<|endoftext|>",
    "model_max_length": 77,
    "do_lower_case": True,
}
