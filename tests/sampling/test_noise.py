from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.sampling.noise import (
    MAX_SEED,
    Generator,
    ImageNoise,
    Rng,
    StreamNoise,
    philox_4x32,
    philox_normal,
)

SHAPE = (2, 4, 8, 8)


def philox(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
    c0, c1, c2, c3 = (np.array([word], np.uint64) for word in counter)
    return [int(word[0]) for word in philox_4x32((c0, c1, c2, c3), key)]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0,) * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF, 0xFFFFFFFF),
            [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers_of_philox(
    counter: tuple[int, ...], key: tuple[int, int], expected: list[int]
) -> None:
    """The test vectors of Random123, the library of philox's authors (kat_vectors)."""
    assert philox(counter, key) == expected


def test_philox_gives_a_gpus_numbers() -> None:
    # torch.manual_seed(0); torch.randn(4, device="cuda")
    expected = torch.tensor([-0.9247, -0.4253, -2.6438, 0.1452])
    assert (philox_normal(0, (4,)) - expected).abs().max() < 5.1e-5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("seed", [0, 1, 42, 2**32 + 5, 2**63, MAX_SEED])
def test_philox_agrees_with_the_gpu_here(seed: int) -> None:
    generator = torch.Generator("cuda").manual_seed(seed)
    for offset, shape in enumerate([(4,), (1, 4, 64, 64), (3, 5), (4, 96, 96)]):
        theirs = torch.randn(shape, generator=generator, device="cuda").cpu()
        assert (philox_normal(seed, shape, offset) - theirs).abs().max() < 5e-6


def test_numbers_do_not_depend_on_the_shape_but_on_the_place() -> None:
    long = philox_normal(7, (1000,))
    assert torch.equal(philox_normal(7, (4, 25)).flatten(), long[:100])
    assert not torch.equal(philox_normal(7, (1000,), offset=1), long)


@given(st.integers(0, MAX_SEED), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_philox_numbers_are_normal_for_every_seed(seed: int, offset: int) -> None:
    values = philox_normal(seed, (4096,), offset)
    assert values.dtype == torch.float32
    assert bool(values.isfinite().all())
    assert abs(float(values.mean())) < 6 / math.sqrt(4096)
    assert float(values.std()) == pytest.approx(1, abs=0.07)


def test_philox_of_an_empty_shape_is_empty() -> None:
    assert philox_normal(0, (0, 4)).shape == (0, 4)


@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1])
def test_seeds_out_of_range_are_refused(seed: int) -> None:
    with pytest.raises(ValueError, match="0 to 2\\*\\*64-1"):
        philox_normal(seed, (1,))
    with pytest.raises(ValueError, match="0 to 2\\*\\*64-1"):
        Generator(seed, "cpu")


@pytest.mark.parametrize("rng", ["philox", "cpu", "device"])
def test_an_images_noise_does_not_depend_on_its_batch(rng: Rng) -> None:
    seeds = [5, MAX_SEED, 0]
    batch = ImageNoise(seeds, rng)
    first, second = batch.draw((3, 4, 8, 8)), batch.draw((3, 4, 8, 8))
    for i, seed in enumerate(seeds):
        alone = ImageNoise([seed], rng)
        assert torch.equal(alone.draw((1, 4, 8, 8))[0], first[i])
        assert torch.equal(alone.draw((1, 4, 8, 8))[0], second[i])
    assert not torch.equal(first, second)


@pytest.mark.parametrize("rng", ["philox", "cpu", "device"])
def test_skipping_is_drawing(rng: Rng) -> None:
    for noise, other in [
        (ImageNoise([1, 2], rng), ImageNoise([1, 2], rng)),
        (StreamNoise(3, rng), StreamNoise(3, rng)),
    ]:
        for _ in range(3):
            noise.draw(SHAPE)
        other.skip(3, SHAPE)
        assert torch.equal(noise.draw(SHAPE), other.draw(SHAPE))


def test_the_wrong_batch_is_refused() -> None:
    noise = ImageNoise([1, 2, 3])
    with pytest.raises(ValueError, match="3 seeds, but a batch of 2"):
        noise.draw(SHAPE)
    with pytest.raises(ValueError, match="3 seeds, but a batch of 2"):
        noise.skip(1, SHAPE)
    with pytest.raises(ValueError, match="at least one seed"):
        ImageNoise([])


def test_the_cpu_stream_is_torchs() -> None:
    noise = StreamNoise(42, "cpu")
    drawn = [noise.draw(SHAPE), noise.draw((1, 3)), noise.draw(SHAPE)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(42)
        for tensor in drawn:
            assert torch.equal(tensor, torch.randn(tensor.shape))
    assert noise.draws == 3


def test_the_philox_stream_moves_on_by_one_a_draw() -> None:
    noise = StreamNoise(9, "philox")
    noise.skip(2, SHAPE)
    assert torch.equal(noise.draw(SHAPE), philox_normal(9, SHAPE, offset=2))
    assert noise.draws == 3


def test_drawing_leaves_torchs_own_generator_alone() -> None:
    before = torch.random.get_rng_state()
    ImageNoise([1], "cpu").draw((1, 4))
    StreamNoise(1, "device").draw((1, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
