"""What other programs write into images: a file for each program, and the table of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ldm.jobs.programs import (
    comfy,
    draw_things,
    easy_diffusion,
    fooocus,
    invoke,
    novelai,
    swarm,
    webui,
)
from ldm.jobs.programs.settings import Settings, is_json

Reader = Callable[[Mapping[str, str]], Settings | None]

# The most specific first: ComfyUI's graph comes last, for other programs write one beside theirs.
READERS: tuple[Reader, ...] = (
    swarm.read,
    fooocus.read,
    invoke.read,
    novelai.read,
    draw_things.read,
    easy_diffusion.read,
    webui.read,
    comfy.read,
)


def read_settings(texts: Mapping[str, str]) -> Settings | None:
    """The settings in the texts of an image file, whatever program wrote them; None without any.

    Raises ImageError for texts of a known program that are damaged.
    """
    texts = dict(texts)
    if is_json(texts.get("parameters", "")) and "class_type" in texts["parameters"]:
        texts.setdefault("prompt", texts["parameters"])
    return next((found for read in READERS if (found := read(texts)) is not None), None)


__all__ = ["READERS", "Settings", "read_settings"]
