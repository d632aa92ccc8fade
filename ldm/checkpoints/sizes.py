"""Limits for the sizes in a YAML, so that an untrusted file cannot exhaust time or memory.

Each limit is several times the size in any published model. Within the limits, a model is outlined
in seconds, without memory for its weights, and must then match the shapes of its checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm.errors import ConfigError

LEVELS = 8  # entries of a list with one for each level of a network
_WIDEST = 65_536
_LARGEST = 2**63 - 1  # of any number; Python refuses to print very long ones

# Minimum and maximum of whole numbers, alone or in lists, in any section.
SIZES: Mapping[str, tuple[int, int]] = {
    # number of modules
    "num_res_blocks": (0, 8),
    "num_attention_blocks": (0, 8),
    **dict.fromkeys(("transformer_depth", "transformer_depth_middle"), (0, 16)),
    "layer_idx": (1, 128),
    **dict.fromkeys(("layers", "n_layer", "num_hidden_layers"), (1, 128)),
    "n_stages": (0, 8),
    "depth": (1, 128),  # blocks of a transformer
    # widths
    **dict.fromkeys(("ch_mult", "channel_mult"), (1, 64)),
    **dict.fromkeys(
        ("ch", "model_channels", "in_channels", "out_channels", "out_ch"), (1, _WIDEST)
    ),
    **dict.fromkeys(("z_channels", "embed_dim", "context_dim", "adm_in_channels"), (1, _WIDEST)),
    **dict.fromkeys(("hidden_size", "intermediate_size", "width", "height"), (1, _WIDEST)),
    **dict.fromkeys(
        ("heads", "head_width", "num_attention_heads", "timestep_dim", "outdim"), (1, _WIDEST)
    ),
    **dict.fromkeys(("d_model", "d_kv", "d_ff"), (1, _WIDEST)),
    "num_layers": (1, 128),
    "x_block_self_attn_layers": (0, 127),
    "pos_embed_max_size": (1, 1024),
    # -1 means "not given" in the originals
    **dict.fromkeys(("num_heads", "num_head_channels", "num_heads_upsample"), (-1, _WIDEST)),
    "num_groups": (1, _WIDEST),
    "emb_models": (0, 0),  # sections, at most LEVELS of them
    # rows of tables
    **dict.fromkeys(("n_embed", "n_classes", "num_classes", "vocab_size"), (1, 1_000_000)),
    **dict.fromkeys(("max_length", "max_seq_len", "context_length"), (1, 8192)),
    "max_position_embeddings": (1, 8192),
    **dict.fromkeys(("timesteps", "num_timesteps", "num_idx"), (2, 100_000)),
    "max_noise_level": (1, 100_000),
    # sides, in pixels or latent positions
    **dict.fromkeys(("image_size", "patch_size"), (1, 1024)),
    **dict.fromkeys(("resolution", "attn_resolutions", "attention_resolutions"), (1, _WIDEST)),
}
# Minimum and maximum of other numbers.
MEASURES: Mapping[str, tuple[float, float]] = {
    **dict.fromkeys(("linear_start", "linear_end", "cosine_s", "v_posterior", "dropout"), (0, 1)),
    "scale_factor": (1e-6, 1e6),
    "shift_factor": (-1e6, 1e6),
    "shift": (1e-3, 1e3),
    "multiplier": (1 / 64, 1),  # scales the sides of a map down to the latent's
    "mlp_ratio": (1 / 64, 64),
}


def check_sizes(tree: Mapping[str, Any], source: str) -> None:
    """Raise ConfigError for the first size in a YAML beyond its limits, naming both."""
    for section in ("model", "sampling"):
        _check(source, section, section, tree.get(section))


def _check(source: str, path: str, name: str, value: Any) -> None:
    if isinstance(value, dict):
        for key, part in value.items():
            _check(source, f"{path}.{key}", str(key), part)
    elif isinstance(value, list):
        longest = SIZES["depth"][1] if name == "x_block_self_attn_layers" else LEVELS
        if name in SIZES and len(value) > longest:
            raise ConfigError(f"{source}: {path} has {len(value)} entries, more than {longest}")
        for place, part in enumerate(value):
            _check(source, f"{path}[{place}]", name, part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        least, most = SIZES.get(name) or MEASURES.get(name) or (-_LARGEST, _LARGEST)
        if not least <= value <= most:
            too_long = isinstance(value, int) and abs(value) > _LARGEST
            shown = "a far larger number" if too_long else value
            raise ConfigError(f"{source}: {path} must be {least} to {most}, not {shown}")
