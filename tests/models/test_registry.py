"""YAML to model: the published models' keys exactly, and a clear line for every other YAML."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.checkpoints.config import Config, override, parse_config, read_config, resource
from ldm.errors import ConfigError
from ldm.models.registry import TARGETS, build, build_autoencoder, build_first_stage
from ldm.nn.vq import VQModelInterface
from ldm.sampling.denoiser import Prediction
from tests.golden_keys import AUTOENCODERS, MODELS, golden_shapes, model_shapes

SCHEDULER = {
    "target": "ldm.lr_scheduler.LambdaLinearScheduler",
    "params": {
        "warm_up_steps": [10000], "cycle_lengths": [10000000000000], "f_start": [1e-6],
        "f_max": [1.0], "f_min": [1.0],
    },
}  # fmt: skip
TRAINING: dict[str, Any] = {
    "num_timesteps_cond": 1,
    "log_every_t": 200,
    "first_stage_key": "jpg",
    "cond_stage_key": "txt",
    "cond_stage_trainable": False,
    "monitor": "val/loss_simple_ema",
    "scheduler_config": SCHEDULER,
}
FINETUNE: dict[str, Any] = {
    "finetune_keys": None,
    "concat_keys": ["mask", "masked_image"],
    "keep_finetune_dims": 4,
    "c_concat_log_start": None,
    "c_concat_log_end": None,
    "masked_image_key": "masked_image",
}
# What the original files say beyond ours, by file.
ORIGINAL: dict[str, dict[str, Any]] = {
    "v1-inpainting-inference": FINETUNE,
    "v2-inpainting-inference": FINETUNE,
    "v2-midas-inference": {"finetune_keys": None, "concat_keys": ["midas_in"]},
    "x4-upscaling": {"low_scale_key": "lr", "noise_level_key": None},
    "v2-1-stable-unclip-h-inference": {"embedding_dropout": 0.25, "embedding_key": "jpg"},
    "v2-1-stable-unclip-l-inference": {"embedding_dropout": 0.25, "freeze_embedder": True},
}
NAMES = [yaml for yaml, _ in MODELS.values()]


def packaged(name: str) -> Config:
    path = name if "/" in name else f"stable-diffusion/{name}"
    return read_config(resource("configs") / f"{path}.yaml")


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        model = build(config)
    assert all(p.is_meta for p in model.parameters())
    return {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def with_training(name: str) -> Config:
    """A packaged YAML with everything that the original file says besides."""
    tree = copy.deepcopy(packaged(name).tree)
    model = tree["model"]
    model["base_learning_rate"] = 1e-4
    params = model["params"]
    if name.startswith("sdxl/"):
        _add_sgm_training(params)
        return Config(name, tree)
    params.update(TRAINING)
    params.update(ORIGINAL.get(name.rpartition("/")[2], {}))
    params["unet_config"]["params"].update(
        {"image_size": 32, "use_checkpoint": True, "use_fp16": True, "use_bf16": False,
         "spatial_transformer_attn_type": "softmax-xformers"}
    )  # fmt: skip
    stage = params["first_stage_config"]["params"]
    stage.update({"monitor": "val/rec_loss", "lossconfig": {"target": "torch.nn.Identity"}})
    stage["ddconfig"].update({"attn_type": "vanilla-xformers", "dropout": 0.0})
    conditioner = params["cond_stage_config"]
    if "OpenCLIP" in str(conditioner):
        used = {"freeze": True, "device": "cuda", "version": "laion2b_s32b_b79k"}
        conditioner.setdefault("params", {}).update(used)
    if "ClassEmbedder" in str(conditioner):
        conditioner["params"]["key"] = "class_label"
    if name.startswith("latent-diffusion/"):
        params.update({"loss_type": "l1", "concat_mode": False})
        loss = {"target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator"}
        stage.update({"ckpt_path": "models/first_stage_models/vq-f4/model.ckpt"})
        stage["lossconfig"] = loss
    if "noise_aug_config" in params:
        params["noise_aug_config"]["params"]["clip_stats_path"] = "checkpoints/stats.th"
    tree["data"] = {"target": "ldm.data.laion.WebDataModuleFromConfig", "params": {"x": 1}}
    tree["lightning"] = {"trainer": {"benchmark": True}}
    return Config(name, tree)


def _add_sgm_training(params: dict[str, Any]) -> None:
    """What generative-models' files for inference and for training say besides."""
    nothing = {"target": "sgm.modules.diffusionmodules.loss.StandardDiffusionLoss"}
    params |= {"disable_first_stage_autocast": True, "input_key": "jpg", "loss_fn_config": nothing}
    params |= {"use_ema": False, "network_wrapper": None, "sampler_config": nothing}
    params["denoiser_config"]["params"]["weighting_config"] = nothing
    network = {"use_checkpoint": True, "spatial_transformer_attn_type": "softmax-xformers"}
    params["network_config"]["params"] |= network
    for embedder in params["conditioner_config"]["params"]["emb_models"]:
        embedder |= {"is_trainable": False, "ucg_rate": 0.1}
        if "OpenCLIP" in embedder["target"]:
            embedder["params"] |= {"version": "laion2b_s39b_b160k", "freeze": True}
    stage = params["first_stage_config"]
    stage["target"] = "sgm.models.autoencoder.AutoencoderKLInferenceWrapper"
    stage["params"] |= {"monitor": "val/rec_loss"}
    stage["params"]["ddconfig"]["attn_type"] = "vanilla-xformers"


@pytest.mark.parametrize("name", MODELS)
def test_keys_and_shapes_are_the_published_models(name: str) -> None:
    assert shapes(packaged(MODELS[name][0])) == model_shapes(name)


@pytest.mark.parametrize("name", MODELS)
def test_an_original_with_its_training_gives_the_same(name: str) -> None:
    assert shapes(with_training(MODELS[name][0])) == model_shapes(name)


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_keys_and_shapes_are_the_published_autoencoders(name: str) -> None:
    with torch.device("meta"):
        autoencoder = build_first_stage(packaged(AUTOENCODERS[name]))
    keys = {key: tuple(tensor.shape) for key, tensor in autoencoder.state_dict().items()}
    assert keys == model_shapes(name)


@pytest.mark.parametrize(
    ("name", "n_embed", "embed_dim", "mult"),
    [
        ("autoencoder-vq-f16", 16384, 8, [1, 1, 2, 2, 4]),
        ("autoencoder-vq-f8-n256", 256, 4, [1, 2, 2, 4]),
    ],
)
def test_a_bare_autoencoder_with_a_codebook(
    name: str, n_embed: int, embed_dim: int, mult: list[int]
) -> None:
    config = bare_vq(n_embed=n_embed, embed_dim=embed_dim)
    config.tree["model"]["params"]["ddconfig"] |= {
        "z_channels": embed_dim, "ch_mult": mult, "attn_resolutions": [16 if len(mult) > 4 else 32],
    }  # fmt: skip
    with torch.device("meta"):
        autoencoder = build_first_stage(config)
    keys = {key: tuple(tensor.shape) for key, tensor in autoencoder.state_dict().items()}
    assert keys == model_shapes(name)


def bare_vq(**params: Any) -> Config:
    stage = packaged("latent-diffusion/cin-ldm-vq-f8").tree["model"]["params"]["first_stage_config"]
    stage["target"] = "ldm.models.autoencoder.VQModel"
    stage["params"] |= {**params, "lossconfig": {"target": "x"}, "monitor": "val/rec_loss"}
    return Config("vq.yaml", {"model": stage})


def test_only_a_kl_autoencoder_is_trained() -> None:
    with torch.device("meta"):
        assert isinstance(build_first_stage(bare_vq()), VQModelInterface)
        with pytest.raises(ConfigError, match=r"vq\.yaml: .*AutoencoderKL"):
            build_autoencoder(bare_vq())


@pytest.mark.parametrize(
    ("name", "key", "told"),
    [
        ("celebahq-ldm-vq-4", "none", "None"),
        ("lsun_churches-ldm-kl-8", "none", "None"),
        ("cin256-v2", "crossattn", "ClassEmbedder"),
        ("txt2img-1p4B-eval", "crossattn", "BERTEmbedder"),
        ("layout2img-openimages256", "crossattn", "BERTEmbedder"),
        ("inpainting_big", "concat", "None"),
        ("bsr_sr", "concat", "None"),
        ("semantic_synthesis512", "concat", "SpatialRescaler"),
    ],
)
def test_what_a_latent_diffusion_model_is_told(name: str, key: str, told: str) -> None:
    with torch.device("meta"):
        model = build(packaged(f"latent-diffusion/{name}"))
    assert model.conditioning_key == key
    assert type(model.cond_stage_model).__name__.replace("NoneType", "None") == told
    assert model.prediction is Prediction.EPS
    assert model.use_ema is (name not in ("cin256-v2", "txt2img-1p4B-eval"))


def test_a_finetuned_upscaler() -> None:
    tree = copy.deepcopy(packaged("v2-inference").tree)
    tree["model"]["target"] = "ldm.models.diffusion.ddpm.LatentUpscaleFinetuneDiffusion"
    tree["model"]["params"] |= {**FINETUNE, "concat_keys": ["lr"], "reshuffle_patch_size": None}
    del tree["model"]["params"]["masked_image_key"]
    assert len(shapes(Config("x", tree))) == len(golden_shapes("sd-v2"))


def test_what_a_yaml_says_reaches_the_model() -> None:
    with torch.device("meta"):
        model = build(packaged("x4-upscaling"))
    assert model.prediction is Prediction.V
    assert (model.scale_factor, model.factor, model.latent_channels) == (0.08333, 4, 4)
    assert model.conditioning_key == "hybrid-adm"
    assert not model.use_ema
    assert model.betas[0].item() == pytest.approx(1e-4)
    assert model.betas[-1].item() == pytest.approx(0.02)
    assert build_prediction("v2-inference") is Prediction.EPS
    assert build_prediction("v2-inference-v") is Prediction.V


def build_prediction(name: str) -> Prediction:
    with torch.device("meta"):
        return build(packaged(name)).prediction


def complaint(config: Config) -> str:
    with pytest.raises(ConfigError) as caught, torch.device("meta"):
        build(config)
    message = str(caught.value)
    assert "\n" not in message
    assert config.source in message
    return message


@pytest.mark.parametrize(
    ("setting", "key", "hint"),
    [
        ("model.params.scale_facter=0.2", "model.params.scale_facter", "scale_factor"),
        ("model.params.unet_config.params.num_head=8", "unet_config.params.num_head", "num_heads"),
        (
            "model.params.first_stage_config.params.ddconfig.ch_mul=[1]",
            "ddconfig.ch_mul",
            "ch_mult",
        ),
        ("model.params.cond_stage_config.params.maxlength=5", "params.maxlength", "max_length"),
        ("model.parms.scale_factor=0.2", "model.parms", "params"),
        ("modl.params.scale_factor=0.2", "'modl'", "model"),
    ],
)
def test_a_typo_names_file_key_and_nearest_name(setting: str, key: str, hint: str) -> None:
    message = complaint(override(packaged("v1-inference"), [setting]))
    assert "v1-inference.yaml" in message
    assert key in message
    assert f"nearest known name is {hint!r}" in message


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ("model.params.scale_factor=big", "must be an integer or a number, not 'big'"),
        ("model.params.scale_factor=true", "must be an integer or a number, not True"),
        ("model.params.unet_config.params.channel_mult=4", "must be a list"),
        ("model.params.unet_config.params.dims=3", "must be 2"),
        ("model.params.unet_config.params.in_channels=null", "in_channels is missing"),
        ("model.params.unet_config=null", "unet_config is missing"),
        ("model.params.unet_config.params.num_heads=null", "num_head"),
        ("model.params.unet_config.params.transformer_depth=[1]", "levels"),
        ("model.params.parameterization=w", "must be one of eps, v, x0"),
        ("model.params.beta_schedule=straight", "unknown beta schedule"),
        ("model.params.unet_config=1", "must be a mapping, not 1"),
        ("model.params.cond_stage_config.params.version=mine", "text_config"),
        ("model.params.given_betas=[1]", "given_betas must be None"),
        ("model.params.first_stage_config.params.ddconfig.attn_type=linear", "attn_type must be"),
        ("model.params.first_stage_config.params.ddconfig.double_z=false", "double_z: true"),
        ("model=null", "must have a `target:`"),
    ],
)
def test_a_bad_value_is_one_clear_line(setting: str, word: str) -> None:
    assert word in complaint(override(packaged("v1-inference"), [setting]))


@pytest.mark.parametrize(
    ("stage", "word"),
    [
        ({}, "unet_config must have a `target:`"),
        ({"target": "x", "params": [1]}, "unet_config.params must be a mapping"),
        ({"target": ["x"]}, "unet_config must have a `target:`"),
        ({"target": "x", "parms": {}}, "unknown key model.params.unet_config.parms"),
    ],
)
def test_a_malformed_section(stage: dict[str, Any], word: str) -> None:
    tree = copy.deepcopy(packaged("v1-inference").tree)
    tree["model"]["params"]["unet_config"] = stage
    assert word in complaint(Config("x.yaml", tree))


def test_a_yaml_without_a_model() -> None:
    assert "no `model:` section" in complaint(parse_config("data: {}", "x.yaml"))


@pytest.mark.parametrize(
    ("target", "word"),
    [
        ("os.system", "never imported"),
        ("ldm.models.diffusion.ddpm.LatentDifusion", "'ldm.models.diffusion.ddpm.LatentDiffusion'"),
        ("torch.nn.Identity", "does not belong here"),
        ("ldm.models.autoencoder.AutoencoderKL", "does not belong here"),
    ],
)
def test_other_targets_are_refused(target: str, word: str) -> None:
    message = complaint(override(packaged("v1-inference"), [f"model.target={target}"]))
    assert word in message
    assert "model.target" in message


def test_nothing_that_a_yaml_names_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "named_by_a_yaml.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    name = "named_by_a_yaml.Thing"
    for key in ("unet_config", "first_stage_config", "cond_stage_config"):
        complaint(override(packaged("v1-inference"), [f"model.params.{key}.target={name}"]))
    tree = packaged("v1-inference").tree
    tree["model"]["params"]["scheduler_config"] = {"target": name}
    tree["data"] = {"target": name}
    shapes(Config("x", tree))
    assert "named_by_a_yaml" not in sys.modules


def test_a_dropped_conditioner_is_none() -> None:
    for stage in ("__is_unconditional__", {"target": "torch.nn.Identity"}):
        tree = copy.deepcopy(packaged("v1-inference").tree)
        tree["model"]["params"]["cond_stage_config"] = stage
        keys = shapes(Config("x", tree))
        assert not [key for key in keys if key.startswith("cond_stage_model.")]


def test_autoencoder_alone_or_within_a_model() -> None:
    whole = packaged("v1-inference")
    stage = whole.tree["model"]["params"]["first_stage_config"]
    with torch.device("meta"):
        inner = build_autoencoder(whole)
        alone = build_autoencoder(Config("x", {"model": stage}))
    assert inner.state_dict().keys() == alone.state_dict().keys()


def test_every_target_is_of_the_originals() -> None:
    """Stable Diffusion 3's have modules without a package."""
    sd3 = ("sd3_infer.", "sd3_impls.", "mmditx.")
    assert all(target.startswith(("ldm.", "sgm.", *sd3)) for target in TARGETS)
