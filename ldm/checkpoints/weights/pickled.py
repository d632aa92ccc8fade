"""Reads the pickle in a .ckpt as data, on a small machine that calls nothing and imports nothing.

Python's own unpickler runs a program from the file; even a restricted one calls what its filter
allows. Here each opcode only moves plain values around. A tensor becomes a record of its position;
any other named object (a class, a function, a call) becomes an `Inert` placeholder with its name,
which does nothing.

Opcodes and their meaning: CPython's pickletools, protocols 0 to 5. Layout of tensors:
torch/serialization.py and torch/_utils.py (_rebuild_tensor_v2 and kin).
"""

from __future__ import annotations

import io
import pickletools
import struct
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MOST_AXES = 64  # of a tensor, torch's own limit
MOST_STEPS = 1_000_000  # opcodes; a checkpoint has some 50 for each tensor

Value = Any  # None, bool, int, float, str, bytes, list, tuple, dict, and the records below


@dataclass(frozen=True)
class Inert:
    """A placeholder for an object that a file names but a checkpoint does not need."""

    name: str


@dataclass(frozen=True)
class Name:
    """A global named by the file: `module.attribute`, never looked up."""

    name: str


@dataclass(frozen=True)
class Storage:
    """A block of numbers in the archive: its type's name (`HalfStorage`), its key, their count."""

    kind: str
    key: str
    count: int


@dataclass(frozen=True)
class Strided:
    """A tensor: a view into a storage; shape, strides and offset count elements.

    `dtype` is a torch dtype's name if the storage does not determine it.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str | None = None


class _Mark:
    """The stack's mark."""


_MARK = _Mark()
_DICTS = {"collections.OrderedDict", "collections.defaultdict", "builtins.dict", "__builtin__.dict"}


def read_pickle(data: bytes) -> tuple[Value, set[str]]:
    """Read the value of a pickle, and the names that became `Inert`.

    Raises ValueError for anything that is not a well-formed pickle.
    """
    with warnings.catch_warnings():  # pickletools warns about odd escapes in strings
        warnings.simplefilter("ignore", DeprecationWarning)
        return _run(data, len(data))


def read_pickles(data: bytes, count: int) -> tuple[list[Value], set[str], int]:
    """Read the values of `count` pickles, one after another: values, `Inert` names, their length.

    Raises ValueError as `read_pickle` does.
    """
    file, values, names = io.BytesIO(data), [], set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for _ in range(count):
            value, inert = _run(file, len(data))
            values.append(value)
            names |= inert
    return values, names, file.tell()


def _run(data: bytes | io.BytesIO, size: int) -> tuple[Value, set[str]]:
    machine = _Machine(copies=size)
    try:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if opcode.name == "STOP":
                return machine.pop(), machine.inert
            if step == MOST_STEPS:
                raise ValueError(f"its pickle has more than {MOST_STEPS} steps")
            machine.step(opcode.name, argument)
    except ValueError:
        raise
    except (
        LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, MemoryError,
        struct.error,
    ) as error:  # fmt: skip
        raise ValueError(f"malformed pickle ({type(error).__name__})") from None
    raise ValueError("malformed pickle (it has no end)")


@dataclass
class _Machine:
    stack: list[Value] = field(default_factory=list)
    memo: dict[int, Value] = field(default_factory=dict)
    inert: set[str] = field(default_factory=set)
    copies: int = 0  # the number of items that may still be copied between containers

    def step(self, name: str, argument: Value) -> None:
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            self.stack.append(argument)
        elif name in _OPERATIONS:
            _OPERATIONS[name](self, argument)
        elif name not in _SILENT:
            raise ValueError(f"pickle opcode {name} has no place in a checkpoint")

    def pop(self) -> Value:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("malformed pickle (a mark where a value should be)")
        return value

    def popped_to_mark(self) -> list[Value]:
        items: list[Value] = []
        while (value := self.stack.pop()) is not _MARK:
            items.append(value)
        items.reverse()
        return items

    def mark(self, _: Value) -> None:
        self.stack.append(_MARK)

    def pop_any(self, _: Value) -> None:
        self.stack.pop()

    def pop_mark(self, _: Value) -> None:
        self.popped_to_mark()

    def duplicate(self, _: Value) -> None:
        self.stack.append(self.stack[-1])

    # containers

    def new_list(self, _: Value) -> None:
        self.stack.append([])

    def new_dict(self, _: Value) -> None:
        self.stack.append({})

    def new_set(self, _: Value) -> None:
        self.stack.append(Inert("set"))

    def list_of_marked(self, _: Value) -> None:
        self.stack.append(self.popped_to_mark())

    def tuple_of_marked(self, _: Value) -> None:
        self.stack.append(tuple(self.popped_to_mark()))

    def dict_of_marked(self, _: Value) -> None:
        items = self.popped_to_mark()
        self.stack.append({})
        self._set_items(items)

    def set_of_marked(self, _: Value) -> None:
        self.popped_to_mark()
        self.stack.append(Inert("set"))

    def tuple1(self, _: Value) -> None:
        self.stack.append((self.pop(),))

    def tuple2(self, _: Value) -> None:
        second, first = self.pop(), self.pop()
        self.stack.append((first, second))

    def tuple3(self, _: Value) -> None:
        third, second, first = self.pop(), self.pop(), self.pop()
        self.stack.append((first, second, third))

    def append(self, _: Value) -> None:
        self._extend([self.pop()])

    def appends(self, _: Value) -> None:
        self._extend(self.popped_to_mark())

    def set_item(self, _: Value) -> None:
        value, key = self.pop(), self.pop()
        self._set_items([key, value])

    def set_items(self, _: Value) -> None:
        self._set_items(self.popped_to_mark())

    def add_items(self, _: Value) -> None:
        self.popped_to_mark()

    def _extend(self, items: list[Value]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def _set_items(self, items: list[Value]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                if _is_key(key):
                    target[key] = value

    # memo

    def get(self, index: Value) -> None:
        self.stack.append(self.memo[int(index)])

    def put(self, index: Value) -> None:
        self.memo[int(index)] = self.stack[-1]

    def memoize(self, _: Value) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    # opcodes that import and call in a real unpickler

    def global_name(self, argument: Value) -> None:
        self.stack.append(Name(str(argument).replace(" ", ".", 1)))

    def stack_global(self, _: Value) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("malformed pickle (a global without a name)")
        self.stack.append(Name(f"{module}.{name}"))

    def extension(self, argument: Value) -> None:
        self.stack.append(Name(f"copyreg.extension.{argument}"))

    def reduce(self, _: Value) -> None:
        arguments, function = self.pop(), self.pop()
        self.stack.append(self._made(function, arguments))

    def new_object_with_keywords(self, _: Value) -> None:
        self.pop()
        self.reduce(None)

    def instance(self, argument: Value) -> None:
        self.popped_to_mark()
        self.stack.append(self._dropped(Name(str(argument).replace(" ", ".", 1))))

    def object_of_marked(self, _: Value) -> None:
        self.stack.append(self._dropped(self.popped_to_mark()[0]))

    def persistent(self, argument: Value) -> None:
        raise ValueError(f"pickle names an outside object by text ({str(argument)[:40]!r})")

    def persistent_on_stack(self, _: Value) -> None:
        match self.pop():
            case ("storage", Name(name), str(key), str(), int(count), *_) if count >= 0:
                self.stack.append(Storage(name.rpartition(".")[2], key, count))
            case _:
                raise ValueError("malformed pickle (an outside object that is no storage)")

    def build(self, _: Value) -> None:
        # The state of an object: bookkeeping for a dict of tensors, inert for anything else.
        self.pop()

    def _made(self, function: Value, arguments: Value) -> Value:
        name = function.name if isinstance(function, Name) else ""
        match name, arguments:
            case (
                "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2",
                (Storage() as storage, int(offset), tuple(shape), tuple(strides), *_),
            ):
                return _strided(storage, offset, shape, strides)
            case (
                "torch._utils._rebuild_tensor_v3",
                (Storage() as storage, int(offset), tuple(shape), tuple(strides), _, _,
                 Name(dtype), *_),
            ):  # fmt: skip
                return _strided(storage, offset, shape, strides, dtype.rpartition(".")[2])
            case (
                "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state",
                (Strided() as tensor, *_),
            ):
                return tensor
            case _ if name in _DICTS:
                return self._dict_of(arguments)
            case _:
                return self._dropped(function)

    def _dict_of(self, arguments: Value) -> Value:
        """Build a dict from a constructor's arguments: nothing, one list of pairs, or a dict.

        An honest file stores every copied item; copying more is a trick to exhaust memory.
        """
        match arguments:
            case (list() | dict() as items,):
                self.copies -= len(items)
                if self.copies < 0:
                    raise ValueError("malformed pickle (it copies more than it holds)")
        match arguments:
            case (list(pairs),) if all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
                return {key: value for key, value in pairs if _is_key(key)}
            case (dict(plain),):
                return dict(plain)
            case _:
                return {}

    def _dropped(self, function: Value) -> Inert:
        name = function.name if isinstance(function, Name | Inert) else type(function).__name__
        self.inert.add(name)
        return Inert(name)


def _is_key(value: Value) -> bool:
    """Whether a value may be a key; no checkpoint has other types.

    Hashing a nested tuple may take forever, and so may a dict of numbers chosen to collide.
    """
    if isinstance(value, int):
        return -(2**63) <= value < 2**64
    return isinstance(value, str | float | bytes | None)


def _strided(
    storage: Storage, offset: int, shape: tuple[Value, ...], strides: tuple[Value, ...],
    dtype: str | None = None,
) -> Strided:  # fmt: skip
    if max(len(shape), len(strides)) > MOST_AXES:
        raise ValueError(f"malformed pickle (a tensor of more than {MOST_AXES} axes)")
    sizes = (offset, *shape, *strides)
    if len(shape) != len(strides) or not all(type(n) is int and 0 <= n < 2**62 for n in sizes):
        raise ValueError("malformed pickle (a tensor with an impossible shape)")
    return Strided(storage, offset, shape, strides, dtype)


_SILENT = {"PROTO", "FRAME", "READONLY_BUFFER"}
_CONSTANTS: dict[str, Value] = {
    "NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (),
}  # fmt: skip
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8",
    "BYTEARRAY8", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
}  # fmt: skip
_OPERATIONS: dict[str, Callable[[_Machine, Value], None]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.pop_any,
    "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.duplicate,
    "EMPTY_LIST": _Machine.new_list,
    "EMPTY_DICT": _Machine.new_dict,
    "EMPTY_SET": _Machine.new_set,
    "LIST": _Machine.list_of_marked,
    "TUPLE": _Machine.tuple_of_marked,
    "DICT": _Machine.dict_of_marked,
    "FROZENSET": _Machine.set_of_marked,
    "TUPLE1": _Machine.tuple1,
    "TUPLE2": _Machine.tuple2,
    "TUPLE3": _Machine.tuple3,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "ADDITEMS": _Machine.add_items,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "GLOBAL": _Machine.global_name,
    "STACK_GLOBAL": _Machine.stack_global,
    "EXT1": _Machine.extension,
    "EXT2": _Machine.extension,
    "EXT4": _Machine.extension,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.reduce,
    "NEWOBJ_EX": _Machine.new_object_with_keywords,
    "INST": _Machine.instance,
    "OBJ": _Machine.object_of_marked,
    "PERSID": _Machine.persistent,
    "BINPERSID": _Machine.persistent_on_stack,
    "BUILD": _Machine.build,
}
