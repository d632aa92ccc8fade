"""`ldm tokens`: what a model reads of a prompt, without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from ldm.cli.app import run
from ldm.text.tokenizer import clip_tokenizer, open_clip_tokenizer
from tests.tiny_models import v1_tree, v2_tree

ROOT = Path(__file__).parents[2]


def place(folder: Path, tree: dict[str, Any], kept: list[int] | None = None) -> str:
    """A checkpoint of hardly any weights, with its YAML beside it."""
    held = {"first_stage_model.x": torch.zeros(3)}
    if kept is not None:
        held["cond_stage_model.kept_tokens"] = torch.tensor(kept)
    save_file(held, folder / "m.safetensors")
    (folder / "m.yaml").write_text(yaml.safe_dump(tree))
    return str(folder / "m.safetensors")


def told(capfd: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert run(["tokens", *words, "--json"]) == 0
    captured = capfd.readouterr()
    assert captured.err == ""
    found: dict[str, Any] = json.loads(captured.out)
    return found


def test_tokens_with_ids_and_weights(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = place(tmp_path, v1_tree())
    found = told(capfd, "A (Red:1.3) BREAK [cat]", "-m", model)
    assert (found["count"], found["room"], found["cut"], found["model"]) == (3, 75, "", "m")
    (a, red), (cat,) = found["chunks"]
    assert (a["text"], a["weight"], a["known"]) == ("A", 1.0, True)
    assert (red["text"], red["weight"]) == ("Red", 1.3)
    assert cat["weight"] == pytest.approx(1 / 1.1)
    assert [a["id"], red["id"], cat["id"]] == clip_tokenizer().encode("a red cat")


def test_plain_syntax_tells_what_is_cut(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tree = v2_tree()
    tree["model"]["params"]["cond_stage_config"]["params"]["max_length"] = 6
    model = place(tmp_path, tree)
    found = told(capfd, "(a &amp; b) c", "-m", model, "--prompt-syntax", "plain")
    assert [token["text"] for token in found["chunks"][0]] == ["(", "a", "&", "b"]
    assert found["cut"] == ") c"
    ids = [token["id"] for token in found["chunks"][0]]
    assert ids == open_clip_tokenizer().encode("(a & b")
    found = told(capfd, "(a &amp; b) c d e f", "-m", model)
    assert [len(chunk) for chunk in found["chunks"]] == [4, 3]


def test_people_get_a_table(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    [cat] = clip_tokenizer().encode("cat")
    model = place(tmp_path, v1_tree(), kept=[cat, 49406, 49407])
    assert run(["tokens", "(cat:1.25) dog", "-m", model]) == 0
    lines = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert lines[0] == ["chunk", "1", "of", "1:", "2", "of", "75", "tokens"]
    assert lines[1] == [str(cat), "1.25", "cat"]
    assert lines[2][1:3] == ["1", "dog"]
    assert lines[2][3:] == ["(not", "known", "to", "the", "model)"]
    assert run(["tokens", "", "-m", model]) == 0
    assert capfd.readouterr().out == "chunk 1 of 1: 0 of 75 tokens\n"


def test_a_model_with_words_of_bert(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tree = v1_tree()
    section = {
        "target": "ldm.modules.encoders.modules.BERTEmbedder",
        "params": {"n_embed": 8, "n_layer": 1, "max_seq_len": 5},
    }
    tree["model"]["params"]["cond_stage_config"] = section
    model = place(tmp_path, tree)
    assert run(["tokens", "a cat", "-m", model]) == 2
    assert "vocab.txt" in capfd.readouterr().err
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", ","]
    (tmp_path / "vocab.txt").write_text("\n".join(names))
    found = told(capfd, "a cat a cat", "-m", model)
    assert [[t["id"] for t in chunk] for chunk in found["chunks"]] == [[5, 6, 5], [6]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "--prompt-syntax", "plan"], "did you mean plain?"),
        (["a", "-m", "nowhere"], "--model nowhere"),
        (["(x:" + "9" * 400 + ")"], "fewer brackets"),
        ([], "PROMPT"),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    model = [] if "-m" in words else ["-m", place(tmp_path, v1_tree())]
    assert run(["tokens", *words, *model]) == 2
    assert message in capfd.readouterr().err


def test_a_model_without_texts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tree = v1_tree()
    tree["model"]["params"]["cond_stage_config"] = "__is_unconditional__"
    assert run(["tokens", "a", "-m", place(tmp_path, tree)]) == 2
    assert "reads no text" in capfd.readouterr().err
    tree = v1_tree()
    tree["model"]["params"]["cond_stage_config"]["params"]["max_length"] = "long"
    assert run(["tokens", "a", "-m", place(tmp_path, tree)]) == 2
    assert "max_length must be a number" in capfd.readouterr().err


def test_no_torch(tmp_path: Path) -> None:
    model = place(tmp_path, v1_tree())
    probe = (
        f"import sys; from ldm.cli.app import run; "
        f"code = run(['tokens', 'a (cat)', '-m', {model!r}]); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", probe], env=environment, check=True, capture_output=True)


def test_a_prompt_that_changes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = place(tmp_path, v1_tree())
    words = ["a [cat:dog:0.5] AND red :0.5", "-m", model]
    assert run(["tokens", *words, "--steps", "10"]) == 0
    headings = [line for line in capfd.readouterr().out.splitlines() if line.startswith("prompt")]
    assert headings == [
        "prompt 1, weight 1, until step 5 of 10",
        "prompt 1, weight 1, until step 10 of 10",
        "prompt 2, weight 0.5, until step 10 of 10",
    ]
    found = told(capfd, *words, "--steps", "10")
    assert [(x["part"], x["weight"], x["until"]) for x in found["parts"]] == [
        (1, 1.0, 5),
        (1, 1.0, 10),
        (2, 0.5, 10),
    ]
    texts = [" ".join(t["text"] for t in x["chunks"][0]) for x in found["parts"]]
    assert texts == ["a cat", "a dog", "red"]
    assert run(["tokens", "a <lora:x:-0.5:0.25> dog", "-m", model]) == 0
    shown = capfd.readouterr().out
    assert shown.startswith("LoRA x, weight 0.25 for the network and -0.5 for text\n")
    assert "lora" not in shown
