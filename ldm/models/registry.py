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
from ldm.checkpoints.sgm import MODEL, SCALINGS
from ldm.errors import ConfigError, UsageError
from ldm.models.conditioner import NUMBER_KEYS, TEXT_KEY, GeneralConditioner
from ldm.models.model import Autoencoder, Model, TextEmbedder
from ldm.models.targets import (
    AUTOENCODERS,
    DEPTH_MODELS,
    EMBEDDERS,
    IMAGE_EMBEDDERS,
    NETWORKS,
    NOISE_AUGMENTORS,
    SCHEDULE,
    SD3_TEXT_ENCODERS,
    TEXT_EMBEDDERS,
    TRANSFORMERS,
    make_schedule,
)
from ldm.nn.autoencoder import AutoencoderKL
from ldm.sampling.denoiser import Prediction
from ldm.sampling.flow import FlowSchedule
from ldm.sampling.schedule import NoiseSchedule

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


# --- models of generative-models ----------------------------------------------------------------

INPUT_KEYS = (TEXT_KEY, *NUMBER_KEYS)
_DIFFUSION = "sgm.modules.diffusionmodules."
_EMBEDDER_FIELDS: Mapping[str, Kind] = {
    "input_key": TEXT,
    "is_trainable": FLAG,
    "ucg_rate": REAL,
    "legacy_ucg_value": TEXT,
}
_CONDITIONERS: dict[str, Spec[GeneralConditioner]] = {
    "sgm.modules.GeneralConditioner": Spec(
        lambda section, used: _general_conditioner(section),
        Parameters(takes={"emb_models": LIST}, needs=frozenset({"emb_models"})),
    )
}
_DENOISERS: dict[str, Spec[tuple[Prediction, NoiseSchedule]]] = {
    f"{_DIFFUSION}denoiser.DiscreteDenoiser": Spec(
        lambda section, used: _discrete_denoiser(section),
        Parameters(
            takes={"num_idx": INT, "scaling_config": TREE, "discretization_config": TREE},
            needs=frozenset({"num_idx", "scaling_config", "discretization_config"}),
            inert=names("weighting_config do_append_zero quantize_c_noise flip"),
        ),
    )
}
_SCALINGS: dict[str, Spec[Prediction]] = {
    f"{_DIFFUSION}denoiser_scaling.{name}": Spec(lambda section, used: _scaling(section))
    for name in SCALINGS
}
_DISCRETIZATIONS: dict[str, Spec[NoiseSchedule]] = {
    f"{_DIFFUSION}discretizer.LegacyDDPMDiscretization": Spec(
        lambda section, used: make_schedule(
            {
                "linear_start": used.get("linear_start", 0.00085),
                "linear_end": used.get("linear_end", 0.012),
                "timesteps": used.get("num_timesteps", 1000),
            }
        ),
        Parameters(takes={"linear_start": REAL, "linear_end": REAL, "num_timesteps": INT}),
    )
}


def _diffusion_engine(section: Section, used: dict[str, Any]) -> Model:
    prediction, schedule = _build(_DENOISERS, _needed(section, "denoiser_config"))
    return Model(
        network=_build(NETWORKS, _needed(section, "network_config")),
        autoencoder=_build(AUTOENCODERS, _needed(section, "first_stage_config")),
        conditioner=_build(_CONDITIONERS, _needed(section, "conditioner_config")),
        schedule=schedule,
        prediction=prediction,
        scale_factor=used.get("scale_factor", 1.0),
        image_size=128,
        use_ema=used.get("use_ema", False),
    )


def _needed(section: Section, key: str) -> Section:
    nested = section.section(key)
    if nested is None:  # which `needs` excludes
        raise section.error(key, "is missing")
    return nested


def _general_conditioner(section: Section) -> GeneralConditioner:
    listed = section.listed("emb_models", _EMBEDDER_FIELDS)
    keys = [str(more.get("input_key")) for _, more in listed]
    for (nested, _), key in zip(listed, keys, strict=True):
        if key not in INPUT_KEYS:
            raise ConfigError(
                f"{section.source}: {nested.path}.input_key must be one of "
                f"{', '.join(INPUT_KEYS)}, not {key!r}"
            )
    return GeneralConditioner([_build(EMBEDDERS, nested) for nested, _ in listed], keys)


def _scaling(section: Section) -> Prediction:
    return _PREDICTIONS[SCALINGS[section.target.rpartition(".")[2]]]


def _discrete_denoiser(section: Section) -> tuple[Prediction, NoiseSchedule]:
    prediction = _build(_SCALINGS, _needed(section, "scaling_config"))
    schedule = _build(_DISCRETIZATIONS, _needed(section, "discretization_config"))
    if len(schedule) != section.params["num_idx"]:
        raise section.error("num_idx", f"must be {len(schedule)}, as the discretization has")
    return prediction, schedule


# --- Stable Diffusion 3 ---


def _flow_model(section: Section, used: dict[str, Any]) -> Model:
    """Stable Diffusion 3: a transformer, trained by flow matching, and three text encoders."""
    sections = {key: section.section(key) for key in _FLOW_SECTIONS}
    network, autoencoder, texts = sections.values()
    if network is None or autoencoder is None or texts is None:  # which `needs` excludes
        raise section.error("unet_config", "is missing")
    return Model(
        network=_build(TRANSFORMERS, network),
        autoencoder=_build(AUTOENCODERS, autoencoder),
        conditioner=_build(SD3_TEXT_ENCODERS, texts),
        schedule=FlowSchedule(used.get("shift", 3.0)),
        prediction=Prediction.FLOW,
        scale_factor=used.get("scale_factor", 1.0),
        shift_factor=used.get("shift_factor", 0.0),
        image_size=used.get("image_size", 128),
    )


_FLOW_SECTIONS = ("unet_config", "first_stage_config", "cond_stage_config")
_FLOW_TAKES: dict[str, Kind] = {
    **dict.fromkeys(_FLOW_SECTIONS, TREE),
    "shift": REAL,
    "scale_factor": REAL,
    "shift_factor": REAL,
    "image_size": INT,
}

LATENT_MODELS: dict[str, Spec[Model]] = {
    "sd3_impls.BaseModel": Spec(
        _flow_model,
        Parameters(
            takes=_FLOW_TAKES,
            needs=frozenset(_FLOW_SECTIONS),
            fixed={"parameterization": "flow"},
        ),
    ),
    MODEL: Spec(
        _diffusion_engine,
        Parameters(
            takes={
                "network_config": TREE,
                "denoiser_config": TREE,
                "first_stage_config": TREE,
                "conditioner_config": TREE,
                "scale_factor": REAL,
                "use_ema": FLAG,
            },
            needs=names("network_config denoiser_config first_stage_config conditioner_config"),
            inert=names(
                "disable_first_stage_autocast input_key log_keys no_cond_log compile_model "
                "optimizer_config scheduler_config loss_fn_config sampler_config ckpt_path "
                "network_wrapper ema_decay_rate en_and_decode_n_samples_a_time"
            ),
        ),
    ),
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
    **TRANSFORMERS,
    **AUTOENCODERS,
    **TEXT_EMBEDDERS,
    **EMBEDDERS,
    **_CONDITIONERS,
    **_DENOISERS,
    **_SCALINGS,
    **_DISCRETIZATIONS,
    **SD3_TEXT_ENCODERS,
    **IMAGE_EMBEDDERS,
    **NOISE_AUGMENTORS,
    **DEPTH_MODELS,
}
