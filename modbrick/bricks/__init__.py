"""Customized bricks: what they are, where they are attached, and plugging many into one model.

Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import modbrick
    >>> from modbrick.bricks import Adapter, BrickConfig, LoRA, initial_bricks, plugged
    >>> model = modbrick.load_model("run")
    >>> bricks = {
    ...     "german": BrickConfig(("layer.*.attention.query",), LoRA(rank=2)),
    ...     "legal": BrickConfig(("layer.*.feed_forward",), Adapter(hidden=4)),
    ... }
    >>> values = initial_bricks(model.config, bricks, jax.random.key(0))
    >>> plug = plugged(model.config, bricks, values)
    >>> tokens = jnp.asarray([[1, 2, 3], [1, 2, 3]])
    >>> out = model(tokens, bricks=plug, brick_ids=plug.ids(["german+legal", None]))
    >>> bool(jnp.allclose(out.logits, model(tokens).logits, atol=1e-5))  # new ones change nothing
    True
"""

from modbrick.bricks.brick import Brick
from modbrick.bricks.config import BrickConfig, Settings
from modbrick.bricks.difference import sparse_difference
from modbrick.bricks.kinds.adapter import Adapter
from modbrick.bricks.kinds.bias import Bias
from modbrick.bricks.kinds.dora import DoRA
from modbrick.bricks.kinds.emergent import Emergent
from modbrick.bricks.kinds.ia3 import IA3
from modbrick.bricks.kinds.knowledge import Knowledge
from modbrick.bricks.kinds.lora import LoRA
from modbrick.bricks.kinds.modality import Modality
from modbrick.bricks.kinds.norm import NormTuning
from modbrick.bricks.kinds.prefix import Prefix
from modbrick.bricks.kinds.prompt import Prompt
from modbrick.bricks.kinds.sparse import SparseDelta
from modbrick.bricks.plugging import Plugged, plugged
from modbrick.bricks.steering import steering_brick
from modbrick.bricks.table import initial_bricks
from modbrick.bricks.texts import document_brick, prompt_brick

__all__ = [
    "IA3",
    "Adapter",
    "Bias",
    "Brick",
    "BrickConfig",
    "DoRA",
    "Emergent",
    "Knowledge",
    "LoRA",
    "Modality",
    "NormTuning",
    "Plugged",
    "Prefix",
    "Prompt",
    "Settings",
    "SparseDelta",
    "document_brick",
    "initial_bricks",
    "plugged",
    "prompt_brick",
    "sparse_difference",
    "steering_brick",
]
