"""Reads data sets that are published as Python pickles, without running them.

A pickle is a program for a stack machine: it may call any function, and Python's machine reserves whatever memory it
announces. The machine here knows numbers, strings, containers, and the few names and calls that stand for NumPy arrays.
It refuses everything else. Even those calls are not made: their arguments are kept, and `array` builds an array of them
if type, shape and bytes agree.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from plastax.data.base import DataError
from plastax.data.bounded import refusing

INSTRUCTIONS = 2_000_000
"""Most instructions of a pickle. The largest published one has 260,000; each may take some hundred bytes."""
DIGITS = 100
"""Most digits of a number in decimals: a longer one takes long to read."""
NUMBER = re.compile(r"b1|[iu][1248]|f[248]")
"""The types of arrays, numbers of fixed size, as NumPy spells them in a pickle."""


class _Name(NamedTuple):
    """A name in an instruction; nobody looks it up."""

    module: str
    name: str


class _Call:
    """A call that is not made; ``state`` is what the pickle sets on its result."""

    def __init__(self, function: _Name, arguments: tuple[Any, ...]) -> None:
        self.name, self.arguments = function.name, arguments
        self.state: tuple[Any, ...] = ()


_CORES = ("numpy.core", "numpy._core")  # of NumPy 1 and 2
CALLED = {
    *((f"{core}.multiarray", name) for core in _CORES for name in ("_reconstruct", "scalar")),
    *((f"{core}.numeric", "_frombuffer") for core in _CORES),  # protocol 5
    ("numpy", "dtype"),
    ("_codecs", "encode"),  # how Python 3 writes bytes into pickles that Python 2 can read
}
NAMED = CALLED | {("numpy", "ndarray")}


class _Machine:
    """Follows the instructions of a pickle."""

    def __init__(self, content: bytes | bytearray) -> None:
        self.content, self.view, self.at = content, memoryview(content), 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The object in the pickle."""
        for _ in range(INSTRUCTIONS):
            if self.at == len(self.content):
                raise EOFError("it ends before its last instruction")
            instruction = self.content[self.at]
            self.at += 1
            if push := _PUSH.get(instruction):
                self.stack.append(push(self))
            elif act := _ACT.get(instruction):
                act(self)
            elif instruction == _STOP:
                return self.stack.pop()
            else:
                raise ValueError(f"instruction {bytes([instruction])!r} is not one of plain data")
        raise ValueError(f"more than {INSTRUCTIONS:,} instructions")

    def take(self, size: int) -> memoryview:
        """The next bytes, without a copy."""
        if not 0 <= size <= len(self.content) - self.at:
            raise ValueError(f"{size} bytes are announced, where {len(self.content) - self.at} are left")
        self.at += size
        return self.view[self.at - size : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> bytes:
        end = self.content.index(b"\n", self.at)
        line = bytes(self.view[self.at : end])
        self.at = end + 1
        return line

    def digits(self) -> bytes:
        """The number on a line."""
        line = self.line()
        if len(line) > DIGITS:
            raise ValueError(f"a number of {len(line)} digits")
        return line

    def marked(self) -> list[Any]:
        """Everything since the last mark."""
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def last(self, count: int) -> tuple[Any, ...]:
        return tuple([self.stack.pop() for _ in range(count)][::-1])

    def named(self, module: Any, name: Any) -> _Name:
        found = _Name(_string(module), _string(name))
        if found not in NAMED:
            raise ValueError(f"it asks for {'.'.join(found)!a}, which is not data")
        return found

    def called(self) -> _Call:
        function, arguments = self.last(2)
        if not isinstance(function, _Name) or function not in CALLED or not isinstance(arguments, tuple):
            raise ValueError("it calls something that is no function")
        return _Call(function, arguments)

    def build(self) -> None:
        call, state = self.last(2)
        if not isinstance(call, _Call) or not isinstance(state, tuple):
            raise ValueError("it changes something that is no array")
        self.stack.append(call)
        call.state = state

    def extend(self, items: Iterable[Any]) -> None:
        (target,) = self.last(1)
        if not isinstance(target, list):
            raise ValueError("it appends to something that is no list")
        self.stack.append(target)
        target.extend(items)

    def update(self, items: Sequence[Any]) -> None:
        (target,) = self.last(1)
        if not isinstance(target, dict) or len(items) % 2:
            raise ValueError("it sets items of something that is no dictionary")
        self.stack.append(target)
        # Keys become strings first: to hash nested tuples can take for ever.
        target.update((_string(key), value) for key, value in zip(items[::2], items[1::2]))


def _string(value: Any) -> str:
    """A short string of Python 3, or of Python 2, whose strings are bytes."""
    if isinstance(value, _Call) and value.name == "encode":
        value = value.arguments[0]
    if not isinstance(value, str | bytes | memoryview) or len(value) > 256:
        raise ValueError("a name or a key is no short string")
    return value if isinstance(value, str) else str(value, "latin1")


def _quoted(line: bytes) -> bytes:
    """The string in a literal of Python 2."""
    if len(line) < 2 or line[:1] not in b"'\"" or line[:1] != line[-1:]:
        raise ValueError("a string without quotes")
    return line[1:-1].decode("unicode_escape").encode("latin1")


def _text(data: memoryview) -> str:
    return str(data, "utf-8", "surrogatepass")


def _whole(line: bytes) -> int | bool:
    """A number of protocol 0, or True or False."""
    return {b"00": False, b"01": True}[line] if line in (b"00", b"01") else int(line.rstrip(b"L"))


def _dictionary(machine: _Machine) -> dict[str, Any]:
    items = machine.marked()
    machine.stack.append({})
    machine.update(items)
    return machine.stack.pop()


_Value = Callable[[_Machine], Any]
_STOP = ord(".")
# The letters are those of Python's pickletools, which describes each instruction.
_PUSH: dict[int, _Value] = {
    ord(letter): value
    for letter, value in {
        "N": lambda m: None,
        "\x88": lambda m: True,
        "\x89": lambda m: False,
        "K": lambda m: m.number("<B"),
        "M": lambda m: m.number("<H"),
        "J": lambda m: m.number("<i"),
        "\x8a": lambda m: int.from_bytes(m.take(m.number("<B")), "little", signed=True),
        "\x8b": lambda m: int.from_bytes(m.take(m.number("<i")), "little", signed=True),
        "I": lambda m: _whole(m.digits()),
        "L": lambda m: _whole(m.digits()),
        "F": lambda m: float(m.digits()),
        "G": lambda m: m.number(">d"),
        "S": lambda m: _quoted(m.line()),
        "T": lambda m: m.take(m.number("<i")),
        "U": lambda m: m.take(m.number("<B")),
        "V": lambda m: m.line().decode("raw-unicode-escape"),
        "X": lambda m: _text(m.take(m.number("<I"))),
        "\x8c": lambda m: _text(m.take(m.number("<B"))),
        "\x8d": lambda m: _text(m.take(m.number("<Q"))),
        "B": lambda m: m.take(m.number("<I")),
        "C": lambda m: m.take(m.number("<B")),
        "\x8e": lambda m: m.take(m.number("<Q")),
        "\x96": lambda m: m.take(m.number("<Q")),
        "]": lambda m: [],
        "}": lambda m: {},
        ")": lambda m: (),
        "l": lambda m: m.marked(),
        "d": _dictionary,
        "t": lambda m: tuple(m.marked()),
        "\x85": lambda m: m.last(1),
        "\x86": lambda m: m.last(2),
        "\x87": lambda m: m.last(3),
        "2": lambda m: m.stack[-1],
        "g": lambda m: m.memo[int(m.digits())],
        "h": lambda m: m.memo[m.number("<B")],
        "j": lambda m: m.memo[m.number("<I")],
        "c": lambda m: m.named(m.line(), m.line()),
        "\x93": lambda m: m.named(*m.last(2)),
        "R": lambda m: m.called(),
    }.items()
}
_ACT: dict[int, _Value] = {
    ord(letter): act
    for letter, act in {
        "\x80": lambda m: m.take(1),  # the protocol
        "\x95": lambda m: m.take(8),  # how long a part of the pickle is
        "(": lambda m: m.marks.append(len(m.stack)),
        "0": lambda m: m.stack.pop(),
        "1": lambda m: m.marked(),
        "a": lambda m: m.extend(m.last(1)),
        "e": lambda m: m.extend(m.marked()),
        "s": lambda m: m.update(m.last(2)),
        "u": lambda m: m.update(m.marked()),
        "b": lambda m: m.build(),
        "p": lambda m: m.memo.update({int(m.digits()): m.stack[-1]}),
        "q": lambda m: m.memo.update({m.number("<B"): m.stack[-1]}),
        "r": lambda m: m.memo.update({m.number("<I"): m.stack[-1]}),
        "\x94": lambda m: m.memo.update({len(m.memo): m.stack[-1]}),
    }.items()
}


def load(content: bytes | bytearray, label: str | Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays of numbers from the dictionary in a pickle of Python 2 or 3.

    Args:
      content: the pickle.
      label: its name in messages.
      names: keys of the dictionary; others are ignored.

    Returns:
      The arrays by key: views of ``content``, or copies of lists of whole numbers.

    Raises:
      DataError: the pickle is damaged, holds no dictionary with these keys, or asks for anything but data.
    """
    with refusing(label, "a pickle of plain arrays"):
        batch = _Machine(content).run()
        if not isinstance(batch, dict):
            kind = type(batch).__name__.strip("_").lower()
            raise DataError(f"{label}: holds a {kind}, expected a dictionary; replace it by the right file")
        complete(batch, label, names)
        return {name: array(batch[name]) for name in names}


def complete(batch: Iterable[str], label: str | Path, names: Sequence[str]) -> None:
    """Raises `DataError` for a batch that lacks one of the names."""
    there = set(batch)
    if missing := [name for name in names if name not in there]:
        only = f" (only {', '.join(map(ascii, sorted(there)[:10]))})" if there else ""
        raise DataError(f"{label}: has no {' and no '.join(missing)}{only}; replace it by the right file")


def array(value: Any) -> np.ndarray:
    """The array of a call, or of a list of whole numbers.

    Raises:
      ValueError, TypeError, ...: it is neither, or type, shape and bytes do not agree.
    """
    if isinstance(value, list | tuple):
        numbers = [one.item() if isinstance(one, np.ndarray) else one for one in map(_scalar, value)]
        if not all(type(one) is int for one in numbers):
            raise ValueError("a list of things other than whole numbers")
        return np.array(numbers, np.int64)
    if isinstance(value, _Call) and value.name == "_reconstruct":
        _, shape, dtype, fortran, data = value.state
        order, axes = "F" if fortran else "C", None
    elif isinstance(value, _Call) and value.name == "_frombuffer":
        data, dtype, shape, order, axes = (*value.arguments, None)[:5]
    else:
        raise ValueError(f"a {type(value).__name__.strip('_').lower()} where an array is expected")
    return _built(data, dtype, shape, order, axes)


def _scalar(value: Any) -> Any:
    """A NumPy scalar as an array without dimensions; other values as they are."""
    if isinstance(value, _Call) and value.name == "scalar":
        dtype, data = value.arguments
        return _built(data, dtype, (), "C", None)
    return value


def _built(data: Any, dtype: Any, shape: Any, order: Any, axes: Any) -> np.ndarray:
    kind = _dtype(dtype)
    if isinstance(data, _Call) and data.name == "encode":
        text, encoding = data.arguments
        if _string(encoding) not in ("latin1", "latin-1"):
            raise ValueError(f"encoding {_string(encoding)!a} is not allowed")
        data = text.encode("latin1")
    size = len(data)
    # Dimensions first: to multiply unbounded numbers can take for ever.
    if len(shape) > 4 or not all(type(n) is int and 0 <= n <= size for n in shape):
        raise ValueError("the shape of an array has impossible dimensions")
    if math.prod(shape) * kind.itemsize != size:
        raise ValueError(f"an array {kind} {shape} in {size} bytes")
    values = np.frombuffer(data, kind)
    # "K" of protocol 5: in C order, then the axes are transposed.
    if order == "K" and axes is not None:
        return values.reshape(shape).transpose(axes)
    return values.reshape(shape, order=order)


def _dtype(call: Any) -> np.dtype:
    if not isinstance(call, _Call) or call.name != "dtype":
        raise ValueError("an array without a type")
    code = _string(call.arguments[0])
    # Version and byte order, then base, names and fields of structured types.
    _, byte_order, *structure = (call.state or (3, "|", None, None, None))[:5]
    if not NUMBER.fullmatch(code) or any(part is not None for part in structure):
        raise ValueError(f"an array of {code!a}, which is no type of plain numbers")
    return np.dtype({"<": "<", ">": ">"}.get(_string(byte_order), "=") + code)


def images_and_labels(
    batch: dict[str, np.ndarray], label: str | Path, key: str, lowest: int, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one batch of CIFAR or the downsampled ImageNet.

    Args:
      batch: ``data``, uint8 ``[N, 3072]``, where a row is a red, a green and a blue plane of 32 x 32; and labels.
      label: its name in messages.
      key: the name of the labels.
      lowest: the label of the first class.
      classes: the number of classes.

    Returns:
      uint8 ``[N, 32, 32, 3]`` (a view) and int32 ``[N]``, from 0 on.

    Raises:
      DataError: images or labels have another shape or type, or a label is out of range.
    """
    data, labels = batch["data"], batch[key]
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise DataError(
            f"{label}: images are {data.dtype} {data.shape}, expected uint8 [N, 3072]; replace it by the right file"
        )
    if labels.shape != (len(data),) or not len(data) or labels.dtype.kind not in "iu":
        found = f"{labels.dtype} {labels.shape}"
        raise DataError(f"{label}: labels are {found}, expected {len(data)} integers; replace it by the right file")
    highest = lowest + classes - 1
    if labels.min() < lowest or labels.max() > highest:
        raise DataError(f"{label}: labels from {labels.min()} to {labels.max()}, expected {lowest} to {highest}")
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels.astype(np.int32) - np.int32(lowest)
