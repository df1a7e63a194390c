"""What a run compiles: its state laid out on a mesh, and the step that changes it."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from modbrick.data.batches import FIELDS
from modbrick.layers.functional import functional_decoder
from modbrick.optimizer import Optimizer
from modbrick.parallel import parameter_shardings
from modbrick.parallel.batch import batch_sharding, check_batch
from modbrick.parameters import Partition
from modbrick.training.offload import check_host_memory, offloaded, on_host
from modbrick.training.placement import placed, state_shardings
from modbrick.training.run_config import RunConfig
from modbrick.training.state import TrainState, initial_state
from modbrick.training.step import StepReport, train_step


@dataclasses.dataclass(frozen=True)
class TrainProgram:
    """A run's config on a mesh.

    Attributes:
      config: of the run.
      mesh: of its devices, or of devices that are only described.
      partition: trainable and frozen parameters.
      optimizer: of the trainable ones.
      parameters: shapes and shardings of the whole parameters.
      state: shapes and shardings of the state.
      step: compiled when first called, with the mesh in force; consumes the state.
    """

    config: RunConfig
    mesh: Mesh | AbstractMesh
    partition: Partition
    optimizer: Optimizer
    parameters: dict[str, jax.ShapeDtypeStruct]
    state: TrainState
    step: Callable[[TrainState, Any], tuple[TrainState, StepReport]]

    def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shapes and shardings of a global batch."""
        shape = (self.config.data.batch_size, self.config.data.sequence_length)
        sharding = batch_sharding(self.mesh)
        return {
            name: jax.ShapeDtypeStruct(shape, jax.numpy.int32, sharding=sharding) for name in FIELDS
        }


def train_program(config: RunConfig, mesh: Mesh | AbstractMesh) -> TrainProgram:
    """Puts a run's step together; allocates and compiles nothing.

    Raises:
      InputError: the mesh divides the model or the batch not evenly; names what.
    """
    check_batch(
        mesh,
        rows=config.data.batch_size,
        microbatches=config.training.microbatches,
        positions=config.data.sequence_length,
    )
    decoder = functional_decoder(config.model, config.execution)
    partition = Partition(
        decoder.table,
        trainable=config.optimizer.trainable,
        frozen=config.optimizer.frozen,
    )
    optimizer = Optimizer(config.optimizer, partition, config.training.steps)
    whole = decoder.abstract_parameters()
    abstract = jax.eval_shape(lambda p: initial_state(p, partition, optimizer), whole)
    shardings = state_shardings(abstract, partition, mesh)
    check_host_memory(config.execution, mesh)
    step = train_step(
        config.model,
        config.execution,
        config.objective,
        optimizer,
        partition,
        microbatches=config.training.microbatches,
        seed=config.training.seed,
    )
    # Kernels import Pallas when a trace first asks for them, and Pallas adds to the settings that
    # jax keeps traces by: the step would be traced and compiled again when it is called again.
    importlib.import_module("jax.experimental.pallas.tpu")
    everywhere = NamedSharding(mesh, PartitionSpec())  # every process reads the report
    if config.execution.optimizer_memory == "host":
        moments = on_host(abstract.optimizer, shardings.optimizer)
        shardings = dataclasses.replace(shardings, optimizer=moments)
        step = offloaded(step)
    return TrainProgram(
        config,
        mesh,
        partition,
        optimizer,
        parameters=placed(whole, parameter_shardings(partition.table, mesh)),
        state=placed(abstract, shardings),
        step=jax.jit(step, donate_argnums=0, out_shardings=(shardings, everywhere)),
    )
