"""Modules of which an adapter has a copy: their difference from the base, and back.

A norm's is norm tuning. A linear map's in a layer is a sparse delta of density 1; of the embedding
and the head, whose weights have no sites, it is a LoRA of the model's width, one of whose matrices
is the identity.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from modbrick.bricks.kinds.bias import Bias
from modbrick.bricks.kinds.lora import LoRA
from modbrick.bricks.kinds.norm import NormTuning
from modbrick.bricks.kinds.sparse import SparseDelta
from modbrick.convert.peft.base import Base
from modbrick.convert.peft.module import Module
from modbrick.convert.peft.piece import Piece
from modbrick.errors import InputError

WEIGHT, BIAS = ".weight", ".bias"

At = Mapping[str, Sequence[Piece]]
"""What bricks have at a module, by address."""


def shapes(module: Module) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a module's tensors, by the end of their names."""
    bias = {BIAS: (module.output_width,)} if module.biased else {}
    return {WEIGHT: module.weight_shape} | bias


def difference(
    module: Module, copy: Mapping[str, np.ndarray], base: Base, name: str, *, norms: str
) -> Iterator[Piece]:
    """Yields what makes the base's module into a copy of it; nothing where both are the same.

    Args:
      module: where it is.
      copy: its tensors, by the end of their names.
      base: weights that it replaces.
      name: what the names of bricks begin with that say what they are.
      norms: name of norm tuning.
    """
    change = copy[WEIGHT] - base.tensor(module.name + WEIGHT)
    if module.kind == "norm":
        leaves = {"scale": change}
        if module.biased:
            leaves["bias"] = copy[BIAS] - base.tensor(module.name + BIAS)
        if any(leaf.any() for leaf in leaves.values()):
            yield Piece(module.shares[0].address, NormTuning(module.biased), leaves, norms)
        return
    if change.any():
        yield from _weight_difference(module, change, name)
    if module.biased:
        yield from bias_difference(module, copy[BIAS], base, f"{name}-bias")


def bias_difference(
    module: Module, bias: Float[np.ndarray, "O"], base: Base, name: str
) -> Iterator[Piece]:
    """Yields biases that make the base's bias of a linear map into another one."""
    change = bias - base.tensor(module.name + BIAS)
    for share in module.shares:
        part = change[share.start : share.stop] * np.float32(share.multiplier)
        if part.any():
            yield Piece(share.address, Bias(), {"bias": part}, name)


def _weight_difference(module: Module, change: np.ndarray, name: str) -> Iterator[Piece]:
    """Yields the difference of a linear map's or an embedding's weight."""
    address, multiplier = module.shares[0].address, np.float32(module.shares[0].multiplier)
    if module.outermost:
        down, up = (change, np.eye(change.shape[1], dtype=np.float32))
        if module.kind == "linear":
            down, up = np.eye(change.shape[1], dtype=np.float32), change.T
        leaves = {"down": down, "up": up * multiplier}
        yield Piece(address, LoRA(change.shape[1]), leaves, f"{name}-{address}")
        return
    for share in module.shares:
        values = change[share.start : share.stop].T.reshape(-1)
        leaves = {"values": values, "positions": np.arange(values.size, dtype=np.int32)}
        yield Piece(f"{share.address}{WEIGHT}", SparseDelta(1.0), leaves, f"{name}-weights")


def replaces(module: Module, at: At) -> bool:
    """Returns whether bricks make another module of one, of which PEFT can have a copy only."""
    return any(_of_whole(module, piece) for pieces in at.values() for piece in pieces)


def copied(module: Module, at: At, base: Base) -> dict[str, Float[np.ndarray, "..."]]:
    """Returns the tensors of a module with bricks, by the end of their names.

    Raises:
      InputError: a brick that cannot be part of it, by name.
    """
    tensors = {end: base.tensor(module.name + end) for end in shapes(module)}
    for share in module.shares:
        span = slice(share.start, share.stop)
        for piece in (*at.get(share.address, ()), *at.get(f"{share.address}{WEIGHT}", ())):
            bias = np.zeros(0, np.float32)
            match piece.settings:
                case NormTuning():
                    tensors[WEIGHT] = tensors[WEIGHT] + piece.leaves["scale"]
                    bias = piece.leaves.get("bias", bias)
                case Bias(strength):
                    bias = piece.leaves["bias"] * np.float32(strength / share.multiplier)
                case SparseDelta():
                    change = np.zeros((module.input_width, share.stop - share.start), np.float32)
                    np.add.at(change.reshape(-1), piece.leaves["positions"], piece.leaves["values"])
                    tensors[WEIGHT][span] += change.T
                case LoRA() as of if _of_whole(module, piece):
                    change = piece.leaves["down"] @ piece.leaves["up"]
                    change = change * np.float32(of.scale / share.multiplier)
                    tensors[WEIGHT] += change if module.kind == "embedding" else change.T
                case _:
                    raise InputError(
                        f"{module.name} is replaced as a whole, and brick {piece.brick} "
                        f"({piece.settings.kind}) changes it, too: PEFT has either"
                    )
            if BIAS in tensors and bias.size:
                tensors[BIAS][span] += bias
            elif bias.any():
                raise InputError(
                    f"brick {piece.brick} has a bias for {module.name}, which has none"
                )
    return tensors


def _of_whole(module: Module, piece: Piece) -> bool:
    match piece.settings:
        case NormTuning() | SparseDelta():
            return True
        case LoRA(rank) if module.outermost:
            embedding = module.kind == "embedding"
            one = module.shares[0].multiplier if embedding else 1.0
            matrix = piece.leaves["up" if embedding else "down"]
            identity = np.eye(rank, dtype=np.float32) * np.float32(one)
            return matrix.shape == (rank, rank) and np.array_equal(matrix, identity)
    return False
