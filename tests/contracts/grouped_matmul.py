"""Contract of every implementation of sparse expert dispatch.

A test module subclasses `GroupedMatmulContract` and names its implementation, or overrides the two
methods that call the operation.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import grouped_matmul as op
from tests.contracts.sweep import sweep

INPUT_LAYOUTS = ("tokens", "slots", "grouped")
OUTPUT_LAYOUTS = ("grouped", "slots", "tokens")
# T, K, E, D, F; no multiples of any tile. Tests share shapes, because compiling is what takes time.
Shape = tuple[int, int, int, int, int]
STANDARD: Shape = (37, 3, 5, 20, 33)
# More than the 256 rows up to which tiles of XLA are of two heights.
MANY_ROWS: Shape = (129, 2, 16, 9, 7)
ONE_EXPERT: Shape = (37, 2, 1, 20, 33)
MANY_EXPERTS: Shape = (50, 2, 256, 12, 9)
ONE_OF_EACH: Shape = (1, 1, 1, 1, 1)
SHAPES = [
    *(STANDARD, MANY_ROWS, ONE_EXPERT, MANY_EXPERTS, ONE_OF_EACH),
    (200, 2, 4, 9, 7),  # tiles of eleven heights
    (9, 4, 2, 7, 5),
]


_routing_plan = jax.jit(op.routing_plan, static_argnums=1)


@dataclasses.dataclass(frozen=True)
class Problem:
    """Arguments in float64 numpy, so that every dtype is derived from the same numbers."""

    experts: np.ndarray  # [T, K]
    num_experts: int
    tokens: np.ndarray  # [T, D]
    slots: np.ndarray  # [T, K, D]
    weights: np.ndarray  # [E, D, F]
    down: np.ndarray  # [E, F, D]
    gate_weights: np.ndarray  # [E, D, F]
    bias: np.ndarray  # [E, F]
    gates: np.ndarray  # [T, K]
    slot_cotangent: np.ndarray  # [T, K, F]
    token_cotangent: np.ndarray  # [T, F]
    feed_forward_cotangent: np.ndarray  # [T, D]

    @property
    def plan(self) -> op.RoutingPlan:
        return _routing_plan(self.experts.astype(np.int32), self.num_experts)

    def inputs(self, layout: str) -> np.ndarray:
        """The inputs in a layout; "slots" and "grouped" hold the same rows."""
        if layout == "grouped":
            order = np.argsort(_sort_key(self), kind="stable")
            return self.slots.reshape(-1, self.slots.shape[-1])[order]
        return {"tokens": self.tokens, "slots": self.slots}[layout]


def _sort_key(problem: Problem) -> np.ndarray:
    flat, experts = problem.experts.reshape(-1), problem.num_experts
    return np.where((flat >= 0) & (flat < experts), flat, experts)


def problem(shape: Shape = STANDARD, *, seed: int = 0, unrouted: bool = True) -> Problem:
    """A random problem; with `unrouted` some slots name experts that do not exist."""
    tokens, k, experts, width, hidden = shape
    rng = np.random.default_rng(seed)
    low, high = (-1, experts + 1) if unrouted else (0, experts)

    def normal(*dims: int) -> np.ndarray:
        # Rounded to bfloat16, so that narrower dtypes start from the same numbers.
        return (rng.normal(size=dims) / np.sqrt(dims[-2])).astype(jnp.bfloat16).astype(np.float64)

    return Problem(
        experts=rng.integers(low, high, size=(tokens, k)),
        num_experts=experts,
        tokens=normal(tokens, width) * np.sqrt(tokens),
        slots=normal(tokens, k, width) * np.sqrt(k),
        weights=normal(experts, width, hidden),
        down=normal(experts, hidden, width),
        gate_weights=normal(experts, width, hidden),
        bias=normal(experts, hidden),
        gates=np.abs(normal(tokens, k)) + 0.25,
        slot_cotangent=normal(tokens, k, hidden),
        token_cotangent=normal(tokens, hidden),
        feed_forward_cotangent=normal(tokens, width),
    )


def matmul_oracle(p: Problem, rows: np.ndarray, slot_cotangent: np.ndarray) -> dict:
    """Slot by slot in float64: outputs [T, K, F], and gradients for a cotangent [T, K, F]."""
    outputs = np.zeros((*p.experts.shape, p.weights.shape[2]))
    drows = np.zeros_like(rows)
    dweights, dbias = np.zeros_like(p.weights), np.zeros_like(p.bias)
    for t, k in np.ndindex(p.experts.shape):
        e = p.experts[t, k]
        if 0 <= e < p.num_experts:
            outputs[t, k] = rows[t, k] @ p.weights[e] + p.bias[e]
            drows[t, k] = p.weights[e] @ slot_cotangent[t, k]
            dweights[e] += np.outer(rows[t, k], slot_cotangent[t, k])
            dbias[e] += slot_cotangent[t, k]
    return {"outputs": outputs, "inputs": drows, "weights": dweights, "bias": dbias}


def numpy_activation(name: str, x: np.ndarray) -> np.ndarray:
    """Analytic in x, so that a complex step gives its derivative."""
    if name == "silu":
        return x / (1 + np.exp(-x))
    assert name == "gelu_tanh"
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def feed_forward_oracle(p: Problem, activation: str, gated: bool) -> dict[str, np.ndarray]:
    """Slot by slot in float64: outputs [T, D] and the gradients."""
    step = 1e-30
    outputs = np.zeros_like(p.tokens)
    grads = {
        name: np.zeros_like(getattr(p, name))
        for name in ("tokens", "weights", "down", "gates", "gate_weights")
    }
    for t, k in np.ndindex(p.experts.shape):
        e = p.experts[t, k]
        if not 0 <= e < p.num_experts:
            continue
        x, gate, dy = p.tokens[t], p.gates[t, k], p.feed_forward_cotangent[t]
        up = x @ p.weights[e]
        inner = x @ p.gate_weights[e] if gated else up
        active = numpy_activation(activation, inner)
        slope = numpy_activation(activation, inner + 1j * step).imag / step
        hidden = active * up if gated else active
        outputs[t] += gate * (hidden @ p.down[e])
        grads["gates"][t, k] = dy @ (hidden @ p.down[e])
        grads["down"][e] += gate * np.outer(hidden, dy)
        dhidden = gate * (p.down[e] @ dy)
        dinner = dhidden * slope * (up if gated else 1)
        dup = dhidden * active if gated else dinner
        grads["weights"][e] += np.outer(x, dup)
        grads["tokens"][t] += p.weights[e] @ dup
        if gated:
            grads["gate_weights"][e] += np.outer(x, dinner)
            grads["tokens"][t] += p.gate_weights[e] @ dinner
    return {"outputs": outputs, **grads}


def assert_close(name: str, actual: jax.Array, expected: np.ndarray, tolerance: float) -> None:
    """Compares by norm, in numpy: the maximum of a large float32 array drops NaN on CPU."""
    measured = np.asarray(actual, np.float64)
    assert measured.shape == expected.shape, (name, measured.shape, expected.shape)
    assert np.isfinite(measured).all(), f"{name} is not finite"
    error = np.linalg.norm(measured - expected) / max(np.linalg.norm(expected), 1e-30)
    if not expected.any():
        assert not measured.any(), f"{name} should be exactly zero"
    else:
        assert error <= tolerance, f"{name}: relative error {error:.2e} above {tolerance:.0e}"


@functools.cache
def _compiled_matmul(contract: Any, input_layout: str, output_layout: str):
    def run(plan, inputs, weights, bias, gates, cotangent):
        def call(inputs, weights, bias, gates):
            return contract().grouped_matmul(
                inputs,
                weights,
                plan,
                input_layout=input_layout,
                output_layout=output_layout,
                bias=bias,
                gates=gates if output_layout == "tokens" else None,
            )

        outputs, pull = jax.vjp(call, inputs, weights, bias, gates)
        return outputs, pull(cotangent)

    return jax.jit(run)


@functools.cache
def _compiled_feed_forward(contract: Any, activation: str, gated: bool):
    def run(plan, cotangent, *arguments):
        def call(tokens, up, down, gates, gate_weights):
            return contract().grouped_feed_forward(
                tokens,
                up,
                down,
                plan,
                gates,
                gate_weights=gate_weights if gated else None,
                activation=activation,
            )

        outputs, pull = jax.vjp(call, *arguments)
        return outputs, pull(cotangent)

    return jax.jit(run)


class GroupedMatmulContract:
    """Subclass it, name it `Test...`, and set `implementation`."""

    implementation: str

    def grouped_matmul(self, *args, **kwargs) -> jax.Array:
        return op.grouped_matmul(*args, implementation=self.implementation, **kwargs)

    def grouped_feed_forward(self, *args, **kwargs) -> jax.Array:
        return op.grouped_feed_forward(*args, implementation=self.implementation, **kwargs)

    # ------------------------------------------------------------------------------- helpers

    def _contract(self) -> Any:
        """Key of compiled functions: the implementation, however it is patched in."""
        return type(self)

    def matmul_results(self, p, input_layout, output_layout, dtype=np.float32) -> dict:
        """Outputs and gradients, in slot order where rows belong to slots."""
        plan = p.plan
        by_token = output_layout == "tokens"
        cotangent = p.token_cotangent if by_token else p.slot_cotangent
        if output_layout == "grouped":
            cotangent = cotangent.reshape(plan.num_slots, -1)[np.asarray(plan.order)]
        arguments = (p.inputs(input_layout), p.weights, p.bias, p.gates, cotangent)
        run = _compiled_matmul(self._contract(), input_layout, output_layout)
        outputs, grads = run(plan, *(a.astype(dtype) for a in arguments))
        assert outputs.dtype == dtype
        assert all(g.dtype == dtype for g in grads)
        dinputs, dweights, dbias, dgates = grads
        if output_layout == "grouped":
            outputs = np.asarray(outputs)[plan.inverse].reshape(p.slot_cotangent.shape)
        if input_layout == "grouped":
            dinputs = np.asarray(dinputs)[plan.inverse].reshape(p.slots.shape)
        results = {"outputs": outputs, "inputs": dinputs, "weights": dweights, "bias": dbias}
        return {**results, "gates": dgates} if by_token else results

    def feed_forward_results(self, p, activation, gated, dtype=np.float32) -> dict:
        """Outputs and gradients."""
        names = ("tokens", "weights", "down", "gates", "gate_weights")
        arguments = [getattr(p, name) for name in ("feed_forward_cotangent", *names)]
        run = _compiled_feed_forward(self._contract(), activation, gated)
        outputs, grads = run(p.plan, *(a.astype(dtype) for a in arguments))
        assert outputs.dtype == dtype
        assert all(g.dtype == dtype for g in grads)
        return {"outputs": outputs, **dict(zip(names, grads, strict=True))}

    def matmul_expected(self, p, input_layout, output_layout) -> dict:
        if input_layout == "tokens":
            rows = np.broadcast_to(p.tokens[:, None], p.slots.shape).copy()
        else:
            rows = p.slots
        cotangent = p.slot_cotangent
        if output_layout == "tokens":
            cotangent = p.gates[:, :, None] * p.token_cotangent[:, None]
        expected = matmul_oracle(p, rows, cotangent)
        if output_layout == "tokens":
            slots = expected["outputs"]
            expected["outputs"] = np.sum(slots * p.gates[:, :, None], axis=1)
            expected["gates"] = np.einsum("tkf,tf->tk", slots, p.token_cotangent)
        if input_layout == "tokens":
            expected["inputs"] = expected["inputs"].sum(axis=1)
        return expected

    # --------------------------------------------------------------------- values and gradients

    @sweep(
        ("input_layout", "output_layout"),
        itertools.product(INPUT_LAYOUTS, OUTPUT_LAYOUTS),
        [("tokens", "slots"), ("slots", "tokens"), ("grouped", "grouped")],
    )
    def test_every_layout_pair_matches_the_oracle(self, input_layout, output_layout):
        p = problem()
        results = self.matmul_results(p, input_layout, output_layout)
        for name, expected in self.matmul_expected(p, input_layout, output_layout).items():
            assert_close(name, results[name], expected, 1e-6)

    @sweep("shape", SHAPES, [STANDARD, ONE_OF_EACH], ids=str)
    def test_every_shape_matches_the_oracle(self, shape):
        p = problem(shape, seed=1)
        results = self.matmul_results(p, "tokens", "tokens")
        for name, expected in self.matmul_expected(p, "tokens", "tokens").items():
            assert_close(name, results[name], expected, 2e-6)

    @sweep(
        ("shape", "activation", "gated"),
        [
            (STANDARD, "gelu_tanh", False),
            (STANDARD, "silu", True),
            (MANY_ROWS, "silu", True),
            (ONE_EXPERT, "gelu_tanh", False),
            (MANY_EXPERTS, "silu", True),
        ],
        [(STANDARD, "gelu_tanh", False), (STANDARD, "silu", True)],
        ids=str,
    )
    def test_feed_forward_matches_the_oracle(self, shape, activation, gated):
        p = problem(shape, seed=2)
        results = self.feed_forward_results(p, activation, gated)
        for name, expected in feed_forward_oracle(p, activation, gated).items():
            assert_close(name, results[name], expected, 5e-6)

    def test_feed_forward_is_its_two_matmuls_for_any_activation(self):
        p = problem((21, 2, 3, 6, 10), seed=3)

        def apart(plan, x, up, down, gates):
            hidden = jnp.sin(self.grouped_matmul(x, up, plan, output_layout="slots"))
            return self.grouped_matmul(
                hidden, down, plan, input_layout="slots", output_layout="tokens", gates=gates
            )

        def fused(plan, x, up, down, gates):
            return self.grouped_feed_forward(x, up, down, plan, gates, activation=jnp.sin)

        def gradients(function):
            def loss(*arguments):
                return jnp.sum(jnp.cos(function(*arguments)))

            arguments = (p.tokens, p.weights, p.down, p.gates)
            run = jax.jit(jax.grad(loss, argnums=(1, 2, 3, 4)))
            return run(p.plan, *(a.astype(np.float32) for a in arguments))

        for a, b in zip(gradients(fused), gradients(apart), strict=True):
            assert_close("gradient", a, np.asarray(b, np.float64), 5e-6)

    def test_bfloat16_is_accumulated_in_float32(self):
        plan = _routing_plan(np.zeros((3, 1), np.int32), 2)
        ones = jnp.ones((3, 4096), jnp.bfloat16)
        weights = jnp.ones((2, 4096, 5), jnp.bfloat16)
        outputs = self.grouped_matmul(ones, weights, plan)
        # A bfloat16 sum of ones stops at 256.
        np.testing.assert_array_equal(np.asarray(outputs, np.float32), 4096)
        assert outputs.dtype == jnp.bfloat16
        wide = self.grouped_matmul(ones, weights, plan, preferred_element_type=jnp.float32)
        assert wide.dtype == jnp.float32

    def test_bfloat16_matches_the_oracle(self):
        p = problem(seed=4)
        results = self.matmul_results(p, "tokens", "tokens", jnp.bfloat16)
        for name, expected in self.matmul_expected(p, "tokens", "tokens").items():
            assert_close(name, results[name], expected, 1e-2)
        results = self.feed_forward_results(p, "silu", True, jnp.bfloat16)
        for name, expected in feed_forward_oracle(p, "silu", True).items():
            assert_close(name, results[name], expected, 2e-2)

    # ------------------------------------------------------------------------- loads of experts

    def test_experts_can_be_permuted(self):
        p = problem(seed=5)
        permutation = np.array([3, 0, 4, 1, 2])
        moved = dataclasses.replace(
            p,
            # Expert permutation[e] moves to place e.
            experts=np.where(
                (p.experts >= 0) & (p.experts < 5),
                np.argsort(permutation)[np.clip(p.experts, 0, 4)],
                p.experts,
            ),
            weights=p.weights[permutation],
            down=p.down[permutation],
            gate_weights=p.gate_weights[permutation],
            bias=p.bias[permutation],
        )
        for run in (
            lambda p: self.matmul_results(p, "tokens", "tokens"),
            lambda p: self.feed_forward_results(p, "silu", True),
        ):
            before, after = run(p), run(moved)
            for name, value in before.items():
                expected = np.asarray(value, np.float64)
                if name in ("weights", "down", "gate_weights", "bias"):
                    expected = expected[permutation]
                assert_close(name, after[name], expected, 1e-6)

    def test_experts_without_tokens_get_exactly_zero_gradients(self):
        p = problem(seed=6)
        p = dataclasses.replace(p, experts=np.where(p.experts % 2 == 0, p.experts, 4))
        results = self.matmul_results(p, "tokens", "tokens")
        feed_forward = self.feed_forward_results(p, "gelu_tanh", False)
        for gradient in (results["weights"], results["bias"], feed_forward["down"]):
            empty = np.asarray(gradient, np.float64)[1::2]
            np.testing.assert_array_equal(empty, 0)
            assert np.asarray(gradient, np.float64)[::2].any()

    def test_one_expert_takes_all(self):
        # 258 rows where the mean is 16: more than one of the tallest tiles.
        p = problem(MANY_ROWS, seed=7)
        p = dataclasses.replace(p, experts=np.full_like(p.experts, 2))
        results = self.matmul_results(p, "tokens", "tokens")
        for name, expected in self.matmul_expected(p, "tokens", "tokens").items():
            assert_close(name, results[name], expected, 2e-6)
        results = self.feed_forward_results(p, "silu", True)
        for name, expected in feed_forward_oracle(p, "silu", True).items():
            assert_close(name, results[name], expected, 5e-6)

    def test_no_slot_has_an_expert(self):
        p = problem(seed=8)
        p = dataclasses.replace(p, experts=np.where(p.experts % 2 == 0, -7, 2**30))
        results = self.matmul_results(p, "tokens", "tokens")
        results |= {"ff " + k: v for k, v in self.feed_forward_results(p, "silu", True).items()}
        for name, value in results.items():
            np.testing.assert_array_equal(np.asarray(value, np.float64), 0, err_msg=name)

    @pytest.mark.parametrize("poison", [np.nan, np.inf])
    def test_poisoned_rows_stay_where_they_are(self, poison):
        """Rows without an expert, and rows of other experts, may hold anything."""
        p = problem(seed=9, unrouted=False)
        experts = np.where(p.experts == 1, 0, p.experts)
        experts[::5] = 1  # these tokens go to expert 1 only,
        experts[::7] = -1, 99, 5  # and these nowhere
        tokens, slots = p.tokens.copy(), p.slots.copy()
        touched = (experts == 1).any(axis=1)
        lost = experts[:, 0] < 0
        tokens[touched | lost] = poison
        slots[touched | lost] = poison
        p = dataclasses.replace(p, experts=experts, tokens=tokens, slots=slots)
        healthy = [0, 2, 3, 4]
        for layout in INPUT_LAYOUTS:
            results = self.matmul_results(p, layout, "tokens")
            results |= {
                "ff " + k: v for k, v in self.feed_forward_results(p, "gelu_tanh", False).items()
            }
            for name, value in results.items():
                array = np.asarray(value, np.float64)
                if "bias" in name or "weights" in name or "down" in name:
                    assert np.isfinite(array[healthy]).all(), name
                else:
                    assert np.isfinite(array[~touched]).all(), name
                    np.testing.assert_array_equal(array[lost], 0, err_msg=name)

    # ------------------------------------------------------------------------------ composition

    def test_the_same_arguments_give_the_same_bits(self):
        p = problem(MANY_ROWS, seed=10)
        runs = [self.feed_forward_results(p, "silu", True) for _ in range(2)]
        runs = [r | self.matmul_results(p, "tokens", "tokens") for r in runs]
        for name, value in runs[0].items():
            np.testing.assert_array_equal(value, runs[1][name], err_msg=name)

    def layers(self):
        """Two layers of each product: one layer, what is scanned, and the arguments."""
        layers, tokens, k, experts, width = 2, 19, 2, 4, 8
        rng = np.random.default_rng(11)
        chosen = jnp.asarray(rng.integers(0, experts, (layers, tokens, k)), jnp.int32)
        up = jnp.asarray(rng.normal(size=(layers, experts, width, width)) / 3, jnp.float32)
        gates = jnp.asarray(rng.uniform(size=(layers, tokens, k)), jnp.float32)
        x = jnp.asarray(rng.normal(size=(tokens, width)), jnp.float32)

        def layer(x, parameters):
            chosen, up, gates = parameters
            plan = op.routing_plan(chosen, experts)
            q = self.grouped_matmul(x, up, plan, output_layout="slots")
            x = x + self.grouped_matmul(
                jnp.tanh(q), up, plan, input_layout="slots", output_layout="tokens", gates=gates
            )
            x = x + self.grouped_feed_forward(x, up, jnp.swapaxes(up, 1, 2), plan, gates)
            return x, None

        return layer, chosen, (x, up, gates)

    def gradients_of_a_scan(self, body, chosen):
        def scanned(x, up, gates):
            return jnp.sum(jnp.sin(jax.lax.scan(body, x, (chosen, up, gates))[0]))

        return jax.jit(jax.grad(scanned, argnums=(0, 1, 2)))

    def gradients_of_a_loop(self, layer, chosen):
        @jax.jit  # of one layer: a loop that is unrolled takes as many times as long to compile
        def differentiated(cotangent, x, chosen, *parameters):
            outputs, pull = jax.vjp(lambda x, *rest: layer(x, (chosen, *rest))[0], x, *parameters)
            return outputs, pull(cotangent)

        def run(x, *parameters):
            inputs = [x]
            layers = list(zip(chosen, *parameters, strict=True))
            for own in layers:
                outputs, _ = differentiated(jnp.zeros_like(x), inputs[-1], *own)
                inputs.append(outputs)
            cotangent = jnp.cos(inputs.pop())
            gradients: list[Any] = []
            for own in reversed(layers):
                _, (cotangent, *of_own) = differentiated(cotangent, inputs.pop(), *own)
                gradients.insert(0, of_own)
            return cotangent, *(np.stack(each) for each in zip(*gradients, strict=True))

        return run

    @pytest.mark.parametrize(
        "wrap",
        [
            pytest.param(lambda layer: layer, marks=pytest.mark.verify, id=""),
            pytest.param(jax.checkpoint, id="remat"),
        ],
    )
    def test_it_composes_with_scan_over_layers(self, wrap):
        layer, chosen, arguments = self.layers()
        expected = self.gradients_of_a_loop(layer, chosen)(*arguments)
        actual = self.gradients_of_a_scan(wrap(layer), chosen)(*arguments)
        for a, b in zip(actual, expected, strict=True):
            assert_close("gradient", a, np.asarray(b, np.float64), 1e-5)

    @sweep("operation", ["grouped_matmul", "grouped_feed_forward"], ["grouped_feed_forward"])
    def test_it_composes_with_vmap(self, operation):
        rng = np.random.default_rng(12)
        chosen = jnp.asarray(rng.integers(0, 3, (4, 11, 2)), jnp.int32)
        x = jnp.asarray(rng.normal(size=(4, 11, 6)), jnp.float32)
        up = jnp.asarray(rng.normal(size=(3, 6, 5)), jnp.float32)
        gates = jnp.asarray(rng.uniform(size=(4, 11, 2)), jnp.float32)

        def loss(x, chosen, gates, up):
            plan = op.routing_plan(chosen, 3)
            if operation == "grouped_matmul":
                y = self.grouped_matmul(x, up, plan, output_layout="tokens", gates=gates)
            else:
                y = self.grouped_feed_forward(x, up, jnp.swapaxes(up, 1, 2), plan, gates)
            return jnp.sum(jnp.sin(y))

        grad = jax.grad(loss, argnums=(0, 2, 3))
        alone = jax.jit(grad)
        together = jax.vmap(grad, in_axes=(0, 0, 0, None))
        batched = jax.jit(together)(x, chosen, gates, up)
        for i in range(4):
            for a, b in zip(batched, alone(x[i], chosen[i], gates[i], up), strict=True):
                assert_close("gradient", a[i], np.asarray(b, np.float64), 1e-5)
