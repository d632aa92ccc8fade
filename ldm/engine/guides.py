"""What guides the denoiser: the conditionings of a batch's prompts, from step to step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ldm.jobs.conditions import numbers_of
from ldm.jobs.fields import CFG_PP_SAMPLERS
from ldm.jobs.job import Job
from ldm.jobs.loras import split_tags
from ldm.models.conditioner import Extras
from ldm.models.conditioning import Conditioning
from ldm.models.encoding import Memory, PromptEncoding
from ldm.models.model import Model
from ldm.text.schedule import Part, Stretch, split_and, stretches


@dataclass(frozen=True)
class Read:
    """A text that was encoded, and what was cut off its end, or ""; `what` it is a part of."""

    what: str
    text: str
    cut: str


Change = Callable[[Conditioning], Conditioning]


@dataclass(frozen=True)
class Guide:
    """What guides the denoiser up to its call `until`, counted from 0.

    `conds` are the prompts that AND joins, `weights` the factor of each for each of the B rows.
    `uncond` is None where nothing but the first prompt counts.
    """

    until: int
    conds: tuple[Conditioning, ...]
    weights: tuple[tuple[float, ...], ...]
    uncond: Conditioning | None

    @property
    def is_plain(self) -> bool:
        """Whether it is one prompt for each row, of the usual weight."""
        return len(self.conds) == 1 and all(weight == 1 for weight in self.weights[0])

    def with_sides(self, prompted: Change, unprompted: Change | None = None) -> Guide:
        """The same with each conditioning changed; `unprompted` is for that without a prompt."""
        uncond = None if self.uncond is None else (unprompted or prompted)(self.uncond)
        return replace(self, conds=tuple(map(prompted, self.conds)), uncond=uncond)

    def sides(self) -> list[Conditioning]:
        """All of its conditionings."""
        return [*self.conds, *([] if self.uncond is None else [self.uncond])]


def guides_of(
    job: Job,
    model: Model,
    memory: Memory | None,
    *,
    steps: int,
    before: int = 0,
    size: tuple[int, int] = (0, 0),
) -> tuple[tuple[Guide, ...], list[Read]]:
    """The guides of a resolved batch over so many `steps`, each a call of the denoiser.

    `before` are the steps of an earlier pass (see `ldm.text.schedule`), `size` is the generated
    image's, (width, height).
    """
    assert job.scale is not None
    encoding = PromptEncoding(job.prompt_syntax, job.clip_skip, job.t5_length)
    syntax = job.prompt_syntax
    texts_of = [split_tags(text, syntax)[0] for text in job.texts()]
    prompts = [split_and(text, syntax) for text in texts_of]
    most = max(map(len, prompts))
    rows = [[*parts, *[Part(parts[0].text, 0.0)] * (most - len(parts))] for parts in prompts]
    weights = tuple(tuple(parts[i].weight for parts in rows) for i in range(most))
    plain = most == 1 and all(weight == 1 for weight in weights[0])

    def timeline(text: str) -> list[Stretch]:
        second = job.hires is not None
        return stretches(text, steps, before, has_second_pass=second, syntax=syntax)

    lines = [[timeline(parts[i].text) for parts in rows] for i in range(most)]
    both = job.scale != 1 or not plain or job.sampler in CFG_PP_SAMPLERS
    negative = timeline(job.negative) if both else []
    second = [] if job.prompt_2 is None else timeline(job.prompt_2)
    second_negative = [] if job.negative_2 is None or not negative else timeline(job.negative_2)
    every = [*(line for part in lines for line in part), negative, second, second_negative]
    numbers, negative_numbers = numbers_of(job, size)
    found: list[Guide] = []
    last: object = None
    read: dict[Read, None] = {}
    for end in sorted({x.until for line in every for x in line}):
        texts = [[_at(line, end) for line in part] for part in lines]
        negatives, seconds, against = (
            tuple([_at(line, end)] * len(rows)) if line else ()
            for line in (negative, second, second_negative)
        )
        if last == (texts, negatives, seconds, against):
            found[-1] = replace(found[-1], until=end)
            continue
        last = (texts, negatives, seconds, against)
        conds = []
        extras = Extras(seconds, against or negatives, numbers)
        for part in texts:
            cond, tails = model.condition(part, encoding, negatives, memory, extras)
            read |= {Read("prompt", *pair): None for pair in zip(part, tails, strict=True)}
            conds.append(cond)
        uncond = None
        if negatives:
            extras = Extras(against, seconds, negative_numbers, zeros=job.unconditional == "zeros")
            uncond, tails = model.condition(negatives, encoding, texts[0], memory, extras)
            read[Read("negative prompt", negatives[0], tails[0])] = None
        found.append(Guide(end, tuple(conds), weights, uncond))
    return tuple(found), list(read)


def _at(line: Sequence[Stretch], step: int) -> str:
    """The text of a prompt at a step."""
    return next(x.text for x in line if step <= x.until)
