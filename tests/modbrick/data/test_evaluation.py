import numpy as np
import pytest

from modbrick.data.evaluation import evaluation_batches
from modbrick.errors import InputError


def scored(batches):
    """Returns the scored targets of each domain, sorted."""
    found: dict[str, list[int]] = {name: [] for name in batches.domains}
    for batch in batches:
        for index, name in enumerate(batches.domains):
            counts = (batch["loss_mask"] == 1) & (batch["domains"] == index)
            assert not (counts & (batch["segment_ids"] == 0)).any()
            found[name] += batch["targets"][counts].tolist()
    return {name: sorted(targets) for name, targets in found.items()}


@pytest.mark.parametrize(("length", "context"), [(16, 0), (16, 5), (64, 63), (1000, 10)])
def test_every_held_out_byte_counts_once(dataset, texts, length, context):
    batches = evaluation_batches(dataset, sequence_length=length, batch_size=4, context=context)
    expected = {
        name: sorted(t for text in documents for t in [*text.encode(), 256])
        for name, documents in texts["held_out"].items()
    }
    assert scored(batches) == expected
    for name, documents in texts["held_out"].items():
        assert batches.scored_bytes[name] == sum(len(text.encode()) for text in documents)
        assert batches.tokens[name] == len(expected[name])
        assert batches.documents[name] == len(documents)


def test_scored_targets_after_a_cut_have_context(dataset):
    length, context = 32, 10
    for batch in evaluation_batches(dataset, sequence_length=length, batch_size=2, context=context):
        begins = (batch["positions"] < context) & (batch["segment_ids"] > 0)
        # A piece that begins a document is scored from its start; any other after its context.
        for row in range(2):
            for segment in np.unique(batch["segment_ids"][row]):
                at = batch["segment_ids"][row] == segment
                if segment == 0:
                    continue
                first = batch["tokens"][row][at][0] == 256
                mask = batch["loss_mask"][row][at & begins[row]]
                assert mask.all() if first else not mask.any()


def test_short_documents_are_whole(dataset):
    for batch in evaluation_batches(dataset, sequence_length=512, batch_size=2):
        starts = (batch["positions"] == 0) & (batch["segment_ids"] > 0)
        assert (batch["tokens"][starts] == 256).all()


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_batches(dataset, count):
    whole = evaluation_batches(dataset, sequence_length=64, batch_size=4)
    parts = [
        evaluation_batches(dataset, sequence_length=64, batch_size=4, rows=rows.tolist())
        for rows in np.array_split(np.arange(4), count)
    ]
    for batch, *shares in zip(whole, *parts, strict=True):
        for field in batch:
            np.testing.assert_array_equal(
                batch[field], np.concatenate([share[field] for share in shares])
            )
    assert len(list(whole)) == len(whole)


def test_a_choice_is_whole_documents_of_all_domains(dataset):
    total = int(dataset.documents("held_out").targets.sum())
    batches = evaluation_batches(dataset, sequence_length=64, batch_size=4, max_tokens=total // 3)
    found = scored(batches)
    for name in batches.domains:
        assert 1 <= batches.documents[name] < dataset.domains("held_out")[name].documents
        assert len(found[name]) == batches.tokens[name]
        assert found[name].count(256) == batches.documents[name]
        assert batches.tokens[name] == batches.scored_bytes[name] + batches.documents[name]
    assert total / 4 < sum(batches.tokens.values()) < total * 0.6


def test_errors_name_the_remedy(dataset, tmp_path, write):
    with pytest.raises(InputError, match="context must be from 0 to sequence_length - 1"):
        evaluation_batches(dataset, sequence_length=8, batch_size=1, context=8)
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        evaluation_batches(dataset, sequence_length=8, batch_size=0)
    data = write(tmp_path / "set", {"train": {"a": ["text"]}})
    with pytest.raises(InputError, match=r"held_out split has no document; .*--held_out"):
        evaluation_batches(data, sequence_length=8, batch_size=1)
