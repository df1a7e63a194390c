"""Compiling for TPUs and for an H100 on a machine that has neither."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from jax import export
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, SingleDeviceSharding

H100_KIND = "NVIDIA H100 80GB HBM3"
H100_MULTIPROCESSORS = 132

# Read when libtpu loads: no search for a cloud machine (nor complaints that there is none), and no
# lock that one process holds.
LIBTPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
}
_CUDA_PACKAGES = (
    "jax-cuda13-plugin, nvidia-cuda-nvcc, nvidia-nvvm and nvidia-cuda-nvdisasm (all of CUDA 13)"
)


class CompilerUnavailableError(RuntimeError):
    """The compiler for the target is not installed; the message says what is missing."""


def tpu_devices(topology: str = "v5p:2x2x1") -> Sequence[jax.Device]:
    """Devices to compile for, of a TPU topology that need not be at hand.

    Set `JAX_PLATFORMS=cpu` before jax starts, or jax looks for a TPU of its own.

    Args:
        topology: generation and shape, such as "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1".

    Raises:
        CompilerUnavailableError: libtpu is not installed.
        ValueError: libtpu does not know the topology.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise CompilerUnavailableError(
            "compiling for TPUs needs libtpu: install jax[tpu] of jax's own version"
        )
    for name, value in LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"topology={topology!r} is unknown to libtpu: {error}") from error


@functools.cache
def cuda_root() -> Path:
    """The folder of the CUDA compilers that came as Python packages.

    Raises:
        CompilerUnavailableError: they are not installed.
    """
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec and spec.submodule_search_locations) or ():
        for root in sorted(Path(folder).glob("cu*")):
            if all((root / "bin" / name).exists() for name in ("ptxas", "nvlink", "nvdisasm")):
                return root
    raise CompilerUnavailableError(f"compiling for GPUs needs the packages {_CUDA_PACKAGES}")


@functools.cache
def h100_target() -> str:
    """XLA's description of the H100 (a text-format protocol buffer), taken from its plugin.

    Raises:
        CompilerUnavailableError: the plugin is not installed, or holds no such description.
    """
    try:
        spec = importlib.util.find_spec("jax_plugins.xla_cuda13")
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise CompilerUnavailableError(f"compiling for an H100 needs the packages {_CUDA_PACKAGES}")
    plugin = Path(spec.origin).with_name("xla_cuda_plugin.so").read_bytes()
    last_line = f'device_description_str: "{H100_KIND}"\n'.encode()
    end = plugin.find(last_line)
    start = plugin.rfind(b"gpu_device_info {", 0, max(end, 0))
    if start < 0:
        raise CompilerUnavailableError(f"{spec.origin} holds no description of {H100_KIND}")
    return plugin[start : end + len(last_line)].decode()


@functools.cache
def h100_device() -> jax.Device:
    """An H100 to compile for.

    Raises:
        CompilerUnavailableError: the CUDA plugin or the CUDA compilers are not installed.
    """
    cuda_root()
    topology = topologies.get_topology_desc(
        "h100", platform="cuda", target_config=h100_target(), topology="1x1x1"
    )
    return topology.devices[0]


@contextlib.contextmanager
def _own_cuda_compilers() -> Iterator[None]:
    """Makes Mosaic GPU take ptxas and nvdisasm of the Python packages.

    It takes the first on the PATH, and versions differ in what they make of a kernel: 13.0 adds
    waits around wgmma where 13.5 needs none.
    """
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([str(cuda_root() / "bin"), before])
    try:
        yield
    finally:
        os.environ["PATH"] = before


def abstract_device(device: jax.Device) -> AbstractDevice:
    """Describes `device` as kernels may ask about it while they are traced."""
    cores = H100_MULTIPROCESSORS if device.platform == "gpu" else getattr(device, "num_cores", None)
    return AbstractDevice(device_kind=device.device_kind, num_cores=cores, platform=device.platform)


def trace_for(device: AbstractDevice) -> contextlib.AbstractContextManager[Any]:
    """A context in which kernels that ask for the device get `device`."""
    return jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device))


def compile_for(
    device: jax.Device, function: Callable[..., Any], *avals: Any, **options: Any
) -> jax.stages.Compiled:
    """Compiles `function` for one device of `tpu_devices` or for `h100_device()`.

    While `function` is traced, the device is jax's default and that of the abstract mesh, so that
    code which looks at either finds what it will run on.

    Args:
        device: the target.
        function: takes `avals`.
        avals: pytrees of anything with a shape and a dtype.
        options: of `jax.jit`.

    Returns:
        The compiled program: `memory_analysis()`, `as_text()`.
    """
    sharding = SingleDeviceSharding(device)
    placed = jax.tree.map(
        lambda aval: jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=sharding), avals
    )
    gpu = device.platform == "gpu"
    compilers = _own_cuda_compilers() if gpu else contextlib.nullcontext()
    with compilers, jax.default_device(device), trace_for(abstract_device(device)):
        traced = jax.jit(function, **options).trace(*placed)
        lowered = traced.lower(lowering_platforms=("cuda",) if gpu else ("tpu",))
        with warnings.catch_warnings():
            # Programs for absent devices are written to jax's cache, but cannot be read from it.
            warnings.filterwarnings("ignore", "Error reading persistent compilation cache")
            return lowered.compile()


def lower_for_h100(function: Callable[..., Any], *avals: Any) -> str:
    """The StableHLO of `function` lowered for an H100, kernels inside; needs no plugin."""
    return _lower(function, avals, "cuda", AbstractDevice(H100_KIND, H100_MULTIPROCESSORS, "gpu"))


def lower_for_tpu(function: Callable[..., Any], *avals: Any, kind: str = "TPU v5p") -> str:
    """The StableHLO of `function` lowered for a TPU, kernels inside; needs no libtpu.

    Args:
        function: takes `avals`.
        avals: pytrees of anything with a shape and a dtype.
        kind: the device kind that kernels see: "TPU v5e", "TPU v5p", "TPU v6e", "TPU7x".
    """
    return _lower(function, avals, "tpu", AbstractDevice(kind, 1, "tpu"))


def _lower(
    function: Callable[..., Any], avals: tuple[Any, ...], platform: str, device: AbstractDevice
) -> str:
    shapes = jax.tree.map(lambda aval: jax.ShapeDtypeStruct(aval.shape, aval.dtype), avals)
    with trace_for(device):
        return export.export(jax.jit(function), platforms=[platform])(*shapes).mlir_module()
