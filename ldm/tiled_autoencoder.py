"""Autoencoders tile by tile, for pictures that do not fit into memory at once.

The result is that of the whole picture, and has no seams. Convolutions see only so far: a tile
with a margin of that reach has the right values in its core. What sees the whole picture is
attention, and the statistics of the group norms:

- Attention stands at the resolution of the latents, where a position is 64 pixels (f8). The levels
  up to the last one that attends run whole; those between them and the pixels, which need nearly
  all of the memory, run in tiles.
- Norms in tiles are given their statistics. A pilot, a mosaic of small pieces from everywhere in
  the picture, gives a first guess. While the tiles run with it, the true statistics under that
  guess are gathered; how they differ from the pilot's, norm by norm, corrects the pilot's in the
  next pass. Passes end when the statistics used and those gathered agree to TOLERANCE.

  Statistics that one pass gathers are of no use to the next one without a pilot: they belong to
  inputs which that pass no longer has, and errors grow from norm to norm. (Measured: 0.5, 0.4, 1.3
  and 0.3 grey levels off in four passes; corrected through a pilot 0.5, 0.02, 0.0008, 0.)

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
Time for attention grows with the square of the pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise, product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.nn.attention import attention
from ldm.nn.autoencoder import (
    AttnBlock,
    AutoencoderKL,
    Decoder,
    DiagonalGaussian,
    Encoder,
    ResnetBlock,
)
from ldm.nn.vq import Unquantised, VQModelInterface
from ldm.tiling import tiles

TILE = 64
# Largest disagreement of statistics, in standard deviations, at which a pass is the last one.
TOLERANCE = 0.004
PASSES = 5
# Latents along one side of a pilot's pieces: large enough to hold the picture's small structures.
PIECE = 4
# Positions that attend to all others at a time.
QUERIES = 4096

Norm = Callable[[nn.GroupNorm, Tensor], Tensor]


# --- group norms with given statistics ------------------------------------------------------------


@dataclass
class _Moments:
    """Mean and biased variance of each group of a norm, [G] float64, over what was added so far."""

    mean: Tensor
    variance: Tensor
    count: int

    @classmethod
    def of(cls, x: Tensor, groups: int) -> _Moments:
        """Of [B,C,h,w], all rows of the batch taken as one picture."""
        grouped = x.float().reshape(x.shape[0], groups, -1, *x.shape[2:])
        variance, mean = torch.var_mean(grouped, dim=(0, 2, 3, 4), correction=0)
        # On the CPU, since not every device has float64.
        return cls(mean.cpu().double(), variance.cpu().double(), x.numel() // groups)

    def __add__(self, other: _Moments) -> _Moments:
        """Of both together (Chan et al. 1979)."""
        count = self.count + other.count
        part = other.count / count
        step = other.mean - self.mean
        between = step.square() * (part * (1 - part))
        variance = self.variance + (other.variance - self.variance) * part + between
        return _Moments(self.mean + step * part, variance, count)


_Statistics = dict[nn.GroupNorm, _Moments]


def _normed(norm: nn.GroupNorm, x: Tensor, moments: _Moments) -> Tensor:
    """What the norm would give if these were the statistics of x."""
    each = norm.num_channels // norm.num_groups
    deviation = (moments.variance + norm.eps).sqrt()
    scale = (1 / deviation).repeat_interleave(each).to(x.device, torch.float32)
    shift = (-moments.mean / deviation).repeat_interleave(each).to(x.device, torch.float32)
    weight, bias = norm.weight.float(), norm.bias.float()
    scale, shift = scale * weight, shift * weight + bias
    return torch.addcmul(shift[:, None, None], x.float(), scale[:, None, None]).to(x.dtype)


def _piloting(found: _Statistics, used: _Statistics, truth: _Statistics, last: _Statistics) -> Norm:
    """For the pilot: its own statistics, `found`, corrected by what the pass before taught.

    In that pass a pilot with the statistics `last` stood for a picture with those in `truth`; both
    are empty in the first.
    """

    def norm(module: nn.GroupNorm, x: Tensor) -> Tensor:
        own = found[module] = _Moments.of(x, module.num_groups)
        if module in truth:
            was, should = last[module], truth[module]
            unit = ((own.variance + module.eps) / (was.variance + module.eps)).sqrt()
            ratio = (should.variance + module.eps) / (was.variance + module.eps)
            variance = ((own.variance + module.eps) * ratio - module.eps).clamp_min(0.0)
            own = _Moments(own.mean + (should.mean - was.mean) * unit, variance, own.count)
        used[module] = own
        return _normed(module, x, own)

    return norm


def _gathering(used: _Statistics, truth: _Statistics, core: Callable[[Tensor], Tensor]) -> Norm:
    """For a tile: the statistics `used`, while its core's own are added to `truth`."""

    def norm(module: nn.GroupNorm, x: Tensor) -> Tensor:
        own = _Moments.of(core(x), module.num_groups)
        truth[module] = truth[module] + own if module in truth else own
        return _normed(module, x, used[module])

    return norm


def _disagreement(used: _Statistics, truth: _Statistics) -> float:
    """The largest difference of means and of deviations, in deviations."""
    worst = 0.0
    for module, true in truth.items():
        deviation = (true.variance + module.eps).sqrt()
        means = (used[module].mean - true.mean).abs() / deviation
        deviations = ((used[module].variance + module.eps).sqrt() / deviation - 1).abs()
        worst = max(worst, means.max().item(), deviations.max().item())
    return worst


# --- tiles of a picture ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tile:
    """A tile and the core of it that counts, in units that the tensors have some multiple of."""

    rows: slice
    columns: slice
    core_rows: slice
    core_columns: slice

    def cut(self, x: Tensor, scale: int) -> Tensor:
        """The tile's part of a whole tensor."""
        return x[..., _times(self.rows, scale), _times(self.columns, scale)]

    def place(self, x: Tensor, scale: int) -> Tensor:
        """The core's part of a whole tensor."""
        return x[..., _times(self.core_rows, scale), _times(self.core_columns, scale)]

    def core(self, x: Tensor) -> Tensor:
        """The core's part of the tile's own tensor, at whatever scale that is."""
        scale = x.shape[-2] // (self.rows.stop - self.rows.start)
        top, left = -self.rows.start * scale, -self.columns.start * scale
        rows, columns = _times(self.core_rows, scale), _times(self.core_columns, scale)
        return x[..., _moved(rows, top), _moved(columns, left)]


def _times(span: slice, scale: int) -> slice:
    return slice(span.start * scale, span.stop * scale)


def _moved(span: slice, by: int) -> slice:
    return slice(span.start + by, span.stop + by)


def _grid(height: int, width: int, tile: int, reach: int) -> list[_Tile]:
    """Tiles whose cores meet without overlap, `reach` or more away from the tiles' inner edges."""
    tile = max(tile, 4 * reach)  # or else they would be mostly margin
    axes = []
    for length in (height, width):
        spans = tiles(length, tile, 2 * reach)
        meet = [(one.stop + two.start) // 2 for one, two in pairwise(spans)]
        cores = [slice(*ends) for ends in pairwise([0, *meet, length])]
        axes.append(list(zip(spans, cores, strict=True)))
    return [_Tile(rows, columns, top, left) for (rows, top), (columns, left) in product(*axes)]


def _mosaic(x: Tensor, tile: int, scale: int) -> Tensor:
    """Pieces of [1,C,h,w] from everywhere, evenly spread: at most `tile` units a side."""
    indices = []
    for length in x.shape[-2:]:
        if length <= tile * scale:
            indices.append(torch.arange(length))
            continue
        pieces = tiles(length // scale, PIECE, 0)
        step = (len(pieces) - 1) / max(tile // PIECE - 1, 1)
        chosen = [_times(pieces[round(i * step)], scale) for i in range(max(tile // PIECE, 1))]
        indices.append(torch.cat([torch.arange(part.start, part.stop) for part in chosen]))
    rows, columns = (index.to(x.device) for index in indices)
    return x[..., rows[:, None], columns]


def _settled(
    run: Callable[[Tensor, Norm], Tensor],
    x: Tensor,
    grid: Sequence[_Tile],
    tile: int,
    cut: int,
    put: int,
) -> Tensor:
    """`run` over x [1,C,h,w] in tiles, with the norms' statistics those of the whole.

    A unit of the tiles is `cut` positions of x and `put` positions of what `run` gives.
    """
    pilot = _mosaic(x, tile, cut)
    truth: _Statistics = {}
    last: _Statistics = {}
    out: Tensor | None = None
    for _ in range(PASSES):
        used: _Statistics = {}
        found: _Statistics = {}
        run(pilot, _piloting(found, used, truth, last))
        truth, last = {}, found
        for part in grid:
            piece = run(part.cut(x, cut), _gathering(used, truth, part.core))
            if out is None:
                height, width = (size // cut * put for size in x.shape[-2:])
                out = piece.new_empty((1, piece.shape[1], height, width))
            part.place(out, put).copy_(part.core(piece))
        if _disagreement(used, truth) <= TOLERANCE:
            break
    assert out is not None
    return out


# --- autoencoders ---------------------------------------------------------------------------------


@torch.no_grad()
def decode_tiled(
    autoencoder: AutoencoderKL | VQModelInterface, z: Tensor, tile: int = TILE
) -> Tensor:
    """What `autoencoder.decode(z)` gives, in tiles of `tile` latents a side, margins included.

    z [B,embed_dim,h,w] -> images [B,3,h*f,w*f]. One tile is enough: the same computation. The
    pictures of a batch are done one after the other.
    """
    if isinstance(autoencoder, VQModelInterface):
        z = autoencoder.quantize(z)
    pictures = torch.split(autoencoder.post_quant_conv(z), 1)
    return torch.cat([_decoded(autoencoder.decoder, picture, tile) for picture in pictures])


@torch.no_grad()
def encode_tiled(
    autoencoder: AutoencoderKL | VQModelInterface, images: Tensor, tile: int = TILE
) -> DiagonalGaussian | Unquantised:
    """What `autoencoder.encode(images)` gives, in tiles of `tile` latents a side.

    Images [B,3,H,W] in [-1,1], H and W multiples of the factor; as `decode_tiled`.
    """
    features = [_encoded(autoencoder.encoder, picture, tile) for picture in torch.split(images, 1)]
    latents = autoencoder.quant_conv(torch.cat(features))
    if isinstance(autoencoder, VQModelInterface):
        return Unquantised(latents)
    return DiagonalGaussian.from_moments(latents)


def _decoded(decoder: Decoder, z: Tensor, tile: int) -> Tensor:
    levels: list[Any] = list(reversed(list(decoder.up)))  # from the latents to the pixels
    whole = 1 + max((i for i, level in enumerate(levels) if len(level.attn)), default=0)
    reach, put = 0, 1
    for level in levels[whole:]:
        reach, put = 2 * reach + 1 + 2 * len(level.block), 2 * put
    unit = 2 ** (whole - 1)  # units a latent: a unit is a position of the last level that is whole
    grid = _grid(z.shape[-2] * unit, z.shape[-1] * unit, tile * unit, -(-(reach + 1) // put))
    if len(grid) == 1:
        out: Tensor = decoder(z)
        return out
    # Each step upwards belongs to the level that it leads to.
    ups = [[], *([level.upsample] for level in levels[:-1])]
    steps = [[*up, *_interleaved(level)] for up, level in zip(ups, levels, strict=True)]

    def run(x: Tensor, norm: Norm) -> Tensor:
        x = _through(chain(*steps[whole:]), x, norm)
        x = decoder.conv_out(F.silu(norm(decoder.norm_out, x), inplace=True))
        return torch.tanh(x) if decoder.tanh_out else x

    start = chain(_middle(decoder.mid), *steps[:whole])
    features = _through(start, decoder.conv_in(z), _own)
    return _settled(run, features, grid, tile * unit, 1, put)


def _encoded(encoder: Encoder, images: Tensor, tile: int) -> Tensor:
    levels: list[Any] = list(encoder.down)  # from the pixels to the latents
    attends = (i for i, level in enumerate(levels) if len(level.attn))
    first = min(attends, default=len(levels) - 1)  # that is run whole
    reach, cut = 1, 1
    for level in levels[:first]:
        # The strided convolution looks at most one of its own positions away, after rounding up.
        reach, cut = (reach + 2 * len(level.block) + 1) // 2 + 1, 2 * cut
    unit = 2 ** (len(levels) - 1 - first)
    height, width = (size // cut for size in images.shape[-2:])
    grid = _grid(height, width, tile * unit, reach)
    if len(grid) == 1:
        out: Tensor = encoder(images)
        return out
    downs = [*([level.downsample] for level in levels[:-1]), []]
    steps = [[*_interleaved(level), *down] for level, down in zip(levels, downs, strict=True)]

    def run(x: Tensor, norm: Norm) -> Tensor:
        return _through(chain(*steps[:first]), encoder.conv_in(x), norm)

    end = chain(*steps[first:], _middle(encoder.mid))
    x = _through(end, _settled(run, images, grid, tile * unit, cut, 1), _own)
    rest: Tensor = encoder.conv_out(F.silu(encoder.norm_out(x), inplace=True))
    return rest


def _interleaved(level: Any) -> list[nn.Module]:
    """A level's blocks, each followed by its attention if it has one."""
    if not len(level.attn):
        return list(level.block)
    return [*chain(*zip(level.block, level.attn, strict=True))]


def _middle(middle: Any) -> list[nn.Module]:
    return [middle.block_1, middle.attn_1, middle.block_2]


def _own(module: nn.GroupNorm, x: Tensor) -> Tensor:
    """A norm as it is."""
    out: Tensor = module(x)
    return out


def _through(steps: Iterable[nn.Module], x: Tensor, norm: Norm) -> Tensor:
    """Steps one after the other; at most three tensors of a step's size are held at a time."""
    for step in steps:
        if isinstance(step, ResnetBlock):
            h = norm(step.norm1, x)
            h = step.conv1(F.silu(h, inplace=True))
            h = norm(step.norm2, h)
            h = step.conv2(F.silu(h, inplace=True))
            x = h.add_(x if step.nin_shortcut is None else step.nin_shortcut(x))
            del h
        elif isinstance(step, AttnBlock):
            x = _attended(step, x)
        else:
            x = step(x)
    return x


def _attended(block: AttnBlock, x: Tensor) -> Tensor:
    """Self attention with residual, for some rows of queries at a time: all it adds is k and v."""
    moments = _Moments.of(x, block.norm.num_groups)
    x = x.contiguous()
    parts = torch.split(x.flatten(2), QUERIES, dim=2)  # views, so that x changes with them
    keys = x.new_empty((1, x[0, 0].numel(), x.shape[1]))
    values = torch.empty_like(keys)

    def projected(layer: nn.Conv2d, part: Tensor) -> Tensor:
        hidden = _normed(block.norm, part[..., None], moments)[..., 0].transpose(1, 2)
        return F.linear(hidden, layer.weight[:, :, 0, 0], layer.bias)

    for index, part in enumerate(parts):
        rows = slice(index * QUERIES, index * QUERIES + part.shape[2])
        keys[:, rows], values[:, rows] = projected(block.k, part), projected(block.v, part)
    for part in parts:
        attended = attention(projected(block.q, part), keys, values, heads=1)
        part += block.proj_out(attended.transpose(1, 2)[..., None])[..., 0]
    return x
