from __future__ import annotations

import importlib.util
import os
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.compile_report import compilation

TILE = jax.ShapeDtypeStruct((8, 128), jnp.float32)


def memory(compiled: jax.stages.Compiled) -> Any:
    return compiled.memory_analysis()


def double_kernel(x_ref, y_ref):
    y_ref[...] = 2 * x_ref[...]


def double(x):
    return pl.pallas_call(double_kernel, out_shape=TILE, name="double")(x)


@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_a_kernel_compiles_for_a_tpu_that_is_not_there(topology: str) -> None:
    device = compilation.tpu_devices(topology)[0]
    compiled = compilation.compile_for(device, double, TILE)
    assert memory(compiled).argument_size_in_bytes == 4096
    assert "tpu_custom_call" in (compiled.as_text() or "")


def test_a_kernel_sees_the_target_while_it_is_traced() -> None:
    seen = []

    def look(x):
        seen.append(pltpu.get_tpu_info().generation)
        return double(x)

    compilation.compile_for(compilation.tpu_devices("v6e:2x2")[0], look, TILE)
    compilation.lower_for_tpu(look, TILE, kind="TPU v5e")
    assert seen == [6, 5]


def test_pytrees_and_jit_options_pass_through() -> None:
    device = compilation.tpu_devices()[0]

    def add(tree, flag):
        return {"a": tree["a"] + tree["b"] if flag else tree["a"], "b": tree["b"]}

    tree = {"a": TILE, "b": TILE}
    compiled = compilation.compile_for(device, lambda tree: add(tree, True), tree, donate_argnums=0)
    assert memory(compiled).alias_size_in_bytes > 0


def test_an_unknown_topology_is_named() -> None:
    with pytest.raises(ValueError, match="topology='v99:2x2'"):
        compilation.tpu_devices("v99:2x2")


def test_lowering_holds_the_kernel() -> None:
    assert "tpu_custom_call" in compilation.lower_for_tpu(double, TILE)


def test_lowering_for_the_h100_sees_its_multiprocessors() -> None:
    seen = []

    def look(x):
        seen.append(jax.sharding.get_abstract_mesh().abstract_device)
        return x

    compilation.lower_for_h100(look, TILE)
    assert seen[0].num_cores == 132
    assert seen[0].device_kind == compilation.H100_KIND


def test_plain_xla_compiles_for_the_h100() -> None:
    matrix = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16)
    device = compilation.h100_device()
    assert device.device_kind == compilation.H100_KIND
    compiled = compilation.compile_for(device, lambda a: a @ a, matrix)
    assert memory(compiled).output_size_in_bytes == 256 * 256 * 2


def test_compilers_of_the_packages_go_first() -> None:
    before = os.environ["PATH"]
    with compilation._own_cuda_compilers():
        first = os.environ["PATH"].split(os.pathsep)[0]
        assert first == str(compilation.cuda_root() / "bin")
    assert os.environ["PATH"] == before


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(compilation.CompilerUnavailableError, match="libtpu"):
        compilation.tpu_devices()
    for function in (compilation.cuda_root, compilation.h100_target):
        with pytest.raises(compilation.CompilerUnavailableError, match="nvidia-cuda-nvcc"):
            function.__wrapped__()
