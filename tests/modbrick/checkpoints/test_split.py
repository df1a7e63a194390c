"""Checkpoints of a run that trains a part: what is trained in each, what is frozen once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath

from modbrick.checkpoints import (
    CheckpointConfig,
    CheckpointStore,
    Metadata,
    SplitParameters,
    describe,
    files,
    load_checkpoint,
)
from modbrick.checkpoints.slices import SliceReader
from modbrick.config.families import moduleformer
from modbrick.decoder.functional import parameter_table
from modbrick.errors import InputError
from modbrick.parameters import Partition
from tests import programs

MODEL = moduleformer(
    vocabulary=101,
    width=16,
    layers=3,
    heads=2,
    attention_width=16,
    feed_forward_width=24,
    attention_experts=4,
    feed_forward_experts=5,
)
TABLE = parameter_table(MODEL)
METADATA = Metadata(MODEL, data={"row": 3})
UP = "segments.0.feed_forward.up.weight"
# By layers, by experts, by single experts of single layers; whole parameters frozen beside them.
PARTITIONS = {
    "layers": ["layer.1"],
    "experts": ["layer.*.feed_forward.expert.3", "layer.*.feed_forward.expert.0"],
    "members": ["layer.0.feed_forward.expert.1", "layer.2.feed_forward.expert.4", "embedding"],
}


def whole() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {info.path: draw.normal(size=info.shape).astype(np.float32) for info in TABLE}


def split(patterns: list[str], dtype: str = "float32") -> SplitParameters:
    """A run's parameters, flat."""
    partition = Partition(TABLE, trainable=patterns)
    values = whole()
    trainable = {p: m.take(jnp.asarray(values[p])) for p, m in partition.trainable.items()}
    frozen = {p: m.take(jnp.asarray(values[p], dtype)) for p, m in partition.frozen.items()}
    return SplitParameters(partition, trainable, frozen)


def optimizer_of(parameters: SplitParameters) -> Any:
    return optax.adam(1e-3).init(parameters.trainable)


def same(left: Any, right: Any) -> None:
    assert str(jax.tree.structure(left)) == str(jax.tree.structure(right))
    for x, y in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture(scope="module", params=list(PARTITIONS))
def run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, SplitParameters]:
    """A run with checkpoints 1 and 2."""
    directory = tmp_path_factory.mktemp("split")
    parameters = split(PARTITIONS[request.param])
    with CheckpointStore(directory) as store:
        for step in (1, 2):
            store.save(step, parameters, optimizer_of(parameters), METADATA)
    return directory, parameters


def restored(directory: Path, parameters: SplitParameters) -> SplitParameters:
    with CheckpointStore(directory) as store:
        found = store.restore_latest(parameters, optimizer_of(parameters))
    assert found is not None
    same(found.optimizer_state, optimizer_of(parameters))
    assert isinstance(found.parameters, SplitParameters)
    return found.parameters


def test_a_run_continues_with_the_same_bits(run: tuple[Path, SplitParameters]) -> None:
    directory, parameters = run
    found = restored(directory, parameters)
    same(found.trainable, parameters.trainable)
    same(found.frozen, parameters.frozen)


def test_loading_joins(run: tuple[Path, SplitParameters]) -> None:
    directory, _ = run
    loaded, description = load_checkpoint(directory)
    same(dict(sorted(loaded.items())), dict(sorted(whole().items())))
    assert {name: leaf.shape for name, leaf in description.parameters.items()} == {
        name: value.shape for name, value in whole().items()
    }
    halves, _ = load_checkpoint(directory, dtype="bfloat16")
    same(halves[UP], jnp.asarray(whole()[UP], jnp.bfloat16))


def test_a_whole_run_goes_on_as_one_that_trains_a_part(
    run: tuple[Path, SplitParameters], tmp_path: Path
) -> None:
    _, parameters = run
    with CheckpointStore(tmp_path / "run") as store:
        state = optimizer_of(parameters)
        store.save(1, jax.tree.map(jnp.asarray, whole()), state, METADATA)
    found = restored(tmp_path / "run", parameters)
    same(found.trainable, parameters.trainable)
    same(found.frozen, parameters.frozen)


def test_another_division_is_asked_for(run: tuple[Path, SplitParameters]) -> None:
    directory, _ = run
    for patterns in PARTITIONS.values():
        other = split(patterns)
        with CheckpointStore(directory) as store:
            found = store.restore_latest(other, None)
        assert found is not None
        same(found.parameters.trainable, other.trainable)
        same(found.parameters.frozen, other.frozen)


@pytest.mark.parametrize("cut", [(0, 2), (1, 3)])
def test_slices_are_joined_and_verified(
    run: tuple[Path, SplitParameters], cut: tuple[int, int]
) -> None:
    directory, _ = run
    description = describe(directory)
    reader = SliceReader(epath.Path(directory / "checkpoints" / "2"), description)
    for name, value in whole().items():
        axis = min(cut[0], value.ndim - 1)
        found = np.empty_like(value)
        place = min(cut[1], value.shape[axis])
        for span in (slice(0, place), slice(place, value.shape[axis])):
            index = tuple(
                span if a == axis else slice(0, size) for a, size in enumerate(value.shape)
            )
            found[index] = reader.finish(name, index, reader.start(name, index))
        assert found.tobytes() == value.tobytes(), name
    reader.verify()


def test_where_nothing_is_frozen_a_checkpoint_is_as_it_was(tmp_path: Path) -> None:
    parameters = split(["*"])
    with CheckpointStore(tmp_path) as store:
        store.save(1, parameters, optimizer_of(parameters), METADATA)
    assert describe(tmp_path).format == 1
    assert not (tmp_path / "base").exists()
    same(restored(tmp_path, parameters).trainable, parameters.trainable)


# --------------------------------------------------------------------------- bytes and memory


def size_of(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())


def test_each_checkpoint_has_the_bytes_of_what_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = moduleformer(
        vocabulary=256,
        width=128,
        layers=4,
        heads=2,
        attention_width=64,
        feed_forward_width=256,
        attention_experts=4,
        feed_forward_experts=10,
    )
    table = parameter_table(big)
    partition = Partition(table, trainable=["layer.*.feed_forward.expert.7"])
    trainable = {p: jnp.ones(m.shape) for p, m in partition.trainable.items()}
    frozen = {p: jnp.ones(m.shape) for p, m in partition.frozen.items()}
    of_trainable, of_frozen = (sum(x.nbytes for x in t.values()) for t in (trainable, frozen))
    assert of_trainable < 0.1 * (of_trainable + of_frozen)
    handed: list[set[tuple[int, ...]]] = []
    start = files.start_writing

    def recording(path: Any, description: Any, arrays: Any) -> Any:
        handed.append({x.shape for x in arrays["parameters"].values()})
        return start(path, description, arrays)

    monkeypatch.setattr(files, "start_writing", recording)
    parameters = SplitParameters(partition, trainable, frozen)
    state = optax.adam(1e-3).init(trainable)
    with CheckpointStore(tmp_path, CheckpointConfig(keep_latest=9)) as store:
        for step in (1, 2, 3):
            store.save(step, parameters, state, Metadata(big))
    for step in (1, 2, 3):
        # The trained parameters, two moments of them, and what describes them.
        assert size_of(tmp_path / f"checkpoints/{step}") < 3 * of_trainable + 300_000
    assert of_frozen <= size_of(tmp_path / "base") < of_frozen + 300_000
    assert len(list((tmp_path / "base").iterdir())) == 1
    base, *checkpoints = handed
    banks = {tuple(m.info.shape) for m in partition.trainable.values()}
    assert not banks & base
    assert all(shapes == {x.shape for x in trainable.values()} for shapes in checkpoints)
    assert len(checkpoints) == 3


# ------------------------------------------------------------------------------ the base


def test_another_start_writes_no_other_base(tmp_path: Path) -> None:
    parameters = split(["layer.1"])
    times = []
    for step in (1, 2):
        with CheckpointStore(tmp_path) as store:
            store.restore_latest(parameters, None)
            store.save(step, parameters, None, METADATA)
        (base,) = (tmp_path / "base").iterdir()
        times.append({file: file.stat().st_mtime_ns for file in base.rglob("*")})
    assert times[0] == times[1]


def test_frozen_parameters_are_held_in_another_dtype_over_the_base_as_it_was(
    tmp_path: Path,
) -> None:
    parameters, half = split(["layer.1"]), split(["layer.1"], "bfloat16")
    with CheckpointStore(tmp_path) as store:
        store.save(1, parameters, optimizer_of(parameters), METADATA)
    found = restored(tmp_path, half)
    same(found.trainable, parameters.trainable)
    same(found.frozen, half.frozen)
    with CheckpointStore(tmp_path) as store:
        continued = store.restore_latest(half, None)
        assert continued is not None
        store.save(2, continued.parameters, optimizer_of(half), METADATA)
    assert len(list((tmp_path / "base").iterdir())) == 1
    same(load_checkpoint(tmp_path)[0][UP], jnp.asarray(whole()[UP]))


def test_some_leaves_at_a_time_are_cast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters, half = split(["layer.1"]), split(["layer.1"], "bfloat16")
    with CheckpointStore(tmp_path) as store:
        store.save(1, parameters, optimizer_of(parameters), METADATA)
    monkeypatch.setattr(files, "LARGEST_GROUP", 10_000)
    loads: list[int] = []
    load = files._load

    def recording(path: epath.Path, items: Any, **options: Any) -> Any:
        loads.append(sum(x.size * 4 for x in jax.tree.leaves(items)))
        return load(path, items, **options)

    monkeypatch.setattr(files, "_load", recording)
    same(restored(tmp_path, half).frozen, half.frozen)
    largest = max(leaf.nbytes for leaf in parameters.frozen.values())
    assert len(loads) > 4
    assert max(loads[1:-1]) <= max(10_000, largest)


def test_a_base_that_was_saved_in_the_lower_dtype_is_joined(tmp_path: Path) -> None:
    half = split(PARTITIONS["members"], "bfloat16")
    with CheckpointStore(tmp_path) as store:
        store.save(1, half, None, METADATA)
    loaded = load_checkpoint(tmp_path)[0]
    assert loaded[UP].dtype == jnp.float32, "a part of it is trained"
    assert loaded["segments.0.feed_forward.router.hidden.weight"].dtype == jnp.bfloat16
    rounded = whole()[UP].astype(jnp.bfloat16).astype(np.float32)
    rounded[0, 1], rounded[2, 4] = whole()[UP][0, 1], whole()[UP][2, 4]
    same(loaded[UP], jnp.asarray(rounded))
    path = epath.Path(tmp_path / "checkpoints/1")
    reader = SliceReader(path, describe(tmp_path))
    index = tuple(slice(0, size) for size in rounded.shape)
    same(reader.finish(UP, index, reader.start(UP, index)), rounded)


def test_a_base_goes_with_the_last_checkpoint_that_needs_it(tmp_path: Path) -> None:
    first, second = split(["layer.1"]), split(["layer.2"])
    with CheckpointStore(tmp_path, CheckpointConfig(keep_latest=2)) as store:
        bases = []
        for step, parameters in enumerate((first, first, second, second), start=1):
            store.save(step, parameters, None, METADATA)
            store.wait()
            bases.append(len(list((tmp_path / "base").iterdir())))
    assert bases == [1, 1, 2, 1]


@pytest.mark.parametrize("how", ["missing", "another", "flipped"])
def test_a_base_that_is_not_what_it_was_is_refused_by_name(tmp_path: Path, how: str) -> None:
    parameters = split(["layer.1"])
    with CheckpointStore(tmp_path / "run") as store:
        store.save(1, parameters, None, METADATA)
    (base,) = (tmp_path / "run/base").iterdir()
    if how == "missing":
        shutil.rmtree(base)
    elif how == "another":
        changed = {**parameters.frozen, "embedding": parameters.frozen["embedding"] + 1}
        with CheckpointStore(tmp_path / "other") as store:
            other = SplitParameters(parameters.partition, parameters.trainable, changed)
            store.save(1, other, None, METADATA)
        shutil.rmtree(base)
        shutil.copytree(next((tmp_path / "other/base").iterdir()), base)
    else:
        largest = max((base / "parameters").rglob("*"), key=lambda file: file.stat().st_size)
        data = bytearray(largest.read_bytes())
        data[len(data) // 2] ^= 1
        largest.write_bytes(data)
    with pytest.raises(InputError, match=f"1: .*{base.name if how != 'flipped' else 'checksum'}"):
        CheckpointStore(tmp_path / "run").restore_latest(parameters, None)
    with pytest.raises(InputError, match="is damaged"):
        load_checkpoint(tmp_path / "run")


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    parameters = split(["layer.1"])
    with CheckpointStore(tmp_path) as store:
        store.save(1, parameters, None, METADATA)
        trainable = {**parameters.trainable, "more": jnp.ones(3)}
        frozen = {**parameters.frozen, "embedding": jnp.ones((5, 16))}
        with pytest.raises(InputError) as caught:
            store.restore_latest(SplitParameters(parameters.partition, trainable, frozen), None)
    assert "missing: more" in str(caught.value)
    assert "embedding: saved float32[101,16], wanted float32[5,16]" in str(caught.value)


# --------------------------------------------------------------------------- many devices

ON_DEVICES = """
import sys
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from modbrick.checkpoints import CheckpointStore, SplitParameters
from tests.modbrick.checkpoints.test_split import METADATA, PARTITIONS, split, whole

assert len(jax.devices()) == 4
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("fsdp", "tensor"))

def laid_out(leaf):
    axes = [axis for axis in range(leaf.ndim) if leaf.shape[axis] % 2 == 0]
    names = dict(zip(reversed(axes), ("tensor", "fsdp")))
    spec = PartitionSpec(*(names.get(axis) for axis in range(leaf.ndim)))
    return NamedSharding(mesh, spec)

def divided(tree):
    return {name: jax.device_put(leaf, laid_out(leaf)) for name, leaf in tree.items()}

for name in sys.argv[2:]:
    parameters = split(PARTITIONS[name])
    parameters = SplitParameters(
        parameters.partition, divided(parameters.trainable), divided(parameters.frozen)
    )
    all_of_them = divided({name: jnp.asarray(value) for name, value in whole().items()})
    with CheckpointStore(f"{sys.argv[1]}/{name}") as store:
        store.save(1, parameters, None, METADATA)
        for asked in (parameters, all_of_them):
            found = store.restore_latest(asked, None).parameters
            if asked is parameters:
                pairs = [(found.trainable, asked.trainable), (found.frozen, asked.frozen)]
            else:
                pairs = [(found, asked)]
            for left, right in pairs:
                for name, leaf in right.items():
                    assert left[name].sharding == leaf.sharding, name
                    assert np.asarray(left[name]).tobytes() == np.asarray(leaf).tobytes(), name
print("same")
"""


@pytest.mark.parametrize(
    "names", [["members"], pytest.param(["layers", "experts"], marks=pytest.mark.verify)], ids=str
)
def test_parts_lie_on_many_devices(tmp_path: Path, names: list[str]) -> None:
    environment = {"JAX_NUM_CPU_DEVICES": "4"}
    done = programs.run(["-c", ON_DEVICES, tmp_path, *names], environment=environment)
    assert done.stdout == "same\n", done.stderr[-3000:]
