"""AUTOMATIC1111's web UI and its forks, stable-diffusion.cpp, and Fooocus in its a1111 scheme.

Text `parameters` of a PNG, EXIF UserComment elsewhere. Sources: AUTOMATIC1111's
modules/processing.py (create_infotext), modules/infotext_utils.py and modules/rng.py;
stable-diffusion.cpp, examples/common (get_image_params).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ldm.jobs.metadata import NEGATIVE, UPSCALER_TITLES, parse_infotext
from ldm.jobs.programs.settings import Draft, Settings, real
from ldm.jobs.sampler_names import sampler_fields

_FIELDS: Mapping[str, str] = {
    "Steps": "steps",
    "CFG scale": "scale",
    "Seed": "seed",
    "Clip skip": "clip_skip",
    "Variation seed": "variation_seed",
    "Variation seed strength": "variation_strength",
    "Eta": "eta",
    "Eta DDIM": "eta",
    "ENSD": "ensd",
    "Hires steps": "hires_steps",
}
# What has no influence on the image, or is read by the functions below.
_SILENT = (
    "Version", "Created Date", "Size", "Size-1", "Size-2", "Model", "Model hash", "Sampler",
    "Schedule type", "RNG", "Denoising strength", "Hires upscale", "Hires resize",
    "Hires upscaler", "Hashes", "Batch size", "Batch pos", "User",
)  # fmt: skip
_GENERATORS = {"NV": "philox", "GPU": "philox", "cuda": "philox", "CPU": "cpu", "cpu": "cpu"}
_UPSCALERS = {title.lower(): name for name, title in UPSCALER_TITLES.items()} | {
    "nearest-exact": "latent-nearest",
    "bicubic": "latent-bicubic",
}
# What the web UI's schedule type "Automatic" stands for (modules/sd_samplers_kdiffusion.py).
_AUTOMATIC = {
    "dpmpp_2m": "karras",
    "dpmpp_sde": "karras",
    "dpmpp_2m_sde": "exponential",
    "dpmpp_3m_sde": "exponential",
}


def read(texts: Mapping[str, str]) -> Settings | None:
    """The settings of a `parameters` text; None for anything else."""
    content = texts.get("parameters", "")
    info = parse_infotext(content)
    if not info.settings and NEGATIVE not in content:
        return None
    values = info.settings
    draft = Draft(_program(texts, values.get("Version", "")))
    draft.fields = {"prompt": info.prompt, "negative": info.negative, "prompt_syntax": "a1111"}
    draft.take(values, _FIELDS, _SILENT)
    draft.model, draft.hash = values.get("Model", ""), values.get("Model hash", "")
    _read_size(draft, values.get("Size", ""))
    _read_sampler(draft, values)
    _read_generator(draft, values.get("RNG", ""))
    _read_strength(draft, values)
    if values.get("Hashes"):
        named = re.findall(r'"([^"]{1,200})"\s*:', values["Hashes"])
        for name in named:
            if name.startswith(("lora", "embed", "hypernet")):
                draft.leave("Hashes", name)
    if draft.fields.get("clip_skip") == 0:  # stable-diffusion.cpp's word for the model's own
        del draft.fields["clip_skip"]
    if not draft.fields.get("variation_strength"):
        draft.fields.pop("variation_seed", None)
        draft.fields.pop("variation_strength", None)
    elif "variation_seed" not in draft.fields:
        draft.leave("Variation seed strength", draft.fields.pop("variation_strength"))
    return draft.finish()


def _program(texts: Mapping[str, str], version: str) -> str:
    words = version.lower()
    if "fooocus_scheme" in texts or words.startswith("fooocus"):
        return "Fooocus"
    if words.startswith("ldm "):
        return "ldm"
    if "stable-diffusion.cpp" in words:
        return "stable-diffusion.cpp"
    return "Forge" if re.match(r"f\d", words) else "AUTOMATIC1111"


def _read_size(draft: Draft, size: str) -> None:
    sides = re.fullmatch(r"\s*(\d{1,6})\s*x\s*(\d{1,6})\s*", size)
    if sides is not None:
        draft.fields |= {"width": int(sides[1]), "height": int(sides[2])}
    elif size:
        draft.leave("Size", size)


def _read_sampler(draft: Draft, values: Mapping[str, str]) -> None:
    """Sampler and grid: the word behind the sampler, the schedule type, or the web UI's own."""
    name = values.get("Sampler", "")
    if not name:
        return
    named = sampler_fields(name)
    grid = values.get("Schedule type") or named.get("grid", "")
    sampler = named["sampler"]
    if grid.lower() == "automatic":
        grid = _AUTOMATIC.get(sampler, "")
    draft.fields["sampler"] = sampler
    if grid:
        draft.fields["grid"] = grid


def _read_generator(draft: Draft, name: str) -> None:
    """Random numbers: a generator for each image, a GPU's unless the text says CPU."""
    draft.fields |= {"noise": "image", "rng": _GENERATORS.get(name, "philox")}
    if draft.program == "Fooocus":
        draft.fields["rng"] = "cpu"
    elif name and name not in _GENERATORS:
        draft.leave("RNG", name)


def _read_strength(draft: Draft, values: Mapping[str, str]) -> None:
    """The denoising strength: that of hires fix, or of an image that was changed."""
    strength = values.get("Denoising strength", "")
    factor, size = values.get("Hires upscale", ""), values.get("Hires resize", "")
    hires = factor or size or values.get("Hires upscaler")
    if hires:
        _read_hires(draft, factor, size, values.get("Hires upscaler", ""))
        draft.set("hires_strength", strength, "Denoising strength")
        if not draft.fields.get("hires_steps"):  # 0: as many as the first pass
            draft.fields.pop("hires_steps", None)
    elif strength:
        draft.task = "inpaint" if any(key.startswith("Mask") for key in values) else "img2img"
        draft.set("strength", strength, "Denoising strength")


def _read_hires(draft: Draft, factor: str, size: str, upscaler: str) -> None:
    sides = re.fullmatch(r"\s*(\d{1,6})\s*x\s*(\d{1,6})\s*", size)
    try:
        number = real(factor) if factor else 0.0
    except ValueError:
        number = 0.0
    if number > 1:
        draft.fields["hires"] = f"{number:g}"
    elif sides is not None and "0" not in sides.groups():
        draft.fields["hires"] = f"{sides[1]}x{sides[2]}"
    elif factor or size:
        draft.leave("Hires resize" if size else "Hires upscale", size or factor)
    else:
        draft.fields["hires"] = "2"  # the web UI's default, which it leaves out
    method = _UPSCALERS.get(upscaler.lower(), "")
    if upscaler and not method:
        method = "latent" if upscaler.lower().startswith("latent") else "lanczos"
        draft.leave("Hires upscaler", upscaler, f"{method} is used")
    if "hires" in draft.fields:
        draft.fields["hires_upscaler"] = method or "latent"
