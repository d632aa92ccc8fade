"""The names of DPT-hybrid's tensors in its published files.

MiDaS's own file has the names of `ldm.nn.dpt.DPTDepthModel`; a v2-midas checkpoint adds a prefix;
transformers (Intel/dpt-hybrid-midas, and `depth_estimator/` of diffusers) has other names, and
separate queries, keys and values in each block.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping

# The possible prefixes of the network's names, and a name present in every file of each kind.
_CHECKPOINT = "depth_model.model."
_PREFIXES = ("", _CHECKPOINT)
_MARKER = "pretrained.model.cls_token"
_TRANSFORMERS_MARKER = "dpt.embeddings.cls_token"

# Not used for depth: the classifier's last norm and head, and the unit that would add a finer map
# to the coarsest one.
_UNUSED = ("pretrained.model.norm.", "pretrained.model.head.", "scratch.refinenet4.resConfUnit1.")

_BIT = "dpt.embeddings.backbone.bit."
_NECK = "neck.reassemble_stage."
_RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"pretrained\.model\.cls_token", ("dpt.embeddings.cls_token",)),
    (r"pretrained\.model\.pos_embed", ("dpt.embeddings.position_embeddings",)),
    (r"pretrained\.model\.patch_embed\.proj\.(\w+)", (r"dpt.embeddings.projection.\1",)),
    (
        r"pretrained\.model\.patch_embed\.backbone\.stem\.conv\.(\w+)",
        (_BIT + r"embedder.convolution.\1",),
    ),
    (
        r"pretrained\.model\.patch_embed\.backbone\.stem\.norm\.(\w+)",
        (_BIT + r"embedder.norm.\1",),
    ),
    (
        r"pretrained\.model\.patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.(.+)",
        (_BIT + r"encoder.stages.\1.layers.\2.\3",),
    ),
    (
        r"pretrained\.model\.blocks\.(\d+)\.attn\.qkv\.(\w+)",
        tuple(
            rf"dpt.encoder.layer.\1.attention.attention.{part}.\2"
            for part in ("query", "key", "value")
        ),
    ),
    *(
        (rf"pretrained\.model\.blocks\.(\d+)\.{ours}\.(\w+)", (rf"dpt.encoder.layer.\1.{name}.\2",))
        for ours, name in (
            (r"norm1", "layernorm_before"),
            (r"norm2", "layernorm_after"),
            (r"attn\.proj", "attention.output.dense"),
            (r"mlp\.fc1", "intermediate.dense"),
            (r"mlp\.fc2", "output.dense"),
        )
    ),
    (r"pretrained\.model\.norm\.(\w+)", (r"dpt.layernorm.\1",)),
    (
        r"pretrained\.act_postprocess3\.0\.project\.0\.(\w+)",
        (_NECK + r"readout_projects.2.0.\1",),
    ),
    (r"pretrained\.act_postprocess3\.3\.(\w+)", (_NECK + r"layers.2.projection.\1",)),
    (
        r"pretrained\.act_postprocess4\.0\.project\.0\.(\w+)",
        (_NECK + r"readout_projects.3.0.\1",),
    ),
    (r"pretrained\.act_postprocess4\.3\.(\w+)", (_NECK + r"layers.3.projection.\1",)),
    (r"pretrained\.act_postprocess4\.4\.(\w+)", (_NECK + r"layers.3.resize.\1",)),
    *((rf"scratch\.layer{n}_rn\.(\w+)", (rf"neck.convs.{n - 1}.\1",)) for n in (1, 2, 3, 4)),
    # transformers numbers the fusions from the coarsest.
    *(
        (
            rf"scratch\.refinenet{n}\.out_conv\.(\w+)",
            (rf"neck.fusion_stage.layers.{4 - n}.projection.\1",),
        )
        for n in (1, 2, 3, 4)
    ),
    *(
        (
            rf"scratch\.refinenet{n}\.resConfUnit(\d)\.conv(\d)\.(\w+)",
            (rf"neck.fusion_stage.layers.{4 - n}.residual_layer\1.convolution\2.\3",),
        )
        for n in (1, 2, 3, 4)
    ),
    (r"scratch\.output_conv\.(\d)\.(\w+)", (r"head.head.\1.\2",)),
)


def transformers_names(key: str) -> tuple[str, ...]:
    """The transformers tensors that, concatenated by rows, form one of ours; maybe none."""
    for pattern, names in _RULES:
        if found := re.fullmatch(pattern, key):
            return tuple(found.expand(name) for name in names)
    return ()


def depth_sources(keys: Iterable[str], names: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Our key -> the file's names for it, which may be absent from the file.

    `keys` are those of `DPTDepthModel`, `names` the file's. Empty for any other file.
    """
    for prefix in _PREFIXES:
        if prefix + _MARKER in names:
            return {key: (prefix + key,) for key in keys}
    if _TRANSFORMERS_MARKER in names:
        return {key: transformers_names(key) for key in keys}
    return {}


def is_depth_model(names: Collection[str]) -> bool:
    """True for the names of a published DPT-hybrid file."""
    return any(
        marker in names for marker in (*(p + _MARKER for p in _PREFIXES), _TRANSFORMERS_MARKER)
    )


def left_over(names: Collection[str], sources: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The file's names not in `sources`; for a v2-midas checkpoint only its depth model's."""
    used = {name for wanted in sources.values() for name in wanted}
    whole = any(name.startswith(_CHECKPOINT) for name in names)
    return tuple(
        name for name in names if name not in used and (name.startswith(_CHECKPOINT) or not whole)
    )


def may_be_absent(key: str) -> bool:
    """True for one of our keys that depth does not depend on."""
    return key.startswith(_UNUSED)
