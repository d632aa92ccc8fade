"""Training a latent diffusion model on latents that are encoded in advance.

A model may have more inputs than the noisy latent (`ldm.training.hints`): a mask, a depth map, a
small image.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ldm.checkpoints.config import Config
from ldm.errors import ConfigError
from ldm.images.tensors import to_tensor
from ldm.models.conditioning import Conditioning, FrozenCLIPEmbedder, kept_token_ids, pooled_state
from ldm.models.model import Model, TextEmbedder
from ldm.nn.attention import SpatialTransformer
from ldm.nn.autoencoder import DiagonalGaussian
from ldm.nn.layers import ResBlock
from ldm.nn.unet import UNetModel
from ldm.sampling.noise import ImageNoise
from ldm.sampling.samplers import final_latent, find_sampler, start_latent
from ldm.sampling.schedule import make_grid
from ldm.training.hints import Kept, find_hint
from ldm.training.layout import LayoutLoss
from ldm.training.pretext import teach
from ldm.training.recipe import Plan
from ldm.training.stages import (
    Batch,
    Data,
    device,
    hardware_bf16,
    load_weights,
    step_generator,
    to_image_arrays,
)

_PROBES = 1_000_000_000  # beyond the scenes of any step


class DiffusionLoss(nn.Module):
    """Mean squared error of the network's output, with a target that makes the denoiser exact.

    denoised = c_skip * x + c_out * network(c_in * x), so the target is (z - c_skip * x) / c_out.
    With `layout`, its loss is added with a `weight`.
    """

    network: UNetModel
    conditioner: TextEmbedder

    def __init__(self, model: Model, layout: LayoutLoss | None = None, weight: float = 0.0) -> None:
        super().__init__()
        assert model.cond_stage_model is not None
        assert isinstance(model.network, UNetModel)
        self.network = model.network
        self.conditioner = model.cond_stage_model
        self.schedule, self.prediction = model.schedule, model.prediction
        self.layout, self.layout_weight = layout, weight

    def forward(
        self,
        z: Tensor,
        noise: Tensor,
        t: Tensor,
        captions: list[str],
        concat: Tensor | None = None,
        vector: Tensor | None = None,
        layout: Tensor | None = None,
        pooled: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        context, _ = self.conditioner.encode(captions)
        if vector is None:
            vector = pooled_state(self.conditioner, context)
            if vector is not None and pooled is not None:  # the rows that get it
                vector = vector * pooled[:, None]
        sigma = self.schedule.sigma(t).to(z)
        axes = (-1, 1, 1, 1)
        c_skip, c_out, c_in = (c.view(axes) for c in self.prediction.scalings(sigma))
        x = z + sigma.view(axes) * noise
        x_in = c_in * x if concat is None else torch.cat([c_in * x, concat], dim=1)
        output = self.network(x_in, t, context, vector).float()
        loss = F.mse_loss(output, (z - c_skip * x) / c_out)
        if self.layout is None or layout is None:
            return loss, {}
        layout_loss = self.layout(layout)
        return loss + self.layout_weight * layout_loss, {"layout": layout_loss.detach()}


class DiffusionStage:
    """Trains the network, and perhaps its conditioner, on encoded latents and their captions."""

    def __init__(self, config: Config, plan: Plan, data: Data) -> None:
        from ldm.models.registry import build

        if plan.autoencoder is None and plan.init is None:
            raise ConfigError(
                f"{config.source}: train.autoencoder must name the first stage's weights"
            )
        self.model = build(config)
        if not isinstance(self.model.network, UNetModel):
            raise ConfigError(f"{config.source}: only models with a UNet are trained here")
        self.plan = plan
        self.hint = find_hint(self.model)
        zero_last_layers(self.model.network)
        start_text(self.model, config.source, data.vocabulary())
        if plan.init is not None:
            load_weights(self.model, plan.init, grown=True)
        if plan.text_steps and self.model.cond_stage_model is not None:
            start_text(self.model, config.source, data.vocabulary())
            self.model.cond_stage_model.to(device())
            teach(self.model.cond_stage_model, data.scene, plan.text_steps, plan.seed)
        if plan.autoencoder is not None:
            load_weights(self.model.first_stage_model, plan.autoencoder)
        self.model.first_stage_model.requires_grad_(False).eval()
        trained = config.tree["model"]["params"].get("cond_stage_trainable", False)
        if not trained and self.model.cond_stage_model is not None:
            # If trained too, it forgets the glyphs long before the network can use them.
            self.model.cond_stage_model.requires_grad_(False)
        self.kept, self.captions = self._encode(data)
        self.moments = self.kept.pop("moments")
        self.probes, self.probed = self._probe(data)
        if "scale_factor" not in config.tree["model"]["params"]:  # measured, for unit variance
            mean, logvar = self.moments[:2000].float().chunk(2, dim=1)
            variance = mean.var() + logvar.exp().mean()
            self.model.scale_factor = round(float(variance.rsqrt()), 5)
        self.config = config
        self.module = DiffusionLoss(self.model, self._layout_loss(data), plan.layout_weight)
        self.shown = build(config)
        self.shown.first_stage_model = self.model.first_stage_model
        self.shown.scale_factor = self.model.scale_factor

    def _layout_loss(self, data: Data) -> LayoutLoss | None:
        network = self.model.network
        assert isinstance(network, UNetModel)
        return LayoutLoss(network, data.kinds) if self.plan.layout_weight else None

    def _probe(self, data: Data) -> tuple[list[str], Kept]:
        """The captions of the sample images, and their hints."""
        captions = [data.scene(_PROBES + row).caption for row in range(16)]
        if self.hint is None:
            return captions, {}
        images, layers = data.batch(_PROBES, 16)[0], data.layers(_PROBES, 16)
        return captions, self.hint.keep(images, layers, _PROBES, self._moments)

    def _moments(self, images: Tensor) -> Tensor:
        """Images [B,3,H,W] in [-1,1] -> moments [B,2*C,h,w], float16 on the CPU."""
        encoder = self.model.first_stage_model.to(device())
        inputs = images.to(device(), memory_format=torch.channels_last)
        with torch.no_grad(), torch.autocast(device().type, torch.bfloat16, hardware_bf16()):
            return encoder.moments(inputs).half().cpu()

    def _encode(self, data: Data) -> tuple[Kept, list[str]]:
        """Moments [N, 2*C, h, w] float16, hints and captions of the first N scenes, cached."""
        from safetensors.torch import load_file, save_file
        from tqdm import trange

        outdir = Path(self.plan.outdir)
        cache, words = outdir / "latents.safetensors", outdir / "captions.json"
        if cache.is_file() and words.is_file():
            captions: list[str] = json.loads(words.read_text(encoding="utf-8"))
            return load_file(cache), captions
        outdir.mkdir(parents=True, exist_ok=True)
        captions = []
        parts: list[Kept] = []
        for start in trange(0, self.plan.scenes, 64, desc="encoding", disable=None):
            count = min(64, self.plan.scenes - start)
            images, some = data.batch(start, count)
            part = {"moments": self._moments(to_tensor(images))}
            if self.hint is not None:
                part |= self.hint.keep(images, data.layers(start, count), start, self._moments)
            if self.plan.layout_weight:
                layouts = data.layouts(start, count, part["moments"].shape[-1])
                part["layout"] = torch.from_numpy(layouts.astype(np.uint8))
            parts.append(part)
            captions += some
        kept = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
        save_file(kept, cache)
        words.write_text(json.dumps(captions), encoding="utf-8")
        return kept, captions

    def _times(self, size: int, generator: torch.Generator) -> Tensor:
        """Draw time steps [size], more of the noisy ones if `noise_bias` is over 1."""
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
            **self._shown({name: values[rows] for name, values in self.kept.items()}, generator),
            **({"layout": self.kept["layout"][rows]} if "layout" in self.kept else {}),
            **self._pooled(size, generator),
        }

    def _pooled(self, size: int, generator: torch.Generator) -> Batch:
        """The rows of a step that get the pooled text, if some do not."""
        share = self.plan.drop_vector
        return {"pooled": torch.rand(size, generator=generator) >= share} if share else {}

    def _shown(self, kept: Kept, generator: torch.Generator) -> Batch:
        """The network's additional inputs in a step, by parameter of the loss."""
        if self.hint is None:
            return {}
        cond = self.hint.show(kept, Conditioning(), generator)
        both = {"concat": cond.concat, "vector": cond.vector}
        return {name: values for name, values in both.items() if values is not None}

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
        for name, values in self._shown(self.probed, step_generator(0, 0, 3)).items():
            cond, uncond = (replace(side, **{name: values.to(device())}) for side in (cond, uncond))
        shape = (len(self.probes), shown.latent_channels, *self.moments.shape[2:])
        first = ImageNoise(range(len(self.probes)), "philox").draw(shape).to(device())
        x = start_latent(sampler, first, float(sigmas[0]))
        x = sampler.fn(shown.denoiser(cond, uncond, 3.0), x, sigmas)
        images = to_image_arrays(shown.decode(final_latent(sampler, x, float(sigmas[-1]))))
        return images.reshape(2, -1, *images.shape[1:])

    def weights(self, module: DiffusionLoss) -> dict[str, Tensor]:
        self.shown.model.diffusion_model = module.network
        self.shown.cond_stage_model = module.conditioner
        return dict(self.shown.state_dict())

    def finish(self) -> None:
        """Write the YAML for the weights."""
        from omegaconf import OmegaConf

        model = self.config.tree["model"]
        params = {**model["params"], "scale_factor": self.model.scale_factor}
        tree = {"model": {**model, "params": params}}
        for section in ("sampling", "data"):  # its defaults and its training data
            if section in self.config.tree:
                tree[section] = self.config.tree[section]
        OmegaConf.save(OmegaConf.create(tree), Path(self.plan.outdir) / "model.yaml")


def zero_last_layers(network: UNetModel) -> None:
    """Zero the last layer of every residual branch and of the output, as the originals did."""
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
    """Initialise a v1 text conditioner for training from scratch.

    Token embeddings start larger than position embeddings, which matter less; a reduced embedding
    table gets the tokens of the captions.
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
