"""LoRA files that a job names, with `--lora` and in prompts.

    --lora FILE[:weight[:text-weight]][:lbw=...][:start=X][:end=X]
    <lora:name:weight>  <lora:name:text:network>  (AUTOMATIC1111's order), <lyco:...> alike

Block weights are those of sd-webui-lora-block-weight; `start` and `end` are shares of the steps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ldm.errors import JobError
from ldm.jobs.options import nearest

_TAG = re.compile(r"<(?P<kind>lora|lyco|hypernet)\s*:(?P<rest>[^<>]*)>", re.IGNORECASE)

# The blocks that a list of weights is for, by its length; BASE is the text encoders.
_IN = tuple(f"IN{n:02}" for n in range(12))
_OUT = tuple(f"OUT{n:02}" for n in range(12))
BLOCKS = {
    17: ("BASE", *(_IN[n] for n in (1, 2, 4, 5, 7, 8)), "M00", *_OUT[3:]),
    26: ("BASE", *_IN, "M00", *_OUT),
    12: ("BASE", *(_IN[n] for n in (4, 5, 7, 8)), "M00", *_OUT[:6]),
    20: ("BASE", *_IN[:9], "M00", *_OUT[:9]),
}
PRESETS = {
    "NONE": (0.0,) * 17,
    "ALL": (1.0,) * 17,
    "INS": (1.0,) * 4 + (0.0,) * 13,
    "IND": (1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0) + (0.0,) * 10,
    "INALL": (1.0,) * 7 + (0.0,) * 10,
    "MIDD": (1.0, 0.0, 0.0, 0.0) + (1.0,) * 8 + (0.0,) * 5,
    "OUTD": (1.0,) + (0.0,) * 7 + (1.0,) * 4 + (0.0,) * 5,
    "OUTS": (1.0,) + (0.0,) * 11 + (1.0,) * 5,
    "OUTALL": (1.0,) + (0.0,) * 7 + (1.0,) * 9,
}


@dataclass(frozen=True)
class Lora:
    """A LoRA file by its name or path, with its weights and the share of the steps it is for."""

    name: str
    network: float = 1.0
    text: float = 1.0
    blocks: tuple[tuple[str, float], ...] = ()
    start: float = 0.0
    end: float = 1.0

    def weight_of(self, block: str) -> float:
        """The weight of a block of the network, such as IN04, or of the text encoders, BASE.

        A block that a list of weights leaves out has the whole weight.
        """
        return (self.text if block == "BASE" else self.network) * dict(self.blocks).get(block, 1.0)

    def is_active(self, step: int, steps: int) -> bool:
        """Whether it takes part in a step, counted from 0."""
        return self.start <= step / max(1, steps) < self.end or self.end == self.start == 0

    @property
    def is_nothing(self) -> bool:
        """Whether its weights leave everything as it is."""
        return self.network == 0 == self.text


def parse_lora(text: str) -> Lora:
    """Read `FILE[:weight[:text-weight]]` with options; raises JobError."""
    words = text.split(":")
    options: list[str] = []
    while len(words) > 1 and "=" in words[-1] and words[-1].partition("=")[0].isalpha():
        options.insert(0, words.pop())
    numbers: list[str] = []
    while len(words) > 1 and len(numbers) < 2 and _is_number(words[-1]):
        numbers.insert(0, words.pop())
    name = ":".join(words)
    if len(words) > 1 and len(words[-2]) > 1 and not any(c in words[-1] for c in "/\\."):
        raise JobError(f"--lora {text}: the weight must be a number, not {words[-1]!r}")
    if not name:
        raise JobError(f"--lora {text}: names no file; write FILE, or FILE:weight")
    values = [_number(f"--lora {text}", n) for n in numbers] or [1.0]
    return _with_options(f"--lora {text}", Lora(name, values[0], values[-1]), options)


def split_tags(text: str, syntax: str) -> tuple[str, tuple[Lora, ...]]:
    """A prompt without its `<lora:...>` tags, and the LoRAs that they name, in order.

    In the syntax "plain" every character is text. Raises JobError for a tag that cannot be read.
    """
    if syntax == "plain" or "<" not in text:
        return text, ()
    found = tuple(_read_tag(tag) for tag in _TAG.finditer(text))
    return (_TAG.sub("", text).strip(), found) if found else (text, ())


def loras_of(named: Iterable[str], prompt: str, syntax: str) -> tuple[Lora, ...]:
    """The LoRAs of an image: those of `--lora`, then those of its prompt."""
    return (*map(parse_lora, named), *split_tags(prompt, syntax)[1])


def _read_tag(tag: re.Match[str]) -> Lora:
    if tag["kind"].lower() == "hypernet":
        raise JobError(
            f"the prompt names a hypernetwork, {tag[0]!r}, which ldm does not load; remove it, "
            "or use --prompt-syntax plain to keep it as words"
        )
    name, *rest = (word.strip() for word in tag["rest"].split(":"))
    if not name:
        raise JobError(f"{tag[0]} in the prompt names no file; write <lora:name:weight>")
    numbers = [word for word in rest if "=" not in word]
    if len(numbers) > 2:
        raise JobError(f"{tag[0]} in the prompt: write at most two weights")
    values = [_number(tag[0], word) for word in numbers] or [1.0]
    options = [word for word in rest if "=" in word]
    return _with_options(tag[0], Lora(name, values[-1], values[0]), options)


def _with_options(where: str, lora: Lora, options: Iterable[str]) -> Lora:
    values: dict[str, float] = {}
    blocks: tuple[tuple[str, float], ...] = ()
    names = {"te": "text", "unet": "network", "start": "start", "end": "end", "stop": "end"}
    for option in options:
        key, _, value = option.partition("=")
        key = key.strip().lower()
        if key == "lbw":
            blocks = _blocks(where, value.strip())
        elif key in names:
            values[names[key]] = _number(where, value.strip())
        else:
            raise JobError(f"{where}: unknown option {key!r}{nearest(key, (*names, 'lbw'))}")
    start, end = values.get("start", 0.0), values.get("end", 1.0)
    if not 0 <= start < end <= 1:
        raise JobError(f"{where}: start and end are shares of the steps, 0 to 1, start before end")
    network, text = values.get("network", lora.network), values.get("text", lora.text)
    return Lora(lora.name, network, text, blocks, start, end)


def _blocks(where: str, text: str) -> tuple[tuple[str, float], ...]:
    words = text.split(",")
    numbers = PRESETS.get(text.upper()) or [_number(where, word.strip()) for word in words]
    if len(numbers) not in BLOCKS:
        lengths = ", ".join(map(str, sorted(BLOCKS)))
        raise JobError(f"{where}: lbw takes {lengths} weights or a preset, not {len(numbers)}")
    return tuple(zip(BLOCKS[len(numbers)], numbers, strict=True))


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _number(where: str, word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        raise JobError(f"{where}: the weight must be a number, not {word!r}") from None
    if not math.isfinite(value):
        raise JobError(f"{where}: the weight must be a number, not {word!r}")
    return value
