"""SwarmUI: `parameters` as JSON with "sui_image_params"; EXIF UserComment or Model elsewhere.

It runs ComfyUI, with one tensor of torch's CPU generator for each image. Source: SwarmUI,
docs/Image Metadata Format.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ldm.jobs.programs.settings import Draft, Settings, is_json, read_json, whole

PROGRAM = "SwarmUI"
_FIELDS = {
    "prompt": "prompt",
    "negativeprompt": "negative",
    "seed": "seed",
    "steps": "steps",
    "cfgscale": "scale",
    "width": "width",
    "height": "height",
    "sampler": "sampler",
    "comfyuisampler": "sampler",
    "scheduler": "grid",
    "comfyuischeduler": "grid",
    "variationseed": "variation_seed",
    "variationseedstrength": "variation_strength",
    "initimagecreativity": "strength",
}
_SILENT = (
    "model", "swarm_version", "clipstopatlayer", "images", "batchsize", "aspectratio",
    "sidelength", "automaticvae", "initimage", "maskimage",
)  # fmt: skip


def read(texts: Mapping[str, str]) -> Settings | None:
    """The settings of such a JSON; None for anything else."""
    content = texts.get("parameters") or texts.get("Model", "")
    if not is_json(content) or '"sui_image_params"' not in content:
        return None
    whole_text = read_json(content, "`parameters`")
    values = whole_text.get("sui_image_params")
    values = values if isinstance(values, dict) else {}
    draft = Draft(PROGRAM)
    draft.take(values, _FIELDS, _SILENT)
    if not draft.fields.get("variation_strength"):
        draft.fields.pop("variation_seed", None)
        draft.fields.pop("variation_strength", None)
    draft.model = str(values.get("model") or "")
    draft.hash = _hash(whole_text.get("sui_models"))
    if values.get("clipstopatlayer") is not None:
        try:
            draft.fields["clip_skip"] = abs(whole(values["clipstopatlayer"]))
        except ValueError:
            draft.leave("clipstopatlayer", values["clipstopatlayer"])
    if "strength" in draft.fields:
        draft.task = "inpaint" if values.get("maskimage") else "img2img"
    draft.fields |= {"noise": "image", "rng": "cpu", "prompt_syntax": "comfy"}
    return draft.finish()


def _hash(models: Any) -> str:
    """The SHA-256 of the checkpoint's tensors, written with 0x in front."""
    for entry in models if isinstance(models, list) else ():
        if isinstance(entry, dict) and entry.get("param") == "model":
            return str(entry.get("hash") or "").removeprefix("0x")
    return ""
