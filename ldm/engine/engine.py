"""The one driver: jobs and a model in, images out, whoever asks."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import takewhile

import numpy as np

from ldm.engine.batch_noise import Draws
from ldm.engine.batching import Part, fit, room, stands_alone
from ldm.engine.device import Policy
from ldm.engine.events import OnEvent, RunWarning, ignore, warn_once
from ldm.engine.fallbacks import Fallbacks
from ldm.engine.passes import Pass, passes_of
from ldm.engine.problem import Start
from ldm.engine.results import Result
from ldm.engine.stages import Stages
from ldm.engine.tasks import pads_inputs
from ldm.images.sources import Sources, digests, read_sources
from ldm.images.tensors import to_tensor
from ldm.jobs.job import Job
from ldm.jobs.metadata import Record
from ldm.models.model import Model

# So many times as many batches as are generated together are searched for those that fit.
_AHEAD = 4


class Engine:
    """Runs jobs on one model on the policy's device; `name` and `digest` are recorded.

    Batches of several jobs are put together here; `Stages` computes an image, and `Fallbacks` knows
    what to try where that fails.
    """

    def __init__(self, model: Model, policy: Policy, name: str = "", digest: str = "") -> None:
        self.model, self.policy = model, policy
        self.name, self.digest = name, digest
        self.stages = Stages(model, policy)
        self.fallbacks = Fallbacks(self.stages)

    def run(self, job: Job, on_event: OnEvent | None = None) -> Iterator[Result]:
        """The images of a resolved job in order, each as soon as it is done.

        Raises NonFiniteError where a stage gives no numbers even in float32, and OutOfMemory.
        """
        return self.run_all([job], on_event, 1)

    def run_all(
        self, jobs: Iterable[Job], on_event: OnEvent | None = None, at_once: int | None = None
    ) -> Iterator[Result]:
        """The images of resolved jobs in order; those of one shape are generated together.

        Their batches make up larger ones of `at_once` images or, by default, of as many as are
        quick and leave every image as it is alone, to the bit.
        """
        report = warn_once(on_event or ignore)
        waiting: list[Part] = []
        for part in self._parts(jobs, report):
            waiting.append(part)
            most = self._at_once(part, at_once)
            if len(waiting) >= (most if part.job.files() else _AHEAD * most if most > 1 else 1):
                yield from self._first(waiting, at_once, report)
        while waiting:
            yield from self._first(waiting, at_once, report)

    def _parts(self, jobs: Iterable[Job], report: OnEvent) -> Iterator[Part]:
        """The batches of all jobs, encoded; in a stream each waits until the last is sampled."""
        for job in jobs:
            padded = pads_inputs(job, self.model)
            sources = read_sources(
                job, self.model.multiple, padded=padded, factor=self.model.factor
            )
            hashes = digests(job)
            draws: Draws | None = None
            for batch in job.batches():
                start = time.perf_counter()
                if draws is None or batch.noise == "image":
                    draws = self.stages.draws(batch, sources)
                elif draws.restarts:
                    before = draws.position + draws.rows
                    draws = self.stages.draws(replace(batch, skip_draws=before), sources)
                here = replace(batch, skip_draws=draws.position)
                problem = self.fallbacks.encode(here, sources, draws, report)
                for text in problem.warnings:
                    report(RunWarning(text))
                part = Part(here, sources, hashes, draws, problem, slice(0, here.n_samples))
                part.seconds = time.perf_counter() - start
                yield part
                draws = part.draws

    def _first(self, waiting: list[Part], asked: int | None, report: OnEvent) -> Iterator[Result]:
        """Sample the first batch with others that fit; yield the images that are then next."""
        if waiting[0].latents is None:
            pack = self._pack(waiting, asked)
            count = sum(part.count for part in pack)
            start = time.perf_counter()
            self.fallbacks.sample(pack, report, exact=asked is None)
            for part in pack:
                part.seconds += (time.perf_counter() - start) * part.count / count
        done = list(takewhile(lambda part: part.latents is not None, waiting))
        del waiting[: len(done)]
        ready = sum(part.count for part in done)
        for part in done:
            ready -= part.count
            yield from self._images(part, self._after_passes(part, report), ready, report)

    def _pack(self, waiting: list[Part], asked: int | None) -> list[Part]:
        """The first batch, and those after it that can be sampled together with it."""
        first, *others = waiting
        pack, count, most = [first], first.count, self._at_once(first, asked)
        for part in others:
            if part.latents is None and count + part.count <= most and fit(first, part):
                pack.append(part)
                count += part.count
        return pack

    def _at_once(self, part: Part, asked: int | None) -> int:
        """How many images may be sampled together with a batch, its own included."""
        # A compiled network is compiled again for every size of a batch.
        if not stands_alone(part.job) or (self.policy.compiled and asked is None):
            return 1
        return asked or room(self.model.network.model_channels, part.draws.shape)

    def _after_passes(self, part: Part, report: OnEvent) -> Part:
        """The batch of the last pass over a sampled one; itself where there are no passes."""
        last = part
        for following in passes_of(part.job, self.model.factor):
            start = time.perf_counter()
            last = self._pass(last, following, report)
            part.seconds += time.perf_counter() - start
        return last

    def _pass(self, before: Part, following: Pass, report: OnEvent) -> Part:
        """The sampled batch of one pass, which goes on from the batch before."""
        job = following.job
        assert before.latents is not None
        assert job.width is not None
        assert job.height is not None
        if following.enlarge_latents is not None:
            latents = following.enlarge_latents(before.latents)
        else:
            assert following.enlarge_image is not None
            decoded = [self.fallbacks.decode(x[None], before.job, report) for x in before.latents]
            enlarged = np.stack([following.enlarge_image(x) for x in decoded])
            images = to_tensor(enlarged, self.policy.device)
            latents = self.fallbacks.encode_images(images, job, report)
        start = Start(latents, following.steps, before.job.steps or 0)
        sources = Sources((job.width, job.height), (job.width, job.height))
        draws = self.stages.draws(job, sources)
        problem = self.fallbacks.encode(job, sources, draws, report, start)
        rows = slice(0, job.n_samples)
        part = Part(job, sources, {}, draws, problem, rows, name=following.name)
        self.fallbacks.sample([part], report, exact=True)
        return part

    def _images(self, part: Part, last: Part, ready: int, report: OnEvent) -> Iterator[Result]:
        """Decode the `last` pass over a batch; `ready` images of other batches are sampled, too."""
        assert last.latents is not None
        for row, latent in enumerate(last.latents):
            start = time.perf_counter()
            image = self.fallbacks.decode(latent[None], last.job, report)
            yield Result(
                image=last.sources.finish(image, last.job),
                record=Record(part.job, row, self.name, self.digest, part.hashes),
                latent=latent.float().cpu(),
                seconds=part.seconds / part.job.n_samples + time.perf_counter() - start,
                depth=part.depth(),
                ready=ready + part.count - row - 1,
            )
