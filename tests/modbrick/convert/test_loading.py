"""Foreign checkpoints straight into memory, onto a mesh, and into a training run."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from modbrick.checkpoints import load_parameters
from modbrick.convert import import_checkpoint, load, open_checkpoint, read_parameters
from modbrick.errors import InputError
from modbrick.models import initial_weights
from modbrick.parameters.addresses import flatten
from tests import programs

ROOT = Path(__file__).parents[3]
FIXTURES = ROOT / "tests/fixtures/moduleformer"
HALF, FULL = FIXTURES / "tied_half_identity", FIXTURES / "molm_like"

ON_A_MESH = """
import json, sys
import jax, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
from jax.sharding import NamedSharding, PartitionSpec as P
from modbrick.parameters.addresses import flatten, unflatten
from modbrick.convert import open_checkpoint, read_parameters

checkpoint = open_checkpoint(sys.argv[1])
mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
read = {}
original = type(checkpoint).read

def recorded(self, path, index=None, **options):
    values = original(self, path, index, **options)
    read[path] = max(read.get(path, 0), values.size)
    return values

type(checkpoint).read = recorded
infos = list(checkpoint.correspondence.parameters)
specs = {}
for info in infos:  # the last two axes that two devices can share evenly
    even = [axis for axis, size in enumerate(info.shape) if size % 2 == 0][-2:]
    names = dict(zip(even, ("a", "b")))
    specs[info.path] = NamedSharding(mesh, P(*(names.get(i) for i in range(len(info.shape)))))
parameters = flatten(read_parameters(checkpoint, shardings=unflatten(specs)))
for info in infos:
    value = parameters[info.path]
    assert value.sharding == specs[info.path]
    assert np.array_equal(np.asarray(value), original(checkpoint, info.path))
print(json.dumps({info.path: [read[info.path], info.size] for info in infos}))
"""


def test_weights_are_as_stored_unless_asked_otherwise() -> None:
    checkpoint = open_checkpoint(HALF)
    for dtype, wanted in ((None, jnp.float16), ("float32", jnp.float32)):
        for path, value in flatten(read_parameters(checkpoint, dtype=dtype)).items():
            assert value.dtype == wanted
            assert np.array_equal(value, checkpoint.read(path).astype(wanted)), path
    assert load(HALF, dtype="bfloat16").config.dtype == "bfloat16"


def test_each_device_reads_its_share_only() -> None:
    done = programs.run(["-c", ON_A_MESH, FULL])
    assert done.returncode == 0, done.stderr
    read = json.loads(done.stdout.splitlines()[-1])
    most, whole = read["segments.0.feed_forward.up.weight"]
    assert most * 4 == whole


def test_runs_start_from_what_they_find(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(HALF)
    import_checkpoint(checkpoint, tmp_path / "imported")
    stored, _ = load_parameters(tmp_path / "imported")
    assert {str(value.dtype) for value in jax.tree.leaves(stored)} == {"float16"}
    for source, words in (
        (HALF, "format moduleformer"),
        (tmp_path / "imported", "step 0"),
        (tmp_path / "imported" / "checkpoints" / "0", "step 0"),
    ):
        parameters, origin = initial_weights(source, checkpoint.model)
        assert words in origin
        for path, value in flatten(parameters).items():
            assert value.dtype == jnp.float32
            assert np.array_equal(value, checkpoint.read(path).astype(np.float32)), path


def test_runs_refuse_another_model() -> None:
    model = open_checkpoint(HALF).model
    layer = model.segments[0].layer
    for allowed in (model.replace(context=7), model.replace(router_statistics="valid")):
        initial_weights(HALF, allowed)
    other = model.replace(norm=type(model.norm)(epsilon=1e-6))
    with pytest.raises(InputError, match=r"another model .*norm\.epsilon: 1e-05 -> 1e-06"):
        initial_weights(HALF, other)
    assert layer.attention.experts is not None
    with pytest.raises(InputError, match="no checkpoint"):
        initial_weights(FIXTURES, model)
