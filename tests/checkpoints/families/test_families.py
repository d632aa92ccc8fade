"""Families are told from headers alone, and what is not one is not taken for one."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from ldm.checkpoints.config import read_config, resource
from ldm.checkpoints.families import FAMILIES, candidates, detect, yaml_beside, yaml_of
from ldm.checkpoints.families.choice import choose, with_prediction
from ldm.checkpoints.families.family import Pattern
from ldm.checkpoints.sgm import as_older
from ldm.checkpoints.weights.header import Entry, Header
from ldm.errors import CheckpointError, ConfigError
from ldm.models.inventory import expected_shapes
from tests.golden_keys import AUTOENCODERS, MODELS, SD3_MODELS, golden_shapes

YAMLS = resource("configs") / "latent-diffusion"


def header_of(
    shapes: dict[str, tuple[int, ...]], path: Path = Path("model.ckpt"), **metadata: str
) -> Header:
    tensors = {key: Entry("F16", shape, 0) for key, shape in shapes.items()}
    return Header(path, "safetensors", tensors, metadata)


@pytest.mark.parametrize("name", MODELS | SD3_MODELS)
def test_each_published_model_is_recognised(name: str) -> None:
    assert detect(header_of(golden_shapes(name))).name == (MODELS | SD3_MODELS)[name][1]


@pytest.mark.parametrize("name", MODELS | SD3_MODELS)
def test_no_other_family_fits(name: str) -> None:
    shapes = golden_shapes(name)
    fitting = {family.name for family in FAMILIES.values() if family.matches(shapes)}
    expected = FAMILIES[(MODELS | SD3_MODELS)[name][1]]
    assert fitting == {expected.name} | ({expected.twin} if expected.twin else set())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_names_a_yaml_that_agrees_with_it(name: str) -> None:
    family = FAMILIES[name]
    params = as_older(read_config(yaml_of(family)).tree["model"]["params"])
    assert params.get("parameterization", "eps") == family.prediction
    assert family.defaults.width % 64 == family.defaults.height % 64 == 0


def test_twins_point_at_each_other() -> None:
    for family in FAMILIES.values():
        if family.twin is not None:
            twin = FAMILIES[family.twin]
            assert twin.twin == family.name
            assert twin.needs == family.needs
            assert twin.prediction != family.prediction


@pytest.mark.parametrize("path", sorted(YAMLS.glob("*.yaml")), ids=lambda path: path.stem)
def test_each_latent_diffusion_model_is_of_one_family(path: Path) -> None:
    """Also those of which no checkpoint is at hand: the keys are those of the YAML."""
    config = read_config(path)
    family = detect(header_of(dict(expected_shapes(config))))
    same = family.yaml == f"latent-diffusion/{path.name}"
    assert same or expected_shapes(config) == expected_shapes(read_config(yaml_of(family)))
    assert task_of(path) == family.task


def task_of(path: Path) -> str:
    """What a YAML alone says that a model is for."""
    return choose(header_of({"a": (1,)}), path).family.task


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_an_autoencoder_alone_is_called_that(name: str) -> None:
    with pytest.raises(CheckpointError, match="contains only an autoencoder") as caught:
        detect(header_of(golden_shapes(name), Path("kl.ckpt")))
    assert "kl.ckpt" in str(caught.value)


def test_a_yaml_beside_tells_models_of_the_same_keys_apart(tmp_path: Path) -> None:
    """The originals' layout: models/ldm/NAME/{config.yaml,model.ckpt}."""
    shapes = dict(expected_shapes(read_config(YAMLS / "semantic_synthesis512.yaml")))
    header = header_of(shapes, tmp_path / "model.ckpt")
    assert "semantic_synthesis256" in choose(header).config.source
    beside = tmp_path / "config.yaml"
    beside.write_text("services: {web: 1}\n")
    assert yaml_beside(header.path) is None
    beside.write_bytes((YAMLS / "semantic_synthesis512.yaml").read_bytes())
    choice = choose(header)
    assert choice.config.source == str(beside)
    assert choice.config.tree["model"]["params"]["image_size"] == 128
    assert choice.family.name == "ldm-semantic"
    (tmp_path / "model.yaml").write_bytes((YAMLS / "semantic_synthesis256.yaml").read_bytes())
    assert choose(header).config.source.endswith("model.yaml")


def test_a_class_model_of_a_size_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "model:\n  target: ldm.models.diffusion.ddpm.LatentDiffusion\n  params:\n"
        "    image_size: 16\n"
        "    first_stage_config: {params: {ddconfig: {ch_mult: [1, 1, 1]}}}\n"
        "    cond_stage_config: {target: ldm.modules.encoders.modules.ClassEmbedder}\n"
    )
    family = choose(header_of({"a": (1,)}, tmp_path / "tiny.ckpt")).family
    assert (family.task, family.defaults.width, family.defaults.scale) == ("sample", 64, 1.0)


def test_a_stranger_is_reported_with_its_keys() -> None:
    with pytest.raises(CheckpointError) as caught:
        detect(header_of({"lora_unet.down.weight": (4, 320), "b": (1,)}, Path("strange.ckpt")))
    message = str(caught.value)
    assert "strange.ckpt: unknown model family" in message
    assert "lora_unet.down.weight [4, 320]" in message
    assert "--config" in message
    assert "\n" not in message


def test_two_matches_are_an_error() -> None:
    both = golden_shapes("sd-v1")
    family = next(f for f in FAMILIES.values() if f.name == "v1")
    other = next(f for f in FAMILIES.values() if f.name == "v2")
    # No header fits two families now; make one that would by taking away what tells them apart.
    loose: dict[str, Pattern] = {key: (None,) * len(at) for key, at in family.needs.items()}
    assert candidates(both) == [family]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, "v2", replace(other, needs=loose, twin=None))
        with pytest.raises(CheckpointError, match=r"fits .*v1.* and .*v2"):
            detect(header_of(both))


def test_a_tiny_model_is_of_no_family() -> None:
    shapes = {
        key: tuple(max(1, length // 10) for length in shape)
        for key, shape in golden_shapes("sd-v1").items()
    }
    with pytest.raises(CheckpointError, match="unknown model family"):
        detect(header_of(shapes))


def test_v2_is_undecided_unless_the_file_tells() -> None:
    shapes = golden_shapes("sd-v2")
    choice = choose(header_of(shapes))
    assert (choice.family.name, choice.prediction_why) == ("v2", "")
    spec = "modelspec.prediction_type"
    told = choose(header_of(shapes, **{spec: "v"}))
    assert (told.family.name, told.family.prediction) == ("v2-v", "v")
    assert spec in told.prediction_why
    assert told.family.defaults.width == 768
    told = choose(header_of(shapes, **{spec: "epsilon"}))
    assert (told.family.name, told.family.prediction) == ("v2", "eps")


def test_a_known_prediction_picks_the_twin() -> None:
    choice = choose(header_of(golden_shapes("sd-v2")))
    v = with_prediction(choice, "v", "asked for")
    assert (v.family.name, v.prediction_why) == ("v2-v", "asked for")
    assert with_prediction(v, "eps", "").family.name == "v2"
    v1 = with_prediction(choose(header_of(golden_shapes("sd-v1"))), "v", "asked for")
    assert (v1.family.name, v1.family.prediction) == ("v1", "v")


def test_the_yaml_beside_wins_and_the_one_asked_for_wins_over_it(tmp_path: Path) -> None:
    header = header_of(golden_shapes("sd-v2"), tmp_path / "my.safetensors")
    assert "found from the header" in choose(header).why
    beside = tmp_path / "my.yaml"
    beside.write_text(yaml_of(FAMILIES["v2-v"]).read_text())
    assert yaml_beside(header.path) == beside
    choice = choose(header)
    assert choice.config.source == str(beside)
    assert (choice.family.name, choice.family.defaults.width) == ("v2-v", 768)
    assert "parameterization" in choice.prediction_why
    asked = choose(header, yaml_of(FAMILIES["v2"]))
    assert asked.family.name == "v2"
    assert "asked for" in asked.why


def test_overrides_reach_the_choice() -> None:
    header = header_of(golden_shapes("sd-v1"))
    choice = choose(header, overrides=["model.params.parameterization=v"])
    assert choice.family.prediction == "v"
    assert choice.config.tree["model"]["params"]["parameterization"] == "v"


def test_a_yaml_of_odd_size_has_defaults_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "model:\n  target: x\n  params:\n    image_size: 16\n    first_stage_config:\n"
        "      params: {ddconfig: {ch_mult: [1, 1, 2, 3]}}\n"
    )
    choice = choose(header_of({"a": (1,)}, tmp_path / "tiny.ckpt"))
    defaults = choice.family.defaults
    assert (defaults.width, defaults.height, defaults.scale) == (128, 128, 7.5)
    assert choice.family.prediction == "eps"
    assert "image_size" in defaults.source


def test_fingerprints_of_different_families_exclude_each_other() -> None:
    for left, right in itertools.combinations(MODELS, 2):
        if MODELS[left][1] != MODELS[right][1]:
            assert detect(header_of(golden_shapes(left))) != detect(header_of(golden_shapes(right)))


def own_yaml(tmp_path: Path, sampling: str) -> Header:
    (tmp_path / "tiny.yaml").write_text(
        "model: {target: ldm.models.diffusion.ddpm.LatentDiffusion, params: {image_size: 16}}\n"
        + sampling
    )
    return header_of({"x": (1,)}, tmp_path / "tiny.safetensors")


def test_a_yaml_can_state_its_own_defaults(tmp_path: Path) -> None:
    header = own_yaml(tmp_path, "sampling: {scale: 3, steps: 25, sampler: dpmpp_2m}")
    defaults = choose(header).family.defaults
    assert (defaults.width, defaults.scale, defaults.steps) == (128, 3, 25)
    assert defaults.sampler == "dpmpp_2m"
    assert "sampling" in defaults.source


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ("sampling: {stepz: 25}", "stepz.*steps"),
        ("sampling: {steps: many}", "steps must be int"),
        ("sampling: 25", "must be a section"),
    ],
)
def test_wrong_defaults_in_a_yaml_are_named(tmp_path: Path, sampling: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(own_yaml(tmp_path, sampling))
