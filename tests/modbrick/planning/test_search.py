from __future__ import annotations

import dataclasses
import math

import pytest

from modbrick.errors import InputError
from modbrick.parallel import MeshConfig
from modbrick.planning.advice import advice, changes, verdict
from modbrick.planning.analytic import estimate, estimated_memory
from modbrick.planning.plan import Plan, abstract_program, named
from modbrick.planning.search import search
from modbrick.planning.topology import find_topology
from tests.modbrick.planning.small_run import small_run

V5P = find_topology("v5p:2x2x1")
TINY = dataclasses.replace(V5P.generation, hbm_bytes=1)


def with_limit(limit: float):
    generation = dataclasses.replace(V5P.generation, hbm_bytes=int(limit))
    return dataclasses.replace(V5P, generation=generation)


def test_what_is_found_fits_and_is_ranked():
    found = search(small_run(), V5P)
    assert all(candidate.estimate.fits(V5P) for candidate in found)
    seconds = [round(candidate.estimate.step_seconds, 4) for candidate in found]
    assert seconds == sorted(seconds)
    sizes = [candidate.config.mesh.sizes(4) for candidate in found]
    assert all(math.prod(size.values()) == 4 for size in sizes)
    assert {"fsdp", "expert"} <= {a for size in sizes for a, n in size.items() if n > 1}


def test_what_is_found_is_named_and_can_be_built():
    run = small_run(attention=None, dispatch=None)
    best = search(run, V5P)[0]
    assert (best.config.execution.attention, best.config.execution.dispatch) == ("tpu", "tpu")
    assert abstract_program(best.config, V5P).config == best.config


def test_nothing_fits_in_no_memory():
    with pytest.raises(InputError, match="nothing fits on v5p:2x2x1"):
        search(small_run(), dataclasses.replace(V5P, generation=TINY))


def test_estimates_move_the_way_they_should():
    def of(**changed):
        return estimate(abstract_program(small_run(**changed), V5P), V5P)

    everything, nothing = of(rematerialisation="none"), of(rematerialisation="full")
    assert nothing.memory.activations < everything.memory.activations
    assert nothing.compute > everything.compute
    assert of(microbatches=2).memory.activations < everything.memory.activations
    divided = of(mesh=MeshConfig(fsdp=4))
    assert divided.memory.optimizer < everything.memory.optimizer / 2
    assert divided.collectives > 0


def test_advice_names_changes_that_make_it_fit():
    run = named(small_run(rematerialisation="none", layers=16, batch_size=64))
    program = abstract_program(run, V5P)
    memory = estimated_memory(program)
    plan = Plan(run, with_limit(0.8 * memory.total), False, memory, None, 1.0, 1.0)
    fitting = [change for change in changes(plan) if change.fits]
    assert fitting
    assert all(change.bytes <= plan.topology.generation.hbm_bytes for change in fitting)
    assert "\n" not in verdict(plan)
    assert "it does not fit v5p:2x2x1" in verdict(plan)
    text = advice(plan)
    assert "--config.execution.rematerialisation=full" in text


def test_what_does_not_divide_is_refused_by_name():
    with pytest.raises(InputError, match=r"mesh\.expert 3|there are 4"):
        abstract_program(small_run(mesh=MeshConfig(data=1, expert=3)), V5P)
    with pytest.raises(InputError, match="batch_size 6"):
        abstract_program(small_run(batch_size=6), V5P)
