"""Names of tensors in LoRA files and their kin, in every published layout, and what they change.

A file's key is a part of a model, a module's name and the tensor's role there. Module names are
compared with dots as underscores, and looked up in a table made of the model's own keys: no name
is parsed. Torch-free: the header alone shows what a file changes.

Layouts: kohya's sd-scripts (lora_unet_, lora_te_, ...), LyCORIS (the same, and lycoris_),
OneTrainer (lora_transformer_), diffusers (unet., text_encoder.; before 2023-06
.processor.to_q_lora.), PEFT (base_model.model.), ComfyUI (diffusion_model., text_encoders.).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ldm.checkpoints.weights.keys import NETWORK, Shapes

UNET = "network"
ENCODERS = ("text encoder", "text encoder 2", "text encoder 3")

# Prefixes of a file's keys -> the part of a model; the longest that fits counts.
PREFIXES: Mapping[str, str] = {
    "lora_unet_": UNET,
    "oft_unet_": UNET,
    "lycoris_": UNET,
    "lora_transformer_": UNET,
    "unet.": UNET,
    "transformer.": UNET,
    "diffusion_model.": UNET,
    "model.diffusion_model.": UNET,
    "base_model.model.": UNET,
    "": UNET,
    "lora_te_": ENCODERS[0],
    "lora_te1_": ENCODERS[0],
    "oft_te_": ENCODERS[0],
    "text_encoder.": ENCODERS[0],
    "text_encoders.clip_l.transformer.": ENCODERS[0],
    "text_encoders.clip_h.transformer.": ENCODERS[0],
    "clip_l.transformer.": ENCODERS[0],
    "clip_l.": ENCODERS[0],
    "clip_h.transformer.": ENCODERS[0],
    "lora_te2_": ENCODERS[1],
    "text_encoder_2.": ENCODERS[1],
    "text_encoders.clip_g.transformer.": ENCODERS[1],
    "clip_g.transformer.": ENCODERS[1],
    "clip_g.": ENCODERS[1],
    "lora_te3_": ENCODERS[2],
    "text_encoder_3.": ENCODERS[2],
    "text_encoders.t5xxl.transformer.": ENCODERS[2],
}  # fmt: skip
_BY_LENGTH = sorted(PREFIXES, key=len, reverse=True)
# sd-scripts' OFT, which limits the norm of its blocks even where alpha is 0.
LIMITED = ("oft_unet_", "oft_te_")

# A model's keys: where a text encoder's begin, in which layout, and which of the parts it is.
TOWERS: Mapping[str, tuple[str, str]] = {
    "cond_stage_model.transformer.": ("transformers", ENCODERS[0]),
    "cond_stage_model.model.": ("open_clip", ENCODERS[0]),
    "conditioner.embedders.0.transformer.": ("transformers", ENCODERS[0]),
    "conditioner.embedders.1.model.": ("open_clip", ENCODERS[1]),
}

# How a key ends -> the role of the tensor. The name of a PEFT adapter may stand in between.
_ENDS = tuple(
    (re.compile(rf"{pattern}$"), role)
    for pattern, role in (
        (r"\.lora_(?:down|A(?:\.[^.]+)?)\.weight", "down"),
        (r"\.lora_(?:up|B(?:\.[^.]+)?)\.weight", "up"),
        (r"\.lora_mid\.weight", "mid"),
        (r"(?:\.lora|\.lora_linear_layer|_lora)\.down\.weight", "down"),
        (r"(?:\.lora|\.lora_linear_layer|_lora)\.up\.weight", "up"),
        (r"\.alpha", "alpha"),
        (r"\.(?:dora_scale|lora_magnitude_vector(?:\.[^.]+)?(?:\.weight)?)", "magnitude"),
        (r"\.hada_w1_a", "w1_a"),
        (r"\.hada_w1_b", "w1_b"),
        (r"\.hada_w2_a", "w2_a"),
        (r"\.hada_w2_b", "w2_b"),
        (r"\.hada_t1", "t1"),
        (r"\.hada_t2", "t2"),
        (r"\.lokr_w1", "kron1"),
        (r"\.lokr_w1_a", "kron1_a"),
        (r"\.lokr_w1_b", "kron1_b"),
        (r"\.lokr_w2", "kron2"),
        (r"\.lokr_w2_a", "kron2_a"),
        (r"\.lokr_w2_b", "kron2_b"),
        (r"\.lokr_t2", "kron_t2"),
        (r"\.oft_(?:blocks|diag)", "blocks"),
        (r"\.rescale", "rescale"),
        (r"\.a1\.weight", "a1"),
        (r"\.a2\.weight", "a2"),
        (r"\.b1\.weight", "b1"),
        (r"\.b2\.weight", "b2"),
        (r"\.(?:diff|w_norm)", "diff"),
        (r"\.(?:diff_b|b_norm)", "diff_b"),
        (r"\.set_weight", "set"),
        (r"\.on_input", "on_input"),
        (r"\.weight", "ia3"),
    )
)  # fmt: skip

_TRANSFORMERS = {  # open_clip's names in a residual block -> transformers' in a layer
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_OUTER = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


@dataclass(frozen=True)
class Target:
    """What an adapter's module changes: a weight of the model, or some rows of it.

    `weight` and `bias` are keys of the model; `third` is 0, 1 or 2 where a packed weight holds the
    matrices of queries, keys and values one below the other.
    """

    weight: str
    bias: str
    third: int | None = None


@dataclass(frozen=True)
class Name:
    """A file's key taken apart; `module` has underscores for dots."""

    part: str
    module: str
    role: str
    limited: bool = False


def read_key(key: str) -> Name | None:
    """Take a file's key apart; None for one of no known ending."""
    found = next(((p.search(key), role) for p, role in _ENDS if p.search(key)), None)
    if found is None or found[0] is None:
        return None
    whole = key[: found[0].start()]
    prefix = next(prefix for prefix in _BY_LENGTH if whole.startswith(prefix))
    module = whole.removeprefix(prefix).replace(".processor.", ".").replace(".", "_")
    if module.endswith("_to_out"):  # diffusers' old names leave out that it is a list
        module += "_0"
    return Name(PREFIXES[prefix], module, found[1], prefix in LIMITED)


def targets_of(shapes: Shapes) -> dict[tuple[str, str], Target]:
    """(part, module's name) -> what it changes, for a model with these keys, under all names."""
    modules = {key.removesuffix(".weight") for key in shapes if key.endswith(".weight")}
    table = {}
    network = [m.removeprefix(NETWORK) for m in modules if m.startswith(NETWORK)]
    theirs = diffusers_names(network)
    for module in network:
        target = Target(f"{NETWORK}{module}.weight", f"{NETWORK}{module}.bias")
        for name in (module, theirs.get(module)):
            if name is not None:
                table[UNET, name.replace(".", "_")] = target
    for prefix, (layout, part) in TOWERS.items():
        own = [key.removeprefix(prefix) for key in shapes if key.startswith(prefix)]
        named = _plain_tower if layout == "transformers" else _open_clip_tower
        for name, target in named(own, prefix):
            table[part, name.replace(".", "_")] = target
    return table


def _plain_tower(keys: Iterable[str], prefix: str) -> Iterator[tuple[str, Target]]:
    for key in keys:
        if key.endswith(".weight"):
            name = key.removesuffix(".weight")
            yield name, Target(f"{prefix}{key}", f"{prefix}{name}.bias")


def _open_clip_tower(keys: Iterable[str], prefix: str) -> Iterator[tuple[str, Target]]:
    """Under transformers' names; queries, keys and values are thirds of one weight."""
    for key in keys:
        name = key.removesuffix(".weight")
        if key == "ln_final.weight":
            yield "text_model.final_layer_norm", Target(f"{prefix}{key}", f"{prefix}{name}.bias")
        found = re.match(r"transformer\.resblocks\.(\d+)\.(.+)", name)
        if found is None:
            continue
        layer, own = f"text_model.encoder.layers.{found[1]}", found[2]
        if own == "attn.in_proj_weight":
            bias = f"{prefix}{name.removesuffix('weight')}bias"
            for third, letter in enumerate("qkv"):
                yield f"{layer}.self_attn.{letter}_proj", Target(prefix + key, bias, third)
        elif own in _TRANSFORMERS and key.endswith(".weight"):
            target = Target(f"{prefix}{key}", f"{prefix}{name}.bias")
            yield f"{layer}.{_TRANSFORMERS[own]}", target


def diffusers_names(modules: Iterable[str]) -> dict[str, str]:
    """Our name of each module of a UNet -> diffusers' name."""
    modules = list(modules)
    places: dict[str, str] = {}
    blocks: dict[str, set[str]] = {}
    for module in modules:
        found = re.match(r"((?:input|output)_blocks\.\d+|middle_block)\.(\d+)\.(.+)", module)
        if found is not None:
            blocks.setdefault(found[1], set()).add(f"{found[2]}.{found[3]}")
    for side, letters in (("input_blocks", "down"), ("output_blocks", "up")):
        places |= _levels(blocks, side, letters)
    for index, name in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        places[f"middle_block.{index}"] = f"mid_block.{name}"
    names = {}
    for module in modules:
        if module in _OUTER:
            names[module] = _OUTER[module]
            continue
        found = re.match(r"((?:(?:input|output)_blocks\.\d+|middle_block)\.\d+)\.(.+)", module)
        if found is not None and found[1] in places:
            place, rest = places[found[1]], found[2]
            resized = "samplers" in place
            names[module] = f"{place}.{'conv' if resized else _RESNET.get(rest, rest)}"
    return names


def _levels(blocks: Mapping[str, set[str]], side: str, letters: str) -> dict[str, str]:
    """The places of one side of a UNet, such as input_blocks.1.0 -> down_blocks.0.resnets.0."""
    places, level, resnets, attentions = {}, 0, 0, 0
    numbers = sorted(int(name.rpartition(".")[2]) for name in blocks if name.startswith(side))
    for number in (n for n in numbers if n or letters == "up"):
        parts = blocks[f"{side}.{number}"]
        resized = False
        for index in sorted({part.partition(".")[0] for part in parts}):
            own = {part.partition(".")[2] for part in parts if part.startswith(f"{index}.")}
            block, place = f"{letters}_blocks.{level}", f"{side}.{number}.{index}"
            if "in_layers.2" in own:
                places[place], resnets = f"{block}.resnets.{resnets}", resnets + 1
            elif "proj_in" in own:
                places[place], attentions = f"{block}.attentions.{attentions}", attentions + 1
            else:
                places[place], resized = f"{block}.{letters}samplers.0", True
        if resized:
            level, resnets, attentions = level + 1, 0, 0
    return places
