"""LoRAs named by flags and prompts."""

from __future__ import annotations

import pytest

from ldm.errors import JobError
from ldm.jobs.loras import Lora, parse_lora, split_tags


@pytest.mark.parametrize(
    ("text", "lora"),
    [
        ("fox", Lora("fox")),
        ("fox:0.5", Lora("fox", 0.5, 0.5)),
        ("a/fox.safetensors:-0.5:1", Lora("a/fox.safetensors", -0.5, 1.0)),
        (r"C:\fox.safetensors:2", Lora(r"C:\fox.safetensors", 2.0, 2.0)),
        ("fox:1:start=0.2:end=0.8", Lora("fox", start=0.2, end=0.8)),
    ],
)
def test_flags(text: str, lora: Lora) -> None:
    assert parse_lora(text) == lora


def test_tags_have_the_order_of_the_web_ui_and_leave_the_prompt() -> None:
    text = "a fox <lora:one:0.5>, <lyco:two:0.1:0.9>"
    assert split_tags(text, "a1111") == (
        "a fox ,",
        (Lora("one", 0.5, 0.5), Lora("two", network=0.9, text=0.1)),
    )
    assert split_tags(text, "plain") == (text, ())


def test_block_weights() -> None:
    lora = parse_lora("fox:0.5:lbw=OUTD")
    assert [lora.weight_of(block) for block in ("BASE", "IN01", "OUT03", "IN00")] == [
        0.5, 0.0, 0.5, 0.5,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fox:much", "weight must be a number, not 'much'"),
        ("fox:nan", "weight must be a number, not 'nan'"),
        ("fox:lbw=1,0", "lbw takes 12, 17, 20, 26 weights"),
        ("fox:start=0.5:end=0.2", "start before end"),
        ("fox:stat=0.5", "unknown option 'stat'; did you mean start?"),
        (":1", "names no file"),
    ],
)
def test_what_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        parse_lora(text)
