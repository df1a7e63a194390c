"""Routing a sublayer's tokens to its experts."""

from __future__ import annotations

from jaxtyping import Array, Float

from modbrick.layers.context import Context
from modbrick.layers.router import Router, Routing
from modbrick.parallel.dispatch import Dispatch, make_dispatch


def routed(
    router: Router, x: Float[Array, "B S D"], sublayer: str, context: Context
) -> tuple[Routing, Dispatch]:
    """Routes every token of `x`, and leaves the router's statistics in the context.

    Args:
      router: of the sublayer.
      x: the sublayer's input.
      sublayer: `attention` or `feed_forward`.
      context: of the layer.

    Returns:
      Which experts each token goes to, and what brings it there and back.
    """
    routing, statistics = router(x, sublayer, context)
    dispatch = make_dispatch(routing.indices, routing.gates, router.config.count, context.execution)
    context.statistics[sublayer] = statistics.with_dropped(dispatch.dropped)
    if "routing" in context.capture:
        context.captured.setdefault("routing", {})[sublayer] = routing
    return routing, dispatch
