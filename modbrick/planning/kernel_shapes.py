"""Shapes that our kernels meet in a run; rates are measured at them and looked up by them."""

from __future__ import annotations

from modbrick.training.run_config import RunConfig


def kernel_shapes(config: RunConfig) -> dict[str, dict[str, int]]:
    """Returns the sizes of each part of a layer that kernels compute on TPUs.

    The parts are those of `rate_programs`; a part that XLA computes is left out.
    """
    layer, execution = config.model.layers[0], config.execution
    attention, feed_forward = layer.attention, layer.feed_forward
    shapes = {}
    if execution.dispatch == "tpu" and feed_forward.experts is not None:
        shapes["feed_forward"] = {
            "width": config.model.width,
            "hidden": feed_forward.hidden,
            "experts": feed_forward.experts.count,
            "top_k": feed_forward.experts.top_k,
            "gated": int(feed_forward.gated),
        }
    if execution.dispatch == "tpu" and attention.experts is not None:
        shapes["projections"] = {
            "width": config.model.width,
            "query_width": attention.query_width,
            "experts": attention.experts.count,
            "top_k": attention.experts.top_k,
        }
    if execution.attention == "tpu" and attention.kind == "stickbreaking":
        slots = attention.experts.top_k if attention.experts else 1
        shapes["attention"] = {
            "heads": slots * attention.heads,
            "key_heads": attention.grouped_heads,
            "head_width": attention.head_width,
            "sequence": config.data.sequence_length,
        }
    return shapes
