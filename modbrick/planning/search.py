"""The best meshes, rematerialisation policies and microbatches for a run on a topology."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

from jax.sharding import AbstractMesh

from modbrick.errors import InputError
from modbrick.execution import Rematerialisation
from modbrick.parallel import AXES, MeshConfig
from modbrick.parallel.batch import check_batch
from modbrick.planning.analytic import Estimate, estimate
from modbrick.planning.plan import Plan, named
from modbrick.planning.topology import Topology
from modbrick.training.offload import on_host
from modbrick.training.placement import placed, state_shardings
from modbrick.training.program import TrainProgram, train_program
from modbrick.training.run_config import RunConfig
from modbrick.training.tasks.pretraining import Pretraining

POLICIES: tuple[Rematerialisation, ...] = ("none", "kernels", "sublayers", "full")
MICROBATCHES = (1, 2, 4, 8)
TRIES = 4


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
    base = _base(config)
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


def compiled(
    candidates: Sequence[Candidate],
    topology: Topology,
    count: int,
    make: Callable[[RunConfig], Plan],
    say: Callable[[str], None],
) -> list[Plan]:
    """Returns plans of the best candidates, until `count` of them fit.

    What the compiler refuses is reported and left out. A plan that does not fit shows by how much
    the model errs: candidates of its policy that would not fit either if it erred as much for them
    are left out. At most `TRIES` times `count` are compiled.

    Args:
      candidates: the best first.
      topology: of the devices.
      count: of plans that fit.
      make: compiles a plan.
      say: takes a line about a candidate that is left out.

    Raises:
      InputError: the compiler refused all of them.
    """
    plans: list[Plan] = []
    errs: dict[str, float] = {}
    tries, refusal = 0, ""
    for candidate in candidates:
        if tries == TRIES * count or sum(plan.fits for plan in plans) == count:
            break
        policy = candidate.config.execution.rematerialisation
        expected = candidate.estimate.memory.total * errs.get(policy, 1.0)
        if expected > topology.generation.hbm_bytes:
            continue
        tries += 1
        try:
            plan = make(candidate.config)
        except RuntimeError as error:
            refusal = " ".join(str(error).split())[:300]
            say(f"left out: {mesh_name(candidate.config, topology)}, {policy}: {refusal}")
            continue
        plans.append(plan)
        if not plan.fits:
            err = plan.memory.total / candidate.estimate.memory.total
            errs[policy] = max(errs.get(policy, 1.0), err)
    if not plans:
        raise InputError(f"the compiler refused the best {tries} plans, the last one: {refusal}")
    return plans


def mesh_name(config: RunConfig, topology: Topology) -> str:
    """Returns the axes of a mesh that have more than one device: `data 4 x fsdp 64`."""
    sizes = config.mesh.sizes(topology.devices)
    return " x ".join(f"{name} {size}" for name, size in sizes.items() if size > 1) or "data 1"


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


def _base(config: RunConfig) -> TrainProgram:
    """Returns the program on one device: what divides any model and any batch."""
    whole = dataclasses.replace(
        config, training=dataclasses.replace(config.training, microbatches=1)
    )
    return train_program(whole, Pretraining(whole), AbstractMesh((1,) * len(AXES), AXES))


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
