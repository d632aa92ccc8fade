"""Names of an autoencoder's tensors in separate files, whole checkpoints and diffusers files.

Torch-free: the header alone shows whether a file fits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ldm.checkpoints.weights.header import Header
from ldm.checkpoints.weights.keys import Shapes, compare, explain
from ldm.errors import CheckpointError

FIRST_STAGE = "first_stage_model."
_CODEBOOK = "quantize.embedding.weight"
# For training only: the discriminator and perceptual network, and the EMA copy.
_TRAINING = ("loss.", "model_ema.")

# diffusers' names -> the originals', applied in this order. Then the decoder's levels are
# renumbered: the originals count them from the pixels, diffusers from the latents.
_RENAMED = (
    (r"^(encoder|decoder)\.conv_norm_out\.", r"\1.norm_out."),
    (r"\.mid_block\.attentions\.0\.", r".mid.attn_1."),
    (r"\.mid_block\.resnets\.0\.", r".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", r".mid.block_2."),
    (r"\.(down|up)_blocks\.(\d+)\.resnets\.", r".\1.\2.block."),
    (r"\.(down|up)_blocks\.(\d+)\.attentions\.", r".\1.\2.attn."),
    (r"\.(down|up)_blocks\.(\d+)\.(down|up)samplers\.0\.", r".\1.\2.\3sample."),
    (r"\.conv_shortcut\.", r".nin_shortcut."),
    (r"\.group_norm\.", r".norm."),
    (r"\.(to_q|query)\.", r".q."),
    (r"\.(to_k|key)\.", r".k."),
    (r"\.(to_v|value)\.", r".v."),
    (r"\.(to_out\.0|proj_attn)\.", r".proj_out."),
)
_DIFFUSERS = re.compile(r"^(encoder\.down_blocks|decoder\.up_blocks|(en|de)coder\.mid_block)\.")
_UP = re.compile(r"^decoder\.up\.(\d+)\.")


def autoencoder_keys(keys: Iterable[str]) -> dict[str, str]:
    """The original name of each autoencoder tensor -> its name in a file with `keys`.

    Three layouts: a whole checkpoint (keys under `first_stage_model.`), diffusers' with the names
    of old and new versions, and the bare original. Tensors used only in training are omitted.
    """
    keys = list(keys)
    if any(key.startswith(FIRST_STAGE) for key in keys):
        named = {k.removeprefix(FIRST_STAGE): k for k in keys if k.startswith(FIRST_STAGE)}
    elif any(_DIFFUSERS.match(key) for key in keys):
        named = _from_diffusers(keys)
    else:
        named = {key: key for key in keys}
    return {name: key for name, key in named.items() if not name.startswith(_TRAINING)}


def _from_diffusers(keys: Iterable[str]) -> dict[str, str]:
    named = {}
    for key in keys:
        name = key
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        named[name] = key
    last = _levels(named) - 1
    return {
        _UP.sub(lambda found: f"decoder.up.{last - int(found[1])}.", name): key
        for name, key in named.items()
    }


def autoencoder_sources(header: Header, expected: Shapes) -> dict[str, str]:
    """The file's key for each of the autoencoder's keys; raises CheckpointError if it does not fit.

    `expected` are the bare names (encoder., decoder. ...) and shapes of the autoencoder to fill. An
    attention weight [C,C] in the file serves as a 1x1 convolution's [C,C,1,1].
    """
    sources = autoencoder_keys(header.tensors)
    found = {}
    for name, key in sources.items():
        shape = header.tensors[key].shape
        pointwise = (*shape, 1, 1)
        found[name] = pointwise if expected.get(name) == pointwise else shape
    if not any(name in expected for name in found):
        raise CheckpointError(f"{header.path}: contains no known autoencoder")
    difference = _difference(found, expected)
    if difference:
        raise CheckpointError(f"{header.path}: does not fit this model: {difference}")
    return {name: sources[name] for name in expected}


def _difference(found: Shapes, expected: Shapes) -> str | None:
    """Describe the mismatch, by its reason if that is clear, else by the keys."""
    for file, model in zip(_features(found), _features(expected), strict=True):
        if file != model:
            return f"it has {file}, and the model has {model}"
    fit = compare(found, expected)
    return None if fit.good else explain(fit)


def _features(shapes: Shapes) -> tuple[str, ...]:
    """Describe the kind of autoencoder, its latent channels and its pixels per latent."""
    kind = "a codebook" if _CODEBOOK in shapes else "no codebook"
    first = shapes.get("post_quant_conv.weight") or shapes.get("decoder.conv_in.weight")
    channels = first[1] if first is not None and len(first) > 1 else 0
    factor = 2 ** (_levels(shapes) - 1)
    return kind, f"latents of {channels} channels", f"{factor} pixels per latent"


def _levels(names: Iterable[str] | Mapping[str, object]) -> int:
    """The number of resolutions of a decoder."""
    return 1 + max((int(found[1]) for found in map(_UP.match, names) if found), default=0)
