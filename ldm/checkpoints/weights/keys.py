"""Names of tensors in checkpoints: parts, EMA copies, and keys that may be missing or ignored.

The network's attribute names are the checkpoint's keys, so nothing is renamed; this module knows
which keys may be missing or superfluous without harm.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

Shapes = Mapping[str, tuple[int, ...]]

NETWORK = "model.diffusion_model."
EMA = "model_ema."
# A text encoder alone, and several; the first of several may be the only one.
TEXT_ENCODER = "cond_stage_model."
CONDITIONER = "conditioner."
_FIRST = f"{CONDITIONER}embedders.0."
CLIP_L, CLIP_G, T5 = (f"text_encoders.{name}." for name in ("clip_l", "clip_g", "t5xxl"))
"""The text encoders of Stable Diffusion 3."""
SHARED, TABLE = "shared.weight", "encoder.embed_tokens.weight"
"""Two names of T5's table of tokens, of which a file has one or both."""
_SHARED, _TABLE = (f"{T5}transformer.{name}" for name in (SHARED, TABLE))

# Buffers derived from the YAML; a file without them still loads.
DDPM_BUFFERS = frozenset(
    {
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
    }
)
_SCHEDULED = ("", "low_scale_model.", "noise_augmentor.")

# Prefixes of superfluous keys that have no effect on images.
_INERT_PREFIXES = (
    EMA,  # used instead of the plain weights where the YAML says use_ema: true
    "loss.",  # discriminator and perceptual network of an autoencoder's training
    "first_stage_model.loss.",
    "safety_checker.",
    "embedding_manager.",  # textual inversion, as saved by its authors
    "optimizer.",
    "denoiser.",  # the schedule, in files of generative-models
)
# Whole keys of this kind.
_INERT_KEYS = frozenset(
    {
        "logvar",
        "lvlb_weights",
        "cond_stage_model.logit_scale",
        "cond_stage_model.text_projection",
        "cond_stage_model.transformer.text_projection.weight",
        "cond_stage_model.model.attn_mask",
        "embedder.model.attn_mask",
        f"{CLIP_L}transformer.text_projection.weight",
        *(f"{prefix}logit_scale" for prefix in (CLIP_L, CLIP_G, T5)),
        _SHARED,
    }
)
# Not used when the text tower runs here, so any file may lack them.
_OPTIONAL_KEYS = frozenset(
    {
        "cond_stage_model.model.logit_scale",
        "cond_stage_model.model.text_projection",
        "embedder.model.logit_scale",
    }
)
_POSITIONS = ".embeddings.position_ids"  # 0, 1, 2 ...; some files lack it, in others it is damaged

# Keys of empty or tiny tensors, by which a file says how it was trained.
V_PRED = "v_pred"
ZERO_SNR = "ztsnr"

PARTS: Mapping[str, str] = {
    NETWORK: "network",
    "first_stage_model.": "autoencoder",
    "cond_stage_model.": "text encoder",
    "conditioner.": "text encoders",
    CLIP_L: "CLIP-L text encoder",
    CLIP_G: "CLIP-G text encoder",
    T5: "T5 text encoder",
    "embedder.": "image encoder",
    "depth_model.": "depth model",
    EMA: "EMA copy",
}


@dataclass(frozen=True)
class Fit:
    """How a file's keys and shapes compare with those a model expects.

    `misshapen` has each key with its shape in the file and the expected one.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    @property
    def good(self) -> bool:
        """True if everything matches."""
        return not (self.missing or self.unexpected or self.misshapen)


def compare(found: Shapes, expected: Shapes) -> Fit:
    """Compare a file's keys with a model's, ignoring keys that may be missing or superfluous."""
    found = {**found, **{key: found[own] for key, own in aliases(found).items()}}
    missing = tuple(key for key in expected if key not in found and not may_be_missing(key))
    unexpected = tuple(
        key
        for key in found
        if key not in expected
        and 0 not in found[key]  # an empty tensor
        and not is_inert(key)
        and not _is_copy(key, found)
    )
    misshapen = tuple(
        (key, shape, expected[key])
        for key, shape in found.items()
        if key in expected and shape != expected[key] and not is_positions(key)
    )
    return Fit(missing, unexpected, misshapen)


def aliases(keys: Collection[str]) -> dict[str, str]:
    """A model's key -> the key that a file has in its place."""
    return {_TABLE: _SHARED} if _SHARED in keys and _TABLE not in keys else {}


def may_be_missing(key: str) -> bool:
    """True for a key that derives from the YAML, or that no computation here uses."""
    return (
        is_scheduled(key)
        or is_positions(key)
        or key in _OPTIONAL_KEYS
        or (key.startswith(CONDITIONER) and key.endswith(".model.logit_scale"))
    )


def is_inert(key: str) -> bool:
    """True for a superfluous key that has no effect on images."""
    return (
        key.startswith(_INERT_PREFIXES)
        or key in _INERT_KEYS
        or key in (V_PRED, ZERO_SNR)
        or is_scheduled(key)
        or is_positions(key)
    )


def _is_copy(key: str, found: Shapes) -> bool:
    """True for a copy of the autoencoder as conditioner, as in inpainting_big."""
    name = key.removeprefix("cond_stage_model.")
    return name != key and found.get(f"first_stage_model.{name}") == found[key]


def is_scheduled(key: str) -> bool:
    """True for a buffer of a noise schedule."""
    prefix, dot, name = key.rpartition(".")
    return prefix + dot in _SCHEDULED and name in DDPM_BUFFERS


def is_positions(key: str) -> bool:
    """True for the list 0, 1, 2 ... that transformers' CLIP used to save."""
    return key.endswith(_POSITIONS)


def ema_key(key: str) -> str:
    """The key of the EMA copy of a network's key.

    LitEma removes the dots from the name of a parameter of `model`: the copy of
    model.diffusion_model.out.0.bias is model_ema.diffusion_modelout0bias.
    Source: CompVis ldm/modules/ema.py.
    """
    return EMA + key.removeprefix("model.").replace(".", "")


def ema_copies(keys: Iterable[str]) -> dict[str, str]:
    """Network key -> EMA key, for each key of the network that has a copy."""
    present = set(keys)
    copies = ((key, ema_key(key)) for key in present if key.startswith(NETWORK))
    return {key: copy for key, copy in copies if copy in present}


def text_encoder_key(key: str, several: bool) -> str:
    """A file's key by the name that a model has for it, whose text encoders are several or one.

    The same files of SD2 come with either name.
    """
    if several and key.startswith(TEXT_ENCODER):
        return _FIRST + key.removeprefix(TEXT_ENCODER)
    if not several and key.startswith(_FIRST):
        return TEXT_ENCODER + key.removeprefix(_FIRST)
    return key


def part_of(key: str) -> str:
    """The name of the model part that a key belongs to."""
    return next((name for prefix, name in PARTS.items() if key.startswith(prefix)), "other")


def listed(keys: Iterable[str], most: int = 10) -> str:
    """List keys for a message: at most `most`, then the number of the others."""
    keys = list(keys)
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more


def explain(fit: Fit) -> str:
    """Describe the mismatches in one line: at most ten keys of each kind, then a count."""
    reports = []
    if fit.missing:
        reports.append(f"missing {len(fit.missing)}: {listed(fit.missing)}")
    if fit.unexpected:
        reports.append(f"unexpected {len(fit.unexpected)}: {listed(fit.unexpected)}")
    if fit.misshapen:
        shapes = (f"{key} {list(has)} for {list(wants)}" for key, has, wants in fit.misshapen)
        reports.append(f"misshapen {len(fit.misshapen)}: {listed(shapes)}")
    return "; ".join(reports)
