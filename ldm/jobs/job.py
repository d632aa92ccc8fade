"""Jobs: validated, completed with defaults and divided into batches.

Nothing here needs a model or torch.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, get_type_hints

from ldm.errors import JobError
from ldm.jobs.conditions import check_conditions
from ldm.jobs.fields import ETA_SAMPLERS, IMAGE_TASKS, MAX_STEPS, PARTIAL, SAMPLER_NAMES, Fields
from ldm.jobs.flow import WITHOUT_T5, check_flow_fields
from ldm.jobs.hires import STRENGTH, UPSCALER, check_hires, parse_hires, parse_size
from ldm.jobs.inpainting import PADDING, check_inpainting
from ldm.jobs.loras import Lora, loras_of, parse_lora, split_tags
from ldm.jobs.noise_options import check_noise
from ldm.jobs.options import check_choices, check_range, nearest
from ldm.jobs.prompts import check_adapters
from ldm.jobs.seeds import MAX_SEED, counted, parse_seeds, written

MAX_ROWS = 65_536  # images in a batch, far beyond any memory
MAX_BATCHES = 1_000_000
LONGEST_PROMPT = 65_536  # characters


@dataclass(frozen=True)
class Defaults:
    """The defaults of a family of models; `source` names their origin for messages."""

    width: int
    height: int
    scale: float
    steps: int
    sampler: str
    source: str
    eta: float | None = None
    strength: float = 0.75
    noise_level: int = 0
    unconditional: str | None = None


@dataclass(frozen=True)
class Job(Fields):
    """The images to generate.

    Image i of a run has seed `seed` + i (`noise` "image"), or its place in one stream of random
    numbers ("stream": `skip_draws` tensors of `draw_rows` rows were drawn before this batch).
    """

    def validate(self) -> None:
        """Raise JobError for errors that can be detected without a model."""
        check_choices(self)
        check_range("--steps", self.steps, 1, MAX_STEPS)
        check_range("--width", self.width, 1, None)
        check_range("--height", self.height, 1, None)
        check_range("--n_samples", self.n_samples, 1, MAX_ROWS)
        check_range("--n_iter", self.n_iter, 1, MAX_BATCHES)
        check_range("--seed", self.seed, None, MAX_SEED)
        check_range("--clip-skip", self.clip_skip, 1, None)
        if self.scale is not None and not math.isfinite(self.scale):
            raise JobError(f"--scale must be a number, not {self.scale}")
        if self.eta is not None and not 0 <= self.eta <= 1:
            raise JobError(f"--eta must be 0 to 1, not {self.eta:g}")
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            raise JobError(f"--device must be auto, cpu, cuda, cuda:N or mps, not {self.device!r}")
        second = (self.prompt_2 or "", self.negative_2 or "")
        for text in (self.prompt or "", *self.prompts, self.negative, *second):
            if not text.isascii() and text.encode(errors="ignore").decode() != text:
                raise JobError(f"a prompt must be UTF-8 text, not {text!r}")
            if len(text) > LONGEST_PROMPT:
                raise JobError(
                    f"a prompt may have at most {LONGEST_PROMPT} characters: {text[:40]!r}..."
                )
            check_adapters(text, self.prompt_syntax)
            split_tags(text, self.prompt_syntax)
        for named in self.loras:
            parse_lora(named)
        if split_tags(self.negative, self.prompt_syntax)[1]:
            raise JobError(
                "the negative prompt names a LoRA; name it in the prompt, or with --lora"
            )
        check_conditions(self)
        self._validate_images()
        check_noise(self)
        self._validate_seeds()
        check_hires(self)
        check_inpainting(self)
        check_flow_fields(self)
        if self.precision == "int8" and self.device not in ("auto", "cpu"):
            raise JobError(f"--precision int8 is for the CPU, not {self.device}; use fp16 there")
        sampler = self.sampler and SAMPLER_NAMES[self.sampler]
        if sampler == "plms" and self.eta:
            raise JobError("--plms works only with --eta 0")

    def _validate_seeds(self) -> None:
        """Check the fields about seeds, except the first seed."""
        check_range("--seed-step", self.seed_step, 0, MAX_SEED)
        check_range("--variation-seed", self.variation_seed, 0, MAX_SEED)
        check_range("--ensd", self.ensd, 0, MAX_SEED)
        if not 0 <= self.variation_strength <= 1:
            raise JobError(f"--variation-strength must be 0 to 1, not {self.variation_strength:g}")
        if (self.variation_seed is None) != (self.variation_strength == 0):
            raise JobError("--variation-seed and --variation-strength go together; give both")
        given = {
            "--seeds": self.seeds is not None,
            "--seed-step": self.seed_step != 1,
            "--variation-seed": self.variation_seed is not None,
            "--ensd": self.ensd != 0,
        }
        for flag in (flag for flag, is_given in given.items() if is_given):
            if self.noise == "stream" or self.fixed_code:
                raise JobError(
                    f"{flag} needs --noise image: omit --noise stream (the scripts' default) "
                    "and --fixed_code"
                )
        if self.seeds is None:
            return
        parse_seeds(self.seeds)
        if self.prompts or self.n_iter != 1 or self.seed_step != 1:
            raise JobError(
                "--seeds sets the number of images: omit --n_iter and --seed-step, "
                "and give several prompts as jobs of a file"
            )

    def _validate_images(self) -> None:
        """Check the fields about images and classes."""
        if self.strength is not None and not 0 <= self.strength <= 1:
            raise JobError(f"--strength must be 0 to 1, not {self.strength:g}")
        check_range("--tile", self.tile, 32, None)
        most = 350 if self.task == "upscale" else 999
        check_range("--noise-level", self.noise_level, 0, most)
        if self.task in IMAGE_TASKS and self.init_img is None:
            raise JobError(f"--init-img is missing: give the image to {_VERBS[self.task]}")
        if self.task == "variations" and not self.images:
            raise JobError("--image is missing: give an image to vary")
        if self.weights and len(self.weights) != len(self.images):
            raise JobError(
                f"--weight is given {len(self.weights)} times for {len(self.images)} images; "
                "give one per image, or none"
            )
        self.image_weights()
        if self.depth is not None and self.depth_model is not None:
            raise JobError(
                "--depth and --depth-model exclude each other: a given depth map is not estimated"
            )
        if self.rng == "numpy" and (self.noise != "stream" or self.n_iter != 1):
            raise JobError("--rng numpy goes with --noise stream and one batch, as in the demos")

    def image_weights(self) -> tuple[float, ...]:
        """The weight of each of `images`, normalised to sum to 1; negative weights are allowed.

        Raises JobError for a weight that is not a number, and for weights that sum to 0.
        """
        weights = []
        for text in self.weights or ("1",) * len(self.images):
            try:
                weights.append(float(text))
            except ValueError:
                raise JobError(f"--weight must be a number, not {text!r}") from None
            if not math.isfinite(weights[-1]):
                raise JobError(f"--weight must be a number, not {text!r}")
        total = sum(weights)
        if weights and abs(total) < 1e-6:
            raise JobError("--weight: the weights add up to 0, so they have no mean")
        return tuple(weight / total for weight in weights)

    def files(self) -> tuple[str, ...]:
        """The files that the job reads besides the model, in a fixed order."""
        named = (
            self.init_img,
            *self.images,
            self.mask,
            self.depth,
            self.vae,
            self.depth_model,
            self.clip_l,
            self.clip_g,
            None if self.t5 in WITHOUT_T5 else self.t5,
            *(pair.partition("=")[2] for pair in self.lora_files),
        )
        return tuple(name for name in named if name is not None)

    def resolve(self, defaults: Defaults, draw_seed: Callable[[], int]) -> Resolved:
        """Fill in the family's defaults and a seed; sampler aliases become main names."""
        why: dict[str, str] = {}
        filled: dict[str, Any] = {}
        family: dict[str, Any] = {
            "scale": defaults.scale,
            "steps": defaults.steps,
            "sampler": defaults.sampler,
        }
        if not (self.negative or self.negative_2):
            family["unconditional"] = defaults.unconditional
        sampler = SAMPLER_NAMES[self.sampler or defaults.sampler]
        if sampler in ETA_SAMPLERS:
            family["eta"] = defaults.eta
        masked = self.inpaint_area == "masked"
        if masked or self.task not in IMAGE_TASKS:  # other tasks take their size from the image
            family |= {"width": defaults.width, "height": defaults.height}
        if self.task in PARTIAL:
            family["strength"] = defaults.strength
        if self.task in ("upscale", "variations"):
            family["noise_level"] = defaults.noise_level
        if masked:
            family["inpaint_padding"] = PADDING
        if self.hires is not None:
            family |= {"hires_upscaler": UPSCALER, "hires_strength": STRENGTH}
            family["hires_steps"] = self.steps or defaults.steps
        for name, value in vars(self).items():
            if value is None and family.get(name) is not None:
                filled[name] = family[name]
                why[name] = defaults.source
        if self.mask_blur and self.feather:
            filled["feather"] = 0
            why["feather"] = "--mask-blur blends instead"
        if self.seeds is not None:
            filled["seed"] = parse_seeds(self.seeds)[0]
        elif self.seed is None or self.seed < 0:
            filled["seed"] = draw_seed()
            why["seed"] = "drawn at random"
        filled["sampler"] = SAMPLER_NAMES[filled.get("sampler") or self.sampler or ""]
        job = replace(self, **filled)
        job.validate()
        return Resolved(job, why)

    def batches(self) -> Iterator[Job]:
        """The job of each batch, in the originals' order; a batch's job has itself as only batch.

        `n_samples` is the size of a batch: copies of one prompt, or that many of `prompts`. In a
        stream, a short last batch draws as many rows as the others and uses only the first.
        """
        if self.seeds is not None:
            yield from self._listed_batches(self.seeds)
            return
        size = self.n_samples
        chunks = list(self._chunks(size)) or [()]
        seed = self.seed or 0
        alone = self.noise == "image" and not self.fixed_code
        varied = self.variation_strength > 0
        image = 0
        classes: list[tuple[str, ...]] = [(name,) for name in self.classes] or [()]
        for _ in range(self.n_iter):
            for chunk, named in itertools.product(chunks, classes):
                rows = len(chunk) or size
                moved = self.seed_step * image if alone else 0
                yield replace(
                    self,
                    prompts=chunk,
                    classes=named,
                    n_samples=rows,
                    n_iter=1,
                    seed=(seed + moved) % (MAX_SEED + 1) if moved and not varied else self.seed,
                    variation_seed=self._varied(moved),
                    draw_rows=(self.draw_rows or size) if self.noise == "stream" else 0,
                )
                image += rows

    def _chunks(self, size: int) -> Iterator[tuple[str, ...]]:
        """The prompts of each batch: at most `size`, with one set of LoRAs."""
        for _, group in itertools.groupby(self.prompts, self.loras_of):
            members = tuple(group)
            for start in range(0, len(members), size):
                yield members[start : start + size]

    def loras_of(self, prompt: str) -> tuple[Lora, ...]:
        """The LoRAs of an image of a prompt."""
        return loras_of(self.loras, prompt, self.prompt_syntax)

    def _listed_batches(self, listed: str) -> Iterator[Job]:
        """The batches of a job with one seed per image."""
        seeds = parse_seeds(listed)
        image = 0
        classes: list[tuple[str, ...]] = [(name,) for name in self.classes] or [()]
        for named in classes:
            for start in range(0, len(seeds), self.n_samples):
                here = seeds[start : start + self.n_samples]
                yield replace(
                    self,
                    classes=named,
                    n_samples=len(here),
                    seed=here[0],
                    seeds=written(here),
                    variation_seed=self._varied(image),
                )
                image += len(here)

    def _varied(self, moved: int) -> int | None:
        """The variation seed, `moved` places further."""
        first = self.variation_seed
        return None if first is None else (first + moved) % (MAX_SEED + 1)

    def texts(self) -> tuple[str, ...]:
        """The prompt, or the class, of every image of a batch."""
        alone = self.classes[0] if self.classes else self.prompt or ""
        return self.prompts or (alone,) * self.n_samples

    def image_values(self, row: int) -> dict[str, Any]:
        """The main settings of an image in a resolved batch, by field."""
        width, height = self.image_size()
        return {
            "seed": self.image_seeds()[row],
            "prompt": self.texts()[row],
            "negative": self.negative,
            "width": width,
            "height": height,
            "steps": self.steps,
            "sampler": self.sampler,
            "scale": self.scale,
        }

    def image_size(self) -> tuple[int | None, int | None]:
        """The width and height of the finished images of a resolved job."""
        size = None if self.hires is None else parse_hires(self.hires)
        if self.whole_size is not None:
            size = parse_size(self.whole_size)
        return size if isinstance(size, tuple) else (self.width, self.height)

    def image_seeds(self) -> tuple[int, ...]:
        """The seed of every image in a batch; a stream, or a variation, has one for all."""
        if self.seeds is not None:
            return parse_seeds(self.seeds)
        step = self.seed_step if self.noise == "image" and not self.variation_strength else 0
        return counted(self.seed or 0, step, self.n_samples)

    def variation_seeds(self) -> tuple[int, ...]:
        """The seed of the variation noise of each image in a batch; () without variation."""
        if self.variation_seed is None:
            return ()
        return counted(self.variation_seed, self.seed_step, self.n_samples)

    def count(self) -> int:
        """The number of images that the job generates."""
        rows = len(self.prompts) or self.n_samples
        if self.seeds is not None:
            rows = len(parse_seeds(self.seeds))
        return self.n_iter * rows * max(1, len(self.classes))


@dataclass(frozen=True)
class Resolved:
    """A job with all defaults of its family filled in, and the origin of each of them."""

    job: Job
    why: dict[str, str]


_VERBS = {
    "img2img": "change",
    "inpaint": "inpaint",
    "depth2img": "take the depth of",
    "upscale": "enlarge",
}


def to_record(job: Job) -> dict[str, Any]:
    """Convert a job to plain JSON values, without empty fields."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(job).items()
        if value is not None and value != ()
    }


def from_record(record: Mapping[str, Any]) -> Job:
    """Read a job's record; raises JobError for an unknown field or a value of the wrong type."""
    hints = _hints()
    values: dict[str, Any] = {}
    for name, value in record.items():
        if name not in hints:
            raise JobError(f"unknown field {name!r} in a job{nearest(name, hints)}")
        values[name] = _value(name, value, hints[name])
    return Job(**values)


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(Job)


def _value(name: str, value: Any, hint: Any) -> Any:
    if hint == tuple[str, ...]:
        if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
            return tuple(value)
    elif type(value) is int and float in _kinds(hint) and abs(value) < 2**1000:
        return float(value)
    elif type(value) in _kinds(hint):
        return value
    raise JobError(f"{name} must be {_wanted(hint)}, not {json.dumps(value, default=str)}")


def _wanted(hint: Any) -> str:
    """The kind of value that a field takes, in words."""
    if hint == tuple[str, ...]:
        return "a list of texts"
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    return " or ".join(words[kind] for kind in _kinds(hint) if kind in words)


def _kinds(hint: Any) -> tuple[type, ...]:
    return (hint,) if isinstance(hint, type) else tuple(hint.__args__)
