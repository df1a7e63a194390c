import bz2
import gzip
import hashlib
import io
import lzma
from collections.abc import Callable

import pytest
import zstandard

from modbrick.data.preparation.formats import streams
from modbrick.data.preparation.formats.streams import (
    DAMAGE,
    HashedFile,
    UnreadableError,
    decompressed,
)

TEXT = bytes(range(32, 127)) * 40


def long_window(text: bytes) -> bytes:
    """What `zstd --long=28` writes to a pipe."""
    parameters = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(text) + compressor.flush()


SKIPPED = b"\x50\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"
FORMS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
    "zstd, long window": long_window,
    "zstd, frames to skip": lambda text: SKIPPED + zstandard.compress(text) + SKIPPED,
    "xz": lzma.compress,
    "lzma": lambda text: lzma.compress(text, format=lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
}


def read(raw: bytes) -> bytes:
    file = HashedFile(io.BytesIO(raw))
    found = b"".join(decompressed(file))
    assert (file.size, file.sha256) == (len(raw), hashlib.sha256(raw).hexdigest())
    return found


@pytest.mark.parametrize("chunk", [1, 5, 1 << 18])
@pytest.mark.parametrize("form", FORMS)
def test_every_compression_comes_back(monkeypatch, form, chunk):
    pack = FORMS[form]
    assert read(pack(TEXT)) == TEXT
    monkeypatch.setattr(streams, "CHUNK", max(chunk, 12))
    assert read(pack(TEXT)) == TEXT
    assert read(pack(b"")) == b""
    assert read(pack(b"\xef\xbb\xbf" + TEXT)) == TEXT
    if form not in ("plain", "lzma"):
        assert read(pack(TEXT) + pack(b"") + pack(TEXT)) == TEXT + TEXT
        assert read(pack(TEXT) + bytes(1024)) == TEXT


@pytest.mark.parametrize("form", [form for form in FORMS if form not in ("plain", "lzma")])
def test_damage_is_told_behind_what_comes_before(form):
    packed = FORMS[form](TEXT)
    for raw in (packed[:-6], packed + b"garbage", packed + packed[:-5]):
        found: list[bytes] = []
        with pytest.raises(DAMAGE):
            found.extend(decompressed(io.BytesIO(raw)))
        assert TEXT.startswith(b"".join(found)[: len(TEXT)])
        assert len(raw) < len(packed) or b"".join(found).startswith(TEXT)


@pytest.mark.parametrize(
    ("form", "size", "most"),
    [("gzip", 24, 20), ("xz", 24, 20), ("bzip2", 24, 20), ("zstd", 28, 26)],
)
def test_a_few_bytes_do_not_become_gigabytes_at_once(form, size, most):
    packed = FORMS[form](bytes(1 << size))
    assert len(packed) < streams.CHUNK
    sizes = [len(chunk) for chunk in decompressed(io.BytesIO(packed))]
    assert sum(sizes) == 1 << size
    assert max(sizes) <= 1 << most


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_wide_text_is_named(encoding):
    with pytest.raises(UnreadableError, match=f"^{encoding.upper()} text .save it as UTF-8"):
        read("text".encode(encoding))
