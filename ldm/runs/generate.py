"""The work of a run: batches through the engines, each image written, recorded and reported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.engine.cancel import Cancel, Cancelled
from ldm.engine.events import (
    Event,
    ImageExisted,
    ImageWritten,
    Note,
    OnEvent,
    RunEnded,
    RunStarted,
)
from ldm.errors import Interrupted, LdmError, OutputClosed, WorkersLost
from ldm.jobs.job import Job, to_record
from ldm.runs.existing import Existing, path_of
from ldm.runs.failures import Failures
from ldm.runs.interrupts import Interrupts
from ldm.runs.manifest import fingerprint, hash_of
from ldm.runs.planning import Item, Request, RunPlan
from ldm.runs.writer import Writer, written_fields
from ldm.workers.pool import Engines, Outcome, in_use, model_key

if TYPE_CHECKING:
    from ldm.engine.results import Result

_WAVE = 64  # batches among which those are searched that can be generated together


@dataclass(frozen=True)
class Entry:
    """One batch of a job, or the whole job where its images come of one stream of noise.

    Its first image is the `index`th of the run; `paths` are its files, where all exist already.
    """

    item: Item
    batch: Job
    index: int
    paths: tuple[Path, ...] = ()


class Generation:
    """Generates the missing images of a planned run; the constructor checks the output files."""

    def __init__(
        self,
        request: Request,
        planned: RunPlan,
        existing: Existing,
        engines: Engines,
        failures: Failures,
        report: OnEvent,
        cancel: Cancel,
    ) -> None:
        outputs = request.outputs
        self.planned, self.existing, self.engines = planned, existing, engines
        self.failures, self.report, self.cancel = failures, report, cancel
        self.mark, self.batch_size = request.mark, outputs.batch_size
        self.workers = outputs.spread
        self.store = planned.store
        self.writer = Writer(
            outputs,
            planned.count,
            planned.items[0].plan.job.n_samples,
            names=planned.names,
            axes=planned.axes,
            named_in=str(planned.store.folder) if planned.store is not None else "",
            is_named=planned.is_named,
        )
        self.interrupts = Interrupts(cancel, quiet=outputs.quiet or outputs.progress == "jsonl")
        self.skipped = 0  # images that existed
        self.lost: set[int] = set()  # the numbers of jobs that failed

    def run(self) -> None:
        """Generate all missing images; finished ones are kept whatever ends the run."""
        count, failures, status = self.planned.count, self.failures, "broken"
        self.report(RunStarted(count, len(self.planned.items)))
        try:
            with self.interrupts, in_use(self.engines):
                if self.store is not None and self.planned.seed_is_new:
                    assert self.planned.seed is not None
                    self.store.note_seed(self.mark, self.planned.seed)
                self._run_items()
            if self.skipped:
                self.report(Note(f"{self.skipped} of {count} images existed already"))
            self.writer.close(self.report)
            if gone := self.writer.gone():
                text = f"{gone} of {count} images are gone: another program deleted them"
                failures.add_text(text, gone)
            status = "failed" if failures.count else "done"
        except (Cancelled, KeyboardInterrupt):
            status = "stopped"
            raise Interrupted(f"stopped; {self.writer.finished()}") from None
        except WorkersLost as error:
            raise WorkersLost(f"{error}; {self.writer.finished()}") from error
        except BrokenPipeError:
            text = f"standard output was closed by its reader; {self.writer.finished()}"
            raise OutputClosed(text) from None
        except OSError as error:
            named = f"{error.filename}: " if error.filename else ""
            text = f"{named}{error.strerror or error}; {self.writer.finished()}"
            raise LdmError(text) from error
        finally:
            self.report(RunEnded(status, failures.count))

    # --- batches ----------------------------------------------------------------------------------

    def _run_items(self) -> None:
        """Generate all jobs: the batches of many at a time, for the engine to put together."""
        wave: list[Entry] = []
        for item in self.planned.items:
            if wave and model_key(item.plan) != model_key(wave[0].item.plan):
                self._run_wave(wave)
            for entry in self._entries_or_failure(item, wave):
                wave.append(entry)
                # Of a stream it is only known after it what exists of the next one.
                whole = self.existing.store is not None and entry.batch.noise == "stream"
                if whole or len(wave) >= _WAVE * self.engines.spread:
                    self._run_wave(wave)
        self._run_wave(wave)

    def _entries_or_failure(self, item: Item, wave: list[Entry]) -> Iterator[Entry]:
        """The batches of a job; where it fails, the batches before it are generated first."""
        try:
            yield from self._entries(item)
        except LdmError as error:
            self._run_wave(wave)
            self.failures.add(error, item.place)

    def _entries(self, item: Item) -> Iterator[Entry]:
        """The batches of a job; those of a stream depend on each other and stay together."""
        job = self.engines.job(item.plan)
        if job.noise == "stream":
            yield Entry(item, job, item.start, self.existing.stream(job))
            return
        index = item.start
        for batch in job.batches():
            paths = [path for path in self.existing.batch(item, batch) if path is not None]
            yield Entry(item, batch, index, tuple(paths) if len(paths) == batch.n_samples else ())
            index += batch.count()

    def _run_wave(self, wave: list[Entry]) -> None:
        """Generate the missing images of some batches of one model, and clear the list."""
        entries = [entry for entry in wave if entry.paths or entry.item.number not in self.lost]
        wave.clear()
        outcomes = self._outcomes([entry for entry in entries if not entry.paths])
        for entry in entries:
            for path in entry.paths:
                self._skip(path)
            if not entry.paths:
                self._finish(entry, outcomes)
        self.interrupts.busy = False

    def _outcomes(self, entries: Sequence[Entry]) -> Iterator[Outcome]:
        """The images of batches in order, or the error that a batch failed with."""
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
        yield from self.engines.generated(plan, batches, self._listen, self.batch_size)

    def _listen(self, event: Event) -> None:
        """Pass an event of the engine on, and stop between two steps if requested."""
        self.cancel.check_step()
        self.report(event)

    # --- images -----------------------------------------------------------------------------------

    def _finish(self, entry: Entry, outcomes: Iterator[Outcome]) -> None:
        """Write the images of a batch; the first error of a job is that of all its batches."""
        number, last = entry.item.number, entry.batch.count() - 1
        paths: list[Path] = []
        for at, outcome in enumerate(outcomes):
            if isinstance(outcome, LdmError):
                self._lose(entry.item, outcome)
                return
            try:
                if number not in self.lost:
                    path = self._put(entry.item, outcome, entry.index + at)
                    if path is not None:
                        paths.append(path)
            except LdmError as error:
                self._lose(entry.item, error)
            if not outcome.ready:
                self.cancel.check()
            if at == last:
                break
        whole = entry.batch.noise == "stream" and number not in self.lost
        if whole and self.store is not None:
            self.store.note_complete(hash_of(to_record(entry.batch)), paths)

    def _lose(self, item: Item, error: LdmError) -> None:
        """Count a job as failed, once."""
        if item.number not in self.lost:
            self.lost.add(item.number)
            self.failures.add(error, item.place)

    def _put(self, item: Item, result: Result, index: int) -> Path | None:
        """Write, record and report one image, unless it exists; returns its file, if any."""
        record = result.record
        mark = fingerprint(record.job, record.row, record.hash, record.inputs)
        path = self.existing.image(mark)
        if path is not None:
            self._skip(path)
            return path
        if item.name is not None:
            path = path_of(item, record.job, record.row, index)
            path.parent.mkdir(parents=True, exist_ok=True)
        else:
            path = self.existing.deleted(mark)
        path = self.writer.write(result, path)
        if self.store is not None and path is not None:
            self.store.add(mark, path, result.seed)
        self.report(ImageWritten(written_fields(result, path), path))
        return path

    def _skip(self, path: Path) -> None:
        """Leave an image where it is."""
        self.skipped += 1
        self.report(ImageExisted())
        self.writer.take(path)
