"""Peers written for PyTorch, on the same device memory as jax's arrays, where they are installed.

They run outside of jax's programs: each call ends by waiting for the device.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def _tensors(arrays: Any, requires_grad: bool) -> Any:
    torch = importlib.import_module("torch")
    return [torch.from_dlpack(x).detach().requires_grad_(requires_grad) for x in arrays]


def _finish(tensors: Any) -> list[jax.Array]:
    importlib.import_module("torch").cuda.synchronize()
    return [jnp.from_dlpack(x.detach().contiguous()) for x in tensors]


def scattermoe(direction: str) -> Callable[..., Any]:
    """The feed-forward experts of ScatterMoE, from the plan that the other contenders use.

    The returned function raises ImportError if torch or scattermoe is not installed.
    """

    def run(inputs: Any, up: Any, down: Any, gates: Any, plan: Any, *gradient: Any) -> Any:
        torch = importlib.import_module("torch")
        linear = importlib.import_module("scattermoe.parallel_experts").parallel_linear
        backward = direction == "forward_backward"
        floats = _tensors((inputs, up, down, gates.astype(inputs.dtype)), backward)
        x, first, second, weights = floats
        order, experts, ends = _tensors(
            (plan.order, plan.expert_of_row, plan.group_offsets[1:]), False
        )
        sorting = experts.long(), order.long(), ends.long()
        hidden = linear(x, first, plan.experts_per_token, *sorting, grouped_out=True)
        hidden = torch.nn.functional.gelu(hidden, approximate="tanh")
        output = linear(hidden, second, 1, *sorting, gates=weights, grouped_in=True)
        if not backward:
            [result] = _finish([output])
            return result
        [upstream] = _tensors(gradient, False)
        gradients = torch.autograd.grad(output, floats, upstream)
        result, *pulled = _finish([output, *gradients])
        return result, tuple(pulled)

    return run


def triton_stickbreaking(direction: str) -> Callable[..., Any]:
    """The public Triton kernel of stick-breaking attention.

    The returned function raises ImportError if torch or stickbreaking_attention is not installed.
    """

    def run(query: Any, key: Any, value: Any, *gradient: Any) -> Any:
        torch = importlib.import_module("torch")
        attend = importlib.import_module("stickbreaking_attention.sb_attn").sb_attn
        backward = direction == "forward_backward"
        tensors = _tensors((query, key, value), backward)
        # The kernel has heads before positions.
        by_head = [x.transpose(1, 2).contiguous() for x in tensors]
        output, _ = attend(*by_head, inv_temp=1 / math.sqrt(query.shape[-1]))
        output = output.transpose(1, 2)
        if not backward:
            [result] = _finish([output])
            return result
        [upstream] = _tensors(gradient, False)
        result, *pulled = _finish([output, *torch.autograd.grad(output, tensors, upstream)])
        return result, tuple(pulled)

    return run
