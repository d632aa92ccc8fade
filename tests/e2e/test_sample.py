"""`ldm sample` and the models from before Stable Diffusion: what each is told, and its defaults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import save_file

from ldm.cli.app import run
from ldm.images.texts import read_record
from ldm.jobs.imagenet import class_names, class_number
from tests.textless_models import class_tree, free_tree
from tests.tiny_commands import error_of, fake_full_size
from tests.tiny_models import make, state

QUICK = ["--steps", "2", "--H", "16", "--W", "24", "--device", "cpu", "--seed", "1"]


def place(tree: dict[str, Any], folder: Path, name: str = "model") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    path = folder / f"{name}.safetensors"
    save_file({key: value.contiguous() for key, value in state(make(tree)).items()}, path)
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place(free_tree(), tmp_path / "models", "free")
    place(class_tree(), tmp_path / "models", "classes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LDM_MODELS", raising=False)
    return tmp_path


def planned(capfd: pytest.CaptureFixture[str], *words: str, script: bool = False) -> dict[str, Any]:
    """What `--print-config` says, by name."""
    assert run([*words, "--print-config", "--json"], script=script) == 0
    return {name: row["value"] for name, row in json.loads(capfd.readouterr().out).items()}


def test_a_model_that_is_told_nothing(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["sample", "-m", "free", *QUICK, "-o", "a.png"]) == 0
    job = read_record(Path("a.png")).job
    assert (job.eta, job.scale, job.sampler) == (1.0, 1.0, "ddim")
    assert run(["rerun", "a.png", "-o", "b.png"]) == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    assert run(["sample", "-m", "free", *QUICK, "--eta", "0", "-o", "c.png"]) == 0
    assert Path("c.png").read_bytes() != Path("a.png").read_bytes()


@pytest.mark.parametrize("sampler", ["plms", "dpmpp_2m"])
def test_other_samplers_are_spared_the_default_eta(
    home: Path, capfd: pytest.CaptureFixture[str], sampler: str
) -> None:
    words = ["sample", "-m", "free", *QUICK, "--sampler", sampler, "--print-config", "--json"]
    assert run(words) == 0
    told = capfd.readouterr()
    assert "eta" not in json.loads(told.out)
    assert "eta" not in told.err


def test_a_class_by_name_and_by_number(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert class_number("golden retriever") == class_number(" Golden Retriever ") == "207"
    assert class_number("12") == "12"
    assert len(class_names()) == 1000
    two = ["--class", "3", "--class", "goldfish"]
    assert run(["sample", "-m", "classes", *two, *QUICK, "--scale", "2", "--outdir", "o"]) == 0
    jobs = [read_record(Path(f"o/samples/{index:05d}.png")).job for index in (0, 1)]
    assert [job.classes for job in jobs] == [("3",), ("1",)]
    assert jobs[0].eta is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m", "free", "--class", "3"], "--class: this model has no classes"),
        (["-m", "free", "--scale", "3"], "--scale: this model has no text and no classes"),
        (["-m", "free", "--prompt", "x"], "--prompt is no option of this command"),
        (["-m", "classes"], "--class is missing"),
        (["-m", "classes", "--class", "21"], "--class 21: this model has the classes 0 to 20"),
        (["-m", "classes", "--class", "goldn fish"], "did you mean goldfish?"),
        (["-m", "classes", "--class", "tench", "--W", "0"], "--width must be 1 or more"),
    ],
)
def test_what_is_wrong_is_said_before_weights_are_read(
    home: Path,
    capfd: pytest.CaptureFixture[str],
    unread: None,
    words: list[str],
    message: str,
) -> None:
    assert run(["sample", *words]) == 2
    assert message in error_of(capfd)


def test_a_model_of_another_task_is_refused(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["txt2img", "--prompt", "x", "-m", "free"]) == 2
    assert "is a model for sample, not for txt2img" in error_of(capfd)


# --- full-size models, by their headers -----------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "words", "wanted"),
    [
        ("ldm-celeba256", "", {"eta": 1.0, "steps": 50, "scale": 1.0, "width": 256}),
        ("ldm-lsun_churches256", "", {"eta": 1.0, "width": 256}),
        ("cin256-v2", "--class 207", {"scale": 3.0, "steps": 20, "width": 256, "classes": ["207"]}),
    ],
)
def test_the_defaults_of_the_published_models(
    home: Path, capfd: pytest.CaptureFixture[str], keys: str, words: str, wanted: dict[str, Any]
) -> None:
    path = fake_full_size(home / "full.safetensors", keys)
    told = planned(capfd, "sample", "-m", str(path), *words.split())
    assert {name: told[name] for name in wanted} == wanted
    assert ("eta" in told) == ("eta" in wanted)


def test_the_text_model_needs_a_vocabulary(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = home / "models/ldm/text2img-large"
    folder.mkdir(parents=True)
    # The header decides, whatever the ending is.
    fake_full_size(folder / "model.safetensors", "txt2img-1p4B")
    words = ["txt2img", "--prompt", "a virus", "-m", "ldm/text2img-large/model"]
    assert run(words) == 2
    error = error_of(capfd)
    assert "models/ldm/text2img-large/vocab.txt: missing" in error
    assert "bert-base-uncased" in error
    (folder / "vocab.txt").write_text("[UNK]\n", encoding="utf-8")
    told = planned(capfd, *words)
    assert {name: told[name] for name in ("family", "steps", "scale", "width")} == {
        "family": "ldm-text",
        "steps": 200,
        "scale": 5.0,
        "width": 256,
    }


def test_the_laion_flag_of_the_script(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = home / "models/ldm/text2img-large"
    folder.mkdir(parents=True)
    path = fake_full_size(folder / "model.safetensors", "txt2img-1p4B")
    path.rename(folder / "model.ckpt")
    (folder / "vocab.txt").write_text("[UNK]\n", encoding="utf-8")
    told = planned(capfd, "txt2img", "--laion400m", script=True)
    wanted = {"steps": 50, "scale": 7.5, "width": 512, "n_samples": 3, "family": "ldm-text"}
    assert {name: told[name] for name in wanted} == wanted
    assert told["yaml"].endswith("configs/latent-diffusion/txt2img-1p4B-eval.yaml")


@pytest.mark.parametrize(
    "name",
    [
        "cin256-v2",
        "cin256-v2.yaml",
        "latent-diffusion/cin256-v2.yaml",
        "configs/latent-diffusion/cin256-v2.yaml",
    ],
)
def test_yamls_of_latent_diffusion_are_found(
    home: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    path = fake_full_size(home / "full.safetensors", "cin256-v2")
    told = planned(capfd, "sample", "-m", str(path), "--config", name, "--class", "1")
    assert told["yaml"].endswith("configs/latent-diffusion/cin256-v2.yaml")


def test_a_mistyped_yaml_is_guessed(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["sample", "-m", "free", "--config", "cin256-v3.yaml"]) == 2
    assert "did you mean cin256-v2.yaml?" in error_of(capfd)


def test_guidance_needs_a_class_for_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tree = class_tree()
    tree["model"]["params"]["cond_stage_config"]["params"]["n_classes"] = 1000
    words = ["sample", "-m", str(place(tree, tmp_path)), "--class", "999"]
    assert run([*words, "--scale", "2"]) == 2
    assert "--scale: this model was not trained without a class" in error_of(capfd)
    assert planned(capfd, *words)["scale"] == 1.0
