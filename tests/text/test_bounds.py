"""The weights that a prompt may have."""

from __future__ import annotations

import pytest

from ldm.errors import JobError
from ldm.text.bounds import check_weights


@pytest.mark.parametrize(
    ("text", "syntax"),
    [
        ("a (cat:100000)", "a1111"),
        ("a [(cat:-1001):dog:0.5]", "a1111"),
        ("a cat AND a dog :-100000", "a1111"),
        ("(" * 80 + "cat", "a1111"),
        ("a (cat:1e30)", "comfy"),
    ],
)
def test_huge_weights_are_refused(text: str, syntax: str) -> None:
    with pytest.raises(JobError, match=r"^the prompt has a weight of .*from -1000 to 1000$"):
        check_weights(text, syntax)
    check_weights(text, "plain")


def test_usual_weights() -> None:
    check_weights("(a:1000) ((b)) [c] [d:(e:-3):4] AND f :-1000", "a1111")
    check_weights("(a:1000) ((b:2):3)", "comfy")
