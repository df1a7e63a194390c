"""Whether the files of a data set are those that its manifest records."""

from __future__ import annotations

import contextlib
import hashlib
import io

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath

from modbrick.data.manifest import INDEX_FILE, MANIFEST, REMEDY, DomainManifest, Shard
from modbrick.data.records import parts
from modbrick.errors import InputError


def check_domain(directory: epath.Path, described: DomainManifest, verify_hashes: bool) -> None:
    """Checks index and shards of one domain in one split.

    Args:
      directory: where they are.
      described: what the manifest says of them.
      verify_hashes: also read every shard and compare its hash.

    Raises:
      InputError: names the missing or damaged file and the remedy.
    """
    index_path = directory / INDEX_FILE
    if not index_path.exists():
        raise InputError(f"{index_path}: missing; {REMEDY}")
    raw = index_path.read_bytes()
    if hashlib.sha256(raw).hexdigest() != described.index_sha256:
        raise InputError(f"{index_path}: damaged (its hash is not the recorded one); {REMEDY}")
    index = np.load(io.BytesIO(raw), allow_pickle=False).astype(np.int64)
    counted = (len(index), *(int(index[:, i].sum()) for i in range(3)))
    recorded = (
        described.documents,
        described.tokens,
        described.bytes,
        described.unscored_bytes,
    )
    if counted != recorded:
        raise InputError(
            f"{index_path}: counts (documents, tokens, bytes, unscored bytes) {counted}, but "
            f"{MANIFEST} records {recorded}; {REMEDY}"
        )
    records = sum(shard.records for shard in described.shards)
    if records != int(parts(index[:, 0] + 1).sum()):
        raise InputError(
            f"{directory}: {MANIFEST} records {records} records in its shards, the index "
            f"{int(parts(index[:, 0] + 1).sum())}; {REMEDY}"
        )
    for shard in described.shards:
        _check_shard(directory / shard.file, shard, verify_hashes)


def _check_shard(path: epath.Path, shard: Shard, verify_hash: bool) -> None:
    if not path.exists():
        raise InputError(f"{path}: missing shard; {REMEDY}")
    size = path.stat().length
    if size != shard.size:
        state = "empty" if size == 0 else "truncated" if size < shard.size else "too long"
        raise InputError(f"{path}: {state} shard ({size} bytes instead of {shard.size}); {REMEDY}")
    found = None
    # A reader of a damaged file is not ok, or raises on being opened or closed.
    with contextlib.suppress(RuntimeError):
        reader = ArrayRecordReader(str(path))
        records = reader.num_records() if reader.ok() else None
        reader.close()
        found = records
    if found != shard.records:
        raise InputError(
            f"{path}: damaged shard ({found if found is not None else 'no'} readable records "
            f"instead of {shard.records}); {REMEDY}"
        )
    if verify_hash and hashlib.sha256(path.read_bytes()).hexdigest() != shard.sha256:
        raise InputError(f"{path}: damaged shard (its hash is not the recorded one); {REMEDY}")
