"""Loading: strict, mapped, and clear about what does not fit; eps and v told apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ldm.checkpoints.families import FAMILIES
from ldm.checkpoints.families import choice as choice_module
from ldm.checkpoints.families.family import Pattern
from ldm.checkpoints.weights.keys import ema_key
from ldm.errors import CheckpointError, ConfigError
from ldm.models.load import load_model, measure_prediction, swap_autoencoder
from ldm.models.model import Model
from ldm.sampling.denoiser import Prediction
from tests.tiny_models import TINY, make, state, v1_tree, v2_tree, write

OUT = "model.diffusion_model.out.2.bias"


@pytest.fixture(scope="module")
def tiny() -> Model:
    return make(v1_tree())


@pytest.fixture
def yaml(tmp_path: Path) -> Path:
    return write(v1_tree(), tmp_path / "tiny.yaml")


def saved(tensors: dict[str, Tensor], path: Path) -> Path:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return path


def same(model: Model, tensors: dict[str, Tensor]) -> bool:
    loaded = model.state_dict()
    return loaded.keys() == tensors.keys() and all(
        torch.equal(loaded[key], tensor) for key, tensor in tensors.items()
    )


def test_a_training_checkpoint_of_the_originals(yaml: Path) -> None:
    loaded = load_model(TINY / "model.ckpt", yaml)
    expected = torch.load(TINY / "model.ckpt", weights_only=True)["state_dict"]
    assert same(loaded.model, expected)
    assert loaded.model.prediction is Prediction.EPS
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    assert torch.equal(loaded.model.schedule.alphas_cumprod, expected["alphas_cumprod"].double())
    assert loaded.digest == "0d609f62"
    assert "asked for" in loaded.config_why


def test_the_yaml_beside_is_found(tiny: Model, yaml: Path) -> None:
    loaded = load_model(saved(state(tiny), yaml.with_name("tiny.safetensors")))
    assert "beside it" in loaded.config_why
    assert loaded.family.defaults.width == 512  # image_size 64 times 8
    assert same(loaded.model, state(tiny))


def test_weights_are_mapped_and_not_copied(tiny: Model, yaml: Path) -> None:
    path = saved(state(tiny, torch.float16), yaml.with_name("tiny.safetensors"))
    model = load_model(path, yaml, dtype=torch.float16).model
    weights = [p for p in model.parameters() if p.numel() > 64]
    assert {p.dtype for p in weights} == {torch.float16}
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("the mappings of a process are not told here")
    spans = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in maps.read_text().splitlines()
        if line.endswith(str(path))
    ]
    for parameter in weights:
        assert any(start <= parameter.data_ptr() < end for start, end in spans)


@pytest.mark.parametrize("wanted", [None, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_precision(
    tiny: Model, yaml: Path, stored: torch.dtype, wanted: torch.dtype | None
) -> None:
    path = saved(state(tiny, stored), yaml.with_name("tiny.safetensors"))
    model = load_model(path, yaml, dtype=wanted).model
    assert {p.dtype for p in model.parameters()} == {wanted or stored}
    assert model.betas.dtype == model.alphas_cumprod.dtype == torch.float32
    expected = tiny.state_dict()[OUT].to(stored).to(wanted or stored)
    assert torch.equal(model.state_dict()[OUT], expected)
    # A schedule saved in half precision is the YAML's, rounded.
    assert torch.equal(model.alphas_cumprod, tiny.alphas_cumprod)


def test_another_schedule_in_the_file_is_used(tiny: Model, yaml: Path) -> None:
    tensors = state(tiny)
    tensors["alphas_cumprod"] = torch.linspace(0.99, 0.01, 1000)
    for dtype in (torch.float32, torch.float16):
        tensors["alphas_cumprod"] = torch.linspace(0.99, 0.01, 1000).to(dtype)
        path = saved(tensors, yaml.with_name("other.safetensors"))
        if dtype is torch.float32:
            model = load_model(path, yaml).model
            assert model.schedule.alphas_cumprod[0].item() == pytest.approx(0.99)
    tensors["alphas_cumprod"] = torch.zeros(1000)
    saved(tensors, path)
    with pytest.raises(CheckpointError, match="alphas_cumprod must decrease"):
        load_model(path, yaml)


def test_what_follows_from_the_yaml_may_be_missing(tiny: Model, yaml: Path) -> None:
    position = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    parts = ("model.", "first_stage_model.", "cond_stage_model.")
    tensors = {k: v for k, v in state(tiny).items() if k.startswith(parts) and k != position}
    tensors["loss.logvar"] = torch.zeros(())
    model = load_model(saved(tensors, yaml.with_name("bare.safetensors")), yaml).model
    assert torch.equal(model.alphas_cumprod, tiny.alphas_cumprod)
    assert torch.equal(model.state_dict()[position], torch.arange(77)[None])
    tensors[position] = torch.zeros(1, 77)  # damaged, as some merging tools leave it
    model = load_model(saved(tensors, yaml.with_name("bare.safetensors")), yaml).model
    assert torch.equal(model.state_dict()[position], torch.arange(77)[None])


def with_ema(tiny: Model) -> dict[str, Tensor]:
    tensors = state(tiny)
    network = [key for key in tensors if key.startswith("model.")]
    copies = {ema_key(key): tensors[key] + 1 for key in network}
    return {**tensors, **copies, "model_ema.decay": torch.tensor(0.9999)}


def test_ema_copies_are_used_where_the_yaml_says_so(tiny: Model, yaml: Path) -> None:
    path = saved(with_ema(tiny), yaml.with_name("ema.safetensors"))
    plain = load_model(path, yaml)
    assert torch.equal(plain.model.state_dict()[OUT], tiny.state_dict()[OUT])
    assert plain.notes == ()
    averaged = load_model(path, yaml, ["model.params.use_ema=true"])
    assert torch.equal(averaged.model.state_dict()[OUT], tiny.state_dict()[OUT] + 1)
    assert "EMA" in averaged.notes[0]


def complaint(*arguments: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_misfit_names_its_keys_at_most_ten_of_a_kind(tiny: Model, yaml: Path) -> None:
    tensors = state(tiny)
    gone = [key for key in tensors if key.startswith("first_stage_model.decoder.up.")][:12]
    for key in gone:
        del tensors[key]
    tensors["control_model.zero"] = torch.zeros(1)
    tensors[OUT] = torch.zeros(9)
    message = complaint(saved(tensors, yaml.with_name("x.safetensors")), yaml)
    assert "x.safetensors: does not fit" in message
    assert "missing 12" in message
    assert "and 2 more" in message
    assert "unexpected 1: control_model.zero" in message
    assert f"misshapen 1: {OUT} [9] for [4]" in message


def test_the_yaml_that_fits_is_named(tiny: Model, yaml: Path) -> None:
    path = saved(state(tiny), yaml.with_name("tiny.safetensors"))
    wrong = write(v2_tree(), yaml.with_name("wrong.yaml"))
    assert f"use --config {yaml}" in complaint(path, wrong)


def test_a_broken_yaml_beside_is_not_recommended(tiny: Model, tmp_path: Path) -> None:
    path = saved(state(tiny), tmp_path / "tiny.safetensors")
    (tmp_path / "tiny.yaml").write_text("model: {target: nonsense}")
    wrong = write(v2_tree(), tmp_path / "wrong.yaml")
    assert "is the YAML the right one?" in complaint(path, wrong)


def test_errors_come_before_weights(tmp_path: Path, yaml: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_model(tmp_path / "none.ckpt")
    with pytest.raises(CheckpointError, match="unknown model family"):
        load_model(saved({"x": torch.zeros(1)}, tmp_path / "x.safetensors"))
    with pytest.raises(ConfigError, match="scale_factor"):
        load_model(TINY / "model.ckpt", yaml, ["model.params.scale_facto=1"])


def test_overrides_and_prediction(yaml: Path) -> None:
    loaded = load_model(TINY / "model.ckpt", yaml, ["model.params.scale_factor=0.5"], "v")
    assert loaded.model.scale_factor == 0.5
    assert loaded.model.prediction is Prediction.V
    assert loaded.prediction_why == "asked for"
    assert loaded.family.prediction == "v"


# --- eps or v -------------------------------------------------------------------------------------


def echoing(model: Model, gain: float) -> Model:
    """A network that gives `gain` times its input back, as nearly as it is linear in it."""
    network = model.network

    def forward(x: Tensor, t: Tensor, context: Tensor, y: Tensor | None = None) -> Tensor:
        assert t.tolist() == [999.0]
        assert context.shape[:2] == (1, 77)
        z = torch.linspace(-1, 1, x.shape[-1]).expand_as(x)  # some image
        return gain * x + (gain - 1) * z

    network.forward = forward  # type: ignore[method-assign, assignment]
    return model


@pytest.mark.parametrize(
    ("gain", "expected"), [(1.0, "eps"), (0.93, "eps"), (0.07, "v"), (0.0, "v"), (-0.05, "v")]
)
def test_the_measurement_on_known_answers(gain: float, expected: str) -> None:
    prediction, why = measure_prediction(echoing(make(v2_tree()), gain))
    assert prediction == expected
    assert "measured" in why


def noise_copier() -> dict[str, Tensor]:
    """Weights of a real network whose output is its input: what an eps network has to learn.

    The first convolution passes the four channels on; everything between adds nothing; the norm
    before the last convolution sees, for each channel, its value and its negative, which SiLU turns
    back into the value: silu(x) - silu(-x) = x.
    """
    tree = v2_tree()
    model = make(tree)
    tensors = {key: torch.zeros_like(value) for key, value in state(model).items()}
    tensors |= {k: v for k, v in state(model).items() if not k.startswith("model.")}
    prefix = "model.diffusion_model."
    first, last = tensors[f"{prefix}input_blocks.0.0.weight"], tensors[f"{prefix}out.2.weight"]
    skip = tensors[f"{prefix}output_blocks.1.0.skip_connection.weight"]
    for channel in range(32):
        skip[channel, 32 + channel] = 1.0  # the second half of the input is the skip
    tensors[f"{prefix}out.0.weight"].fill_(1.0)
    for channel in range(4):
        # Two of the 32 channels, which are groups of one, carry a latent channel and its negative.
        first[2 * channel, channel, 1, 1] = 1.0
        first[2 * channel + 1, channel, 1, 1] = -1.0
        last[channel, 2 * channel, 1, 1] = 1.0
        last[channel, 2 * channel + 1, 1, 1] = -1.0
    return tensors


@pytest.fixture
def tiny_families(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two v2 families, recognised by the tiny network and with tiny YAMLs."""
    yamls = {
        "v2": write(v2_tree(), tmp_path / "eps.yml"),
        "v2-v": write(v2_tree(parameterization="v"), tmp_path / "v.yml"),
    }
    needs: dict[str, Pattern] = {"model.diffusion_model.input_blocks.0.0.weight": (32, 4, 3, 3)}
    twins = {name: replace(FAMILIES[name], needs=needs) for name in yamls}
    for name in reversed(list(FAMILIES)):  # put back last to first, so in the order of before
        monkeypatch.delitem(FAMILIES, name)
    for name, family in twins.items():
        monkeypatch.setitem(FAMILIES, name, family)
    monkeypatch.setattr(choice_module, "yaml_of", lambda family: yamls[family.name])


@pytest.mark.usefixtures("tiny_families")
def test_a_v2_checkpoint_is_measured_and_the_choice_is_told(tmp_path: Path) -> None:
    eps = load_model(saved(noise_copier(), tmp_path / "a.safetensors"))
    assert (eps.family.name, eps.model.prediction) == ("v2", Prediction.EPS)
    assert "measured" in eps.prediction_why
    # Random weights do not copy their input.
    v = load_model(saved(state(make(v2_tree())), tmp_path / "b.safetensors"))
    assert (v.family.name, v.model.prediction) == ("v2-v", Prediction.V)
    assert v.family.defaults.width == 768
    asked = load_model(tmp_path / "a.safetensors", prediction="v")
    assert (asked.family.name, asked.prediction_why) == ("v2-v", "asked for")


AUTOENCODER = "first_stage_model."


@pytest.mark.parametrize("prefix", ["", AUTOENCODER])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_autoencoder_takes_the_place(
    yaml: Path, tmp_path: Path, prefix: str, dtype: torch.dtype
) -> None:
    model = load_model(TINY / "model.ckpt", yaml, dtype=dtype).model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    other = {k: v for k, v in state(make(v1_tree(), seed=5)).items() if k.startswith(AUTOENCODER)}
    bare = {prefix + k.removeprefix(AUTOENCODER): v for k, v in other.items()}
    swap_autoencoder(model, saved(bare, tmp_path / "vae.safetensors"))
    for key, value in model.state_dict().items():
        expected = other[key].to(dtype) if key in other else before[key]
        assert torch.equal(value, expected), key
    assert not any(parameter.requires_grad for parameter in model.parameters())
    images = model.decode(torch.zeros(1, 4, 4, 4))
    assert images.shape == (1, 3, 32, 32)


def test_an_autoencoder_that_does_not_fit_changes_nothing(yaml: Path, tmp_path: Path) -> None:
    model = load_model(TINY / "model.ckpt", yaml).model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    wide = {"post_quant_conv.weight": torch.zeros(16, 16, 1, 1)}
    with pytest.raises(CheckpointError, match="16 channels, and the model has latents of 4"):
        swap_autoencoder(model, saved(wide, tmp_path / "wide.safetensors"))
    with pytest.raises(CheckpointError, match="no such file; check --vae"):
        swap_autoencoder(model, tmp_path / "none.safetensors")
    assert same(model, before)


def test_a_part_may_come_from_a_file_of_its_own(tiny: Model, tmp_path: Path, yaml: Path) -> None:
    whole = state(tiny)
    first = "first_stage_model."
    bare = {k.removeprefix(first): v + 1 for k, v in whole.items() if k.startswith(first)}
    vae = saved(bare, tmp_path / "vae.safetensors")
    rest = {key: value for key, value in whole.items() if not key.startswith(first)}
    for name, tensors in (("rest", rest), ("whole", whole)):
        path = saved(tensors, tmp_path / f"{name}.safetensors")
        loaded = load_model(path, yaml, components={first: vae}).model.state_dict()
        assert all(torch.equal(loaded[first + key], value) for key, value in bare.items())
        assert torch.equal(loaded[OUT], whole[OUT])


def test_a_missing_part_is_named_with_its_flag(tiny: Model, tmp_path: Path, yaml: Path) -> None:
    whole = state(tiny)
    for prefix, words in (
        ("first_stage_model.", "contains no autoencoder; give a file with --vae"),
        ("cond_stage_model.", "contains no text encoder; use a checkpoint that has a text encoder"),
        ("model.", "contains no network; use a checkpoint that has a network"),
    ):
        rest = {key: value for key, value in whole.items() if not key.startswith(prefix)}
        assert words in complaint(saved(rest, tmp_path / "rest.safetensors"), yaml)
