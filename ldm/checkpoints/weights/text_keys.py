"""Names of a text encoder's tensors in separate files and in whole checkpoints of SD3.

Torch-free: the header alone shows whether a file fits.
"""

from __future__ import annotations

from collections.abc import Iterable

from ldm.checkpoints.weights.header import Header
from ldm.checkpoints.weights.keys import SHARED, TABLE, Shapes, compare, explain
from ldm.errors import CheckpointError

_INSIDE = "transformer."
_TOKENS = "embed_tokens.weight", "token_embedding.weight"
# For other purposes: the decoder of a whole T5, and CLIP's other tower.
_UNUSED = ("decoder.", "lm_head.", "vision_model.", "visual_projection.", "logit_scale")


def text_encoder_keys(keys: Iterable[str], prefix: str) -> dict[str, str]:
    """The name of each tensor below `prefix` in a whole checkpoint -> its name in a file.

    Files of an encoder alone have the names of transformers, perhaps below `transformer.`.
    """
    keys = list(keys)
    if any(key.startswith(prefix) for key in keys):
        named = {key.removeprefix(prefix): key for key in keys if key.startswith(prefix)}
    elif any(key.startswith(_INSIDE) for key in keys):
        named = {key: key for key in keys}
    else:
        named = {f"{_INSIDE}{key}": key for key in keys if not key.startswith(_UNUSED)}
    shared = named.pop(f"{_INSIDE}{SHARED}", None)
    if shared is not None:
        named.setdefault(f"{_INSIDE}{TABLE}", shared)
    return named


def text_encoder_sources(header: Header, prefix: str, expected: Shapes) -> dict[str, str]:
    """The file's key for each of an encoder's keys; raises CheckpointError if it does not fit.

    `prefix` is that of the encoder in a whole checkpoint, `expected` the names and shapes below it.
    """
    sources = text_encoder_keys(header.tensors, prefix)
    shapes = {name: header.tensors[key].shape for name, key in sources.items()}
    found, wanted = (
        {prefix + name: shape for name, shape in x.items()} for x in (shapes, expected)
    )
    if not any(key in wanted for key in found):
        raise CheckpointError(f"{header.path}: contains no such text encoder")
    for name, shape in expected.items():
        own = shapes.get(name)
        if name.endswith(_TOKENS) and own is not None and own != shape:
            raise CheckpointError(
                f"{header.path}: is another text encoder: its table of tokens is "
                f"{_size(own)}, and the model's is {_size(shape)}"
            )
    fit = compare(found, wanted)
    if not fit.good:
        raise CheckpointError(f"{header.path}: does not fit this model: {explain(fit)}")
    return {name: sources[name] for name in expected if name in sources}


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
