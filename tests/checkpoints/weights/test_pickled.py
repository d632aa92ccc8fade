"""The pickle reader: what it understands, and that nothing a file names ever runs."""

from __future__ import annotations

import collections
import contextlib
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.checkpoints.weights.files import open_weights
from ldm.checkpoints.weights.header import read_header
from ldm.checkpoints.weights.pickled import Inert, read_pickle
from ldm.errors import CheckpointError

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)  # fmt: skip


@given(value=PLAIN, protocol=st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_plain_values_are_read_as_pickle_reads_them(value: object, protocol: int) -> None:
    read, inert = read_pickle(pickle.dumps(value, protocol))
    if protocol > 2 or not _holds_bytes(value):  # older protocols make bytes by a call
        assert read == value
        assert inert == set()


def _holds_bytes(value: object) -> bool:
    if isinstance(value, dict):
        return any(_holds_bytes(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(_holds_bytes(item) for item in value)
    return isinstance(value, bytes)


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_value_or_a_value_error(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        read_pickle(data)


def test_ordered_dicts_and_shared_values() -> None:
    shared = [1]
    value = collections.OrderedDict(a=shared, b=shared)
    value.update(c=None)
    read, _ = read_pickle(pickle.dumps(value, 2))
    assert read == {"a": [1], "b": [1], "c": None}
    assert read["a"] is read["b"]


class Call:
    """Pickles as a call of `function` with `arguments`, then `state` and items put in."""

    def __init__(self, function: Callable[..., Any], *arguments: object, **more: object) -> None:
        self.function, self.arguments, self.more = function, arguments, more

    def __call__(self, *arguments: object) -> None:
        """Only so that pickle lets it stand where a function should."""

    def __reduce__(self) -> tuple[Any, ...]:
        state, items, pairs = (self.more.get(name) for name in ("state", "items", "pairs"))
        return (
            self.function,
            self.arguments,
            state,
            iter(items) if isinstance(items, list) else None,
            iter(pairs) if isinstance(pairs, list) else None,
        )


class Stateful:
    """Pickles as an object made by NEWOBJ whose BUILD state is hostile."""

    def __init__(self, state: object) -> None:
        self.state = state

    def __getstate__(self) -> object:
        return self.state

    def __setstate__(self, state: object) -> None:
        raise AssertionError("a file's object was given its state")


def hostile(marker: Path) -> dict[str, object]:
    """Values whose real unpickling creates the file `marker`, by name of the way."""
    touch = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w').close()"
    system = Call(os.system, touch)
    return {
        "system": system,
        "exec": Call(exec, code),
        "eval": Call(eval, f"__import__('os').system({touch!r})"),
        "getattr": Call(Call(getattr, Call(__import__, "os"), "system"), touch),
        "nested": Call(collections.OrderedDict, [("a", system)]),
        "in_ordered_dict": collections.OrderedDict(a=1, b=[{"c": (system,)}]),
        "state": Stateful({"a": system}),
        "call_with_state": Call(collections.OrderedDict, state={"a": system}),
        "items": Call(list, items=[system]),
        "pairs": Call(dict, pairs=[("a", system)]),
        "as_key": {system: 1},
        "map": Call(list, Call(map, os.system, [touch])),
        "import": Call(__import__, "this_module_touches_the_marker"),
    }


WAYS = sorted(hostile(Path("unused")))


def write_ckpt(path: Path, value: object, protocol: int) -> None:
    """A .ckpt with a tensor `w`, and `value` before it, beside it and inside its state dict."""
    state = {"before": value, "w": torch.arange(4.0)}
    content = {"callbacks": value, "state_dict": state, "after": value}
    torch.save(content, path, pickle_protocol=protocol)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("way", WAYS)
def test_hostile_files_are_inert(way: str, protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "this_module_touches_the_marker.py").write_text(f"open({str(marker)!r}, 'w')")
    path = tmp_path / "model.ckpt"
    write_ckpt(path, hostile(marker)[way], protocol)
    header = read_header(path)
    weights = open_weights(header)
    assert set(weights) == {"w"}
    assert torch.equal(weights["w"], torch.arange(4.0))
    assert not marker.exists()


def test_the_hostile_values_would_run_in_a_real_unpickler(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    data = pickle.dumps(hostile(marker)["system"])
    pickle.loads(data)
    assert marker.exists()


def test_names_are_reported_and_become_marks(tmp_path: Path) -> None:
    read, inert = read_pickle(pickle.dumps({"a": Call(os.system, "true")}, 2))
    assert read == {"a": Inert("posix.system")}
    assert inert == {"posix.system"}


def test_a_tensor_may_not_reach_beyond_its_numbers(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"w": torch.zeros(4)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    index = next(name for name in members if name.endswith("data.pkl"))
    # shape (4,) is pickled as BININT1 4 TUPLE1
    assert b"K\x04\x85" in members[index]
    members[index] = members[index].replace(b"K\x04\x85", b"K\x40\x85")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(CheckpointError, match="beyond its storage"):
        read_header(path)


def test_deep_nesting_ends_in_an_error_or_a_value() -> None:
    value, _ = read_pickle(b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".")
    assert isinstance(value, list)


def test_odd_escapes_in_old_strings_are_no_warning() -> None:
    assert read_pickle(b"S'a\\q'\n.") == ("a\\q", set())
