"""Adapters of the PEFT library as bricks, and back: the same numbers, nothing left aside.

A directory of PEFT holds `adapter_config.json` and `adapter_model.safetensors`, whose tensors are
named after the modules of the base as the transformers library has them. Which site of a model a
module is follows from the rows of the family (`modbrick/convert/families`).

Examples:
    >>> import jax
    >>> import modbrick
    >>> from modbrick.bricks import Brick, BrickConfig, LoRA, initial_bricks
    >>> from modbrick.convert.peft import read_adapter, write_adapter
    >>> model = modbrick.open_checkpoint("their_llama").model
    >>> config = BrickConfig(("layer.*.attention.query",), LoRA(rank=2, alpha=4.0))
    >>> values = initial_bricks(model, {"german": config}, jax.random.key(0))
    >>> brick = Brick.of_parameters("german", config, model, values)
    >>> write_adapter("german_peft", {"german": brick}, model, "llama")
    >>> read_adapter("german_peft", model, name="german")["german"].config == config
    True
"""

from __future__ import annotations

from modbrick.convert.peft.reading import read_adapter
from modbrick.convert.peft.writing import write_adapter

__all__ = ["read_adapter", "write_adapter"]
