"""Runs that train customized bricks on a frozen model."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import modbrick
from modbrick.bricks import (
    IA3,
    Adapter,
    BrickConfig,
    DoRA,
    LoRA,
    Modality,
    NormTuning,
    Prefix,
    Prompt,
    SparseDelta,
    initial_bricks,
    plugged,
)
from modbrick.bricks.bank import Bank
from modbrick.bricks.functional import plugged_decoder
from modbrick.checkpoints import Metadata, describe, save_model
from modbrick.config.families import dense
from modbrick.data import DataConfig
from modbrick.decoder.functional import initial_parameters, parameter_table
from modbrick.errors import InputError
from modbrick.execution import ExecutionConfig
from modbrick.library import brick_of_run, open_brick, read_brick, write_brick
from modbrick.models import extract_brick, open_model
from modbrick.objective import ObjectiveConfig
from modbrick.parallel import MeshConfig, make_mesh
from modbrick.training.observe.metrics import read_metrics
from modbrick.training.program import train_program
from modbrick.training.run_config import RunConfig, check_identity
from modbrick.training.tasks.pretraining import Pretraining
from tests.configs import tiny
from tests.modbrick.data.conftest import random_texts, write_dataset
from tests.modbrick.training.run_in_process import parameters, run, without_rates
from tests.modbrick.training.tasks.regression import Regression

pytestmark = pytest.mark.usefixtures("quick_compilation")
STEPS = 4
MODEL = dense(
    vocabulary=257, width=16, layers=2, heads=2, feed_forward_width=16, dtype="float32", context=16
)
BRICKS = {
    "de": BrickConfig(("layer.*.attention.query", "embedding"), LoRA(rank=2)),
    "law": BrickConfig(("layer.1.feed_forward",), Adapter(hidden=4)),
    "gain": BrickConfig(("layer.*.attention.value",), IA3()),
    "fore": BrickConfig(("layer.*.attention.memory",), Prefix(length=2)),
    "ask": BrickConfig(("prompt",), Prompt(length=3)),
}
FEW = {name: BRICKS[name] for name in ("de", "law")}
TINY = tiny.get_config()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to train bricks on."""
    directory = tmp_path_factory.mktemp("base") / "model"
    save_model(directory, initial_parameters(MODEL, jax.random.key(9)), Metadata(MODEL))
    return directory


@pytest.fixture(scope="module")
def config(base: Path) -> RunConfig:
    return dataclasses.replace(
        TINY,
        model=MODEL,
        data=DataConfig(path="", sequence_length=16, batch_size=4),
        training=dataclasses.replace(TINY.training, steps=STEPS, initial_checkpoint=str(base)),
        execution=ExecutionConfig(attention="reference"),
        objective=ObjectiveConfig(),
        logging=dataclasses.replace(TINY.logging, every=1),
        evaluation=dataclasses.replace(TINY.evaluation, every=0),
        checkpoint=dataclasses.replace(TINY.checkpoint, every=2, keep_latest=3),
        bricks=BRICKS,
    )


@pytest.fixture(scope="module")
def whole(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    run(config, Regression, workdir)
    return workdir


def changed(config: RunConfig, section: str, **values: Any) -> RunConfig:
    record = dataclasses.replace(getattr(config, section), **values)
    return dataclasses.replace(config, **{section: record})


def program(config: RunConfig) -> Any:
    return train_program(config, Regression(config), make_mesh(MeshConfig(), jax.devices()[:1]))


def test_only_bricks_are_trained_and_saved(whole: Path, base: Path) -> None:
    described = describe(whole)
    assert described.bricks["attached"] == list(BRICKS)
    assert all(path.startswith("bricks.") for path in described.parameters)
    assert not (whole / "base").exists()
    trained = parameters(whole)
    assert trained["bricks.de.segments.0.attention.query.up"].any(), "new ones are zero"
    # A checkpoint, with its optimizer state, is smaller than the model.
    assert described.optimizer is not None
    leaves = (*described.parameters.values(), *described.optimizer.values())
    assert sum(leaf.bytes for leaf in leaves) < describe(base).parameter_bytes


def test_it_begins_where_the_model_is_and_learns(whole: Path, config: RunConfig) -> None:
    records = read_metrics(str(whole))
    errors = [record["squared_error"] for record in records if "squared_error" in record]
    task = Regression(config)
    batch = next(task.batches(make_mesh(MeshConfig(), jax.devices()[:1])))
    model = modbrick.load_model(str(config.training.initial_checkpoint))
    # The others change nothing at first; a prompt does, and a prefix takes of what it gets.
    front = {name: BRICKS[name] for name in ("fore", "ask")}
    values = initial_bricks(MODEL, front, jax.random.key(config.training.seed))
    model = model.plug(plugged(MODEL, front, values))
    found = task.loss(model, {k: jnp.asarray(v) for k, v in batch.items()}, None)
    assert errors[0] == pytest.approx(float(found.loss / found.weight), rel=1e-5)
    assert errors[-1] < errors[0]


def test_stopped_and_started_again_the_bits_are_the_same(
    whole: Path, config: RunConfig, tmp_path: Path
) -> None:
    run(changed(config, "training", steps=2), Regression, tmp_path)
    run(config, Regression, tmp_path, allow_change=["training.steps"])
    chex.assert_trees_all_equal(parameters(tmp_path), parameters(whole))
    records = [without_rates(read_metrics(str(place))) for place in (tmp_path, whole)]
    assert records[0][-1] == records[1][-1]


def test_a_model_has_the_bricks_of_its_run(whole: Path, base: Path) -> None:
    tokens = jnp.arange(12).reshape(2, 6)
    plain, with_bricks = modbrick.load_model(base), modbrick.load_model(whole)
    difference = np.abs(with_bricks(tokens).logits - plain(tokens).logits).max()
    assert difference > 1e-3
    halves = modbrick.load_model(whole, dtype="bfloat16")
    assert np.abs(halves(tokens).logits - with_bricks(tokens).logits).max() < 0.1


def test_a_model_that_was_moved_can_be_named(
    whole: Path, base: Path, config: RunConfig, tmp_path: Path
) -> None:
    moved, run_of_it = tmp_path / "moved", tmp_path / "run"
    shutil.copytree(base, tmp_path / "model")
    run(
        changed(config, "training", initial_checkpoint=str(tmp_path / "model"), steps=2),
        Regression,
        run_of_it,
    )
    (tmp_path / "model").rename(moved)
    with pytest.raises(InputError, match="name it with base="):
        modbrick.load_model(run_of_it)
    assert modbrick.load_model(run_of_it, base=moved).plugged is not None
    other = tmp_path / "other"
    save_model(other, initial_parameters(MODEL, jax.random.key(10)), Metadata(MODEL))
    with pytest.raises(InputError, match="is not the model of the bricks"):
        modbrick.load_model(run_of_it, base=other)


def test_the_model_costs_its_bytes_and_no_more(config: RunConfig) -> None:
    """Neither optimizer state nor, held in bfloat16, a copy in float32."""
    state = program(changed(config, "training", frozen_dtype="bfloat16")).state
    parts = {
        "trainable": state.trainable,
        "frozen": state.frozen,
        "optimizer": state.optimizer,
    }
    sizes = {
        name: sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(part))
        for name, part in parts.items()
    }
    assert sizes["frozen"] == 2 * sum(info.size for info in parameter_table(MODEL))
    assert sizes["optimizer"] <= 2 * sizes["trainable"] + 16
    assert sizes["trainable"] == 4 * sum(x.size for x in state.trainable.values())


def test_some_bricks_may_stay_as_they_are(config: RunConfig, tmp_path: Path) -> None:
    few = dataclasses.replace(config, bricks=FEW)
    part = changed(few, "optimizer", trainable=("brick.law",))
    run(changed(part, "training", steps=2), Regression, tmp_path)
    found = parameters(tmp_path)
    assert not found["bricks.de.segments.0.attention.query.up"].any()
    assert found["bricks.law.segments.0.feed_forward.up_bias"].any()


def test_another_model_of_the_same_shapes_is_refused(
    whole: Path, config: RunConfig, tmp_path: Path
) -> None:
    other = tmp_path / "model"
    save_model(other, initial_parameters(MODEL, jax.random.key(10)), Metadata(MODEL))
    longer = changed(config, "training", steps=6, initial_checkpoint=str(other))
    with pytest.raises(InputError, match="is not the model that the bricks in"):
        run(longer, Regression, whole, allow_change=["training"])


def test_what_is_not_trained_is_saved_exactly(config: RunConfig, tmp_path: Path) -> None:
    """Positions of a sparse delta: whole, and stopped and started again."""
    bricks = {
        "few": BrickConfig(("layer.*.feed_forward.up.weight",), SparseDelta(0.05)),
        "style": BrickConfig(("layer.1.attention.key",), DoRA(rank=2)),
        "norms": BrickConfig(("layer.*", "norm"), NormTuning()),
    }
    # Held in bfloat16 the model may be, indices are none of that.
    config = dataclasses.replace(
        changed(config, "training", frozen_dtype="bfloat16"), bricks=bricks
    )
    begun = program(config)
    path = "bricks.few.segments.0.feed_forward.up.weight"
    assert f"{path}.positions" in begun.partition.frozen
    assert begun.state.frozen[f"{path}.positions"].dtype == jnp.int32
    whole, twice = tmp_path / "whole", tmp_path / "twice"
    run(config, Regression, whole)
    run(changed(config, "training", steps=2), Regression, twice)
    run(config, Regression, twice, allow_change=["training.steps"])
    trained = parameters(whole)
    chex.assert_trees_all_equal(parameters(twice), trained)
    first = initial_bricks(MODEL, bricks, jax.random.key(config.training.seed))
    np.testing.assert_array_equal(trained[f"{path}.positions"], first[f"{path}.positions"])
    for leaf in (f"{path}.values", "bricks.style.segments.0.attention.key.magnitude"):
        assert (trained[leaf] != first[leaf]).any(), leaf
    halves = modbrick.load_model(whole, dtype="bfloat16").plugged
    assert halves is not None
    (bank,) = halves.segments["0"]["feed_forward.up.weight"]
    assert isinstance(bank, Bank)
    assert bank.leaves["positions"].dtype == jnp.int32


def test_what_is_dropped_is_dropped_again(config: RunConfig, tmp_path: Path) -> None:
    """Without routers that sample, stopped and started again."""
    plain, dropping = (
        dataclasses.replace(
            config, bricks={"de": BrickConfig(BRICKS["de"].at, LoRA(rank=2, dropout=dropout))}
        )
        for dropout in (0.0, 0.5)
    )
    whole, once, twice = tmp_path / "whole", tmp_path / "once", tmp_path / "twice"
    run(plain, Regression, whole)
    run(dropping, Regression, once)
    run(changed(dropping, "training", steps=2), Regression, twice)
    run(dropping, Regression, twice, allow_change=["training.steps"])
    chex.assert_trees_all_equal(parameters(twice), parameters(once))
    up = "bricks.de.segments.0.attention.query.up"
    assert (parameters(once)[up] != parameters(whole)[up]).any()


# ------------------------------------------------------------------------- bricks out of files


@pytest.fixture(scope="module")
def german(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The brick `de` of a run, as a file."""
    file = tmp_path_factory.mktemp("files") / "german.brick"
    write_brick(file, *brick_of_run(whole, "de"))
    return file


def test_a_brick_is_trained_on_a_frozen_one_out_of_a_file(
    whole: Path, german: Path, config: RunConfig, tmp_path: Path
) -> None:
    file, workdir = tmp_path / "here.brick", tmp_path / "run"
    shutil.copy(german, file)
    above = dataclasses.replace(
        changed(config, "optimizer", trainable=("brick.law",)),
        bricks=FEW,
        initial_bricks={"de": str(file)},
    )
    run(above, Regression, tmp_path / "whole")
    first, found = parameters(whole), parameters(tmp_path / "whole")
    frozen = [path for path in first if path.startswith("bricks.de.")]
    assert frozen
    chex.assert_trees_all_equal(*({path: p[path] for path in frozen} for p in (first, found)))
    assert found["bricks.law.segments.0.feed_forward.up_bias"].any()
    fingerprint = open_brick(german).fingerprint()
    assert describe(tmp_path / "whole").metadata.run["initial_bricks"] == {"de": fingerprint}
    # Started again, the run needs the file no more.
    run(changed(above, "training", steps=2), Regression, workdir)
    file.unlink()
    run(above, Regression, workdir, allow_change=["training.steps"])
    chex.assert_trees_all_equal(parameters(workdir), found)
    assert describe(workdir).metadata.run["initial_bricks"] == {"de": fingerprint}
    with pytest.raises(InputError, match=r"here\.brick"):
        run(above, Regression, tmp_path / "new")


def test_a_brick_out_of_a_file_is_trained_further(
    whole: Path, german: Path, config: RunConfig, tmp_path: Path
) -> None:
    further = dataclasses.replace(
        changed(config, "training", steps=2), initial_bricks={"de": str(german)}
    )
    run(changed(further, "optimizer", learning_rate=1e-30), Regression, tmp_path)
    path = "bricks.de.segments.0.attention.query.up"
    np.testing.assert_array_equal(parameters(tmp_path)[path], parameters(whole)[path])


def test_another_brick_in_the_file_is_another_run(
    german: Path, config: RunConfig, tmp_path: Path
) -> None:
    brick, manifest = read_brick(german)
    values = {address: value + 1 for address, value in brick.values.items()}
    write_brick(tmp_path / "other.brick", dataclasses.replace(brick, values=values), manifest)
    short = changed(config, "training", steps=2)
    starts = [
        dataclasses.replace(short, initial_bricks={"de": str(path)})
        for path in (german, tmp_path / "other.brick")
    ]
    run(starts[0], Regression, tmp_path / "run")
    for other in (starts[1], short):
        with pytest.raises(InputError, match=r"another identity .*initial_bricks"):
            run(other, Regression, tmp_path / "run")


def test_initial_bricks_are_bricks_of_the_run(config: RunConfig) -> None:
    with pytest.raises(InputError, match=r"initial_bricks\.dee: .* did you mean 'de'"):
        dataclasses.replace(config, initial_bricks={"dee": "german.brick"})


def test_a_file_for_other_weights_needs_a_word(
    german: Path, config: RunConfig, tmp_path: Path
) -> None:
    other = tmp_path / "model"
    save_model(other, initial_parameters(MODEL, jax.random.key(10)), Metadata(MODEL))
    start = dataclasses.replace(
        changed(config, "training", steps=2, initial_checkpoint=str(other)),
        initial_bricks={"de": str(german)},
    )
    with pytest.raises(InputError, match="trained on other weights"):
        run(start, Regression, tmp_path / "run")
    run(start, Regression, tmp_path / "run", allow_base="any")


def test_an_emergent_brick_comes_out_of_a_file(config: RunConfig, tmp_path: Path) -> None:
    """Out of another model it is trained further, or lies frozen beneath others."""
    other = tmp_path / "model"
    save_model(other, initial_parameters(MODEL, jax.random.key(10)), Metadata(MODEL))
    part, manifest = extract_brick(open_model(other), "layer.1.feed_forward.up")
    write_brick(tmp_path / "part.brick", part, manifest)
    bricks = {"part": part.config, "law": BRICKS["law"]}
    with pytest.raises(InputError, match=r"bricks\.part: .* initial_bricks\.part=FILE"):
        dataclasses.replace(config, bricks=bricks)
    start = dataclasses.replace(
        changed(config, "training", steps=2),
        bricks=bricks,
        initial_bricks={"part": str(tmp_path / "part.brick")},
    )
    frozen = changed(start, "optimizer", trainable=("brick.law",))
    path = "bricks.part.segments.0.feed_forward.up.weight.weight"
    for name, of in (("trained", start), ("frozen", frozen)):
        run(of, Regression, tmp_path / name, allow_base="any")
        (before,), after = part.values.values(), parameters(tmp_path / name)[path]
        assert np.array_equal(after[0], before) == (name == "frozen")


def test_a_rank_above_the_width_is_said(
    config: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = {"wide": BrickConfig(("layer.*.attention.query",), LoRA(rank=17))}
    start = dataclasses.replace(changed(config, "training", steps=2), bricks=wide)
    run(start, Regression, tmp_path)
    said = "".join(capsys.readouterr())
    assert "brick wide has a rank of 17 at layer.0.attention.query, where 16 can do as much" in said


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("training", {"initial_checkpoint": None}, "bricks are trained on a model"),
        ("optimizer", {"trainable": ("layer.0",)}, "with bricks the model is frozen"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    config: RunConfig, section: str, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        program(changed(config, section, **values))


def test_bricks_are_no_model_to_start_from(whole: Path, config: RunConfig, tmp_path: Path) -> None:
    again = changed(config, "training", initial_checkpoint=str(whole))
    with pytest.raises(InputError, match="holds bricks for a model"):
        run(again, Regression, tmp_path)
    with pytest.raises(InputError, match="holds bricks for a model"):
        run(dataclasses.replace(again, bricks={}), Regression, tmp_path)


def test_bricks_that_take_features_are_refused(config: RunConfig) -> None:
    blind = BrickConfig(("features",), Modality(placeholder=1, width=4))
    with pytest.raises(InputError, match=r"bricks\.eye takes features"):
        Pretraining(dataclasses.replace(config, bricks={"eye": blind}))


def test_what_a_trace_refuses_leaves_no_files(config: RunConfig, tmp_path: Path) -> None:
    class Blind(Regression):
        def loss(self, *arguments: Any) -> Any:
            raise InputError("a loss of nothing")

    with pytest.raises(InputError, match="a loss of nothing"):
        run(config, Blind, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------- bricks of domains


@pytest.fixture(scope="module")
def domains(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Two domains in one pool, one of which has bricks."""
    directory = tmp_path_factory.mktemp("domains") / "data"
    texts = {name: random_texts(seed, 12, 40) for seed, name in enumerate(("english", "german"))}
    write_dataset(directory, {"train": texts, "held_out": texts})
    return dataclasses.replace(
        changed(config, "data", path=str(directory)), brick_sets={"german": "de+law"}
    )


def random_values(config: RunConfig) -> dict[str, Any]:
    """Values of the model and of its bricks."""
    random = np.random.default_rng(0)
    return {
        path: jnp.asarray(random.normal(0.0, 0.3, leaf.shape), jnp.float32)
        for path, leaf in program(config).parameters.items()
    }


def test_documents_use_the_bricks_of_their_domain(domains: RunConfig) -> None:
    task = Pretraining(domains)
    with task.batches(make_mesh(MeshConfig(), jax.devices()[:1])) as batches:
        batch = dict(next(batches))
    assert set(task.batch_shapes()) == set(batch)
    assert set(np.unique(batch["domains"])) == {0, 1}
    decoder = plugged_decoder(domains.model, domains.bricks, domains.execution)

    @jax.jit
    def compute(parameters: Any, batch: Any) -> Any:
        def loss(parameters: Any) -> jax.Array:
            return task.loss(decoder.bind(parameters), batch, None).loss

        return jax.value_and_grad(loss)(parameters)

    values = random_values(domains)
    up = "bricks.de.segments.0.attention.query.up"
    other = values | {up: 3 * values[up]}
    loss, gradients = compute(values, batch)
    assert loss != compute(other, batch)[0]
    assert np.asarray(gradients[up]).any()
    unused = gradients["bricks.gain.segments.0.attention.value.factor"]
    assert not np.asarray(unused).any()
    # Where no document is of that domain, its bricks make no difference.
    english = batch | {"domains": np.zeros_like(batch["domains"])}
    assert compute(values, english)[0] == compute(other, english)[0]


def held_out_twice(config: RunConfig) -> list[dict[str, Any]]:
    """What evaluation finds before and after a change of the brick `law`, by domain."""
    values, bias = random_values(config), "bricks.law.segments.0.feed_forward.up_bias"
    mesh, records = make_mesh(MeshConfig(), jax.devices()[:1]), []
    with jax.set_mesh(mesh):
        evaluate = Pretraining(config).evaluation(mesh)
        for changed_bias in (values[bias], values[bias] + 1):
            found = evaluate(values | {bias: changed_bias}, lambda: False)
            assert found is not None
            records.append(found.record["domains"])
    return records


def test_evaluation_knows_domains_too(domains: RunConfig) -> None:
    before, after = held_out_twice(domains)
    assert before["english"] == after["english"]
    assert before["german"]["loss"] != after["german"]["loss"]


def test_evaluation_knows_the_domains_of_its_split(domains: RunConfig, tmp_path: Path) -> None:
    """Held-out text is of one of the two domains of training."""
    texts = {name: random_texts(seed, 12, 40) for seed, name in enumerate(("english", "german"))}
    write_dataset(tmp_path / "data", {"train": texts, "held_out": {"german": texts["german"]}})
    before, after = held_out_twice(changed(domains, "data", path=str(tmp_path / "data")))
    assert before["german"]["loss"] != after["german"]["loss"]


def test_the_order_of_bricks_belongs_to_a_run(domains: RunConfig) -> None:
    dataset = Pretraining(domains).dataset
    turned = dataclasses.replace(domains, bricks=dict(reversed(BRICKS.items())))
    with pytest.raises(InputError, match="brick_order"):
        check_identity(domains.identity(dataset), turned.identity(dataset), (), "RUN")


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"german": "de+laww"}, r"no brick 'laww'.*did you mean 'law'"),
        ({"german": "de+de"}, "stands twice"),
    ],
)
def test_sets_of_unknown_bricks_are_refused(
    config: RunConfig, sets: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(config, brick_sets=sets)


def test_sets_of_unknown_domains_are_refused(domains: RunConfig) -> None:
    task = Pretraining(dataclasses.replace(domains, brick_sets={"germann": "de"}))
    with pytest.raises(InputError, match=r"names the domain 'germann'; did you mean 'german'"):
        task.batches(make_mesh(MeshConfig(), jax.devices()[:1]))


def test_bricks_that_change_weights_are_of_all_domains(config: RunConfig) -> None:
    few = BrickConfig(("layer.*.feed_forward.up.weight",), SparseDelta())
    with pytest.raises(InputError, match=r"bricks\.few: .* sparse .* out of a run with brick_sets"):
        dataclasses.replace(config, bricks={**BRICKS, "few": few}, brick_sets={"german": "de"})
