"""Summary of a model: bricks, parameters in all and active for a token, memory."""

from __future__ import annotations

import dataclasses

from rich.table import Table

from modbrick.config import ModelConfig
from modbrick.decoder.functional import parameter_table
from modbrick.flops import forward_flops
from modbrick.parameters import ParameterInfo

# float32 parameter and gradient, and two moments
BYTES_PER_TRAINED_PARAMETER = 16


@dataclasses.dataclass(frozen=True)
class BrickGroup:
    """Equal bricks: their pattern, how many there are, how many serve one token, and their size.

    Attributes:
      pattern: that addresses them all.
      bricks: number of bricks.
      active: number of bricks that one token uses.
      parameters: of one brick.
    """

    pattern: str
    bricks: int
    active: int
    parameters: int


@dataclasses.dataclass(frozen=True)
class ModelSummary:
    """Bricks and totals of a model."""

    config: ModelConfig
    groups: tuple[BrickGroup, ...]

    @property
    def total(self) -> int:
        """Parameters in all."""
        return sum(g.bricks * g.parameters for g in self.groups)

    @property
    def active(self) -> int:
        """Parameters that one token uses, embedding and head included."""
        return sum(g.active * g.parameters for g in self.groups)

    def table(self) -> Table:
        """Returns a table for people, to be printed by rich."""
        flops = sum(forward_flops(self.config, (self.config.context + 1) / 2).values())
        table = Table(
            caption=(
                f"{self.total:,} parameters, {self.active:,} active for a token "
                f"({self.active / self.total:.0%}); {4 * self.total / 2**30:.2f} GiB in float32, "
                f"{BYTES_PER_TRAINED_PARAMETER * self.total / 2**30:.2f} GiB to train with AdamW "
                f"(parameters, gradients, moments); {flops / 1e6:,.1f} MFLOP a token forward "
                f"at context {self.config.context}"
            ),
            caption_justify="left",
        )
        table.add_column("bricks")
        for name in ("count", "active", "parameters each", "in all"):
            table.add_column(name, justify="right")
        for group in self.groups:
            each, every = group.parameters, group.bricks * group.parameters
            table.add_row(
                group.pattern, f"{group.bricks:,}", f"{group.active:,}", f"{each:,}", f"{every:,}"
            )
        return table


def summarise(config: ModelConfig) -> ModelSummary:
    """Counts a model's bricks and parameters without initialising any.

    Examples:
        >>> import modbrick
        >>> summary = modbrick.summarise(modbrick.load_model("run").config)
        >>> summary.active < summary.total  # a token uses some of the experts
        True
    """
    found: dict[tuple[str, int, int], int] = {}
    for info in parameter_table(config):
        bricks = 1
        for size in info.bank_shape:
            bricks *= size
        key = (_pattern(config, info), bricks, _active(config, info))
        found[key] = found.get(key, 0) + info.size // bricks
    groups = (BrickGroup(pattern, n, a, size) for (pattern, n, a), size in found.items())
    return ModelSummary(config, tuple(groups))


def _pattern(config: ModelConfig, info: ParameterInfo) -> str:
    parts = info.address().split(".")
    if parts[0] != "layer":
        return parts[0]
    if len(config.segments) > 1:
        last = info.first_layer + info.bank_shape[0] - 1
        parts[1] = f"{info.first_layer}-{last}" if last > info.first_layer else str(last)
    return ".".join(parts[:5] if "expert" in parts else parts[:4] if len(parts) > 4 else parts[:3])


def _active(config: ModelConfig, info: ParameterInfo) -> int:
    layers = info.bank_shape[0] if info.bank_shape else 1
    if "expert" not in info.axes:
        return layers
    sublayer = info.address().split(".")[2]
    experts = getattr(config.layers[info.first_layer], sublayer).experts
    return layers * experts.top_k
