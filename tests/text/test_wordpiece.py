"""BERT's tokens against transformers' tokenizer, and a vocabulary that is missing or wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldm.errors import CheckpointError
from ldm.text.wordpiece import BertTokenizer, bert_tokenizer, find_vocabulary

WORDS = "a cat un ##able ##s play ##ing the 2 ##0 ##22 , . ! ' 日 本 cafe é e".split()  # noqa: SIM905
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = [
    "",
    "a cat playing",
    "The CAT's  unable\tplaying, 2022!",
    "Café é日本 cats",
    "a zebra [SEP] cat [mask] \u200b\x00 .",
    "a\ufffd" + "a cat " * 50,
]


@pytest.fixture
def vocabulary(tmp_path: Path) -> Path:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*SPECIALS, *WORDS]) + "\n", encoding="utf-8")
    return path


def test_ids_equal_the_library_s(vocabulary: Path) -> None:
    from transformers import BertTokenizerFast

    ids = {word: number for number, word in enumerate([*SPECIALS, *WORDS])}
    theirs = BertTokenizerFast(vocab=ids, do_lower_case=True)
    expected = theirs(TEXTS, truncation=True, max_length=77, padding="max_length")["input_ids"]
    ours = BertTokenizer(vocabulary)
    rows, cut = ours.batch(TEXTS, ours.pad, 77)
    assert rows == expected
    assert [bool(tail) for tail in cut] == [False] * 5 + [True]
    assert cut[5].split() == ["cat", *["a", "cat"] * 12]
    theirs.save_pretrained(vocabulary.parent)
    assert BertTokenizer(vocabulary.parent / "tokenizer.json").batch(TEXTS, 0, 77)[0] == expected


def test_words_without_a_token_are_told(vocabulary: Path) -> None:
    assert BertTokenizer(vocabulary).unknown_words("a Zebra, the cats") == ["Zebra"]


def test_where_the_vocabulary_lies(vocabulary: Path) -> None:
    folder = vocabulary.parent
    assert find_vocabulary(folder) == vocabulary
    assert find_vocabulary(Path("/nowhere"), str(vocabulary)) == vocabulary
    assert bert_tokenizer(vocabulary) is bert_tokenizer(vocabulary)
    vocabulary.rename(folder / "tokenizer.json")
    assert find_vocabulary(folder).name == "tokenizer.json"
    assert find_vocabulary(folder, "tokenizer.json").name == "tokenizer.json"


def test_a_missing_vocabulary_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        find_vocabulary(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'vocab.txt'}: missing")
    assert "bert-base-uncased" in message
    assert "bert_vocab" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("vocab.txt", b"a\nb\n", r"no line \[UNK\]"),
        ("vocab.txt", b"[UNK]\nb\n", r"has no \[PAD\], \[CLS\]"),
        ("vocab.txt", b"\xff\xfe\x00", "cannot be read"),
        ("tokenizer.json", b"{}", "not a tokenizer.json"),
    ],
)
def test_a_wrong_vocabulary(tmp_path: Path, name: str, content: bytes, word: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=word) as caught:
        BertTokenizer(path)
    assert str(path) in str(caught.value)
