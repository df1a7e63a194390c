"""The learning rate at the steps where its course changes."""

import numpy as np
import pytest

from modbrick.errors import InputError
from modbrick.optimizer import OptimizerConfig, PowerConfig, ScheduleConfig, schedule

PEAK = 2e-3


def rates(total, steps, **plan):
    course = schedule(OptimizerConfig(learning_rate=PEAK, schedule=ScheduleConfig(**plan)), total)
    return np.array([float(course(step)) for step in steps])


def test_constant():
    got = rates(100, [0, 5, 10, 99, 500], kind="constant", warm_up_steps=10)
    np.testing.assert_allclose(got, [0, PEAK / 2, PEAK, PEAK, PEAK], rtol=1e-6)


def test_cosine():
    got = rates(110, [0, 10, 60, 110, 200], kind="cosine", warm_up_steps=10, end_factor=0.1)
    np.testing.assert_allclose(got, PEAK * np.array([0, 1, 0.55, 0.1, 0.1]), rtol=1e-6)


def test_cosine_that_ends_before_the_run():
    got = rates(100, [0, 20, 40, 90], kind="cosine", decay_steps=40, end_factor=0.0)
    np.testing.assert_allclose(got, PEAK * np.array([1, 0.5, 0, 0]), rtol=1e-6, atol=1e-12)


def test_warmup_stable_decay():
    plan = {"kind": "warmup_stable_decay", "warm_up_steps": 10, "end_factor": 0.2}
    got = rates(100, [0, 10, 50, 80, 90, 100, 150], decay_steps=20, **plan)
    np.testing.assert_allclose(got, PEAK * np.array([0, 1, 1, 1, 0.6, 0.2, 0.2]), rtol=1e-6)
    got = rates(100, [90, 95, 100], **plan)  # a tenth of the run
    np.testing.assert_allclose(got, PEAK * np.array([1, 0.6, 0.2]), rtol=1e-6)


def test_power():
    power = PowerConfig(batch_size=8, tokens_per_step=8000, amplitude=0.5)
    plan = {"kind": "power", "warm_up_steps": 10, "decay_steps": 200, "power": power}

    def law(step):
        return min(PEAK, 8 * 0.5 * (step * 8000.0) ** -0.51)

    assert law(10) == PEAK  # capped by the learning rate at first ...
    assert law(700) < PEAK  # ... and a power of the tokens later
    got = rates(1000, [0, 5, 10, 700, 800, 900, 1000, 2000], end_factor=0.1, **plan)
    last = law(800)
    expected = [0, PEAK / 2, PEAK, law(700), last, 0.55 * last, 0.1 * last, 0.1 * last]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_power_does_not_depend_on_the_batch_cut():
    """The same tokens in batches twice as long (and half as many sequences) are the same rate."""
    plan = {"kind": "power", "decay_steps": 0}
    one = rates(900, [800], power=PowerConfig(8, 8000, 0.5), **plan)
    other = rates(900, [400], power=PowerConfig(8, 16000, 0.5), **plan)
    assert one < PEAK
    np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("kind", ["constant", "cosine", "warmup_stable_decay"])
def test_runs_of_a_single_step_have_a_rate(kind):
    np.testing.assert_allclose(rates(1, [0], kind=kind), [PEAK], rtol=1e-6)


def test_what_does_not_fit_into_the_run_is_refused():
    with pytest.raises(InputError, match="warm-up of 60 steps and a decay of 50"):
        rates(100, [0], kind="warmup_stable_decay", warm_up_steps=60, decay_steps=50)
    with pytest.raises(InputError, match="run of 100"):
        rates(100, [0], kind="constant", warm_up_steps=101)
