"""The stages of `ldm train`: an autoencoder, or a diffusion model with its text conditioner.

A stage defines the batches and the loss; the loop is in `ldm.training.train`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ldm.checkpoints.config import Config
from ldm.checkpoints.weights.keys import is_scheduled
from ldm.errors import ConfigError
from ldm.images.tensors import to_tensor
from ldm.nn.autoencoder import AutoencoderKL
from ldm.training.recipe import Plan
from ldm.training.scenes import Scene

Batch = dict[str, Any]
# The embedding table of a v1 text encoder; its rows belong to the list of kept tokens.
_TABLE = "transformer.text_model.embeddings.token_embedding.weight"


class Data(Protocol):
    """Numbered images with captions."""

    def scene(self, index: int) -> Scene:
        """The scene of image `index`."""
        ...

    def vocabulary(self) -> Iterable[str]:
        """Captions that together contain every word."""
        ...

    def batch(self, start: int, n: int) -> tuple[NDArray[np.uint8], list[str]]:
        """Images start .. start + n - 1 as uint8 [n,H,W,3], and their captions."""
        ...

    def layers(self, start: int, n: int) -> NDArray[np.uint8]:
        """The object visible at each pixel, uint8 [n,H,W]: 0 the background, then back to front."""
        ...

    def layouts(self, start: int, n: int, cells: int) -> NDArray[np.int64]:
        """The kind of object in each cell, [n,cells,cells], below `kinds`."""
        ...

    @property
    def kinds(self) -> int:
        """The number of kinds of objects, including none."""
        ...


class Stage(Protocol):
    """A training stage: a module whose forward returns the loss, and the source of its batches."""

    @property
    def module(self) -> nn.Module:
        """The module to train; its forward takes a batch and returns (loss, figures to log)."""
        ...

    def batch(self, step: int) -> Batch:
        """The arguments of a step's forward."""
        ...

    def sample(self, module: Any, step: int) -> NDArray[np.uint8]:
        """Sample images in rows, [R, C, H, W, 3]."""
        ...

    def weights(self, module: Any) -> dict[str, Tensor]:
        """State dict with the checkpoint's key names."""
        ...

    def compile(self, model: Callable[..., Any]) -> Callable[..., Any]:
        """Compile the step, or the part of it that benefits."""
        ...

    def finish(self) -> None:
        """Write the files needed besides the weights."""
        ...


def step_generator(seed: int, step: int, purpose: int) -> torch.Generator:
    """The random generator of one step, independent of earlier steps."""
    key = np.random.SeedSequence((seed, purpose, step)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(key >> 1))


def to_image_arrays(images: Tensor) -> NDArray[np.uint8]:
    """float [B,3,H,W] in [-1,1] -> uint8 [B,H,W,3]."""
    clipped = ((images.float() + 1) * 127.5).clamp(0, 255)
    return clipped.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


class AutoencoderLoss(nn.Module):
    """L1 distance, weighted squared error and KL term in one forward, which may be compiled."""

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
    """Images, or the busier of two random crops of each, through an AutoencoderKL."""

    def __init__(self, config: Config, plan: Plan, data: Data) -> None:
        from ldm.models.registry import build_autoencoder

        autoencoder = build_autoencoder(config)
        if plan.init is not None:
            load_weights(autoencoder, plan.init)
        else:  # start with little noise in the latents; learning that would take thousands of steps
            with torch.no_grad():
                for values in autoencoder.quant_conv.parameters():
                    values[autoencoder.embed_dim :] = -6.0 if values.dim() == 1 else 0.0
        self.module = AutoencoderLoss(autoencoder, plan.mse_weight, plan.kl_weight)
        self.factor, self.embed_dim = autoencoder.factor, autoencoder.embed_dim
        self.plan, self.data = plan, data

    def batch(self, step: int) -> Batch:
        size, rng = self.plan.batch_size, np.random.default_rng((self.plan.seed, step))
        arrays, _ = self.data.batch(step * size, size)
        if self.plan.crop is not None:
            arrays = np.stack([self._crop(array, rng) for array in arrays])
        images = to_tensor(arrays).contiguous(memory_format=torch.channels_last)
        shape = (size, self.embed_dim, *(side // self.factor for side in images.shape[-2:]))
        noise = torch.randn(shape, generator=step_generator(self.plan.seed, step, 0))
        return {"images": images, "noise": noise}

    def _crop(self, image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        side = self.plan.crop or image.shape[0]
        corners = rng.integers(0, np.array(image.shape[:2]) - side + 1, size=(2, 2))
        crops = [image[y : y + side, x : x + side] for y, x in corners]
        return max(crops, key=lambda crop: float(crop.std()))

    def sample(self, module: AutoencoderLoss, step: int) -> NDArray[np.uint8]:
        arrays, _ = self.data.batch(1_000_000_000, 8)
        autoencoder = module.autoencoder
        images = to_tensor(arrays).to(device())
        decoded = autoencoder.decode(autoencoder.encode(images).mode())
        return np.stack([arrays, to_image_arrays(decoded)])

    def weights(self, module: AutoencoderLoss) -> dict[str, Tensor]:
        return dict(module.autoencoder.state_dict())

    def compile(self, model: Callable[..., Any]) -> Callable[..., Any]:
        compiled: Callable[..., Any] = torch.compile(model)
        return compiled

    def finish(self) -> None:
        """Nothing beside the weights: the diffusion model's YAML holds the autoencoder's."""


def _same_tokens(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a file's table of kept tokens to the module's tokens; new ones keep its own rows.

    This allows training to continue from a model whose captions used other words.
    """
    own = dict(module.named_buffers()) | dict(module.named_parameters())
    tables: dict[str, Tensor] = {}
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
        tables |= {key: own[key], table: rows}
    return tables


_FIRST = "model.diffusion_model.input_blocks.0.0.weight"
_LABEL = "model.diffusion_model.label_emb."


def _grown(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adapt the tensors of a network with fewer inputs to one with more."""
    own = module.state_dict()
    adapted = {key: values for key, values in tensors.items() if not key.startswith(_LABEL)}
    for key, values in own.items():
        if key.startswith(_LABEL):
            same = key in tensors and tensors[key].shape == values.shape
            adapted[key] = tensors[key] if same else values
        elif is_scheduled(key):  # use the YAML's, which may differ
            adapted[key] = values
    first = tensors.get(_FIRST)
    if first is not None and _FIRST in own and first.shape[1] < own[_FIRST].shape[1]:
        adapted[_FIRST] = torch.zeros_like(own[_FIRST])
        adapted[_FIRST][:, : first.shape[1]] = first
    return adapted


def load_weights(module: nn.Module, path: str, *, grown: bool = False) -> None:
    """Assign a safetensors file to a module, strictly; raises ConfigError naming the file.

    With `grown`, the module may have more than the file: more input channels of the network's first
    convolution, which start at zero, and a different label embedding, which starts fresh.
    """
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise ConfigError(f"{path}: no such weights; train that stage first")
    tensors = {
        key: value.float() if value.is_floating_point() else value
        for key, value in load_file(path).items()
    }
    tensors |= _same_tokens(module, tensors)
    if grown:
        tensors = _grown(module, tensors)
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{path}: does not fit the YAML: {reason}") from None


def device() -> torch.device:
    """The device to train on."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def hardware_bf16() -> bool:
    """Whether bfloat16 products run in hardware here; if emulated, they are slower than float32."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return _cpu_flag("avx512_bf16")


def _cpu_flag(name: str) -> bool:
    info = Path("/proc/cpuinfo")
    return info.is_file() and name in info.read_text(encoding="ascii", errors="ignore")
