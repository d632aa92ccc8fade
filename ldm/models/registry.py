"""From a YAML's `target:` strings to modules, by look-up: nothing that a YAML names is imported.

Three answers: *build* (the tables here and in `ldm.models.targets`), *drop* (`DROPPED`, and every
section under an inert parameter: what a trained model does not need) and *refuse* (anything else).
Every parameter of a target is in use, inert or an error, so that a typo cannot change an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from ldm.checkpoints.config import Config
from ldm.checkpoints.section import (
    FLAG,
    INT,
    REAL,
    TEXT,
    TREE,
    Kind,
    Parameters,
    Section,
    Spec,
    model_section,
    names,
    nearest,
)
from ldm.errors import ConfigError, UsageError
from ldm.models.model import Autoencoder, Model, TextEmbedder
from ldm.models.targets import (
    AUTOENCODERS,
    DEPTH_MODELS,
    IMAGE_EMBEDDERS,
    NETWORKS,
    NOISE_AUGMENTORS,
    SCHEDULE,
    TEXT_EMBEDDERS,
    make_schedule,
)
from ldm.nn.autoencoder import AutoencoderKL
from ldm.sampling.denoiser import Prediction

T = TypeVar("T")

# Targets without a part in sampling; a name that ends with a dot is a whole package.
DROPPED = ("torch.nn.Identity", "ldm.lr_scheduler.", "ldm.modules.losses.", "ldm.data.", "main.")


def build(config: Config) -> Model:
    """The model that a YAML describes; raises ConfigError.

    Call it under `torch.device("meta")` to have names and shapes only; the noise schedules are
    real numbers even then.
    """
    return _build(LATENT_MODELS, model_section(config))


def build_first_stage(config: Config) -> Autoencoder:
    """The autoencoder of a YAML: the model itself, or the `first_stage_config` of one."""
    section = model_section(config)
    if section.target in LATENT_MODELS:
        LATENT_MODELS[section.target].parameters.check(section)
        section = section.section("first_stage_config") or section
    return _build(AUTOENCODERS, section)


def build_autoencoder(config: Config) -> AutoencoderKL:
    """The same, which must be a KL autoencoder, the one kind that is trained here."""
    autoencoder = build_first_stage(config)
    if not isinstance(autoencoder, AutoencoderKL):
        raise ConfigError(f"{config.source}: the autoencoder must be an AutoencoderKL here")
    return autoencoder


def _build(table: Mapping[str, Spec[T]], section: Section) -> T:
    spec = table.get(section.target)
    if spec is None:
        raise ConfigError(_refusal(section, table))
    used = spec.parameters.check(section)
    try:
        return spec.build(section, used)
    except (UsageError, TypeError, ValueError, LookupError, ArithmeticError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if reason.startswith(f"{section.source}: "):  # a nested section's own complaint
            raise
        raise ConfigError(f"{section.source}: {section.path}.params: {reason}") from error


def _optional(table: Mapping[str, Spec[T]], section: Section | None) -> T | None:
    if section is None or _is_dropped(section.target):
        return None
    return _build(table, section)


def _refusal(section: Section, table: Mapping[str, Spec[T]]) -> str:
    where = f"{section.source}: {section.path}.target {section.target!r}"
    if section.target in TARGETS or _is_dropped(section.target):
        return f"{where} does not belong here; known here: {', '.join(table)}"
    return f"{where} is not known, and never imported; {nearest(section.target, TARGETS)}"


def _is_dropped(target: str) -> bool:
    return any(target == name or (name[-1] == "." and target.startswith(name)) for name in DROPPED)


# --- latent diffusion models ------------------------------------------------------------------

# What a YAML has in the place of a conditioner's section.
_UNCONDITIONAL = "__is_unconditional__"
_FIRST_STAGE = "__is_first_stage__"

_PREDICTIONS = {"eps": Prediction.EPS, "v": Prediction.V, "x0": Prediction.X0}

_LATENT_TAKES: dict[str, Kind] = {
    **SCHEDULE.takes,
    "unet_config": TREE,
    "first_stage_config": TREE,
    "cond_stage_config": TREE + TEXT,
    "parameterization": TEXT,
    "scale_factor": REAL,
    "v_posterior": REAL,
    "scale_by_std": FLAG,
    "conditioning_key": TEXT,
    "concat_mode": FLAG,
    "image_size": INT,
    "use_ema": FLAG,
}
_LATENT_INERT = names(
    # training and logging
    "num_timesteps_cond log_every_t monitor loss_type ckpt_path ignore_keys load_only_unet "
    "make_it_fit scheduler_config learn_logvar logvar_init original_elbo_weight l_simple_weight "
    "ucg_training reset_ema reset_num_ema_updates use_fp16 cond_stage_trainable "
    # fields of a training batch; `channels` repeats the autoencoder's embed_dim
    "first_stage_key cond_stage_key force_null_conditioning channels "
    # ancestral sampling, and the positions of patches
    "clip_denoised use_positional_encodings "
    # textual inversion, in YAMLs of its authors
    "personalization_config embedding_reg_weight unfreeze_model model_lr"
)
_FINETUNE_INERT = names(
    "finetune_keys concat_keys keep_finetune_dims c_concat_log_start c_concat_log_end"
)


def _latent_model(section: Section, used: dict[str, Any]) -> Model:
    prediction = _PREDICTIONS.get(used.get("parameterization", "eps"))
    if prediction is None:
        raise section.error("parameterization", f"must be one of {', '.join(_PREDICTIONS)}")
    network = section.section("unet_config")
    autoencoder = section.section("first_stage_config")
    if network is None or autoencoder is None:  # which `needs` excludes
        raise section.error("unet_config", "is missing")
    parts = {
        "depth_model": _optional(DEPTH_MODELS, section.section("depth_stage_config")),
        "embedder": _optional(IMAGE_EMBEDDERS, section.section("embedder_config")),
        "noise_augmentor": _optional(NOISE_AUGMENTORS, section.section("noise_aug_config")),
        "low_scale_model": _optional(NOISE_AUGMENTORS, section.section("low_scale_config")),
    }
    return Model(
        network=_build(NETWORKS, network),
        autoencoder=_build(AUTOENCODERS, autoencoder),
        conditioner=_conditioner(section),
        schedule=make_schedule(used),
        prediction=prediction,
        scale_factor=used.get("scale_factor", 1.0),
        v_posterior=used.get("v_posterior", 0.0),
        scale_by_std=used.get("scale_by_std", False),
        conditioning_key=_conditioning_key(used),
        image_size=used.get("image_size", 256),
        use_ema=used.get("use_ema", True),
        parts={name: part for name, part in parts.items() if part is not None},
    )


def _conditioner(section: Section) -> TextEmbedder | None:
    """The embedder; None if there is no condition or the autoencoder makes it."""
    if section.params.get("cond_stage_config") in (_UNCONDITIONAL, _FIRST_STAGE):
        return None
    return _optional(TEXT_EMBEDDERS, section.section("cond_stage_config"))


def _conditioning_key(used: Mapping[str, Any]) -> str:
    """How the condition enters; "none" for no condition. The originals' rule by default."""
    if used.get("cond_stage_config", _UNCONDITIONAL) == _UNCONDITIONAL:
        return "none"
    default = "concat" if used.get("concat_mode", True) else "crossattn"
    return str(used.get("conditioning_key", default))


def _latent(
    *,
    sections: tuple[str, ...] = (),
    required: tuple[str, ...] = (),
    inert: frozenset[str] = frozenset(),
) -> Spec[Model]:
    """A latent diffusion class with further nested sections and inert parameters of its own."""
    takes = {**_LATENT_TAKES, **dict.fromkeys(sections + required, TREE)}
    return Spec(
        _latent_model,
        Parameters(
            takes=takes,
            needs=frozenset({"unet_config", "first_stage_config", *required}),
            inert=_LATENT_INERT | inert,
            fixed={"given_betas": None, "cond_stage_forward": None},
        ),
    )


LATENT_MODELS: dict[str, Spec[Model]] = {
    "ldm.models.diffusion.ddpm.LatentDiffusion": _latent(),
    "ldm.models.diffusion.ddpm.LatentInpaintDiffusion": _latent(
        inert=_FINETUNE_INERT | {"masked_image_key"}
    ),
    "ldm.models.diffusion.ddpm.LatentDepth2ImageDiffusion": _latent(
        sections=("depth_stage_config",), inert=_FINETUNE_INERT
    ),
    "ldm.models.diffusion.ddpm.LatentUpscaleDiffusion": _latent(
        required=("low_scale_config",), inert=frozenset({"low_scale_key", "noise_level_key"})
    ),
    "ldm.models.diffusion.ddpm.LatentUpscaleFinetuneDiffusion": _latent(
        sections=("low_scale_config",),
        inert=_FINETUNE_INERT | {"low_scale_key", "reshuffle_patch_size"},
    ),
    "ldm.models.diffusion.ddpm.ImageEmbeddingConditionedLatentDiffusion": _latent(
        required=("embedder_config",),
        sections=("noise_aug_config",),
        inert=frozenset({"embedding_key", "embedding_dropout", "freeze_embedder"}),
    ),
}

TARGETS: Mapping[str, Spec[Any]] = {
    **LATENT_MODELS,
    **NETWORKS,
    **AUTOENCODERS,
    **TEXT_EMBEDDERS,
    **IMAGE_EMBEDDERS,
    **NOISE_AUGMENTORS,
    **DEPTH_MODELS,
}
