"""The fields of a job: the project's only list of parameters.

Flags, records in images and messages all derive from these fields; each has an `Option` in its
metadata. `ldm.jobs.job` validates and resolves them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ldm.jobs.options import option

# Samplers and their aliases; ldm.sampling.samplers has the functions (a test compares the two).
SAMPLER_ALIASES: Mapping[str, tuple[str, ...]] = {
    "ddim": ("k_ddim",),
    "plms": (),
    "dpm_solver": ("dpm",),
    "euler": ("k_euler",),
    # The step of DDPM is the same one.
    "euler_ancestral": ("euler_a", "k_euler_a", "k_euler_ancestral", "ddpm"),
    "heun": ("k_heun",),
    "dpm_2": ("dpm2", "k_dpm_2"),
    "dpm_2_ancestral": ("dpm2_a", "k_dpm_2_a", "k_dpm_2_ancestral"),
    "lms": ("k_lms",),
    "dpmpp_2m": ("dpm++_2m", "k_dpmpp_2m"),
    "dpmpp_2s_ancestral": ("dpmpp_2s_a", "dpm++_2s_a", "k_dpmpp_2s_a"),
    "dpmpp_sde": ("dpm++_sde", "k_dpmpp_sde"),
    "dpmpp_2m_sde": ("dpm++_2m_sde", "k_dpmpp_2m_sde"),
    "dpmpp_3m_sde": ("dpm++_3m_sde", "k_dpmpp_3m_sde"),
    "ipndm": (),
    "res_multistep": (),
    "lcm": (),
    "uni_pc": ("unipc",),
    "uni_pc_bh2": ("unipc_bh2",),
    "dpm_fast": ("k_dpm_fast",),
    "dpm_adaptive": ("k_dpm_ad",),
    "heunpp2": (),
    "ipndm_v": (),
    "deis": (),
    "er_sde": (),
    "restart": (),
    "tcd": (),
    "euler_cfg_pp": (),
    "euler_ancestral_cfg_pp": (),
    "dpmpp_2m_cfg_pp": (),
}
SAMPLER_NAMES: Mapping[str, str] = {
    name: main for main, aliases in SAMPLER_ALIASES.items() for name in (main, *aliases)
}
# The samplers that take `eta`.
ETA_SAMPLERS = (
    "ddim",
    "euler_ancestral",
    "dpm_2_ancestral",
    "dpmpp_2s_ancestral",
    "dpmpp_sde",
    "dpmpp_2m_sde",
    "dpmpp_3m_sde",
    "dpm_fast",
    "er_sde",
    "tcd",
    "euler_ancestral_cfg_pp",
)
# Those that draw noise without it.
NOISY_SAMPLERS = ("lcm", "restart")
# Those that take s_churn, and those that need the estimate without the prompt.
CHURN_SAMPLERS = ("euler", "heun", "dpm_2", "heunpp2")
CFG_PP_SAMPLERS = ("euler_cfg_pp", "euler_ancestral_cfg_pp", "dpmpp_2m_cfg_pp")
# Those that take from a grid only where it begins and ends.
OWN_STEPS = ("dpm_fast", "dpm_adaptive", "restart")
GRID_NAMES = (
    "ddim", "quad", "dpm_solver", "default", "karras", "exponential", "polyexponential", "simple",
    "sgm_uniform", "turbo", "ddim_uniform", "linspace", "leading", "trailing", "beta",
    "beta_sigmas", "lcm", "tcd", "kl_optimal", "ays", "ays_sdxl", "linear_quadratic",
    "flow", "flow_set_shift", "flow_linear",
)  # fmt: skip
# Those for models of flow matching; ldm.sampling.flow has the functions.
FLOW_GRID_NAMES = (
    "flow", "flow_set_shift", "flow_linear", "default", "sgm_uniform", "simple", "karras",
    "exponential", "polyexponential", "kl_optimal", "linear_quadratic",
)  # fmt: skip
FLOW_ONLY_GRIDS = ("flow", "flow_set_shift", "flow_linear")
PRECISIONS = ("auto", "full", "fp16", "bf16", "int8", "autocast")
ATTENTIONS = ("auto", "sdpa", "xformers", "sliced", "math")


MAX_STEPS = 1000  # as many as the schedules of the originals have

TASK_NAMES = (
    "txt2img", "img2img", "inpaint", "depth2img", "upscale", "variations", "sample"
)  # fmt: skip
# The tasks that take a prompt, an input image, a strength.
PROMPTED = ("txt2img", "img2img", "inpaint", "depth2img", "upscale", "variations")
CONDITIONED = ("txt2img", "img2img", "inpaint")  # those of SDXL
IMAGE_TASKS = ("img2img", "inpaint", "depth2img", "upscale")
PARTIAL = ("img2img", "inpaint", "depth2img")
INPAINT_AREAS = ("whole", "masked")
INPAINT_FILLS = ("original", "fill", "noise", "nothing")
# The tasks that models of flow matching (Stable Diffusion 3) can do.
FLOW_TASKS = ("txt2img", "img2img", "inpaint")
HIRES_UPSCALERS = ("latent", "latent-bicubic", "latent-nearest", "lanczos")
# The tasks that take a size.
SIZED = tuple(name for name in TASK_NAMES if name != "upscale")
FITS = ("resize", "crop", "pad", "error", "floor-32", "floor-64")
PROMPT_SYNTAXES = ("a1111", "comfy", "weights", "plain")
FILE_FORMATS = ("txt", "csv", "tsv", "json", "jsonl")
VAE_TILINGS = ("auto", "on", "off")


@dataclass(frozen=True)
class Fields:
    """The fields of a `Job`. None means the default of the model's family."""

    task: str = option("txt2img", choices=TASK_NAMES)
    prompt: str | None = option(
        None, "--prompt", help="Text prompt.", metavar="TEXT", tasks=PROMPTED
    )
    prompts: tuple[str, ...] = option(())
    negative: str = option(
        "",
        "--negative",
        "--negative-prompt",
        help="Negative prompt: what the image should not show.",
        metavar="TEXT",
        tasks=PROMPTED,
    )
    prompt_2: str | None = option(
        None,
        "--prompt-2",
        help="Prompt for the second text encoder of SDXL [--prompt].",
        metavar="TEXT",
        tasks=CONDITIONED,
    )
    negative_2: str | None = option(
        None,
        "--negative-2",
        help="Negative prompt for the second text encoder of SDXL [--negative].",
        metavar="TEXT",
        tasks=CONDITIONED,
    )
    unconditional: str | None = option(
        None,
        "--unconditional",
        help="What stands for an empty negative prompt: the encoded text, or zeros [the model's].",
        choices=("encoded", "zeros"),
        tasks=CONDITIONED,
    )
    original_size: str | None = option(
        None,
        "--original-size",
        help="SDXL: size of the image before scaling; a small one blurs [the image's].",
        metavar="WxH",
        tasks=CONDITIONED,
    )
    crop: str | None = option(
        None,
        "--crop",
        help="SDXL: where the image was cropped; above 0 cuts off its subject [0,0].",
        metavar="LEFT,TOP",
        tasks=CONDITIONED,
    )
    target_size: str | None = option(
        None,
        "--target-size",
        help="SDXL: size of the cropped image [the image's].",
        metavar="WxH",
        tasks=CONDITIONED,
    )
    aesthetic_score: float | None = option(
        None,
        "--aesthetic-score",
        help="SDXL refiner: how pleasing the image is to be, 0 to 10 [6].",
        tasks=CONDITIONED,
    )
    negative_aesthetic_score: float | None = option(
        None,
        "--negative-aesthetic-score",
        help="SDXL refiner: the score to avoid, 0 to 10 [2.5].",
        tasks=CONDITIONED,
    )
    prompt_syntax: str = option(
        "a1111",
        "--prompt-syntax",
        help="a1111: (x:1.3), [x], BREAK, [x:y:0.5], [x|y] and AND, any length [a1111]; "
        "comfy: weights as in ComfyUI; weights: a1111 without the last three; "
        "plain: the literal text, truncated.",
        choices=PROMPT_SYNTAXES,
        tasks=PROMPTED,
    )
    clip_skip: int | None = option(
        None,
        "--clip-skip",
        help="Text encoder layer to use, counted from the end; 1 is the last [the model's].",
        tasks=PROMPTED,
    )
    t5_length: int | None = option(
        None,
        "--t5-length",
        help="Number of T5's tokens (SD3) [77, or 256 for a longer prompt].",
        tasks=FLOW_TASKS,
    )
    init_img: str | None = option(
        None,
        "--init-img",
        "-i",
        help="Input image; a folder or a quoted pattern processes each image.",
        metavar="FILE",
        tasks=IMAGE_TASKS,
    )
    images: tuple[str, ...] = option(
        (),
        "--image",
        "--init-img",
        "-i",
        help="Image to vary; repeat it to mix several.",
        metavar="FILE",
        tasks=("variations",),
    )
    weights: tuple[str, ...] = option(
        (),
        "--weight",
        help="Weight of each --image, in order; may be negative [1].",
        metavar="X",
        tasks=("variations",),
    )
    classes: tuple[str, ...] = option(
        (),
        "--class",
        help="ImageNet class, by number or name; may be repeated.",
        metavar="N|NAME",
        tasks=("sample",),
    )
    strength: float | None = option(
        None,
        "--strength",
        help="Denoising strength, 0 (keep the image) to 1 (replace it).",
        tasks=PARTIAL,
    )
    mask: str | None = option(
        None,
        "--mask",
        help="Mask image: white is inpainted [transparent parts of the image].",
        metavar="FILE",
        tasks=("inpaint",),
    )
    mask_invert: bool = option(
        False, "--mask-invert", help="Inpaint black instead of white.", tasks=("inpaint",)
    )
    outpaint: str | None = option(
        None,
        "--outpaint",
        help="Extend the image by these many pixels and fill them.",
        metavar="LEFT,TOP,RIGHT,BOTTOM",
        tasks=("inpaint",),
    )
    feather: int = option(
        8,
        "--feather",
        help="Width of the blend inside the mask, in pixels [8].",
        tasks=("inpaint",),
    )
    mask_blur: int | None = option(
        None,
        "--mask-blur",
        help="Blur the mask by this many pixels and blend by it, instead of --feather.",
        tasks=("inpaint",),
    )
    inpaint_area: str | None = option(
        None,
        "--inpaint-area",
        help="masked: generate only the part around the mask, at the model's size [whole].",
        choices=INPAINT_AREAS,
        tasks=("inpaint",),
    )
    inpaint_padding: int | None = option(
        None,
        "--inpaint-padding",
        help="Pixels around the mask that --inpaint-area masked includes [32].",
        tasks=("inpaint",),
    )
    inpaint_fill: str | None = option(
        None,
        "--inpaint-fill",
        help="Start the masked area from the image, the colours around it, noise or nothing "
        "[original].",
        choices=INPAINT_FILLS,
        tasks=("inpaint",),
    )
    whole_size: str | None = option(None)
    no_paste: bool = option(
        False,
        "--no-paste",
        help="Keep the model's output outside the mask, too.",
        tasks=("inpaint",),
    )
    depth: str | None = option(
        None,
        "--depth",
        help="Depth map, bright is near [estimated from the image].",
        metavar="FILE",
        tasks=("depth2img",),
    )
    depth_invert: bool = option(
        False, "--depth-invert", help="Read the depth map with dark as near.", tasks=("depth2img",)
    )
    depth_model: str | None = option(
        None,
        "--depth-model",
        help="DPT-hybrid weights for estimating depth [the checkpoint's].",
        metavar="FILE",
        tasks=("depth2img",),
    )
    noise_level: int | None = option(
        None,
        "--noise-level",
        help="Noise added to the input, 0 to 350 (variations: 0 to 999).",
        tasks=("upscale", "variations"),
    )
    tile: int = option(
        128,
        "--tile",
        help="Tile size in input pixels [128].",
        tasks=("upscale",),
    )
    fit: str | None = option(
        None,
        "--fit",
        help="How to fit the input to --width and --height [resize].",
        choices=FITS,
        tasks=PARTIAL,
    )
    width: int | None = option(
        None,
        "--width",
        "--W",
        help="Width in pixels [that of the input or the model].",
        tasks=SIZED,
    )
    height: int | None = option(
        None,
        "--height",
        "--H",
        help="Height in pixels [that of the input or the model].",
        tasks=SIZED,
    )
    hires: str | None = option(
        None,
        "--hires",
        help="Hires fix: enlarge the image by this factor, or to this size, and denoise it again.",
        metavar="FACTOR|WxH",
        tasks=("txt2img",),
    )
    hires_upscaler: str | None = option(
        None,
        "--hires-upscaler",
        help="How --hires enlarges: the latent, or the image with lanczos [latent].",
        choices=HIRES_UPSCALERS,
        tasks=("txt2img",),
    )
    hires_strength: float | None = option(
        None,
        "--hires-strength",
        help="Denoising strength of --hires, 0 to 1 [0.7].",
        tasks=("txt2img",),
    )
    hires_steps: int | None = option(
        None,
        "--hires-steps",
        help="Number of sampling steps of --hires [as many as --steps].",
        tasks=("txt2img",),
    )
    steps: int | None = option(
        None, "--steps", "--ddim_steps", help="Number of sampling steps, 1 to 1000."
    )
    scale: float | None = option(
        None, "--scale", help="Guidance scale (CFG); 1 turns guidance off."
    )
    sampler: str | None = option(
        None,
        "--sampler",
        help=f"Sampler [ddim]: {', '.join(SAMPLER_ALIASES)}.",
        choices=SAMPLER_NAMES,
    )
    grid: str | None = option(
        None,
        "--grid",
        help="Noise schedule of the steps [the sampler's default].",
        choices=GRID_NAMES,
    )
    shift: float | None = option(
        None,
        "--shift",
        help="Shift of the noise levels towards noise (SD3) [the model's].",
        tasks=FLOW_TASKS,
    )
    skip_layers: str | None = option(
        None,
        "--skip-layers",
        help="Guide away from the network without these layers (SD3; 7,8,9 for 3.5 medium).",
        metavar="N,N,...",
        tasks=FLOW_TASKS,
    )
    skip_layer_scale: float = option(
        2.8, "--skip-layer-scale", help="Strength of --skip-layers [2.8].", tasks=FLOW_TASKS
    )
    skip_layer_start: float = option(
        0.01,
        "--skip-layer-start",
        help="Share of the steps after which --skip-layers begins [0.01].",
        tasks=FLOW_TASKS,
    )
    skip_layer_end: float = option(
        0.2,
        "--skip-layer-end",
        help="Share of the steps before which --skip-layers ends [0.2].",
        tasks=FLOW_TASKS,
    )
    schedule_compat: str = option(
        "exact",
        "--schedule-compat",
        help="exact: the given number of steps; ldm: as the 2022 scripts (30 runs 31); "
        "sgm: levels, start and strength as in generative-models.",
        choices=("exact", "ldm", "sgm"),
    )
    eta: float | None = option(
        None,
        "--eta",
        "--ddim_eta",
        help="Noise added in each step, 0 to 1 [the sampler's default].",
    )
    s_churn: float | None = option(
        None, "--s-churn", help=f"Noise added before steps; for {', '.join(CHURN_SAMPLERS)} [0]."
    )
    s_tmin: float | None = option(
        None, "--s-tmin", help="Lowest noise level at which --s-churn adds noise [0]."
    )
    s_tmax: float | None = option(
        None, "--s-tmax", help="Highest noise level at which --s-churn adds noise [any]."
    )
    s_noise: float | None = option(
        None, "--s-noise", help="Factor for the noise that the sampler adds [1]."
    )
    zero_snr: bool = option(
        False,
        "--zero-snr",
        help="Leave no signal at the last time step, as some models that predict v need.",
    )
    guidance_rescale: float = option(
        0.0,
        "--guidance-rescale",
        help="Bring the guided estimate towards the unguided spread, 0 to 1 [0].",
    )
    seed: int | None = option(
        None, "--seed", help="Seed of the first image; random if omitted or negative."
    )
    seeds: str | None = option(
        None, "--seeds", help="One image for each of these seeds.", metavar="1,2,5-9"
    )
    seed_step: int = option(
        1, "--seed-step", help="Difference between the seeds of consecutive images [1]."
    )
    variation_seed: int | None = option(
        None, "--variation-seed", help="Seed of a variation; counts up by one for each image."
    )
    variation_strength: float = option(
        0.0, "--variation-strength", help="How far to vary from --seed, 0 to 1 [0]."
    )
    ensd: int = option(
        0,
        "--ensd",
        help="Added to the seed for the noise drawn in the steps (the web UI's ENSD) [0].",
    )
    n_samples: int = option(1, "--n_samples", help="Images per batch [1].")
    n_iter: int = option(1, "--n_iter", help="Number of batches [1].")
    fixed_code: bool = option(False, "--fixed_code", help="Start every batch from the same noise.")
    noise: str = option(
        "image",
        "--noise",
        help="image: one seed for each image; stream: one for the run, as in 2022.",
        choices=("image", "stream"),
    )
    rng: str = option(
        "philox",
        "--rng",
        help="Random numbers: philox (as on an NVIDIA GPU, on any device), cpu (torch's), device, "
        "or numpy (initial noise from numpy, as in the 2022 demos; the rest cpu).",
        choices=("philox", "cpu", "device", "numpy"),
    )
    skip_draws: int = option(0)
    draw_rows: int = option(0)
    model: str | None = option(
        None,
        "--model",
        "--ckpt",
        "-m",
        help="Checkpoint: a path, or a name from `ldm models` [the bundled model].",
        metavar="FILE",
    )
    config: str | None = option(
        None, "--config", help="Model config (YAML) [detected from the checkpoint].", metavar="YAML"
    )
    overrides: tuple[str, ...] = option(
        (), "--set", help="Override a value of the config; may be repeated.", metavar="KEY=VALUE"
    )
    prediction: str | None = option(
        None,
        "--prediction",
        help="Prediction type of the network [detected or measured].",
        choices=("eps", "v", "flow"),
    )
    vae: str | None = option(
        None, "--vae", help="Autoencoder (VAE) to use instead of the model's.", metavar="FILE"
    )
    clip_l: str | None = option(
        None,
        "--clip-l",
        help="CLIP-L text encoder to use instead of the model's (SD3).",
        metavar="FILE",
        tasks=FLOW_TASKS,
    )
    clip_g: str | None = option(
        None,
        "--clip-g",
        help="CLIP-G text encoder to use instead of the model's (SD3).",
        metavar="FILE",
        tasks=FLOW_TASKS,
    )
    t5: str | None = option(
        None,
        "--t5",
        help="T5 text encoder (SD3); without it, zeros as in diffusers or none as in ComfyUI "
        "[the model's, else zeros].",
        metavar="FILE|zeros|none",
        tasks=FLOW_TASKS,
    )
    loras: tuple[str, ...] = option(
        (),
        "--lora",
        help="LoRA file, or its name in a folder lora; may be repeated. The weights are those of "
        "the network and the text encoder [1].",
        metavar="FILE[:WEIGHT[:TEXT]]",
        tasks=PROMPTED,
    )
    lora_files: tuple[str, ...] = option(())
    vae_tiling: str = option(
        "auto",
        "--vae-tiling",
        help="Encode and decode in tiles to save memory [auto: large images only].",
        choices=VAE_TILINGS,
    )
    channels: int | None = option(None, "--C", help="Latent channels; checked against the model.")
    factor: int | None = option(None, "--f", help="Downsampling factor; checked against the model.")
    device: str = option(
        "auto", "--device", help="Device to run on.", metavar="auto|cpu|cuda|cuda:N|mps"
    )
    precision: str = option(
        "auto",
        "--precision",
        help="Precision [auto: fp16 on a GPU, full on a CPU]; int8 is for CPUs.",
        choices=PRECISIONS,
    )
    attention: str = option(
        "auto", "--attention", help="Attention implementation.", choices=ATTENTIONS
    )
