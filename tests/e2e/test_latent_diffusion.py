"""The models from before Stable Diffusion: told by a class, a text of their own, a map, nothing."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ldm.checkpoints.config import Config, read_config
from ldm.errors import CheckpointError, ConfigError, JobError, UsageError
from ldm.images.tensors import to_image_array
from ldm.models.conditioning import BERTEmbedder, ClassEmbedder
from ldm.models.image_embedders import SpatialRescaler
from ldm.models.load import load_model
from ldm.models.model import Model
from ldm.models.registry import build
from ldm.nn.unet import UNetConfig, UNetModel
from ldm.sampling.noise import StreamNoise
from ldm.sampling.samplers import final_latent, find_sampler, start_latent
from ldm.sampling.schedule import make_grid
from tests.golden_data import GOLDEN, case, module, tensors, whole
from tests.golden_runs import assert_image, assert_latents
from tests.tiny_models import make, state, v1_tree, write

CASE = "e2e/cin-class-conditional"
# Round-off of other kernels and another order of sums, grown by a few steps of random networks.
TOLERANCE = 1e-4


def class_tree() -> dict[str, Any]:
    """The YAML of the golden class model."""
    return copy.deepcopy(read_config(GOLDEN / CASE / "config.yaml").tree)


def class_state() -> dict[str, Tensor]:
    """The weights of the golden class model, as one checkpoint."""
    return whole({"": module("unet-class"), "first_stage_model.": module("vq-f4")})


# --- classes --------------------------------------------------------------------------------------


@torch.inference_mode()
def test_the_class_network_gives_the_originals_output() -> None:
    config = read_config(GOLDEN / "modules/unet-class/config.yaml").tree
    unet, stage = config["unet_config"]["params"], config["cond_stage_config"]["params"]
    network = UNetModel(UNetConfig(**{k: v for k, v in unet.items() if k != "image_size"}))
    embedder = ClassEmbedder(stage["embed_dim"], stage["n_classes"])
    weights = tensors("modules/unet-class/weights.safetensors")
    parts = (("model.diffusion_model.", network), ("cond_stage_model.", embedder))
    for prefix, part in parts:
        own = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        part.load_state_dict(own)
    inputs = tensors("modules/unet-class/inputs.safetensors")
    expected = tensors("modules/unet-class/outputs.safetensors")
    context, _ = embedder.encode([str(int(label)) for label in inputs["class_label"]])
    assert torch.equal(context, expected["context"])
    out = network(inputs["x"], inputs["timesteps"], context)
    assert (out - expected["out"]).abs().max() < TOLERANCE


@torch.inference_mode()
def test_the_originals_class_images(tmp_path: Path) -> None:
    save_file(class_state(), tmp_path / "model.safetensors")
    (tmp_path / "config.yaml").write_bytes((GOLDEN / CASE / "config.yaml").read_bytes())
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.family.task == "sample"
    model, told = loaded.model, case(f"{CASE}/case.json")
    golden = tensors(f"{CASE}/outputs.safetensors")
    count, shape = told["n_samples_per_class"], tuple(told["shape"])
    noise = StreamNoise(told["seed"], "cpu")
    sampler = find_sampler("ddim")
    sigmas = make_grid(sampler.grid, model.schedule, told["ddim_steps"], "ldm")
    uncond, _ = model.condition([""] * count)
    for index, number in enumerate(told["classes"]):
        cond, _ = model.condition([str(number)] * count)
        x = start_latent(sampler, noise.draw((count, *shape)), float(sigmas[0]))
        denoise = model.denoiser(cond, uncond, told["scale"])
        x = sampler.fn(denoise, x, sigmas, noise=noise, eta=told["ddim_eta"])
        z = final_latent(sampler, x, float(sigmas[-1]))
        assert_latents(z, golden[f"latents_{index}"], TOLERANCE)
        for row, image in enumerate(model.decode(z)):
            wanted = told["images"][index * count + row]
            assert_image(to_image_array(image), GOLDEN / CASE / wanted)


def test_the_last_class_stands_for_none() -> None:
    embedder = ClassEmbedder(4, 21)
    hidden, cut = embedder.encode(["", "20", " 7 "])
    assert hidden.shape == (3, 1, 4)
    assert cut == ["", "", ""]
    assert torch.equal(hidden[0], hidden[1])
    assert torch.equal(hidden[2, 0], embedder.embedding.weight[7])
    assert embedder.unknown_words("7") == []


@pytest.mark.parametrize("name", ["21", "-1", "cat", "1.5", "²"])
def test_what_is_no_class(name: str) -> None:
    with pytest.raises(JobError, match="classes 0 to 20"):
        ClassEmbedder(4, 21).encode([name])


def test_a_table_of_just_imagenet_has_no_class_for_none() -> None:
    with pytest.raises(JobError, match="--scale 1"):
        ClassEmbedder(4).encode([""])
    assert torch.equal(
        (embedder := ClassEmbedder(4)).encode(["999"])[0][0, 0], embedder.embedding.weight[999]
    )


# --- the autoencoder with a codebook --------------------------------------------------------------


def test_a_model_quantises_when_it_decodes() -> None:
    model = make(class_tree())
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    z = model.encode(images)
    assert torch.equal(z, model.encode(images, torch.ones_like(z)))
    assert (model.factor, model.latent_channels) == (4, 3)
    assert torch.equal(model.decode(z), model.first_stage_model.decode(z))
    assert torch.equal(model.decode(z), model.decode(model.first_stage_model.quantize(z)))


def test_the_autoencoder_saved_twice_is_no_fault(tmp_path: Path) -> None:
    """In inpainting_big it is the conditioner too, and so its tensors are in the file twice."""
    tree = class_tree()
    params = tree["model"]["params"]
    params |= {"cond_stage_config": "__is_first_stage__", "concat_mode": True}
    del params["conditioning_key"]
    params["unet_config"]["params"] |= {"in_channels": 7, "use_spatial_transformer": False}
    del params["unet_config"]["params"]["context_dim"]
    whole = state(model := make(tree))
    assert model.conditioning_key == "concat"
    twice = {
        f"cond_stage_model.{key.removeprefix('first_stage_model.')}": values.clone()
        for key, values in whole.items()
        if key.startswith("first_stage_model.")
    }
    config = write(tree, tmp_path / "config.yaml")
    save_file(whole | twice, tmp_path / "last.safetensors")
    loaded = load_model(tmp_path / "last.safetensors")
    assert loaded.family.task == "inpaint"
    assert loaded.model.state_dict().keys() == whole.keys()
    twice["cond_stage_model.quant_conv.extra"] = torch.zeros(3)
    save_file(whole | twice, tmp_path / "last.safetensors")
    with pytest.raises(CheckpointError, match=r"unexpected 1: cond_stage_model\.quant_conv\.extra"):
        load_model(tmp_path / "last.safetensors", config)


# --- the scale that was measured in training ------------------------------------------------------


def test_a_measured_scale_is_in_the_checkpoint(tmp_path: Path) -> None:
    tree = v1_tree()
    tree["model"]["params"]["scale_by_std"] = True
    tensors_ = state(make(tree), torch.float16)
    tensors_["scale_factor"] = torch.tensor(0.2345)
    config = write(tree, tmp_path / "config.yaml")
    save_file(tensors_, tmp_path / "m.safetensors")
    model = load_model(tmp_path / "m.safetensors", config, dtype=torch.float16).model
    assert float(model.scale_factor) == pytest.approx(0.2345, abs=1e-7)
    z = torch.randn(1, 4, 4, 4)
    unscaled = (z / 0.2345).half()
    torch.testing.assert_close(model.decode(z), model.first_stage_model.decode(unscaled).float())
    del tensors_["scale_factor"]
    save_file(tensors_, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="missing 1: scale_factor"):
        load_model(tmp_path / "m.safetensors", config)


# --- a text model of its own ----------------------------------------------------------------------

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog"]


def bert_tree(**stage: Any) -> dict[str, Any]:
    tree = v1_tree()
    tree["model"]["params"]["cond_stage_config"] = {
        "target": "ldm.modules.encoders.modules.BERTEmbedder",
        "params": {"n_embed": 4, "n_layer": 1, "vocab_size": len(WORDS), "max_seq_len": 9, **stage},
    }
    return tree


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A checkpoint of a text model with its YAML and vocabulary beside it."""
    write(bert_tree(), tmp_path / "config.yaml")
    save_file(state(make(bert_tree())), tmp_path / "model.safetensors")
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    return tmp_path / "model.safetensors"


def test_texts_by_the_vocabulary_beside_the_checkpoint(bert: Path) -> None:
    model = load_model(bert).model
    embedder = model.cond_stage_model
    assert isinstance(embedder, BERTEmbedder)
    cond, cut = model.condition(["a cat", "", "a dog a dog a dog a dog"])
    assert cut == ["", "", "dog"]
    ids = torch.tensor(
        [[2, 5, 6, 3, 0, 0, 0, 0, 0], [2, 3, 0, 0, 0, 0, 0, 0, 0], [2, *[5, 7] * 3, 5, 3]]
    )
    assert cond.crossattn is not None
    assert torch.equal(cond.crossattn, embedder(ids))
    assert embedder.unknown_words("a zebra") == ["zebra"]


def test_no_vocabulary_is_told_before_weights_are_read(
    bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bert.with_name("vocab.txt").rename(bert.with_name("words.txt"))
    named = load_model(bert, None, ["model.params.cond_stage_config.params.bert_vocab=words.txt"])
    assert named.model.condition(["a"])[1] == [""]
    monkeypatch.setattr(
        "ldm.models.load.open_weights", lambda header: pytest.fail("weights were read")
    )
    with pytest.raises(CheckpointError, match=r"vocab\.txt: missing; .* needs vocab\.txt"):
        load_model(bert)


def test_a_vocabulary_of_another_model(bert: Path) -> None:
    bert.with_name("vocab.txt").write_text("\n".join([*WORDS, "more"]))
    with pytest.raises(ConfigError, match="has 9 tokens, this model was trained with 8"):
        load_model(bert)


def test_a_model_told_by_tokens_takes_no_texts() -> None:
    model = make(bert_tree(use_tokenizer=False))
    with pytest.raises(UsageError, match="not on text"):
        model.condition(["a cat"])
    embedder = model.cond_stage_model
    assert isinstance(embedder, BERTEmbedder)
    assert embedder(torch.zeros(2, 9, dtype=torch.long)).shape == (2, 9, 4)
    assert embedder.unknown_words("x") == []


# --- maps -----------------------------------------------------------------------------------------


def test_a_map_becomes_few_channels_of_a_latent_s_size() -> None:
    rescaler = SpatialRescaler(n_stages=2, in_channels=5, out_channels=3)
    maps = torch.rand(1, 5, 16, 24)
    out = rescaler(maps)
    assert out.shape == (1, 3, 4, 6)
    # Halved twice by bilinear means of the four pixels around each centre, so in any order.
    means = torch.nn.functional.avg_pool2d(torch.nn.functional.avg_pool2d(maps, 2), 2)
    assert rescaler.channel_mapper is not None
    weight = rescaler.channel_mapper.weight[:, :, 0, 0]
    torch.testing.assert_close(out, torch.einsum("oc,bchw->bohw", weight, means))
    assert SpatialRescaler()(torch.rand(1, 3, 8, 8)).shape == (1, 3, 4, 4)


def test_a_map_is_no_text() -> None:
    with pytest.raises(UsageError, match="on a map"):
        SpatialRescaler().encode(["a"])
    with pytest.raises(ConfigError, match="must be nearest"):
        SpatialRescaler(method="cubic")


def test_a_model_told_by_a_map() -> None:
    tree = class_tree()
    params = tree["model"]["params"]
    params["cond_stage_config"] = {
        "target": "ldm.modules.encoders.modules.SpatialRescaler",
        "params": {"n_stages": 2, "in_channels": 5, "out_channels": 3},
    }
    params["unet_config"]["params"] |= {"in_channels": 6, "use_spatial_transformer": False}
    del params["unet_config"]["params"]["context_dim"]
    model: Model = build(Config("map.yaml", tree))
    assert "cond_stage_model.channel_mapper.weight" in model.state_dict()
