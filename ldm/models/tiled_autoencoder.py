"""Autoencoders tile by tile, for images that do not fit into memory at once.

The result is that of the whole image, and has no seams. Convolutions see only so far: a tile
with a margin of that reach has the right values in its core. What sees the whole image is
attention, and the statistics of the group norms:

- Attention stands at the resolution of the latents, where a position is 64 pixels (f8). The levels
  up to the last one that attends run whole; those between them and the pixels, which need nearly
  all of the memory, run in tiles.
- Norms in tiles are given the statistics of the whole, in two or three passes, and attention in
  tiles something to attend to (`ldm.models.tiled_passes`).

Measured with the bundled autoencoder (f4, 32 channels) on drawings (512x512, 704x704) of flat and
noisy parts, tiles of 32, 48 and 64 latents: two or three passes; on average 0.004 to 0.018 of 255
grey levels from the plain result, at most 0.13; latents 0.0001 off at a deviation of 2.4. Random
weights: 0.1 levels on average, 2 at most. It takes 2 to 3 times as long as the plain computation.

Peak memory for Stable Diffusion's f8 autoencoder (the tensors counted, not what kernels use):

    float32      decode   in tiles of 64      encode   in tiles of 64
    1024x1024   3.0 GiB         0.7 GiB      2.5 GiB         0.4 GiB
    2048x2048  12.0 GiB         0.8 GiB     10.0 GiB         0.6 GiB
    4096x4096  48.0 GiB         1.5 GiB     40.0 GiB         1.7 GiB

What still grows are features and attention at the latents' resolution, 96 bytes a pixel of 3072.
Time for attention grows with the square of the pixels. So where that resolution has more positions
than WHOLE (4096x4096 at f8, 2048x2048 at f4, as of the x4 upscaler), all levels run in tiles.
What is left to hold is a tile, and the image. A position then attends to an even sample of the
others. With the bundled autoencoder, to one in four and to one in nine of 48x112, images were 0.2
and 0.4 grey levels off on average, 4 and 8 at most.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.models.tiled_passes import How, Whole, grid_of, settled, through
from ldm.nn.autoencoder import AutoencoderKL, Decoder, DiagonalGaussian, Encoder
from ldm.nn.vq import Unquantised, VQModelInterface

TILE = 64
# The most positions whose features are held at once.
WHOLE = 512**2


@torch.no_grad()
def decode_tiled(
    autoencoder: AutoencoderKL | VQModelInterface, z: Tensor, tile: int = TILE
) -> Tensor:
    """What `autoencoder.decode(z)` gives, in tiles of `tile` latents a side, margins included.

    z [B,embed_dim,h,w] -> images [B,3,h*f,w*f]. One tile is enough: the same computation. The
    images of a batch are done one after the other.
    """
    if isinstance(autoencoder, VQModelInterface):
        z = autoencoder.quantize(z)
    latents = torch.split(autoencoder.post_quant_conv(z), 1)
    images = [_decoded(autoencoder.decoder, latent, tile) for latent in latents]
    return images[0] if len(images) == 1 else torch.cat(images)  # which holds them twice


@torch.no_grad()
def encode_tiled(
    autoencoder: AutoencoderKL | VQModelInterface, images: Tensor, tile: int = TILE
) -> DiagonalGaussian | Unquantised:
    """What `autoencoder.encode(images)` gives, in tiles of `tile` latents a side.

    Images [B,3,H,W] in [-1,1], H and W multiples of the factor; as `decode_tiled`.
    """
    features = [_encoded(autoencoder.encoder, image, tile) for image in torch.split(images, 1)]
    latents = autoencoder.quant_conv(torch.cat(features))
    if isinstance(autoencoder, VQModelInterface):
        return Unquantised(latents)
    return DiagonalGaussian.from_moments(latents)


def _decoded(decoder: Decoder, z: Tensor, tile: int) -> Tensor:
    levels: list[Any] = list(reversed(list(decoder.up)))  # from the latents to the pixels
    whole = 1 + max((i for i, level in enumerate(levels) if len(level.attn)), default=0)
    unit = 2 ** (whole - 1)  # units a latent: a unit is a position of the last level that is whole
    reach, put = 0, 1
    if z[0, 0].numel() * unit**2 > WHOLE:
        whole, unit = 0, 1
        reach = 1 + 2 * len(_middle(decoder.mid)) + 2 * len(levels[0].block)
    for level in levels[max(whole, 1) :]:
        reach, put = 2 * reach + 1 + 2 * len(level.block), 2 * put
    grid = grid_of(z.shape[-2] * unit, z.shape[-1] * unit, tile * unit, -(-(reach + 1) // put))
    if len(grid) == 1:
        out: Tensor = decoder(z)
        return out
    # Each step upwards belongs to the level that it leads to.
    ups = [[], *([level.upsample] for level in levels[:-1])]
    steps = [[*up, *_interleaved(level)] for up, level in zip(ups, levels, strict=True)]

    def run(x: Tensor, how: How) -> Tensor:
        if not whole:
            x = through(_middle(decoder.mid), decoder.conv_in(x), how)
        x = through(chain(*steps[whole:]), x, how)
        x = decoder.conv_out(F.silu(how.norm(decoder.norm_out, x), inplace=True))
        return torch.tanh(x) if decoder.tanh_out else x

    if whole:
        start = chain(_middle(decoder.mid), *steps[:whole])
        z = through(start, decoder.conv_in(z), Whole())
    return settled(run, z, grid, tile * unit, 1, put)


def _encoded(encoder: Encoder, images: Tensor, tile: int) -> Tensor:
    levels: list[Any] = list(encoder.down)  # from the pixels to the latents
    attends = (i for i, level in enumerate(levels) if len(level.attn))
    first = min(attends, default=len(levels) - 1)  # that is run whole
    tiled = images[0, 0].numel() // 4**first > WHOLE  # all of it
    if tiled:
        first = len(levels) - 1
    reach, cut = 1, 1
    for level in levels[:first]:
        # The strided convolution looks at most one of its own positions away, after rounding up.
        reach, cut = (reach + 2 * len(level.block) + 1) // 2 + 1, 2 * cut
    if tiled:
        reach += 2 * len(levels[-1].block) + 2 * len(_middle(encoder.mid)) + 1
    unit = 2 ** (len(levels) - 1 - first)
    height, width = (size // cut for size in images.shape[-2:])
    grid = grid_of(height, width, tile * unit, reach)
    if len(grid) == 1:
        out: Tensor = encoder(images)
        return out
    downs = [*([level.downsample] for level in levels[:-1]), []]
    steps = [[*_interleaved(level), *down] for level, down in zip(levels, downs, strict=True)]

    def finish(x: Tensor, how: How) -> Tensor:
        x = through(chain(*steps[first:], _middle(encoder.mid)), x, how)
        rest: Tensor = encoder.conv_out(F.silu(how.norm(encoder.norm_out, x), inplace=True))
        return rest

    def run(x: Tensor, how: How) -> Tensor:
        x = through(chain(*steps[:first]), encoder.conv_in(x), how)
        return finish(x, how) if tiled else x

    x = settled(run, images, grid, tile * unit, cut, 1)
    return x if tiled else finish(x, Whole())


def _interleaved(level: Any) -> list[nn.Module]:
    """A level's blocks, each followed by its attention if it has one."""
    if not len(level.attn):
        return list(level.block)
    return [*chain(*zip(level.block, level.attn, strict=True))]


def _middle(middle: Any) -> list[nn.Module]:
    return [middle.block_1, middle.attn_1, middle.block_2]
