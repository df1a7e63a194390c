import os
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.checkpoints import CheckpointConfig, CheckpointStore, describe
from modbrick.errors import InputError


def abstract(tree):
    return jax.eval_shape(lambda: tree)


def restore(store, parameters, optimizer=None):
    found = store.restore_latest(parameters, optimizer)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory, trees, metadata):
    """A run with checkpoints 1 and 2, to copy."""
    directory = tmp_path_factory.mktemp("two")
    with CheckpointStore(directory) as store:
        for step in (1, 2):
            assert store.save(step, trees[0], trees[1], metadata, {"loss": 1.0 / step})
    return directory


@pytest.fixture
def run(two, tmp_path):
    shutil.copytree(two, tmp_path / "run")
    return tmp_path / "run"


def test_every_leaf_comes_back_bit_by_bit(two, trees, metadata, same_bits):
    with CheckpointStore(two) as store:
        restored = restore(store, *map(abstract, trees))
    assert restored.step == 2
    assert restored.metadata == metadata
    assert restored.description.metrics == {"loss": 0.5}
    same_bits((restored.parameters, restored.optimizer_state), trees)


def test_parameters_alone_and_nothing_at_all(two, trees, tmp_path, same_bits):
    with CheckpointStore(two) as store:
        restored = restore(store, abstract(trees[0]))
    assert restored.optimizer_state is None
    same_bits(restored.parameters, trees[0])
    with CheckpointStore(tmp_path / "new") as store:
        assert store.latest() is None
        assert store.restore_latest(*map(abstract, trees)) is None


def test_what_is_saved_is_the_state_at_the_call_even_if_it_is_donated(tmp_path, metadata):
    double = jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x, tree), donate_argnums=0)
    state = {"w": jnp.ones((512, 1024))}
    with CheckpointStore(tmp_path / "run") as store:
        for step in range(3):
            store.save(step, state, {"m": state["w"] + 1}, metadata)
            for _ in range(5):
                state = double(state)
            restored = restore(store, {"w": state["w"]}, {"m": state["w"]})
            assert np.all(np.asarray(restored.parameters["w"]) == 32.0**step)
            assert np.all(np.asarray(restored.optimizer_state["m"]) == 32.0**step + 1)


def test_policies_delete_what_they_do_not_keep(tmp_path, metadata):
    losses = {1: 0.3, 2: 0.1, 3: 0.2, 4: 0.5, 5: 0.4, 6: 0.6, 7: 0.7}
    config = CheckpointConfig(keep_latest=1, keep_best=1, keep_every=3, asynchronous=False)
    for chunk in ((1, 2, 3), (4, 5, 6, 7)):  # the best of an earlier start is remembered
        with CheckpointStore(tmp_path / "run", config) as store:
            for step in chunk:
                store.save(step, {"w": jnp.float32(step)}, None, metadata, {"loss": losses[step]})
                assert store.steps()[-1] == step
    assert store.steps() == [2, 3, 6, 7]
    assert sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir()) == ["2", "3", "6", "7"]


def test_a_metric_that_is_not_among_those_measured_is_refused(tmp_path, metadata):
    config = CheckpointConfig(keep_best=1, best_metric="domains/code/loss")
    with CheckpointStore(tmp_path / "run", config) as store:
        store.save(1, {"w": jnp.ones(3)}, None, metadata, {"domains/code/loss": 2.0})
        store.save(2, {"w": jnp.ones(3)}, None, metadata)  # asked to stop: not measured
        with pytest.raises(InputError, match="domains/code/loss' is not measured"):
            store.save(3, {"w": jnp.ones(3)}, None, metadata, {"loss": 1.0})


def test_a_step_is_saved_once(run, trees, metadata, same_bits):
    with CheckpointStore(run) as store:
        assert not store.save(2, {"other": jnp.ones(1)}, None, metadata)
        same_bits(restore(store, *map(abstract, trees)).parameters, trees[0])


def damages(path):
    """Names a way to damage each file, and one that flips a bit in the middle."""
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != "files.json")
    for number, file in enumerate(files):
        kinds = ["missing"] if file.stat().st_size == 0 else ["missing", "truncated", "flipped"]
        yield file.relative_to(path), kinds[number % len(kinds)]
        yield file.relative_to(path), kinds[-1]


def damage(file, kind):
    data = bytearray(file.read_bytes())
    if kind == "missing":
        file.unlink()
    elif kind == "truncated":
        file.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 4
        file.write_bytes(data)


def test_damage_of_any_file_of_the_newest_is_told_in_a_line_and_the_one_before_is_used(
    two, trees, tmp_path, same_bits
):
    cases = list(damages(two / "checkpoints" / "2"))
    assert len({name.name for name, _ in cases}) >= 8
    for number, (name, kind) in enumerate(cases):
        directory = tmp_path / str(number)
        shutil.copytree(two, directory)
        damage(directory / "checkpoints/2" / name, kind)
        lines: list[str] = []
        with CheckpointStore(directory, warn=lines.append) as store:
            restored = restore(store, *map(abstract, trees))
            assert restored.step == 1, (name, kind)
            assert store.steps() == [1]
        same_bits((restored.parameters, restored.optimizer_state), trees)
        (line,) = lines
        assert "\n" not in line
        assert "checkpoint 2" in line
        assert name.name in line
        assert (directory / "checkpoints/2.damaged").is_dir()


def test_values_are_verified_where_there_is_no_inventory(run, trees, metadata):
    newest = run / "checkpoints/2"
    (newest / "files.json").unlink()
    with CheckpointStore(run, CheckpointConfig(keep_latest=9)) as store:
        assert restore(store, *map(abstract, trees)).step == 2
        changed = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(3), trees[0])
        store.save(3, changed, trees[1], metadata)
        store.wait()
    # Sound files with other values than the metadata promise.
    shutil.rmtree(newest / "parameters")
    shutil.copytree(run / "checkpoints/3/parameters", newest / "parameters")
    shutil.rmtree(run / "checkpoints/3")
    lines: list[str] = []
    with CheckpointStore(run, warn=lines.append) as store:
        assert restore(store, *map(abstract, trees)).step == 1
    assert "embedding, segments.0.norm.scale" in lines[0]


def test_if_all_are_damaged_nothing_is_touched_and_all_are_named(run, trees):
    for step in (1, 2):
        damage(run / f"checkpoints/{step}/metadata/data.json", "truncated")
    with CheckpointStore(run) as store:
        assert store.latest() is None
        with pytest.raises(InputError, match=r"every checkpoint.*damaged.*2: .*1: "):
            restore(store, *map(abstract, trees))
        assert store.steps() == [1, 2]


def test_unfinished_ones_are_ignored_told_and_removed(run, trees):
    leftover = run / "checkpoints/3.orbax-checkpoint-tmp/parameters"
    leftover.mkdir(parents=True)
    lines: list[str] = []
    with CheckpointStore(run, warn=lines.append) as store:
        assert restore(store, *map(abstract, trees)).step == 2
    assert not leftover.parent.exists()
    assert len(lines) == 1
    assert "checkpoint 3" in lines[0]


def test_a_state_that_does_not_fit_is_refused_with_every_name(two, trees):
    parameters, optimizer = map(abstract, trees)
    parameters = {"embedding": jax.ShapeDtypeStruct((32, 17), jnp.float32), "head": parameters}
    optimizer = {**optimizer, "half": jax.ShapeDtypeStruct((5, 3), jnp.float32)}
    del optimizer["flags"]
    with CheckpointStore(two) as store, pytest.raises(InputError) as caught:
        restore(store, parameters, optimizer)
    for remark in (
        "embedding: saved float32[32,16], wanted float32[32,17]",
        "missing: head.embedding",
        "unexpected: segments.0.norm.scale",
        "optimizer.half: saved bfloat16[5,3], wanted float32[5,3]",
        "unexpected: optimizer.flags",
    ):
        assert remark in str(caught.value)
    assert (two / "checkpoints/2").is_dir()


def test_another_format_is_refused_and_not_taken_for_damage(two, trees, tmp_path, monkeypatch):
    monkeypatch.setattr("modbrick.checkpoints.metadata.FORMATS", (2,))
    with CheckpointStore(two) as store, pytest.raises(InputError, match="format 1"):
        restore(store, *map(abstract, trees))


@pytest.fixture
def full_disk():
    """Makes every write beyond 64 KiB of a file fail, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_write_that_fails_is_told_and_harms_nothing(
    run, trees, metadata, full_disk, asynchronous, same_bits
):
    large = {"w": jax.random.normal(jax.random.key(0), (1 << 18,))}
    store = CheckpointStore(run, CheckpointConfig(asynchronous=asynchronous))
    message = f"checkpoint 3 could not be written to {run}"
    if asynchronous:
        assert store.save(3, large, None, metadata)
        with pytest.raises(InputError, match=message):
            store.save(4, large, None, metadata)
    else:
        with pytest.raises(InputError, match=message):
            store.save(3, large, None, metadata)
    full_disk()
    assert sorted(os.listdir(run / "checkpoints")) == ["1", "2"]
    same_bits(restore(store, *map(abstract, trees)).parameters, trees[0])
    assert store.save(3, large, None, metadata)
    store.close()
    assert store.steps() == [2, 3]


def test_closing_raises_what_went_wrong_in_the_background(run, metadata, full_disk):
    large = {"w": jax.random.normal(jax.random.key(0), (1 << 18,))}
    with pytest.raises(InputError, match="checkpoint 3"), CheckpointStore(run) as store:
        store.save(3, large, None, metadata)
    full_disk()


def test_a_foreign_directory_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"thesis\.tex"):
        CheckpointStore(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_description_without_reading_arrays(run, metadata):
    shutil.rmtree(run / "checkpoints/2/parameters")
    found = describe(run)
    assert found.step == 2
    assert found.metadata == metadata
    assert str(found.parameters["embedding"]) == "float32[32,16]"
    assert found.parameter_bytes == 32 * 16 * 4 + 16
    assert found.optimizer is not None
    assert str(found.optimizer["adam.0.mu.embedding"]) == "float32[32,16]"
