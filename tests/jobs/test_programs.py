"""What other programs write into images, read into fields of a job."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from ldm.errors import ImageError
from ldm.jobs.job import Job
from ldm.jobs.metadata import parse_infotext
from ldm.jobs.programs import Settings, read_settings
from ldm.jobs.sampler_names import with_our_names
from tests.foreign_images import COMFY, COMFY_CUSTOM, DRAW_THINGS, HIRES, NOVELAI, SWARM, TEXTS

SEEDS = {
    "AUTOMATIC1111": 4294967290, "ComfyUI": 77, "InvokeAI": 8, "InvokeAI 2": 14, "InvokeAI 1": 14,
    "NovelAI": 9, "Fooocus": 10, "SwarmUI": 11, "Draw Things": 12, "Easy Diffusion": 13,
    "stable-diffusion.cpp": 42,
}  # fmt: skip
MODELS = {
    "AUTOMATIC1111": ("v1-5", "6ce0161689"), "ComfyUI": ("sd\\v1-5.safetensors", ""),
    "InvokeAI": ("v1-5", ""), "InvokeAI 2": ("v1-5", "cc6cb27103417325ff94f52b7a5d2dde"),
    "InvokeAI 1": ("", ""), "NovelAI": ("Stable Diffusion 81274D13", ""),
    "Fooocus": ("juggernaut", "aeb7e9e689"), "SwarmUI": ("v1-5.safetensors", "6ce0161689b3"),
    "Draw Things": ("sd_v1.5_f16.ckpt", ""), "Easy Diffusion": ("v1-5", ""),
    "stable-diffusion.cpp": ("sd.safetensors", ""),
}  # fmt: skip
# Sampler and grid under our names.
SAMPLERS = {
    "AUTOMATIC1111": ("dpmpp_2m", "karras"), "ComfyUI": ("dpmpp_2m", "karras"),
    "InvokeAI": ("dpmpp_2m", "karras"), "InvokeAI 2": ("lms", None), "InvokeAI 1": ("lms", None),
    "NovelAI": ("euler_ancestral", None), "Fooocus": ("dpmpp_2m_sde", "karras"),
    "SwarmUI": ("euler_ancestral", "karras"), "Draw Things": ("dpmpp_2m", "karras"),
    "Easy Diffusion": ("euler_ancestral", None),
    "stable-diffusion.cpp": ("euler_ancestral", "karras"),
}  # fmt: skip
# The noise of each: a GPU's numbers, or torch's CPU generator; for each image, or one for a batch.
NOISE = dict.fromkeys(SEEDS, ("image", "philox")) | {
    "AUTOMATIC1111": ("image", "cpu"),  # its text says RNG: CPU
    "ComfyUI": ("stream", "cpu"),
    "InvokeAI": ("image", "cpu"),
    "Fooocus": ("image", "cpu"),
    "SwarmUI": ("image", "cpu"),
}
# What must not be dropped in silence.
UNUSED = {
    "AUTOMATIC1111": ["Tiling", "Lora hashes"], "ComfyUI": ["LoraLoader"],
    "InvokeAI": ["loras", "hash"], "InvokeAI 2": ["perlin"], "InvokeAI 1": [],
    "NovelAI": ["cfg_rescale", "prompt"], "Fooocus": ["styles", "sharpness"],
    "SwarmUI": ["loras"], "Draw Things": ["loras", "seed mode"],
    "Easy Diffusion": ["use vae model"], "stable-diffusion.cpp": ["Guidance"],
}  # fmt: skip


def settings_of(texts: dict[str, str]) -> Settings:
    found = read_settings(texts)
    assert found is not None
    return found


def comfy(graph: dict[str, Any]) -> Settings:
    return settings_of({"prompt": json.dumps(graph)})


def changed(graph: dict[str, Any], node: str, **inputs: Any) -> dict[str, Any]:
    old = graph[node]
    return {**graph, node: {**old, "inputs": {**old["inputs"], **inputs}}}


@pytest.mark.parametrize("name", TEXTS)
def test_every_program(name: str) -> None:
    texts = dict(TEXTS[name])
    if name == "Draw Things":  # as ldm.images.exif unpacks it
        texts = {"XMP UserComment": json.dumps(DRAW_THINGS)}
    found = settings_of(texts)
    assert found.program == (name if "Invoke" not in name else "InvokeAI")
    fields = with_our_names(found.fields)
    job = Job(**fields)
    job.validate()
    assert "cat" in (job.prompt or "") or "cät" in (job.prompt or "")
    assert job.negative.startswith("blurry")
    assert (job.seed, job.width, job.height) == (SEEDS[name], 24, 16)
    assert (found.model, found.hash) == MODELS[name]
    assert (
        (fields["sampler"], job.grid) == (SAMPLERS[name][0], SAMPLERS[name][1])
        or (SAMPLERS[name] == ("euler_ancestral", job.grid) and "euler_a" in fields["sampler"])
        or (fields["sampler"], job.grid) == ("k_lms", None)
    )
    assert (job.noise, job.rng) == NOISE[name]
    assert [entry.split(":")[0] for entry in found.unused] == UNUSED[name]
    assert found.task == "txt2img"


def test_the_web_ui_in_full() -> None:
    fields = settings_of(TEXTS["AUTOMATIC1111"]).fields
    assert fields["prompt"] == "a (red:1.2) cat, 8k\non a mat"
    assert (fields["clip_skip"], fields["ensd"], fields["scale"]) == (2, 31337, 6.5)
    found = settings_of({"parameters": HIRES})
    names = ("hires", "hires_steps", "hires_strength", "hires_upscaler")
    assert [found.fields[name] for name in names] == ["2", 3, 0.5, "lanczos"]
    assert (found.fields["variation_seed"], found.fields["variation_strength"]) == (9, 0.25)
    assert found.unused == ("Hires upscaler: R-ESRGAN 4x+ (lanczos is used)",)
    old = settings_of({"parameters": "x\nSteps: 2, Sampler: DPM++ 2M SDE Karras, Seed: 1"})
    assert (old.fields["sampler"], old.fields["grid"]) == ("dpmpp_2m_sde", "karras")
    new = "x\nSteps: 2, Sampler: DPM++ 2M, Schedule type: Automatic, Seed: 1"
    assert settings_of({"parameters": new}).fields["grid"] == "karras"


def test_an_image_that_was_changed_runs_as_many_steps_as_there() -> None:
    text = "x\nSteps: 20, Sampler: Euler a, Seed: 1, Denoising strength: 0.5"
    found = settings_of({"parameters": text})
    assert (found.task, found.fields["strength"]) == ("img2img", 0.5)
    fields = found.job_fields()
    assert int(fields["strength"] * fields["steps"]) == 11  # modules/sd_samplers_common.py
    fields = settings_of({"parameters": text.replace("Euler a", "DDIM")}).job_fields()
    assert int(fields["strength"] * fields["steps"]) == 10
    found = comfy(COMFY_CUSTOM)
    assert (found.task, found.fields["steps"]) == ("img2img", 10)
    fields = found.job_fields()
    assert fields["steps"] == 20
    assert int(fields["strength"] * fields["steps"]) == 10


def test_comfy_links_lead_through_nodes() -> None:
    found = comfy(COMFY)
    assert (found.fields["prompt"], found.fields["seed"]) == ("a cat", 77)
    assert (found.fields["clip_skip"], found.fields["n_samples"]) == (2, 2)
    custom = comfy(COMFY_CUSTOM).fields
    assert (custom["prompt"], custom["negative"], custom["seed"]) == ("a dog", "", 7)
    assert (custom["sampler"], custom["grid"], custom["scale"]) == ("euler", "simple", 3.5)


def test_a_second_pass_of_comfy_is_hires_fix() -> None:
    graph = changed(COMFY, "5", batch_size=1) | {
        "30": {
            "class_type": "LatentUpscaleBy",
            "inputs": {"samples": ["3", 0], "upscale_method": "nearest-exact", "scale_by": 1.5},
        },
        "31": {
            "class_type": "KSampler",
            "inputs": {
                **COMFY["3"]["inputs"], "latent_image": ["30", 0], "steps": 6, "denoise": 0.4,
                "cfg": 9.0,
            },
        },
    }  # fmt: skip
    found = comfy(changed(graph, "8", samples=["31", 0]))
    names = ("hires", "hires_upscaler", "hires_steps", "hires_strength", "steps", "scale")
    values = [found.fields[name] for name in names]
    assert values == ["1.5", "latent-nearest", 6, 0.4, 4, 5.0]
    assert "scale of the second pass: 9.0" in found.unused
    Job(**with_our_names(found.fields)).validate()


@pytest.mark.parametrize(
    ("inputs", "word"),
    [
        ({"positive": ["7", 0], "negative": ["7", 0]}, ""),
        ({"steps": "many"}, "steps"),
        ({"latent_image": ["40", 0]}, ""),
        ({"seed": None}, ""),
        ({"denoise": 0.5}, "denoise"),
        ({"cfg": float("nan")}, "scale"),
    ],
)
def test_damaged_graphs(inputs: dict[str, Any], word: str) -> None:
    found = comfy(changed(COMFY, "3", **inputs))
    assert found.program == "ComfyUI"
    assert not word or any(entry.startswith(word) for entry in found.unused)


def test_graphs_in_circles_end() -> None:
    circle = changed(COMFY, "3", model=["3", 0], positive=["3", 0], latent_image=["8", 0])
    assert comfy(circle).fields["steps"] == 4
    assert comfy(changed(COMFY, "21", text=["21", 0])).program == "ComfyUI"
    assert comfy(changed(COMFY, "20", value=["20", 0])).program == "ComfyUI"
    many: dict[str, Any] = {
        str(i): {"class_type": "Reroute", "inputs": {"a": [str(i + 1), 0], "b": [str(i + 2), 0]}}
        for i in range(100, 20_000)
    }
    start = time.process_time()
    comfy({**many, **changed(COMFY, "3", model=["100", 0], positive=["100", 0])})
    assert time.process_time() - start < 3


@pytest.mark.parametrize(
    "text",
    [
        '{"class_type": ' * 100_000,
        '{"class_type": ' + "[" * 200_000 + "]" * 200_000 + "}",
        "{" + " " * 5_000_000,
        "{class_type",
        '{"1": {"class_type": 5, "inputs": ' + "9" * 5000 + "}}",
    ],
)
def test_hostile_json_is_one_error(text: str) -> None:
    with pytest.raises(ImageError, match=r"^its `prompt` graph [^\n]{1,80}$"):
        read_settings({"prompt": text})


@pytest.mark.parametrize("run", ["ab ", "a:", 'ab:"', "-/ ", "ab,", "\t"])
def test_long_lines_take_linear_time(run: str) -> None:
    start = time.perf_counter()
    parse_infotext("x\n" + run * 100_000)
    assert time.process_time() - start < 3


def test_values_of_the_wrong_kind_are_listed() -> None:
    comment = json.dumps({"uc": ["x"], "steps": "x", "seed": 1e400, "scale": True, "prompt": "a"})
    found = settings_of({**NOVELAI, "Comment": comment})
    assert [entry.split(":")[0] for entry in found.unused] == ["uc", "steps", "seed", "scale"]
    assert "not a valid value" in found.unused[0]
    many = {**SWARM, "sui_image_params": {f"k{i}": "x" * 500 for i in range(5000)}}
    found = settings_of({"parameters": json.dumps(many)})
    assert len(found.unused) <= 41
    assert all(len(entry) < 130 for entry in found.unused)


def test_a_lora_in_the_prompt_is_read() -> None:
    text = TEXTS["AUTOMATIC1111"]["parameters"].replace("8k", "<lora:x:0.8>")
    job = Job(**with_our_names(settings_of({"parameters": text}).fields))
    job.validate()
    assert [(lora.name, lora.network) for lora in job.loras_of(job.texts()[0])] == [("x", 0.8)]


def test_plain_texts_are_no_settings() -> None:
    assert read_settings({}) is None
    assert read_settings({"Software": "GIMP", "Comment": "Created with GIMP"}) is None
    assert read_settings({"prompt": "a cat"}) is None
    assert read_settings({"parameters": "Screenshot"}) is None
