"""Customized bricks and how they are attached to a model.

Examples:
    >>> import functools
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import modbrick
    >>> model = modbrick.load_model("run")
    >>> def lora(key, site):
    ...     return modbrick.bricks.LoRA.initial(key, site.input_width, site.output_width, rank=2)
    >>> plugged = modbrick.bricks.attach(
    ...     model.config, {"layer.*.attention.query": lora}, key=jax.random.key(0)
    ... )
    >>> tokens = jnp.asarray([[1, 2, 3]])
    >>> bool((model(tokens, bricks=plugged).logits == model(tokens).logits).all())  # new: no change
    True
"""

from modbrick.bricks.attachment import attach
from modbrick.bricks.lora import LoRA

__all__ = ["LoRA", "attach"]
