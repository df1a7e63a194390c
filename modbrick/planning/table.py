"""Plans at the terminal: tables for people, and how far one is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.status import Status
from rich.table import Table
from rich.text import Text

from modbrick.planning.plan import Plan, make_plan
from modbrick.planning.rates import shape_name
from modbrick.planning.search import Candidate, mesh_name
from modbrick.planning.time import DEFINITION
from modbrick.planning.topology import Topology
from modbrick.training.run_config import RunConfig

_GIB = 2**30
_SHOWN = 10  # candidates of a search


def watched_plan(config: RunConfig, topology: Topology) -> Plan:
    """Makes a plan, and shows on standard error how far it is."""
    with Status("planning", console=Console(stderr=True)) as status:
        return make_plan(
            config,
            topology,
            progress=lambda stage, seconds: status.update(
                f"{stage} for {topology.devices} devices, {seconds:.0f} s"
            ),
        )


def describe(plan: Plan) -> Group:
    """Returns a plan to be printed by rich: memory, collectives, time."""
    return Group(*_parts(plan))


def _parts(plan: Plan) -> Iterator[RenderableType]:
    config, generation = plan.config, plan.topology.generation
    mesh = mesh_name(config, plan.topology)
    execution = config.execution
    yield Text(
        f"{plan.topology.name}: {plan.topology.devices} devices, mesh {mesh}; rows "
        f"{config.data.batch_size} x {config.data.sequence_length} in "
        f"{config.training.microbatches} microbatch(es)\n"
        f"rematerialisation {execution.rematerialisation}, attention {execution.attention}, "
        f"dispatch {execution.dispatch}, experts by {execution.expert_parallelism}; compiled in "
        f"{plan.compile_seconds:.0f} s ({plan.processor_seconds:.0f} s of processors)"
    )
    memory = Table(title="HBM of one device, GiB", title_justify="left")
    memory.add_column("part")
    memory.add_column("GiB", justify="right")
    for name in ("parameters", "optimizer", "batch", "gradients", "activations", "temporaries"):
        memory.add_row(name, f"{getattr(plan.memory, name) / _GIB:.2f}")
    memory.add_section()
    limit = generation.hbm_bytes / _GIB
    verdict = "fits" if plan.fits else "does not fit"
    memory.add_row(f"all ({verdict} {limit:.2f})", f"{plan.memory.total / _GIB:.2f}")
    yield memory
    if plan.time is None:
        return
    time = plan.time
    moved = Table(title="Collectives of one step, on one device", title_justify="left")
    moved.add_column("kind")
    moved.add_column("axes")
    for name in ("runs", "GiB received", "of these beside other work", "ms"):
        moved.add_column(name, justify="right")
    for total in time.collectives:
        if total.seconds < 1e-4 * time.step_seconds:
            continue
        moved.add_row(
            total.kind,
            total.axes,
            f"{total.executions:,}",
            f"{total.bytes / _GIB:.2f}",
            f"{total.asynchronous_bytes / _GIB:.2f}",
            f"{1e3 * total.seconds:.1f}",
        )
    yield moved
    gathering = sum(total.gathering_bytes for total in time.collectives)
    if gathering:
        yield Text(
            f"{gathering / _GIB:.2f} GiB of the all-reduces are gathers: the compiler adds up "
            "whole arrays, zero elsewhere, twice the bytes. Fewer devices on fsdp avoid it"
        )
    spent = Table(title="Predicted time of one step", title_justify="left")
    spent.add_column("part")
    spent.add_column("ms", justify="right")
    spent.add_column("share", justify="right")
    rows = {
        **{f"products: {name}": seconds for name, seconds in time.compute.items()},
        "other operations, memory": time.hbm,
        "collectives": time.collective_seconds,
    }
    for name, seconds in rows.items():
        spent.add_row(name, f"{1e3 * seconds:.1f}", f"{seconds / time.step_seconds:.1%}")
    spent.add_section()
    spent.add_row("step", f"{1e3 * time.step_seconds:.1f}", "")
    yield spent
    for rate in plan.rates:
        yield Text(
            f"{rate.part}: {rate.forward:.1%} of the peak forward, {rate.backward:.1%} backward, "
            f"as measured at {shape_name(rate.shape)}"
        )
    tokens = config.data.batch_size * config.data.sequence_length
    yield Text(
        f"bound by {time.bound}; utilisation {time.utilisation:.1%} (at most "
        f"{time.highest_utilisation:.1%} if everything overlapped) of "
        f"{generation.peak_flops / 1e12:.0f} TFLOP/s a device "
        f"({time.useful_flops / 1e12:,.1f} useful TFLOPs a step and device); "
        f"{tokens / time.step_seconds:,.0f} tokens/s\n{DEFINITION}"
    )


def describe_candidates(candidates: Sequence[Candidate], topology: Topology) -> Table:
    """Returns the best that a search found, to be printed by rich; figures are the fast model's."""
    table = Table(title="Estimated, not compiled; the best are compiled next", title_justify="left")
    for name in ("mesh", "rematerialisation"):
        table.add_column(name)
    for name in ("microbatches", "GiB", "ms", "utilisation"):
        table.add_column(name, justify="right")
    for candidate in candidates[:_SHOWN]:
        config, estimate = candidate.config, candidate.estimate
        table.add_row(
            mesh_name(config, topology),
            config.execution.rematerialisation,
            str(config.training.microbatches),
            f"{estimate.memory.total / _GIB:.1f}",
            f"{1e3 * estimate.step_seconds:.0f}",
            f"{estimate.utilisation:.0%}",
        )
    return table
