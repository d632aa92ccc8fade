"""Sizes of CLIP towers: those of published models, and configs in the formats of two libraries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, ClassVar, TypeVar

from ldm.errors import ConfigError

C = TypeVar("C")
_ACTIVATIONS = ("quick_gelu", "gelu")


@dataclass(frozen=True)
class TextConfig:
    """Sizes of a text tower, with the field names and defaults of transformers' CLIPTextConfig.

    The defaults matter, because transformers omits fields with default values from its configs.
    """

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    hidden_act: str = "quick_gelu"
    max_position_embeddings: int = 77
    layer_norm_eps: float = 1e-5

    _INERT: ClassVar[frozenset[str]] = frozenset(
        {
            "architectures",
            "model_type",
            "bos_token_id",
            "eos_token_id",
            "pad_token_id",
            "projection_dim",
            "dropout",
            "attention_dropout",
            "initializer_factor",
            "initializer_range",
            "torch_dtype",
            "dtype",
            "transformers_version",
        }
    )

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> TextConfig:
        """Raises ConfigError for an unknown field or activation, or heads that do not divide."""
        config = read_sizes(cls, values, cls._INERT, "text_config")
        if config.hidden_act not in _ACTIVATIONS:
            raise ConfigError(f"text_config.hidden_act must be one of {', '.join(_ACTIVATIONS)}")
        if config.hidden_size % config.num_attention_heads:
            raise ConfigError("text_config.num_attention_heads must divide hidden_size")
        return config


CLIP_VIT_L_14 = TextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
CLIP_VIT_BIG_G_14 = TextConfig(
    hidden_size=1280,
    intermediate_size=5120,
    num_hidden_layers=32,
    num_attention_heads=20,
    hidden_act="gelu",
)


@dataclass(frozen=True)
class OpenTextConfig:
    """`text_cfg` of an open_clip model config, with its defaults."""

    context_length: int = 77
    vocab_size: int = 49408
    width: int = 512
    heads: int = 8
    layers: int = 12
    mlp_ratio: float = 4.0

    _INERT: ClassVar[frozenset[str]] = frozenset(
        {"ls_init_value", "pad_id", "embed_cls", "hf_tokenizer_name"}
    )


@dataclass(frozen=True)
class OpenVisionConfig:
    """`vision_cfg` of an open_clip model config, with its defaults."""

    image_size: int = 224
    layers: int = 12
    width: int = 768
    head_width: int = 64
    patch_size: int = 16
    mlp_ratio: float = 4.0

    _INERT: ClassVar[frozenset[str]] = frozenset({"ls_init_value", "patch_dropout"})


@dataclass(frozen=True)
class OpenClipConfig:
    """An open_clip model config."""

    embed_dim: int
    text: OpenTextConfig
    vision: OpenVisionConfig
    quick_gelu: bool = False

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> OpenClipConfig:
        """Raises ConfigError for an unknown field, or heads that do not divide the width."""
        for name in values:
            if name not in ("embed_dim", "text_cfg", "vision_cfg", "quick_gelu"):
                raise ConfigError(
                    f"model_config.{name} is not known; "
                    "known are embed_dim, text_cfg, vision_cfg, quick_gelu"
                )
        embed_dim = values.get("embed_dim")
        if type(embed_dim) is not int or embed_dim < 1:
            raise ConfigError(f"model_config.embed_dim must be a positive number, not {embed_dim}")
        text_values, vision_values = values.get("text_cfg") or {}, values.get("vision_cfg") or {}
        text = read_sizes(
            OpenTextConfig, text_values, OpenTextConfig._INERT, "model_config.text_cfg"
        )
        vision = read_sizes(
            OpenVisionConfig, vision_values, OpenVisionConfig._INERT, "model_config.vision_cfg"
        )
        if text.width % text.heads:
            raise ConfigError("model_config.text_cfg.heads must divide width")
        if vision.width % vision.head_width:
            raise ConfigError("model_config.vision_cfg.head_width must divide width")
        return cls(embed_dim, text, vision, bool(values.get("quick_gelu", False)))


# Names and sizes from open_clip's model_configs; OpenAI's own release uses the sigmoid gelu.
_VIT_L_14 = OpenClipConfig(
    768,
    OpenTextConfig(width=768, heads=12, layers=12),
    OpenVisionConfig(layers=24, width=1024, patch_size=14),
)
OPEN_CLIP_MODELS = {
    "ViT-H-14": OpenClipConfig(
        1024,
        OpenTextConfig(width=1024, heads=16, layers=24),
        OpenVisionConfig(layers=32, width=1280, head_width=80, patch_size=14),
    ),
    "ViT-bigG-14": OpenClipConfig(
        1280,
        OpenTextConfig(width=1280, heads=20, layers=32),
        OpenVisionConfig(layers=48, width=1664, head_width=104, patch_size=14, mlp_ratio=4.9231),
    ),
    "ViT-L-14": _VIT_L_14,
    "ViT-L-14-quickgelu": replace(_VIT_L_14, quick_gelu=True),
}


def open_clip_config(arch: str, values: Mapping[str, Any] | None) -> OpenClipConfig:
    """The config of a named architecture, or the one that the YAML spells out."""
    if values is not None:
        return OpenClipConfig.read(values)
    if arch not in OPEN_CLIP_MODELS:
        raise ConfigError(
            f"open_clip architecture {arch!r} is not known; "
            f"known are {', '.join(OPEN_CLIP_MODELS)}, or give model_config"
        )
    return OPEN_CLIP_MODELS[arch]


def read_sizes(cls: type[C], values: Mapping[str, Any], inert: frozenset[str], where: str) -> C:
    """A dataclass of sizes from a section of a YAML; null stands for a field's default.

    Raises ConfigError for an unknown field, suggesting a similar one, and for an invalid size.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} must be a mapping of names to values, not {values!r}")
    defaults = {field.name: field.default for field in fields(cls)}  # type: ignore[arg-type]
    taken: dict[str, Any] = {}
    for name, value in values.items():
        if name not in defaults:
            if name in inert:
                continue
            near = get_close_matches(str(name), [*defaults, *inert], 1)
            raise ConfigError(
                f"{where}.{name} is not known" + (f"; did you mean {near[0]}?" if near else "")
            )
        if value is None:
            continue
        kind = type(defaults[name])
        real = kind is float and type(value) is int
        if not (type(value) is kind or real) or (kind is not str and value <= 0):
            wanted = "text" if kind is str else "a positive number"
            raise ConfigError(f"{where}.{name} must be {wanted}, not {value!r}")
        taken[name] = value
    return cls(**taken)
