"""The tokenizers against the two libraries whose rules they follow, on varied strings."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm.errors import LdmError
from ldm.text.tokenizer import (
    END,
    START,
    ClipTokenizer,
    OpenClipTokenizer,
    Tokenizer,
    clip_tokenizer,
    open_clip_tokenizer,
    vocabulary,
    vocabulary_file,
)

Encode = Callable[[str], list[int]]

SPECIALS = ["<|startoftext|>", "<|endoftext|>", "<start_of_text>", "<end_of_text>"]
VOCABULARY = """
a an the photograph of astronaut riding horse on mars rococo style artstation 8k uhd
trending ultra-detailed chiaroscuro hyperrealism o'clock they're it's I'LL we'Ve DON'T
rock'n'roll façade naïve café Ünïcödé Straße İstanbul ΣΊΣΥΦΟΣ ΣΑΣ ǅungla ﬁne ﬀ Å Å ｆｕｌｌ
ＷＩＤＴＨ 日本語のテスト 한국어 漢字 русский العربية עברית हिन्दी ไทย ქართული ᏣᎳᎩ 𝔊𝔬𝔱𝔥𝔦𝔠
½ ² ① Ⅷ ٣ १२३
1,024 3.14 1e-5 (red:1.3) [blue|green] {x} <lora:a:0.8> #42! user@example.com
https://a.b/c?d=e&f=%20 C:\\x\\y foo_bar __init__ -- --- ... … “quoted” ‘single’
«guillemets» — – ™ © ® € £ ¥ ° ± × ÷ &amp; &lt;b&gt; &quot;x&quot; &eacute; &#39;
&#x1F600; &amp;amp; &amp;eacute; &nbsp; &bogus; &amp &lt 🐱 👩\u200d👩\u200d👧\u200d👦 👍🏽 🇯🇵
❤️ ☕ 🏳️\u200d🌈 1️⃣ ✈ âœ” schÃ¶n Ã© l’Ã©tÃ© İ ſ K 'ſ n\u0308 é e\u0301 a\u0323\u0307
\ufeff \u200b \u200d \xad
"""
WORDS = VOCABULARY.split()
SPACES = [*" \t\n\u00a0\u3000\u2003\u2028\x0b\x1f\x85", "  ", "\r\n", ""]
PLANES = [(0, 0x100), (0, 0x800), (0x2000, 0x2BFF), (0x3000, 0xD7FF), (0xE000, 0x10000)]
PLANES += [(0x10000, 0x11000), (0x1D400, 0x1D800), (0x1F300, 0x1FB00), (0xE0000, 0xE0080)]


def varied_strings(seed: int, count: int) -> Iterator[str]:
    """Words with odd space between them, characters of all planes, and mixtures of both."""
    chance = random.Random(seed)

    def characters() -> str:
        plane = chance.choice(PLANES)
        return "".join(chr(chance.randrange(*plane)) for _ in range(chance.randint(1, 12)))

    for index in range(count):
        parts = []
        for _ in range(chance.randint(0, 12)):
            part = chance.choice([*WORDS, *SPECIALS]) if index % 3 else characters()
            if index % 3 == 2 and chance.random() < 0.3:
                part = characters()
            if chance.random() < 0.15:
                part = chance.choice([str.upper, str.title, str.swapcase])(part)
            space = " " if chance.random() < 0.6 else chance.choice(SPACES)
            parts.append(part + space)
        yield "".join(parts)


EXTREMES = [
    "",
    " ",
    "\n\t ",
    "\x00",
    "a\x00b",
    "x" * 20_000,
    "🐱" * 3_000,
    "very long prompt, " * 2_000,
    "!?" * 5_000,
    "0123456789" * 500,
    *SPECIALS,
    "".join(SPECIALS),
    "<|STARTOFTEXT|><|EndOfText|> <START_OF_TEXT>",
    "cat<|endoftext|>dog <end_of_text>bird",
    "!<|endoftext|>! !<end_of_text>!",
    *WORDS,
]


@cache
def transformers_tokenizer() -> Any:
    from transformers import CLIPTokenizer

    names, merges = vocabulary()
    ids = {name: i for i, name in enumerate([*names, *SPECIALS[:2]])}
    pairs: Any = merges  # it is annotated as taking text alone
    return CLIPTokenizer(vocab=ids, merges=pairs)


def transformers_encode() -> Encode:
    """The tokenizer of 2022 put together again: ftfy, then what is left of its rules."""
    import ftfy

    def encode(text: str) -> list[int]:
        mended = ftfy.fix_text(text)
        found: list[int] = transformers_tokenizer()(mended, add_special_tokens=False)["input_ids"]
        return found

    return encode


@cache
def open_clip_encode() -> Encode:
    from open_clip.tokenizer import SimpleTokenizer  # type: ignore[import-untyped]

    encode: Encode = SimpleTokenizer().encode
    return encode


PAIRS = pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        pytest.param(clip_tokenizer, transformers_encode, id="transformers"),
        pytest.param(open_clip_tokenizer, open_clip_encode, id="open_clip"),
    ],
)
OURS = pytest.mark.parametrize("ours", [clip_tokenizer, open_clip_tokenizer])


@PAIRS
def test_ids_equal_the_library_s(
    ours: Callable[[], Tokenizer], theirs: Callable[[], Encode]
) -> None:
    tokenizer, encode = ours(), theirs()
    wrong = []
    for text in [*EXTREMES, *varied_strings(seed=7, count=3000)]:
        if tokenizer.encode(text) != encode(text):
            wrong.append(text[:80])
    assert not wrong


@PAIRS
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_ids_equal_the_library_s_for_any_text(
    ours: Callable[[], Tokenizer], theirs: Callable[[], Encode], text: str
) -> None:
    assert ours().encode(text) == theirs()(text)


@pytest.mark.parametrize(
    ("odd", "plain"),
    [
        ("a corgi\u2019s head", "a corgi's head"),
        ("\u201coffice\u201d", '"office"'),
        ("of\ufb01ce", "office"),
        ("\uff21\uff22\uff23", "ABC"),
        ("a cat &amp; a dog", "a cat & a dog"),
        ("sch\u00c3\u00b6n", "sch\u00f6n"),
        ("a\u2028b", "a\nb"),
    ],
)
def test_the_tokenizer_of_2022_repairs_text(odd: str, plain: str) -> None:
    assert clip_tokenizer().encode(odd) == clip_tokenizer().encode(plain)


def test_batches_equal_open_clip_s() -> None:
    from open_clip import tokenize  # type: ignore[import-untyped]

    texts = ["", "a cat", "word " * 75, "word " * 76, "word " * 200, "🐱" * 90]
    ids, _ = open_clip_tokenizer().batch(texts, pad=0)
    assert ids == tokenize(texts).tolist()


def test_batches_equal_transformers() -> None:
    texts = ["", "a cat", "word " * 75, "word " * 76, "word " * 200, "🐱" * 90]
    theirs = transformers_tokenizer()
    expected = theirs(texts, padding="max_length", truncation=True, max_length=77)["input_ids"]
    assert clip_tokenizer().batch(texts, pad=END)[0] == expected


@OURS
def test_the_cut_is_the_very_text(ours: Callable[[], Tokenizer]) -> None:
    kept, gone = " ".join(["castle"] * 75), "Mountains, ÉTÉ und 🐱 Himmel"
    ids, cut = ours().batch([kept, f"{kept} {gone}", f"{kept}, {gone} "], pad=0)
    assert cut == ["", gone, f", {gone}"]
    assert all(len(row) == 77 and row[0] == START and row[-1] == END for row in ids)


@OURS
def test_a_word_may_be_cut_in_two(ours: Callable[[], Tokenizer]) -> None:
    tokenizer = ours()
    assert len(tokenizer.encode("Ultradetailism")) > 1
    _, cut = tokenizer.batch(["castle " * 74 + "Ultradetailism"], pad=0)
    assert cut[0]
    assert "Ultradetailism".endswith(cut[0])


@OURS
def test_shorter_lengths(ours: Callable[[], Tokenizer]) -> None:
    ids, cut = ours().batch(["red cat", "a red cat on a mat"], pad=0, length=5)
    assert ids == [[START, 736, 2368, END, 0], [START, 320, 736, 2368, END]]
    assert cut == ["", "on a mat"]


def test_cuts_in_cleaned_text_keep_its_case() -> None:
    """Letters that grow in lower case must not shift the cut."""
    text = "İ" * 20 + " castle" * 90
    tokens = open_clip_tokenizer().split(text)
    assert tokens.text[tokens.spans[-1][0] : tokens.spans[-1][1]] == "castle"
    assert open_clip_tokenizer().batch([text + " Tail"], pad=0)[1][0].endswith("castle Tail")


@OURS
def test_spans_cover_the_words(ours: Callable[[], Tokenizer]) -> None:
    tokens = ours().split("A Red, naïve café")
    words: dict[int, str] = {}
    for word, (start, end) in zip(tokens.words, tokens.spans, strict=True):
        words[word] = words.get(word, "") + tokens.text[start:end]
    assert list(words.values()) == ["A", "Red", ",", "naïve", "café"]


@OURS
def test_words_outside_a_vocabulary(ours: Callable[[], Tokenizer]) -> None:
    tokenizer = ours()
    known = frozenset(tokenizer.encode("a red apple on blue"))
    outside = tokenizer.split("A RED Zeppelin on a  zeppelin, Zeppelin").words_outside(known)
    assert outside == ["Zeppelin", "zeppelin", ","]
    assert tokenizer.split("red apple").words_outside(known) == []


@OURS
def test_unpaired_surrogates_are_replaced(ours: Callable[[], Tokenizer]) -> None:
    assert ours().encode("cat \ud83d dog") == ours().encode("cat \ufffd dog")
    assert ours().encode("\ud83d\udc31") == ours().encode("🐱")


@pytest.mark.parametrize("build", [ClipTokenizer, OpenClipTokenizer])
def test_building_is_quick(build: Callable[[], Tokenizer]) -> None:
    """0.1 s of processor time, measured; the bound leaves room for a slow machine."""
    start = time.process_time()
    build()
    assert time.process_time() - start < 0.4


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from ldm.text.tokenizer import *; "
        "clip_tokenizer().encode('a'); assert 'ftfy' not in sys.modules; "
        "open_clip_tokenizer().encode('a'); "
        "print(sorted({'torch', 'transformers', 'open_clip'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_vocabulary_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LdmError, match="pip install open_clip_torch"):
        vocabulary_file()
