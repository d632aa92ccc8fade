"""Easy Diffusion: a text for each setting, under its key or its title.

Source: Easy Diffusion, ui/easydiffusion/utils/save_utils.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from ldm.jobs.programs.settings import Draft, Settings, is_json, read_json

PROGRAM = "Easy Diffusion"
_FIELDS = {
    "prompt": "prompt",
    "negative prompt": "negative",
    "seed": "seed",
    "num inference steps": "steps",
    "steps": "steps",
    "guidance scale": "scale",
    "sampler name": "sampler",
    "sampler": "sampler",
    "width": "width",
    "height": "height",
    "prompt strength": "strength",
}
_MODEL = ("use stable diffusion model", "stable diffusion model")
_SILENT = ("clip skip", "output format", "output quality", *_MODEL)
_NOTHING = ("", "None", "False", "null", "[]")


def read(texts: Mapping[str, str]) -> Settings | None:
    """The settings of such texts; None for anything else."""
    named = {key.lower().replace("_", " "): text for key, text in texts.items()}
    comment = texts.get("parameters", "")
    if is_json(comment) and "stable_diffusion_model" in comment:
        values = read_json(comment, "`parameters`")
        named = {str(key).lower().replace("_", " "): str(text) for key, text in values.items()}
    if not any(key in named for key in _MODEL):
        return None
    draft = Draft(PROGRAM)
    values = {key: text for key, text in named.items() if text not in _NOTHING}
    draft.take(values, _FIELDS, (*_SILENT, "parameters"))
    draft.model = next((values[key] for key in _MODEL if key in values), "")
    if named.get("clip skip", "").lower() == "true":  # on or off: the layer before the last
        draft.fields["clip_skip"] = 2
    draft.task = "img2img" if "strength" in draft.fields else "txt2img"
    draft.fields |= {"noise": "image", "rng": "philox", "prompt_syntax": "weights"}
    return draft.finish()
