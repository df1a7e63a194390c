"""Banks of experts: weights `[experts, out, in]` of a module, which `target_parameters` name.

Their LoRA has the pairs of all E experts in two matrices: `lora_A` `[E rank, in]`, expert after
expert, and `lora_B` `[out, rank E]`, whose columns go through the experts for each rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Float

from modbrick.bricks.kinds.lora import LoRA
from modbrick.config import ModelConfig
from modbrick.convert.format import Format
from modbrick.convert.peft.module import Module, Share
from modbrick.convert.peft.piece import Piece

PATHS: Mapping[str, str] = {
    "granitemoe": "block_sparse_moe.experts",
    "mixtral": "mlp.experts",
    "olmoe": "mlp.experts",
    "qwen3_moe": "mlp.experts",
}
"""Where a layer of a family has its experts while it runs; in files they may lie elsewhere."""

PARAMETERS = {"gate_up_proj": ("gate", "up"), "down_proj": ("down",)}
"""Weights of the experts, in the order of the module, and which sites they are."""

_OBSTACLE = "a bank of experts, which only target_parameters can name"


def family_banks(form: Format, model: ModelConfig) -> dict[str, Module]:
    """Lists the weights of banks of experts in a family, by name."""
    banks = {}
    for _, first_layer, segment in model.placed_segments():
        feed_forward = segment.layer.feed_forward
        if form.name not in PATHS or feed_forward.experts is None:
            continue
        for layer in range(first_layer, first_layer + segment.repeats):
            for parameter, sites in PARAMETERS.items():
                name = f"model.layers.{layer}.{PATHS[form.name]}.{parameter}"
                widths = model.width, feed_forward.hidden
                inwards, outwards = widths if "up" in sites else widths[::-1]
                shares = tuple(
                    Share(f"layer.{layer}.feed_forward.{site}", i * outwards, (i + 1) * outwards)
                    for i, site in enumerate(sites)
                )
                stop, experts = shares[-1].stop, feed_forward.experts.count
                banks[name] = Module(
                    name, "bank", inwards, stop, shares, obstacle=_OBSTACLE, experts=experts
                )
    return banks


def prefixes(chosen: list[Module]) -> dict[str, str]:
    """Returns what the names of the tensors of each bank begin with, by its own.

    The library wraps the module once for each of its weights: the last of them lies outermost.
    """
    names = [bank.name for bank in chosen]
    return {
        name: (path := name.rpartition(".")[0])
        + ".base_layer" * sum(f"{path}.{later}" in names for later in _behind(name))
        for name in names
    }


def bank_pieces(
    bank: Module, settings: LoRA, down: np.ndarray, up: np.ndarray, name: str
) -> Iterator[Piece]:
    """Yields a LoRA with a pair for each expert, for each site of a bank.

    Args:
      bank: where it is.
      settings: of the brick.
      down: `[E rank, in]`.
      up: `[out, rank E]`.
      name: of the brick.
    """
    down = down.reshape(bank.experts, -1, bank.input_width).swapaxes(1, 2)
    up = up.reshape(bank.output_width, -1, bank.experts).transpose(2, 1, 0)
    for share in bank.shares:
        leaves = {"down": down, "up": up[..., share.start : share.stop]}
        yield Piece(share.address, settings, leaves, name)


def flattened(
    down: Float[np.ndarray, "E I R"], up: Float[np.ndarray, "E R O"]
) -> tuple[Float[np.ndarray, "ER I"], Float[np.ndarray, "O RE"]]:
    """Returns both matrices as they are stored."""
    return (
        down.swapaxes(1, 2).reshape(-1, down.shape[1]),
        up.transpose(2, 1, 0).reshape(up.shape[2], -1),
    )


def _behind(name: str) -> list[str]:
    """Returns the weights that come behind one in its module."""
    order = list(PARAMETERS)
    return order[order.index(name.rpartition(".")[2]) + 1 :]
