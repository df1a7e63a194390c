from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from modbrick.errors import InputError
from modbrick.parallel import MeshConfig
from modbrick.planning.advice import advice, changes, verdict
from modbrick.planning.analytic import _fsdp_values, estimate, estimated_memory
from modbrick.planning.plan import Plan, abstract_program, named
from modbrick.planning.search import TRIES, compiled, search
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
    # Near what the kernels' rates are measured at.
    shape: dict[str, Any] = {"width": 1024, "sequence_length": 1024, "heads": 1, "experts": 16}
    run = small_run(**shape, attention=None, dispatch=None)
    best = search(run, V5P)[0]
    assert (best.config.execution.attention, best.config.execution.dispatch) == ("tpu", "tpu")
    assert abstract_program(best.config, V5P).config == best.config


def test_a_batch_that_only_some_meshes_divide_is_searched():
    found = search(small_run(batch_size=2), V5P)
    sizes = [candidate.config.mesh.sizes(4) for candidate in found]
    assert {size["tensor"] for size in sizes} == {2}
    assert abstract_program(found[0].config, V5P).config == found[0].config


class Compiler:
    """Answers for some candidates that they do not fit, or fails on them; counts its calls."""

    def __init__(self, answers: dict[int, float | str], candidates):
        self.answers, self.candidates = answers, candidates
        self.made: list[int] = []

    def __call__(self, config):
        [number] = [i for i, c in enumerate(self.candidates) if c.config == config]
        self.made.append(number)
        answer = self.answers.get(number, 1.0)
        if isinstance(answer, str):
            raise RuntimeError(answer)
        memory = self.candidates[number].estimate.memory
        rest = int((answer - 1) * memory.total) + memory.temporaries
        memory = dataclasses.replace(memory, temporaries=rest)
        return Plan(config, V5P, answer == 1.0, memory, None, 1.0, 1.0)


def test_the_search_goes_on_until_plans_fit():
    candidates = search(small_run(), V5P)
    said: list[str] = []
    compiler = Compiler({0: "libtpu\ndied", 1: 2.0, 2: "again"}, candidates)
    plans = compiled(candidates, V5P, 2, compiler, said.append)
    assert compiler.made == [0, 1, 2, 3, 4]
    assert [plan.fits for plan in plans] == [False, True, True]
    assert len(said) == 2
    assert said[0].endswith("libtpu died")


def test_the_search_ends():
    candidates = search(small_run(), V5P)
    nothing_fits = Compiler(dict.fromkeys(range(len(candidates)), 1.5), candidates)
    assert not any(p.fits for p in compiled(candidates, V5P, 1, nothing_fits, pytest.fail))
    assert nothing_fits.made == list(range(TRIES))
    refused = Compiler(dict.fromkeys(range(len(candidates)), "no such mesh"), candidates)
    with pytest.raises(InputError, match="refused the best 4 plans, the last one: no such mesh"):
        compiled(candidates, V5P, 1, refused, lambda line: None)


def test_what_errs_for_one_plan_errs_for_those_of_its_policy():
    """A plan that needs far more than estimated leaves no hope for others as tight."""
    candidates = search(small_run(), V5P)
    largest = max(c.estimate.memory.total for c in candidates)
    tight = with_limit(1.01 * largest)
    compiler = Compiler({0: 1e6}, candidates)
    plans = compiled(candidates, tight, 1, compiler, pytest.fail)
    first, last = (candidates[i].config.execution.rematerialisation for i in compiler.made)
    assert [plan.fits for plan in plans] == [False, True]
    assert first != last


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
    # What is gathered is gathered again for the backward pass, whatever else is kept.
    kept, again = (of(mesh=MeshConfig(fsdp=4), rematerialisation=r) for r in ("none", "full"))
    assert kept.collectives == again.collectives
    divided = of(mesh=MeshConfig(fsdp=4))
    assert divided.memory.optimizer < everything.memory.optimizer / 2
    assert divided.collectives > 0


def test_sums_that_leave_few_rows_move_twice_as_much():
    """Of 512 rows each of 16 devices of fsdp keeps 32, of 128 it keeps 8."""
    topology = find_topology("v5p:4x4x4")
    values = {}
    for width in (128, 512):
        run = small_run(width=width, batch_size=64, mesh=MeshConfig(data=4, fsdp=16))
        program = abstract_program(run, topology)
        matrices = estimate(program, topology).memory.parameters / 4  # about: vectors are small
        values[width] = _fsdp_values(program, topology, gathers=2) / (16 * matrices)
    assert values[512] < 0.9 * values[128]


def test_groups_along_all_axes_of_a_torus_gather_by_sums():
    topology = find_topology("v5p:4x4x4")
    runs = [
        small_run(width=1024, batch_size=64, mesh=MeshConfig(data=64 // n, fsdp=n))
        for n in (16, 64)
    ]
    flat, deep = (_fsdp_values(abstract_program(run, topology), topology, 2) for run in runs)
    embedding = 512 * 1024  # a sum of the whole in both
    assert deep == 2 * (flat - embedding)


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
