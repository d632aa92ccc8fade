"""What is wanted: the only parameter list of the project.

Flags, records in images and messages are all made from the fields of `Job`; each carries an
`Option` in its metadata. Nothing here needs a model, or torch.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, get_type_hints

from ldm.errors import JobError
from ldm.options import check_choices, check_range, option
from ldm.options import nearest as nearest  # ldm.data has it from here
from ldm.seeds import MAX_SEED, counted, parse_seeds, written

MAX_STEPS = 1000
MAX_ROWS = 65_536  # images in a batch, far beyond any memory
MAX_BATCHES = 1_000_000
LONGEST_PROMPT = 65_536  # characters

# Samplers and their other names; ldm.samplers has the functions (a test holds the two together).
SAMPLER_ALIASES: Mapping[str, tuple[str, ...]] = {
    "ddim": ("k_ddim",),
    "plms": (),
    "dpm_solver": ("dpm",),
    "euler": ("k_euler",),
    "euler_ancestral": ("euler_a", "k_euler_a", "k_euler_ancestral"),
    "heun": ("k_heun",),
    "dpm_2": ("dpm2", "k_dpm_2"),
    "dpm_2_ancestral": ("dpm2_a", "k_dpm_2_a", "k_dpm_2_ancestral"),
    "lms": ("k_lms",),
    "dpmpp_2m": ("dpm++_2m", "k_dpmpp_2m"),
    "dpmpp_2s_ancestral": ("dpmpp_2s_a", "dpm++_2s_a", "k_dpmpp_2s_a"),
    "dpmpp_sde": ("dpm++_sde", "k_dpmpp_sde"),
    "dpmpp_2m_sde": ("dpm++_2m_sde", "k_dpmpp_2m_sde"),
}
SAMPLER_NAMES: Mapping[str, str] = {
    name: main for main, aliases in SAMPLER_ALIASES.items() for name in (main, *aliases)
}
# The samplers that take `eta`; the others draw no noise.
ETA_SAMPLERS = (
    "ddim",
    "euler_ancestral",
    "dpm_2_ancestral",
    "dpmpp_2s_ancestral",
    "dpmpp_sde",
    "dpmpp_2m_sde",
)
GRID_NAMES = ("ddim", "quad", "dpm_solver", "default", "karras", "exponential")
PRECISIONS = ("auto", "full", "fp16", "bf16", "int8", "autocast")
ATTENTIONS = ("auto", "sdpa", "xformers", "sliced", "math")


TASK_NAMES = (
    "txt2img", "img2img", "inpaint", "depth2img", "upscale", "variations", "sample"
)  # fmt: skip
# Which of them take a prompt, a first picture, a strength.
PROMPTED = ("txt2img", "img2img", "inpaint", "depth2img", "upscale", "variations")
PICTURED = ("img2img", "inpaint", "depth2img", "upscale")
PARTIAL = ("img2img", "inpaint", "depth2img")
# Those whose pictures have a size that can be asked for.
SIZED = tuple(name for name in TASK_NAMES if name != "upscale")
FITS = ("resize", "crop", "pad", "error", "floor-32", "floor-64")
PROMPT_SYNTAXES = ("weights", "plain")
FILE_FORMATS = ("txt", "csv", "tsv", "json", "jsonl")
VAE_TILINGS = ("auto", "on", "off")


@dataclass(frozen=True)
class Defaults:
    """What a family of models uses where the job says nothing; `source` is for people."""

    width: int
    height: int
    scale: float
    steps: int
    sampler: str
    source: str
    eta: float | None = None
    strength: float = 0.75
    noise_level: int = 0


@dataclass(frozen=True)
class Job:
    """The pictures that are wanted. None means: the default of the model's family.

    Image i of a run has seed `seed` + i (`noise` "image"), or its place in one stream of random
    numbers ("stream": `skip_draws` tensors of `draw_rows` rows were drawn before this batch).
    """

    task: str = option("txt2img", choices=TASK_NAMES)
    prompt: str | None = option(
        None, "--prompt", help="What to draw.", metavar="TEXT", tasks=PROMPTED
    )
    prompts: tuple[str, ...] = option(())
    negative: str = option(
        "",
        "--negative",
        "--negative-prompt",
        help="What to keep away from.",
        metavar="TEXT",
        tasks=PROMPTED,
    )
    prompt_syntax: str = option(
        "weights",
        "--prompt-syntax",
        help="weights: (x:1.3), [x] and BREAK mean something, and length has no limit [weights]; "
        "plain: each character as it is, and what is too long cut off.",
        choices=PROMPT_SYNTAXES,
        tasks=PROMPTED,
    )
    clip_skip: int | None = option(
        None,
        "--clip-skip",
        help="Layer of the text encoder to take, from the end: 1 is the last [the model's own].",
        tasks=PROMPTED,
    )
    init_img: str | None = option(
        None,
        "--init-img",
        "-i",
        help="The picture to begin with; a folder or a pattern runs on each picture.",
        metavar="FILE",
        tasks=PICTURED,
    )
    images: tuple[str, ...] = option(
        (),
        "--image",
        "--init-img",
        "-i",
        help="A picture to vary; several are mixed.",
        metavar="FILE",
        tasks=("variations",),
    )
    weights: tuple[str, ...] = option(
        (),
        "--weight",
        help="Share of each --image, in their order [1]; may be negative.",
        metavar="X",
        tasks=("variations",),
    )
    classes: tuple[str, ...] = option(
        (),
        "--class",
        help="What to draw: a number or a name of ImageNet; may be repeated.",
        metavar="N|NAME",
        tasks=("sample",),
    )
    strength: float | None = option(
        None,
        "--strength",
        help="How much to change, 0 to 1: the share of the steps that is run.",
        tasks=PARTIAL,
    )
    mask: str | None = option(
        None,
        "--mask",
        help="White is repainted [where the picture is transparent].",
        metavar="FILE",
        tasks=("inpaint",),
    )
    mask_invert: bool = option(
        False, "--mask-invert", help="Black is repainted.", tasks=("inpaint",)
    )
    outpaint: str | None = option(
        None,
        "--outpaint",
        help="Pixels to add around the picture, and to paint.",
        metavar="LEFT,TOP,RIGHT,BOTTOM",
        tasks=("inpaint",),
    )
    feather: int = option(
        8, "--feather", help="Pixels inside the mask over which to blend [8].", tasks=("inpaint",)
    )
    no_paste: bool = option(
        False,
        "--no-paste",
        help="Give the model's own picture, also outside the mask.",
        tasks=("inpaint",),
    )
    depth: str | None = option(
        None,
        "--depth",
        help="Depth map, near is bright [estimated].",
        metavar="FILE",
        tasks=("depth2img",),
    )
    depth_invert: bool = option(
        False, "--depth-invert", help="In the depth map near is dark.", tasks=("depth2img",)
    )
    depth_model: str | None = option(
        None,
        "--depth-model",
        help="DPT-hybrid to estimate depth with [the checkpoint's own].",
        metavar="FILE",
        tasks=("depth2img",),
    )
    noise_level: int | None = option(
        None,
        "--noise-level",
        help="Noise on the picture before the model sees it: 0 to 350, or 999 for variations.",
        tasks=("upscale", "variations"),
    )
    tile: int = option(
        128,
        "--tile",
        help="Side of the tiles to work in, in input pixels [128].",
        tasks=("upscale",),
    )
    fit: str | None = option(
        None,
        "--fit",
        help="How a picture becomes --W x --H [resize]; floor-64 is the originals' way.",
        choices=FITS,
        tasks=PARTIAL,
    )
    width: int | None = option(
        None,
        "--width",
        "--W",
        help="Pixels across [the picture's or the model's own].",
        tasks=SIZED,
    )
    height: int | None = option(
        None,
        "--height",
        "--H",
        help="Pixels down [the picture's or the model's own].",
        tasks=SIZED,
    )
    steps: int | None = option(
        None, "--steps", "--ddim_steps", help="Sampling steps, 1 to 1000, of any sampler."
    )
    scale: float | None = option(
        None, "--scale", help="Guidance: how closely to follow what is asked; 1 is none."
    )
    sampler: str | None = option(
        None,
        "--sampler",
        help=f"How to sample [ddim]: {', '.join(SAMPLER_ALIASES)}.",
        choices=SAMPLER_NAMES,
    )
    grid: str | None = option(
        None, "--grid", help="Spacing of the noise levels [the sampler's own].", choices=GRID_NAMES
    )
    schedule_compat: str = option(
        "exact",
        "--schedule-compat",
        help="exact: as many steps as asked; ldm: the original scripts' steps (30 runs 31).",
        choices=("exact", "ldm"),
    )
    eta: float | None = option(
        None, "--eta", "--ddim_eta", help="Fresh noise in each step, 0 to 1 [the sampler's own]."
    )
    seed: int | None = option(
        None, "--seed", help="Seed of the first image; negative or left out: drawn, and told."
    )
    seeds: str | None = option(
        None, "--seeds", help="An image for each of these seeds.", metavar="1,2,5-9"
    )
    seed_step: int = option(1, "--seed-step", help="From the seed of an image to the next [1].")
    variation_seed: int | None = option(
        None, "--variation-seed", help="Seed of noise to mix in; each image has one more."
    )
    variation_strength: float = option(
        0.0, "--variation-strength", help="How much of it, 0 to 1; all images keep one --seed [0]."
    )
    n_samples: int = option(1, "--n_samples", help="Images in a batch [1].")
    n_iter: int = option(1, "--n_iter", help="How many batches [1].")
    fixed_code: bool = option(False, "--fixed_code", help="Every batch starts from the same noise.")
    noise: str = option(
        "image",
        "--noise",
        help="image: each image has a seed of its own; stream: one stream, as the originals.",
        choices=("image", "stream"),
    )
    rng: str = option(
        "philox",
        "--rng",
        help="Random numbers: philox (an NVIDIA GPU's, anywhere), cpu (torch's), the device's, "
        "or numpy (the 2022 demos': the first noise numpy's, the rest cpu).",
        choices=("philox", "cpu", "device", "numpy"),
    )
    skip_draws: int = option(0)
    draw_rows: int = option(0)
    model: str | None = option(
        None,
        "--model",
        "--ckpt",
        "-m",
        help="Checkpoint: a path, or a name under ./models or $LDM_MODELS [the bundled model].",
        metavar="FILE",
    )
    config: str | None = option(
        None, "--config", help="YAML of the model [found from the checkpoint].", metavar="YAML"
    )
    overrides: tuple[str, ...] = option(
        (), "--set", help="Change a value of the YAML; may be repeated.", metavar="KEY=VALUE"
    )
    prediction: str | None = option(
        None,
        "--prediction",
        help="What the network predicts [seen from the file, or measured].",
        choices=("eps", "v"),
    )
    vae: str | None = option(
        None, "--vae", help="Another autoencoder for the model.", metavar="FILE"
    )
    vae_tiling: str = option(
        "auto",
        "--vae-tiling",
        help="Decode and encode in tiles, in bounded memory [auto: large pictures].",
        choices=VAE_TILINGS,
    )
    channels: int | None = option(None, "--C", help="Latent channels: only checked.")
    factor: int | None = option(None, "--f", help="Pixels per latent position: only checked.")
    device: str = option(
        "auto", "--device", help="Where to compute.", metavar="auto|cpu|cuda|cuda:N|mps"
    )
    precision: str = option(
        "auto",
        "--precision",
        help="Numbers of the networks [auto: fp16 on a GPU, full on a CPU]; int8 is for CPUs.",
        choices=PRECISIONS,
    )
    attention: str = option("auto", "--attention", help="Attention kernel.", choices=ATTENTIONS)

    def validate(self) -> None:
        """Raise JobError for what can be seen to be wrong without a model."""
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
        for text in (self.prompt or "", *self.prompts, self.negative):
            if not text.isascii() and text.encode(errors="ignore").decode() != text:
                raise JobError(f"a prompt must be UTF-8 text, not {text!r}")
            if len(text) > LONGEST_PROMPT:
                raise JobError(
                    f"a prompt has at most {LONGEST_PROMPT} characters: {text[:40]!r}..."
                )
        self._validate_pictures()
        self._validate_seeds()
        if self.precision == "int8" and self.device not in ("auto", "cpu"):
            raise JobError(f"--precision int8 is for the CPU, not {self.device}; use fp16 there")
        sampler = self.sampler and SAMPLER_NAMES[self.sampler]
        if sampler == "plms" and self.eta:
            raise JobError("--plms works with --eta 0 only: the method draws no noise")

    def _validate_seeds(self) -> None:
        """The fields about seeds beside the first one."""
        check_range("--seed-step", self.seed_step, 0, MAX_SEED)
        check_range("--variation-seed", self.variation_seed, 0, MAX_SEED)
        if not 0 <= self.variation_strength <= 1:
            raise JobError(f"--variation-strength must be 0 to 1, not {self.variation_strength:g}")
        if (self.variation_seed is None) != (self.variation_strength == 0):
            raise JobError("--variation-seed and --variation-strength go together; give both")
        given = {
            "--seeds": self.seeds is not None,
            "--seed-step": self.seed_step != 1,
            "--variation-seed": self.variation_seed is not None,
        }
        for flag in (flag for flag, wanted in given.items() if wanted):
            if self.noise == "stream" or self.fixed_code:
                raise JobError(
                    f"{flag} needs images with noise of their own: leave --noise stream (which is "
                    "the scripts' default) and --fixed_code out"
                )
        if self.seeds is None:
            return
        parse_seeds(self.seeds)
        if self.prompts or self.n_iter != 1 or self.seed_step != 1:
            raise JobError(
                "--seeds says how many images a prompt has: leave --n_iter and --seed-step "
                "out, and give several prompts as jobs of a file"
            )

    def _validate_pictures(self) -> None:
        """The fields about pictures and classes."""
        if self.strength is not None and not 0 <= self.strength <= 1:
            raise JobError(f"--strength must be 0 to 1, not {self.strength:g}")
        check_range("--feather", self.feather, 0, None)
        check_range("--tile", self.tile, 32, None)
        most = 350 if self.task == "upscale" else 999
        check_range("--noise-level", self.noise_level, 0, most)
        if self.task in PICTURED and self.init_img is None:
            raise JobError(f"--init-img is missing: name the picture to {_VERBS[self.task]}")
        if self.task == "variations" and not self.images:
            raise JobError("--image is missing: name a picture to vary")
        if self.weights and len(self.weights) != len(self.images):
            raise JobError(
                f"--weight is given {len(self.weights)} times for {len(self.images)} pictures; "
                "give one for each, or none"
            )
        self.image_weights()
        if self.mask is not None and self.outpaint is not None:
            raise JobError("--mask and --outpaint both say what to paint; give one")
        if self.depth is not None and self.depth_model is not None:
            raise JobError("--depth and --depth-model: with the map there is nothing to estimate")
        if self.rng == "numpy" and (self.noise != "stream" or self.n_iter != 1):
            raise JobError("--rng numpy goes with --noise stream and one batch, as in the demos")

    def image_weights(self) -> tuple[float, ...]:
        """The weight of each of `images`: shares of 1, which negative ones may exceed.

        Raises JobError for one that is no number, and where they add up to nothing.
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
            raise JobError("--weight: the weights add up to 0, so there is no mean to take")
        return tuple(weight / total for weight in weights)

    def files(self) -> tuple[str, ...]:
        """The files that the job reads beside the model, in a fixed order."""
        named = (
            self.init_img,
            *self.images,
            self.mask,
            self.depth,
            self.vae,
            self.depth_model,
        )
        return tuple(name for name in named if name is not None)

    def resolve(self, defaults: Defaults, draw_seed: Callable[[], int]) -> Resolved:
        """Fill every gap: the family's defaults, and a seed; names become the main ones."""
        why: dict[str, str] = {}
        filled: dict[str, Any] = {}
        family: dict[str, Any] = {
            "scale": defaults.scale,
            "steps": defaults.steps,
            "sampler": defaults.sampler,
        }
        sampler = SAMPLER_NAMES[self.sampler or defaults.sampler]
        if sampler in ETA_SAMPLERS:
            family["eta"] = defaults.eta
        if self.task not in PICTURED:  # the others take their size from the picture
            family |= {"width": defaults.width, "height": defaults.height}
        if self.task in PARTIAL:
            family["strength"] = defaults.strength
        if self.task in ("upscale", "variations"):
            family["noise_level"] = defaults.noise_level
        for name, value in vars(self).items():
            if value is None and family.get(name) is not None:
                filled[name] = family[name]
                why[name] = defaults.source
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
        """The job of each batch, in the originals' order; a batch's own batches are itself.

        `n_samples` is the size of a batch: copies of one prompt, or as many of `prompts`. In a
        stream a short last batch draws as many rows as the others and keeps the first.
        """
        if self.seeds is not None:
            yield from self._listed_batches(self.seeds)
            return
        size = self.n_samples
        chunks = [self.prompts[i : i + size] for i in range(0, len(self.prompts), size)] or [()]
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

    def _listed_batches(self, listed: str) -> Iterator[Job]:
        """The batches of a job with a seed for each image."""
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
        """The variation seed after so many steps."""
        first = self.variation_seed
        return None if first is None else (first + moved) % (MAX_SEED + 1)

    def texts(self) -> tuple[str, ...]:
        """The prompt, or the class, of every image of a batch."""
        alone = self.classes[0] if self.classes else self.prompt or ""
        return self.prompts or (alone,) * self.n_samples

    def image_seeds(self) -> tuple[int, ...]:
        """The seed of every image of a batch; in a stream, and with variations, one for all."""
        if self.seeds is not None:
            return parse_seeds(self.seeds)
        step = self.seed_step if self.noise == "image" and not self.variation_strength else 0
        return counted(self.seed or 0, step, self.n_samples)

    def variation_seeds(self) -> tuple[int, ...]:
        """The seed of the noise that is mixed into each image of a batch; () where none is."""
        if self.variation_seed is None:
            return ()
        return counted(self.variation_seed, self.seed_step, self.n_samples)

    def count(self) -> int:
        """How many images the job makes."""
        rows = len(self.prompts) or self.n_samples
        if self.seeds is not None:
            rows = len(parse_seeds(self.seeds))
        return self.n_iter * rows * max(1, len(self.classes))


@dataclass(frozen=True)
class Resolved:
    """A job without gaps in what its family decides, and the reason for each value filled in."""

    job: Job
    why: dict[str, str]


_VERBS = {
    "img2img": "change",
    "inpaint": "repaint",
    "depth2img": "take the depth of",
    "upscale": "enlarge",
}


def to_record(job: Job) -> dict[str, Any]:
    """A job as plain JSON values; fields that are empty are left out."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(job).items()
        if value is not None and value != ()
    }


def from_record(record: Mapping[str, Any]) -> Job:
    """The job of a record; raises JobError for an unknown field or a value of the wrong kind."""
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
    raise JobError(f"field {name!r} of a job cannot be {value!r}")


def _kinds(hint: Any) -> tuple[type, ...]:
    return (hint,) if isinstance(hint, type) else tuple(hint.__args__)
