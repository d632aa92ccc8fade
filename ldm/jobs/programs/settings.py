"""What a program wrote about an image, in our terms, whatever its own format is."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ldm.errors import ImageError
from ldm.jobs.fields import MAX_STEPS
from ldm.jobs.sampler_names import sampler_fields

MOST_JSON = 4 * 2**20  # characters; the largest graphs that people share have about one million
_RUN_ALL = ("ComfyUI", "SwarmUI")
_RUN_ONE_MORE = ("AUTOMATIC1111", "Forge")
_LONGEST = 100  # characters of a value in a message
_MOST_LISTED = 40  # entries of a list for people


@dataclass(frozen=True)
class Settings:
    """How a program made an image.

    `fields` are fields of `Job`, with sampler and grid by the program's own names. `model` and
    `hash` are its checkpoint's, "" where it does not say. `task` is the kind of command that it was
    made with. `unused` lists what `ldm` cannot honour, an entry a setting.
    """

    program: str
    fields: Mapping[str, Any]
    model: str = ""
    hash: str = ""
    task: str = "txt2img"
    unused: tuple[str, ...] = ()

    def job_fields(self) -> dict[str, Any]:
        """The fields of the job that makes the image, with steps and strength as `ldm` counts them.

        For an image that is changed, `ldm` runs the last int(strength * steps) steps; ComfyUI runs
        `steps` steps of a longer schedule, the web UI one step more (with DDIM as many).
        """
        fields = dict(self.fields)
        steps, strength = fields.get("steps", 0), fields.get("strength", 0)
        if not (0 < steps <= MAX_STEPS and 0 < strength < 1):
            return fields
        ddim = sampler_fields(str(fields.get("sampler", "")))["sampler"] in ("ddim", "plms")
        if self.program in _RUN_ALL:
            total = int(steps / strength)
            return fields | {"steps": total, "strength": min(1.0, (steps + 0.5) / total)}
        if self.program in _RUN_ONE_MORE and not ddim:
            count = int(min(strength, 0.999) * steps) + 1
            return fields | {"strength": min(1.0, (count + 0.5) / steps)}
        return fields


@dataclass
class Draft:
    """Settings that are being collected."""

    program: str
    fields: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    hash: str = ""
    task: str = "txt2img"
    unused: list[str] = field(default_factory=list)

    def set(self, name: str, value: Any, label: str) -> None:
        """Set a field of `Job` to a value as it was written; list it where it is none."""
        if value is None or value == "":
            return
        try:
            read: Callable[[Any], Any] = _AS.get(name, text)
            self.fields[name] = read(value)
        except (ValueError, TypeError, OverflowError):
            self.unused.append(f"{label}: {short(value)} (not a valid value)")

    def leave(self, label: str, value: Any, why: str = "") -> None:
        """List a setting that cannot be honoured."""
        if len(self.unused) == _MOST_LISTED:
            self.unused.append("and more; see the raw text")
        elif len(self.unused) < _MOST_LISTED:
            self.unused.append(f"{label}: {short(value)}" + (f" ({why})" if why else ""))

    def take(
        self, values: Mapping[str, Any], names: Mapping[str, str], silent: Iterable[str] = ()
    ) -> None:
        """Set fields from `values` by a table of their keys; other values are listed as unused.

        Keys in `silent` have no influence on the image, or were read already.
        """
        quiet = set(silent)
        for key, value in values.items():
            if key in names:
                self.set(names[key], value, key)
            elif key not in quiet and value not in (None, "", False, [], {}):
                self.leave(key, value)

    def finish(self) -> Settings:
        """The settings."""
        return Settings(
            self.program,
            {name: value for name, value in self.fields.items() if value is not None},
            self.model.strip(),
            self.hash.strip().lower(),
            self.task,
            tuple(self.unused),
        )


def read_json(content: str, what: str) -> dict[str, Any]:
    """Parse a JSON object; raises ImageError for anything else, too long or too deep."""
    if len(content) > MOST_JSON:
        raise ImageError(f"its {what} has more than {MOST_JSON} characters")
    try:
        value = json.loads(content)
    except RecursionError:
        raise ImageError(f"its {what} is nested too deeply") from None
    except ValueError:
        raise ImageError(f"its {what} is not valid JSON") from None
    if not isinstance(value, dict):
        raise ImageError(f"its {what} is not a JSON object")
    return value


def is_json(content: str) -> bool:
    """Whether a text is meant to be a JSON object."""
    return content.lstrip()[:1] == "{"


def text(value: Any) -> str:
    """A value as text; raises ValueError for lists and objects."""
    if isinstance(value, list | dict):
        raise ValueError("not a text")
    return str(value)


def whole(value: Any) -> int:
    """A whole number, also from text or from a float without a fraction; raises ValueError."""
    if isinstance(value, bool):
        raise ValueError("not a number")
    if isinstance(value, float) and value == math.floor(value):
        return int(value)
    return int(value) if isinstance(value, int) else int(str(value).strip())


def real(value: Any) -> float:
    """A finite number, also from text; raises ValueError."""
    if isinstance(value, bool) or not math.isfinite(number := float(value)):
        raise ValueError("not a number")
    return number


def short(value: Any, most: int = _LONGEST) -> str:
    """A value as one short line, for messages."""
    try:
        words = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except (RecursionError, TypeError, ValueError):
        words = type(value).__name__
    line = " ".join(words[: 4 * most].split())
    return line if len(line) <= most and len(words) <= 4 * most else f"{line[:most]}..."


_AS: Mapping[str, Callable[[Any], Any]] = {
    **dict.fromkeys(
        ("seed", "steps", "width", "height", "clip_skip", "variation_seed", "hires_steps"), whole
    ),
    **dict.fromkeys(("n_samples", "ensd"), whole),
    **dict.fromkeys(("scale", "strength", "eta", "variation_strength", "hires_strength"), real),
}
