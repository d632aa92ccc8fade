"""NovelAI: texts `Software`, `Description`, `Source` and `Comment` (JSON); the same may be hidden.

ldm.images.hidden reads the hidden copy. Its models are its own; only those of 2022 were Stable
Diffusion v1. Source: https://docs.novelai.net/en/image, and the files that it writes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ldm.jobs.programs.settings import Draft, Settings, is_json, read_json

PROGRAM = "NovelAI"
_FIELDS = {
    "uc": "negative",
    "steps": "steps",
    "scale": "scale",
    "seed": "seed",
    "width": "width",
    "height": "height",
    "strength": "strength",
}
_SILENT = (
    "prompt", "sampler", "noise_schedule", "n_samples", "signed_hash", "version", "request_type",
    "hide_debug_overlay", "legacy", "v4_prompt", "v4_negative_prompt",
)  # fmt: skip
_GRIDS = {"karras": "karras", "exponential": "exponential", "polyexponential": "polyexponential"}


def read(texts: Mapping[str, str]) -> Settings | None:
    """The settings of the `Comment` of a NovelAI image; None for anything else."""
    content = texts.get("Comment", "")
    if not is_json(content) or not (texts.get("Software") == PROGRAM or '"uc"' in content):
        return None
    values = read_json(content, "`Comment`")
    draft = Draft(PROGRAM)
    draft.set("prompt", values.get("prompt") or texts.get("Description"), "prompt")
    img2img = "img2img" in str(values.get("request_type", "")).lower()
    if not img2img:  # a text-only image has a strength, too, that means nothing
        values = {name: value for name, value in values.items() if name not in ("strength",)}
    noise = values.pop("noise", None)
    if img2img:
        draft.task = "img2img"
        draft.leave("noise", noise)
    draft.take(values, _FIELDS, _SILENT)
    draft.set("sampler", values.get("sampler"), "sampler")
    schedule = str(values.get("noise_schedule") or "")
    if schedule in _GRIDS:
        draft.fields["grid"] = _GRIDS[schedule]
    elif schedule not in ("", "native"):
        draft.leave("noise_schedule", schedule)
    source = texts.get("Source", "")
    match = re.fullmatch(r"(.{0,200}?)\s+([0-9A-F]{8})", source)
    draft.model, digest = (match[1], match[2]) if match is not None else (source, "")
    if digest:  # NovelAI's own number of a model, not a hash of a file
        draft.model = f"{draft.model} {digest}"
    draft.fields |= {"noise": "image", "rng": "philox", "prompt_syntax": "plain"}
    prompts = f"{draft.fields.get('prompt', '')}{draft.fields.get('negative', '')}"
    if re.search(r"[{}\[\]]|\d::", prompts):
        draft.leave(
            "prompt", "weights such as {x}, [x] and 1.2::x::", "they are read as plain text"
        )
    return draft.finish()
