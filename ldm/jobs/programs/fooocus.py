"""Fooocus: `parameters` as JSON, with `fooocus_scheme` beside it; ldm.jobs.programs.webui reads its
other scheme. Noise is that of torch's CPU generator. Source: Fooocus, modules/meta_parser.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ldm.jobs.programs.settings import Draft, Settings, is_json, read_json

PROGRAM = "Fooocus"
_FIELDS = {
    "prompt": "prompt",
    "negative_prompt": "negative",
    "steps": "steps",
    "guidance_scale": "scale",
    "sampler": "sampler",
    "scheduler": "grid",
    "seed": "seed",
    "clip_skip": "clip_skip",
}
_SILENT = (
    "resolution", "base_model", "base_model_hash", "version", "metadata_scheme", "full_prompt",
    "full_negative_prompt", "performance", "created_by",
)  # fmt: skip


def read(texts: Mapping[str, str]) -> Settings | None:
    """The settings of such a JSON; None for anything else."""
    content = texts.get("parameters", "")
    if not is_json(content) or '"base_model"' not in content:
        return None
    values = read_json(content, "`parameters`")
    draft = Draft(PROGRAM)
    plain = ("None", "[]", "none")  # words for nothing
    draft.take({k: v for k, v in values.items() if v not in plain}, _FIELDS, _SILENT)
    sides = re.findall(r"\d{1,6}", str(values.get("resolution", ""))[:100])
    if len(sides) == 2:
        draft.fields |= {"width": int(sides[0]), "height": int(sides[1])}
    draft.model = str(values.get("base_model") or "")
    draft.hash = str(values.get("base_model_hash") or "")
    draft.fields |= {"noise": "image", "rng": "cpu", "prompt_syntax": "a1111"}
    return draft.finish()
