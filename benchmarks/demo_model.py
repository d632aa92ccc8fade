"""The model side of demo_quality: jobs to images by the engine, as the commands of ldm do it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.demo_prompts import Generate, Prompt
from benchmarks.demo_tasks import Solve
from ldm.checkpoints.config import resource
from ldm.checkpoints.locate import BUNDLED
from ldm.engine.device import choose
from ldm.engine.engine import Engine
from ldm.images.tensors import to_image_array
from ldm.jobs.job import Job
from ldm.training.data import Pixels, named_glyphs
from ldm.workers.pool import load_as


class DemoModel:
    """A checkpoint on a device; by default the one that is bundled for a task."""

    def __init__(
        self,
        checkpoint: str | None,
        device: str,
        task: str = "txt2img",
        precision: str = "auto",
    ) -> None:
        bundled = resource("models") / f"{BUNDLED[task][0]}.safetensors"
        path = Path(checkpoint) if checkpoint else bundled
        policy = choose(device, precision, "auto")
        loaded = load_as(policy, path)
        self.defaults = loaded.family.defaults
        data = loaded.config.tree.get("data", {}).get("params", {})
        self.glyphs = named_glyphs(data.get("glyphs"))
        self.engine = Engine(loaded.model, policy)

    def generate(self, wanted: argparse.Namespace) -> Generate:
        """A function from prompts to images [n, 128, 128, 3]; image i has seed `seed` + i."""

        def images(prompts: Sequence[Prompt]) -> Pixels:
            job = Job(
                prompts=tuple(prompt.text for prompt in prompts),
                n_samples=wanted.batch,
                steps=wanted.steps,
                sampler=wanted.sampler,
                scale=wanted.scale,
                seed=wanted.seed,
            )
            resolved = job.resolve(self.defaults, lambda: 0).job
            results = tqdm(self.engine.run(resolved), total=len(prompts), disable=None)
            return np.stack([result.image for result in results])

        return images

    def solve(self, wanted: argparse.Namespace) -> Solve:
        """A function from fields of jobs to images; job i has seed `seed` + i."""

        def images(jobs: Sequence[dict[str, Any]]) -> Iterator[Pixels]:
            shared = {"steps": wanted.steps, "sampler": wanted.sampler, "scale": wanted.scale}
            for row, fields in enumerate(tqdm(jobs, disable=None)):
                job = Job(**fields, **shared, seed=wanted.seed + row)
                resolved = job.resolve(self.defaults, lambda: 0).job
                yield from (result.image for result in self.engine.run(resolved))

        return images

    def through_autoencoder(self, originals: Pixels) -> Pixels:
        """Images encoded and decoded again, cut to whole numbers as the engine does."""
        model, policy = self.engine.model, self.engine.policy
        back = []
        with torch.inference_mode(), policy.arithmetic():
            for start in range(0, len(originals), 16):
                images = torch.from_numpy(originals[start : start + 16]).to(policy.device)
                decoded = model.decode(model.encode(images.permute(0, 3, 1, 2) / 127.5 - 1))
                back += [to_image_array(image) for image in decoded]
        return np.stack(back)
