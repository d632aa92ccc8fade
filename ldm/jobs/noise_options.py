"""The options of a sampler about its noise and guidance: what fits which sampler."""

from __future__ import annotations

from ldm.errors import JobError
from ldm.jobs.fields import (
    CFG_PP_SAMPLERS,
    CHURN_SAMPLERS,
    ETA_SAMPLERS,
    NOISY_SAMPLERS,
    OWN_STEPS,
    SAMPLER_NAMES,
    Fields,
)


def check_noise(job: Fields) -> None:
    """Raise JobError for values out of range, and for an option that does nothing."""
    named = {"--s-churn": job.s_churn, "--s-tmin": job.s_tmin, "--s-tmax": job.s_tmax}
    for flag, value in {**named, "--s-noise": job.s_noise}.items():
        if value is not None and not value >= 0:
            raise JobError(f"{flag} must be 0 or more, not {value:g}")
    if not job.s_churn and (job.s_tmin is not None or job.s_tmax is not None):
        raise JobError("--s-tmin and --s-tmax do nothing without --s-churn; give it, too")
    if not 0 <= job.guidance_rescale <= 1:
        raise JobError(f"--guidance-rescale must be 0 to 1, not {job.guidance_rescale:g}")
    sampler = SAMPLER_NAMES.get(job.sampler or "")
    if sampler and job.s_churn and sampler not in CHURN_SAMPLERS:
        known = ", ".join(CHURN_SAMPLERS)
        raise JobError(f"--s-churn: {sampler} has no use for it; it is for {known}")
    if sampler in CFG_PP_SAMPLERS and job.task == "upscale":
        raise JobError(f"--sampler {sampler} does not work in tiles; take another to upscale")


def noise_notes(job: Fields) -> list[str]:
    """What a resolved job says about noise and guidance that its sampler takes no notice of."""
    sampler, notes = job.sampler or "", []
    draws = sampler in NOISY_SAMPLERS
    if job.eta and sampler not in ETA_SAMPLERS:
        why = "adds a fixed amount of noise" if draws else "draws no noise"
        notes.append(f"--eta is ignored: {sampler} {why}")
    adds = draws or job.s_churn or job.eta or (job.eta is None and sampler in ETA_SAMPLERS)
    if job.s_noise is not None and not adds:
        notes.append(f"--s-noise is ignored: {sampler} adds no noise here")
    own_steps = sampler in OWN_STEPS and (sampler != "restart" or (job.steps or 0) >= 20)
    if job.grid is not None and own_steps:
        notes.append(f"--grid {job.grid} sets only the ends: {sampler} chooses its own steps")
    if job.guidance_rescale and job.scale == 1:
        notes.append("--guidance-rescale is ignored: --scale 1 has no guidance")
    return notes
