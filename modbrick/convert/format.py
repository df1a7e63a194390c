"""Checkpoint formats: each a table of rows, and a translation of the config both ways.

A format is one file of `families/` (or `gguf/`) with one `Format` in it, listed in `registry.py`.
Everything else (reading, writing, streaming, sharding, comparing, refusing, progress) is shared and
follows from the table. To write one:

1. **Rows.** `outer` holds the rows outside of layers, `layer(config)` returns those of a layer
   (`in_every_layer(...)`, where all layers have the same).

       row("feed_forward.down.weight", "model.layers.{layer}.mlp.down_proj.weight", TRANSPOSED)

   says that our parameter (by its path in a layer, without `segments.N`; `parameter_table(model)`
   lists them) is that tensor, with the axes (out, in). The name has `{layer}`, the absolute index
   of the layer. With `{expert}` too, a bank `[E, in, out]` here is one tensor an expert there; a
   bank without it is one tensor `[E, ...]`.

       fused(("feed_forward.gate.weight", "feed_forward.up.weight"),
             "model.layers.{layer}.mlp.input_linear.weight", TRANSPOSED, axis=1)

   says that one tensor holds several of our parameters one after the other along *its* axis `axis`,
   in that order, each in that transform (gate and up; query, key and value). Transforms are in
   `transforms.py`; another one is a class with the same methods.

   Where the original also reads other files, a row says by what names they know the same tensor
   (`also=`), and `Format.other_layers` how they lay out a layer. Both are only read.

   *A row applies where the model has its parameters*: biases, query/key norms, routers and an
   untied head need no condition, they are simply listed. Only where one parameter has different
   names does `layer` look at the layer's config (dense or sparse, the kind of router).

   `correspondence.py` refuses a table that leaves a parameter out or names anything twice, so that
   the same rows serve import and export, each value exactly once.

2. **Config.** `read_config(config, where)` turns the parsed `config.json` (GGUF: the metadata) into
   a `Translation`: `ModelConfig` and the weights of the router losses. It raises `InputError`,
   beginning with `where`, for every setting that this library would compute otherwise, by name.
   `huggingface/` has what configs of the transformers library share: typed fields with the
   original's defaults, aliases, activations, refusals. Layers of different kinds are different
   segments.

   `write_config(translation)` returns the `config.json` of a model, without `model_type`,
   `architectures` and `torch_dtype`, which are added. It may be naive: whatever it writes is read
   back with `read_config`, and an export whose config does not read back as the same model is
   refused with the list of what differs. Where a field has no way to be written at all
   (`layer.attention.experts` of a dense format), leave it out. None: import only.

   An exported checkpoint that was imported from the same format and not changed since gets its
   original `config.json` back.

3. **Tests.** `tests/modbrick/convert/families/test_FORMAT.py` calls the contracts
   `tests/contracts/conversion.py` (rows cover everything once; import, export and import again are
   byte-equal; the config survives) and `transformers_family.py` (the import computes the same).

A container other than a directory (GGUF) is opened by a function that returns a `Source`
(`source.py`) whose tensors are `StoredTensor`s; `open_source` in `opening.py` calls it.

Tied heads need nothing: where `model.tied_head`, the rows of `embedding` and `head.weight` are
known as two names of one tensor; files may hold either or both, and both must be equal.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from modbrick.config import LayerConfig, ModelConfig
from modbrick.convert.transforms import SAME, Transform


@dataclasses.dataclass(frozen=True)
class Row:
    """Row of the table: one tensor of the original and our parameters in it; see `row`, `fused`.

    Attributes:
      paths: of the parameters, in the order in which the tensor holds them.
      name: of the tensor, with `{layer}` and `{expert}` where it has such indices.
      transform: of each part.
      axis: of the tensor, along which several parts follow each other.
      also: other names under which files may hold the tensor.
    """

    paths: tuple[str, ...]
    name: str
    transform: Transform = SAME
    axis: int = 0
    also: tuple[str, ...] = ()

    @property
    def by_expert(self) -> bool:
        """True if every expert has a tensor of its own."""
        return "{expert}" in self.name


def row(path: str, name: str, transform: Transform = SAME, *, also: tuple[str, ...] = ()) -> Row:
    """Returns the row of a tensor that holds one parameter."""
    return Row((path,), name, transform, also=also)


def fused(
    paths: tuple[str, ...],
    name: str,
    transform: Transform = SAME,
    *,
    axis: int,
    also: tuple[str, ...] = (),
) -> Row:
    """Returns the row of a tensor that holds several parameters along its axis `axis`."""
    return Row(paths, name, transform, axis, also)


def in_every_layer(*rows: Row) -> Callable[[LayerConfig], tuple[Row, ...]]:
    """Returns the `layer` of a `Format` whose layers all have the same rows."""
    return lambda layer: rows


@dataclasses.dataclass(frozen=True)
class Translation:
    """Meaning of a foreign config.

    Attributes:
      model: the model.
      objective: weights of the router losses that it was trained with, those that are not zero, by
        the names of `ObjectiveConfig`.
    """

    model: ModelConfig
    objective: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Format:
    """A checkpoint format; the module's docstring says how to write one.

    Attributes:
      name: of `--format`.
      model_type: by which a source is recognised: `model_type` of its `config.json`, or a GGUF's
        `general.architecture`.
      architecture: the class of the original, in `architectures` of `config.json`.
      outer: rows of parameters outside of layers.
      layer: returns the rows of a layer.
      read_config: translates a config; see the module's docstring.
      write_config: the inverse; None: the format is only read.
      other_layers: other tables of a layer, by which files are read that do not have the tensors of
        `layer`.
      base: what the names of all tensors but the head's begin with; files of the model without its
        head may leave it out.
      layers_key: the key of a config that counts layers. It is compared with the number of tensors
        before anything of such a size is made.
      ignored: matches the names of tensors that carry nothing (constant buffers) in files.
      container: what the source is: a directory of `config.json` and weights, or a GGUF file.
    """

    name: str
    model_type: str
    architecture: str
    outer: tuple[Row, ...]
    layer: Callable[[LayerConfig], tuple[Row, ...]]
    read_config: Callable[[Mapping[str, Any], str], Translation]
    write_config: Callable[[Translation], dict[str, Any]] | None
    other_layers: tuple[Callable[[LayerConfig], tuple[Row, ...]], ...] = ()
    base: str = ""
    layers_key: str = "num_hidden_layers"
    ignored: re.Pattern[str] | None = None
    container: Literal["directory", "gguf"] = "directory"
