import functools

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


def test_a_choice_is_of_pieces_of_all_documents(tmp_path, write):
    """Of documents as long as a hundred rows, whole ones would be two."""
    texts = [chr(97 + i) * 640 for i in range(20)]
    long = write(tmp_path / "set", {"held_out": {"code": texts, "prose": ["z" * 63] * 10}})
    batches = evaluation_batches(long, sequence_length=16, batch_size=4, max_tokens=1280)
    found = scored(batches)
    assert batches.all_documents == {"code": 20, "prose": 10}
    assert batches.all_tokens == {"code": 20 * 641, "prose": 640}
    assert batches.documents["code"] == 20
    assert set(found["code"]) - {256} == {ord(text[0]) for text in texts}
    for name, share in (("code", 20 * 641), ("prose", 640)):
        assert len(found[name]) == batches.tokens[name]
        assert abs(len(found[name]) / share - 1280 / 13460) < 0.03
        expected = sum(target != 256 for target in found[name])
        assert abs(batches.scored_bytes[name] - expected) <= max(batches.tokens[name] / 60, 2)
    again = evaluation_batches(long, sequence_length=16, batch_size=4, max_tokens=1280)
    assert scored(again) == found


def test_a_choice_scores_pieces_as_all_of_them_are_scored(dataset):
    """Positions, segments and what does not count are those of the whole evaluation."""

    def pieces(**options):
        found = set()
        for batch in evaluation_batches(
            dataset, sequence_length=32, batch_size=4, context=5, **options
        ):
            for row in range(4):
                for segment in np.unique(batch["segment_ids"][row][batch["segment_ids"][row] > 0]):
                    at = batch["segment_ids"][row] == segment
                    fields = ("tokens", "targets", "positions", "loss_mask")
                    found.add(tuple(batch[field][row][at].tobytes() for field in fields))
        return found

    assert 3 < len(pieces(max_tokens=300)) < len(pieces())
    assert pieces(max_tokens=300) < pieces()
    assert pieces(max_tokens=10**9) == pieces()


@pytest.mark.parametrize("context", [0, 6])
def test_a_choice_estimates_the_mean_of_all_without_bias(tmp_path, write, context):
    """The loss of a target falls with its position, and is another one in each document."""
    generator = np.random.default_rng(0)
    sizes = generator.permutation([int(size) for size in np.geomspace(3, 4000, 60)])
    texts = [chr(97 + i % 26) * size for i, size in enumerate(sizes)]
    data = write(tmp_path / "set", {"held_out": {"text": texts}})
    level = generator.normal(5.0, 1.5, 257)

    def mean(**options):
        losses, count = 0.0, 0
        for batch in evaluation_batches(
            data, sequence_length=24, batch_size=8, context=context, **options
        ):
            loss = level[batch["targets"]] + 2.0 / (1 + batch["positions"])
            losses += float((loss * batch["loss_mask"]).sum())
            count += int(batch["loss_mask"].sum())
        return losses / count, count

    truth, total = mean()
    errors = []
    for tokens in range(1500, 4500, 60):  # each a draw of its own
        estimate, count = mean(max_tokens=tokens)
        assert abs(count - tokens) < 0.1 * tokens
        errors.append((estimate - truth) * np.sqrt(count))
    standard_error = np.std(errors) / np.sqrt(len(errors))
    assert abs(np.mean(errors)) < 3 * standard_error
    assert np.std(errors) / np.sqrt(1500) < 0.1  # in nats, at 1,500 of some 36,000 tokens
    assert total > 30_000


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_a_choice_too(dataset, count):
    read = functools.partial(
        evaluation_batches, dataset, sequence_length=16, batch_size=4, max_tokens=400
    )
    whole = read()
    parts = [read(rows=rows.tolist()) for rows in np.array_split(np.arange(4), count)]
    for batch, *shares in zip(whole, *parts, strict=True):
        for field in batch:
            joined = np.concatenate([share[field] for share in shares])
            np.testing.assert_array_equal(batch[field], joined)


def test_errors_name_the_remedy(dataset, tmp_path, write):
    with pytest.raises(InputError, match="context must be from 0 to sequence_length - 1"):
        evaluation_batches(dataset, sequence_length=8, batch_size=1, context=8)
    with pytest.raises(InputError, match="batch_size must be at least 1, got 0"):
        evaluation_batches(dataset, sequence_length=8, batch_size=0)
    data = write(tmp_path / "set", {"train": {"a": ["text"]}})
    with pytest.raises(InputError, match=r"held_out split has no document; .*--held_out"):
        evaluation_batches(data, sequence_length=8, batch_size=1)
