"""The work on planned jobs: models, batches, files and the record of what is done."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ldm.engine.cancel import Cancel, Cancelled
from ldm.engine.plan import Plan
from ldm.errors import ImageError, Interrupted, JobError, LdmError, OutputClosed
from ldm.images.texts import read_record, read_texts
from ldm.jobs.job import Job, to_record
from ldm.jobs.templates import Template, check_names, values_of
from ldm.runs.files import Numbered
from ldm.runs.interrupts import Interrupts
from ldm.runs.manifest import Manifest, fingerprint, hash_of
from ldm.runs.progress import Progress, complain
from ldm.runs.writer import Sink, told, told_before
from ldm.workers.pool import Engines, Outcome, in_use, model_key, taken_over

if TYPE_CHECKING:
    from ldm.engine.results import Event, Result
    from ldm.runs.run import Run


_WAVE = 64  # batches that are looked through for those that can be drawn together


@dataclass(frozen=True)
class Item:
    """One job of a run; `number` counts the jobs and `start` the pictures before it.

    `place` is where it was written, `name` its files' names in `folder`; neither need be.
    """

    plan: Plan
    number: int
    start: int
    place: str = ""
    name: Template | None = None
    folder: Path = Path()


@dataclass(frozen=True)
class Entry:
    """One batch of a job, or the whole job where it is a stream.

    Its first picture is the `index`th of the run; `paths` are its pictures, where all are there.
    """

    item: Item
    batch: Job
    index: int
    paths: tuple[Path, ...] = ()


class Unrepeated(Numbered):
    """Numbered files, where one that is there already is not written once more."""

    def write(self, content: bytes) -> Path:
        """The file of this content: one that is there, or a new one."""
        for path in sorted(self.folder.glob(f"{self.prefix}*.png")):
            if path.stat().st_size == len(content) and path.read_bytes() == content:
                return path
        return super().write(content)


@dataclass
class Drawing:
    """The work on planned jobs."""

    run: Run
    items: list[Item]
    engines: Engines = field(init=False)
    progress: Progress = field(init=False)
    cancel: Cancel = field(default_factory=Cancel)
    interrupts: Interrupts = field(init=False)
    taken: Counter[str] = field(default_factory=Counter)
    there: int = 0
    lost: set[int] = field(default_factory=set)  # jobs that failed

    def __post_init__(self) -> None:
        outputs, store = self.run.outputs, self.run.store
        self.interrupts = Interrupts(
            self.cancel, quiet=outputs.quiet or outputs.progress == "jsonl"
        )
        if outputs.spread:
            from ldm.workers.crew import crew_of

            made: Engines = crew_of(outputs, self.run.tell, self.cancel)
        else:
            made = Engines(self.run.tell, self.run.script, outputs.tuning)
        self.engines = taken_over(made)
        self.count = sum(item.plan.job.count() for item in self.items)
        self.named = any(item.name is not None for item in self.items)
        if store is not None and outputs.skip_existing:
            self.adopt(store)
        if self.named:
            self.check_names()
        if not outputs.dry_run:
            # Names of pictures are set one by one.
            plain = replace(outputs, output=None, skip_save=True, skip_grid=True)
            columns = self.items[0].plan.job.n_samples
            self.sink = Sink(plain if self.named else outputs, self.count, columns, self.run.names)
            self.sink.axes = self.run.axes
            if self.named and store is not None:
                self.sink.where = str(store.folder)
            if outputs.skip_existing:
                self.sink.grids = Unrepeated(self.sink.grids.folder, self.sink.grids.prefix, 4)

    def draw(self) -> None:
        """Draw everything that is not there; whatever ends it, what is kept is told."""
        run, outputs = self.run, self.run.outputs
        status = "broken"
        self.progress = Progress(outputs, self.count, len(self.items), counts=outputs.spread)
        try:
            with self.progress, self.interrupts, in_use(self.engines):
                if run.store is not None and run.drawn and run.seed is not None:
                    run.store.note_seed(run.mark, run.seed)
                self.draw_items()
            if self.there:
                run.tell(f"{self.there} of {self.count} images were there already")
            self.sink.close()
            if gone := self.sink.gone():
                complain(outputs, f"{gone} of {self.count} images are gone: something deleted them")
                run.failed += gone
            status = "failed" if run.failed else "done"
        except (Cancelled, KeyboardInterrupt):
            status = "stopped"
            raise Interrupted(f"stopped; {self.sink.kept()}") from None
        except BrokenPipeError:
            text = f"nobody reads standard output any more; {self.sink.kept()}"
            raise OutputClosed(text) from None
        except OSError as error:
            named = f"{error.filename}: " if error.filename else ""
            text = f"{named}{error.strerror or error}; {self.sink.kept()}"
            raise LdmError(text) from error
        finally:
            self.progress.end(status, run.failed)

    def draw_items(self) -> None:
        """Draw all jobs: the batches of many at a time, for the engine to put together."""
        wave: list[Entry] = []
        resume = self.run.outputs.skip_existing
        for item in self.items:
            if wave and model_key(item.plan) != model_key(wave[0].item.plan):
                self.draw_wave(wave)
            for entry in self.asked(item, wave):
                wave.append(entry)
                # Of a stream it is only known when it is drawn what is there of the next one.
                whole = resume and entry.batch.noise == "stream"
                if whole or len(wave) >= _WAVE * self.engines.spread:
                    self.draw_wave(wave)
        self.draw_wave(wave)

    def asked(self, item: Item, wave: list[Entry]) -> Iterator[Entry]:
        """The batches of a job; where they cannot be told, what came before is drawn first."""
        try:
            yield from self.entries(item)
        except LdmError as error:
            self.draw_wave(wave)
            self.run.fail(error, item.place)

    def entries(self, item: Item) -> Iterator[Entry]:
        """The batches of a job; those of a stream depend on each other, and stay together."""
        store, resume = self.run.store, self.run.outputs.skip_existing
        job = self.engines.job(item.plan)
        if job.noise == "stream":
            there = store.complete(hash_of(to_record(job))) if store is not None and resume else ()
            yield Entry(item, job, item.start, there)
            return
        index = item.start
        for batch in job.batches():
            paths = self.found(item, batch) if resume else [None]
            there = tuple(path for path in paths if path is not None)
            yield Entry(item, batch, index, there if len(there) == len(paths) else ())
            index += batch.count()

    def draw_wave(self, wave: list[Entry]) -> None:
        """Draw what is not there of some batches, all of one model, and take them off the list."""
        entries = [entry for entry in wave if entry.paths or entry.item.number not in self.lost]
        wave.clear()
        outcomes = self.outcomes([entry for entry in entries if not entry.paths])
        for entry in entries:
            for path in entry.paths:
                self.keep(path)
            if not entry.paths:
                self.draw_entry(entry, outcomes)
        self.interrupts.busy = False

    def outcomes(self, entries: Sequence[Entry]) -> Iterator[Outcome]:
        """The pictures of batches in order, or what a batch failed with."""
        if not entries:
            return
        plan = entries[0].item.plan
        try:
            self.engines.prepare(plan)
        except LdmError as error:
            yield from [error] * len(entries)
            return
        self.interrupts.busy = True
        batches = [(entry.item.number, entry.batch) for entry in entries]
        yield from self.engines.drawn(plan, batches, self.listen, self.run.outputs.batch_size)

    def listen(self, event: Event) -> None:
        """Report an event, and stop within a batch where that was asked for."""
        self.cancel.check_step()
        self.progress(event)

    def draw_entry(self, entry: Entry, outcomes: Iterator[Outcome]) -> None:
        """Take in what became of a batch; the first error of a job is that of all its batches."""
        number, last = entry.item.number, entry.batch.count() - 1
        paths: list[Path] = []
        for at, outcome in enumerate(outcomes):
            if isinstance(outcome, LdmError):
                self.lose(entry.item, outcome)
                return
            try:
                if number not in self.lost:
                    path = self.put(entry.item, outcome, entry.index + at)
                    if path is not None:
                        paths.append(path)
            except LdmError as error:
                self.lose(entry.item, error)
            if not outcome.ready:
                self.cancel.check()
            if at == last:
                break
        whole = entry.batch.noise == "stream" and number not in self.lost
        if whole and self.run.store is not None:
            self.run.store.note_complete(hash_of(to_record(entry.batch)), paths)

    def lose(self, item: Item, error: LdmError) -> None:
        """Count a job as failed, once."""
        if item.number not in self.lost:
            self.lost.add(item.number)
            self.run.fail(error, item.place)

    def put(self, item: Item, result: Result, index: int) -> Path | None:
        """Write one picture and note it, unless it is there; its file, if it has one."""
        store, outputs, record = self.run.store, self.run.outputs, result.record
        mark = fingerprint(record.job, record.row, record.hash, record.inputs)
        if store is not None and outputs.skip_existing:
            path = store.done(mark, self.taken[mark])
            self.taken[mark] += 1
            if path is not None:
                self.keep(path)
                return path
        if self.named:
            self.sink.outputs = replace(outputs, output=None, skip_grid=True)
        if item.name is not None:
            path = path_of(item, record.job, record.row, index)
            path.parent.mkdir(parents=True, exist_ok=True)
            self.sink.outputs = replace(outputs, output=str(path))
        self.sink.write(result)
        if store is not None and self.sink.last is not None:
            store.add(mark, self.sink.last, result.seed)
        self.progress.clear()
        self.sink.tell(result)
        self.progress.image(told(result, self.sink.last))
        return self.sink.last

    def found(self, item: Item, batch: Job) -> list[Path | None]:
        """The pictures of a batch that are there; with all of them it counts as drawn."""
        store = self.run.store
        assert store is not None
        from ldm.images.sources import digests

        inputs = digests(batch)
        taken, paths = Counter(self.taken), []
        for row in range(batch.n_samples):
            mark = fingerprint(batch, row, item.plan.header.short_hash, inputs)
            paths.append(store.done(mark, taken[mark]))
            taken[mark] += 1
        if all(paths):
            self.taken = taken
        return paths

    def keep(self, path: Path | None) -> None:
        """Leave a picture where it is; the grid wants it, too."""
        self.there += 1
        self.progress.there()
        if path is not None and self.sink.has_grid():
            import numpy as np
            from PIL import Image

            with Image.open(path) as image:
                self.sink.pictures.append(np.asarray(image.convert("RGB")))
            self.sink.parameters = self.sink.parameters or read_texts(path).get("parameters", "")

    def adopt(self, store: Manifest) -> None:
        """Note pictures that have no line: a run was killed between the two, or the lines lost."""
        samples = Path(self.run.outputs.outdir) / "samples"
        numbered = sorted(samples.glob("*.png")) if self.run.template is None else []
        for path in (*self.names(), *numbered):
            if store.has(path) or not path.is_file():
                continue
            try:
                record = read_record(path)
            except (ImageError, JobError):
                continue  # made by something else
            mark = fingerprint(record.job, record.row, record.hash, record.inputs)
            seed = record.job.image_seeds()[record.row]
            store.add(mark, path, seed, write=not self.run.outputs.dry_run)

    def names(self) -> list[Path]:
        """The files of all pictures, where they have names."""
        return [
            path_of(item, batch, row, item.start + at)
            for item in self.items
            if item.name is not None
            for at, (batch, row) in enumerate(_pictures(item.plan.job))
        ]

    def check_names(self) -> None:
        """Raise JobError where a name would be used twice, or is used."""
        outputs, store = self.run.outputs, self.run.store
        paths = self.names()
        check_names(paths, overwrite=True)
        if outputs.skip_existing and store is not None:
            paths = [path for path in paths if not store.has(path)]
        check_names(paths, overwrite=outputs.overwrite)

    def tell_plan(self) -> None:
        """Print every picture of the run, a line each."""
        outputs, count = self.run.outputs, 0
        samples = Numbered(Path(outputs.outdir) / "samples", "", 5)
        following = samples.following()
        for item in self.items:
            for at, (batch, row) in enumerate(_pictures(item.plan.job)):
                if row == 0:
                    paths = self.done_of(item, batch)
                path, done = paths[row], paths[row] is not None
                if item.name is not None:
                    path = path or path_of(item, batch, row, item.start + at)
                elif path is None and not outputs.skip_save:
                    path = samples.folder / f"{following:05d}.png"
                    following += 1
                if outputs.output is not None and item.name is None:
                    path = Path(outputs.output)
                header = item.plan.header
                planned = told_before(batch, row, path, header.path.stem, header.short_hash)
                planned["done"] = done
                typer.echo(json.dumps(planned) if outputs.json else _line(planned))
                count += 1
        self.run.tell(f"{len(self.items)} jobs, {count} images; nothing was loaded or drawn")

    def done_of(self, item: Item, batch: Job) -> list[Path | None]:
        """The pictures of a batch that a resumed run would find, as far as can be told."""
        known = item.plan.choice.prediction_why and batch.noise == "image"
        if self.run.outputs.skip_existing and known:
            return self.found(item, self.engines.job(replace(item.plan, job=batch)))
        return [None] * batch.n_samples


def _pictures(job: Job) -> Iterator[tuple[Job, int]]:
    """The batch and row of every picture of a job."""
    for batch in job.batches():
        for row in range(batch.n_samples):
            yield batch, row


def path_of(item: Item, batch: Job, row: int, index: int) -> Path:
    """The file of a picture that has a name; `index` is its number in the run."""
    assert item.name is not None
    model = item.plan.header.path.stem
    values = values_of(batch, row, index=index, number=item.number, model=model)
    return item.folder / item.name.name(values)


def _line(told: Mapping[str, Any]) -> str:
    where = told["path"] or "-"
    size = f"{told['width']}x{told['height']}"
    steps = f"{told['steps']} steps of {told['sampler']}, scale {told['scale']:g}"
    prompt = json.dumps(told["prompt"], ensure_ascii=False)
    done = "  (done)" if told["done"] else ""
    return f"{where}  {size}  {steps}, seed {told['seed']}  {prompt}{done}"
