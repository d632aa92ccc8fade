"""Flags and defaults of the original scripts: synonyms of ours, or without effect today."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.errors import ImageError, JobError
from ldm.jobs.fields import SAMPLER_NAMES
from ldm.jobs.options import option, options_of

# Every flag of txt2img.py and img2img.py in CompVis v1 and Stability v2; a prefix that was unique
# among them stays valid.
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
# The scripts' defaults for versions 1 and 2, preserved in scripts/; the family selects one.
SCRIPT_DEFAULTS: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "txt2img": (
        {**_SCRIPT, "prompt": _VIRUS, "n_samples": 3, "n_iter": 2},
        {**_SCRIPT, "prompt": _ASTRONAUT, "n_samples": 3, "n_iter": 3},
    ),
    "img2img": (
        {**_SCRIPT, "prompt": _VIRUS, "n_samples": 2, "scale": 5.0, "fit": "floor-32"},
        {**_SCRIPT, "prompt": _ASTRONAUT, "n_samples": 2, "scale": 9.0, "fit": "floor-64"},
    ),
    # These two had no seed and no autocast.
    "inpaint": ({**_SCRIPT, "noise": "image", "precision": "full", "feather": 0},) * 2,
    "sample": ({**_SCRIPT, "precision": "full", "steps": 50, "eta": 1.0},) * 2,
}
SCRIPT_CHECKPOINTS = {
    "txt2img": "models/ldm/stable-diffusion-v1/model.ckpt",
    "inpaint": "models/ldm/inpainting_big/last.ckpt",
}


_SCRIPTS = ("txt2img", "img2img")


@dataclass(frozen=True)
class Legacy:
    """Flags of the original scripts that are synonyms of a field, or no longer do anything."""

    plms: bool = option(False, "--plms", help="The same as --sampler plms.", tasks=_SCRIPTS)
    dpm_solver: bool = option(
        False,
        "--dpm_solver",
        "--dpm",
        help="The same as --sampler dpm_solver.",
        tasks=_SCRIPTS,
    )
    indir: str | None = option(
        None,
        "--indir",
        help="Inpaint every X.png of a folder with its X_mask.png; names are kept.",
        metavar="FOLDER",
        tasks=("inpaint",),
    )
    bf16: bool = option(False, "--bf16", help="The same as --precision bf16.")
    laion400m: bool = option(
        False,
        "--laion400m",
        help="Use config, checkpoint and outdir of the LAION-400M model.",
        tasks=("txt2img",),
    )
    torchscript: bool = option(
        False,
        "--torchscript",
        help="Ignored.",
        tasks=("txt2img",),
        note="--torchscript does nothing any more: networks run as they are",
    )
    ipex: bool = option(
        False,
        "--ipex",
        help="Ignored.",
        tasks=("txt2img",),
        note="--ipex does nothing any more: current torch has what the extension brought",
    )


LAION400M = {
    "config": "configs/latent-diffusion/txt2img-1p4B-eval.yaml",
    "model": "models/ldm/text2img-large/model.ckpt",
    "outdir": "outputs/txt2img-samples-laion400m",
}


# Flags that img2img.py accepted and never read.
_UNREAD = {"fixed_code": "--fixed_code", "channels": "--C", "factor": "--f"}


def translate(
    values: Mapping[str, Any], *, script: bool, task: str = "txt2img"
) -> tuple[dict[str, Any], list[str]]:
    """Turn the `Legacy` flags among the values into fields; also returns notes for the user.

    Contradictions are errors, except in the script shims (`script`), where `--dpm_solver` wins
    over `--plms` as in version 1, and flags that a script never read do nothing.
    """
    legacy = options_of(Legacy)
    fields = {name: value for name, value in values.items() if name not in legacy}
    used = {name for name in legacy if values.get(name)}
    notes = [legacy[name].note for name in sorted(used) if legacy[name].note]
    if "indir" in used:
        names = ("init_img", "mask", "outpaint", "output")
        flags = [name for name in names if fields.get(name) is not None]
        if flags:
            raise JobError(f"--indir provides images, masks and output names: omit --{flags[0]}")
    if script and task == "img2img":
        unread = [flag for name, flag in _UNREAD.items() if fields.pop(name, None) is not None]
        notes += [f"{flag} does nothing, as in the original img2img.py" for flag in unread]
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


# --- sample_diffusion.py --------------------------------------------------------------------------


@dataclass(frozen=True)
class SampleDiffusion:
    """Flags that only sample_diffusion.py spelled this way."""

    resume: str | None = option(
        None,
        "--resume",
        "-r",
        help="Checkpoint, or a folder with model.ckpt and config.yaml.",
        metavar="FILE",
    )
    n_samples: int | None = option(
        None, "--n_samples", "-n", help="Total number of images [one batch; 50000 in the original]."
    )
    batch_size: int = option(10, "--batch_size", help="Images per batch [10].")
    custom_steps: int | None = option(
        None, "--custom_steps", "-c", help="Number of sampling steps [50]."
    )
    eta: float | None = option(None, "--eta", "-e", help="Noise added in each step, 0 to 1 [1].")
    vanilla_sample: bool = option(
        False, "--vanilla_sample", "-v", help="Run all 1000 DDPM steps; overrides -c and -e."
    )
    logdir: str | None = option(
        None,
        "--logdir",
        "-l",
        help="Log folder [that of the checkpoint].",
        metavar="FOLDER",
    )


def sample_fields(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Turn the `SampleDiffusion` flags and the dotlist `settings` into fields and notes.

    Raises JobError if no checkpoint is named or a setting is not KEY=VALUE.
    """
    old = (*options_of(SampleDiffusion), "settings")
    fields = {name: value for name, value in values.items() if name not in old}
    if "resume" not in values:
        raise JobError("--resume is missing: name a checkpoint, or its folder")
    checkpoint = Path(values["resume"]).expanduser()
    if checkpoint.is_dir():
        checkpoint = checkpoint / "model.ckpt"
    folder = checkpoint.parent
    if values.get("logdir", "none") != "none":  # the original's word for not given
        folder = Path(values["logdir"]).expanduser() / folder.absolute().name
    settings = tuple(values.get("settings") or ())
    for word in settings:
        if "=" not in word:
            raise JobError(f"{word!r} is neither a flag nor KEY=VALUE, a YAML override")
    given = SampleDiffusion(**{name: values[name] for name in old[:-1] if name in values})
    batches, notes = _batches(given.n_samples, given.batch_size)
    fields |= {"model": str(checkpoint), "outdir": str(folder), "skip_grid": True, **batches}
    optional = {"overrides": settings or None, "steps": given.custom_steps, "eta": given.eta}
    fields |= {name: value for name, value in optional.items() if value is not None}
    if given.vanilla_sample:
        # DDIM with eta 1 over all timesteps is DDPM (arXiv 2010.02502, section 4.1).
        fields |= {"steps": 1000, "eta": 1.0, "grid": "default"}
    return fields, notes


def _batches(total: int | None, size: int) -> tuple[dict[str, int], list[str]]:
    """`n_samples` and `n_iter` for a total number of images in batches of `size`; and notes."""
    if size < 1 or (total is not None and total < 1):
        raise JobError("--n_samples and --batch_size must be 1 or more")
    if total is None:
        return {"n_samples": size}, [f"no -n given: one batch of {size} (originally 50000 images)"]
    size = min(size, total)
    notes = []
    if total % size:
        whole = total - total % size
        notes.append(f"{total} images in batches of {size} make {whole}, as in the original script")
    return {"n_samples": size, "n_iter": total // size}, notes


# --- inpaint.py -----------------------------------------------------------------------------------

_MASK = "_mask.png"


def pairs(indir: str, outdir: str) -> tuple[list[dict[str, str]], list[str]]:
    """The fields `init_img`, `mask` and `output` of each pair X.png and X_mask.png; and notes.

    The output is X.png in `outdir`. Raises ImageError if a mask has no image or the folder has no
    mask, and JobError if the results would replace the images.
    """
    folder = Path(indir).expanduser()
    names = {path.name for path in folder.glob("*.png") if not path.name.startswith(".")}
    masks = {name for name in names if name.endswith(_MASK)}
    if not masks:
        raise ImageError(f"--indir {indir}: contains no mask X{_MASK} for an image X.png")
    lone = sorted(mask for mask in masks if _image_of(mask) not in names)
    if lone:
        raise ImageError(f"--indir {indir}: {lone[0]} has no {_image_of(lone[0])} beside it")
    if folder.resolve() == Path(outdir).expanduser().resolve():
        raise JobError(f"--outdir {outdir} is --indir, whose images it would replace")
    rest = sorted(names - masks - {_image_of(mask) for mask in masks})
    notes = [f"{name} has no mask; skipped" for name in rest]
    rows = [
        {
            "init_img": str(folder / _image_of(mask)),
            "mask": str(folder / mask),
            "output": str(Path(outdir).expanduser() / _image_of(mask)),
        }
        for mask in sorted(masks)
    ]
    return rows, notes


def _image_of(mask: str) -> str:
    return mask.removesuffix(_MASK) + ".png"
