"""Whether a model of flow matching, or one of diffusion, can do what a job asks; without torch."""

from __future__ import annotations

from ldm.checkpoints.config import Config
from ldm.checkpoints.families.choice import LACKS_T5, Choice, is_flow
from ldm.engine.fit import model_section, size_rule, whole_number
from ldm.errors import JobError
from ldm.jobs.fields import FLOW_GRID_NAMES, FLOW_ONLY_GRIDS
from ldm.jobs.flow import parse_layers
from ldm.jobs.job import Job
from ldm.text.schedule import split_and


def check_flow(job: Job, choice: Choice) -> list[str]:
    """Raise JobError for an option that belongs to the other kind of model; returns notes."""
    if not is_flow(choice.config):
        _check_diffusion(job, choice)
        return []
    title = choice.family.title
    if job.prediction not in (None, "flow"):
        raise JobError(f"--prediction {job.prediction}: {title} predicts the flow; omit it")
    if job.grid is not None and job.grid not in FLOW_GRID_NAMES:
        known = ", ".join(FLOW_GRID_NAMES)
        raise JobError(f"--grid {job.grid} is not for {title} (known: {known})")
    if job.sampler == "tcd":
        raise JobError(f"--sampler tcd is not for {title}: it is made for other noise levels")
    if job.schedule_compat == "sgm":
        raise JobError(f"--schedule-compat sgm is for SDXL, not for {title}; omit it")
    if job.zero_snr:
        raise JobError(f"--zero-snr does nothing for {title}, which begins at pure noise; omit it")
    _check_layers(job, choice.config)
    _check_positions(job, choice.config)
    if LACKS_T5 in choice.why and job.t5 is None:
        return [
            "the checkpoint has no T5, and zeros stand for it, as in diffusers: give a file with "
            "--t5, or --t5 none for no tokens, as in ComfyUI"
        ]
    return []


def _check_diffusion(job: Job, choice: Choice) -> None:
    """Raise JobError for an option of flow matching."""
    given = {
        "--shift": job.shift,
        "--skip-layers": job.skip_layers,
        "--t5": job.t5,
        "--t5-length": job.t5_length,
        "--clip-l": job.clip_l,
        "--clip-g": job.clip_g,
        "--prediction flow": "flow" if job.prediction == "flow" else None,
        f"--grid {job.grid}": job.grid if job.grid in FLOW_ONLY_GRIDS else None,
    }
    for flag in (flag for flag, value in given.items() if value is not None):
        raise JobError(f"{flag} is for Stable Diffusion 3, not for {choice.family.title}; omit it")


def _check_layers(job: Job, config: Config) -> None:
    texts = job.prompts or (job.prompt or "",)
    if job.skip_layers and any(len(split_and(text, job.prompt_syntax)) > 1 for text in texts):
        raise JobError("--skip-layers cannot be used with AND in the prompt; omit one of them")
    depth = whole_number(model_section(config, "unet_config", "params"), "depth", 0)
    wrong = [layer for layer in parse_layers(job.skip_layers or "0") if layer >= depth]
    if wrong and job.skip_layers is not None:
        raise JobError(f"--skip-layers {wrong[0]}: this model has the layers 0 to {depth - 1}")


def _check_positions(job: Job, config: Config) -> None:
    """Raise JobError for a size beyond the network's table of positions."""
    side = whole_number(model_section(config, "unet_config", "params"), "pos_embed_max_size", 0)
    most = side * size_rule(config)[1]
    for flag, value in (("--width", job.width), ("--height", job.height)):
        if value is not None and value > most:
            raise JobError(f"{flag} must be at most {most} for this model, not {value}")
