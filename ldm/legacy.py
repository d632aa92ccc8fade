"""Flags and defaults of the original scripts that are other words for ours, or mean nothing now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ldm.errors import JobError
from ldm.job import SAMPLER_NAMES, option, options_of

# Every flag of the two txt2img.py and img2img.py, CompVis v1 and Stability v2; a prefix that was
# unique among them stays so.
ORIGINAL_FLAGS = (
    "--help", "--prompt", "--outdir", "--skip_grid", "--skip_save", "--ddim_steps", "--steps",
    "--plms", "--dpm_solver", "--dpm", "--laion400m", "--fixed_code", "--ddim_eta", "--n_iter",
    "--H", "--W", "--C", "--f", "--n_samples", "--n_rows", "--scale", "--from-file", "--config",
    "--ckpt", "--seed", "--precision", "--repeat", "--device", "--torchscript", "--ipex",
    "--bf16", "--init-img", "--strength",
)  # fmt: skip

_SCRIPT: Mapping[str, Any] = {
    "seed": 42,
    "noise": "stream",
    "rng": "device",
    "schedule_compat": "ldm",
    "precision": "autocast",
    "prompt_syntax": "plain",
}
_VIRUS = "a painting of a virus monster playing guitar"
_ASTRONAUT = "a professional photograph of an astronaut riding a triceratops"
# The defaults of the scripts for versions 1 and 2, which scripts/ keeps; the family tells which.
SCRIPT_DEFAULTS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "txt2img": (
        {**_SCRIPT, "prompt": _VIRUS, "n_samples": 3, "n_iter": 2},
        {**_SCRIPT, "prompt": _ASTRONAUT, "n_samples": 3, "n_iter": 3},
    ),
    "img2img": (
        {**_SCRIPT, "prompt": _VIRUS, "n_samples": 2, "scale": 5.0, "fit": "floor-32"},
        {**_SCRIPT, "prompt": _ASTRONAUT, "n_samples": 2, "scale": 9.0, "fit": "floor-64"},
    ),
    "inpaint": ({**_SCRIPT, "noise": "image"},) * 2,
    "sample": ({**_SCRIPT, "n_samples": 10, "eta": 1.0},) * 2,
}
SCRIPT_CHECKPOINTS = {
    "txt2img": "models/ldm/stable-diffusion-v1/model.ckpt",
    "inpaint": "models/ldm/inpainting_big/last.ckpt",
}


_SCRIPTS = ("txt2img", "img2img")


@dataclass(frozen=True)
class Legacy:
    """Flags of the original scripts that are other words for a field, or do nothing any more."""

    plms: bool = option(False, "--plms", help="The same as --sampler plms.", tasks=_SCRIPTS)
    dpm_solver: bool = option(
        False,
        "--dpm_solver",
        "--dpm",
        help="The same as --sampler dpm_solver.",
        tasks=_SCRIPTS,
    )
    bf16: bool = option(False, "--bf16", help="The same as --precision bf16.")
    laion400m: bool = option(
        False,
        "--laion400m",
        help="Config, checkpoint and outdir of the LAION-400M model.",
        tasks=("txt2img",),
    )
    torchscript: bool = option(
        False,
        "--torchscript",
        help="Does nothing.",
        tasks=("txt2img",),
        note="--torchscript does nothing any more: networks run as they are",
    )
    ipex: bool = option(
        False,
        "--ipex",
        help="Does nothing.",
        tasks=("txt2img",),
        note="--ipex does nothing any more: current torch has what the extension brought",
    )


LAION400M = {
    "config": "configs/latent-diffusion/txt2img-1p4B-eval.yaml",
    "model": "models/ldm/text2img-large/model.ckpt",
    "outdir": "outputs/txt2img-samples-laion400m",
}


def translate(values: Mapping[str, Any], *, script: bool) -> tuple[dict[str, Any], list[str]]:
    """Turn the flags of `Legacy` among given values into fields; returns the notes to be told too.

    Contradictions are errors, but for the scripts' shims (`script`), where `--dpm_solver` wins
    over `--plms` as in the first version.
    """
    legacy = options_of(Legacy)
    fields = {name: value for name, value in values.items() if name not in legacy}
    used = {name for name in legacy if values.get(name)}
    notes = [legacy[name].note for name in sorted(used) if legacy[name].note]
    if {"plms", "dpm_solver"} <= used:
        if not script:
            raise JobError("--plms and --dpm_solver name two samplers; give one")
        notes.append("both --plms and --dpm_solver given: dpm_solver is used, as in version 1")
        used.discard("plms")
    for name in ("plms", "dpm_solver"):
        if name in used:
            _settle(fields, "sampler", name, f"--{name}", SAMPLER_NAMES)
    if "bf16" in used:
        # The second README pairs it with --precision full, which meant: no autocast.
        same = dict.fromkeys(("auto", "full", "autocast"), "bf16")
        _settle(fields, "precision", "bf16", "--bf16", same)
    if "laion400m" in used:
        notes.append("--laion400m sets --config, --ckpt and --outdir, as it did")
        fields |= LAION400M
    return fields, notes


def _settle(
    fields: dict[str, Any], name: str, value: str, flag: str, names: Mapping[str, str]
) -> None:
    given = fields.get(name)
    if given is not None and names.get(given, given) != value:
        raise JobError(f"{flag} contradicts --{name} {given}; give one")
    fields[name] = value
