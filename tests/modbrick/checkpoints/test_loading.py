import os
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.checkpoints import (
    CheckpointStore,
    Metadata,
    describe,
    load_checkpoint,
    locate,
    save_model,
    save_tokenizer,
    tokenizer_file,
)
from modbrick.config import SegmentConfig
from modbrick.decoder.functional import initial_parameters
from modbrick.errors import InputError
from tests import programs


@pytest.fixture(scope="module")
def parameters(model_config):
    return initial_parameters(model_config, jax.random.key(0))


@pytest.fixture(scope="module")
def run(tmp_path_factory, parameters, metadata):
    directory = tmp_path_factory.mktemp("run")
    with CheckpointStore(directory) as store:
        save_tokenizer(directory, '{"model": 1}')
        store.save(1, jax.tree.map(jnp.zeros_like, parameters), {"count": jnp.int32(1)}, metadata)
        store.save(20, parameters, {"count": jnp.int32(20)}, metadata)
    return directory


def test_a_checkpoint_is_found_from_each_of_its_directories(run):
    newest = run / "checkpoints/20"
    for place in (run, run / "checkpoints", newest, str(run)):
        assert str(locate(place)) == str(newest)
        assert tokenizer_file(place).read_text() == '{"model": 1}'
    assert str(locate(run, 1)) == str(run / "checkpoints/1")


def test_what_is_not_there_is_told(run, tmp_path):
    with pytest.raises(InputError, match=r"step 7.*\[1, 20\]"):
        locate(run, 7)
    with pytest.raises(InputError, match="of step 20, not 1"):
        locate(run / "checkpoints/20", 1)
    for place in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="no checkpoint in"):
            locate(place)
        with pytest.raises(InputError, match="no tokenizer"):
            tokenizer_file(place)


def test_parameters_come_back_bit_by_bit(run, parameters, metadata, same_bits):
    loaded, description = load_checkpoint(run)
    same_bits(loaded, parameters)
    assert (description.step, description.metadata) == (20, metadata)
    same_bits(load_checkpoint(run, 1)[0], jax.tree.map(jnp.zeros_like, parameters))


def test_another_dtype_only_if_asked_for(run, parameters, same_bits):
    loaded, _ = load_checkpoint(run, dtype="bfloat16")
    same_bits(loaded, jax.tree.map(lambda x: x.astype(jnp.bfloat16), parameters))


def test_a_model_of_another_config_is_refused_with_every_name(run, model_config):
    with pytest.raises(InputError) as caught:
        load_checkpoint(run, config=model_config.replace(vocabulary=33, tied_head=True))
    assert "embedding: saved float32[32,16], wanted float32[33,16]" in str(caught.value)
    assert "unexpected: head.weight" in str(caught.value)


def test_how_the_layers_were_written_down_does_not_matter(run, model_config, parameters, same_bits):
    layer = model_config.segments[0].layer
    apart = model_config.replace(segments=(SegmentConfig(layer), SegmentConfig(layer)))
    same_bits(load_checkpoint(run, config=apart)[0], parameters)


def test_damage_is_told_in_a_line(run, tmp_path):
    copy = tmp_path / "copy"
    os.system(f"cp -r {run} {copy}")
    (copy / "checkpoints/20/parameters/manifest.ocdbt").write_bytes(b"")
    with pytest.raises(InputError, match=r"checkpoints/20 is damaged \(parameters/manifest.ocdbt "):
        load_checkpoint(copy)
    (copy / "checkpoints/20/metadata/data.json").write_text("{")
    with pytest.raises(InputError, match="unreadable"):
        describe(copy)


def test_a_damaged_optimizer_does_not_keep_the_model_from_loading(
    run, tmp_path, parameters, same_bits
):
    copy = tmp_path / "copy"
    os.system(f"cp -r {run} {copy}; rm -r {copy}/checkpoints/20/optimizer")
    same_bits(load_checkpoint(copy)[0], parameters)


def test_a_model_without_a_run(tmp_path, model_config, parameters, same_bits):
    target = tmp_path / "model"
    path = save_model(target, parameters, Metadata(model_config), tokenizer="{}", step=3)
    assert str(path) == str(target / "checkpoints/3")
    loaded, description = load_checkpoint(target)
    same_bits(loaded, parameters)
    assert description.optimizer is None
    assert tokenizer_file(path).read_text() == "{}"
    with pytest.raises(InputError, match="holds a model already"):
        save_model(target, parameters, Metadata(model_config))


def test_parameters_that_do_not_fit_their_config_are_not_saved(tmp_path, model_config, parameters):
    broken = {k: v for k, v in parameters.items() if k != "embedding"}
    broken["norm.scale"] = broken["norm.scale"].astype(jnp.bfloat16)
    with pytest.raises(InputError) as caught:
        save_model(tmp_path / "model", broken, Metadata(model_config))
    for remark in ("missing: embedding", "norm.scale: saved bfloat16[16], wanted float32[16]"):
        assert remark in str(caught.value)
    assert not (tmp_path / "model").exists()


FOUR_DEVICES = textwrap.dedent("""
    import sys
    import jax
    import numpy as np
    jax.config.update("jax_num_cpu_devices", 4)
    from jax.sharding import NamedSharding, PartitionSpec as P
    from modbrick.checkpoints import CheckpointStore, load_checkpoint

    mesh = jax.make_mesh((4,), ("data",))
    def placed(x):
        axis = next((i for i, n in enumerate(x.shape) if n % 4 == 0), None)
        spec = P() if axis is None else P(*[None] * axis, "data")
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
    directory = sys.argv[1]
    whole, description = load_checkpoint(directory)
    shardings = jax.tree.map(lambda x: placed(x).sharding, whole)
    sharded, _ = load_checkpoint(directory, shardings=shardings)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(sharded), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    assert len(sharded["embedding"].sharding.device_set) == 4
    assert sharded["embedding"].addressable_shards[0].data.shape == (8, 16)
    with CheckpointStore(directory) as store:
        count = jax.ShapeDtypeStruct((), "int32", sharding=NamedSharding(mesh, P()))
        restored = store.restore_latest(jax.tree.map(placed, whole), {"count": count})
        assert restored.optimizer_state["count"] == 20
        changed = jax.tree.map(lambda x: x + 1, restored.parameters)
        store.save(30, changed, restored.optimizer_state, description.metadata)
    print("sharded")
""")


def test_from_one_device_to_four_and_back(run, tmp_path, parameters):
    copy = tmp_path / "copy"
    os.system(f"cp -r {run} {copy}")
    child = programs.run(["-c", FOUR_DEVICES, copy])
    assert child.stdout.endswith("sharded\n"), child.stderr[-2000:]
    loaded, description = load_checkpoint(copy)
    assert description.step == 30
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(parameters), strict=True):
        assert np.array_equal(a, b + 1)
        assert len(a.sharding.device_set) == 1
