"""Depth as a condition: the original's numbers, maps of one's own, and the files of the network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from ldm.checkpoints.weights.depth_keys import transformers_names
from ldm.errors import CheckpointError, ImageError
from ldm.models.depth import (
    TRAINING_MARGIN,
    depth_concat,
    depth_from_map,
    depth_image,
    estimate_depth,
    load_depth_model,
    network_input,
    network_size,
)
from tests.golden_data import tensors
from tests.tiny_dpt import TINY_DPT, tiny_dpt

FOLDER = "modules/depth-postprocess"
TOLERANCE = 1e-4  # of the golden data, for values of order 1


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return {**tensors(f"{FOLDER}/inputs.safetensors"), **tensors(f"{FOLDER}/outputs.safetensors")}


@pytest.fixture(scope="module")
def image(golden: dict[str, Tensor]) -> Tensor:
    return (golden["image"].float() / 127.5 - 1).permute(2, 0, 1)[None]


@pytest.fixture(scope="module")
def prediction(golden: dict[str, Tensor], image: Tensor) -> Tensor:
    return estimate_depth(lambda _: golden["raw_depth"][:, None], image)


def test_what_the_network_is_shown(golden: dict[str, Tensor], image: Tensor) -> None:
    shown = network_input(image)
    assert list(shown.shape) == golden["midas_in_shape"].tolist()
    difference = shown[..., ::8, ::8] - golden["midas_in_strided"]
    assert difference.abs().max() <= TOLERANCE


def test_the_prediction_at_the_networks_size(golden: dict[str, Tensor], prediction: Tensor) -> None:
    difference = prediction[..., ::8, ::8] - golden["prediction_strided"]
    assert difference.abs().max() <= TOLERANCE * golden["prediction_strided"].std()


@pytest.mark.parametrize(("margin", "name"), [(0.0, "script"), (TRAINING_MARGIN, "training")])
def test_the_condition(
    margin: float, name: str, golden: dict[str, Tensor], prediction: Tensor
) -> None:
    expected = golden[f"cond_{name}"]
    found = depth_concat(prediction, (16, 24), margin=margin)
    assert found.shape == expected.shape
    # The margin moves the greatest value by 4e-6.
    assert (found - expected).abs().max() <= 1e-6
    assert found.amin((1, 2, 3)).tolist() == [-1, -1]
    assert (found.amax() == 1) == (margin == 0)


def test_the_image_of_depth(golden: dict[str, Tensor], prediction: Tensor) -> None:
    image = depth_image(prediction[0])
    assert image.dtype == np.uint8
    assert image.shape == (256, 384)
    expected = golden["display_depth_strided"].numpy().astype(int)
    assert np.abs(image[::8, ::8] - expected).max() <= 1
    assert (image[::8, ::8] == expected).mean() > 0.99


@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.03), (16, 2e-4)])
def test_a_saved_image_is_the_same_condition(
    bits: int, tolerance: float, prediction: Tensor
) -> None:
    image = depth_image(prediction[1], bits)
    assert (int(image.min()), int(image.max())) == (0, 2**bits - 1)
    again = depth_concat(depth_from_map(image), (16, 24))
    assert (again - depth_concat(prediction[1:], (16, 24))).abs().max() < tolerance


def test_other_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="8 or 16 bits, not 12"):
        depth_image(torch.rand(1, 4, 4), 12)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (512, 512, (384, 384)),
        (128, 192, (256, 384)),  # enlarged until the longer side fits
        (768, 512, (576, 384)),  # reduced until the shorter one does
        (1024, 512, (768, 384)),
        (512, 640, (384, 480)),
        (384, 432, (384, 448)),  # 13.5 times 32: to the even one, as numpy rounds
        (384, 400, (384, 384)),  # 12.5 times 32
        (64, 4096, (32, 384)),
        (1, 1, (384, 384)),
    ],
)
def test_the_networks_size(height: int, width: int, expected: tuple[int, int]) -> None:
    assert network_size(height, width) == expected


RAMP = np.add.outer(np.arange(20), np.arange(30)) * 4


@pytest.mark.parametrize(
    "values",
    [
        RAMP.astype(np.uint8),
        (RAMP * 300).astype(np.uint16),
        RAMP * 0.001 - 7,
    ],
    ids=["uint8", "uint16", "float"],
)
def test_maps_of_every_kind(values: NDArray[Any]) -> None:
    depth = depth_from_map(values)
    assert depth.shape == (1, 1, 20, 30)
    assert depth.dtype == torch.float32
    concat = depth_concat(depth, (4, 6))
    assert concat.shape == (1, 1, 4, 6)
    assert concat[0, 0, 0, 0] == -1
    assert concat[0, 0, -1, -1] == 1
    expected = depth_concat(depth_from_map(RAMP), (4, 6))
    assert (concat - expected).abs().max() < 1e-4
    inverted = depth_concat(depth_from_map(values, invert=True), (4, 6))
    assert (concat + inverted).abs().max() < 1e-4


def test_a_large_map_is_averaged_not_sampled() -> None:
    """Lines of one pixel would vanish, or stand for all, at the latents' size."""
    values = np.zeros((1024, 1024), np.uint8)
    values[:, 512:] = 100
    values[::4] = 255
    depth = depth_from_map(values)
    assert depth.shape == (1, 1, 384, 384)
    concat = depth_concat(depth, (64, 64))[0, 0]
    assert concat[:, :28].max() < -0.5
    assert concat[:, 36:].min() > 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((8, 8), 7, np.uint8), "is the same everywhere"),
        (np.full((8, 8), 700.0) + RAMP[:8, :8] * 1e-6, "is the same everywhere"),
        (np.where(RAMP == 8, np.nan, RAMP), "NaN or infinity"),
        (np.where(RAMP == 8, -np.inf, RAMP), "NaN or infinity"),
        (RAMP[None], r"\[1, 20, 30\] is not \[height, width\]"),
        (RAMP[:, :0], r"\[20, 0\] is not"),
    ],
)
def test_what_is_no_depth_map(values: NDArray[Any], message: str) -> None:
    with pytest.raises(ImageError, match=rf"^wall\.png: .*{message}") as caught:
        depth_from_map(values, source="wall.png")
    assert "\n" not in str(caught.value)


def test_depth_that_is_flat_where_it_matters() -> None:
    """One of a batch is enough, and detail that the latents do not see is none."""
    flat = torch.ones(2, 1, 64, 64)
    flat[0, 0, :, 32:] = 0
    with pytest.raises(ImageError, match=r"^a\.png: is the same everywhere"):
        depth_concat(flat, (8, 8), source="a.png")
    depth_concat(flat[:1], (8, 8))
    with pytest.raises(ImageError, match="is the same everywhere"):
        depth_image(flat[1])


Make = Callable[[], dict[str, Tensor]]


def save(path: Path, state: dict[str, Tensor]) -> Path:
    state = {key: values.contiguous() for key, values in state.items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def own_names() -> dict[str, Tensor]:
    return tiny_dpt().model.state_dict()


def other_names() -> dict[str, Tensor]:
    """What transformers would save: no classifier, queries, keys and values apart."""
    state: dict[str, Tensor] = {}
    for key, values in own_names().items():
        names = transformers_names(key)
        state.update(zip(names, values.chunk(len(names)), strict=True) if names else ())
    return state


def in_checkpoint() -> dict[str, Tensor]:
    state = {f"depth_model.model.{key}": values for key, values in own_names().items()}
    return {**state, "model.diffusion_model.out.2.bias": torch.zeros(4)}


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("midas.pt", own_names),
        ("pytorch_model.bin", other_names),
        ("model.safetensors", other_names),
        ("v2-midas.safetensors", in_checkpoint),
    ],
)
def test_each_layout_is_the_same_network(name: str, make: Make, tmp_path: Path) -> None:
    found = load_depth_model(save(tmp_path / name, make()), sizes=TINY_DPT)
    expected = tiny_dpt()
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(found(x), expected(x))
    assert not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())
    assert found.state_dict().keys() == expected.state_dict().keys()


def test_precision_is_the_files_unless_asked(tmp_path: Path) -> None:
    half = {key: values.half() for key, values in own_names().items()}
    path = save(tmp_path / "midas.safetensors", half)
    assert load_depth_model(path, sizes=TINY_DPT).dtype == torch.float16
    raised = load_depth_model(path, torch.float32, sizes=TINY_DPT)
    assert {values.dtype for values in raised.state_dict().values()} == {torch.float32}


def changed(make: Make, drop: str = "", **more: Tensor) -> dict[str, Tensor]:
    state: dict[str, Tensor] = make()
    if drop:
        del state[drop]
    return {**state, **more}


PROJ = "dpt.encoder.layer.1.attention.attention.key.weight"
OUT = "scratch.output_conv.4.weight"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (changed(own_names, OUT), f"missing 1: {OUT}"),
        (changed(other_names, PROJ), f"missing 1: {PROJ}"),
        (changed(own_names, more=torch.zeros(1)), "unexpected 1: more"),
        (changed(other_names, more=torch.zeros(1)), "unexpected 1: more"),
        (changed(own_names, **{OUT: torch.zeros(2, 32, 1, 1)}), "misshapen 1: scratch.output_conv"),
        (changed(other_names, **{PROJ: torch.zeros(32, 31)}), "misshapen 1: dpt.encoder.layer.1"),
        ({"betas": torch.zeros(3)}, "contains no DPT-hybrid depth model; give"),
    ],
)
def test_a_file_that_does_not_fit(state: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    path = save(tmp_path / "wrong.safetensors", state)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_depth_model(path, sizes=TINY_DPT)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.pt: no such depth model file; check --depth"):
        load_depth_model(tmp_path / "none.pt")
