"""`ldm train`: the training loop of both stages (`ldm.training.stages`, `ldm.training.trainer`).

The YAML is the originals' dialect (`model`, `data`) with a `train` section, whose fields are those
of `ldm.training.recipe.Plan`. Accelerate handles precision, clipping, and saving and restoring the
state. The data and noise of a step depend only on the seed and the step's number, so that a resumed
run continues exactly.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ldm.checkpoints.config import override, read_config
from ldm.errors import ConfigError, Interrupted
from ldm.training.data import Scenes
from ldm.training.recipe import Plan
from ldm.training.stages import AutoencoderStage, Batch, Stage, device, hardware_bf16
from ldm.training.trainer import DiffusionStage


def learning_rate_factor(plan: Plan, step: int) -> float:
    """The learning rate factor at a step: linear warm-up, then constant or a half cosine."""
    if step < plan.warmup_steps:
        return (step + 1) / plan.warmup_steps
    if plan.schedule == "constant":
        return 1.0
    progress = (step - plan.warmup_steps) / max(1, plan.steps - plan.warmup_steps)
    return float(0.5 * (1 + np.cos(np.pi * min(1.0, progress))))


class Ema:
    """Exponential moving average of a module's weights, saved and restored with the run."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self.average = AveragedModel(module, multi_avg_fn=average)

    def update(self, module: nn.Module) -> None:
        self.average.update_parameters(module)

    def state_dict(self) -> dict[str, Any]:
        return self.average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.load_state_dict(state)


def prefetch(stage: Stage, steps: range) -> Iterator[tuple[int, Batch]]:
    """The batches of these steps, each prepared during the step before it."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(stage.batch, steps.start)
        for step in steps:
            batch = coming.result()
            if step + 1 < steps.stop:
                coming = pool.submit(stage.batch, step + 1)
            yield step, batch


def save_weights(weights: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write float16 safetensors, all or nothing; vectors and integers keep their dtype."""
    from safetensors.torch import save_file

    halves = {
        key: (value.half() if value.is_floating_point() and value.dim() != 1 else value)
        .detach()
        .cpu()
        .contiguous()
        for key, value in weights.items()
    }
    partial = path.with_suffix(".partial")
    save_file(halves, partial, metadata=metadata)
    os.replace(partial, path)


def save_sheet(rows: NDArray[np.uint8], path: Path) -> None:
    """Write [R, C, H, W, 3] as one image."""
    from PIL import Image

    count, columns, height, width, _ = rows.shape
    sheet = rows.transpose(0, 2, 1, 3, 4).reshape(count * height, columns * width, 3)
    Image.fromarray(sheet).save(path)


class Trainer:
    """A stage with its optimiser, its averaged copy and their output folder."""

    def __init__(self, stage: Stage, plan: Plan) -> None:
        from accelerate import Accelerator
        from accelerate.utils import set_seed

        precision = plan.precision
        if precision == "auto":
            precision = "bf16" if hardware_bf16() else "no"
        self.stage, self.plan, self.outdir = stage, plan, Path(plan.outdir)
        self.state = self.outdir / "state"
        self.accelerator = Accelerator(mixed_precision=precision, cpu=device().type == "cpu")
        set_seed(plan.seed)
        self.module = stage.module.to(memory_format=torch.channels_last).train()
        self.ema = Ema(self.module, plan.ema_decay)
        self.ema.average.to(self.accelerator.device)
        optimizer = torch.optim.AdamW(
            self.module.parameters(),
            lr=plan.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=1e-3,
            fused=True,
        )
        rate = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(plan, step)
        )
        model, self.optimizer, self.rate = self.accelerator.prepare(self.module, optimizer, rate)
        self.accelerator.register_for_checkpointing(self.ema)
        self.forward = stage.compile(model) if plan.compile else model

    def step(self, batch: Batch) -> dict[str, float]:
        """Run one step of gradient descent; returns the figures to log."""
        place = self.accelerator.device
        inputs = {k: v.to(place) if isinstance(v, Tensor) else v for k, v in batch.items()}
        loss, figures = self.forward(**inputs)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.module.parameters(), self.plan.clip)
        self.optimizer.step()
        self.rate.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.module)
        return {"loss": loss.detach(), **figures}

    def save(self, step: int) -> None:
        """Save the state beside the old one, then replace that; also save the weights."""
        partial, old = self.state.with_suffix(".partial"), self.state.with_suffix(".old")
        shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.save_state(str(partial))
        (partial / "step.json").write_text(json.dumps({"step": step}), encoding="utf-8")
        shutil.rmtree(old, ignore_errors=True)
        if self.state.exists():
            self.state.rename(old)
        partial.rename(self.state)
        shutil.rmtree(old, ignore_errors=True)
        metadata = {"format": "pt", "train": json.dumps({**asdict(self.plan), "step": step})}
        weights = self.stage.weights(self.ema.average.module)
        save_weights(weights, self.outdir / "model.safetensors", metadata)

    def restore(self) -> int:
        """Load the newest complete state; returns the number of completed steps."""
        for place in (self.state, self.state.with_suffix(".old")):
            if (place / "step.json").is_file():
                self.accelerator.load_state(str(place))
                step: int = json.loads((place / "step.json").read_text(encoding="utf-8"))["step"]
                return step
        raise ConfigError(f"{self.state}: nothing to resume from; run without --resume first")

    def sample(self, step: int) -> None:
        """Write a sheet of samples from the averaged copy."""
        with torch.no_grad():
            rows = self.stage.sample(self.ema.average.module, step)
        save_sheet(rows, self.outdir / f"samples-{step:06d}.png")


def fit(stage: Stage, plan: Plan, *, resume: bool) -> Path:
    """Train a stage to its last step and write `<outdir>/model.safetensors` (the EMA weights)."""
    from tqdm import tqdm

    state = Path(plan.outdir) / "state"
    if not resume and state.exists():
        raise ConfigError(f"{state}: from an earlier run; give --resume, or another outdir")
    trainer = Trainer(stage, plan)
    start = trainer.restore() if resume else 0
    trainer.outdir.mkdir(parents=True, exist_ok=True)
    bar = tqdm(total=plan.steps, initial=start, disable=None, unit="step")
    with bar, (trainer.outdir / "log.jsonl").open("a", encoding="utf-8") as log:
        try:
            for step, batch in prefetch(stage, range(start, plan.steps)):
                figures = trainer.step(batch)
                bar.update()
                done = step + 1
                last = done == plan.steps
                if done % plan.log_every == 0:
                    values = {key: round(float(value), 5) for key, value in figures.items()}
                    bar.set_postfix(values)
                    log.write(json.dumps({"step": done, **values}) + "\n")
                    log.flush()
                if last or done % plan.save_every == 0:
                    trainer.save(done)
                if last or done % plan.sample_every == 0:
                    trainer.sample(done)
        except KeyboardInterrupt:
            raise Interrupted(
                f"stopped; continue with --resume (state in {trainer.state})"
            ) from None
    stage.finish()
    return trainer.outdir / "model.safetensors"


def run(config: Path, *, resume: bool = False, overrides: Sequence[str] = ()) -> Path:
    """Train the model that a YAML describes; returns the path of the weights."""
    if importlib.util.find_spec("accelerate") is None:
        raise ConfigError("training needs accelerate: pip install 'ldm-cli[train]'")
    tree = override(read_config(config), overrides)
    plan = Plan.from_config(tree)
    section = tree.tree.get("data") or {}
    if section.get("target") != "ldm.data.Scenes":
        raise ConfigError(f"{tree.source}: data.target must be ldm.data.Scenes")
    data = Scenes(**(section.get("params") or {}))
    target = str((tree.tree.get("model") or {}).get("target"))
    kind = AutoencoderStage if target.startswith("ldm.models.autoencoder.") else DiffusionStage
    torch.manual_seed(plan.seed)
    stage: Stage = kind(tree, plan, data)
    return fit(stage, plan, resume=resume)
