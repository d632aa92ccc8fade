"""What `ldm train` can train: an autoencoder, or a diffusion model with its text conditioner.

A stage says where the batches come from and what the loss is; the loop is in `ldm.train`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ldm.conditioning import FrozenCLIPEmbedder, kept_token_ids
from ldm.config import Config
from ldm.data import Scene
from ldm.errors import ConfigError
from ldm.model import Model, TextEmbedder
from ldm.nn.attention import SpatialTransformer
from ldm.nn.autoencoder import AutoencoderKL, DiagonalGaussian
from ldm.nn.layers import ResBlock
from ldm.nn.unet import UNetModel
from ldm.noise import ImageNoise
from ldm.pretext import teach
from ldm.recipe import Plan
from ldm.samplers import final_latent, find_sampler, start_latent
from ldm.schedule import make_grid

Batch = dict[str, Any]
# Where a v1 text encoder has its rows, beside the list of kept tokens.
_TABLE = "transformer.text_model.embeddings.token_embedding.weight"


class Data(Protocol):
    """Numbered pictures with captions."""

    def scene(self, index: int) -> Scene:
        """What picture `index` shows."""
        ...

    def vocabulary(self) -> Iterable[str]:
        """Captions that between them have every word that there is."""
        ...

    def batch(self, start: int, n: int) -> tuple[NDArray[np.uint8], list[str]]:
        """Pictures start .. start + n - 1 as uint8 [n,H,W,3], and their captions."""
        ...


class Stage(Protocol):
    """What is trained: a module whose forward gives the loss, and where its batches come from."""

    @property
    def module(self) -> nn.Module:
        """Its forward takes a batch and gives (loss, figures to log)."""
        ...

    def batch(self, step: int) -> Batch:
        """The arguments of a step's forward."""
        ...

    def sample(self, module: Any, step: int) -> NDArray[np.uint8]:
        """Pictures in a row of rows, [R, C, H, W, 3]."""
        ...

    def weights(self, module: Any) -> dict[str, Tensor]:
        """State dict with the checkpoint's key names."""
        ...

    def compile(self, model: Callable[..., Any]) -> Callable[..., Any]:
        """The step, compiled where that pays."""
        ...

    def finish(self) -> None:
        """Write what is needed beside the weights."""
        ...


def step_generator(seed: int, step: int, purpose: int) -> torch.Generator:
    """The numbers of one step, whatever ran before it."""
    key = np.random.SeedSequence((seed, purpose, step)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(key >> 1))


def to_tensor(pictures: NDArray[np.uint8]) -> Tensor:
    """uint8 [B,H,W,3] -> float32 [B,3,H,W] in [-1,1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def to_pictures(images: Tensor) -> NDArray[np.uint8]:
    """float [B,3,H,W] in [-1,1] -> uint8 [B,H,W,3]."""
    clipped = ((images.float() + 1) * 127.5).clamp(0, 255)
    return clipped.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


class AutoencoderLoss(nn.Module):
    """L1 distance, weighted squares and KL term, in one forward (compiled as one where asked)."""

    autoencoder: AutoencoderKL

    def __init__(self, autoencoder: AutoencoderKL, mse_weight: float, kl_weight: float) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.mse_weight, self.kl_weight = mse_weight, kl_weight

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        posterior = self.autoencoder.encode(images)
        decoded = self.autoencoder.decode(posterior.sample(noise)).float()
        l1 = (decoded - images).abs().mean()
        mse = F.mse_loss(decoded, images)
        kl = posterior.kl().float().mean() / images[0].numel()
        psnr = 10 * torch.log10(4.0 / mse.detach())
        loss = l1 + self.mse_weight * mse + self.kl_weight * kl
        return loss, {"l1": l1.detach(), "kl": kl.detach(), "psnr": psnr}


class AutoencoderStage:
    """Pictures, or the busier of two random crops of each, through an AutoencoderKL."""

    def __init__(self, config: Config, plan: Plan, data: Data) -> None:
        from ldm.registry import build_autoencoder

        autoencoder = build_autoencoder(config)
        if plan.init is not None:
            load_weights(autoencoder, plan.init)
        else:  # begin with little noise in the latents, or thousands of steps pass in finding out
            with torch.no_grad():
                for values in autoencoder.quant_conv.parameters():
                    values[autoencoder.embed_dim :] = -6.0 if values.dim() == 1 else 0.0
        self.module = AutoencoderLoss(autoencoder, plan.mse_weight, plan.kl_weight)
        self.factor, self.embed_dim = autoencoder.factor, autoencoder.embed_dim
        self.plan, self.data = plan, data

    def batch(self, step: int) -> Batch:
        size, rng = self.plan.batch_size, np.random.default_rng((self.plan.seed, step))
        pictures, _ = self.data.batch(step * size, size)
        if self.plan.crop is not None:
            pictures = np.stack([self._crop(picture, rng) for picture in pictures])
        images = to_tensor(pictures).contiguous(memory_format=torch.channels_last)
        shape = (size, self.embed_dim, *(side // self.factor for side in images.shape[-2:]))
        noise = torch.randn(shape, generator=step_generator(self.plan.seed, step, 0))
        return {"images": images, "noise": noise}

    def _crop(self, picture: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        side = self.plan.crop or picture.shape[0]
        corners = rng.integers(0, np.array(picture.shape[:2]) - side + 1, size=(2, 2))
        crops = [picture[y : y + side, x : x + side] for y, x in corners]
        return max(crops, key=lambda crop: float(crop.std()))

    def sample(self, module: AutoencoderLoss, step: int) -> NDArray[np.uint8]:
        pictures, _ = self.data.batch(1_000_000_000, 8)
        autoencoder = module.autoencoder
        images = to_tensor(pictures).to(device())
        decoded = autoencoder.decode(autoencoder.encode(images).mode())
        return np.stack([pictures, to_pictures(decoded)])

    def weights(self, module: AutoencoderLoss) -> dict[str, Tensor]:
        return dict(module.autoencoder.state_dict())

    def compile(self, model: Callable[..., Any]) -> Callable[..., Any]:
        compiled: Callable[..., Any] = torch.compile(model)
        return compiled

    def finish(self) -> None:
        """Nothing beside the weights: the diffusion model's YAML holds the autoencoder's."""


class DiffusionLoss(nn.Module):
    """Mean squared error of what the network must put out for the sampler's denoiser to be right.

    denoised = c_skip * x + c_out * network(c_in * x), so the target is (z - c_skip * x) / c_out.
    """

    network: UNetModel
    conditioner: TextEmbedder

    def __init__(self, model: Model) -> None:
        super().__init__()
        assert model.cond_stage_model is not None
        self.network = model.network
        self.conditioner = model.cond_stage_model
        self.schedule, self.prediction = model.schedule, model.prediction

    def forward(
        self, z: Tensor, noise: Tensor, t: Tensor, captions: list[str]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        context, _ = self.conditioner.encode(captions)
        vector = context[:, -1] if getattr(self.conditioner, "pooled", False) else None
        sigma = self.schedule.sigma(t).to(z)
        axes = (-1, 1, 1, 1)
        c_skip, c_out, c_in = (c.view(axes) for c in self.prediction.scalings(sigma))
        x = z + sigma.view(axes) * noise
        output = self.network(c_in * x, t, context, vector).float()
        loss = F.mse_loss(output, (z - c_skip * x) / c_out)
        return loss, {}


class DiffusionStage:
    """Latents encoded beforehand, with their captions, through the network and the conditioner."""

    def __init__(self, config: Config, plan: Plan, data: Data) -> None:
        from ldm.registry import build

        if plan.autoencoder is None and plan.init is None:
            raise ConfigError(
                f"{config.source}: train.autoencoder must name the first stage's weights"
            )
        self.model = build(config)
        self.plan = plan
        zero_last_layers(self.model.network)
        start_text(self.model, config.source, data.vocabulary())
        if plan.init is not None:
            load_weights(self.model, plan.init)
        if plan.text_steps and self.model.cond_stage_model is not None:
            start_text(self.model, config.source, data.vocabulary())
            self.model.cond_stage_model.to(device())
            teach(self.model.cond_stage_model, data.scene, plan.text_steps, plan.seed)
        if plan.autoencoder is not None:
            load_weights(self.model.first_stage_model, plan.autoencoder)
        self.model.first_stage_model.requires_grad_(False).eval()
        if not config.tree["model"]["params"].get("cond_stage_trainable", False):
            # Trained along, it forgets which glyph is meant long before the network could use it.
            self.model.cond_stage_model.requires_grad_(False)
        self.moments, self.captions = self._encode(data)
        if "scale_factor" not in config.tree["model"]["params"]:  # measured, for unit variance
            mean, logvar = self.moments[:2000].float().chunk(2, dim=1)
            variance = mean.var() + logvar.exp().mean()
            self.model.scale_factor = round(float(variance.rsqrt()), 5)
        self.config = config
        self.module = DiffusionLoss(self.model)
        self.probes = [data.scene(1_000_000_000 + row).caption for row in range(16)]
        self.shown = build(config)
        self.shown.first_stage_model = self.model.first_stage_model
        self.shown.scale_factor = self.model.scale_factor

    def _encode(self, data: Data) -> tuple[Tensor, list[str]]:
        """Moments [N, 2*C, h, w] float16 and captions of the first N scenes, kept in a file."""
        from safetensors.torch import load_file, save_file
        from tqdm import trange

        outdir = Path(self.plan.outdir)
        cache, words = outdir / "latents.safetensors", outdir / "captions.json"
        if cache.is_file() and words.is_file():
            captions: list[str] = json.loads(words.read_text(encoding="utf-8"))
            return load_file(cache)["moments"], captions
        outdir.mkdir(parents=True, exist_ok=True)
        encoder, captions, parts = self.model.first_stage_model.to(device()), [], []
        autocast = torch.autocast(device().type, torch.bfloat16, enabled=hardware_bf16())
        for start in trange(0, self.plan.scenes, 64, desc="encoding", disable=None):
            pictures, some = data.batch(start, min(64, self.plan.scenes - start))
            images = to_tensor(pictures).to(device(), memory_format=torch.channels_last)
            with torch.no_grad(), autocast:
                parts.append(encoder.moments(images).half().cpu())
            captions += some
        moments = torch.cat(parts).contiguous()
        save_file({"moments": moments}, cache)
        words.write_text(json.dumps(captions), encoding="utf-8")
        return moments, captions

    def _times(self, size: int, generator: torch.Generator) -> Tensor:
        """Time steps [size], more of the noisy ones where `noise_bias` is over 1."""
        u = torch.rand(size, generator=generator) ** (1 / self.plan.noise_bias)
        total = len(self.model.schedule)
        return (u * total).long().clamp(max=total - 1)

    def batch(self, step: int) -> Batch:
        size, count = self.plan.batch_size, len(self.captions)
        first = step * size
        epochs = {first // count, (first + size - 1) // count}
        order = {
            epoch: torch.randperm(count, generator=step_generator(self.plan.seed, epoch, 1))
            for epoch in epochs
        }
        rows = [int(order[i // count][i % count]) for i in range(first, first + size)]
        generator = step_generator(self.plan.seed, step, 2)
        posterior = DiagonalGaussian.from_moments(self.moments[rows].float())
        shape = posterior.mean.shape
        z = posterior.sample(torch.randn(shape, generator=generator)) * self.model.scale_factor
        dropped = torch.rand(size, generator=generator) < self.plan.drop_caption
        return {
            "z": z.contiguous(memory_format=torch.channels_last),
            "noise": torch.randn(shape, generator=generator),
            "t": self._times(size, generator),
            "captions": ["" if dropped[i] else self.captions[row] for i, row in enumerate(rows)],
        }

    def compile(self, model: Callable[..., Any]) -> Callable[..., Any]:
        self.module.network.compile()
        return model

    def sample(self, module: DiffusionLoss, step: int) -> NDArray[np.uint8]:
        shown = self.shown.to(device())
        shown.model.diffusion_model, shown.cond_stage_model = module.network, module.conditioner
        sampler = find_sampler("ddim")
        sigmas = make_grid(sampler.grid, shown.schedule, 12)
        cond, _ = shown.condition(self.probes)
        uncond, _ = shown.condition([""] * len(self.probes))
        shape = (len(self.probes), shown.latent_channels, *self.moments.shape[2:])
        first = ImageNoise(range(len(self.probes)), "philox").draw(shape).to(device())
        x = start_latent(sampler, first, float(sigmas[0]))
        x = sampler.fn(shown.denoiser(cond, uncond, 3.0), x, sigmas)
        pictures = to_pictures(shown.decode(final_latent(sampler, x, float(sigmas[-1]))))
        return pictures.reshape(2, -1, *pictures.shape[1:])

    def weights(self, module: DiffusionLoss) -> dict[str, Tensor]:
        self.shown.model.diffusion_model = module.network
        self.shown.cond_stage_model = module.conditioner
        return dict(self.shown.state_dict())

    def finish(self) -> None:
        """Write the YAML that the weights are read with."""
        from omegaconf import OmegaConf

        model = self.config.tree["model"]
        params = {**model["params"], "scale_factor": self.model.scale_factor}
        tree = {"model": {**model, "params": params}}
        for section in ("sampling", "data"):  # how to use it, and what it has seen
            if section in self.config.tree:
                tree[section] = self.config.tree[section]
        OmegaConf.save(OmegaConf.create(tree), Path(self.plan.outdir) / "model.yaml")


def zero_last_layers(network: UNetModel) -> None:
    """Start every residual branch, and the output, from nothing, as the originals did."""
    last: list[nn.Module] = [network.out[-1]]
    for module in network.modules():
        if isinstance(module, ResBlock):
            last.append(module.out_layers[-1])
        elif isinstance(module, SpatialTransformer):
            last.append(module.proj_out)
    for layer in last:
        for values in layer.parameters():
            nn.init.zeros_(values)


def start_text(model: Model, source: str, captions: Iterable[str]) -> None:
    """Start a text conditioner of v1's kind from nothing.

    Words begin larger than places, which matter less; a cut embedding table is told which tokens
    the captions use.
    """
    embedder = model.cond_stage_model
    if not isinstance(embedder, FrozenCLIPEmbedder):
        return
    embeddings = embedder.transformer.text_model.embeddings
    nn.init.normal_(embeddings.token_embedding.weight, std=0.4)
    nn.init.normal_(embeddings.position_embedding.weight, std=0.1)
    if embedder.kept_tokens is None:
        return
    ids = torch.tensor(kept_token_ids(captions))
    if len(ids) != len(embedder.kept_tokens):
        raise ConfigError(
            f"{source}: the captions use {len(ids)} tokens; "
            f"set cond_stage_config.params.text_config.vocab_size: {len(ids)}"
        )
    embedder.kept_tokens.copy_(ids)


def _same_tokens(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A file's table of kept tokens as one for the module's tokens; new ones keep the module's.

    So a model can be trained on from one whose captions had other words.
    """
    own = dict(module.named_buffers()) | dict(module.named_parameters())
    found: dict[str, Tensor] = {}
    for key in tensors:
        if not key.endswith("kept_tokens") or key not in own:
            continue
        table = key.replace(
            "kept_tokens", "transformer.text_model.embeddings.token_embedding.weight"
        )
        row_of = {int(token): row for row, token in enumerate(tensors[key])}
        rows = own[table].detach().clone()
        for row, token in enumerate(own[key].tolist()):
            if token in row_of:
                rows[row] = tensors[table][row_of[token]]
        found |= {key: own[key], table: rows}
    return found


def load_weights(module: nn.Module, path: str) -> None:
    """Assign a safetensors file to a module, strictly; raises ConfigError naming the file."""
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such weights; train that stage first")
    tensors = {
        key: value.float() if value.is_floating_point() else value
        for key, value in load_file(path).items()
    }
    tensors |= _same_tokens(module, tensors)
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{path}: does not fit the YAML: {reason}") from None


def device() -> torch.device:
    """Where to train."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def hardware_bf16() -> bool:
    """Whether bfloat16 products run in hardware here; emulated they are slower than float32."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return _cpu_flag("avx512_bf16")


def _cpu_flag(name: str) -> bool:
    info = Path("/proc/cpuinfo")
    return info.is_file() and name in info.read_text(encoding="ascii", errors="ignore")
