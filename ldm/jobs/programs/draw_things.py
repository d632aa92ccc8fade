"""Draw Things: JSON in the XMP property exif:UserComment. Source: the files that it writes."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ldm.jobs.programs.settings import Draft, Settings, is_json, read_json

PROGRAM = "Draw Things"
_FIELDS = {
    "c": "prompt",
    "uc": "negative",
    "seed": "seed",
    "steps": "steps",
    "scale": "scale",
}
_SILENT = ("size", "model", "v2", "sampler", "strength", "seed_mode")


def read(texts: Mapping[str, str]) -> Settings | None:
    """The settings of such a JSON; None for anything else."""
    content = texts.get("XMP UserComment") or texts.get("parameters", "")
    if not is_json(content) or '"c"' not in content or '"uc"' not in content:
        return None
    values = read_json(content, "`UserComment`")
    draft = Draft(PROGRAM)
    draft.take(values, _FIELDS, _SILENT)
    # "Euler A Trailing": the words behind the sampler are a grid.
    sampler = str(values.get("sampler") or "")
    trailing = sampler.lower().endswith(" trailing")
    draft.set("sampler", sampler[: -len(" trailing")] if trailing else sampler, "sampler")
    if trailing:
        draft.fields["grid"] = "trailing"
    sides = re.fullmatch(r"\s*(\d{1,6})\s*x\s*(\d{1,6})\s*", str(values.get("size", "")))
    if sides is not None:
        draft.fields |= {"width": int(sides[1]), "height": int(sides[2])}
    draft.model = str(values.get("model") or "")
    if values.get("strength") not in (None, 1, 1.0):
        draft.task = "img2img"
        draft.set("strength", values["strength"], "strength")
    if isinstance(values.get("v2"), dict):
        for key in ("loras", "controls", "refinerModel", "clipSkip", "hiresFix", "upscaler"):
            if values["v2"].get(key) not in (None, [], "", False, 1):
                draft.leave(key, values["v2"][key])
    mode = values.get("seed_mode") or "Scale Alike"
    draft.leave("seed mode", mode, "its noise is not that of ldm")
    draft.fields |= {"noise": "image", "rng": "philox", "prompt_syntax": "a1111"}
    return draft.finish()
