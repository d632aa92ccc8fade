"""A plan in words: one line before a run, or every value with its reason."""

from __future__ import annotations

import json
from typing import Any

from ldm.engine.plan import Plan


def summary(plan: Plan, device: str) -> str:
    """One line: model, device, images and seed; `plan` is the one updated by loading."""
    job = plan.job
    scale = "" if job.scale == 1 else f", scale {job.scale:g}"
    grid = "" if job.grid is None else f" on {job.grid}"
    steps = f"{job.steps} step{'' if job.steps == 1 else 's'}"
    width, height = job.image_size()
    drawn = " (drawn at random)" if plan.why["seed"] == "drawn at random" else ""
    return (
        f"{plan.header.path.stem} on {device}, {job.precision} precision; {job.count()} x "
        f"{width}x{height}, {steps} of {job.sampler}{grid}{scale}, "
        f"seed {job.seed}{drawn}"
    )


def explain(plan: Plan, *, as_json: bool) -> str:
    """Every setting with its origin, one a line or as JSON."""
    rows: dict[str, tuple[Any, str]] = {
        "checkpoint": (str(plan.header.path), ""),
        "yaml": (plan.choice.config.source, plan.choice.why),
        "family": (plan.choice.family.name, plan.choice.family.title),
        "predicts": (plan.choice.family.prediction, plan.choice.prediction_why),
    }
    for name, value in vars(plan.job).items():
        if value is not None and value != () and name not in ("skip_draws", "draw_rows"):
            rows[name] = (value, plan.why.get(name, ""))
    if as_json:
        return json.dumps({name: {"value": v, "why": w} for name, (v, w) in rows.items()})
    shown = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, (value, _) in rows.items()
    }
    width = max(len(text) for text in shown.values() if len(text) < 40)
    return "\n".join(f"{n:16} {shown[n]:{width}}  {w}".rstrip() for n, (_, w) in rows.items())
