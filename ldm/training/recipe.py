"""The `train` section of a YAML: the settings of a training run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args, get_type_hints

from ldm.checkpoints.config import Config
from ldm.errors import ConfigError
from ldm.jobs.options import nearest


@dataclass(frozen=True)
class Plan:
    """The `train` section of a YAML."""

    steps: int
    batch_size: int
    learning_rate: float
    outdir: str
    seed: int = 0
    schedule: str = "cosine"  # or constant; both after a linear warm-up
    warmup_steps: int = 100
    clip: float = 1.0  # largest norm of all gradients together
    ema_decay: float = 0.999
    precision: str = "auto"  # no, bf16, fp16; auto is bf16 where the machine has it in hardware
    compile: bool = False
    init: str | None = None  # weights to start from; for a diffusion model also the autoencoder's
    autoencoder: str | None = None  # weights of the first stage
    text_steps: int = 0  # diffusion: steps that teach the text conditioner alone, before the rest
    crop: int | None = None  # autoencoder: side of the training crops, in pixels
    mse_weight: float = 0.0  # autoencoder: squared error besides the L1 loss, for large errors
    kl_weight: float = 1e-6  # autoencoder: per value of the image, as in the original loss
    scenes: int = 20000  # diffusion: images encoded beforehand
    noise_bias: float = 1.0  # diffusion: density of t rises as t**(noise_bias - 1); words act late
    layout_weight: float = 0.0  # diffusion: weight of the layout loss (`ldm.training.layout`)
    drop_vector: float = 0.0  # diffusion: share trained without the pooled text
    drop_caption: float = 0.1  # diffusion: share trained without text, for guidance
    sample_every: int = 500
    save_every: int = 500
    log_every: int = 25

    @classmethod
    def from_config(cls, config: Config) -> Plan:
        """Read the section; an unknown, missing or ill-typed field is a ConfigError naming it."""
        section = config.tree.get("train")
        if not isinstance(section, dict):
            raise ConfigError(f"{config.source}: training needs a train section")
        kinds = get_type_hints(cls)
        for name, value in section.items():
            if name not in kinds:
                hint = nearest(str(name), kinds)
                raise ConfigError(f"{config.source}: train.{name} is not known{hint}")
            allowed = get_args(kinds[name]) or (kinds[name],)
            if type(value) not in allowed and not (type(value) is int and float in allowed):
                wanted = " or ".join(kind.__name__ for kind in allowed)
                raise ConfigError(f"{config.source}: train.{name} must be {wanted}, not {value!r}")
        for name in ("steps", "batch_size", "learning_rate", "outdir"):
            if name not in section:
                raise ConfigError(f"{config.source}: train.{name} is missing")
        plan = cls(**section)
        for name, choices in _CHOICES.items():
            if getattr(plan, name) not in choices:
                raise ConfigError(
                    f"{config.source}: train.{name} must be one of {', '.join(choices)}"
                )
        if plan.steps < 1 or plan.batch_size < 1:
            raise ConfigError(f"{config.source}: train.steps and train.batch_size must be positive")
        return plan


_CHOICES = {"schedule": ("cosine", "constant"), "precision": ("auto", "no", "bf16", "fp16")}
