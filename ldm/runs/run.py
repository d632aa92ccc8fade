"""A run of `ldm`: one job, or those of a file or a matrix, from the request to the last file.

All jobs are planned first, without torch. Images that exist already are located, the others are
generated, written, recorded in the manifest and reported, one after another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ldm.checkpoints.folders import searching
from ldm.engine.cancel import Cancel
from ldm.engine.events import Note, OnEvent, PlanExplained, TimingsMeasured
from ldm.engine.explain import explain
from ldm.engine.timing import timed
from ldm.jobs.outputs import OutputPlan
from ldm.runs.existing import Existing
from ldm.runs.failures import Failures
from ldm.runs.generate import Generation
from ldm.runs.planning import Request, RunPlan, plan_run
from ldm.runs.preview import list_images
from ldm.workers.pool import Engines, load_engine, reused

SOME_FAILED = 3


def run(
    task: str,
    fields: Mapping[str, Any],
    outputs: OutputPlan,
    notes: Sequence[str],
    report: OnEvent,
    *,
    cancel: Cancel | None = None,
    script: bool = False,
    indir: str | None = None,
) -> int:
    """Do a task; returns the exit code, 3 where some jobs failed.

    `fields` are of `Job`, `notes` to be reported ahead of those of planning. `report` gets every
    event, `cancel` stops the run from outside. `script` and `indir` are those of `Request`.
    """
    request = Request({**fields, "task": task}, outputs, script=script, indir=indir)
    with searching(outputs.models_dir), timed() as timings:
        code = _run(request, notes, report, cancel or Cancel())
    if outputs.timings:
        report(TimingsMeasured(timings.summary()))
    return code


def _run(request: Request, notes: Sequence[str], report: OnEvent, cancel: Cancel) -> int:
    outputs = request.outputs
    failures = Failures(report, outputs.keep_going)
    planned = plan_run(request, failures)
    of_jobs = dict.fromkeys(note for item in planned.items for note in item.plan.notes)
    for note in (*notes, *planned.notes, *of_jobs):
        report(Note(note))
    if not planned.items:
        return SOME_FAILED
    if outputs.print_config:
        report(PlanExplained(_explained(request, planned, report)))
        return 0
    engines = reused(_engines(request, report, cancel))
    existing = Existing(planned, outputs)
    if outputs.dry_run:
        list_images(planned, outputs, existing, engines, report)
    else:
        Generation(request, planned, existing, engines, failures, report, cancel).run()
    return SOME_FAILED if failures.count else 0


def _explained(request: Request, planned: RunPlan, report: OnEvent) -> str:
    """The values of the first job; the model is loaded only if its weights decide one."""
    plan = planned.items[0].plan
    if not plan.choice.prediction_why:
        _, plan = load_engine(plan, plan.given, report, script=request.script)
    return explain(plan, as_json=request.outputs.json)


def _engines(request: Request, report: OnEvent, cancel: Cancel) -> Engines:
    """One engine in this process, or the workers that a run asks for."""
    if request.outputs.spread:
        from ldm.workers.crew import crew_of

        return crew_of(request.outputs, report, cancel)
    return Engines(report, request.script, request.outputs.tuning)
