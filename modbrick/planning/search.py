"""The best meshes, rematerialisation policies and microbatches for a run on a topology."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

from jax.sharding import AbstractMesh

from modbrick.errors import InputError
from modbrick.execution import Rematerialisation
from modbrick.parallel import AXES, MeshConfig
from modbrick.parallel.batch import check_batch
from modbrick.planning.analytic import Estimate, estimate
from modbrick.planning.plan import abstract_program, named
from modbrick.planning.topology import Topology
from modbrick.training.offload import on_host
from modbrick.training.placement import placed, state_shardings
from modbrick.training.program import TrainProgram
from modbrick.training.run_config import RunConfig

POLICIES: tuple[Rematerialisation, ...] = ("none", "kernels", "sublayers", "full")
MICROBATCHES = (1, 2, 4, 8)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A config and what the analytic model says of it."""

    config: RunConfig
    estimate: Estimate


def search(config: RunConfig, topology: Topology) -> list[Candidate]:
    """Returns what should fit, the fastest first; of equally fast ones the one that needs less.

    Tried are all sizes of data, fsdp, expert and tensor axes that are powers of two (and what is
    left of the devices), the policies `POLICIES`, and `MICROBATCHES`; the sequence axis and the
    slices stay as they are.

    Raises:
      InputError: nothing fits the devices, the model and the batch.
    """
    config = named(config)
    base = abstract_program(_whole(config), topology)
    found = []
    for mesh in meshes(config, topology):
        program = _on(base, mesh, topology)
        if program is None:
            continue
        for policy, microbatches in itertools.product(POLICIES, MICROBATCHES):
            candidate = _changed(program.config, policy, microbatches)
            if candidate is None or not _divides(program, candidate):
                continue
            result = estimate(dataclasses.replace(program, config=candidate), topology)
            if result.fits(topology):
                found.append(Candidate(candidate, result))
    if not found:
        raise InputError(
            f"nothing fits on {topology.name}: the smallest plans need more memory than "
            f"{topology.generation.hbm_bytes / 2**30:.2f} GiB, or no mesh divides the model"
        )
    return sorted(found, key=lambda c: (round(c.estimate.step_seconds, 4), c.estimate.memory.total))


def meshes(config: RunConfig, topology: Topology) -> Iterator[MeshConfig]:
    """Yields the meshes to try."""
    rest = topology.devices // config.mesh.sequence
    powers = [2**i for i in range(rest.bit_length())]
    routed = any(
        experts is not None
        for layer in config.model.layers
        for experts in (layer.attention.experts, layer.feed_forward.experts)
    )
    for fsdp, expert, tensor in itertools.product(powers, powers if routed else [1], powers[:4]):
        if rest % (fsdp * expert * tensor) == 0:
            data = rest // (fsdp * expert * tensor)
            if data % config.mesh.slices == 0:
                yield dataclasses.replace(
                    config.mesh, data=data, fsdp=fsdp, expert=expert, tensor=tensor
                )


def _whole(config: RunConfig) -> RunConfig:
    """Returns the config on a mesh that divides any model."""
    mesh = MeshConfig(sequence=config.mesh.sequence, slices=config.mesh.slices)
    return dataclasses.replace(
        config, mesh=mesh, training=dataclasses.replace(config.training, microbatches=1)
    )


def _on(base: TrainProgram, mesh: MeshConfig, topology: Topology) -> TrainProgram | None:
    """Returns the program on another mesh; None if that does not divide the model."""
    abstract = AbstractMesh(tuple(mesh.sizes(topology.devices).values()), AXES)
    model = base.config.model
    banks = [
        experts.count
        for layer in model.layers
        for experts in (layer.attention.experts, layer.feed_forward.experts)
        if experts is not None
    ]
    heads = [layer.attention.grouped_heads for layer in model.layers]
    if any(count % mesh.expert for count in banks) or any(count % mesh.tensor for count in heads):
        return None
    try:
        shardings = state_shardings(base.state, base.partition, abstract)
    except InputError:
        return None
    if base.config.execution.optimizer_memory == "host":
        moments = on_host(base.state.optimizer, shardings.optimizer)
        shardings = dataclasses.replace(shardings, optimizer=moments)
    config = dataclasses.replace(base.config, mesh=mesh)
    return dataclasses.replace(
        base, config=config, mesh=abstract, state=placed(base.state, shardings)
    )


def _changed(config: RunConfig, policy: Rematerialisation, microbatches: int) -> RunConfig | None:
    if config.data.batch_size % microbatches:
        return None
    if policy == "none" and config.execution.activation_memory == "host":
        return None
    return dataclasses.replace(
        config,
        execution=dataclasses.replace(config.execution, rematerialisation=policy),
        training=dataclasses.replace(config.training, microbatches=microbatches),
    )


def _divides(program: TrainProgram, config: RunConfig) -> bool:
    try:
        check_batch(
            program.mesh,
            rows=config.data.batch_size,
            microbatches=config.training.microbatches,
            positions=config.data.sequence_length,
        )
    except InputError:
        return False
    return True
