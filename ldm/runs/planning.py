"""Planning a run: every job that a command stands for, checked before anything heavy is loaded."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.engine.plan import Plan, make_plan, read_prompts
from ldm.errors import JobError, LdmError
from ldm.jobs.expansion import LIMIT, expand, expand_matrix
from ldm.jobs.fields import IMAGE_TASKS, PROMPTED
from ldm.jobs.files import Row, read_axes, read_rows
from ldm.jobs.image_formats import (
    LOSSY,
    check_encoders,
    check_name,
    ending_of,
    format_of,
    with_ending,
)
from ldm.jobs.inputs import expand_inputs
from ldm.jobs.legacy import pairs
from ldm.jobs.options import options_of
from ldm.jobs.outputs import OutputPlan
from ldm.jobs.seeds import parse_seeds
from ldm.jobs.templates import Template, parse
from ldm.runs.failures import Failures
from ldm.runs.manifest import Manifest, hash_of


@dataclass(frozen=True)
class Request:
    """What a command asks for: fields of `Job`, and where the images go.

    `script`: the defaults are those of the original scripts. `indir`: a folder of images and their
    masks, as inpaint.py took it. A request with either is plain: a file holds prompts, not jobs,
    and no manifest is kept.
    """

    fields: Mapping[str, Any]
    outputs: OutputPlan
    script: bool = False
    indir: str | None = None

    @property
    def plain(self) -> bool:
        """Whether it is a request in the manner of the original scripts."""
        return self.script or self.indir is not None

    @property
    def mark(self) -> str:
        """A hash by which the manifest knows a run that is started again."""
        words = {name: value for name, value in self.fields.items() if name != "seed"}
        outputs = self.outputs
        return hash_of([words, outputs.from_file, outputs.matrix, outputs.expand])


@dataclass(frozen=True)
class Item:
    """One job of a run; `number` counts the jobs and `start` the images before it.

    `place` is where it was written and `name` the template of its files in `folder`, if any.
    """

    plan: Plan
    number: int
    start: int
    place: str = ""
    name: Template | None = None
    folder: Path = Path()


@dataclass(frozen=True)
class RunPlan:
    """The jobs of a run in the order of their images, and how the images are named and recorded.

    `seed` is that of the run, None where it had no use for one, and `seed_is_new` whether it was
    drawn here. `axes` are the values of --matrix. `names` are the output files of images that are
    made of other images, by the names of these. `store` is the manifest, None where none is kept.
    """

    items: tuple[Item, ...]
    seed: int | None
    seed_is_new: bool
    axes: Sequence[Sequence[Mapping[str, Any]]]
    names: Mapping[str, str]
    template: Template | None
    store: Manifest | None
    notes: tuple[str, ...]

    @property
    def count(self) -> int:
        """Images of all jobs."""
        return sum(item.plan.job.count() for item in self.items)

    @property
    def is_named(self) -> bool:
        """Whether images are named one by one, by a template."""
        return any(item.name is not None for item in self.items)


def plan_run(request: Request, failures: Failures) -> RunPlan:
    """Plan every job of a request; finds all errors that can be found without the weights.

    Raises LdmError where a job cannot be done and the run does not go on without it.
    """
    outputs = request.outputs
    check_formats(outputs)
    template: Template | None = None
    store: Manifest | None = None
    if request.plain:
        _check_plain(outputs)
    else:
        template = _template(outputs)
        store = _open_store(outputs, template)
    rows, notes = pairs(request.indir, outputs.outdir) if request.indir is not None else ([], [])
    names = {row["init_img"]: row.pop("output") for row in rows}
    if outputs.format_out is not None:
        ending = ending_of(outputs.format_out)
        names = {image: str(Path(name).with_suffix(ending)) for image, name in names.items()}
    seed = _RunSeed.of(request, store)
    planner = _Planner(request, failures, template, rows, seed, list(notes))
    items = planner.items()
    return RunPlan(
        items=tuple(items),
        seed=seed.value,
        seed_is_new=seed.is_new,
        axes=planner.axes,
        names=names,
        template=template,
        store=store,
        notes=tuple(planner.notes),
    )


@dataclass
class _RunSeed:
    """The seed of a run: given, recorded by an earlier run of the same, or drawn when needed."""

    value: int | None
    is_new: bool = False

    @classmethod
    def of(cls, request: Request, store: Manifest | None) -> _RunSeed:
        """The given seed, or that of the run to be resumed; raises JobError."""
        seed = request.fields.get("seed")
        if seed is not None and request.fields.get("seeds") is not None:
            raise JobError("--seed and --seeds exclude each other; give one of them")
        value = seed if seed is not None and seed >= 0 else None
        if value is None and request.outputs.skip_existing and store is not None:
            value = store.seed(request.mark)
        return cls(value)

    def take(self, seed: int | None) -> None:
        """Set the seed to one that was drawn at random."""
        self.value, self.is_new = seed, True


class _Planner:
    """Goes through the rows of a request and the combinations of --matrix, job by job."""

    def __init__(
        self,
        request: Request,
        failures: Failures,
        template: Template | None,
        pairs: Sequence[Mapping[str, str]],
        seed: _RunSeed,
        notes: list[str],
    ) -> None:
        self.request, self.failures, self.template = request, failures, template
        self.pairs, self.seed, self.notes = pairs, seed, notes
        self.axes = read_axes(request.outputs.matrix, str(request.fields["task"]))

    def items(self) -> list[Item]:
        """Every job, with the number of images before it."""
        outputs, axes = self.request.outputs, self.axes
        swept = {name for axis in axes for value in axis for name in value}
        items: list[Item] = []
        start = 0
        for row in self._rows(keep_prompts="prompt" in swept):
            ahead = 0  # images in one combination of the row
            for asked in expand_matrix(row.fields, axes):
                try:
                    plans = self._plans(asked, start if "seed" not in swept else None)
                    name = self._name_of(asked)
                except LdmError as error:
                    self.failures.add(error, row.place)
                    continue
                folder = Path(outputs.outdir) if "output" in asked else Path()
                counts = [plan.job.count() for plan in plans]
                ahead = sum(counts) if outputs.seed_per_image else counts[0]
                for plan in plans:
                    before = items[-1].start + items[-1].plan.job.count() if items else 0
                    items.append(Item(plan, len(items), before, row.place, name, folder))
                if len(items) > LIMIT:
                    raise JobError(f"more than {LIMIT} jobs; split the file or the matrix")
            start += ahead
        if outputs.grid_xy and any(item.plan.job.count() != 1 for item in items):
            raise JobError("--grid-xy takes one image for each combination; omit --n_samples")
        return items

    def _rows(self, *, keep_prompts: bool) -> list[Row]:
        """The jobs of the command line, or of its file; bare prompts are one job."""
        outputs, fields = self.request.outputs, self.request.fields
        name = outputs.from_file
        if name is None:
            return [Row(dict(fields), "")]
        if self.request.plain:
            return [self._bare(fields, read_prompts(name, outputs.repeat))]
        shared = {key: value for key, value in fields.items() if key != "seed"}

        def pass_over(error: JobError) -> None:
            self.failures.add(error, name)

        rows = read_rows(name, shared, outputs.format, pass_over)
        rows = [row for row in rows for _ in range(outputs.repeat)]
        rest = {key: value for key, value in shared.items() if key != "prompt"}
        bare = all({**row.fields, "prompt": ""} == {**rest, "prompt": ""} for row in rows)
        keep_prompts = keep_prompts or "seeds" in shared
        if rows and bare and not keep_prompts and shared["task"] in PROMPTED:
            return [self._bare(shared, tuple(row.fields["prompt"] for row in rows))]
        return rows

    def _bare(self, fields: Mapping[str, Any], prompts: tuple[str, ...]) -> Row:
        """The one job of a file of prompts."""
        if "prompt" in fields:
            self.notes.append("--prompt is ignored: the prompts are those of --from-file")
        rest = {key: value for key, value in fields.items() if key != "prompt"}
        return Row({**rest, "prompts": prompts}, "")

    def _plans(self, asked: Mapping[str, Any], before: int | None) -> list[Plan]:
        """The plans of a job, one for each image it begins with.

        All have one seed, or with --seed-per-image count it on from image to image.
        """
        outputs = self.request.outputs
        given = {key: value for key, value in asked.items() if key != "output"}
        if outputs.seed_per_image and given.get("seeds") is not None:
            raise JobError("--seed-per-image counts on from --seed; omit --seeds")
        own = self._seed_of(given, before)
        if own is not None:
            given["seed"] = own
            if outputs.expand:
                given = _expanded(given, own)
        plans: list[Plan] = []
        for row in self.pairs or _init_images(given):
            here = {**given, **row}
            if plans:
                here |= _next_seeds(plans) if outputs.seed_per_image else _seed_of_all(plans)
            plans.append(make_plan(here, script=self.request.script))
        if self.seed.value is None and own is None:
            self.seed.take(plans[0].job.seed)
        return plans

    def _seed_of(self, given: dict[str, Any], before: int | None) -> int | None:
        """The seed of a job: its own, or that of the run plus the number of images `before`."""
        own: int | None = given.get("seed")
        if own is not None and self.request.outputs.from_file is not None:
            given.pop("seeds", None)  # the job has a seed of its own, --seeds is for the others
        if given.get("seeds") is not None:
            return parse_seeds(given["seeds"])[0]
        if own is not None and own >= 0:
            return own
        if self.seed.value is None and (before or self.request.outputs.expand):
            self.seed.take(secrets.randbelow(2**32))
            self.notes.append(f"seed {self.seed.value} (drawn at random)")
        if self.seed.value is None:
            return None
        return (self.seed.value + (before or 0) * int(given.get("seed_step", 1))) % 2**64

    def _name_of(self, asked: Mapping[str, Any]) -> Template | None:
        """The template of a job's names: its own, or that of the run."""
        if "output" not in asked:
            return self.template
        name = str(asked["output"])
        kind = self.request.outputs.format_out
        name = with_ending(name, kind)
        check_name(name, kind)
        check_encoders([format_of(name) or "png"])
        return parse(name)


def check_formats(outputs: OutputPlan) -> None:
    """Raise JobError for a format that cannot be written, or a quality that nothing takes."""
    kind = outputs.format_out or format_of(outputs.output or "") or "png"
    check_encoders([kind])
    if outputs.quality is not None and kind not in LOSSY and outputs.from_file is None:
        raise JobError(f"--quality: {kind} loses nothing; omit it, or choose {', '.join(LOSSY)}")


def _check_plain(outputs: OutputPlan) -> None:
    """Raise JobError for flags that a plain request does not take."""
    others = ("format", "matrix", "expand", "skip_existing", "keep_going", "dry_run")
    for name in (*others, "workers", "engine"):
        if getattr(outputs, name):
            flag = options_of(OutputPlan)[name].flags[0]
            raise JobError(f"{flag} goes with the commands of ldm, not with scripts/ or --indir")


def _open_store(outputs: OutputPlan, template: Template | None) -> Manifest | None:
    """The manifest of the folder that the images go to; raises JobError."""
    store: Manifest | None = None
    if template is not None and (template.fields or outputs.skip_existing):
        store = Manifest.open(template.folder)
    elif outputs.output is None and not outputs.skip_save:
        store = Manifest.open(Path(outputs.outdir))
    if outputs.skip_existing and store is None:
        raise JobError("--resume needs images in files; omit --skip_save and --output -")
    return store


def _template(outputs: OutputPlan) -> Template | None:
    """The template of --output; None where it does not name several files."""
    if outputs.output is None or outputs.output == "-":
        return None
    template = parse(outputs.output)
    if not template.fields and not outputs.skip_existing:
        return None
    check_name(outputs.output, outputs.format_out)
    return template


def _init_images(given: Mapping[str, Any]) -> list[dict[str, str]]:
    """The field that names each image a job begins with; one empty entry where it has none."""
    if given["task"] not in IMAGE_TASKS or given.get("init_img") is None:
        return [{}]
    return [{"init_img": str(path)} for path in expand_inputs([given["init_img"]])]


def _seed_of_all(plans: Sequence[Plan]) -> dict[str, Any]:
    """The field that gives an image of a folder the seed of the first."""
    return {"seed": plans[0].job.seed}


def _next_seeds(plans: Sequence[Plan]) -> dict[str, Any]:
    """The fields that give an image of a folder the seeds after those of the images before it.

    Of variations only the seed of the variation counts on, as within a job.
    """
    job = plans[0].job
    moved = sum(plan.job.count() for plan in plans) * job.seed_step
    if job.variation_seed is not None:
        return {"seed": job.seed, "variation_seed": (job.variation_seed + moved) % 2**64}
    assert job.seed is not None
    return {"seed": (job.seed + moved) % 2**64}


def _expanded(given: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The fields with the choices in their prompts made, for each image by its own seed."""
    times = int(given.get("n_iter", 1))
    texts = given.get("prompts") or (given.get("prompt", ""),) * int(given.get("n_samples", 1))
    prompts: list[str] = []
    for text in texts * times:
        prompts += expand(text, (seed + len(prompts) * given.get("seed_step", 1)) % 2**64)
        if len(prompts) > LIMIT:
            raise JobError(f"the prompts expand to more than {LIMIT}; use fewer choices")
    if prompts == list(texts * times):
        return dict(given)
    left = {name: value for name, value in given.items() if name not in ("prompt", "n_iter")}
    return {**left, "prompts": tuple(prompts)}
