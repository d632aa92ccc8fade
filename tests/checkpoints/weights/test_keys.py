"""EMA names, and which keys may be missing or left over."""

from __future__ import annotations

from ldm.checkpoints.weights.keys import (
    Fit,
    compare,
    ema_copies,
    ema_key,
    explain,
    is_inert,
    listed,
    may_be_missing,
    part_of,
)

NET = "model.diffusion_model."
EXPECTED = {
    f"{NET}out.0.bias": (4,),
    "first_stage_model.quant_conv.weight": (8, 8, 1, 1),
    "alphas_cumprod": (1000,),
    "cond_stage_model.transformer.text_model.embeddings.position_ids": (1, 77),
}


def test_ema_names_have_no_dots() -> None:
    assert ema_key(f"{NET}out.0.bias") == "model_ema.diffusion_modelout0bias"
    keys = [f"{NET}out.0.bias", f"{NET}out.0.weight", "model_ema.diffusion_modelout0bias"]
    assert ema_copies(keys) == {keys[0]: keys[2]}


def test_the_same_keys_fit() -> None:
    assert compare(EXPECTED, EXPECTED) == Fit((), (), ())


def test_what_follows_from_the_yaml_may_be_missing() -> None:
    found = {key: shape for key, shape in EXPECTED.items() if key.startswith(("model.", "first"))}
    assert compare(found, EXPECTED).good


def test_training_left_overs_are_inert() -> None:
    left_over = [
        "model_ema.decay",
        "loss.discriminator.main.0.weight",
        "first_stage_model.loss.logvar",
        "lvlb_weights",
        "posterior_variance",
        "safety_checker.concept_embeds",
        "cond_stage_model.model.attn_mask",
    ]
    assert compare({**EXPECTED, **dict.fromkeys(left_over, (1,))}, EXPECTED).good
    assert all(is_inert(key) for key in left_over)
    assert not is_inert("cond_stage_model.model.token_embedding.weight")
    assert not may_be_missing(f"{NET}out.0.bias")


def test_every_fault_is_reported() -> None:
    found = {
        **EXPECTED,
        "first_stage_model.quant_conv.weight": (6, 6, 1, 1),
        "control_model.x": (2,),
    }
    del found[f"{NET}out.0.bias"]
    fit = compare(found, EXPECTED)
    assert not fit.good
    report = explain(fit)
    assert f"missing 1: {NET}out.0.bias" in report
    assert "unexpected 1: control_model.x" in report
    assert (
        "misshapen 1: first_stage_model.quant_conv.weight [6, 6, 1, 1] for [8, 8, 1, 1]" in report
    )
    assert "\n" not in report


def test_at_most_ten_keys_then_a_count() -> None:
    keys = [f"k{index:02}" for index in range(13)]
    assert listed(keys) == ", ".join(keys[:10]) + " and 3 more"
    assert listed(keys[:10]) == ", ".join(keys[:10])


def test_parts() -> None:
    assert part_of(f"{NET}out.0.bias") == "network"
    assert part_of("cond_stage_model.x") == "text encoder"
    assert part_of("betas") == "other"
