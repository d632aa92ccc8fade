"""What each command does, once its command line is parsed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import typer

from ldm.cli.report import reporter
from ldm.engine.events import ImageWritten, Note, RunEnded, RunStarted
from ldm.engine.plan import make_plan
from ldm.errors import CheckpointError, Interrupted, JobError
from ldm.images.texts import read_record, read_texts
from ldm.jobs.legacy import sample_fields, translate
from ldm.jobs.metadata import Record, parse_infotext
from ldm.jobs.outputs import default_outdir, split
from ldm.runs.planning import check_formats
from ldm.runs.run import run
from ldm.runs.writer import Writer, written_fields
from ldm.workers.pool import load_engine


def generate(
    task: str, given: Mapping[str, Any], *, script: bool, notes: Sequence[str] = ()
) -> int:
    """Run a task; `given` are fields of Job, OutputPlan and Legacy, `notes` are reported first."""
    fields, more = translate(given, script=script, task=task)
    fields.setdefault("outdir", default_outdir(task))
    outputs, fields = split(fields)
    indir = given.get("indir")
    notes = [*notes, *more]
    return run(task, fields, outputs, notes, reporter(outputs), script=script, indir=indir)


def generate_samples(given: Mapping[str, Any]) -> int:
    """Run sample_diffusion.py; `given` are its flags, and fields of Job and OutputPlan."""
    fields, notes = sample_fields(given)
    return generate("sample", fields, script=True, notes=notes)


def rerun(image: str, given: dict[str, Any]) -> int:
    """Make an image again from its record; `given` replaces fields of its job."""
    record = read_record(Path(image))
    outputs, changes = split({"outdir": default_outdir(record.job.task), **given})
    _check_inputs(record, changes, image)
    outputs = replace(outputs, skip_grid=True)
    check_formats(outputs)
    if record.job.rng == "device" and record.job.device == "cuda" and "device" in changes:
        changes["rng"] = "philox"  # the numbers of the GPU that it was made on
    plan = make_plan({**vars(record.job), **changes})
    report = reporter(outputs)
    if plan.header.short_hash != record.hash:
        text = f"{plan.header.path} has hash {plan.header.short_hash}; {image} was made with"
        text = f"{text} {record.model}, hash {record.hash}"
        if "model" not in changes:
            raise CheckpointError(f"{text}; name that checkpoint with --model")
        report(Note(f"{text}: the image will differ"))
    writer = Writer(outputs, 1)
    engine, plan = load_engine(plan, vars(plan.job), report)
    status = "broken"
    report(RunStarted(images=1, jobs=1))
    try:
        for row, result in enumerate(engine.run(plan.job, report)):
            if row == record.row:
                path = writer.write(result)
                report(ImageWritten(written_fields(result, path), path))
        status = "done"
    except KeyboardInterrupt:
        status = "stopped"
        raise Interrupted(f"stopped; {writer.finished()}") from None
    finally:
        report(RunEnded(status))
    return 0


def _check_inputs(record: Record, changes: Mapping[str, Any], image: str) -> None:
    """Raise ImageError where what an image was made from is another now, unless it is replaced."""
    from ldm.images.sources import check_unchanged

    replaced = {vars(record.job)[name] for name in changes}
    check_unchanged({k: digest for k, digest in record.inputs.items() if k not in replaced}, image)


def info(file: str, *, as_json: bool) -> int:
    """Print how an image was made, or what a checkpoint is."""
    path = Path(file)
    try:
        with path.open("rb") as handle:
            start = handle.read(12)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise JobError(f"{file}: cannot be read ({reason})") from None
    if start.startswith((b"\x89PNG", b"\xff\xd8", b"GIF8", b"II*\0", b"MM\0*")) or (
        start[8:12] == b"WEBP" or start[4:12] == b"ftypavif"
    ):
        return _info_of_image(path, as_json=as_json)
    from ldm.cli.info import describe, format_description

    description = describe(path)
    typer.echo(
        json.dumps(asdict(description), default=str) if as_json else format_description(description)
    )
    return 0


def convert(source: str, target: str, *, dtype: str | None, ema: str, overwrite: bool) -> int:
    """Write a checkpoint again in another format or precision; prints its path."""
    from ldm.checkpoints.convert import Ema
    from ldm.checkpoints.convert import convert as write

    kinds: dict[str, Ema] = {"keep": "keep", "drop": "drop", "only": "only"}
    if ema not in kinds:
        raise JobError(f"--ema must be keep, drop or only, not {ema!r}")
    header = write(source, target, dtype, kinds[ema], overwrite=overwrite)
    typer.echo(header.path)
    return 0


def train(config: str, *, resume: bool, settings: Sequence[str]) -> int:
    """Train what a YAML describes; prints the path of the weights."""
    from ldm.training.train import run

    typer.echo(run(Path(config), resume=resume, overrides=settings))
    return 0


def _info_of_image(path: Path, *, as_json: bool) -> int:
    texts = read_texts(path)
    parameters, record = texts.get("parameters"), texts.get("ldm")
    if as_json:
        settings = None if parameters is None else vars(parse_infotext(parameters))
        content = {"parameters": settings, "ldm": None if record is None else json.loads(record)}
        typer.echo(json.dumps(content))
        return 0
    if parameters is None and record is None:
        typer.echo(f"{path}: contains no information about how it was made")
    if parameters is not None:
        typer.echo(parameters)
    if record is not None:
        typer.echo(json.dumps(json.loads(record), indent=2))
    return 0
