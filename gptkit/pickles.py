"""Reads the data of a pickle, and the tensors of a file of torch.save, without running any of it.

Input: bytes, or a zip file, from anybody. Output: dicts, lists, numbers, strings and tensors. A pickle is a
program for a small stack machine that may call any function. Here its instructions only build data: a call is
carried out for OrderedDict and torch's tensors, by our own code, and anything else becomes an `Opaque` value.
Nothing is imported, and memory is bounded. Knows nothing of models.
"""

from __future__ import annotations

import pickletools  # noqa: TID251 - lists the instructions of a pickle, and runs none
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_MAX_INSTRUCTIONS = 2_000_000
_MAX_PICKLE = 64_000_000  # bytes; nanoGPT's are a few hundred kilobytes
_MAX_STORAGE = 64_000_000_000  # bytes
_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
}


class PickleError(ValueError):
    """A pickle that is no data that this module reads."""


@dataclass(frozen=True)
class Global:
    """The name of a function or class, which is never looked up."""

    module: str
    name: str


@dataclass(frozen=True)
class Opaque:
    """What a call of an unknown function would have made."""

    function: str


@dataclass(frozen=True)
class Storage:
    """A block of numbers in the file."""

    key: str
    dtype: torch.dtype
    size: int  # numbers


@dataclass(frozen=True)
class StoredTensor:
    """A tensor whose numbers are still in the file."""

    storage: Storage
    offset: int  # numbers
    shape: tuple[int, ...]
    stride: tuple[int, ...]


_MARK = object()


def read_pickle(data: bytes) -> Any:
    """The value that a pickle describes. Raises PickleError."""
    if len(data) > _MAX_PICKLE:
        raise PickleError("its pickle is too large")
    try:
        return _Machine().run(data)
    except PickleError:
        raise
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise PickleError(f"its pickle is damaged: {str(error)[:100]}") from error


class _Machine:
    """The stack machine of pickle, with the instructions that data consists of."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if count > _MAX_INSTRUCTIONS:
                raise PickleError("its pickle has too many instructions")
            if opcode.name == "STOP":
                return self._stack.pop()
            if opcode.name in _PUSHED:
                self._stack.append(argument)
            elif opcode.name in _CONSTANTS:
                self._stack.append(_CONSTANTS[opcode.name])
            elif opcode.name in _INSTRUCTIONS:
                _INSTRUCTIONS[opcode.name](self, argument)
            elif opcode.name not in _WITHOUT_EFFECT:
                raise PickleError(f"its pickle uses {opcode.name}, which plain data does not need")
        raise PickleError("its pickle has no end")

    # Instructions, by what they do to the stack

    def new_dict(self, argument: Any) -> None:
        self._stack.append({})

    def new_list(self, argument: Any) -> None:
        self._stack.append([])

    def tuple_since_mark(self, argument: Any) -> None:
        self._stack.append(tuple(self._since_mark()))

    def list_since_mark(self, argument: Any) -> None:
        self._stack.append(self._since_mark())

    def dict_since_mark(self, argument: Any) -> None:
        self._stack.append(_pairs(self._since_mark()))

    def tuple_of(self, count: int) -> None:
        items = self._stack[-count:]
        del self._stack[-count:]
        self._stack.append(tuple(items))

    def append(self, argument: Any) -> None:
        value = self._stack.pop()
        self._stack[-1].append(value)

    def extend(self, argument: Any) -> None:
        values = self._since_mark()
        self._stack[-1].extend(values)

    def set_item(self, argument: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._stack[-1][key] = value

    def set_items(self, argument: Any) -> None:
        pairs = _pairs(self._since_mark())
        self._stack[-1].update(pairs)

    def name_of_global(self, argument: str) -> None:
        module, _, attribute = argument.partition(" ")
        self._stack.append(Global(module, attribute))

    def global_from_stack(self, argument: Any) -> None:
        attribute, module = self._stack.pop(), self._stack.pop()
        self._stack.append(Global(str(module), str(attribute)))

    def storage(self, argument: Any) -> None:
        self._stack.append(_storage(self._stack.pop()))

    def call(self, argument: Any) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        self._stack.append(_call(function, arguments))

    def drop(self, argument: Any) -> None:
        self._stack.pop()

    def remember(self, number: Any) -> None:
        self._memo[int(number)] = self._stack[-1]

    def remember_next(self, argument: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def recall(self, number: Any) -> None:
        self._stack.append(self._memo[int(number)])

    def _since_mark(self) -> list[Any]:
        position = len(self._stack) - 1 - self._stack[::-1].index(_MARK)
        items = self._stack[position + 1 :]
        del self._stack[position:]
        return items


_WITHOUT_EFFECT = {"PROTO", "FRAME"}
_PUSHED = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "MARK": _MARK}
_INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "EMPTY_DICT": _Machine.new_dict,
    "EMPTY_LIST": _Machine.new_list,
    "TUPLE": _Machine.tuple_since_mark,
    "TUPLE1": lambda machine, argument: machine.tuple_of(1),
    "TUPLE2": lambda machine, argument: machine.tuple_of(2),
    "TUPLE3": lambda machine, argument: machine.tuple_of(3),
    "LIST": _Machine.list_since_mark,
    "DICT": _Machine.dict_since_mark,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.extend,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.name_of_global,
    "STACK_GLOBAL": _Machine.global_from_stack,
    "BINPERSID": _Machine.storage,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.drop,  # the state of an object, which only an Opaque or an OrderedDict has here
    "POP": _Machine.drop,
    "PUT": _Machine.remember,
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "MEMOIZE": _Machine.remember_next,
    "GET": _Machine.recall,
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
}


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


def _call(function: Any, arguments: Any) -> Any:
    if not isinstance(function, Global) or not isinstance(arguments, tuple):
        raise PickleError("its pickle calls something that is no function")
    if (function.module, function.name) == ("collections", "OrderedDict"):
        return dict(*arguments)
    if (function.module, function.name) == ("torch._utils", "_rebuild_tensor_v2"):
        storage, offset, shape, stride = arguments[:4]
        sizes = (offset, *shape, *stride)
        if not isinstance(storage, Storage) or len(shape) != len(stride):
            raise PickleError("a tensor has no storage")
        if not all(type(size) is int and 0 <= size < 2**40 for size in sizes):
            raise PickleError("a tensor has impossible sizes")
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        # A stride of 0 reads a small storage many times over
        if prod(shape) and (last >= storage.size or prod(shape) > storage.size):
            raise PickleError("a tensor is larger than its storage")
        return StoredTensor(storage, offset, tuple(shape), tuple(stride))
    if (function.module, function.name) == ("torch._utils", "_rebuild_parameter"):
        return arguments[0]
    return Opaque(f"{function.module}.{function.name}")


def _storage(identifier: Any) -> Storage:
    kind, global_, key, _, size = identifier
    if kind != "storage" or not isinstance(global_, Global) or global_.name not in _DTYPES:
        raise PickleError("a tensor has an unknown type")
    if not isinstance(key, str) or type(size) is not int or not 0 <= size < 2**40:
        raise PickleError("a tensor has an unknown storage")
    return Storage(key, _DTYPES[global_.name], size)


class TorchFile:
    """A file of torch.save: its value, whose tensors are read one at a time."""

    def __init__(self, path: Path) -> None:
        """Raises PickleError if it is not such a file, OSError."""
        try:
            self._zip = zipfile.ZipFile(path)
            names = [name for name in self._zip.namelist() if name.endswith("/data.pkl")]
            if len(names) != 1:
                raise PickleError("it is not a file of torch.save")
            self._folder = names[0].removesuffix("data.pkl")
            self.value = read_pickle(self._read(names[0], _MAX_PICKLE))
        except zipfile.BadZipFile as error:
            raise PickleError("it is not a file of torch.save (since version 1.6)") from error

    def __enter__(self) -> TorchFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._zip.close()

    def tensor(self, stored: StoredTensor) -> Tensor:
        """Raises PickleError if its numbers are not in the file."""
        storage = stored.storage
        size = storage.size * storage.dtype.itemsize
        data = self._read(f"{self._folder}data/{storage.key}", min(size, _MAX_STORAGE))
        if len(data) != size:
            raise PickleError(f"the numbers of a tensor are incomplete: {len(data)} of {size} bytes")
        if not size:
            return torch.empty(stored.shape, dtype=storage.dtype)
        flat = torch.frombuffer(bytearray(data), dtype=storage.dtype)
        return flat.as_strided(stored.shape, stored.stride, stored.offset).clone()

    def _read(self, name: str, at_most: int) -> bytes:
        try:
            entry = self._zip.getinfo(name)
        except KeyError:
            raise PickleError(f"it has no {name.rpartition('/')[2]}") from None
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > at_most:
            raise PickleError("an entry is compressed or too large, which torch.save never makes")
        try:
            return self._zip.read(entry)
        except (zipfile.BadZipFile, EOFError) as error:
            raise PickleError(f"it is damaged: {error}") from error


def tensors_in(value: Any) -> Iterator[tuple[str, StoredTensor]]:
    """The tensors of a dict by name. Raises PickleError if it is no dict of tensors."""
    if not isinstance(value, dict):
        raise PickleError("it has no dict of tensors")
    for name, stored in value.items():
        if not isinstance(name, str) or not isinstance(stored, StoredTensor):
            raise PickleError(f"{str(name)[:60]!r} is not a tensor")
        yield name, stored
