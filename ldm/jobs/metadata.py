"""Image metadata: the `parameters` text that other tools read, and our record.

The text has the format of AUTOMATIC1111's web UI: the prompt, `Negative prompt: ...`, and a last
line of `Key: value` pairs. It contains no time stamp: the same job writes the same bytes again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ldm import __version__
from ldm.errors import ImageError
from ldm.jobs.job import Job, from_record, to_record
from ldm.jobs.sampler_names import webui_schedule, webui_title

NEGATIVE = "Negative prompt:"
# A key begins where a run of its characters begins, which keeps the search linear in the text.
_PAIR = re.compile(
    r"(?:^|(?<=[^\w\s\-/]))[\s\-/]*(\w[\w \-/]+):"
    r'[^\S\n]*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)'
)

# How hires fix enlarges, under the names that other tools use.
UPSCALER_TITLES = {
    "latent": "Latent",
    "latent-bicubic": "Latent (bicubic)",
    "latent-nearest": "Latent (nearest-exact)",
    "lanczos": "Lanczos",
}

# What lies under a mask at the start, likewise.
FILL_TITLES = {
    "original": "original",
    "fill": "fill",
    "noise": "latent noise",
    "nothing": "latent nothing",
}


@dataclass(frozen=True)
class Infotext:
    """A parsed `parameters` text."""

    prompt: str
    negative: str = ""
    settings: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """How an image was generated: its batch's job, its row there, the model's name and hash.

    `inputs` maps the input files to their hashes.
    """

    job: Job
    row: int
    model: str
    hash: str
    inputs: Mapping[str, str] = field(default_factory=dict)
    version: str = __version__

    def to_json(self) -> str:
        """The record as one line of plain ASCII."""
        content = {
            "ldm": self.version,
            "job": to_record(self.job),
            "row": self.row,
            "model": {"name": self.model, "hash": self.hash},
        }
        if self.inputs:
            content["inputs"] = dict(self.inputs)
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Parse such a line; raises ImageError for anything else, JobError for an invalid job."""
        try:
            content = json.loads(text)
            job, row, model = content["job"], content["row"], content["model"]
            name, digest = model["name"], model["hash"]
            version, inputs = content["ldm"], content.get("inputs", {})
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ImageError(f"its record is not one of ours: {error!r}") from None
        texts = all(isinstance(word, str) for word in (name, digest, version))
        files = isinstance(inputs, dict) and all(isinstance(h, str) for h in inputs.values())
        if not (isinstance(job, dict) and type(row) is int and texts and files):
            raise ImageError("its record is not one of ours: a value of the wrong kind")
        record = cls(from_record(job), row, name, digest, inputs, version)
        record.job.validate()
        if not 0 <= row < record.job.n_samples:
            raise ImageError(f"its record names row {row} of {record.job.n_samples}")
        return record

    def infotext(self) -> str:
        """The `parameters` text of this image."""
        return format_infotext(describe(self))


def describe(record: Record) -> Infotext:
    """The settings of an image under the names that other tools use."""
    job = record.job
    settings = {"Steps": f"{job.steps}", "Sampler": webui_title(job.sampler or "ddim")}
    if webui_schedule(job.grid):
        settings["Schedule type"] = webui_schedule(job.grid)
    settings["CFG scale"] = _number(job.scale)
    settings["Seed"] = f"{job.image_seeds()[record.row]}"
    settings["Size"] = f"{job.width}x{job.height}"
    settings["Model hash"] = record.hash
    settings["Model"] = record.model
    if job.variation_seed is not None:
        settings["Variation seed"] = f"{job.variation_seeds()[record.row]}"
        settings["Variation seed strength"] = _number(job.variation_strength)
    if job.clip_skip is not None:
        settings["Clip skip"] = f"{job.clip_skip}"
    if job.ensd:
        settings["ENSD"] = f"{job.ensd}"
    if job.strength is not None:
        settings["Denoising strength"] = _number(job.strength)
    settings |= _hires_settings(job) | _inpaint_settings(job)
    if job.eta is not None:
        settings["Eta DDIM" if job.sampler == "ddim" else "Eta"] = _number(job.eta)
    # No RNG entry means a GPU's generator, which is what "device" is on one.
    rng = {"philox": "NV", "cpu": "CPU"}.get(job.rng, "CPU" if job.device == "cpu" else "")
    if rng:
        settings["RNG"] = rng
    settings["Version"] = f"ldm {record.version}"
    return Infotext(job.texts()[record.row], job.negative, settings)


def _hires_settings(job: Job) -> dict[str, str]:
    """Hires fix under the names of the web UI."""
    if job.hires is None:
        return {}
    (width, height), first = job.image_size(), (job.width or 1, job.height or 1)
    settings = {"Denoising strength": _number(job.hires_strength)}
    factors = ((width or 0) / first[0], (height or 0) / first[1])
    if factors[0] == factors[1]:
        settings["Hires upscale"] = _number(factors[0])
    else:
        settings["Hires resize"] = f"{width}x{height}"
    settings["Hires steps"] = f"{job.hires_steps}"
    settings["Hires upscaler"] = UPSCALER_TITLES[job.hires_upscaler or ""]
    return settings


def _inpaint_settings(job: Job) -> dict[str, str]:
    """The options about the mask under the names of the web UI; nothing for the defaults."""
    settings = {}
    if job.mask_blur:
        settings["Mask blur"] = f"{job.mask_blur}"
    if job.inpaint_area == "masked":
        settings["Inpaint area"] = "Only masked"
        settings["Masked area padding"] = f"{job.inpaint_padding}"
    if job.inpaint_fill is not None:
        settings["Masked content"] = FILL_TITLES[job.inpaint_fill]
    return settings


def format_infotext(info: Infotext) -> str:
    """Write a `parameters` text; ambiguous values are quoted as JSON."""
    lines = [info.prompt]
    if info.negative:
        lines.append(f"{NEGATIVE} {info.negative}")
    lines.append(", ".join(f"{key}: {_quote(value)}" for key, value in info.settings.items()))
    return "\n".join(line for line in lines if line)


def parse_infotext(text: str) -> Infotext:
    """Parse a `parameters` text; a last line with fewer than three pairs belongs to the prompt."""
    *lines, last = text.strip().split("\n")
    pairs = _PAIR.findall(last)
    if len(pairs) < 3:
        lines, pairs = [*lines, last], []
    prompt: list[str] = []
    negative: list[str] = []
    target = prompt
    for line in lines:
        words = line.strip()
        if words.startswith(NEGATIVE):
            target = negative
            words = words[len(NEGATIVE) :].strip()
        target.append(words)
    settings = {key: _unquote(value) for key, value in pairs}
    return Infotext("\n".join(prompt).strip(), "\n".join(negative).strip(), settings)


def _quote(value: str) -> str:
    risky = any(mark in value for mark in ",:\n") or value != value.strip() or value[:1] == '"'
    return json.dumps(value, ensure_ascii=False) if risky else value


def _unquote(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value.strip()
    try:
        return str(json.loads(value))
    except ValueError:
        return value


def _number(value: Any) -> str:
    text = repr(float(value))
    return text.removesuffix(".0")
