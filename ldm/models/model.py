"""A latent diffusion model: network, autoencoder, conditioner and schedule under one roof.

Attribute names are the checkpoint's keys. Sampling, loading and devices live elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ldm.errors import JobError
from ldm.models.adapters.merging import Merging
from ldm.models.conditioner import NO_EXTRAS, Extras, GeneralConditioner
from ldm.models.conditioning import (
    BERTEmbedder,
    ClassEmbedder,
    Conditioning,
    FrozenCLIPEmbedder,
    FrozenOpenCLIPEmbedder,
)
from ldm.models.encoding import PLAIN, READERS, Memory, PromptEncoding, encode
from ldm.models.image_embedders import (
    CLIPEmbeddingNoiseAugmentation,
    FrozenOpenCLIPImageEmbedder,
    SpatialRescaler,
)
from ldm.models.sd3_text import SD3TextEncoders
from ldm.models.tiled_autoencoder import decode_tiled, encode_tiled
from ldm.nn.allocator import given_back
from ldm.nn.autoencoder import AutoencoderKL
from ldm.nn.dpt import MiDaSInference
from ldm.nn.mmdit import MMDiT
from ldm.nn.unet import UNetModel
from ldm.nn.vq import VQModelInterface
from ldm.sampling.buffers import augmentor_buffers, ddpm_buffers
from ldm.sampling.denoiser import DenoiseFn, Prediction, make_denoiser
from ldm.sampling.flow import FlowSchedule
from ldm.sampling.guidance import SkipLayers, Unguided, cfg, cfg_skipping, composed, rescaling
from ldm.sampling.schedule import NoiseSchedule, Schedule
from ldm.sampling.tiling import wants_tiling

Autoencoder = AutoencoderKL | VQModelInterface
Network = UNetModel | MMDiT
# What is asked with a text; a model that knows no texts says so, or takes a class's number for one.
TextEmbedder = (
    FrozenCLIPEmbedder | FrozenOpenCLIPEmbedder | BERTEmbedder | ClassEmbedder | SpatialRescaler
)


class DiffusionWrapper(nn.Module):
    """The level of names between a checkpoint's `model.` and the network's own keys."""

    diffusion_model: Network

    def __init__(self, diffusion_model: Network) -> None:
        super().__init__()
        self.diffusion_model = diffusion_model


class ImageNoiseAugmentation(nn.Module):
    """The schedule by which an upscaler's low-resolution image is noised, levels 0..max-1."""

    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor

    def __init__(self, schedule: NoiseSchedule, max_noise_level: int) -> None:
        super().__init__()
        for name, values in augmentor_buffers(schedule).items():
            self.register_buffer(name, values)
        self.max_noise_level = max_noise_level

    def forward(self, images: Tensor, level: Tensor, noise: Tensor) -> Tensor:
        """Images [B,3,h,w] in [-1,1] with noise of their shape, of integer levels [B]."""
        keep = self.sqrt_alphas_cumprod[level].view(-1, 1, 1, 1)
        add = self.sqrt_one_minus_alphas_cumprod[level].view(-1, 1, 1, 1)
        return keep * images + add * noise


class Model(nn.Module):
    """A latent diffusion model with four methods: `condition`, `denoiser`, `encode`, `decode`.

    `scale_factor` makes latents of about unit variance out of the autoencoder's, from which
    `shift_factor` is subtracted before; with `scale_by_std` it was measured in training and is a
    tensor of the checkpoint. `parts` are the
    modules of special families: depth_model, embedder, noise_augmentor, low_scale_model.
    """

    schedule: NoiseSchedule | FlowSchedule
    memory_format = torch.contiguous_format  # of feature maps
    model: DiffusionWrapper
    first_stage_model: Autoencoder
    cond_stage_model: TextEmbedder | None
    conditioner: GeneralConditioner | None
    text_encoders: SD3TextEncoders | None
    scale_factor: float | Tensor
    betas: Tensor
    _place: Tensor
    merging: Merging | None = None  # of a model that was loaded from a file
    # Of special families only.
    depth_model: MiDaSInference
    embedder: FrozenOpenCLIPImageEmbedder
    noise_augmentor: CLIPEmbeddingNoiseAugmentation
    low_scale_model: ImageNoiseAugmentation

    def __init__(
        self,
        *,
        network: Network,
        autoencoder: Autoencoder,
        conditioner: TextEmbedder | GeneralConditioner | SD3TextEncoders | None,
        schedule: NoiseSchedule | FlowSchedule,
        prediction: Prediction,
        scale_factor: float = 1.0,
        shift_factor: float = 0.0,
        scale_by_std: bool = False,
        v_posterior: float = 0.0,
        conditioning_key: str = "crossattn",
        image_size: int = 64,
        use_ema: bool = False,
        parts: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.model = DiffusionWrapper(network)
        self.first_stage_model = autoencoder
        self.conditioner, self.text_encoders, self.cond_stage_model = None, None, None
        if isinstance(conditioner, GeneralConditioner):
            self.conditioner = conditioner
        elif isinstance(conditioner, SD3TextEncoders):
            self.text_encoders = conditioner
        else:
            self.cond_stage_model = conditioner
        for name, part in (parts or {}).items():
            self.add_module(name, part)
        self.prediction = prediction
        if scale_by_std:
            self.register_buffer("scale_factor", torch.tensor(scale_factor))
        else:
            self.scale_factor = scale_factor
        self.shift_factor = shift_factor
        self.v_posterior = v_posterior
        self.conditioning_key = conditioning_key
        self.image_size = image_size
        self.use_ema = use_ema
        self.use_schedule(schedule)

    @property
    def device(self) -> torch.device:
        """Where the model computes, wherever its parts are at the moment."""
        buffer = self._place if isinstance(self.schedule, FlowSchedule) else self.betas
        return buffer.device

    @property
    def network(self) -> Network:
        """The network, which checkpoints call model.diffusion_model."""
        return self.model.diffusion_model

    @property
    def text_conditioner(self) -> TextEmbedder | GeneralConditioner | SD3TextEncoders | None:
        """What embeds texts, if anything does: checkpoints have it under one of three names."""
        return self.conditioner or self.text_encoders or self.cond_stage_model

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return int(self.first_stage_model.embed_dim)

    @property
    def factor(self) -> int:
        """Pixels per latent position, along one side."""
        return int(self.first_stage_model.factor)

    @property
    def multiple(self) -> int:
        """Pixels that the sides are a multiple of for the network to divide them evenly."""
        return int(self.factor * self.network.stride)

    def use_schedule(self, schedule: NoiseSchedule | FlowSchedule) -> None:
        """Take a noise schedule, and fill the twelve DDPM buffers (float32) of one of diffusion.

        The schedule kept is the one in the float32 buffers: the originals sampled from those,
        and a file with buffers and the same file without them must give the same image.
        """
        self.schedule = schedule
        if isinstance(schedule, FlowSchedule):  # which has no buffers, so there is one for `device`
            self.register_buffer("_place", torch.empty(0, device="cpu"), persistent=False)
            return
        with torch.device("cpu"):
            buffers = ddpm_buffers(schedule, self.v_posterior)
            self.schedule = NoiseSchedule.from_alphas_cumprod(buffers["alphas_cumprod"])
        for name, values in buffers.items():
            self.register_buffer(name, values)

    def lay_channels_last(self) -> None:
        """Let feature maps have their channels last in memory, as convolutions like them best.

        On the CPU the weights stay as they are (they may be mapped from a file): the kernels bring
        them into an order of their own anyway.
        """
        self.memory_format = torch.channels_last
        if next(self.network.parameters()).device.type != "cpu":
            self.network.to(memory_format=torch.channels_last)
            self.first_stage_model.to(memory_format=torch.channels_last)

    def condition(
        self,
        texts: Sequence[str],
        encoding: PromptEncoding = PLAIN,
        beside: Sequence[str] = (),
        memory: Memory | None = None,
        extras: Extras = NO_EXTRAS,
    ) -> tuple[Conditioning, list[str]]:
        """Embed texts: crossattn [B,L,D], and for each text what was cut off its end, or ''.

        `beside` are the texts of the other side of the guidance, so that both have one L.
        `memory` keeps what texts came to. `extras` are for a conditioner of several embedders.
        Raises JobError where the model has no such layer as `encoding` asks for.
        """
        if self.conditioner is not None:
            return self.conditioner.condition(texts, encoding, beside, memory, extras)
        if self.text_encoders is not None:
            return self.text_encoders.condition(texts, encoding, beside, memory)
        embedder = self.cond_stage_model
        if isinstance(embedder, READERS):
            hidden, pooled, cut = encode(embedder, texts, encoding, beside, memory)
            return Conditioning(crossattn=hidden, vector=pooled), cut
        if encoding.clip_skip is not None:
            raise JobError("--clip-skip: this model has no CLIP text encoder; omit it")
        if embedder is None:
            return Conditioning(), [""] * len(texts)
        hidden, cut = embedder.encode(texts)
        return Conditioning(crossattn=hidden), cut

    def predict(
        self, x_in: Tensor, t: Tensor, cond: Conditioning, skip_layers: Sequence[int] = ()
    ) -> Tensor:
        """The network's raw output for scaled input [B,C,h,w] at timesteps t [B].

        `skip_layers` are blocks of a transformer to leave out.
        """
        dtype = self.network.dtype
        x = x_in.to(dtype)
        if cond.concat is not None:
            x = torch.cat([x, cond.concat.to(x)], dim=1)
        context = None if cond.crossattn is None else cond.crossattn.to(x)
        y = cond.vector
        if y is not None:
            y = y.to(x) if y.is_floating_point() else y.to(x.device)
        more = {"skip_layers": skip_layers} if skip_layers else {}
        out: Tensor = self.network(x.to(memory_format=self.memory_format), t, context, y, **more)
        return out

    def denoiser(
        self,
        cond: Conditioning,
        uncond: Conditioning | None = None,
        scale: float | Sequence[float] = 1.0,
        *,
        rescale: float = 0.0,
        zero_snr: bool = False,
        unguided: Unguided | None = None,
        skip: SkipLayers | None = None,
    ) -> DenoiseFn:
        """D(x [B,C,h,w], sigma [B]) -> denoised, guided by `scale`; exactly 1 skips uncond.

        There may be a scale for each image, none of them 1. `rescale` is a share for `rescaling`,
        `zero_snr` takes the schedule without signal at its end. `skip` guides away from the network
        without some of its layers as well, and knows none of the others.
        """
        alone = self._denoiser(cond, zero_snr)
        if skip is not None:
            both = None if uncond is None else self._denoiser(uncond.stack(cond))
            skipped = self._denoiser(cond, skip_layers=skip.layers)
            return cfg_skipping(alone, both, skipped, scale, skip)
        if uncond is None:
            return alone
        pair = self._denoiser(uncond.stack(cond), zero_snr)
        after = rescaling(rescale, self.prediction) if rescale else None
        return cfg(alone, pair, scale, unguided=unguided, rescale=after)

    def composed_denoiser(
        self,
        conds: Sequence[Conditioning],
        weights: Sequence[Sequence[float]],
        uncond: Conditioning,
        scale: float | Sequence[float],
        *,
        rescale: float = 0.0,
        zero_snr: bool = False,
        unguided: Unguided | None = None,
    ) -> DenoiseFn:
        """D(x [B,C,h,w], sigma [B]) guided by several prompts, each with a weight for each row."""
        first, *others = conds
        alone = [self._denoiser(cond, zero_snr) for cond in others]
        pair = self._denoiser(uncond.stack(first), zero_snr)
        after = rescaling(rescale, self.prediction) if rescale else None
        return composed(pair, alone, weights, scale, unguided=unguided, rescale=after)

    def _denoiser(
        self, cond: Conditioning, zero_snr: bool = False, skip_layers: Sequence[int] = ()
    ) -> DenoiseFn:
        def network(x_in: Tensor, t: Tensor) -> Tensor:
            return self.predict(x_in, t, cond, skip_layers)

        schedule: Schedule = self.schedule
        if zero_snr and isinstance(self.schedule, NoiseSchedule):
            schedule = self.schedule.zero_snr
        return make_denoiser(network, schedule, self.prediction, self.network.dtype)

    def encode(self, images: Tensor, noise: Tensor | None = None, tiling: str = "auto") -> Tensor:
        """Images [B,3,H,W] in [-1,1] -> scaled latents, float32.

        The posterior's mode, or with `noise` (standard normal, of the latents' shape) a sample.
        `tiling` is on, off or auto, which bounds the memory of large images.
        """
        images = images.to(_dtype(self.first_stage_model), memory_format=self.memory_format)
        height, width = images.shape[-2:]
        with given_back(height * width):
            if wants_tiling(tiling, height, width, images.device):
                posterior = encode_tiled(self.first_stage_model, images)
            else:
                posterior = self.first_stage_model.encode(images)
        z = posterior.mode() if noise is None else posterior.sample(noise.to(posterior.mean))
        z = z.float()
        return self.scale_factor * (z - self.shift_factor if self.shift_factor else z)

    def decode(self, z: Tensor, tiling: str = "auto") -> Tensor:
        """Scaled latents [B,C,h,w] -> images [B,3,H,W], float32, near [-1,1] but not clamped."""
        dtype = _dtype(self.first_stage_model)
        unscaled = z / self.scale_factor
        if self.shift_factor:
            unscaled = unscaled + self.shift_factor
        unscaled = unscaled.to(dtype, memory_format=self.memory_format)
        height, width = (side * self.factor for side in z.shape[-2:])
        with given_back(height * width):
            if wants_tiling(tiling, height, width, z.device):
                return decode_tiled(self.first_stage_model, unscaled).float()
            return self.first_stage_model.decode(unscaled).float()


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype
