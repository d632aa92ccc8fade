"""Tiny models to train, and images of coloured squares to train them on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldm.training.recipe import Plan

AUTOENCODER: dict[str, Any] = {
    "target": "ldm.models.autoencoder.AutoencoderKL",
    "params": {
        "embed_dim": 4,
        "ddconfig": {
            "double_z": True,
            "z_channels": 4,
            "resolution": 16,
            "in_channels": 3,
            "out_ch": 3,
            "ch": 32,
            "ch_mult": [1, 1],
            "num_res_blocks": 1,
            "attn_resolutions": [],
            "num_groups": 8,
        },
    },
}


DIFFUSION: dict[str, Any] = {
    "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
    "params": {
        "linear_start": 0.00085,
        "linear_end": 0.012,
        "timesteps": 1000,
        "channels": 4,
        "image_size": 8,
        "conditioning_key": "crossattn",
        "parameterization": "v",
        "use_ema": False,
        "unet_config": {
            "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
            "params": {
                "image_size": 8,
                "in_channels": 4,
                "out_channels": 4,
                "model_channels": 32,
                "attention_resolutions": [1],
                "num_res_blocks": 1,
                "channel_mult": [1],
                "num_heads": 2,
                "use_spatial_transformer": True,
                "transformer_depth": 1,
                "context_dim": 16,
                "legacy": False,
            },
        },
        "first_stage_config": AUTOENCODER,
        "cond_stage_config": {
            "target": "ldm.modules.encoders.modules.FrozenCLIPEmbedder",
            "params": {
                "max_length": 8,
                "text_config": {
                    "vocab_size": 49408,
                    "hidden_size": 16,
                    "intermediate_size": 32,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "max_position_embeddings": 8,
                },
            },
        },
    },
}


class Squares:
    """Images 16x16 with a square of one of two colours; captions say which."""

    class _Named:
        caption = "red"

    def scene(self, index: int) -> Squares._Named:
        return self._Named()

    def vocabulary(self) -> list[str]:
        return ["red", "blue"]

    def batch(self, start: int, n: int) -> tuple[NDArray[np.uint8], list[str]]:
        images = np.full((n, 16, 16, 3), 30, dtype=np.uint8)
        captions = []
        for row in range(n):
            rng = np.random.default_rng(start + row)
            x, y, red = rng.integers(0, 8, 3)
            images[row, y : y + 8, x : x + 8, 0 if red % 2 else 2] = 220
            captions.append("red" if red % 2 else "blue")
        return images, captions

    def layers(self, start: int, n: int) -> NDArray[np.uint8]:
        images, _ = self.batch(start, n)
        return (images.max(axis=-1) > 100).astype(np.uint8)

    kinds = 3

    def layouts(self, start: int, n: int, cells: int) -> NDArray[np.int64]:
        images, captions = self.batch(start, n)
        step = 16 // cells
        seen = images.max(axis=-1)[:, step // 2 :: step, step // 2 :: step] > 100
        kind = np.array([0 if caption == "red" else 1 for caption in captions])
        return np.where(seen, kind[:, None, None], 2).astype(np.int64)


def plan(outdir: Path, **changes: Any) -> Plan:
    values: dict[str, Any] = {
        "steps": 4,
        "batch_size": 4,
        "learning_rate": 2e-3,
        "outdir": str(outdir),
        "precision": "no",
        "warmup_steps": 2,
        "scenes": 16,
        "sample_every": 100,
        "save_every": 2,
        "log_every": 1,
        **changes,
    }
    return Plan(**values)
