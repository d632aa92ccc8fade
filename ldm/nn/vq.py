"""The autoencoder with a codebook between pixels and latents, with the originals' key names.

Source of the arithmetic: CompVis `ldm/models/autoencoder.py` and taming-transformers
`taming/modules/vqvae/quantize.py` (van den Oord et al. 2017, arXiv 1711.00937).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import UsageError
from ldm.nn.autoencoder import make_networks

# Latent positions compared with the codebook at once: bounds the table of distances.
_ROWS = 4096


@dataclass(frozen=True)
class Unquantised:
    """The encoder's output, [B, embed_dim, h, w]: a posterior with a single point."""

    mean: Tensor

    def mode(self) -> Tensor:
        return self.mean

    def sample(self, noise: Tensor) -> Tensor:
        """The same point: there is nothing to draw."""
        return self.mean


class VectorQuantizer(nn.Module):
    """A codebook of `n_embed` vectors; the nearest one replaces a latent's vector."""

    def __init__(self, n_embed: int, embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_embed, embed_dim)

    def indices(self, z: Tensor) -> Tensor:
        """[B,embed_dim,h,w] -> indices of the nearest vectors, [B,h,w], computed in float32."""
        rows = z.float().permute(0, 2, 3, 1).flatten(0, 2)
        codes = self.embedding.weight.float()
        # |z - e|^2 without |z|^2, which is the same for every e.
        lengths = codes.square().sum(dim=1)
        nearest = [
            torch.addmm(lengths, part, codes.t(), alpha=-2).argmin(dim=1)
            for part in torch.split(rows, _ROWS)
        ]
        return torch.cat(nearest).view(z.shape[0], *z.shape[2:])

    def forward(self, z: Tensor) -> Tensor:
        """[B,embed_dim,h,w] -> the nearest vectors, in the same shape."""
        out: Tensor = self.embedding(self.indices(z)).permute(0, 3, 1, 2)
        return out.contiguous()


class VQModelInterface(nn.Module):
    """Autoencoder with a codebook, as diffusion models use it: quantised only when decoding.

    `ddconfig` as in `make_networks`, with double_z false. Images are [B,3,H,W] in [-1,1]; latents
    are not scaled here. H and W must be multiples of `factor`.
    """

    def __init__(self, ddconfig: Mapping[str, Any], embed_dim: int, n_embed: int) -> None:
        super().__init__()
        if ddconfig.get("double_z", True):
            raise ValueError("a VQ autoencoder needs double_z: false")
        self.encoder, self.decoder = make_networks(ddconfig)
        z_channels = ddconfig["z_channels"]
        self.quantize = VectorQuantizer(n_embed, embed_dim)
        self.quant_conv = nn.Conv2d(z_channels, embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)
        self.embed_dim = embed_dim
        self.factor = 2 ** (len(ddconfig["ch_mult"]) - 1)

    def encode(self, images: Tensor) -> Unquantised:
        """[B,3,H,W] in [-1,1] -> latents [B,embed_dim,H/f,W/f], not quantised."""
        return Unquantised(self.quant_conv(self.encoder(images)))

    def decode(self, z: Tensor, quantise: bool = True) -> Tensor:
        """[B,embed_dim,h,w] -> images [B,3,h*f,w*f], near [-1,1] but not clamped."""
        out: Tensor = self.decoder(self.post_quant_conv(self.quantize(z) if quantise else z))
        return out

    def moments(self, images: Tensor) -> Tensor:
        """Raises UsageError: only a KL autoencoder has moments."""
        raise UsageError("an autoencoder with a codebook has no moments: train on a KL autoencoder")
