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
from ldm.errors import CheckpointError, ImageError, Interrupted, JobError
from ldm.images.texts import is_image
from ldm.jobs.legacy import sample_fields, translate
from ldm.jobs.metadata import Record
from ldm.jobs.outputs import default_outdir, split
from ldm.runs.from_image import Origin, fields_from_image, read_origin
from ldm.runs.planning import check_formats
from ldm.runs.run import run
from ldm.runs.writer import Writer, written_fields
from ldm.workers.pool import load_engine


def generate(
    task: str, given: Mapping[str, Any], *, script: bool, notes: Sequence[str] = ()
) -> int:
    """Run a task; `given` are fields of Job, OutputPlan and Legacy, `notes` are reported first."""
    fields, more = translate(given, script=script, task=task)
    if fields.get("from_image") is not None:
        taken, found = fields_from_image(fields["from_image"], task, fields)
        fields, more = {**taken, **fields}, [*more, *found]
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
    """Make an image again from the settings inside it; `given` replaces fields of its job."""
    origin = read_origin(Path(image))
    if origin.record is None:
        return _rerun_foreign(image, origin, given)
    record = origin.record
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


def _rerun_foreign(image: str, origin: Origin, given: Mapping[str, Any]) -> int:
    """Make the image of another program again; raises ImageError where it lacks a part."""
    settings = origin.settings
    if settings is not None and settings.task != "txt2img":
        raise ImageError(
            f"{image}: {settings.program} made it from another image, which is not in the file; "
            f"use ldm {settings.task} --from-image {image} --init-img FILE"
        )
    try:
        return generate("txt2img", {"skip_grid": True, **given, "from_image": image}, script=False)
    except JobError as error:
        raise JobError(f"{image}: {error} (other flags: ldm txt2img --from-image)") from None


def _check_inputs(record: Record, changes: Mapping[str, Any], image: str) -> None:
    """Raise ImageError where what an image was made from is another now, unless it is replaced."""
    from ldm.images.sources import check_unchanged

    replaced = {vars(record.job)[name] for name in changes}
    check_unchanged({k: digest for k, digest in record.inputs.items() if k not in replaced}, image)


def info(file: str, *, as_json: bool, raw: bool = False) -> int:
    """Print how an image was made, or what a checkpoint is."""
    path = Path(file)
    try:
        with path.open("rb") as handle:
            start = handle.read(12)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise JobError(f"{file}: cannot be read ({reason})") from None
    if is_image(start):
        from ldm.cli.image_info import show

        typer.echo(show(path, as_json=as_json, raw=raw))
        return 0
    from ldm.cli.info import describe, format_description

    description = describe(path)
    if as_json:
        hashes = {"autov2": description.hashes.autov2, "autov3": description.hashes.autov3}
        content = asdict(description)
        content["hashes"] |= hashes
        typer.echo(json.dumps(content, default=str))
    else:
        typer.echo(format_description(description))
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
