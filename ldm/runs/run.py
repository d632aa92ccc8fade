"""A run of `ldm`: one job, or those of a file or a matrix; what is done is not done again."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from ldm.engine.explain import explain
from ldm.engine.plan import Plan, make_plan, read_prompts
from ldm.engine.timing import timed
from ldm.errors import JobError, LdmError, UsageError
from ldm.jobs.expansion import LIMIT, expand, expand_matrix
from ldm.jobs.fields import PICTURED, PROMPTED
from ldm.jobs.files import Row, read_axes, read_rows
from ldm.jobs.inputs import expand_inputs
from ldm.jobs.legacy import pairs
from ldm.jobs.options import options_of
from ldm.jobs.outputs import OutputPlan
from ldm.jobs.seeds import parse_seeds
from ldm.jobs.templates import Template, parse
from ldm.runs.generate import Drawing, Item
from ldm.runs.manifest import Manifest, hash_of
from ldm.runs.progress import complain, teller
from ldm.workers.pool import load_engine

SOME_FAILED = 3


def run(
    task: str,
    fields: Mapping[str, Any],
    outputs: OutputPlan,
    notes: list[str],
    *,
    script: bool = False,
    indir: str | None = None,
) -> int:
    """Do a task as asked; `fields` are of Job. Returns 3 where some jobs failed.

    `script` is as for `make_plan`; `indir` is a folder of pictures and their masks.
    """
    with timed() as timings:
        code = Run(outputs, {**fields, "task": task}, notes, script=script, indir=indir).do()
    if outputs.timings:
        typer.echo(f"ldm: {timings.told()}", err=True)
    return code


class Run:
    """The jobs of one command, in the order of their pictures.

    A plain one, of a script of the originals or of --indir, has prompts in its file, not jobs, and
    keeps no record of what is done. `names` are the files of pictures made of other pictures.
    """

    def __init__(
        self,
        outputs: OutputPlan,
        fields: Mapping[str, Any],
        notes: list[str],
        *,
        script: bool = False,
        indir: str | None = None,
    ) -> None:
        self.outputs, self.fields, self.notes = outputs, fields, notes
        self.script, self.plain = script, script or indir is not None
        self.tell = teller(outputs)
        self.failed = 0
        self.drawn = False  # whether the seed was drawn here, or in an earlier run of the same
        words = {name: value for name, value in fields.items() if name != "seed"}
        self.mark = hash_of([words, outputs.from_file, outputs.matrix, outputs.expand])
        self.axes: list[list[dict[str, Any]]] = []
        self.pairs: list[dict[str, str]] = []
        self.template: Template | None = None
        self.store: Manifest | None = None
        if self.plain:
            _check_plain(outputs)
        else:
            self.open_store()
        if indir is not None:
            self.pairs, more = pairs(indir, outputs.outdir)
            notes += more
        self.names = {row["init_img"]: row.pop("output") for row in self.pairs}
        seed = fields.get("seed")
        if seed is not None and fields.get("seeds") is not None:
            raise JobError("--seed and --seeds both say which; give one")
        self.seed = seed if seed is not None and seed >= 0 else None
        if self.seed is None and outputs.skip_existing and self.store is not None:
            self.seed = self.store.seed(self.mark)

    def open_store(self) -> None:
        """Find out what the pictures are called, and which are there."""
        outputs = self.outputs
        self.template = _template(outputs)
        if self.template is not None and (self.template.fields or outputs.skip_existing):
            self.store = Manifest.open(self.template.folder)
        elif outputs.output is None and not outputs.skip_save:
            self.store = Manifest.open(Path(outputs.outdir))
        if outputs.skip_existing and self.store is None:
            raise JobError("--resume needs pictures in files; leave --skip_save and --output - out")

    def do(self) -> int:
        """Plan everything, then draw it; returns the exit code."""
        items = self.items()
        told = dict.fromkeys(note for item in items for note in item.plan.notes)
        for note in (*self.notes, *told):
            self.tell(note)
        if not items:
            return SOME_FAILED
        if self.outputs.print_config:
            plan = items[0].plan
            if not plan.choice.prediction_why:
                _, plan = load_engine(plan, plan.given, self.tell, script=self.script)
            typer.echo(explain(plan, as_json=self.outputs.json))
            return 0
        drawing = Drawing(self, items)
        if self.outputs.dry_run:
            drawing.tell_plan()
        else:
            drawing.draw()
        return SOME_FAILED if self.failed else 0

    def fail(self, error: LdmError, place: str) -> None:
        """Count a job that failed and go on, or raise where that is not wanted."""
        text = f"--from-file {place}: {error}" if place and place not in str(error) else str(error)
        if not self.outputs.keep_going or not place:
            raise type(error)(text) if isinstance(error, UsageError) else error
        complain(self.outputs, text)
        self.failed += 1

    # --- what is asked for ------------------------------------------------------------------------

    def items(self) -> list[Item]:
        """A plan for every job; all errors that can be found without weights are found here."""
        axes = self.axes = read_axes(self.outputs.matrix, str(self.fields["task"]))
        swept = {name for axis in axes for value in axis for name in value}
        items: list[Item] = []
        start = 0
        for row in self.rows(keep_prompts="prompt" in swept):
            ahead = 0  # pictures in one combination of the row's
            for asked in expand_matrix(row.fields, axes):
                try:
                    plans = self.plans(asked, start if "seed" not in swept else None)
                    name = self.name_of(asked)
                except LdmError as error:
                    self.fail(error, row.place)
                    continue
                folder = Path(self.outputs.outdir) if "output" in asked else Path()
                ahead = plans[0].job.count()
                for plan in plans:
                    before = items[-1].start + items[-1].plan.job.count() if items else 0
                    items.append(Item(plan, len(items), before, row.place, name, folder))
                if len(items) > LIMIT:
                    raise JobError(f"these are more than {LIMIT} jobs; take some out")
            start += ahead
        if self.outputs.grid_xy and any(item.plan.job.count() != 1 for item in items):
            raise JobError("--grid-xy wants one image for each combination; leave --n_samples out")
        return items

    def rows(self, *, keep_prompts: bool) -> list[Row]:
        """The jobs of the command line, or of its file; bare prompts are one job."""
        name = self.outputs.from_file
        if name is None:
            return [Row(dict(self.fields), "")]
        if self.plain:
            prompts = read_prompts(name, self.outputs.repeat)
            return [self.bare(self.fields, prompts)]
        shared = {key: value for key, value in self.fields.items() if key != "seed"}

        def pass_over(error: JobError) -> None:
            self.fail(error, name)

        rows = read_rows(name, shared, self.outputs.format, pass_over)
        rows = [row for row in rows for _ in range(self.outputs.repeat)]
        rest = {key: value for key, value in shared.items() if key != "prompt"}
        bare = all({**row.fields, "prompt": ""} == {**rest, "prompt": ""} for row in rows)
        keep_prompts = keep_prompts or "seeds" in shared
        if rows and bare and not keep_prompts and shared["task"] in PROMPTED:
            return [self.bare(shared, tuple(row.fields["prompt"] for row in rows))]
        return rows

    def bare(self, fields: Mapping[str, Any], prompts: tuple[str, ...]) -> Row:
        """The one job of a file of prompts."""
        if "prompt" in fields:
            self.notes.append("--prompt is ignored: the prompts are those of --from-file")
        rest = {key: value for key, value in fields.items() if key != "prompt"}
        return Row({**rest, "prompts": prompts}, "")

    def plans(self, asked: Mapping[str, Any], before: int | None) -> list[Plan]:
        """The plans of a job, one for each picture it begins with; all of one seed.

        Its own seed, or that of the run and as many more as there are pictures `before`.
        """
        given = {key: value for key, value in asked.items() if key != "output"}
        own = given.get("seed")
        if own is not None and self.outputs.from_file is not None:
            given.pop("seeds", None)  # a job's own seed, and those of the run
        if given.get("seeds") is not None:
            own = parse_seeds(given["seeds"])[0]
        elif own is None or own < 0:
            if self.seed is None and (before or self.outputs.expand):
                self.seed, self.drawn = secrets.randbelow(2**32), True
                self.notes.append(f"seed {self.seed} (drawn at random)")
            ahead = (before or 0) * given.get("seed_step", 1)
            own = None if self.seed is None else (self.seed + ahead) % 2**64
        if own is not None:
            given["seed"] = own
            if self.outputs.expand:
                given = _expanded(given, own)
        plans: list[Plan] = []
        for row in self.pairs or _pictures(given):
            here = {**given, **row}
            if plans:
                here["seed"] = plans[0].job.seed
            plans.append(make_plan(here, script=self.script))
        if self.seed is None and own is None:
            self.seed, self.drawn = plans[0].job.seed, True
        return plans

    def name_of(self, asked: Mapping[str, Any]) -> Template | None:
        """The template of a job's names: its own, or the run's."""
        if "output" not in asked:
            return self.template
        name = str(asked["output"])
        return parse(name if name.lower().endswith(".png") else f"{name}.png")


def _check_plain(outputs: OutputPlan) -> None:
    """Raise JobError for what the scripts of the originals do not take."""
    others = ("format", "matrix", "expand", "skip_existing", "keep_going", "dry_run")
    for name in (*others, "workers", "engine"):
        if getattr(outputs, name):
            flag = options_of(OutputPlan)[name].flags[0]
            raise JobError(f"{flag} goes with the commands of ldm, not with scripts/ or --indir")


def _pictures(given: Mapping[str, Any]) -> list[dict[str, str]]:
    """The fields that name each picture of a job to begin with; nothing where it has none."""
    if given["task"] not in PICTURED or given.get("init_img") is None:
        return [{}]
    return [{"init_img": str(path)} for path in expand_inputs([given["init_img"]])]


def _template(outputs: OutputPlan) -> Template | None:
    """The template of --output; None where it is no name for several files."""
    if outputs.output is None or outputs.output == "-":
        return None
    template = parse(outputs.output)
    if not template.fields and not outputs.skip_existing:
        return None
    if not outputs.output.lower().endswith(".png"):
        raise JobError(f"--output {outputs.output}: the name must end in .png")
    return template


def _expanded(given: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The fields with choices in their prompts made; each picture draws its own."""
    times = int(given.get("n_iter", 1))
    texts = given.get("prompts") or (given.get("prompt", ""),) * int(given.get("n_samples", 1))
    prompts: list[str] = []
    for text in texts * times:
        prompts += expand(text, (seed + len(prompts) * given.get("seed_step", 1)) % 2**64)
        if len(prompts) > LIMIT:
            raise JobError(f"the prompts stand for more than {LIMIT}; take some out")
    if prompts == list(texts * times):
        return dict(given)
    left = {name: value for name, value in given.items() if name not in ("prompt", "n_iter")}
    return {**left, "prompts": tuple(prompts)}
