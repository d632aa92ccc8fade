"""The noise of a batch, drawn in the order of the originals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ldm.jobs.job import Job
from ldm.jobs.seeds import MAX_SEED, counted
from ldm.sampling.noise import ImageNoise, Noise, Rng, StreamNoise, slerp

RNGS: dict[str, Rng] = {"philox": "philox", "cpu": "cpu", "device": "device", "numpy": "cpu"}


class Draws(Noise):
    """The noise of a batch from its first draw on, in the order of the originals.

    In a stream: the fixed code where one is wanted, then the task's own draw (`first`), then what
    earlier batches drew. Every draw has as many rows as a full batch has, and a short one takes the
    first of them. `shape` and `first` are without the batch.

    Stable Diffusion 3 `restarts` its stream at each image, whose seeds count up, and encodes an
    image with the numbers that the sampler begins with (`sd3_infer.py`); `skip_draws` then counts
    the images before.
    """

    def __init__(
        self,
        batch: Job,
        shape: tuple[int, int, int],
        device: torch.device,
        first: tuple[int, ...] | None = None,
        *,
        restarts: bool = False,
    ) -> None:
        assert batch.seed is not None
        rng = RNGS[batch.rng]
        self.batch, self.shape, self.device = batch, shape, device
        self.rows = batch.draw_rows or batch.n_samples
        self.restarts = restarts and batch.noise == "stream"
        self.code: Tensor | None = None
        self.first: Tensor | None = None
        self.mixed: ImageNoise | None = None
        self.steps = 0  # tensors drawn from numpy after the start
        if batch.variation_seed is not None:
            self.mixed = ImageNoise(batch.variation_seeds(), rng, device)
        self.source: ImageNoise | StreamNoise
        if batch.noise == "image":
            self.source = ImageNoise(batch.image_seeds(), rng, device)
            if first is not None:
                self.first = self.source.draw((self.rows, *first))
        elif self.restarts:
            seeds = counted((batch.seed + batch.skip_draws) % (MAX_SEED + 1), 1, self.rows)
            self.source = ImageNoise(seeds, rng, device)
            if first is not None:
                self.first = ImageNoise(seeds, rng, device).draw((self.rows, *first))
        else:
            self.source = StreamNoise(batch.seed, rng, device)
            if batch.fixed_code:
                self.code = self.source.draw((self.rows, *shape))
            if first is not None:
                # The demo's image had its channels last in memory, and its noise, too.
                last = batch.task == "upscale"
                self.first = self.source.draw((self.rows, *first), channels_last=last)
            self.source.skip(batch.skip_draws, (self.rows, *shape))

    @property
    def position(self) -> int:
        """The tensors drawn from a stream since the fixed code and the task's own draw.

        Where it restarts, the images before this batch.
        """
        if self.restarts:
            return self.batch.skip_draws
        if isinstance(self.source, ImageNoise):
            return 0
        return self.source.draws - (self.code is not None) - (self.first is not None)

    def start(self, rows: int) -> Tensor:
        """The noise to start from [rows,C,h,w]: the fixed code, numpy's, or else a draw."""
        shape = (rows, *self.shape)
        if self.batch.rng == "numpy":
            return self._numpy(0, shape)
        noise = self.draw(shape) if self.code is None else self.code[: shape[0]]
        if self.batch.ensd:  # the steps draw from other seeds: the web UI's modules/rng.py
            seeds = [(seed + self.batch.ensd) % (MAX_SEED + 1) for seed in self.batch.image_seeds()]
            self.source = ImageNoise(seeds, RNGS[self.batch.rng], self.device)
        if self.mixed is None:
            return noise
        return slerp(self.batch.variation_strength, noise, self.mixed.draw((self.rows, *shape[1:])))

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """The next tensor."""
        drawn = self.source.draw((self.rows, *shape[1:]))[: shape[0]]
        if self.batch.rng == "numpy" and self.batch.schedule_compat == "sgm":
            self.steps += 1
            return self._numpy(self.steps, shape)
        return drawn

    def _numpy(self, number: int, shape: tuple[int, ...]) -> Tensor:
        """A tensor from a generator of its own, as generative-models' demo of SDXL-Turbo drew."""
        seed = ((self.batch.seed or 0) + number) & 0xFFFFFFFF
        numbers = np.random.RandomState(seed).randn(*shape)
        return torch.from_numpy(numbers.astype(np.float32)).to(self.device)

    def skip(self, draws: int, shape: tuple[int, ...]) -> None:
        """Pass over tensors."""
        self.source.skip(draws, (self.rows, *shape[1:]))


class Joined(Noise):
    """The noise of several batches as that of one: `parts` with the number of rows of each."""

    def __init__(self, parts: Sequence[tuple[Noise, int]]) -> None:
        self.parts = parts

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """The next tensor of each."""
        return torch.cat([noise.draw((rows, *shape[1:])) for noise, rows in self.parts])

    def skip(self, draws: int, shape: tuple[int, ...]) -> None:
        """Pass over tensors of each."""
        for noise, rows in self.parts:
            noise.skip(draws, (rows, *shape[1:]))


class Rows(Noise):
    """Some rows of the noise of a batch of `total`, drawn whole."""

    def __init__(self, noise: Noise, rows: slice, total: int) -> None:
        self.noise, self.rows, self.total = noise, rows, total

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """These rows of the next tensor."""
        return self.noise.draw((self.total, *shape[1:]))[self.rows]

    def skip(self, draws: int, shape: tuple[int, ...]) -> None:
        """Pass over tensors."""
        self.noise.skip(draws, (self.total, *shape[1:]))
