"""The targets that a YAML may name for a part of a model, and their parameters.

A new part is a line in one of these tables; `ldm.models.registry` looks the names up.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

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
    names,
)
from ldm.models.conditioner import ConcatTimestepEmbedderND
from ldm.models.conditioning import (
    BERTEmbedder,
    ClassEmbedder,
    FrozenCLIPEmbedder,
    FrozenOpenCLIPEmbedder,
)
from ldm.models.image_embedders import (
    CLIPEmbeddingNoiseAugmentation,
    FrozenOpenCLIPImageEmbedder,
    SpatialRescaler,
)
from ldm.models.model import Autoencoder, ImageNoiseAugmentation, TextEmbedder
from ldm.models.sd3_text import SD3TextEncoders
from ldm.nn.autoencoder import AutoencoderKL
from ldm.nn.dpt import MiDaSInference
from ldm.nn.mmdit import MMDiT, MMDiTConfig
from ldm.nn.unet import UNetConfig, UNetModel
from ldm.nn.vq import VQModelInterface
from ldm.sampling.schedule import NoiseSchedule

# --- networks ---------------------------------------------------------------------------------

_SGM_UNET = Parameters(
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
        "transformer_depth": INT + LIST,
        "transformer_depth_middle": INT,
        "context_dim": INT + LIST,
        "disable_self_attentions": LIST,
        "num_attention_blocks": LIST,
        "disable_middle_self_attn": FLAG,
        "use_linear_in_transformer": FLAG,
        "adm_in_channels": INT,
        "num_groups": INT,  # ours
    },
    needs=names("in_channels model_channels out_channels num_res_blocks attention_resolutions"),
    inert=names(
        "image_size use_checkpoint use_fp16 spatial_transformer_attn_type legacy "
        "use_spatial_transformer offload_to_cpu"
    ),
    fixed={"dims": 2, "n_embed": None, "use_fairscale_checkpoint": False},
)


def _sgm_unet(section: Section, used: dict[str, Any]) -> UNetModel:
    """generative-models' network, whose context may be listed for each transformer block."""
    context = used.pop("context_dim", None)
    if isinstance(context, list):
        if len(set(context)) != 1 or type(context[0]) is not int:
            raise section.error("context_dim", "must be a list of equal numbers")
        context = context[0]
    config = UNetConfig(
        **used, context_dim=context, use_spatial_transformer=context is not None, legacy=False
    )
    return UNetModel(config)


NETWORKS: dict[str, Spec[UNetModel]] = {
    "sgm.modules.diffusionmodules.openaimodel.UNetModel": Spec(_sgm_unet, _SGM_UNET),
    "ldm.modules.diffusionmodules.openaimodel.UNetModel": Spec(
        lambda section, used: UNetModel(UNetConfig(**used)),
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
                "num_groups": INT,  # ours
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

TRANSFORMERS: dict[str, Spec[MMDiT]] = {
    "mmditx.MMDiTX": Spec(
        lambda section, used: MMDiT(MMDiTConfig(**used)),
        Parameters(
            takes={
                "depth": INT,
                "hidden_size": INT,
                "num_heads": INT,
                "pos_embed_max_size": INT,
                "adm_in_channels": INT,
                "context_dim": INT,
                "in_channels": INT,
                "out_channels": INT,
                "patch_size": INT,
                "qk_norm": TEXT,
                "x_block_self_attn_layers": LIST,
            },
            needs=names(
                "depth hidden_size num_heads pos_embed_max_size adm_in_channels context_dim"
            ),
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
        "attn_type": TEXT,
        "num_groups": INT,  # ours
    },
    needs=names(
        "z_channels resolution in_channels out_ch ch ch_mult num_res_blocks attn_resolutions"
    ),
    fixed={"resamp_with_conv": True, "give_pre_end": False, "use_linear_attn": False},
)


_AUTOENCODER_INERT = names(
    "monitor lossconfig ckpt_path ignore_keys image_key colorize_nlabels ema_decay learn_logvar"
)


def _autoencoder_kl(section: Section, used: dict[str, Any]) -> AutoencoderKL:
    return AutoencoderKL(_DDCONFIG.check(section, "ddconfig"), used["embed_dim"])


def _autoencoder_sd3(section: Section, used: dict[str, Any]) -> AutoencoderKL:
    ddconfig = _DDCONFIG.check(section, "ddconfig")
    return AutoencoderKL(ddconfig, used["embed_dim"], quant_convs=False)


def _autoencoder_vq(section: Section, used: dict[str, Any]) -> VQModelInterface:
    ddconfig = _DDCONFIG.check(section, "ddconfig")
    return VQModelInterface(ddconfig, used["embed_dim"], used["n_embed"])


_VQ: Spec[Autoencoder] = Spec(
    _autoencoder_vq,
    Parameters(
        takes={"ddconfig": TREE, "embed_dim": INT, "n_embed": INT},
        needs=frozenset({"ddconfig", "embed_dim", "n_embed"}),
        inert=_AUTOENCODER_INERT | names("batch_resize_range scheduler_config lr_g_factor use_ema"),
        fixed={"remap": None, "sane_index_shape": False},
    ),
)

_KL: Spec[Autoencoder] = Spec(
    _autoencoder_kl,
    Parameters(
        takes={"ddconfig": TREE, "embed_dim": INT},
        needs=frozenset({"ddconfig", "embed_dim"}),
        inert=_AUTOENCODER_INERT,
    ),
)

AUTOENCODERS: dict[str, Spec[Autoencoder]] = {
    "ldm.models.autoencoder.AutoencoderKL": _KL,
    "sgm.models.autoencoder.AutoencoderKL": _KL,
    "sgm.models.autoencoder.AutoencoderKLInferenceWrapper": _KL,
    "sd3_impls.SDVAE": Spec(
        _autoencoder_sd3,
        Parameters(
            takes={"ddconfig": TREE, "embed_dim": INT},
            needs=frozenset({"ddconfig", "embed_dim"}),
        ),
    ),
    "ldm.models.autoencoder.VQModelInterface": _VQ,
    "ldm.models.autoencoder.VQModel": _VQ,
}

# --- embedders --------------------------------------------------------------------------------

# Device and freezing belong to the run; published weights are never fetched, since the
# checkpoint has its own, so that their name only picks a size.
_EMBEDDER_INERT = frozenset({"device", "freeze"})

_CLIP_TAKES: Mapping[str, Kind] = {
    "version": TEXT,
    "max_length": INT,
    "text_config": TREE,
    "kept_tokens": FLAG,
    "pooled": FLAG,
    "layer": TEXT,
    "layer_idx": INT,
}
_OPEN_CLIP_TAKES: Mapping[str, Kind] = {
    "arch": TEXT,
    "max_length": INT,
    "layer": TEXT,
    "model_config": TREE,
}


def _open_clip_2(section: Section, used: dict[str, Any]) -> FrozenOpenCLIPEmbedder:
    """The text encoder that has a pooled state; `legacy`, which is the default, norms the layer."""
    normed = used.pop("legacy", True)
    pooled = used.pop("always_return_pooled", False)
    return FrozenOpenCLIPEmbedder(**used, normed=normed, pooled=pooled)


TEXT_EMBEDDERS: dict[str, Spec[TextEmbedder]] = {
    "ldm.modules.encoders.modules.FrozenCLIPEmbedder": Spec(
        lambda section, used: FrozenCLIPEmbedder(**used),
        Parameters(
            takes=_CLIP_TAKES,
            inert=_EMBEDDER_INERT,
        ),
    ),
    "ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder": Spec(
        lambda section, used: FrozenOpenCLIPEmbedder(**used),
        Parameters(
            takes=_OPEN_CLIP_TAKES,
            inert=_EMBEDDER_INERT | {"version"},
        ),
    ),
    "ldm.modules.encoders.modules.BERTEmbedder": Spec(
        lambda section, used: BERTEmbedder(**used),
        Parameters(
            takes={
                "n_embed": INT,
                "n_layer": INT,
                "vocab_size": INT,
                "max_seq_len": INT,
                "use_tokenizer": FLAG,
                "bert_vocab": TEXT,  # ours
            },
            needs=names("n_embed n_layer"),
            inert=_EMBEDDER_INERT | {"embedding_dropout"},
        ),
    ),
    "ldm.modules.encoders.modules.ClassEmbedder": Spec(
        lambda section, used: ClassEmbedder(**used),
        Parameters(
            takes={"embed_dim": INT, "n_classes": INT},
            needs=frozenset({"embed_dim"}),
            inert=_EMBEDDER_INERT | {"key", "ucg_rate"},
        ),
    ),
    "ldm.modules.encoders.modules.SpatialRescaler": Spec(
        lambda section, used: SpatialRescaler(**used),
        Parameters(
            takes={
                "n_stages": INT,
                "method": TEXT,
                "multiplier": REAL,
                "in_channels": INT,
                "out_channels": INT,
                "bias": FLAG,
            },
        ),
    ),
}


SD3_TEXT_ENCODERS: dict[str, Spec[SD3TextEncoders]] = {
    "sd3_infer.SD3Inferencer": Spec(
        lambda section, used: SD3TextEncoders(**used),
        Parameters(
            takes={
                "t5": TEXT,
                "clip_l_config": TREE,
                "clip_g_config": TREE,
                "t5_config": TREE,
            },
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

# --- embedders of a general conditioner ---------------------------------------------------------

_SGM = "sgm.modules.encoders.modules."

EMBEDDERS: dict[str, Spec[nn.Module]] = {
    f"{_SGM}FrozenCLIPEmbedder": Spec(
        lambda section, used: FrozenCLIPEmbedder(**used),
        Parameters(takes=_CLIP_TAKES, inert=_EMBEDDER_INERT, fixed={"always_return_pooled": False}),
    ),
    f"{_SGM}FrozenOpenCLIPEmbedder": Spec(
        lambda section, used: FrozenOpenCLIPEmbedder(**used),
        Parameters(takes=_OPEN_CLIP_TAKES, inert=_EMBEDDER_INERT | {"version"}),
    ),
    f"{_SGM}FrozenOpenCLIPEmbedder2": Spec(
        _open_clip_2,
        Parameters(
            takes={**_OPEN_CLIP_TAKES, "legacy": FLAG, "always_return_pooled": FLAG},
            inert=_EMBEDDER_INERT | {"version"},
        ),
    ),
    f"{_SGM}ConcatTimestepEmbedderND": Spec(
        lambda section, used: ConcatTimestepEmbedderND(**used),
        Parameters(takes={"outdim": INT}, needs=frozenset({"outdim"}), inert=_EMBEDDER_INERT),
    ),
}

# --- noise ------------------------------------------------------------------------------------

SCHEDULE = Parameters(
    takes={
        "timesteps": INT,
        "beta_schedule": TEXT,
        "linear_start": REAL,
        "linear_end": REAL,
        "cosine_s": REAL,
    }
)


def make_schedule(used: Mapping[str, Any]) -> NoiseSchedule:
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
    schedule = make_schedule(SCHEDULE.check(section, "noise_schedule_config"))
    return ImageNoiseAugmentation(schedule, used.get("max_noise_level", 1000))


def _embedding_noise(section: Section, used: dict[str, Any]) -> nn.Module:
    schedule = make_schedule(SCHEDULE.check(section, "noise_schedule_config"))
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
