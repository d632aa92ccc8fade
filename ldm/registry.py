"""From a YAML's `target:` strings to modules, by look-up: nothing that a YAML names is imported.

Three answers: *build* (the tables below), *drop* (`DROPPED`, and every section under an inert
parameter: what a trained model does not need) and *refuse* (anything else). Every parameter of a
target is in use, inert or an error, so that a typo cannot change a picture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from ldm.conditioning import (
    CLIPEmbeddingNoiseAugmentation,
    FrozenCLIPEmbedder,
    FrozenOpenCLIPEmbedder,
    FrozenOpenCLIPImageEmbedder,
)
from ldm.config import Config
from ldm.denoiser import Prediction
from ldm.errors import ConfigError, UsageError
from ldm.model import ImageNoiseAugmentation, Model, TextEmbedder
from ldm.nn.autoencoder import AutoencoderKL
from ldm.nn.dpt import MiDaSInference
from ldm.nn.unet import UNetModel
from ldm.schedule import NoiseSchedule
from ldm.section import (
    FLAG,
    INT,
    LIST,
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

T = TypeVar("T")

# Targets without a part in sampling; a name that ends with a dot is a whole package.
DROPPED = ("torch.nn.Identity", "ldm.lr_scheduler.", "ldm.modules.losses.", "ldm.data.", "main.")


def build(config: Config) -> Model:
    """The model that a YAML describes; raises ConfigError.

    Call it under `torch.device("meta")` to have names and shapes only; the noise schedules are
    real numbers even then.
    """
    return _build(LATENT_MODELS, model_section(config))


def build_autoencoder(config: Config) -> AutoencoderKL:
    """The autoencoder of a YAML: the model itself, or the `first_stage_config` of one."""
    section = model_section(config)
    if section.target in LATENT_MODELS:
        LATENT_MODELS[section.target].parameters.check(section)
        section = section.section("first_stage_config") or section
    return _build(AUTOENCODERS, section)


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


# --- networks ---------------------------------------------------------------------------------

NETWORKS: dict[str, Spec[UNetModel]] = {
    "ldm.modules.diffusionmodules.openaimodel.UNetModel": Spec(
        lambda section, used: UNetModel(**used),
        Parameters(
            takes={
                "in_channels": INT,
                "model_channels": INT,
                "out_channels": INT,
                "num_res_blocks": INT + LIST,
                "attention_resolutions": LIST,
                "dropout": REAL,
                "channel_mult": LIST,
                "conv_resample": FLAG,
                "num_classes": INT + TEXT,
                "num_heads": INT,
                "num_head_channels": INT,
                "num_heads_upsample": INT,
                "use_scale_shift_norm": FLAG,
                "resblock_updown": FLAG,
                "use_new_attention_order": FLAG,
                "use_spatial_transformer": FLAG,
                "transformer_depth": INT + LIST,
                "context_dim": INT,
                "legacy": FLAG,
                "disable_self_attentions": LIST,
                "num_attention_blocks": LIST,
                "disable_middle_self_attn": FLAG,
                "use_linear_in_transformer": FLAG,
                "adm_in_channels": INT,
            },
            needs=names(
                "in_channels model_channels out_channels num_res_blocks attention_resolutions"
            ),
            # Precision, attention kernel and memory belong to the run, not to the model.
            inert=names(
                "image_size use_checkpoint use_fp16 use_bf16 spatial_transformer_attn_type"
            ),
            fixed={"dims": 2, "n_embed": None},
        ),
    ),
}

# --- autoencoders -----------------------------------------------------------------------------

_DDCONFIG = Parameters(
    takes={
        "double_z": FLAG,
        "z_channels": INT,
        "resolution": INT,
        "in_channels": INT,
        "out_ch": INT,
        "ch": INT,
        "ch_mult": LIST,
        "num_res_blocks": INT,
        "attn_resolutions": LIST,
        "dropout": REAL,
        "tanh_out": FLAG,
        "num_groups": INT,  # ours
    },
    needs=names(
        "z_channels resolution in_channels out_ch ch ch_mult num_res_blocks attn_resolutions"
    ),
    inert=frozenset({"attn_type"}),
    fixed={"resamp_with_conv": True, "give_pre_end": False, "use_linear_attn": False},
)


def _autoencoder_kl(section: Section, used: dict[str, Any]) -> AutoencoderKL:
    return AutoencoderKL(_DDCONFIG.check(section, "ddconfig"), used["embed_dim"])


AUTOENCODERS: dict[str, Spec[AutoencoderKL]] = {
    "ldm.models.autoencoder.AutoencoderKL": Spec(
        _autoencoder_kl,
        Parameters(
            takes={"ddconfig": TREE, "embed_dim": INT},
            needs=frozenset({"ddconfig", "embed_dim"}),
            inert=names(
                "monitor lossconfig ckpt_path ignore_keys image_key colorize_nlabels ema_decay "
                "learn_logvar"
            ),
        ),
    ),
}

# --- embedders --------------------------------------------------------------------------------

# Device and freezing belong to the run; published weights are never fetched, since the
# checkpoint has its own, so that their name only picks a size.
_EMBEDDER_INERT = frozenset({"device", "freeze"})


TEXT_EMBEDDERS: dict[str, Spec[TextEmbedder]] = {
    "ldm.modules.encoders.modules.FrozenCLIPEmbedder": Spec(
        lambda section, used: FrozenCLIPEmbedder(**used),
        Parameters(
            takes={"version": TEXT, "max_length": INT, "text_config": TREE, "kept_tokens": FLAG},
            inert=_EMBEDDER_INERT,
            fixed={"layer": "last", "layer_idx": None},
        ),
    ),
    "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder": Spec(
        lambda section, used: FrozenOpenCLIPEmbedder(**used),
        Parameters(
            takes={"arch": TEXT, "max_length": INT, "layer": TEXT, "model_config": TREE},
            inert=_EMBEDDER_INERT | {"version"},
        ),
    ),
}


def _clip_image_embedder(section: Section, used: dict[str, Any]) -> nn.Module:
    """OpenAI's tower, there written `ViT-L/14`, held under open_clip's key names."""
    arch = used["model"].replace("/", "-") + "-quickgelu"
    return FrozenOpenCLIPImageEmbedder(arch, text_layers=True)


IMAGE_EMBEDDERS: dict[str, Spec[nn.Module]] = {
    "ldm.modules.encoders.modules.FrozenOpenCLIPImageEmbedder": Spec(
        lambda section, used: FrozenOpenCLIPImageEmbedder(**used),
        Parameters(
            takes={"arch": TEXT, "model_config": TREE},
            inert=_EMBEDDER_INERT | {"version", "max_length", "ucg_rate"},
            fixed={"layer": "pooled", "antialias": True},
        ),
    ),
    "ldm.modules.encoders.modules.ClipImageEmbedder": Spec(
        _clip_image_embedder,
        Parameters(
            takes={"model": TEXT},
            needs=frozenset({"model"}),
            inert=_EMBEDDER_INERT | {"jit", "ucg_rate"},
            fixed={"antialias": True},
        ),
    ),
}

# --- noise ------------------------------------------------------------------------------------

_SCHEDULE = Parameters(
    takes={
        "timesteps": INT,
        "beta_schedule": TEXT,
        "linear_start": REAL,
        "linear_end": REAL,
        "cosine_s": REAL,
    }
)


def _schedule(used: Mapping[str, Any]) -> NoiseSchedule:
    """The noise schedule of a section; the defaults are those of the original's DDPM class."""
    with torch.device("cpu"):  # numbers, not weights: they are wanted on meta too
        return NoiseSchedule.from_betas(
            schedule=used.get("beta_schedule", "linear"),
            timesteps=used.get("timesteps", 1000),
            linear_start=used.get("linear_start", 1e-4),
            linear_end=used.get("linear_end", 2e-2),
            cosine_s=used.get("cosine_s", 8e-3),
        )


def _image_noise(section: Section, used: dict[str, Any]) -> nn.Module:
    schedule = _schedule(_SCHEDULE.check(section, "noise_schedule_config"))
    return ImageNoiseAugmentation(schedule, used.get("max_noise_level", 1000))


def _embedding_noise(section: Section, used: dict[str, Any]) -> nn.Module:
    schedule = _schedule(_SCHEDULE.check(section, "noise_schedule_config"))
    return CLIPEmbeddingNoiseAugmentation(schedule, used.get("timestep_dim", 256))


NOISE_AUGMENTORS: dict[str, Spec[nn.Module]] = {
    "ldm.modules.diffusionmodules.upscaling.ImageConcatWithNoiseAugmentation": Spec(
        _image_noise,
        Parameters(
            takes={"noise_schedule_config": TREE, "max_noise_level": INT},
            inert=frozenset({"to_cuda"}),
        ),
    ),
    "ldm.modules.encoders.modules.CLIPEmbeddingNoiseAugmentation": Spec(
        _embedding_noise,
        Parameters(
            takes={"noise_schedule_config": TREE, "timestep_dim": INT},
            inert=frozenset({"to_cuda", "max_noise_level", "clip_stats_path"}),
        ),
    ),
}


DEPTH_MODELS: dict[str, Spec[nn.Module]] = {
    "ldm.modules.midas.api.MiDaSInference": Spec(
        lambda section, used: MiDaSInference(),
        Parameters(fixed={"model_type": "dpt_hybrid"}),
    ),
}

# --- latent diffusion models ------------------------------------------------------------------

_PREDICTIONS = {"eps": Prediction.EPS, "v": Prediction.V, "x0": Prediction.X0}

_LATENT_TAKES: dict[str, Kind] = {
    **_SCHEDULE.takes,
    "unet_config": TREE,
    "first_stage_config": TREE,
    "cond_stage_config": TREE + TEXT,
    "parameterization": TEXT,
    "scale_factor": REAL,
    "v_posterior": REAL,
    "conditioning_key": TEXT,
    "image_size": INT,
    "use_ema": FLAG,
}
_LATENT_INERT = names(
    # training and logging
    "num_timesteps_cond log_every_t monitor loss_type ckpt_path ignore_keys load_only_unet "
    "make_it_fit scheduler_config learn_logvar logvar_init original_elbo_weight l_simple_weight "
    "ucg_training reset_ema reset_num_ema_updates use_fp16 cond_stage_trainable "
    # fields of a training batch; `channels` repeats the autoencoder's embed_dim
    "first_stage_key cond_stage_key concat_mode force_null_conditioning channels "
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
        schedule=_schedule(used),
        prediction=prediction,
        scale_factor=used.get("scale_factor", 1.0),
        v_posterior=used.get("v_posterior", 0.0),
        conditioning_key=used.get("conditioning_key", "crossattn"),
        image_size=used.get("image_size", 256),
        use_ema=used.get("use_ema", True),
        parts={name: part for name, part in parts.items() if part is not None},
    )


def _conditioner(section: Section) -> TextEmbedder | None:
    if section.params.get("cond_stage_config") == "__is_unconditional__":
        return None
    return _optional(TEXT_EMBEDDERS, section.section("cond_stage_config"))


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
            fixed={"given_betas": None, "scale_by_std": False, "cond_stage_forward": None},
        ),
    )


LATENT_MODELS: dict[str, Spec[Model]] = {
    "ldm.models.diffusion.ddpm.LatentDiffusion": _latent(),
    "ldm.models.diffusion.ddpm.LatentInpaintDiffusion": _latent(
        inert=_FINETUNE_INERT | {"masked_image_key"}
    ),
    "ldm.models.diffusion.ddpm.LatentDepth2ImageDiffusion": _latent(
        required=("depth_stage_config",), inert=_FINETUNE_INERT
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
