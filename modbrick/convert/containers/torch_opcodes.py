"""The few opcodes with which PyTorch writes a table of tensors; they are read and run nothing.

PyTorch files describe their tensors in Python's serialisation language, in which a file can call
any function. This machine knows the opcodes that tables of tensors need (protocols 2 to 5), and a
handful of names, which it does not import but turns into descriptions. Everything else is refused
by its name.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Callable
from typing import Any

from modbrick.errors import InputError

LARGEST_STACK = 100_000
"""Objects; writers put some thousands there at a time."""


@dataclasses.dataclass(frozen=True)
class StorageDescription:
    """A flat run of `count` values of a PyTorch storage type, in the record `data/{key}`."""

    type_name: str
    key: str
    count: int


@dataclasses.dataclass(frozen=True)
class TensorDescription:
    """A strided view of a storage, counted in its values; not compared with it yet."""

    storage: StorageDescription
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Global:
    name: str


STORAGE_TYPES = frozenset(
    f"torch.{kind}Storage"
    for kind in (
        *("BFloat16", "Half", "Float", "Double", "Bool"),
        *("Byte", "Char", "Short", "Int", "Long"),
    )
)

_UNREAD = re.compile(rb"torch\W.{0,8}?((?:float[48]_|uint\d|quint|qint|[Cc]omplex|Q?U?Int\d)\w*)")
"""Names of dtypes that the allowed names cannot express: float8, those of quantised tensors."""


def interpret(code: bytes, where: str) -> dict[str, TensorDescription]:
    """Returns the tensors that `code` describes, by name.

    Args:
      code: the record `data.pkl` of a PyTorch file.
      where: begins every message.

    Raises:
      InputError: code that is damaged, uses any other opcode or name, or describes anything but a
        dictionary of tensors.
    """
    return _Machine(code, where).run()


class _Machine:
    def __init__(self, code: bytes, where: str):
        self.code, self.where, self.position = code, where, 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> dict[str, TensorDescription]:
        if self.take(1) != b"\x80" or not 2 <= self.count("<B") <= 5:
            raise self.error("is not in protocol 2 to 5")
        while (opcode := self.take(1)) != b".":
            if opcode not in _OPCODES:
                raise self.error(f"uses the opcode {opcode!r}, which no table of tensors needs")
            _OPCODES[opcode](self)
            if len(self.stack) > LARGEST_STACK:
                raise self.error("needs too large a stack")
        table = self.pop()
        if self.stack or self.position != len(self.code):
            raise self.error("goes on after its end")
        if type(table) is not dict:
            raise self.error(f"holds no dictionary of tensors but {_kind(table)}")
        for name, value in table.items():
            if not isinstance(value, TensorDescription):
                raise self.error(f"holds {_kind(value)} under {name!r}, not a tensor")
        return table

    def error(self, problem: str) -> InputError:
        return InputError(f"{self.where} {problem} (byte {self.position})")

    # Operands.

    def take(self, size: int) -> bytes:
        if size > len(self.code) - self.position:
            raise self.error("is truncated")
        self.position += size
        return self.code[self.position - size : self.position]

    def count(self, form: str) -> int:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def text(self, size: int) -> str:
        try:
            return self.take(size).decode("utf-8")
        except UnicodeDecodeError:
            raise self.error("holds text that is not UTF-8") from None

    def line(self) -> str:
        end = self.code.find(b"\n", self.position)
        if end < 0:
            raise self.error("is truncated")
        text = self.text(end - self.position)
        self.position += 1
        return text

    # The stack.

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise self.error("takes more than there is")
        return self.stack.pop()

    def pop_many(self, count: int) -> list[Any]:
        return [self.pop() for _ in range(count)][::-1]

    def pop_marked(self) -> list[Any]:
        if not self.marks:
            raise self.error("takes more than there is")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def top(self) -> Any:
        value = self.pop()
        self.push(value)
        return value

    # Containers, memory, names.

    def set_items(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) is not dict or len(items) % 2:
            raise self.error("sets items of something else than a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                raise self.error(f"has {_kind(key)} as a key, not a name")
            if key in target:
                raise self.error(f"sets {key!r} twice")
            target[key] = value

    def put(self, index: int) -> None:
        self.memo[index] = self.top()

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise self.error("recalls what it never stored")
        self.push(self.memo[index])

    def find(self, module: Any, name: Any) -> None:
        full = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else ""
        if full not in _CALLS and full not in STORAGE_TYPES:
            if full.startswith("torch.") and (kinds := set(_UNREAD.findall(self.code))):
                named = b", ".join(sorted(kinds)).decode()
                raise self.error(f"holds tensors of {named}, not read: save them as bfloat16")
            raise self.error(f"names {full[:100]!r}, which is refused: only tensors are read")
        self.push(_Global(full))

    def reduce(self) -> None:
        function, arguments = self.pop_many(2)
        if not isinstance(function, _Global) or function.name not in _CALLS:
            name = function.name if isinstance(function, _Global) else _kind(function)
            raise self.error(f"calls {name}, which is refused")
        if type(arguments) is not tuple:
            raise self.error(f"calls {function.name} without a tuple of arguments")
        self.push(_CALLS[function.name](self, arguments))

    def build(self) -> None:
        # The attributes of a state dictionary (its `_metadata`) say nothing about the tensors.
        target, state = self.pop_many(2)
        if type(target) is not dict or type(state) is not dict:
            raise self.error(f"sets the state of {_kind(target)}, which is refused")
        self.push(target)

    def persistent(self) -> None:
        match self.pop():
            case ("storage", _Global(name), str(key), str(), int(count)) if (
                name in STORAGE_TYPES and re.fullmatch(r"[0-9A-Za-z_-]{1,64}", key) and count >= 0
            ):
                self.push(StorageDescription(name, key, int(count)))
            case _:
                raise self.error("refers to something outside that is not a storage")

    # What the allowed names mean.

    def dictionary(self, arguments: tuple) -> dict[str, Any]:
        if arguments:
            raise self.error("makes a dictionary from arguments, which is refused")
        return {}

    def tensor(self, arguments: tuple) -> TensorDescription:
        # storage, offset, shape, strides[, requires_grad, hooks[, metadata]]
        match arguments:
            case (
                StorageDescription() as storage,
                int(offset),
                tuple(shape),
                tuple(strides),
                *rest,
            ):
                values = (offset, *shape, *strides)
            case _:
                raise self.error("rebuilds a tensor from something else than a storage")
        if len(rest) > 3 or len(shape) != len(strides) or len(shape) > 32:
            raise self.error("rebuilds a tensor of contradictory shape")
        if not all(type(value) is int and value >= 0 for value in values):
            raise self.error("rebuilds a tensor with an offset, size or stride that is no count")
        # Hooks would be called, and metadata negates or conjugates values.
        if any(extra for extra in rest[1:]):
            raise self.error("rebuilds a tensor with hooks or metadata, which is refused")
        return TensorDescription(storage, offset, shape, strides)

    def parameter(self, arguments: tuple) -> TensorDescription:
        match arguments:
            case (TensorDescription() as tensor, bool(), hooks) if not hooks:
                return tensor
        raise self.error("rebuilds a parameter from something else than a tensor")


_CALLS: dict[str, Callable[[_Machine, tuple], Any]] = {
    "collections.OrderedDict": _Machine.dictionary,
    "torch._utils._rebuild_tensor": _Machine.tensor,
    "torch._utils._rebuild_tensor_v2": _Machine.tensor,
    "torch._utils._rebuild_parameter": _Machine.parameter,
}


def _integer(machine: _Machine) -> None:
    size = machine.count("<B")
    if size > 8:
        raise machine.error(f"holds an integer of {size} bytes")
    machine.push(int.from_bytes(machine.take(size), "little", signed=True))


def _frame(machine: _Machine) -> None:
    machine.take(8)  # its size, a hint for buffering


# By the names that Python's `pickletools` gives them.
_OPCODES: dict[bytes, Callable[[_Machine], None]] = {
    b"N": lambda m: m.push(None),  # NONE
    b"\x88": lambda m: m.push(True),  # NEWTRUE
    b"\x89": lambda m: m.push(False),  # NEWFALSE
    b"J": lambda m: m.push(m.count("<i")),  # BININT
    b"K": lambda m: m.push(m.count("<B")),  # BININT1
    b"M": lambda m: m.push(m.count("<H")),  # BININT2
    b"\x8a": _integer,  # LONG1
    b"G": lambda m: m.push(struct.unpack(">d", m.take(8))[0]),  # BINFLOAT
    b"X": lambda m: m.push(m.text(m.count("<I"))),  # BINUNICODE
    b"\x8c": lambda m: m.push(m.text(m.count("<B"))),  # SHORT_BINUNICODE
    b"(": lambda m: m.marks.append(len(m.stack)),  # MARK
    b")": lambda m: m.push(()),  # EMPTY_TUPLE
    b"\x85": lambda m: m.push(tuple(m.pop_many(1))),  # TUPLE1
    b"\x86": lambda m: m.push(tuple(m.pop_many(2))),  # TUPLE2
    b"\x87": lambda m: m.push(tuple(m.pop_many(3))),  # TUPLE3
    b"t": lambda m: m.push(tuple(m.pop_marked())),  # TUPLE
    b"}": lambda m: m.push({}),  # EMPTY_DICT
    b"s": lambda m: m.set_items(m.pop_many(2)),  # SETITEM
    b"u": lambda m: m.set_items(m.pop_marked()),  # SETITEMS
    b"q": lambda m: m.put(m.count("<B")),  # BINPUT
    b"r": lambda m: m.put(m.count("<I")),  # LONG_BINPUT
    b"\x94": lambda m: m.put(len(m.memo)),  # MEMOIZE
    b"h": lambda m: m.get(m.count("<B")),  # BINGET
    b"j": lambda m: m.get(m.count("<I")),  # LONG_BINGET
    b"\x95": _frame,  # FRAME
    b"c": lambda m: m.find(m.line(), m.line()),  # GLOBAL
    b"\x93": lambda m: m.find(*m.pop_many(2)),  # STACK_GLOBAL
    b"R": _Machine.reduce,  # REDUCE
    b"b": _Machine.build,  # BUILD
    b"Q": _Machine.persistent,  # BINPERSID
}


def _kind(value: Any) -> str:
    """Names what a value is, without printing it: it may be nested to any depth."""
    return value.name if isinstance(value, _Global) else f"a {type(value).__name__}"
