"""InvokeAI: `invokeai_metadata` (JSON), before it `sd-metadata` (JSON) and `Dream` (its command).

Noise is that of torch's CPU generator, one for each image. Source: InvokeAI's
invokeai/app/invocations/metadata.py, and ldm/invoke/args.py and pngwriter.py of version 2.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ldm.jobs.programs.settings import Draft, Settings, read_json, whole
from ldm.jobs.sampler_names import sampler_fields

PROGRAM = "InvokeAI"
_NEW = {
    "positive_prompt": "prompt",
    "negative_prompt": "negative",
    "width": "width",
    "height": "height",
    "seed": "seed",
    "steps": "steps",
    "cfg_scale": "scale",
    "strength": "strength",
}
_OLD = {
    "seed": "seed",
    "steps": "steps",
    "cfg_scale": "scale",
    "width": "width",
    "height": "height",
    "strength": "strength",
}
_DREAM = {"s": "steps", "S": "seed", "W": "width", "H": "height", "C": "scale", "f": "strength"}
_SILENT = (
    "app_version", "generation_mode", "model", "scheduler", "rand_device", "clip_skip",
    "canvas_v2_metadata", "ref_images", "sampler", "prompt", "type", "postprocessing",
    "positive_style_prompt", "negative_style_prompt",
)  # fmt: skip
_COMPEL = re.compile(r"[\w)\"](\+\+?|--)(\s|$|,)|\)\.(and|swap|blend)\(")


def read(texts: Mapping[str, str]) -> Settings | None:
    """The settings of any of the three texts; None without them."""
    if "invokeai_metadata" in texts:
        return _read_new(read_json(texts["invokeai_metadata"], "`invokeai_metadata`"))
    if "sd-metadata" in texts:
        return _read_old(read_json(texts["sd-metadata"], "`sd-metadata`"))
    if "Dream" in texts:
        return _read_dream(texts["Dream"])
    return None


def _read_new(values: dict[str, Any]) -> Settings:
    draft = Draft(PROGRAM)
    draft.take(values, _NEW, _SILENT)
    _read_scheduler(draft, values.get("scheduler"))
    model = values.get("model")
    if isinstance(model, dict):
        draft.model = str(model.get("model_name") or model.get("name") or "")
        # Its hashes are BLAKE3 of the file, which name no file here.
        if model.get("hash"):
            draft.leave("hash", model["hash"], "not a SHA-256")
    if values.get("clip_skip"):
        draft.set("clip_skip", whole(values["clip_skip"]) + 1, "clip_skip")
    for name, own in (("positive_style_prompt", "prompt"), ("negative_style_prompt", "negative")):
        if values.get(name) not in (None, "", draft.fields.get(own)):
            draft.leave(name, values[name])
    mode = str(values.get("generation_mode", ""))
    draft.task = "inpaint" if "inpaint" in mode or "outpaint" in mode else draft.task
    draft.task = "img2img" if mode.endswith("img2img") else draft.task
    return _finish(draft, "cpu" if values.get("rand_device", "cpu") == "cpu" else "philox")


def _read_old(values: dict[str, Any]) -> Settings:
    draft = Draft(PROGRAM)
    image = values.get("image")
    image = image if isinstance(image, dict) else {}
    draft.take(image, _OLD, _SILENT)
    draft.model = str(values.get("model_weights") or "")
    draft.hash = str(values.get("model_hash") or "")
    prompt = image.get("prompt")
    if isinstance(prompt, list):
        parts = [part.get("prompt") for part in prompt if isinstance(part, dict)]
        prompt = ", ".join(part for part in parts if isinstance(part, str))
    _split_prompt(draft, str(prompt or ""))
    _read_scheduler(draft, image.get("sampler"))
    draft.task = "img2img" if image.get("type") == "img2img" else "txt2img"
    return _finish(draft, "device")


def _read_dream(command: str) -> Settings:
    draft = Draft(PROGRAM)
    match = re.match(r'\s*"((?:[^"\\]|\\.)*)"(.*)', command, re.DOTALL)
    prompt, flags = (match[1], match[2]) if match is not None else (command, "")
    _split_prompt(draft, prompt)
    for name, value in re.findall(r"\s-{1,2}(\w+)[ =]?([^\s-]\S*)?", flags):
        letter, rest = (name, value) if name in (*_DREAM, "A") else (name[:1], name[1:])
        if letter in _DREAM:
            draft.set(_DREAM[letter], rest, f"-{letter}")
        elif letter == "A":
            _read_scheduler(draft, rest)
        else:
            draft.leave(f"-{name}", value)
    if "strength" in draft.fields:
        draft.task = "img2img"
    return _finish(draft, "device")


def _split_prompt(draft: Draft, prompt: str) -> None:
    """Text in square brackets is the negative prompt."""
    negative = re.findall(r"\[([^\[\]]*)\]", prompt)
    draft.fields["prompt"] = re.sub(r"\[[^\[\]]*\]", "", prompt).strip()
    draft.fields["negative"] = ", ".join(part.strip() for part in negative)


def _read_scheduler(draft: Draft, name: Any) -> None:
    """A scheduler such as `euler_a`, `k_lms` or `dpmpp_2m_k`, whose last letter is for Karras."""
    words = str(name or "").lower()
    if words.endswith("_k"):
        words = words.removesuffix("_k")
        draft.fields["grid"] = "karras"
    words = {"dpmpp_2s": "dpmpp_2s_ancestral", "kdpm_2": "dpm_2", "kdpm_2_a": "dpm_2_ancestral",
             "pndm": "plms"}.get(words, words)  # fmt: skip
    draft.set("sampler", sampler_fields(words)["sampler"], "scheduler")


def _finish(draft: Draft, rng: str) -> Settings:
    draft.fields |= {"noise": "image", "rng": "philox" if rng == "device" else rng}
    draft.fields["prompt_syntax"] = "weights"
    if _COMPEL.search(str(draft.fields.get("prompt", ""))[:65_536]):
        draft.leave("prompt", "weights such as word++ and .and()", "they are read as plain text")
    return draft.finish()
