"""Program of a run: its state laid out on a mesh, and the compiled step that changes it."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from modbrick.bricks.functional import is_brick, plugged_decoder
from modbrick.checkpoints import SplitParameters
from modbrick.errors import InputError
from modbrick.optimizer import Optimizer, OptimizerConfig
from modbrick.parallel import parameter_shardings
from modbrick.parallel.batch import batch_sharding, check_batch, place_batch
from modbrick.parameters import ParameterTable, Partition
from modbrick.training.offload import check_host_memory, offloaded, on_host
from modbrick.training.placement import placed, state_shardings
from modbrick.training.run_config import RunConfig
from modbrick.training.state import TrainState, initial_state
from modbrick.training.step import StepMetrics, draws, loss_function, train_step
from modbrick.training.tasks.task import LocalBatch, Task


@dataclasses.dataclass(frozen=True)
class TrainProgram:
    """A run's config and task on a mesh.

    Attributes:
      config: of the run.
      task: what it is trained for.
      mesh: of its devices, or of devices that are only described.
      partition: trainable and frozen parameters.
      kept: the part of it that checkpoints hold: all, or only the customized bricks.
      optimizer: of the trainable ones.
      parameters: shapes and shardings of the whole parameters.
      state: shapes and shardings of the state.
      step: compiled when first called, with the mesh in force; consumes the state.
    """

    config: RunConfig
    task: Task
    mesh: Mesh | AbstractMesh
    partition: Partition
    kept: Partition
    optimizer: Optimizer
    parameters: dict[str, jax.ShapeDtypeStruct]
    state: TrainState
    step: Callable[[TrainState, Any], tuple[TrainState, StepMetrics]]

    def batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns shapes and shardings of a global batch."""
        return {
            name: jax.ShapeDtypeStruct(
                array.shape, array.dtype, sharding=batch_sharding(self.mesh, len(array.shape))
            )
            for name, array in self.task.batch_shapes().items()
        }

    def place(self, batch: LocalBatch) -> dict[str, jax.Array]:
        """Returns the global batch of which each process holds its rows."""
        assert isinstance(self.mesh, Mesh), "a described device holds no arrays"
        return place_batch(batch, self.mesh, self.config.data.batch_size)

    def stored(self, state: TrainState) -> SplitParameters:
        """Returns the parameters of a state as its checkpoints hold them: what is frozen, once."""
        frozen = {path: x for path, x in state.frozen.items() if path in self.kept.table}
        return SplitParameters(self.kept, state.trainable, frozen)

    def parameters_of(self, state: TrainState) -> dict[str, Any]:
        """Returns the whole parameters of a state, trainable and frozen ones joined."""
        return self.partition.join(state.trainable, state.frozen)


def train_program(config: RunConfig, task: Task, mesh: Mesh | AbstractMesh) -> TrainProgram:
    """Puts a run's step together; allocates and compiles nothing.

    Raises:
      InputError: the mesh divides the model or the batch not evenly; names what.
    """
    _check_batch(config, task, mesh)
    decoder = plugged_decoder(config.model, config.bricks, config.execution)
    partition, kept = _partitions(config, decoder.table)
    optimizer = Optimizer(config.optimizer, partition, config.training.steps)
    whole = decoder.table.abstract()
    abstract = jax.eval_shape(lambda p: initial_state(p, partition, optimizer), whole)
    shardings = state_shardings(abstract, partition, mesh)
    check_host_memory(config.execution, mesh)
    loss = loss_function(
        task.loss,
        config.model,
        config.execution,
        config.objective,
        microbatches=config.training.microbatches,
        loss_name=task.loss_name,
        bricks=config.bricks,
    )
    seed = config.training.seed if draws(config.model, config.bricks) else None
    step = train_step(loss, optimizer, partition, seed=seed)
    # Kernels import Pallas when a trace first asks for them, and Pallas adds to the settings that
    # jax keeps traces by: the step would be traced and compiled again when it is called again.
    importlib.import_module("jax.experimental.pallas.tpu")
    replicated = NamedSharding(mesh, PartitionSpec())  # every process reads the metrics
    if config.execution.optimizer_memory == "host":
        moments = on_host(abstract.optimizer, shardings.optimizer)
        shardings = dataclasses.replace(shardings, optimizer=moments)
        step = offloaded(step)
    return TrainProgram(
        config,
        task,
        mesh,
        partition,
        kept,
        optimizer,
        parameters=placed(whole, parameter_shardings(partition.table, mesh)),
        state=placed(abstract, shardings),
        step=jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated)),
    )


def _check_batch(config: RunConfig, task: Task, mesh: Mesh | AbstractMesh) -> None:
    """Refuses a batch of the task that the mesh does not divide."""
    for name, array in task.batch_shapes().items():
        if len(array.shape) == 2:
            positions, of_config = array.shape[1], config.data.sequence_length
            check_batch(
                mesh,
                rows=config.data.batch_size,
                microbatches=config.training.microbatches,
                positions=positions,
                name="data.sequence_length" if positions == of_config else f"the length of {name}",
            )


def _partitions(config: RunConfig, table: ParameterTable) -> tuple[Partition, Partition]:
    """Returns the partition of all parameters, and that of those which checkpoints hold.

    Raises:
      InputError: a pattern that covers nothing; a run with bricks has no model, or trains it.
    """
    trainable, frozen = config.optimizer.trainable, config.optimizer.frozen
    if not config.bricks:
        partition = Partition(
            table, trainable=trainable, frozen=frozen, frozen_dtype=config.training.frozen_dtype
        )
        _require_frozen(partition)
        return partition, partition
    if config.training.initial_checkpoint is None:
        raise InputError("bricks are trained on a model: set training.initial_checkpoint")
    if trainable == OptimizerConfig.trainable:
        trainable = ("brick",)
    partition = Partition(
        table, trainable=trainable, frozen=frozen, frozen_dtype=config.training.frozen_dtype
    )
    if model := [path for path in partition.trainable if not is_brick(path)]:
        raise InputError(
            f"with bricks the model is frozen, but optimizer.trainable covers {model[0]}: name "
            "bricks only, such as brick.NAME"
        )
    bricks = ParameterTable(info for info in table if is_brick(info.path))
    return partition, partition.within(bricks)


def _require_frozen(partition: Partition) -> None:
    """Refuses to hold in fewer bits what is frozen where nothing is."""
    if partition.frozen_dtype not in (None, "float32") and not partition.frozen:
        raise InputError(
            f"training.frozen_dtype {partition.frozen_dtype} is for what is frozen, and nothing "
            "is: name it in optimizer.frozen, or leave frozen_dtype None"
        )
