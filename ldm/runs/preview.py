"""A dry run: every image that a run would make, listed without loading a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ldm.engine.events import ImagePlanned, Note, OnEvent
from ldm.jobs.image_formats import ending_of
from ldm.jobs.job import Job
from ldm.jobs.outputs import OutputPlan
from ldm.runs.existing import Existing, path_of, rows_of
from ldm.runs.files import Numbered
from ldm.runs.planning import Item, RunPlan
from ldm.runs.writer import planned_fields
from ldm.workers.pool import Engines


def list_images(
    planned: RunPlan, outputs: OutputPlan, existing: Existing, engines: Engines, report: OnEvent
) -> None:
    """Report every image of a run, with the file it would have or has."""
    samples = Numbered(Path(outputs.outdir) / "samples", "", 5, ending_of(outputs.format_out))
    following = samples.following()
    for item in planned.items:
        for at, (batch, row) in enumerate(rows_of(item.plan.job)):
            if row == 0:
                paths = _existing(item, batch, existing, engines)
            path, done = paths[row], paths[row] is not None
            if item.name is not None:
                path = path or path_of(item, batch, row, item.start + at)
            elif path is None and not outputs.skip_save:
                path = samples.folder / f"{following:05d}{samples.ending}"
                following += 1
            if outputs.output is not None and item.name is None:
                path = Path(outputs.output)
            header = item.plan.header
            fields = planned_fields(batch, row, path, header.path.stem, header.short_hash)
            report(ImagePlanned({**fields, "done": done}))
    text = f"{len(planned.items)} jobs, {planned.count} images; dry run, nothing was generated"
    report(Note(text))


def _existing(item: Item, batch: Job, existing: Existing, engines: Engines) -> list[Path | None]:
    """The images of a batch that a resumed run would locate, as far as is known without a model."""
    if item.plan.choice.prediction_why and batch.noise == "image" and existing.store is not None:
        return existing.batch(item, engines.job(replace(item.plan, job=batch)))
    return [None] * batch.n_samples
