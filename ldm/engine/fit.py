"""Whether a checkpoint can do a job: its task, size, parts and noise levels; without torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ldm.checkpoints.components import (
    AUTOENCODER,
    TEXT_ENCODERS,
    Component,
    files_of,
    lacking,
    without,
)
from ldm.checkpoints.config import Config
from ldm.checkpoints.families.choice import NOTHING, Choice, is_flow
from ldm.checkpoints.locate import (
    FITTING,
    able_models,
    header_of,
)
from ldm.checkpoints.lora import find_lora, match_lora
from ldm.checkpoints.sgm import as_older, input_keys, text_encoders
from ldm.checkpoints.weights.depth_keys import is_depth_model
from ldm.checkpoints.weights.header import Header
from ldm.checkpoints.weights.keys import CLIP_G, CLIP_L, listed
from ldm.checkpoints.weights.text_keys import text_encoder_sources
from ldm.checkpoints.weights.vae_keys import FIRST_STAGE, autoencoder_keys, autoencoder_sources
from ldm.errors import CheckpointError, ConfigError, JobError
from ldm.jobs.fields import IMAGE_TASKS, PARTIAL
from ldm.jobs.hires import hires_size
from ldm.jobs.job import Job
from ldm.models.inventory import expected_shapes
from ldm.text.schedule import split_and


def check_task(task: str, choice: Choice) -> None:
    """Raise JobError where the model cannot do the task, ConfigError where a YAML has no model."""
    if not model_section(choice.config):
        raise ConfigError(f"{choice.config.source}: has no section model.params; check --config")
    family = choice.family
    if family.task not in FITTING.get(task, (task,)):
        raise JobError(
            f"{family.title} is a model for {family.task}, not for {task}; "
            f"use another --model{able_models(task)}"
        )
    if task == "txt2img" and "aesthetic_score" in input_keys(choice.config):
        raise JobError(
            "SDXL's refiner only refines an image; use ldm img2img, or the base as --model"
        )


def check_model(job: Job, choice: Choice, *, script: bool = False) -> list[str]:
    """Raise JobError if the model cannot generate the size, or --C or --f contradict it.

    Returns notes. A script of the originals takes only multiples of what the network halves.
    """
    factor, multiple = size_rule(choice.config)
    step = multiple if script else factor if job.hires else 1
    sides = () if job.task in IMAGE_TASKS else (("--width", job.width), ("--height", job.height))
    notes = []
    for flag, value in sides:
        if value is not None and value % step:
            near = max(step, round(value / step) * step)
            raise JobError(f"{flag} must be a multiple of {step} here, not {value}; try {near}")
    if any(value is not None and value % factor for _, value in sides):
        width, height = (-(-(value or 0) // factor) * factor for _, value in sides)
        notes.append(
            f"{job.width}x{job.height} is generated as {width}x{height} and cropped: this model's "
            f"sides are multiples of {factor}"
        )
    if job.factor not in (None, factor):
        raise JobError(f"--f {job.factor}: this model has {factor} pixels per latent position")
    channels = model_section(choice.config, "first_stage_config", "params").get("embed_dim")
    if job.channels is not None and job.channels != channels:
        raise JobError(f"--C {job.channels}: this model's latents have {channels} channels")
    return notes


def check_components(job: Job, header: Header, choice: Choice) -> None:
    """Raise CheckpointError where the checkpoint lacks a part that must be given then."""
    needed = [AUTOENCODER.prefix] if model_section(choice.config, "first_stage_config") else []
    if is_flow(choice.config):
        needed += [CLIP_L, CLIP_G]
    part = lacking(header.tensors, without(needed, files_of(job)))
    if part is not None:
        raise CheckpointError(f"{header.path}: {part}")


def check_parts(job: Job, choice: Choice) -> None:
    """Raise JobError where the model lacks a part that the job needs, CheckpointError where a part
    that is given is none."""
    most = most_noise(job.task, choice.config)
    if (job.noise_level or 0) > most:
        rule = f"must be 0 to {most} for this model" if most else "is not supported by this model"
        raise JobError(f"--noise-level {rule}, not {job.noise_level}")
    if job.task == "depth2img" and job.depth is None and job.depth_model is None:
        target = str(model_section(choice.config, "depth_stage_config").get("target", ""))
        if target in ("", NOTHING):
            raise JobError(
                "this model has no depth network: give a depth map with --depth, "
                "or a network to estimate it with --depth-model"
            )
    _check_conditions(job, choice)
    if job.vae is not None:
        check_autoencoder(job.vae, choice.config)
    if job.depth_model is not None:
        check_depth_model(job.depth_model)
    for component in TEXT_ENCODERS:
        path = files_of(job).get(component.prefix)
        if path is not None:
            check_text_encoder(component, str(path), choice.config)


def _check_conditions(job: Job, choice: Choice) -> None:
    """Raise JobError for a condition that the model does not take."""
    keys = input_keys(choice.config)
    wanted = {
        "--original-size": (job.original_size, "original_size_as_tuple"),
        "--crop": (job.crop, "crop_coords_top_left"),
        "--target-size": (job.target_size, "target_size_as_tuple"),
        "--aesthetic-score": (job.aesthetic_score, "aesthetic_score"),
        "--negative-aesthetic-score": (job.negative_aesthetic_score, "aesthetic_score"),
    }
    for flag, (value, key) in wanted.items():
        if value is not None and key not in keys:
            kind = "the refiner of SDXL" if key == "aesthetic_score" else "SDXL"
            raise JobError(f"{flag} is for {kind}, and this model does not take it; omit it")
    second = {"--prompt-2": job.prompt_2, "--negative-2": job.negative_2}
    encoders = len(text_encoders(model_section(choice.config)))
    for flag, text in second.items():
        if text is not None and encoders < 2:
            raise JobError(f"{flag}: this model has no second text encoder; omit it")
        if text is not None and len(split_and(text, job.prompt_syntax)) > 1:
            raise JobError(f"{flag} cannot contain AND; write it in --prompt")
    if job.unconditional == "zeros" and not keys:
        raise JobError("--unconditional zeros is for SDXL; omit it")


def check_loras(job: Job, choice: Choice) -> tuple[tuple[str, ...], list[str]]:
    """The file of each LoRA that a job names, as `name=path`, and notes about what matched.

    Raises CheckpointError for a file that is missing, or made for another model.
    """
    prompts = job.prompts or (job.prompt or "",)
    names = {lora.name: lora for text in prompts for lora in job.loras_of(text)}
    notes, files = [], []
    for name in names:
        path = find_lora(name)
        found = match_lora(path, expected_shapes(choice.config))
        files.append(f"{name}={path.as_posix()}")
        notes.append(f"LoRA {name}: {found.matched} of {len(found.header.tensors)} tensors match")
        if found.unmatched:
            notes[-1] += f"; without effect: {listed(found.unmatched, 3)}"
    return tuple(files), notes


def check_autoencoder(name: str, config: Config) -> None:
    """Raise CheckpointError where a file holds no autoencoder for the model of a YAML."""
    header = _header_of("--vae", name)
    if "decoder.conv_in.weight" not in autoencoder_keys(header.tensors):
        raise CheckpointError(
            f"--vae {name}: contains no autoencoder; give the file of one, or of a whole model"
        )
    shapes = expected_shapes(config)
    own = {k.removeprefix(FIRST_STAGE): s for k, s in shapes.items() if k.startswith(FIRST_STAGE)}
    autoencoder_sources(header, own)


def check_text_encoder(component: Component, name: str, config: Config) -> None:
    """Raise CheckpointError where a file holds no such text encoder for the model of a YAML."""
    header = _header_of(component.flag, name)
    prefix, shapes = component.prefix, expected_shapes(config)
    own = {k.removeprefix(prefix): s for k, s in shapes.items() if k.startswith(prefix)}
    text_encoder_sources(header, prefix, own)


def check_depth_model(name: str) -> None:
    """Raise CheckpointError where a file holds no depth network."""
    if not is_depth_model(_header_of("--depth-model", name).tensors):
        raise CheckpointError(
            f"--depth-model {name}: contains no DPT-hybrid; give dpt_hybrid-midas-501f0c75.pt, "
            "the weights of Intel/dpt-hybrid-midas, or a v2-midas checkpoint"
        )


def _header_of(flag: str, name: str) -> Header:
    if not Path(name).is_file():
        raise CheckpointError(f"{flag} {name}: no such file; check the path")
    return header_of(Path(name))


def most_noise(task: str, config: Config) -> int:
    """The highest noise level that a model takes; 0 where it takes none."""
    section = {"upscale": "low_scale_config", "variations": "noise_aug_config"}.get(task, "")
    params = model_section(config, section, "params")
    steps = whole_number(
        model_section(config, section, "params", "noise_schedule_config"), "timesteps", 1000
    )
    known = whole_number(model_section(config, "unet_config", "params"), "num_classes", steps)
    most = whole_number(params, "max_noise_level", steps - 1)
    return min(steps - 1, known - 1, most) if params else 0


def with_sizes(job: Job, choice: Choice) -> tuple[Job, list[str]]:
    """The job with the size of its image, whose files are read and checked, and of hires fix.

    Returns notes, too.
    """
    factor, multiple = size_rule(choice.config)
    notes = []
    if job.task in IMAGE_TASKS or job.images:
        from ldm.images.sources import read_sources  # numpy, which a wrong flag need not wait for

        padded = not is_shown_the_mask_last(choice.config)
        sources = read_sources(job, multiple, padded=padded, factor=factor)
        width, height = sources.size
        if job.task in PARTIAL and sources.placement is not None and sources.is_cropped:
            (made_width, made_height), size = sources.canvas, sources.placement.source
            notes.append(
                f"{size[0]}x{size[1]} is generated as {made_width}x{made_height} and cropped: "
                "the model takes no other sides"
            )
        if job.inpaint_area == "masked":  # width and height are those of the part around the mask
            job = replace(job, whole_size=f"{width}x{height}")
        else:
            job = replace(job, width=width, height=height)
    if job.hires is None:
        return job, notes
    assert job.width is not None
    assert job.height is not None
    width, height = hires_size(job.hires, (job.width, job.height), factor)
    return replace(job, hires=f"{width}x{height}"), notes


def is_shown_the_mask_last(config: Config) -> bool:
    """Whether it is latent diffusion's inpainting model, whose images need not be padded."""
    section = model_section(config)
    channels = whole_number(model_section(config, "unet_config", "params"), "in_channels", 0)
    embed = whole_number(model_section(config, "first_stage_config", "params"), "embed_dim", 0)
    # "concat" is also what the key defaults to.
    return section.get("conditioning_key") in (None, "concat") and channels == 2 * embed + 1


def size_rule(config: Config) -> tuple[int, int]:
    """Pixels per latent position of a YAML's autoencoder, and the multiple for even division.

    A UNet halves its input once per level but the last; a transformer divides it into patches.
    """
    ddconfig = model_section(config, "first_stage_config", "params", "ddconfig")
    network = model_section(config, "unet_config", "params")
    factor = 2 ** (_levels(ddconfig, "ch_mult") - 1)
    if is_flow(config):
        return factor, factor * whole_number(network, "patch_size", 2)
    return factor, factor * 2 ** (_levels(network, "channel_mult") - 1)


def model_section(config: Config, *keys: str) -> dict[str, Any]:
    """A section below model.params; the registry reports missing or malformed ones."""
    tree: Any = config.tree
    for key in ("model", "params", *keys):
        tree = tree.get(key) if isinstance(tree, dict) else None
        tree = as_older(tree) if key == "params" and isinstance(tree, dict) else tree
    return tree if isinstance(tree, dict) else {}


def whole_number(params: dict[str, Any], name: str, default: int) -> int:
    """A whole number of a section; the registry reports malformed ones."""
    value = params.get(name)
    return value if isinstance(value, int) else default


def _levels(params: dict[str, Any], name: str) -> int:
    """How many levels a list of multipliers gives a network; 4 where there is none."""
    value = params.get(name)
    return len(value) if isinstance(value, list) and value else 4
