"""From a checkpoint, and perhaps a YAML, to a `Model` with its weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoints.components import (
    AUTOENCODER,
    DEPTH,
    TEXT_ENCODERS,
    Component,
    Files,
    lacking,
    without,
)
from ldm.checkpoints.config import Config, read_config
from ldm.checkpoints.families.choice import Choice, choose, fitting_yamls, with_prediction
from ldm.checkpoints.families.family import Family
from ldm.checkpoints.weights.files import Weights, open_weights
from ldm.checkpoints.weights.header import Header, read_header
from ldm.checkpoints.weights.keys import (
    EMA,
    NETWORK,
    T5,
    ZERO_SNR,
    Shapes,
    aliases,
    compare,
    ema_copies,
    explain,
    is_positions,
    is_scheduled,
    listed,
    text_encoder_key,
)
from ldm.checkpoints.weights.text_keys import text_encoder_sources
from ldm.checkpoints.weights.vae_keys import autoencoder_sources
from ldm.errors import CheckpointError, ConfigError
from ldm.jobs.tuning import compile_network
from ldm.models.adapters.merging import Merging
from ldm.models.conditioning import BERTEmbedder
from ldm.models.depth import load_depth_model
from ldm.models.inventory import expected_shapes
from ldm.models.model import Model
from ldm.models.registry import build
from ldm.nn.autoencoder import upsample_in_phases
from ldm.nn.outline import outline
from ldm.nn.packing import pack, packable
from ldm.nn.quantized import quantizable, quantize
from ldm.nn.unet import UNetModel
from ldm.sampling.denoiser import Prediction
from ldm.sampling.flow import FlowSchedule
from ldm.sampling.schedule import NoiseSchedule

# An eps network gives the pure noise back that it is shown; a v network gives minus the image,
# which that noise does not contain. This is half way between the two slopes of output on input.
EPS_SLOPE = 0.5


@dataclass(frozen=True)
class Loaded:
    """A model with its weights, and how it came to be.

    `config_why`, `prediction_why` and `notes` are for people; `digest` is the file's short hash.
    """

    model: Model
    family: Family
    config: Config
    config_why: str
    prediction_why: str
    name: str
    digest: str
    notes: tuple[str, ...] = ()


def load_model(
    checkpoint: Path | str,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    prediction: str | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    *,
    components: Files | None = None,
    channels_last: bool = False,
    packed: bool = False,
    quantized: bool = False,
    compiled: bool = False,
) -> Loaded:
    """Load a checkpoint, strictly: each key of the model is in it, and no other one that matters.

    `components` are files that replace parts of the checkpoint. `prediction` (eps or v) overrides
    the YAML. `dtype` None keeps the file's own precision; where
    neither precision nor device changes, the weights stay mapped and are not copied, except for
    a network that is `packed` or `quantized` on the CPU. A `compiled` network is not packed.
    Raises ConfigError and CheckpointError, before a tensor is read.
    """
    header = read_header(checkpoint)
    choice = _chosen(header, config, overrides, prediction)
    with outline():
        model = build(choice.config)
    sources = key_sources(header, model.use_ema, several=model.conditioner is not None)
    files = components or {}
    own = omitted(model, files)
    check_fit(header, choice.config, model, sources, own)
    if isinstance(model.cond_stage_model, BERTEmbedder):
        model.cond_stage_model.look_in(header.path.parent)
    if AUTOENCODER.prefix in files:
        swap_autoencoder(model, files[AUTOENCODER.prefix], dtype, torch.device(device))
    for component in TEXT_ENCODERS:
        if component.prefix in files:
            path = files[component.prefix]
            swap_text_encoder(model, component, path, dtype, torch.device(device))
    weights = open_weights(header)
    _fill(
        model,
        weights,
        {key: sources[key] for key in without(sources, own)},
        dtype,
        torch.device(device),
        packed=packed and not compiled,
        quantized=quantized,
    )
    if model.text_encoders is not None and dtype is not None:
        model.text_encoders.compute_t5_in(dtype)
    if channels_last:
        model.lay_channels_last()
    if packed:
        upsample_in_phases(model.first_stage_model)
    shapes = {key: header.tensors[source].shape for key, source in sources.items()}
    model.merging = Merging(
        model, lambda key: weights[sources[key]], shapes, dtype or torch.float32
    )
    choice = _settle_prediction(model, choice)
    if DEPTH.prefix in files:
        model.depth_model = load_depth_model(files[DEPTH.prefix], dtype, device)
    if compiled:
        compile_network(model.network)
    return Loaded(
        model=model,
        family=choice.family,
        config=choice.config,
        config_why=choice.why,
        prediction_why=choice.prediction_why,
        name=header.path.stem,
        digest=header.short_hash,
        notes=_notes(header, sources),
    )


def _chosen(
    header: Header, config: Path | None, overrides: Sequence[str], prediction: str | None
) -> Choice:
    """The family and YAML of a checkpoint, with the prediction type that was given, if any."""
    choice = choose(header, config, overrides)
    return choice if prediction is None else with_prediction(choice, prediction, "asked for")


def _settle_prediction(model: Model, choice: Choice) -> Choice:
    """Set a loaded model's prediction type, measured if nothing else determines it."""
    if not choice.prediction_why:
        choice = with_prediction(choice, *measure_prediction(model))
    model.prediction = Prediction(choice.family.prediction)
    return choice


def key_sources(header: Header, use_ema: bool, *, several: bool = False) -> dict[str, str]:
    """Model's key -> file's key: the same, or with `use_ema` that of a complete EMA copy.

    `several` says whether the model has a conditioner of several text encoders.
    """
    sources = {text_encoder_key(key, several): key for key in header.tensors}
    sources |= aliases(header.tensors)
    copies = ema_copies(header.tensors) if use_ema else {}
    network = [key for key in sources if key.startswith("model.")]
    if copies and len(copies) == len(network):
        sources.update(copies)
    return sources


def omitted(model: Model, files: Files) -> list[str]:
    """Prefixes of what a checkpoint need not provide: parts from files, and a T5 not wanted."""
    texts = model.text_encoders
    return [*files, *([T5] if texts is not None and texts.t5xxl is None else [])]


def check_fit(
    header: Header, config: Config, model: Model, sources: Mapping[str, str], files: Sequence[str]
) -> None:
    """Raise CheckpointError naming the part that is missing, or the keys that do not fit.

    A YAML that fits is named, too. Parts with the prefixes `files` do not count.
    """
    found = {key: header.tensors[sources[key]].shape for key in without(sources, files)}
    own = model.state_dict()
    expected = {key: tuple(own[key].shape) for key in without(own, files)}
    fit = compare(found, expected)
    if fit.good:
        return
    yamls = fitting_yamls(header, config.source)
    better = next((path for path in yamls if _fits(found, path, files)), None)
    if better is None and (part := lacking(found, fit.missing)):
        raise CheckpointError(f"{header.path}: {part}")
    advice = f"use --config {better}, which does" if better else "is the YAML the right one?"
    raise CheckpointError(f"{header.path}: does not fit {config.source}; {advice} ({explain(fit)})")


def _fits(found: Shapes, yaml: Path, files: Sequence[str]) -> bool:
    try:
        shapes = expected_shapes(read_config(yaml))
        return compare(found, {key: shapes[key] for key in without(shapes, files)}).good
    except ConfigError:  # the one beside the checkpoint may be anything
        return False


def _fill(
    model: Model,
    weights: Weights,
    sources: Mapping[str, str],
    dtype: torch.dtype | None,
    device: torch.device,
    *,
    packed: bool,
    quantized: bool,
) -> None:
    """Give a model the file's tensors, and the network's large layers their own kind of weights."""
    names = quantizable(model.network) if quantized else []
    names += packable(model.network) if packed else []
    _assign(model, weights, sources, dtype, device, {f"{NETWORK}{name}" for name in names})

    def done(name: str) -> None:
        weights.release(sources[f"{NETWORK}{name}"])

    if quantized:
        quantize(model.network, done)
    if packed:  # what is left
        pack(model.network, done, dtype or torch.float32)


def _assign(
    model: Model,
    weights: Weights,
    sources: Mapping[str, str],
    dtype: torch.dtype | None,
    device: torch.device,
    later: Collection[str],
) -> None:
    """Put the file's tensors in the place of the model's, one by one.

    Those in `later` stay as they are in the file.
    """
    model.requires_grad_(False).eval()
    state: dict[str, Tensor] = {}
    for key, own in model.state_dict().items():
        source = sources.get(key)
        known = is_positions(key) or is_scheduled(key)
        if source is None and not known and not own.is_meta:
            state[key] = own  # of a component's own file
            continue
        if is_positions(key):
            # Known without the file; merging tools are known to damage them.
            tensor = torch.arange(own.shape[-1], device="cpu").expand(own.shape)
        elif source is None:
            tensor = own if is_scheduled(key) else torch.zeros(own.shape, device="cpu")
        elif is_scheduled(key):
            tensor = _scheduled(own, weights[source])
        else:
            tensor = weights[source]
        # A lone number is a setting, no weight.
        precise = is_scheduled(key) or tensor.dim() == 0 or key in later
        state[key] = _moved(tensor, None if precise or key.startswith(T5) else dtype, device)
        if source is not None and state[key].data_ptr() != tensor.data_ptr():
            weights.release(source)
    model.load_state_dict(state, assign=True)
    stray = [name for name, tensor in _tensors(model) if tensor.is_meta]
    if stray:
        raise CheckpointError(f"{weights.header.path}: gives no values for {listed(stray)}")
    model.to(device)  # what is no part of a checkpoint; the rest is there
    if isinstance(model.schedule, FlowSchedule):
        return
    try:
        model.schedule = NoiseSchedule.from_alphas_cumprod(state["alphas_cumprod"])
    except ValueError as error:
        raise CheckpointError(f"{weights.header.path}: {error}") from None


def swap_autoencoder(
    model: Model,
    path: Path | str,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> None:
    """Load the autoencoder of another file into a model, in its precision and place by default.

    The file is of an autoencoder alone or of a whole model, in the originals' layout or that of
    diffusers (see `ldm.checkpoints.weights.vae_keys`). It must fit strictly. Raises CheckpointError
    before a tensor is read; the model is as it was then. No file states the scale of its
    latents: that stays the model's.
    """
    if not Path(path).exists():
        raise CheckpointError(f"{path}: no such file; check --vae")
    header = read_header(path)
    present = model.first_stage_model.state_dict()
    sources = autoencoder_sources(header, {key: tuple(own.shape) for key, own in present.items()})
    weights = open_weights(header)
    state = {}
    for key, own in present.items():
        tensor = weights[sources[key]].reshape(own.shape)
        state[key] = _moved(tensor, dtype or own.dtype, device or own.device)
        if state[key].data_ptr() != tensor.data_ptr():
            weights.release(sources[key])
    model.first_stage_model.load_state_dict(state, assign=True)


def swap_text_encoder(
    model: Model,
    component: Component,
    path: Path,
    dtype: torch.dtype | None,
    device: torch.device,
) -> None:
    """Load a text encoder from another file into a model; T5 stays in the file's precision.

    It must fit strictly. Raises CheckpointError before a tensor is read.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such file; check {component.flag}")
    part = model.get_submodule(component.prefix.removesuffix("."))
    header = read_header(path)
    expected = {key: tuple(own.shape) for key, own in part.state_dict().items()}
    sources = text_encoder_sources(header, component.prefix, expected)
    weights = open_weights(header)
    state = {}
    for key, own in part.state_dict().items():
        if is_positions(key):
            state[key] = torch.arange(own.shape[-1], device=device).expand(own.shape)
            continue
        tensor = weights[sources[key]]
        state[key] = _moved(tensor, None if component.prefix == T5 else dtype, device)
        if state[key].data_ptr() != tensor.data_ptr():
            weights.release(sources[key])
    part.load_state_dict(state, assign=True)


def _moved(tensor: Tensor, dtype: torch.dtype | None, device: torch.device) -> Tensor:
    if dtype is None or not tensor.is_floating_point():
        return tensor.to(device)
    return tensor.to(device=device, dtype=dtype)


def _scheduled(own: Tensor, found: Tensor) -> Tensor:
    """A schedule's buffer, float32: the file's, unless it is the YAML's rounded to half precision.

    The originals would have sampled with the rounded one, as a fault of saving in half precision.
    """
    numbers = found.float()
    if found.dtype not in (torch.float16, torch.bfloat16):
        return numbers
    rounding = 4 * torch.finfo(found.dtype).eps
    return own if torch.allclose(numbers, own, rtol=rounding, atol=1e-6) else numbers


def _tensors(model: Model) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


@torch.no_grad()
def measure_prediction(model: Model) -> tuple[str, str]:
    """Decide eps or v by one pass of the network over pure noise: ("eps" or "v", why).

    At the last time step the input is noise e but for some percent. By their definitions an eps
    network's output there is about e, a slope of 1 on the input, and a v network's
    sqrt(alphas_cumprod) e - sqrt(1 - alphas_cumprod) z, a slope of about 0.07, with z the same
    hardly known image whatever e is. (AUTOMATIC1111/stable-diffusion-webui decides by the mean
    of the output for a constant input: modules/sd_models_config.py.)
    """
    network = model.network
    assert isinstance(network, UNetModel)
    side = 2 ** (network.levels + 1)
    generator = torch.Generator("cpu").manual_seed(0)
    noise = torch.randn((1, network.in_channels, side, side), generator=generator, device="cpu")
    device = next(network.parameters()).device
    last = torch.full((1,), float(len(model.schedule) - 1), device=device)
    cond, _ = model.condition([""])
    output = model.predict(noise.to(device), last, cond).float().cpu()
    centred = noise - noise.mean()
    slope = ((centred * output).sum() / centred.square().sum()).item()
    prediction = "eps" if slope > EPS_SLOPE else "v"
    return prediction, f"measured: shown pure noise, the network gives back {slope:.2f} of it"


def _notes(header: Header, sources: Mapping[str, str]) -> tuple[str, ...]:
    notes = [*header.remarks]
    if ZERO_SNR in header.tensors:
        notes.append(
            f"the file has the key {ZERO_SNR}: trained for a schedule that ends in pure "
            "noise, which is not applied"
        )
    if header.dropped:
        notes.append(f"not made, though the file asks for them: {listed(header.dropped)}")
    if any(source.startswith(EMA) and key != source for key, source in sources.items()):
        notes.append("the network's weights are the EMA copy, as the YAML's use_ema says")
    return tuple(notes)
