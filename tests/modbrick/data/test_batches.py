import itertools

import numpy as np
import pytest

from modbrick.data.batches import data_identity, training_batches
from modbrick.data.config import DataConfig
from modbrick.data.dataset import Dataset
from modbrick.errors import InputError

VARIANTS = [
    {},
    {"packing": "best_fit"},
    {"mixture": {"code": 1, "prose": 2}},
    {"mixture": {"code": 1, "prose": 2}, "packing": "best_fit", "epochs": 3},
    {"shuffle": False, "epochs": 2},
]


def config(**fields):
    return DataConfig("unused", **{"sequence_length": 32, "batch_size": 8, **fields})


def take(batches, count):
    with batches:
        return list(itertools.islice(batches, count))


def assert_same(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for field in a:
            np.testing.assert_array_equal(a[field], b[field], err_msg=field)


@pytest.mark.parametrize("variant", VARIANTS)
def test_targets_follow_inputs_within_documents_and_nowhere_else(dataset, texts, variant):
    known = {
        b"\0" + text.encode() + b"\0" for t in texts["train"].values() for text in t
    }  # the boundary id, cut to a byte, is 0: no text holds it
    for batch in take(training_batches(dataset, config(**variant)), 6):
        for field, array in batch.items():
            assert array.shape == (8, 32), field
            assert array.dtype == np.int32, field
        for row in range(8):
            fields = {field: array[row] for field, array in batch.items()}
            segments = fields["segment_ids"]
            padding = segments == 0
            np.testing.assert_array_equal(fields["loss_mask"], ~padding)
            for field in ("tokens", "targets", "positions"):
                assert not fields[field][padding].any()
            filled = segments[~padding]
            assert not padding[: len(filled)].any()
            assert (np.diff(filled) >= 0).all()
            assert (np.diff(filled) <= 1).all()
            for segment in np.unique(filled):
                at = segments == segment
                tokens, targets = fields["tokens"][at], fields["targets"][at]
                np.testing.assert_array_equal(tokens[1:], targets[:-1])
                np.testing.assert_array_equal(fields["positions"][at], np.arange(at.sum()))
                piece = bytes([*tokens.astype(np.uint8), np.uint8(targets[-1] & 255)])
                assert any(piece in document for document in known)
                assert 256 not in tokens[1:]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("count", [2, 4])
def test_the_parts_of_all_processes_are_the_global_batch(dataset, variant, count):
    whole = take(training_batches(dataset, config(**variant)), 5)
    parts = [
        take(training_batches(dataset, config(**variant), rows=rows.tolist()), 5)
        for rows in np.array_split(np.arange(8), count)
    ]
    joined = [
        {field: np.concatenate([part[field] for part in step]) for field in step[0]}
        for step in zip(*parts, strict=True)
    ]
    assert_same(whole, joined)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_continues_from_any_step_across_epochs(dataset, variant):
    fields = config(sequence_length=128, **variant)
    whole = take(training_batches(dataset, fields), 40)  # a dozen epochs, or all of a finite plan
    for step in sorted({0, 1, len(whole) // 2, len(whole) - 2}):
        batches = training_batches(dataset, fields)
        batches.set_state(step * 8)
        assert_same(take(batches, 2), whole[step : step + 2])
        started = training_batches(dataset, fields, start_row=step * 8)
        assert_same(take(started, 2), whole[step : step + 2])


def test_the_state_is_the_number_of_the_next_row(dataset):
    with training_batches(dataset, config(), start_row=16) as batches:
        assert batches.get_state() == 16
        first, second = next(batches), next(batches)
        assert batches.get_state() == 32
        batches.set_state(16)
        assert_same([next(batches), next(batches)], [first, second])


def test_rows_go_on_when_the_batch_grows(dataset):
    small = take(training_batches(dataset, config()), 4)
    large = take(training_batches(dataset, config(batch_size=16), start_row=16), 1)
    joined = {f: np.concatenate([small[2][f], small[3][f]]) for f in small[0]}
    assert_same(large, [joined])


def test_workers_change_nothing(dataset):
    fields = {"mixture": {"code": 1, "prose": 1}, "packing": "best_fit"}
    expected = take(training_batches(dataset, config(**fields)), 7)
    with training_batches(dataset, config(workers=2, prefetch=1, **fields)) as batches:
        assert_same([next(batches) for _ in range(5)], expected[:5])
    alone = training_batches(dataset, config(workers=1, **fields), start_row=8)
    assert_same(take(alone, 6), expected[1:])


@pytest.mark.parametrize("variant", [{"epochs": 1}, {"epochs": 2, "packing": "best_fit"}])
def test_finite_plans_end_with_empty_rows_on_all_processes_alike(dataset, variant):
    fields = config(batch_size=12, **variant)
    parts = [
        take(training_batches(dataset, fields, rows=range(i, 12, 3)), 10_000) for i in range(3)
    ]
    assert len({len(part) for part in parts}) == 1
    counted = sum(int(batch["loss_mask"].sum()) for part in parts for batch in part)
    assert counted == fields.epochs * int(dataset.documents("train").targets.sum())


def test_a_long_document_is_read_in_parts(tmp_path, write):
    text = "".join(chr(97 + (i * i) % 26) for i in range(150_000))
    data = write(tmp_path / "set", {"train": {"long": [text]}})
    fields = DataConfig("", sequence_length=1000, batch_size=1, shuffle=False, epochs=1)
    with training_batches(data, fields) as batches:
        targets = np.concatenate([b["targets"][b["loss_mask"] > 0] for b in batches])
    assert targets.tolist() == [*text.encode(), 256]


def test_identity_leaves_out_execution(dataset, tmp_path, texts, write):
    same = data_identity(dataset, config(workers=3, prefetch=9))
    assert same == data_identity(dataset, config())
    copy = write(tmp_path / "copy", texts, shard_bytes=500)
    assert len(copy.domains("train")["code"].shards) > 1
    assert data_identity(copy, config()) == same
    for change in ({"seed": 1}, {"batch_size": 4}, {"packing": "best_fit"}, {"shuffle": False}):
        assert data_identity(dataset, config(**change)) != same
    less = {**texts, "train": {"code": texts["train"]["code"]}}
    other = write(tmp_path / "other", less)
    assert data_identity(other, config())["dataset"] != same["dataset"]


@pytest.mark.parametrize("rows", [[], [0, 8], [-1]])
def test_rows_outside_the_batch_are_refused(dataset, rows):
    with pytest.raises(ValueError, match="of a batch of 8"):
        training_batches(dataset, config(), rows=rows)


def test_any_rows_of_the_batch_may_be_read(dataset):
    whole = take(training_batches(dataset, config()), 3)
    some = take(training_batches(dataset, config(), rows=[6, 1, 2]), 3)
    assert_same(some, [{f: array[[6, 1, 2]] for f, array in batch.items()} for batch in whole])


def test_a_damaged_record_is_one_clear_error(tmp_path, write, texts):
    write(tmp_path / "set", texts)
    shard = tmp_path / "set" / "train" / "code" / "00000.array_record"
    raw = bytearray(shard.read_bytes())
    content = np.flatnonzero(np.frombuffer(bytes(raw), np.uint8))  # files are padded with zeros
    raw[content[len(content) // 3]] ^= 0xFF
    shard.write_bytes(raw)
    data = Dataset.open(str(tmp_path / "set"))  # sizes and counts are right
    with pytest.raises(InputError, match=r"cannot be read.*prepare the data again"):
        take(training_batches(data, config(epochs=1)), 10_000)
    with pytest.raises(InputError, match=r"00000\.array_record: damaged shard"):
        Dataset.open(str(tmp_path / "set"), verify_hashes=True)
