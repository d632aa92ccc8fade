"""What can be asked for: the only parameter list of the project.

Flags, records in images and messages are all made from these fields; each carries an `Option` in
its metadata. `ldm.jobs.job` says what is done with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ldm.jobs.options import option

# Samplers and their other names; ldm.sampling.samplers has the functions (a test compares them).
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
class Fields:
    """The fields of a `Job`. None means: the default of the model's family."""

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
