"""Each task as one short function from a job to a `Problem`, which the engine solves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ldm.engine.guides import Read, guides_of
from ldm.engine.problem import Given, Problem
from ldm.errors import JobError
from ldm.images.canvas import Pixels, Plane, hard_mask, latent_mask, touched_mask
from ldm.images.sources import Sources
from ldm.jobs.fields import PARTIAL
from ldm.jobs.flow import parse_layers
from ldm.jobs.job import Job
from ldm.models.conditioning import Conditioning
from ldm.models.depth import depth_concat, depth_from_map, estimate_depth
from ldm.models.encoding import PromptEncoding
from ldm.models.model import Model
from ldm.nn.autoencoder import AutoencoderKL
from ldm.sampling.denoiser import Prediction
from ldm.sampling.flow import FlowSchedule, fitting
from ldm.sampling.guidance import SkipLayers
from ldm.sampling.samplers import Churn, Sampler, find_sampler
from ldm.sampling.schedule import NoiseSchedule, Schedule, make_grid
from ldm.sampling.timesteps import Compat


def txt2img(job: Job, given: Given) -> Problem:
    """An image for each text, from noise alone; the job is one batch, resolved."""
    return _guided(job, given)


def img2img(job: Job, given: Given) -> Problem:
    """The image with noise, from where the last `strength` of the steps go on."""
    problem = _guided(job, given)
    if given.start is not None:
        return _from(problem, job, given.start.latents)
    init = given.latents(given.images(_image(given), job.n_samples))
    return _from(problem, job, init)


def inpaint(job: Job, given: Given) -> Problem:
    """New pixels where the mask is, by a network that is shown the mask, or by holding the rest."""
    model = given.model
    problem = _guided(job, given)
    assert given.sources.mask is not None
    images = given.images(_image(given), job.n_samples)
    size = (images.shape[-2] // model.factor, images.shape[-1] // model.factor)
    place = mask_place(model)
    if not place:  # a latent goes as a whole, or what is masked of it would stay
        mask = _plane(touched_mask(given.sources.mask, *size), given)
        problem = _from(problem, job, given.latents(images))
        return replace(_refilled(problem, job, mask), mask=mask)
    hard = _plane(hard_mask(given.sources.mask), given)
    mask = _plane(latent_mask(given.sources.mask, *size), given)
    if place == "first":  # Stable Diffusion: grey in the hole, mask, then the image
        hidden = given.latents(images * (hard < 0.5))
        concat = torch.cat([mask.expand(len(hidden), -1, -1, -1), hidden], dim=1)
    else:  # latent diffusion: black in the hole, unscaled, mask in -1 and 1 and last
        hidden = model.encode(images * (1 - hard) - hard, tiling=given.tiling) / model.scale_factor
        concat = torch.cat([hidden, 2 * mask.expand(len(hidden), -1, -1, -1) - 1], dim=1)
    problem = _shown(problem, concat)
    if job.strength == 1 and job.inpaint_fill is None:
        return problem  # from noise alone
    return _refilled(_from(problem, job, given.latents(images)), job, mask)


def _refilled(problem: Problem, job: Job, mask: Tensor) -> Problem:
    """The problem with noise or nothing under the mask [1,1,h,w], where the job wants that.

    As in AUTOMATIC1111's web UI, the noise is the one that each image starts from.
    """
    if job.inpaint_fill == "noise":
        return replace(problem, noised=mask)
    if job.inpaint_fill == "nothing" and problem.init is not None:
        return replace(problem, init=problem.init * (1 - mask))
    return problem


def depth2img(job: Job, given: Given) -> Problem:
    """As img2img, by a network that is shown the depth of the image."""
    model = given.model
    problem = _guided(job, given)
    assert job.strength is not None
    assert job.steps is not None
    images = given.images(_image(given), job.n_samples)
    if given.sources.depth is not None:
        values = given.sources.depth
        depth = depth_from_map(values, invert=job.depth_invert, source=job.depth or "--depth")
        depth = depth.to(given.device)
    else:
        depth = estimate_depth(model.depth_model, images[:1])
    size = (images.shape[-2] // model.factor, images.shape[-1] // model.factor)
    concat = depth_concat(depth, size, source=job.depth or job.init_img or "the image")
    problem = _shown(problem, concat.expand(job.n_samples, -1, -1, -1))
    problem = replace(problem, depth=depth[0].cpu())
    # The originals' demo left at least one step out, from noise alone, too.
    most = len(problem.sigmas) - 2
    if job.strength < 1:
        return _from(problem, job, given.latents(images), most)
    if job.schedule_compat == "exact" or not most:
        return problem
    return replace(problem, sigmas=problem.sigmas[-job.steps :])


def upscale(job: Job, given: Given) -> Problem:
    """Four times the image, by a network that is shown it.

    Stable Diffusion's is shown it with noise of a known level, latent diffusion's as it
    is.
    """
    model = given.model
    problem = _guided(job, given)
    low = given.images(_image(given), job.n_samples)
    if takes_noise(model):
        assert job.noise_level is not None
        assert given.first is not None
        level = torch.full((len(low),), job.noise_level, device=given.device)
        noised = model.low_scale_model(low, level, given.first)
        problem = _shown(problem, noised, vector=level)
    else:
        problem = _shown(problem, low)
    side = max(low.shape[-2:])
    return replace(problem, tile=job.tile if side > job.tile else None)


def variations(job: Job, given: Given) -> Problem:
    """Images of what an image embedding says: of one image, or the weighted mean of several.

    The noise is put on the mean; the demo could also put some on each image before. The
    unconditional embedding is zeros, as there (scripts/streamlit/stableunclip.py).
    """
    model = given.model
    problem = _guided(job, given)
    assert job.noise_level is not None
    assert given.first is not None
    weights = job.image_weights()
    pairs = zip(given.sources.images, weights, strict=True)
    mixed = sum(weight * model.embedder(given.images(pixels)).float() for pixels, weight in pairs)
    assert isinstance(mixed, Tensor)
    level = torch.full((job.n_samples,), job.noise_level, device=given.device)
    vector = model.noise_augmentor(mixed.expand(job.n_samples, -1), level, given.first)
    return _shown(problem, None, vector=vector, without=torch.zeros_like(vector))


def sample(job: Job, given: Given) -> Problem:
    """An image of a class, or of whatever the model was trained on."""
    return _guided(job, given)


def _guided(job: Job, given: Given) -> Problem:
    """The problem of a job's texts or class, as if it had nothing else."""
    model, memory = given.model, given.memory
    assert job.steps is not None
    assert job.scale is not None
    assert job.sampler is not None
    sampler = fitting(find_sampler(job.sampler), model.schedule)
    start = given.start
    steps, before = (job.steps, 0) if start is None else (start.steps, start.before)
    guides, read = guides_of(
        job,
        model,
        memory,
        steps=sampler.calls * steps,
        before=sampler.calls * before,
        size=given.sources.canvas,
    )
    warnings = _losses(read, PromptEncoding(job.prompt_syntax, job.clip_skip), model)
    schedule = _schedule(job, model, sampler)
    compat, grid = _compat(job), sampler.grid
    if compat == "sgm":  # whose samplers all start so, on this grid by default
        sampler, grid = replace(sampler, start="vp"), "sgm_uniform"
    sigmas = make_grid(job.grid or grid, schedule, job.steps, compat)
    warnings += _other_count(job.steps, len(sigmas) - 1)
    return Problem(
        guides=guides,
        scale=job.scale,
        sampler=sampler,
        sigmas=sigmas,
        schedule=schedule,
        options=_options(job, sampler, schedule),
        snaps=compat == "sgm",
        skip=_skipping(job, sigmas),
        warnings=tuple(warnings),
        rescale=job.guidance_rescale,
        zero_snr=job.zero_snr,
        noise_scale=1.0 if job.s_noise is None else job.s_noise,
    )


def _schedule(job: Job, model: Model, sampler: Sampler) -> NoiseSchedule | FlowSchedule:
    """The schedule of a job's noise levels."""
    if isinstance(model.schedule, FlowSchedule):
        return model.schedule if job.shift is None else FlowSchedule(job.shift)
    if not job.zero_snr:
        return model.schedule
    if model.prediction is Prediction.EPS:
        raise JobError("--zero-snr: this model predicts noise, which says nothing about pure noise")
    return model.schedule.zero_snr_limit if sampler.start == "vp" else model.schedule.zero_snr


def _options(job: Job, sampler: Sampler, schedule: Schedule) -> dict[str, Any]:
    """What a sampler takes besides the noise levels."""
    high = math.inf if job.s_tmax is None else job.s_tmax
    known = {
        "eta": job.eta,
        "churn": Churn(job.s_churn, job.s_tmin or 0.0, high) if job.s_churn else None,
        "schedule": schedule,
    }
    return {k: v for k, v in known.items() if k in sampler.options and v is not None}


def _compat(job: Job) -> Compat:
    kinds: Mapping[str, Compat] = {"ldm": "ldm", "sgm": "sgm"}
    return kinds.get(job.schedule_compat, "exact")


def _skipping(job: Job, sigmas: Tensor) -> SkipLayers | None:
    """The layers to leave out in some of the steps: those between two shares of all steps."""
    if job.skip_layers is None:
        return None
    assert job.steps is not None
    first, end = (share * job.steps for share in (job.skip_layer_start, job.skip_layer_end))
    levels = [level for i, level in enumerate(sigmas.tolist()[:-1]) if first < i < end]
    if not levels:
        return None
    # Levels are rounded to float32 on their way to the network.
    low, high = levels[-1] * (1 - 1e-6), levels[0] * (1 + 1e-6)
    return SkipLayers(parse_layers(job.skip_layers), job.skip_layer_scale, low, high)


def _from(problem: Problem, job: Job, init: Tensor, most: int | None = None) -> Problem:
    """The problem begun from an image: only the last share of its steps, `strength`, at most
    `most` of them.

    At `exact` the image has noise of the level that the first of these steps begins at. The
    originals took that of the step before (stochastic_encode and decode, ddim.py), a little more
    than they then took away, and some where no step was left. Without strength there is none.
    generative-models kept a share of the levels, of which there is one more than steps.
    """
    assert job.strength is not None
    total = len(problem.sigmas) - 1
    as_then = job.schedule_compat == "ldm"
    count = int(job.strength * (job.steps or 0)) if as_then else int(job.strength * total + 1e-6)
    if job.schedule_compat == "sgm":
        count = max(int(job.strength * (total + 1)), 1) - 1
    if as_then and isinstance(problem.schedule, FlowSchedule):  # sd3_infer.py rounds what it drops
        count = total - int(total * (1 - job.strength))
    first = total - min(count, total if most is None else most)
    level = max(first - 1, 0) if as_then and problem.sampler.start == "vp" else first
    nothing = first == total and (level == first or not job.strength)
    return replace(
        problem,
        sigmas=problem.sigmas[first:],
        skip=_skipping(job, problem.sigmas[first:]),
        init=init,
        init_sigma=0.0 if nothing else float(problem.sigmas[level]),
    )


def _shown(
    problem: Problem,
    concat: Tensor | None,
    vector: Tensor | None = None,
    without: Tensor | None = None,
) -> Problem:
    """The problem with more for the network to see, on both sides of the guidance.

    `without` is the unconditional vector where that is another one.
    """

    def with_prompt(side: Conditioning) -> Conditioning:
        own = side.vector if vector is None else vector  # else the text's own, if it has one
        return replace(side, concat=concat, vector=own)

    def without_prompt(side: Conditioning) -> Conditioning:
        changed = with_prompt(side)
        return changed if without is None else replace(changed, vector=without)

    guides = [guide.with_sides(with_prompt, without_prompt) for guide in problem.guides]
    return replace(problem, guides=tuple(guides))


def _image(given: Given) -> Pixels:
    assert given.sources.image is not None
    return given.sources.image


def _plane(plane: Plane, given: Given) -> Tensor:
    """[H,W] as [1,1,H,W] on the model's device."""
    return torch.from_numpy(plane)[None, None].to(given.device)


def mask_place(model: Model) -> str:
    """Where a network is shown a mask: "first" (Stable Diffusion), "last" (latent diffusion), "".

    The first have the mask before the latent of the rest, the others after it.
    """
    if model.network.in_channels != 2 * model.latent_channels + 1:
        return ""
    return "last" if model.conditioning_key == "concat" else "first"


def inpaints_without_text(job: Job, model: Model) -> bool:
    """Whether it is inpaint.py of latent diffusion: no image padded, no posterior drawn from."""
    return job.task == "inpaint" and mask_place(model) == "last"


def pads_inputs(job: Job, model: Model) -> bool:
    """Whether an image is padded as in the demos of Stable Diffusion 1 and 2."""
    return not inpaints_without_text(job, model) and not isinstance(model.schedule, FlowSchedule)


def takes_noise(model: Model) -> bool:
    """Whether an upscaler's image gets noise before the network is shown it."""
    return hasattr(model, "low_scale_model")


def first_draw(job: Job, model: Model, sources: Sources) -> tuple[int, ...] | None:
    """The shape, without the batch, of the noise that a task needs before the sampler does.

    In a stream, as the originals', encoding an image draws from the posterior; where each image
    has noise of its own, the posterior's mode is taken instead.
    """
    if job.task == "upscale":
        if not takes_noise(model):
            return None
        width, height = sources.canvas
        return 3, height // model.factor, width // model.factor
    if job.task == "variations":
        return (int(model.embedder.model.visual.proj.shape[1]),)
    encodes = job.task in PARTIAL and not inpaints_without_text(job, model)
    kl = isinstance(model.first_stage_model, AutoencoderKL)
    if job.task == "depth2img" and job.strength == 1:
        encodes = encodes and job.schedule_compat == "ldm"  # as the demo did, for nothing
    if encodes and kl and job.noise == "stream":
        width, height = sources.canvas
        return model.latent_channels, height // model.factor, width // model.factor
    return None


def _losses(read: Sequence[Read], encoding: PromptEncoding, model: Model) -> list[str]:
    """A warning for each text that is too long, or has words that the model never learnt."""
    warnings = []
    for one in read:
        if one.cut:
            warnings.append(
                f"the {one.what} is too long for the model; cut off at the end: {one.cut!r}"
            )
        text = encoding.bare(one.text)
        embedder = model.text_conditioner
        unknown = [] if embedder is None else embedder.unknown_words(text)
        if unknown:
            words = ", ".join(repr(word) for word in unknown)
            warnings.append(
                f"the model does not know the words {words}; it will show something else"
            )
    return warnings


def _other_count(asked: int, steps: int) -> list[str]:
    if asked == steps:
        return []
    return [f"{asked} steps make {steps}, as in the original scripts (--schedule-compat ldm)"]


Task = Callable[[Job, Given], Problem]

TASKS: Mapping[str, Task] = {
    "txt2img": txt2img,
    "img2img": img2img,
    "inpaint": inpaint,
    "depth2img": depth2img,
    "upscale": upscale,
    "variations": variations,
    "sample": sample,
}
