from __future__ import annotations

import json

import pytest

from ldm.cli.app import run
from ldm.jobs.fields import TASK_NAMES
from ldm.jobs.files import parse_rows
from ldm.jobs.schema import job_schema


def test_the_schema_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["schema"]) == 0
    assert json.loads(capfd.readouterr().out) == json.loads(json.dumps(job_schema()))


def test_fields_and_their_kinds() -> None:
    schema = job_schema()
    fields = schema["properties"]
    assert fields["steps"]["type"] == ["integer", "null"]
    assert fields["scale"]["type"] == ["number", "null"]
    assert fields["fixed_code"] == {
        "type": "boolean",
        "description": "Start every batch from the same noise.",
        "default": False,
    }
    assert fields["overrides"]["items"] == {"type": "string"}
    assert fields["task"]["enum"] == list(TASK_NAMES)
    assert "prompts" not in fields
    assert "skip_draws" not in fields


def test_every_field_of_the_schema_is_read_from_files() -> None:
    samples = {"string": "x", "integer": 64, "number": 1.0, "boolean": True, "array": ["1"]}
    for name, entry in job_schema()["properties"].items():
        kinds = entry["type"] if isinstance(entry["type"], list) else [entry["type"]]
        value = entry["enum"][0] if "enum" in entry else samples[kinds[0]]
        task = entry.get("x-tasks", ["txt2img"])[0]
        told = {"task": task, "init_img": "a.png"} if task not in ("txt2img", "sample") else {}
        told = {"task": task} if task in ("sample", "variations") else told
        job = {**told, name: value} | ({"images": ["a.png"]} if task == "variations" else {})
        odd = {"device": "cpu", "seeds": "1,2", "hires": "2", "skip_layers": "7,8"}
        odd |= {"original_size": "64x64", "crop": "0,0", "target_size": "64x64"}
        job |= {key: value for key, value in odd.items() if key == name}
        if name.startswith("variation_"):
            job |= {"variation_seed": 1, "variation_strength": 0.5}
        if name in ("s_tmin", "s_tmax"):
            job["s_churn"] = 1.0
        if name == "inpaint_padding":
            job["inpaint_area"] = "masked"
        if name.startswith("hires_"):
            job["hires"] = "2"
        if name.startswith("skip_layer_"):
            job |= {"skip_layers": "7", "skip_layer_end": 1.0}
        found = parse_rows(json.dumps(job), "a.jsonl", {})
        assert name in found[0].fields
