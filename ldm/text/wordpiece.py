"""BERT's WordPiece (arXiv 1810.04805), for the text models from before Stable Diffusion.

No package includes the vocabulary of bert-base-uncased: the user puts it beside the checkpoint.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from tokenizers import Tokenizer as Backend
from tokenizers import normalizers, pre_tokenizers
from tokenizers.models import WordPiece

from ldm.errors import CheckpointError
from ldm.text.tokenizer import Tokenizer, Tokens, whole, word_numbers

FILES = ("vocab.txt", "tokenizer.json")
PAD, UNKNOWN = "[PAD]", "[UNK]"
_SPECIALS = (PAD, UNKNOWN, "[CLS]", "[SEP]", "[MASK]")


class BertTokenizer(Tokenizer):
    """The rules of transformers' BertTokenizer for bert-base-uncased.

    Reads a vocab.txt (one token per line) or a tokenizer.json; raises CheckpointError if the file
    cannot be read or has no BERT vocabulary.
    """

    def __init__(self, path: Path) -> None:
        self._backend = _read(path)
        vocabulary = self._backend.get_vocab()
        missing = [name for name in _SPECIALS if name not in vocabulary]
        if missing:
            raise CheckpointError(
                f"{path}: not the vocabulary of bert-base-uncased: has no {', '.join(missing)}"
            )
        self.start, self.end, self.pad = (vocabulary[name] for name in ("[CLS]", "[SEP]", PAD))
        self.size = len(vocabulary)
        self._known = frozenset(vocabulary.values()) - {vocabulary[UNKNOWN]}

    def split(self, text: str) -> Tokens:
        text = whole(text)
        encoding = self._backend.encode(text, add_special_tokens=False)
        return Tokens(text, encoding.ids, encoding.offsets, word_numbers(encoding))

    def unknown_words(self, text: str) -> list[str]:
        """The words of a text with a character outside the vocabulary."""
        return self.split(text).words_outside(self._known)


@cache
def bert_tokenizer(path: Path) -> BertTokenizer:
    """The tokenizer of a vocabulary file, built on the first call."""
    return BertTokenizer(path)


def find_vocabulary(folder: Path, named: str | None = None) -> Path:
    """The vocabulary that a YAML names, or the one in a folder; raises CheckpointError.

    A relative path is resolved against the folder.
    """
    names = FILES if named is None else (named,)
    paths = [folder / Path(name).expanduser() for name in names]
    for path in paths:
        if path.is_file():
            return path
    raise CheckpointError(
        f"{paths[0]}: missing; this model's text encoder needs vocab.txt (or tokenizer.json) of "
        "https://huggingface.co/google-bert/bert-base-uncased: put it there, or name it with "
        "--set model.params.cond_stage_config.params.bert_vocab=FILE"
    )


def _read(path: Path) -> Backend:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: cannot be read as a vocabulary ({reason})") from None
    if path.suffix == ".json":
        return _from_json(text, path)
    vocabulary = {line.rstrip("\r"): number for number, line in enumerate(text.split("\n")) if line}
    if UNKNOWN not in vocabulary:
        raise CheckpointError(f"{path}: not a BERT vocabulary: has no line {UNKNOWN}")
    backend = Backend(WordPiece(vocabulary, unk_token=UNKNOWN))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.add_special_tokens([name for name in _SPECIALS if name in vocabulary])
    return backend


def _from_json(text: str, path: Path) -> Backend:
    try:
        backend = Backend.from_str(text)
    except Exception as error:  # noqa: BLE001 - the Rust library raises plain Exception
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: not a tokenizer.json ({reason})") from None
    backend.no_truncation()
    backend.no_padding()
    return backend
