from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ldm.cli.flags import find, make_table, normalise
from ldm.errors import UsageError

OPTIONS = [
    (("--steps", "--ddim_steps"), True),
    (("--n_samples",), True),
    (("--n_iter",), True),
    (("--from-file",), True),
    (("--prompt",), True),
    (("--outdir",), True),
    (("-o", "--output"), True),
    (("--plms",), False),
    (("--H", "--height"), True),
    (("--help", "-h"), False),
]
TABLE = make_table(OPTIONS)
OLD = ("--outdir", "--help", "--H")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["--n_sample", "1"], ["--n_samples=1"]),
        (["--n-samples=1"], ["--n_samples=1"]),
        (["--ddim-steps", "5", "--plms"], ["--steps=5", "--plms"]),
        (["--from_file", "-"], ["--from-file=-"]),
        (["-o", "x.png"], ["--output=x.png"]),
        (["--H", "64"], ["--H=64"]),
        (["--hel"], ["--help"]),
        (["--out", "x"], ["--outdir=x"]),
        (["--prompt", "--plms is a sampler"], ["--prompt=--plms is a sampler"]),
        (["--prompt", "-1"], ["--prompt=-1"]),
        (["--prompt=--plms"], ["--prompt=--plms"]),
        (["--prompt", ""], ["--prompt="]),
        (["image.png", "--", "--steps"], ["image.png", "--", "--steps"]),
    ],
)
def test_what_is_typed_is_understood(typed: list[str], meant: list[str]) -> None:
    assert normalise(typed, TABLE, OLD) == meant


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--n_", "1"], "--n_ could be any of --n_iter, --n_samples"),
        (["--stepps", "1"], "no such option: --stepps; did you mean --steps?"),
        (["--prompt"], "--prompt needs a value"),
        (["--prompt", "--plms"], "--prompt needs a value, and --plms is an option"),
    ],
)
def test_what_is_not_understood_is_said(typed: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        normalise(typed, TABLE, OLD)
    assert message in str(caught.value)


@given(st.data())
def test_every_unique_prefix_in_every_spelling_finds_its_option(data: st.DataObject) -> None:
    spellings, _ = data.draw(st.sampled_from(OPTIONS))
    word = data.draw(st.sampled_from([s for s in spellings if s.startswith("--")]))
    prefix = word[: data.draw(st.integers(3, len(word)))]
    table_keys = [k for k in TABLE if k.startswith(prefix.replace("_", "-"))]
    assume(len({TABLE[k] for k in table_keys}) == 1)
    wanted = TABLE[word.replace("_", "-")]
    for typed in (prefix.replace("-", "_").replace("__", "--", 1), prefix.replace("_", "-")):
        assert find(typed, TABLE) == wanted


@given(st.lists(st.tuples(st.sampled_from([o for o in OPTIONS if o[1]]), st.text(max_size=8))))
def test_normalising_twice_changes_nothing(
    pairs: list[tuple[tuple[tuple[str, ...], bool], str]],
) -> None:
    typed = [f"{spellings[-1]}={value}" for (spellings, _), value in pairs]
    assume(all(word.startswith("--") for word in typed))
    once = normalise(typed, TABLE)
    assert normalise(once, TABLE) == once
    assert [word.partition("=")[2] for word in once] == [value for _, value in pairs]
