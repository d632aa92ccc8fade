"""What each command does, once its words are understood."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ldm.errors import CheckpointError, Interrupted, JobError
from ldm.inputs import expand_inputs
from ldm.job import Job
from ldm.legacy import pairs, sample_fields, translate
from ldm.metadata import Record, encode_png, parse_infotext, read_record, read_texts
from ldm.options import options_of
from ldm.output import Numbered, check_folder, check_output, write_file
from ldm.outputs import OutputPlan, default_outdir
from ldm.plan import Plan, explain, make_plan, read_prompts, resolve

if TYPE_CHECKING:
    from ldm.device import Policy
    from ldm.engine import Engine, Event, Result
    from ldm.images import Picture
    from ldm.model import Model


def draw(task: str, given: Mapping[str, Any], *, script: bool, notes: Sequence[str] = ()) -> int:
    """Do a task as asked; `given` are fields of Job, OutputPlan and Legacy, `notes` to be told."""
    fields, more = translate(given, script=script, task=task)
    notes = [*notes, *more]
    fields.setdefault("outdir", default_outdir(task))
    outputs, fields = _split(fields)
    if not script and given.get("indir") is None:
        from ldm.runs import run

        return run(task, fields, outputs, notes)
    _check_plain(outputs)
    rows: list[dict[str, str]] = []
    if given.get("indir") is not None:
        rows, more = pairs(given["indir"], outputs.outdir)
        notes += more
    if outputs.from_file is not None:
        fields["prompts"] = read_prompts(outputs.from_file, outputs.repeat)
        if fields.pop("prompt", None) is not None:
            notes.append("--prompt is ignored: the prompts are those of --from-file")
    names = {row["init_img"]: row.pop("output") for row in rows}
    plans = _plans({**fields, "task": task}, rows, script=script)
    plan = plans[0]
    tell = _teller(outputs)
    for note in (*notes, *plan.notes):
        tell(note)
    if outputs.print_config:
        if not plan.choice.prediction_why:
            _, plan = _load(plan, plan.given, tell, script=script)
        typer.echo(explain(plan, as_json=outputs.json))
        return 0
    sink = Sink(outputs, sum(each.job.count() for each in plans), plan.job.n_samples, names)
    engine, settled = _load(plan, plan.given, tell, script=script)
    tell(_summary(settled, engine))
    jobs = [settled.job, *(_settle(each, settled) for each in plans[1:])]
    with Progress(tell, shown=_shows_progress(outputs)) as progress:
        _consume(chain.from_iterable(engine.run(job, progress) for job in jobs), sink)
    sink.close()
    return 0


def _check_plain(outputs: OutputPlan) -> None:
    """Raise JobError for what the scripts of the originals do not take."""
    for name in ("format", "matrix", "expand", "skip_existing", "keep_going", "dry_run"):
        if getattr(outputs, name):
            flag = options_of(OutputPlan)[name].flags[0]
            raise JobError(f"{flag} goes with the commands of ldm, not with scripts/ or --indir")


def draw_samples(given: Mapping[str, Any]) -> int:
    """Do what sample_diffusion.py did; `given` are its flags, and fields of Job and OutputPlan."""
    fields, notes = sample_fields(given)
    return draw("sample", fields, script=True, notes=notes)


def _plans(
    fields: Mapping[str, Any], rows: Sequence[Mapping[str, str]], *, script: bool
) -> list[Plan]:
    """A plan for each picture to begin with, or the one where there is none; all of one seed.

    `rows` are fields of each picture, where they are known.
    """
    if not rows and fields.get("init_img") is None:
        return [make_plan(fields, script=script)]
    plans: list[Plan] = []
    for row in rows or [{"init_img": str(path)} for path in expand_inputs([fields["init_img"]])]:
        given = {**fields, **row}
        if plans:
            given["seed"] = plans[0].job.seed
        plans.append(make_plan(given, script=script))
    return plans


def _settle(plan: Plan, settled: Plan) -> Job:
    """The job of another picture, with what loading told of the first."""
    names = ("device", "precision", "prediction")
    return replace(plan.job, **{name: getattr(settled.job, name) for name in names})


def rerun(image: str, given: dict[str, Any]) -> int:
    """Make an image again from its record; `given` replaces fields of its job."""
    record = read_record(Path(image))
    outputs, changes = _split({"outdir": default_outdir(record.job.task), **given})
    _check_inputs(record, changes, image)
    outputs = replace(outputs, skip_grid=True)
    if record.job.rng == "device" and record.job.device == "cuda" and "device" in changes:
        changes["rng"] = "philox"  # the numbers of the GPU that it was made on
    plan = make_plan({**vars(record.job), **changes})
    tell = _teller(outputs)
    if plan.header.short_hash != record.hash:
        text = f"{plan.header.path} has hash {plan.header.short_hash}; {image} was made with"
        text = f"{text} {record.model}, hash {record.hash}"
        if "model" not in changes:
            raise CheckpointError(f"{text}; name that checkpoint with --model")
        tell(f"{text}: it will be another picture")
    sink = Sink(outputs, 1, 1)
    engine, plan = _load(plan, vars(plan.job), tell, rerun=True)
    with Progress(tell, shown=_shows_progress(outputs)) as progress:
        rows = engine.run(plan.job, progress)
        _consume((result for row, result in enumerate(rows) if row == record.row), sink)
    sink.close()
    return 0


def _check_inputs(record: Record, changes: Mapping[str, Any], image: str) -> None:
    """Raise ImageError where what an image was made from is another now, unless it is replaced."""
    from ldm.sources import check_unchanged

    replaced = {vars(record.job)[name] for name in changes}
    check_unchanged({k: told for k, told in record.inputs.items() if k not in replaced}, image)


def info(file: str, *, as_json: bool) -> int:
    """Print what an image or a checkpoint tells of itself."""
    path = Path(file)
    try:
        with path.open("rb") as handle:
            start = handle.read(12)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise JobError(f"{file}: cannot be read ({reason})") from None
    if start.startswith((b"\x89PNG", b"\xff\xd8", b"GIF8")) or start[8:12] == b"WEBP":
        return _info_of_image(path, as_json=as_json)
    from ldm.description import describe, format_description

    description = describe(path)
    typer.echo(
        json.dumps(asdict(description), default=str) if as_json else format_description(description)
    )
    return 0


def convert(source: str, target: str, *, dtype: str | None, ema: str, overwrite: bool) -> int:
    """Write a checkpoint anew in another format or precision; prints its path."""
    from ldm.convert import Ema
    from ldm.convert import convert as write

    kinds: dict[str, Ema] = {"keep": "keep", "drop": "drop", "only": "only"}
    if ema not in kinds:
        raise JobError(f"--ema must be keep, drop or only, not {ema!r}")
    header = write(source, target, dtype, kinds[ema], overwrite=overwrite)
    typer.echo(header.path)
    return 0


def train(config: str, *, resume: bool, settings: Sequence[str]) -> int:
    """Train what a YAML describes; prints the path of the weights."""
    from ldm.train import run

    typer.echo(run(Path(config), resume=resume, overrides=settings))
    return 0


def _info_of_image(path: Path, *, as_json: bool) -> int:
    texts = read_texts(path)
    parameters, record = texts.get("parameters"), texts.get("ldm")
    if as_json:
        told = None if parameters is None else vars(parse_infotext(parameters))
        content = {"parameters": told, "ldm": None if record is None else json.loads(record)}
        typer.echo(json.dumps(content))
        return 0
    if parameters is None and record is None:
        typer.echo(f"{path}: nothing is written in it about how it was made")
    if parameters is not None:
        typer.echo(parameters)
    if record is not None:
        typer.echo(json.dumps(json.loads(record), indent=2))
    return 0


# --- loading and running --------------------------------------------------------------------------


def _split(fields: Mapping[str, Any]) -> tuple[OutputPlan, dict[str, Any]]:
    """The fields of OutputPlan as one, and the others."""
    names = options_of(OutputPlan)
    outputs = OutputPlan(**{name: value for name, value in fields.items() if name in names})
    outputs.validate()
    return outputs, {name: value for name, value in fields.items() if name not in names}


def _load(
    plan: Plan,
    given: Mapping[str, Any],
    tell: Callable[[str], None],
    *,
    script: bool = False,
    rerun: bool = False,
) -> tuple[Engine, Plan]:
    """The engine for a plan, and the plan with what only loading could tell."""
    from ldm.device import choose
    from ldm.engine import Engine
    from ldm.load import load_model

    job = plan.job
    policy = choose(job.device, job.precision, job.attention, dict(os.environ))
    for note in policy.notes if "precision" in given else ():
        tell(note)
    loaded = load_model(
        plan.header.path, plan.config, job.overrides, job.prediction, policy.dtype, policy.device
    )
    _swap_parts(loaded.model, job, policy)
    for note in loaded.notes:
        tell(note)
    if not plan.choice.prediction_why:
        tell(f"the network predicts {loaded.family.prediction} ({loaded.prediction_why})")
        choice = replace(plan.choice, family=loaded.family, prediction_why=loaded.prediction_why)
        plan = resolve(replace(plan, choice=choice), loaded.family.defaults, given, script=script)
    settled = replace(
        plan.job,
        device=policy.device.type,
        precision=policy.precision,
        prediction=loaded.family.prediction,
    )
    engine = Engine(loaded.model, policy, loaded.name, loaded.digest)
    return engine, replace(plan, job=settled)


def _swap_parts(model: Model, job: Job, policy: Policy) -> None:
    """Put another autoencoder or depth network in the model's place of them, where asked."""
    if job.vae is not None:
        from ldm.load import swap_autoencoder

        swap_autoencoder(model, Path(job.vae))
    if job.depth_model is not None:
        from ldm.depth import load_depth_model

        model.depth_model = load_depth_model(job.depth_model, policy.dtype, policy.device)


def _consume(results: Iterable[Result], sink: Sink) -> None:
    try:
        for result in results:
            sink.write(result)
    except KeyboardInterrupt:
        raise Interrupted(f"stopped; {sink.kept()}") from None


@dataclass
class Sink:
    """Where the pictures of a run go: numbered files, one file, or standard output.

    `names` are files for the pictures made of other pictures, by their names. Making a sink checks
    that they all can be written.
    """

    outputs: OutputPlan
    count: int
    columns: int
    names: Mapping[str, str] = field(default_factory=dict)
    pictures: list[Picture] = field(default_factory=list)
    written: int = 0
    parameters: str = ""

    def __post_init__(self) -> None:
        outputs = self.outputs
        folder = Path(outputs.outdir)
        self.samples = Numbered(folder / "samples", "", 5)
        self.grids = Numbered(folder, "grid-", 4)
        if outputs.save_depth is not None:
            check_output(outputs.save_depth, 1, overwrite=outputs.overwrite, flag="--save-depth")
        if outputs.output is not None:
            check_output(outputs.output, self.count, overwrite=outputs.overwrite)
        elif self.names:
            for name in self.names.values():
                each = self.count // len(self.names)
                check_output(name, each, overwrite=outputs.overwrite, flag="--indir:")
        elif not (outputs.skip_save and outputs.skip_grid):
            check_folder(folder / "samples", "--outdir")

    def write(self, result: Result) -> None:
        """Put one picture where it belongs, at once, and tell it on standard output."""
        record = result.record
        texts = {"parameters": record.infotext(), "ldm": record.to_json()}
        path = self._place(encode_png(result.picture, texts), record.job.init_img)
        self.written += 1
        if self._has_grid():
            self.pictures.append(result.picture)
            self.parameters = self.parameters or texts["parameters"]
        if self.outputs.save_depth is not None and result.depth is not None:
            self._save_depth(self.outputs.save_depth, result)
        if self.outputs.json:
            typer.echo(json.dumps(_told(result, path)))
        elif path is not None:
            typer.echo(path)

    def close(self) -> None:
        """Write the grid, once all pictures are there."""
        sizes = {picture.shape for picture in self.pictures}
        if not self._has_grid() or len(sizes) != 1:  # pictures of several sizes make no grid
            return
        from ldm.images import grid

        sheet = grid(self.pictures, self.outputs.n_rows or self.columns)
        path = self.grids.write(encode_png(sheet, {"parameters": self.parameters}))
        if not self.outputs.json:
            typer.echo(path)

    def kept(self) -> str:
        """What an interrupted run leaves behind."""
        if self.written == 0 or self.outputs.skip_save:
            return "no image was finished"
        where = self.outputs.outdir if self.names else str(self.samples.folder)
        where = self.outputs.output or where
        return f"{self.written} of {self.count} images are in {where}"

    def _has_grid(self) -> bool:
        return not (self.outputs.skip_grid or self.outputs.output or self.names)

    def _save_depth(self, name: str, result: Result) -> None:
        """The depth of the first picture, beside what is drawn from it."""
        from ldm.depth import depth_picture

        assert result.depth is not None
        if self.written == 1:
            plane = depth_picture(result.depth, 16, source=result.record.job.depth or "the picture")
            write_file(Path(name), encode_png(plane, {}), overwrite=self.outputs.overwrite)

    def _place(self, content: bytes, made_of: str | None) -> Path | None:
        name = self.names.get(made_of or "", self.outputs.output)
        if name == "-":
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
            return None
        if name is not None:
            write_file(Path(name), content, overwrite=self.outputs.overwrite)
            return Path(name)
        return None if self.outputs.skip_save else self.samples.write(content)


def _told(result: Result, path: Path | None) -> dict[str, Any]:
    job = result.record.job
    return {
        "path": None if path is None else str(path),
        "seed": result.seed,
        "prompt": result.prompt,
        "negative": job.negative,
        "width": job.width,
        "height": job.height,
        "steps": job.steps,
        "sampler": job.sampler,
        "scale": job.scale,
        "model": result.record.model,
        "hash": result.record.hash,
        "seconds": round(result.seconds, 3),
    }


# --- talking --------------------------------------------------------------------------------------


def _teller(outputs: OutputPlan) -> Callable[[str], None]:
    """How notes are told: on standard error, unless they are not wanted."""
    return (
        (lambda text: None)
        if outputs.quiet
        else (lambda text: typer.echo(f"ldm: {text}", err=True))
    )


def _summary(plan: Plan, engine: Engine) -> str:
    job, policy = plan.job, engine.policy
    scale = "" if job.scale == 1 else f", scale {job.scale:g}"
    drawn = " (drawn at random)" if plan.why["seed"] == "drawn at random" else ""
    return (
        f"{engine.name} on {policy.device}, {policy.precision} precision; {job.count()} x "
        f"{job.width}x{job.height}, {job.steps} steps of {job.sampler}{scale}, "
        f"seed {job.seed}{drawn}"
    )


def _shows_progress(outputs: OutputPlan) -> bool:
    return not outputs.quiet and sys.stderr.isatty()


class Progress:
    """A bar of the steps of each batch on a terminal; warnings everywhere."""

    def __init__(self, tell: Callable[[str], None], *, shown: bool) -> None:
        self.tell = tell
        self.shown = shown
        self.bar: Any = None

    def __call__(self, event: Event) -> None:
        if event.kind == "warning":
            self._end()
            self.tell(f"warning: {event.text}")
        elif event.kind == "batch" and self.shown:
            from tqdm import tqdm

            self._end()
            self.bar = tqdm(total=event.total, leave=False, unit="step")
        elif self.bar is not None:
            self.bar.update(event.done - self.bar.n)
            if event.done == event.total:
                self._end()  # before the paths of the pictures are told

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
