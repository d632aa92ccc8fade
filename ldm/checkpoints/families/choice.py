"""Choose the YAML and the family of a checkpoint, with reasons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ldm.checkpoints.config import Config, override, read_config
from ldm.checkpoints.families import FAMILIES, candidates, detect, yaml_beside, yaml_of
from ldm.checkpoints.families.family import Family
from ldm.checkpoints.sgm import as_older, input_keys, is_sgm
from ldm.checkpoints.weights.header import Header
from ldm.checkpoints.weights.keys import T5, V_PRED
from ldm.errors import CheckpointError, ConfigError
from ldm.jobs.job import Defaults
from ldm.jobs.options import nearest

# ModelSpec's field in a .safetensors header, and its names of the prediction types.
_SPEC = "modelspec.prediction_type"
_SPEC_WORDS = {"epsilon": "eps", "eps": "eps", "v": "v"}
# The target of a section without a module.
NOTHING = "torch.nn.Identity"
_DEPTH = "depth_stage_config"


@dataclass(frozen=True)
class Choice:
    """A YAML and a family for a checkpoint.

    `why` names the origin of the YAML, `prediction_why` that of eps or v; the latter is empty if
    only a measurement of the loaded network can decide.
    """

    config: Config
    family: Family
    why: str
    prediction_why: str


def choose(header: Header, config: Path | None = None, overrides: Sequence[str] = ()) -> Choice:
    """Choose the given YAML, else the one beside the checkpoint, else the detected family's.

    Raises ConfigError for an unreadable YAML, and CheckpointError if there is no YAML and not
    exactly one family fits the header. A checkpoint without its depth network, which may come from
    a separate file, is loaded without one, and so is one without its T5.
    """
    choice = _chosen(header, config, overrides)
    if is_flow(choice.config):
        return _without_lacking_t5(header, choice)
    holds = any(key.startswith("depth_model.") for key in header.tensors)
    if holds or _params(choice.config).get(_DEPTH) is None:
        return choice
    tree = override(choice.config, [f"model.params.{_DEPTH}={{target: {NOTHING}}}"])
    return replace(choice, config=tree, why=f"{choice.why}; the file has no depth network")


def is_flow(config: Config) -> bool:
    """Whether a YAML describes a model of flow matching."""
    return _prediction(config) == "flow"


def t5_of(config: Config) -> str:
    """What a YAML says about T5: file, zeros or none."""
    return str(_params(config, "cond_stage_config").get("t5") or "file")


def _without_lacking_t5(header: Header, choice: Choice) -> Choice:
    """The choice with zeros for T5 where neither the checkpoint nor the YAML has it."""
    said = _params(choice.config, "cond_stage_config").get("t5") is not None
    if said or any(key.startswith(T5) for key in header.tensors):
        return choice
    tree = override(choice.config, ["model.params.cond_stage_config.params.t5=zeros"])
    return replace(choice, config=tree, why=f"{choice.why}; {LACKS_T5}")


LACKS_T5 = "the file has no T5"


def _chosen(header: Header, config: Path | None, overrides: Sequence[str]) -> Choice:
    path, why = config, "asked for"
    if path is None:
        path, why = yaml_beside(header.path), "in the checkpoint's folder, beside it"
    if path is not None:
        tree = override(read_config(path), overrides)
        return _by_yaml(header, tree, f"{path} ({why})")
    family = detect(header)
    twin = FAMILIES.get(family.twin or "")
    specified, reason = _specified(header)
    prediction_why = f"every {family.title} checkpoint" if twin is None else ""
    if twin is not None and specified is not None:
        family = family if specified == family.prediction else twin
        prediction_why = reason
    tree = override(read_config(yaml_of(family)), overrides)
    choice = Choice(tree, family, f"{family.yaml} (found from the header)", prediction_why)
    if _prediction(tree) != family.prediction:
        return with_prediction(choice, _prediction(tree), "--set")
    if V_PRED in header.tensors:
        return with_prediction(choice, "v", f"the file has the key {V_PRED}")
    return choice


def _specified(header: Header) -> tuple[str | None, str]:
    """The prediction type that a file itself names, if it does, and where."""
    if V_PRED in header.tensors:
        return "v", f"the file has the key {V_PRED}"
    return _SPEC_WORDS.get(header.metadata.get(_SPEC, "")), f"the file's {_SPEC}"


def with_prediction(choice: Choice, prediction: str, why: str) -> Choice:
    """The same choice with a known prediction type, which selects one of two twins."""
    twin = FAMILIES.get(choice.family.twin or "")
    family = choice.family
    if family.prediction != prediction:
        family = twin if twin is not None else replace(family, prediction=prediction)
    return replace(choice, family=family, prediction_why=why)


def fitting_yamls(header: Header, used: str) -> list[Path]:
    """YAMLs that may fit better than the one used: the one beside the file, and the family's."""
    found = [yaml_beside(header.path)]
    found += [yaml_of(family) for family in candidates(header.shapes)]
    return [path for path in found if path is not None and str(path) != used]


def _by_yaml(header: Header, config: Config, why: str) -> Choice:
    prediction = _prediction(config)
    try:
        family = detect(header)
    except CheckpointError:
        family = _own_family(header, config)
    else:  # whose defaults another YAML for the same network may change
        family = replace(family, defaults=_sampling(config, family.defaults))
    choice = Choice(config, family, why, "")
    where = "scaling_config" if is_sgm(config) else "parameterization"
    return with_prediction(choice, prediction, f"{config.source}: {where}")


def _own_family(header: Header, config: Config) -> Family:
    """A family for a single checkpoint of unknown size, described by its YAML."""
    params = _params(config)
    ddconfig = _params(config, "first_stage_config").get("ddconfig")
    levels = ddconfig.get("ch_mult") if isinstance(ddconfig, dict) else None
    factor = 2 ** (len(levels) - 1 if isinstance(levels, list) and levels else 3)
    keys = input_keys(config)
    image_size = params.get("image_size", 128 if len(keys) > 1 else None)
    side = (image_size if isinstance(image_size, int) else 64) * factor
    stage = params.get("cond_stage_config")
    open_clip = isinstance(stage, dict) and "OpenCLIP" in str(stage.get("target"))
    task = _task(config)
    scale = 1.0 if task == "sample" else 9.0 if open_clip else 7.5
    sampler, strength, origin = "ddim", 0.75, f"image_size of {config.source}"
    if len(keys) > 1:  # SDXL
        refines = "aesthetic_score" in keys
        scale, strength = (5.0, 0.3) if refines else (7.0, 0.75)
        sampler, origin = "euler", f"the kind of model of {config.source}"
    defaults = Defaults(side, side, scale, 50, sampler, origin, strength=strength)
    return Family(
        name=header.path.stem,
        title=f"{header.path.stem}, of a size of its own",
        yaml=config.source,
        prediction=_prediction(config),
        defaults=_sampling(config, defaults),
        needs={},
        task=task,
    )


# The task of an original model by its class, else by its conditioning.
_TASKS = {
    "LatentInpaintDiffusion": "inpaint",
    "LatentDepth2ImageDiffusion": "depth2img",
    "LatentUpscaleDiffusion": "upscale",
    "ImageEmbeddingConditionedLatentDiffusion": "variations",
    "__is_first_stage__": "inpaint",
    "__is_unconditional__": "sample",
    "ClassEmbedder": "sample",
    "SpatialRescaler": "map2img",
    "Identity": "upscale",
}


def _task(config: Config) -> str:
    """The task of a YAML's model."""
    if _params(config, "cond_stage_config").get("use_tokenizer") is False:
        return "layout2img"
    model = config.tree.get("model")
    stage = _params(config).get("cond_stage_config")
    targets = [model.get("target") if isinstance(model, dict) else None]
    targets.append(stage.get("target") if isinstance(stage, dict) else stage)
    if is_sgm(config) and _params(config, "unet_config").get("in_channels") == 9:
        return "inpaint"
    names = [str(target).rpartition(".")[2] for target in targets]
    return next((_TASKS[name] for name in names if name in _TASKS), "txt2img")


def _sampling(config: Config, defaults: Defaults) -> Defaults:
    """The defaults with those in the YAML's own `sampling` section (our addition) applied."""
    section = config.tree.get("sampling")
    if section is None:
        return defaults
    known = {"width": int, "height": int, "scale": float, "steps": int, "sampler": str}
    if not isinstance(section, dict):
        raise ConfigError(f"{config.source}: sampling must be a section of {', '.join(known)}")
    for name, value in section.items():
        if name not in known:
            hint = nearest(str(name), known)
            raise ConfigError(f"{config.source}: sampling.{name} is not a default{hint}")
        if type(value) is not known[name] and not (known[name] is float and type(value) is int):
            raise ConfigError(
                f"{config.source}: sampling.{name} must be {known[name].__name__}, not {value!r}"
            )
    return replace(defaults, **section, source=f"sampling in {config.source}")


def _prediction(config: Config) -> str:
    return str(_params(config).get("parameterization") or "eps")


def _params(config: Config, section: str | None = None) -> dict[str, Any]:
    """The model's parameters, or those of a nested section; a malformed section counts as empty.

    The registry reports it when it builds the model.
    """
    tree: Any = config.tree.get("model")
    tree = tree.get("params") if isinstance(tree, dict) else None
    tree = as_older(tree) if isinstance(tree, dict) else tree
    if section is not None and isinstance(tree, dict):
        tree = tree.get(section)
        tree = tree.get("params") if isinstance(tree, dict) else None
    return tree if isinstance(tree, dict) else {}
