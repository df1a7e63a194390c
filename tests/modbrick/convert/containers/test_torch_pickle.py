"""PyTorch files: what is read from them, and that nothing else in them has any effect."""

from __future__ import annotations

import os
import pickle
import pickletools
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.convert.containers.torch_opcodes import _OPCODES, interpret
from modbrick.convert.containers.torch_pickle import LARGEST_DESCRIPTION, read_torch_file
from modbrick.errors import InputError

FIXTURE = Path(__file__).parents[3] / "fixtures/moduleformer/tied_half_identity/pytorch_model.bin"

# Opcodes by hand, as PyTorch writes them.


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def integer(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)


def several(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


EMPTY = name("collections", "OrderedDict") + b")R"


def storage(key: str = "0", count: int = 6, kind: str = "FloatStorage") -> bytes:
    return (
        several(text("storage"), name("torch", kind), text(key), text("cpu"), integer(count)) + b"Q"
    )


def tensor(
    held: bytes,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int = 0,
    rest: tuple[bytes, ...] = (b"\x89", EMPTY),
) -> bytes:
    view = (integer(offset), several(*map(integer, shape)), several(*map(integer, strides)))
    return name("torch._utils", "_rebuild_tensor_v2") + several(held, *view, *rest) + b"R"


def table(**tensors: bytes) -> bytes:
    items = b"".join(text(key) + value for key, value in tensors.items())
    return b"\x80\x02}(" + items + b"u."


SIX = np.arange(6, dtype=np.float32)


def write(
    path: Path,
    code: bytes,
    records: Mapping[str, bytes] | None = None,
    folder: str = "model",
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """Writes an archive as PyTorch lays it out, with `SIX` as storage 0 unless `records` differ."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{folder}/data.pkl", code)
        for record, data in ({"data/0": SIX.tobytes()} if records is None else records).items():
            archive.writestr(f"{folder}/{record}", data)
    return path


def read_all(path: Path) -> dict[str, np.ndarray]:
    return {key: stored.read() for key, stored in read_torch_file(path).items()}


# What is read.


def test_strided_offset_and_shared_views(tmp_path: Path) -> None:
    held = storage() + b"q\x00"
    again = b"h\x00"
    code = table(
        whole=tensor(held, (2, 3), (3, 1)),
        transposed=tensor(again, (3, 2), (1, 3)),
        last=tensor(again, (2,), (1,), offset=4),
        column=tensor(again, (2,), (3,), offset=1),
        scalar=tensor(again, (), (), offset=5),
        nothing=tensor(again, (0, 7), (7, 1), offset=6),
    )
    found = read_all(write(tmp_path / "a.bin", code))
    whole = SIX.reshape(2, 3)
    wanted = {
        "whole": whole,
        "transposed": whole.T,
        "last": SIX[4:],
        "column": whole[:, 1],
        "scalar": SIX[5],
        "nothing": np.zeros((0, 7), np.float32),
    }
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert found[key].dtype == np.float32
        assert np.array_equal(found[key], value), key
    assert not found["whole"].flags.writeable


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("BFloat16Storage", jnp.bfloat16),
        ("HalfStorage", np.float16),
        ("FloatStorage", np.float32),
        ("DoubleStorage", np.float64),
        ("LongStorage", np.int64),
        ("CharStorage", np.int8),
        ("BoolStorage", np.bool_),
    ],
)
def test_types_and_byte_orders(tmp_path: Path, kind: str, dtype: type, order: str) -> None:
    values: np.ndarray = np.array(
        [0, 1, 1, 0, 1, 0] if dtype is np.bool_ else [0, 1, -2, 3, 50, -6], dtype
    )
    bits = values.view(f"u{values.itemsize}")
    data = bits.astype(bits.dtype.newbyteorder("<" if order == "little" else ">")).tobytes()
    code = table(x=tensor(storage(kind=kind), (6,), (1,)))
    path = write(tmp_path / "a.bin", code, {"data/0": data, "byteorder": order.encode()})
    found = read_torch_file(path)["x"]
    assert found.dtype == found.read().dtype == np.dtype(dtype)
    assert np.array_equal(found.read(), values)


def test_parameters_are_tensors_and_state_attributes_say_nothing() -> None:
    inner = tensor(storage(), (6,), (1,))
    parameter = name("torch._utils", "_rebuild_parameter") + several(inner, b"\x88", EMPTY) + b"R"
    metadata = b"}" + text("_metadata") + EMPTY + b"s"
    code = b"\x80\x02" + EMPTY + b"(" + text("w") + parameter + b"u" + metadata + b"b."
    assert interpret(code, "here")["w"].shape == (6,)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_protocols(protocol: int) -> None:
    # Python's own writer: frames and memory differ between protocols.
    code = pickle.dumps({}, protocol)
    assert interpret(code, "here") == {}


def test_opcodes_are_those_of_the_language() -> None:
    known = {code.code.encode("latin-1"): code.name for code in pickletools.opcodes}
    assert set(_OPCODES) <= set(known)
    runs_code = {"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID"}
    assert not {known[code] for code in _OPCODES} & runs_code


# What is refused.


class Attack:
    """Serialised in the usual way, it would run a command on loading."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_nothing_runs(tmp_path: Path, protocol: int) -> None:
    target = tmp_path / "was_here"
    path = write(tmp_path / "a.bin", pickle.dumps({"x": Attack(target)}, protocol))
    with pytest.raises(InputError, match=r"names '(posix|nt)\.system', which is refused"):
        read_torch_file(path)
    assert not target.exists()


FORBIDDEN = [
    ("os", "system"),
    ("builtins", "eval"),
    ("builtins", "getattr"),
    ("torch", "load"),
    ("torch.storage", "_load_from_bytes"),
    ("torch._utils", "_rebuild_tensor_v3"),
    ("torch._utils", "_rebuild_device_tensor_from_numpy"),
    ("torch", "UntypedStorage"),
    ("collections", "defaultdict"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__"),
    ("torch", "FloatStorage\0"),
]


@pytest.mark.parametrize(("module", "attribute"), FORBIDDEN)
@pytest.mark.parametrize("form", ["global", "stack_global"])
def test_names(module: str, attribute: str, form: str) -> None:
    found = (
        name(module, attribute) if form == "global" else text(module) + text(attribute) + b"\x93"
    )
    with pytest.raises(InputError, match=r"names .* which is refused"):
        interpret(b"\x80\x02" + found + b")R.", "here")


def test_every_other_opcode() -> None:
    others = {code.code.encode("latin-1") for code in pickletools.opcodes} - set(_OPCODES)
    for opcode in sorted(others - {b"."}):
        with pytest.raises(InputError, match="uses the opcode"):
            interpret(b"\x80\x02" + opcode + b"\0" * 16, "here")


HOSTILE_CODE = {
    "empty": b"",
    "no protocol": b"}.",
    "old protocol": b"\x80\x01}.",
    "future protocol": b"\x80\x06}.",
    "no end": b"\x80\x02}",
    "nothing there": b"\x80\x02.",
    "too much there": b"\x80\x02}}.",
    "more behind": b"\x80\x02}.}",
    "truncated text": b"\x80\x02X\xff\xff\xff\x7fabc",
    "text that is none": b"\x80\x02X\x01\0\0\0\xff.",
    "endless integer": b"\x80\x02\x8a\xff" + b"\1" * 255 + b".",
    "unfinished name": b"\x80\x02ctorch\nFloatStorage",
    "unknown memory": b"\x80\x02h\x05.",
    "mark misused": b"\x80\x02}(s.",
    "no mark": b"\x80\x02}u.",
    "odd items": b"\x80\x02}(" + text("x") + b"u.",
    "key twice": table(x=tensor(storage(), (6,), (1,)))[:-2] + text("x") + b"Nu.",
    "key no name": b"\x80\x02}K\1Ns.",
    "items of a tuple": b"\x80\x02)NNs.",
    "list on top": b"\x80\x02).",
    "value no tensor": table(x=b"K\1"),
    "value a name": table(x=name("torch", "FloatStorage")),
    "value itself": b"\x80\x02}q\0" + text("x") + b"h\0s.",
    "call a storage": table(x=name("torch", "FloatStorage") + b")R"),
    "call a text": table(x=text("os.system") + b")R"),
    "call without tuple": table(x=name("collections", "OrderedDict") + b"NR"),
    "dictionary of items": table(x=name("collections", "OrderedDict") + b"N\x85R"),
    "state of a tensor": table(x=tensor(storage(), (6,), (1,)) + b"}b"),
    "state not a dictionary": b"\x80\x02}Nb.",
    "storage of five": table(x=several(text("storage"), b"N", text("0"), text("c"), b"K\6") + b"Q"),
    "storage no tuple": table(x=text("storage") + b"Q"),
    "storage elsewhere": table(x=tensor(storage(key="../../etc/passwd"), (6,), (1,))),
    "storage key no text": table(
        x=several(text("storage"), name("torch", "FloatStorage"), b"K\0", text("c"), b"K\6") + b"Q"
    ),
    "storage count negative": table(x=tensor(storage(count=-6), (6,), (1,))),
    "tensor of nothing": table(x=tensor(b"N", (6,), (1,))),
    "ranks differ": table(x=tensor(storage(), (2, 3), (1,))),
    "negative size": table(x=tensor(storage(), (-6,), (1,))),
    "negative stride": table(x=tensor(storage(), (6,), (-1,), offset=5)),
    "negative offset": table(x=tensor(storage(), (1,), (1,), offset=-1)),
    "size no integer": table(
        x=name("torch._utils", "_rebuild_tensor_v2")
        + several(storage(), b"K\0", several(b"\x88"), several(b"K\1"), b"\x89", EMPTY)
        + b"R"
    ),
    "too many axes": table(x=tensor(storage(), (1,) * 40, (1,) * 40)),
    "hooks": table(
        x=tensor(storage(), (6,), (1,), rest=(b"\x89", EMPTY + text("h") + b"Ns"))
    ),
    "metadata": table(
        x=tensor(storage(), (6,), (1,), rest=(b"\x89", EMPTY, b"}" + text("neg") + b"\x88s"))
    ),
    "parameter of nothing": table(
        x=name("torch._utils", "_rebuild_parameter") + several(b"N", b"\x88", EMPTY) + b"R"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE_CODE)
def test_hostile_code(case: str) -> None:
    with pytest.raises(InputError, match=r"^here .* \(byte \d+\)$"):
        interpret(HOSTILE_CODE[case], "here")


def test_deep_nesting_and_a_large_stack_are_harmless() -> None:
    nested = b"\x80\x02)" + b"\x85" * 200_000 + b"."
    with pytest.raises(InputError, match="holds no dictionary of tensors but a tuple"):
        interpret(nested, "here")
    with pytest.raises(InputError, match="too large a stack"):
        interpret(b"\x80\x02" + b"}" * 200_000, "here")


HOSTILE_VIEWS = {
    "beyond its storage": tensor(storage(), (7,), (1,)),
    "offset beyond its storage": tensor(storage(), (2,), (1,), offset=5),
    "stride beyond its storage": tensor(storage(), (2,), (6,)),
    "overflowing stride": tensor(storage(), (2,), (2**62,)),
    "overflowing offset": tensor(storage(), (1,), (1,), offset=2**63 - 1),
    "overflowing shape": tensor(storage(), (2**62, 2**62), (0, 0)),
    "overflowing empty shape": tensor(storage(), (0, 2**62, 2**62), (1, 1, 1)),
    "repeated without end": tensor(storage(), (2**40,), (0,)),
    "more values than the record": tensor(storage(count=7), (7,), (1,)),
    "fewer values than the record": tensor(storage(count=5), (5,), (1,)),
    "enormous storage": tensor(storage(count=2**62), (1,), (1,)),
    "another type": tensor(storage(kind="DoubleStorage"), (6,), (1,)),
    "no such record": tensor(storage(key="1"), (6,), (1,)),
}


@pytest.mark.parametrize("case", HOSTILE_VIEWS)
def test_hostile_views(tmp_path: Path, case: str) -> None:
    with pytest.raises(InputError):
        read_torch_file(write(tmp_path / "a.bin", table(x=HOSTILE_VIEWS[case])))


def test_files_that_are_something_else(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with pytest.raises(InputError, match="cannot be read"):
        read_torch_file(path)
    for content in (b"", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"PK\5\6" + b"\0" * 18):
        path.write_bytes(content)  # nothing; the format before PyTorch 1.6; an archive of nothing
        with pytest.raises(InputError):
            read_torch_file(path)
    with pytest.raises(InputError, match="byteorder is neither"):
        read_torch_file(write(path, table(), {"byteorder": b"middle"}))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", b"\0" * (LARGEST_DESCRIPTION + 1))
    with pytest.raises(InputError, match="at most"):
        read_torch_file(path)


def test_damaged_values_are_found_when_they_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.bin", table(x=tensor(storage(), (6,), (1,))))
    content = bytearray(path.read_bytes())
    content[content.index(SIX.tobytes()) + 5] ^= 1
    path.write_bytes(content)
    found = read_torch_file(path)["x"]
    with pytest.raises(InputError, match="'data/0' fails its checksum"):
        found.read()


# Whatever else.


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Changes, drops, repeats or cuts some bytes, mostly where the structure is."""
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 1, 2, 5, 20])):
        position = draw.randrange(len(changed))
        match draw.randrange(6):
            case 0 | 1 | 2:
                changed[position] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)])
            case 3:
                del changed[position : position + draw.randint(1, 9)]
            case 4:
                start = draw.randrange(len(changed))
                changed[position:position] = changed[start : start + draw.randint(1, 40)]
            case 5 if draw.random() < 0.2:
                del changed[position:]
        if not changed:
            break
    return bytes(changed)


def fuzz(directory: Path, count: int, seed: int) -> None:
    draw = random.Random(seed)
    small = write(
        directory / "small.bin",
        table(a=tensor(storage(), (2, 3), (3, 1)), b=tensor(storage("b"), (6,), (1,))),
        {"data/0": SIX.tobytes(), "data/b": SIX.tobytes(), "byteorder": b"little"},
    ).read_bytes()
    real = FIXTURE.read_bytes()
    code = zipfile.ZipFile(FIXTURE).read("pytorch_model/data.pkl")
    outcomes = {"read": 0, "refused": 0}
    path = directory / "fuzzed.bin"
    for index in range(count):
        match index % 4:
            case 0 | 1:
                path.write_bytes(mutated(small, draw))
            case 2:  # only its description, under a checksum that is right
                write(path, mutated(code, draw), {f"data/{i}": b"\0" * 64 for i in range(60)})
            case 3:
                path.write_bytes(mutated(real, draw))
        try:
            found = read_all(path)
        except InputError:
            outcomes["refused"] += 1
        else:
            assert all(value.nbytes <= path.stat().st_size for value in found.values())
            outcomes["read"] += 1
    assert min(outcomes.values()) > 0, outcomes


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    fuzz(tmp_path, 600, seed=1)


@pytest.mark.verify
def test_many_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    fuzz(tmp_path, 15_000, seed=2)


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write(path, table(x=tensor(storage(), (6,), (1,))))
    content = path.read_bytes()
    short = tmp_path / "short.bin"
    for size in range(len(content)):
        short.write_bytes(content[:size])
        with pytest.raises(InputError):
            read_torch_file(short)
    shutil.copy(path, short)
    assert np.array_equal(read_all(short)["x"], SIX)


@pytest.mark.parametrize(
    ("call", "kind", "dtype"),
    [
        ("_rebuild_tensor_v3", ("torch.storage", "UntypedStorage"), "float8_e4m3fn"),
        ("_rebuild_tensor_v3", ("torch.storage", "UntypedStorage"), "uint16"),
        ("_rebuild_qtensor", ("torch", "QInt8Storage"), "QInt8Storage"),
        ("_rebuild_tensor_v2", ("torch", "ComplexFloatStorage"), "ComplexFloatStorage"),
    ],
)
def test_a_dtype_that_is_not_read_is_named(
    tmp_path: Path, call: str, kind: tuple[str, str], dtype: str
) -> None:
    named = b"" if kind[1] == dtype else name("torch", dtype)
    code = table(a=name("torch._utils", call) + name(*kind) + named)
    with pytest.raises(InputError, match=f"holds tensors of {dtype}, not read: save them as bf"):
        read_torch_file(write(tmp_path / "a.bin", code))
