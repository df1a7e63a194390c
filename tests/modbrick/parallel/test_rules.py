"""Rules from logical to mesh axes: complete, and what does not divide is named."""

from __future__ import annotations

import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from modbrick.decoder.functional import parameter_table
from modbrick.errors import InputError
from modbrick.parallel import AXES, constrain, gathered, parameter_shardings, parameter_spec
from modbrick.parallel.rules import (
    FSDP,
    PARAMETER_RULES,
    gathered_spec,
    mesh_axes_size,
    mesh_axis_names,
)
from tests.modbrick.layers.tiny import SPARSE, model_config

CONFIG = model_config(SPARSE)


def mesh_of(**sizes: int) -> AbstractMesh:
    return AbstractMesh(tuple(sizes.get(name, 1) for name in AXES), AXES)


def test_every_logical_axis_has_its_rule() -> None:
    axes = {axis for info in parameter_table(CONFIG) for axis in info.axes}
    assert axes <= set(PARAMETER_RULES)
    assert {by for by in PARAMETER_RULES.values() if by} <= set(AXES)
    assert set(FSDP) <= set(PARAMETER_RULES)


def test_a_mesh_axis_divides_a_parameter_once() -> None:
    for info in parameter_table(CONFIG):
        used = [name for by in parameter_spec(info.axes) for name in mesh_axis_names(by)]
        assert len(used) == len(set(used)), info.path


def test_vectors_are_whole_and_matrices_divided_over_fsdp() -> None:
    assert parameter_spec(("layer", "width")) == PartitionSpec(None, None)
    bank = ("layer", "expert", "width", "hidden")
    assert parameter_spec(bank) == PartitionSpec(None, "expert", "fsdp", "tensor")
    assert gathered_spec(bank) == PartitionSpec(None, "expert", None, "tensor")


def test_fsdp_divides_what_a_matrix_is_multiplied_along() -> None:
    back = ("layer", "expert", "hidden", "width")
    assert parameter_spec(back) == PartitionSpec(None, "expert", ("tensor", "fsdp"), None)
    assert gathered_spec(back) == PartitionSpec(None, "expert", "tensor", None)
    assert parameter_spec(("heads", "width")) == PartitionSpec(("tensor", "fsdp"), None)
    assert parameter_spec(("vocabulary", "width")) == PartitionSpec("tensor", "fsdp")
    assert parameter_spec(("width", "vocabulary")) == PartitionSpec("fsdp", "tensor")
    assert parameter_spec(("router_hidden", "router_expert")) == PartitionSpec(None, None)


def test_all_that_does_not_divide_is_named_at_once() -> None:
    banks = [info for info in parameter_table(CONFIG) if "expert" in info.axes]
    experts = {info.shape[info.axes.index("expert")] for info in banks}
    odd = max(experts) + 1
    with pytest.raises(InputError) as refused:
        parameter_shardings(parameter_table(CONFIG), mesh_of(expert=odd, fsdp=1009))
    message = str(refused.value)
    assert "\n" not in message
    for info in banks:
        assert f"of {info.address()} does not divide by mesh.expert {odd}" in message
    assert "width" in message
    assert "does not divide by mesh.fsdp 1009" in message


def test_an_axis_that_two_mesh_axes_divide_names_both() -> None:
    with pytest.raises(InputError, match=r"does not divide by mesh\.tensor 2 x mesh\.fsdp 1009"):
        parameter_shardings(parameter_table(CONFIG), mesh_of(tensor=2, fsdp=1009))


def test_without_a_mesh_nothing_is_constrained() -> None:
    x = jnp.ones((2, 3, 4))
    assert constrain(x, "batch", "sequence", "width") is x
    assert gathered(x, ("layer", "width", "hidden")) is x


def test_shards_together_are_the_whole() -> None:
    mesh = mesh_of(expert=2, fsdp=2)
    shardings = parameter_shardings(parameter_table(CONFIG), mesh)
    for info in parameter_table(CONFIG):
        local = shardings[info.path].shard_shape(info.shape)
        spec = parameter_spec(info.axes)
        whole = [n * mesh_axes_size(mesh, by) for n, by in zip(local, spec, strict=True)]
        assert tuple(whole) == info.shape
