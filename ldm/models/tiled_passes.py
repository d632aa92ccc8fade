"""Passes over the tiles of an image, until its group norms have the statistics of the whole.

- A pilot, a mosaic of small pieces from everywhere in the image, gives a first guess. While the
  tiles run with it, the true statistics under that guess are gathered; how they differ from the
  pilot's, norm by norm, corrects the pilot's in the next pass. Passes end when the statistics used
  and those gathered agree to TOLERANCE.
- Where attention is inside of a tile, it is to an even sample of the image's positions, the same
  for all tiles: KEYS at most, taken from the tiles of the pass before; in the first, the pilot's.

Statistics that one pass gathers are of no use to the next one without a pilot: they belong to
inputs which that pass no longer has, and errors grow from norm to norm. (Measured: 0.5, 0.4, 1.3
and 0.3 grey levels off in four passes; corrected through a pilot 0.5, 0.02, 0.0008, 0.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.nn.attention import attention
from ldm.nn.autoencoder import AttnBlock, ResnetBlock
from ldm.sampling.tiling import tiles

# Largest disagreement of statistics, in standard deviations, at which a pass is the last one.
TOLERANCE = 0.004
PASSES = 5
# Latents along one side of a pilot's pieces: large enough to hold the image's small structures.
PIECE = 4
# Positions that attend to others at a time, and the most that tiles attend to.
QUERIES = 4096
KEYS = 128**2


# --- group norms with given statistics ------------------------------------------------------------


@dataclass
class Moments:
    """Mean and biased variance of each group of a norm, [G] float64, over what was added so far."""

    mean: Tensor
    variance: Tensor
    count: int

    @classmethod
    def of(cls, x: Tensor, groups: int) -> Moments:
        """Of [B,C,h,w], all rows of the batch taken as one image."""
        grouped = x.float().reshape(x.shape[0], groups, -1, *x.shape[2:])
        variance, mean = torch.var_mean(grouped, dim=(0, 2, 3, 4), correction=0)
        # On the CPU, since not every device has float64.
        return cls(mean.cpu().double(), variance.cpu().double(), x.numel() // groups)

    def __add__(self, other: Moments) -> Moments:
        """Of both together (Chan et al. 1979)."""
        count = self.count + other.count
        part = other.count / count
        step = other.mean - self.mean
        between = step.square() * (part * (1 - part))
        variance = self.variance + (other.variance - self.variance) * part + between
        return Moments(self.mean + step * part, variance, count)


Statistics = dict[nn.GroupNorm, Moments]
# What positions attend to: keys and values [1,N,C].
Keys = dict[AttnBlock, tuple[Tensor, Tensor]]


def _normed(norm: nn.GroupNorm, x: Tensor, moments: Moments) -> Tensor:
    """Normalise x by the given statistics."""
    each = norm.num_channels // norm.num_groups
    deviation = (moments.variance + norm.eps).sqrt()
    scale = (1 / deviation).repeat_interleave(each).to(x.device, torch.float32)
    shift = (-moments.mean / deviation).repeat_interleave(each).to(x.device, torch.float32)
    weight, bias = norm.weight.float(), norm.bias.float()
    scale, shift = scale * weight, shift * weight + bias
    return torch.addcmul(shift[:, None, None], x.float(), scale[:, None, None]).to(x.dtype)


@dataclass
class Whole:
    """How an image is run that is not in tiles."""

    def norm(self, module: nn.GroupNorm, x: Tensor) -> Tensor:
        """A norm as it is."""
        out: Tensor = module(x)
        return out

    def attend(self, block: AttnBlock, x: Tensor) -> Tensor:
        """Attention, for some rows of queries at a time: all it adds is k and v."""
        return _attended(block, x)


@dataclass
class Pilot:
    """How the pilot is run: by its own statistics, `found`, corrected by the pass before.

    In that pass a pilot with the statistics `last` stood for an image with those in `truth`; both
    are empty in the first. `used` are the corrected ones. `keys` are what blocks attend to; the
    pilot's own where there are none.
    """

    truth: Statistics
    last: Statistics
    keys: Keys
    found: Statistics = field(default_factory=dict)
    used: Statistics = field(default_factory=dict)

    def norm(self, module: nn.GroupNorm, x: Tensor) -> Tensor:
        own = self.found[module] = Moments.of(x, module.num_groups)
        if module in self.truth:
            was, should = self.last[module], self.truth[module]
            unit = ((own.variance + module.eps) / (was.variance + module.eps)).sqrt()
            ratio = (should.variance + module.eps) / (was.variance + module.eps)
            variance = ((own.variance + module.eps) * ratio - module.eps).clamp_min(0.0)
            own = Moments(own.mean + (should.mean - was.mean) * unit, variance, own.count)
        self.used[module] = own
        return _normed(module, x, own)

    def attend(self, block: AttnBlock, x: Tensor) -> Tensor:
        hidden = self.norm(block.norm, x)
        if block not in self.keys:
            self.keys[block] = _keys(block, hidden)
        return x + _look(block, hidden, self.keys[block])


@dataclass
class Tiled:
    """How a tile is run: by the pilot's statistics `used` and its `keys`.

    The core's own statistics are added to `truth`, and an even sample of its keys, one position in
    `stride` squared of those at the latents' resolution, to `sampled`.
    """

    tile: Tile
    used: Statistics
    keys: Keys
    truth: Statistics
    sampled: dict[AttnBlock, list[tuple[Tensor, Tensor]]]
    stride: int

    def norm(self, module: nn.GroupNorm, x: Tensor) -> Tensor:
        own = Moments.of(self.tile.core(x), module.num_groups)
        self.truth[module] = self.truth[module] + own if module in self.truth else own
        return _normed(module, x, self.used[module])

    def attend(self, block: AttnBlock, x: Tensor) -> Tensor:
        hidden = self.norm(block.norm, x)
        core, first = self.tile.core(hidden), self.stride // 2
        some = core[..., first :: self.stride, first :: self.stride]
        self.sampled.setdefault(block, []).append(_keys(block, some))
        return x + _look(block, hidden, self.keys[block])


How = Whole | Pilot | Tiled


def _disagreement(used: Statistics, truth: Statistics) -> float:
    """The largest difference of means and of deviations, in deviations."""
    worst = 0.0
    for module, true in truth.items():
        deviation = (true.variance + module.eps).sqrt()
        means = (used[module].mean - true.mean).abs() / deviation
        deviations = ((used[module].variance + module.eps).sqrt() / deviation - 1).abs()
        worst = max(worst, means.max().item(), deviations.max().item())
    return worst


# --- tiles of an image ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Tile:
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


def grid_of(height: int, width: int, tile: int, reach: int) -> list[Tile]:
    """Tiles whose cores meet without overlap, `reach` or more away from the tiles' inner edges.

    They are of `tile` units a side, or of as many less as does not make them more.
    """
    tile = max(tile, 4 * reach)  # or else they would be mostly margin
    axes = []
    for length in (height, width):
        spans = tiles(length, tile, 2 * reach)
        if len(spans) > 1:
            side = math.ceil((length - 2 * reach) / len(spans)) + 2 * reach
            spans = tiles(length, side, 2 * reach)
        meet = [(one.stop + two.start) // 2 for one, two in pairwise(spans)]
        cores = [slice(*ends) for ends in pairwise([0, *meet, length])]
        axes.append(list(zip(spans, cores, strict=True)))
    return [Tile(rows, columns, top, left) for (rows, top), (columns, left) in product(*axes)]


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


def settled(
    run: Callable[[Tensor, How], Tensor],
    x: Tensor,
    grid: Sequence[Tile],
    tile: int,
    cut: int,
    put: int,
) -> Tensor:
    """`run` over x [1,C,h,w] in tiles, with the norms' statistics those of the whole.

    A unit of the tiles is `cut` positions of x and `put` positions of what `run` gives.
    """
    units = x[0, 0].numel() // cut**2
    stride = math.ceil(math.sqrt(units / KEYS))
    pilot = _mosaic(x, tile, cut)
    truth: Statistics = {}
    last: Statistics = {}
    keys: Keys = {}
    out: Tensor | None = None
    for number in range(PASSES):
        how = Pilot(truth, last, keys)
        run(pilot, how)
        truth, last = {}, how.found
        sampled: dict[AttnBlock, list[tuple[Tensor, Tensor]]] = {}
        for part in grid:
            piece = run(part.cut(x, cut), Tiled(part, how.used, keys, truth, sampled, stride))
            if out is None:
                height, width = (size // cut * put for size in x.shape[-2:])
                out = piece.new_empty((1, piece.shape[1], height, width))
            part.place(out, put).copy_(part.core(piece))
        if _disagreement(how.used, truth) <= TOLERANCE and (number or not keys):
            break
        keys = {
            block: (torch.cat([k for k, _ in parts], 1), torch.cat([v for _, v in parts], 1))
            for block, parts in sampled.items()
        }
    assert out is not None
    return out


def through(steps: Iterable[nn.Module], x: Tensor, how: How) -> Tensor:
    """Steps one after the other; at most three tensors of a step's size are held at a time."""
    for step in steps:
        if isinstance(step, ResnetBlock):
            h = how.norm(step.norm1, x)
            h = step.conv1(F.silu(h, inplace=True))
            h = how.norm(step.norm2, h)
            h = step.conv2(F.silu(h, inplace=True))
            x = h.add_(x if step.nin_shortcut is None else step.nin_shortcut(x))
            del h
        elif isinstance(step, AttnBlock):
            x = how.attend(step, x)
        else:
            x = step(x)
    return x


def _attended(block: AttnBlock, x: Tensor) -> Tensor:
    """Self attention with residual, for some rows of queries at a time: all it adds is k and v."""
    moments = Moments.of(x, block.norm.num_groups)
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


def _keys(block: AttnBlock, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [1,N,C] of normed features [1,C,h,w]."""
    k, v = (layer(hidden).flatten(2).transpose(1, 2) for layer in (block.k, block.v))
    return k, v


def _look(block: AttnBlock, hidden: Tensor, keys: tuple[Tensor, Tensor]) -> Tensor:
    """What positions, normed features [1,C,h,w], take from others: to be added to them."""
    queries = block.q(hidden).flatten(2).transpose(1, 2)
    attended = attention(queries, *keys, heads=1).transpose(1, 2)
    out: Tensor = block.proj_out(attended.reshape(hidden.shape))
    return out
