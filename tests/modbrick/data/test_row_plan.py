from collections import Counter

import numpy as np
import pytest

from modbrick.data.config import DataConfig
from modbrick.data.row_plan import RowPlan
from modbrick.errors import InputError


def config(**fields):
    return DataConfig("unused", **{"sequence_length": 32, "batch_size": 4, **fields})


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_a_pool_holds_every_target_once_an_epoch(dataset, packing):
    documents = dataset.documents("train")
    plan = RowPlan(documents, config(packing=packing, epochs=2))
    assert plan.rows is not None
    counts = Counter(
        (piece.document, target)
        for row in range(plan.rows)
        for piece in plan.pieces(row)
        for target in range(piece.start, piece.stop)
    )
    assert set(counts.values()) == {2}
    assert len(counts) == documents.targets.sum()
    assert plan.pieces(plan.rows) == []


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_a_mixture_gives_shares_of_tokens(dataset, packing):
    documents = dataset.documents("train")
    plan = RowPlan(documents, config(packing=packing, mixture={"prose": 3, "code": 1}))
    tokens = np.zeros(2)
    for row in range(4000):
        pieces = plan.pieces(row)
        domains = {documents.domain_of(piece.document) for piece in pieces}
        assert len(domains) == 1
        tokens[domains.pop()] += sum(piece.stop - piece.start for piece in pieces)
    shares = dict(zip(documents.domains, tokens / tokens.sum(), strict=True))
    assert shares["prose"] == pytest.approx(0.75, abs=0.005)


def test_shares_are_of_tokens_also_where_rows_hold_fewer(tmp_path, write):
    # With the end of document, rows of 32 hold 20 targets of one domain and 32 of the other.
    data = write(tmp_path / "set", {"train": {"half": ["x" * 19] * 50, "full": ["y" * 31] * 50}})
    documents = data.documents("train")
    plan = RowPlan(documents, config(packing="best_fit", mixture={"half": 1, "full": 1}))
    pieces = [piece for row in range(2000) for piece in plan.pieces(row)]
    half = sum(p.stop - p.start for p in pieces if documents.domain_of(p.document) == 1)
    total = sum(p.stop - p.start for p in pieces)
    assert documents.domains[1] == "half"
    assert half / total == pytest.approx(0.5, abs=0.005)


def test_a_finite_mixture_ends_with_its_first_domain(dataset):
    documents = dataset.documents("train")
    plan = RowPlan(documents, config(mixture={"prose": 1, "code": 1}, epochs=1))
    assert plan.rows is not None
    tokens = np.zeros(len(documents), int)
    for row in range(plan.rows):
        for piece in plan.pieces(row):
            tokens[piece.document] += piece.stop - piece.start
    prose = slice(*documents.first[1:3])
    assert documents.domains[1] == "prose"
    # All of the smaller domain but, at most, its last row; not all of the larger one.
    assert documents.targets[prose].sum() - tokens[prose].sum() <= 32
    assert (tokens <= documents.targets).all()
    assert tokens.sum() < documents.targets.sum()


def test_one_domain_of_a_mixture_is_that_domain_alone(dataset):
    documents = dataset.documents("train")
    plan = RowPlan(documents, config(mixture={"prose": 0.2}))
    numbers = {piece.document for row in range(200) for piece in plan.pieces(row)}
    assert numbers == set(range(*documents.first[1:3]))


def test_a_misspelt_domain_is_named_with_the_nearest(dataset):
    with pytest.raises(InputError, match=r"'prsoe'.*did you mean 'prose'"):
        RowPlan(dataset.documents("train"), config(mixture={"prsoe": 1}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sequence_length": 0}, "sequence_length must be at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be at least 1, got -1"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"packing": "first_fit"}, "'first_fit'"),
        ({"mixture": {}}, "no domain"),
        ({"mixture": {"a": 0.0}}, "'a' must be positive"),
        ({"mixture": {"a": float("nan")}}, "'a' must be positive"),
    ],
)
def test_a_bad_config_names_the_value(fields, message):
    with pytest.raises(InputError, match=message):
        config(**fields)


def test_the_order_of_a_mixture_does_not_matter(dataset):
    documents = dataset.documents("train")
    one = RowPlan(documents, config(mixture={"prose": 3, "code": 1}))
    other = RowPlan(documents, config(mixture={"code": 2, "prose": 6}))
    assert [one.pieces(r) for r in range(100)] == [other.pieces(r) for r in range(100)]


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
@pytest.mark.parametrize("mixture", [None, {"prose": 3, "code": 1}, {"code": 1}])
@pytest.mark.parametrize("rows", [0, 7, 300, 70_000])
def test_repetitions_are_epochs_of_each_domain(dataset, packing, mixture, rows):
    documents = dataset.documents("train")
    plan = RowPlan(documents, config(packing=packing, mixture=mixture))
    found = plan.repetitions(rows)
    assert set(found) == set(mixture or documents.domains)
    if rows > 300:
        shares = (
            {} if mixture is None else {k: v / sum(mixture.values()) for k, v in mixture.items()}
        )
        sizes = {name: domain.tokens for name, domain in dataset.domains("train").items()}
        read = {name: found[name] * sizes[name] for name in found}
        total = sum(read.values())
        for name, share in shares.items():
            assert read[name] / total == pytest.approx(share, rel=1e-3)
        return
    counted = dict.fromkeys(found, 0)
    for row in range(rows):
        for piece in plan.pieces(row):
            name = documents.domains[documents.domain_of(piece.document)]
            counted[name] += piece.stop - piece.start
    for name, count in counted.items():
        # Of best-fit packing, and of a pool, it is the mean.
        tokens = dataset.domains("train")[name].tokens
        assert count / tokens == pytest.approx(found[name], abs=0.2 + 0.1 * found[name])


def test_a_plan_that_ends_repeats_no_more(dataset):
    plan = RowPlan(dataset.documents("train"), config(epochs=2))
    assert plan.repetitions(10**6) == pytest.approx({"code": 2.0, "prose": 2.0}, rel=0.01)
