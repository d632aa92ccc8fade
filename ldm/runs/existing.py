"""Images that exist already, located by their fingerprints; a resumed run skips them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ldm.errors import ImageError, JobError
from ldm.images.texts import read_record
from ldm.jobs.image_formats import format_of
from ldm.jobs.job import Job, to_record
from ldm.jobs.outputs import OutputPlan
from ldm.jobs.templates import check_names, values_of
from ldm.runs.manifest import Manifest, fingerprint, hash_of
from ldm.runs.planning import Item, RunPlan


class Existing:
    """The images of a run that exist; none unless it is resumed.

    Making one records images without a line in the manifest (a run was killed between the two, or
    the lines were lost) and checks the names of all images. Raises JobError where a name would be
    used twice or is in use.
    """

    def __init__(self, planned: RunPlan, outputs: OutputPlan) -> None:
        self.store = planned.store if outputs.skip_existing else None
        # The same image may be asked for twice: so many of a fingerprint are located.
        self._located: Counter[str] = Counter()
        names = _paths(planned)
        if self.store is not None:
            samples = Path(outputs.outdir) / "samples"
            files = samples.iterdir() if planned.template is None and samples.is_dir() else ()
            numbered = sorted(path for path in files if format_of(path))
            _adopt(self.store, (*names, *numbered), write=not outputs.dry_run)
        if planned.is_named:
            check_names(names, overwrite=True)
            if self.store is not None:
                names = [path for path in names if not self.store.has(path)]
            check_names(names, overwrite=outputs.overwrite)

    def batch(self, item: Item, batch: Job) -> list[Path | None]:
        """The file of each image of a batch, None for one that does not exist.

        Only where all exist do they count as located.
        """
        if self.store is None:
            return [None] * batch.n_samples
        from ldm.images.sources import digests

        inputs = digests(batch)
        located, paths = Counter(self._located), []
        for row in range(batch.n_samples):
            mark = fingerprint(batch, row, item.plan.header.short_hash, inputs)
            paths.append(self.store.done(mark, located[mark]))
            located[mark] += 1
        if all(paths):
            self._located = located
        return paths

    def stream(self, job: Job) -> tuple[Path, ...]:
        """The files of a job whose images come of one stream of noise, if all of them exist."""
        return self.store.complete(hash_of(to_record(job))) if self.store is not None else ()

    def image(self, mark: str) -> Path | None:
        """The file of the next image of a fingerprint."""
        if self.store is None:
            return None
        path = self.store.done(mark, self._located[mark])
        self._located[mark] += 1
        return path

    def deleted(self, mark: str) -> Path | None:
        """The file that an image of a fingerprint had before it was deleted."""
        return None if self.store is None else self.store.missing(mark)


def path_of(item: Item, batch: Job, row: int, index: int) -> Path:
    """The file of an image that has a name; `index` is its number in the run."""
    assert item.name is not None
    model = item.plan.header.path.stem
    values = values_of(batch, row, index=index, number=item.number, model=model)
    return item.folder / item.name.name(values)


def rows_of(job: Job) -> Iterator[tuple[Job, int]]:
    """The batch and row of every image of a job."""
    for batch in job.batches():
        for row in range(batch.n_samples):
            yield batch, row


def _paths(planned: RunPlan) -> list[Path]:
    """The files of all images that are named one by one."""
    return [
        path_of(item, batch, row, item.start + at)
        for item in planned.items
        if item.name is not None
        for at, (batch, row) in enumerate(rows_of(item.plan.job))
    ]


def _adopt(store: Manifest, paths: tuple[Path, ...], *, write: bool) -> None:
    """Record images of ours that have no line in the manifest."""
    for path in paths:
        if store.has(path) or not path.is_file():
            continue
        try:
            record = read_record(path)
        except (ImageError, JobError):
            continue  # made by another program
        mark = fingerprint(record.job, record.row, record.hash, record.inputs)
        store.add(mark, path, record.job.image_seeds()[record.row], write=write)
