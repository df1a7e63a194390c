"""A model on disk, of this library's checkpoints and of others' alike; its bricks with it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Int

from modbrick import checkpoints
from modbrick.bricks.brick import Brick
from modbrick.bricks.config import BrickConfig
from modbrick.bricks.functional import plugged_decoder
from modbrick.bricks.plugging import sets_of_domains
from modbrick.bricks.table import large_ranks
from modbrick.checkpoints.files import METADATA
from modbrick.checkpoints.leaves import Leaf, checksums
from modbrick.checkpoints.loading import Dtypes
from modbrick.checkpoints.metadata import model_fingerprint
from modbrick.checkpoints.workdir.directory import CHECKPOINTS, as_path, is_local
from modbrick.config import ModelConfig
from modbrick.convert import OpenedSource, open_checkpoint
from modbrick.convert.placing import read_onto_devices
from modbrick.convert.tokenizer import read_tokenizer
from modbrick.data import Tokenizer, TokenizerIdentity
from modbrick.decoder.decoder import Decoder
from modbrick.errors import InputError, listed
from modbrick.execution import ExecutionConfig
from modbrick.inference.continuation import checkpoint_tokenizer
from modbrick.library.check import read_fitting
from modbrick.models.changes import changes
from modbrick.models.finite import require_finite
from modbrick.schema import from_mapping, nearest

Shardings = jax.sharding.Sharding | Mapping[str, Any] | None
"""One for all, or by path; None: the first device."""


@dataclasses.dataclass(frozen=True)
class StoredModel:
    """A model on disk; its values are read when they are asked for.

    Attributes:
      config: the model.
      origin: where it lies and what it is, in words.
      paths: of its parameters.
      contents: the path of a checkpoint, or an opened foreign one.
      description: what the checkpoint says about itself; None: a foreign one.
      plugged: bricks that do not lie with it, by name.
      base_path: where the model of its bricks lies; None: where it lay.
      known_base: this model, if it was opened and is the one.
    """

    config: ModelConfig
    origin: str
    paths: tuple[str, ...]
    contents: epath.Path | OpenedSource
    description: checkpoints.Description | None = None
    plugged: Mapping[str, Brick] = dataclasses.field(default_factory=dict)
    base_path: epath.PathLike | None = None
    known_base: StoredModel | None = None

    def fingerprint(self) -> str:
        """Returns the fingerprint of its parameters; of a foreign checkpoint, reads them all.

        A model and its import have the same one.

        Raises:
          InputError: it is no model by itself, but bricks for one.
        """
        if self._held:
            raise InputError(f"{self.origin} holds bricks for a model: name the model")
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        if self.description is not None:
            return model_fingerprint(self.description.parameters)
        leaves = {}
        for path in self.paths:  # one after another: the whole model need not fit a device
            (value,) = self.read(paths=[path]).values()
            (checksum,) = checksums({path: value}).values()
            leaves[path] = Leaf(tuple(value.shape), str(value.dtype), checksum)
        return model_fingerprint(dict(sorted(leaves.items())))

    @property
    def bricks(self) -> Mapping[str, BrickConfig]:
        """Configs of the bricks that it has, by name, in the order in which they apply."""
        return {**self._held, **{name: brick.config for name, brick in self.plugged.items()}}

    @property
    def _held(self) -> Mapping[str, BrickConfig]:
        """Configs of the bricks that lie in it, and are all that does; empty: a model."""
        return self.description.metadata.bricks if self.description else {}

    def brick_sets(self, domains: Sequence[str]) -> Int[np.ndarray, "D K"] | None:
        """Returns ids of the bricks that documents of these domains used in training; None: all.

        Bricks that were plugged in from files apply to all documents.
        """
        sets = self.description.metadata.brick_sets if self.description else {}
        if not sets:
            return None
        named = {name: [*filter(None, [sets.get(name)]), *self.plugged] for name in domains}
        whole = {name: "+".join(found) for name, found in named.items() if found}
        return sets_of_domains(self.bricks, whole, domains)

    def with_bricks(
        self, files: Sequence[epath.PathLike], *, allow_base: str = "same"
    ) -> StoredModel:
        """Returns it with bricks from files plugged in behind those that it has.

        Raises:
          InputError: a brick does not fit (every mismatch is named), or two have one name.
        """
        if not files:
            return self
        base = self.base() if self._held else None
        taken = dict.fromkeys(self.bricks, self.origin)
        found = read_fitting(files, base or self, allow_base=allow_base, taken=taken)
        for line in large_ranks(self.config, {name: brick.config for name, brick in found.items()}):
            logging.warning("%s", line)
        return dataclasses.replace(self, plugged={**self.plugged, **found}, known_base=base)

    def alone(self) -> StoredModel:
        """Returns the model without bricks, of which those that lie with it name one elsewhere."""
        return self.base() if self._held else dataclasses.replace(self, plugged={})

    def base(self) -> StoredModel:
        """Opens the model that its bricks are for, where it was or at `base_path`.

        Raises:
          InputError: it is not there, or another one.
        """
        return self.known_base or self._base

    @functools.cached_property
    def _base(self) -> StoredModel:
        base = self.description.metadata.base if self.description else None
        assert base is not None, "bricks have a base"
        path = base.origin if self.base_path is None else self.base_path
        try:
            found = open_model(path)
        except InputError as error:
            raise InputError(
                f"the model of the bricks in {self.origin}: {error}; name it with base="
            ) from None
        if found.fingerprint() != base.fingerprint:
            raise InputError(f"{path} is not the model of the bricks in {self.origin}")
        return found

    @property
    def step(self) -> int | None:
        """Steps that it was trained for; None: a foreign checkpoint does not say."""
        return self.description.step if self.description else None

    def tokenizer_identity(self) -> TokenizerIdentity | None:
        """Returns what its tokenizer must be, if it says so; the tokenizer need not be there."""
        if isinstance(self.contents, OpenedSource):
            tokenizer = read_tokenizer(self.contents).tokenizer
            return tokenizer.identity if tokenizer else None
        stored = self.description.metadata.tokenizer if self.description else None
        return from_mapping(TokenizerIdentity, stored, "tokenizer") if stored else None

    def tokenizer(self) -> Tokenizer:
        """Loads the tokenizer that lies with it.

        Raises:
          InputError: there is none, or it is damaged.
        """
        if not isinstance(self.contents, OpenedSource):
            return checkpoint_tokenizer(self.contents)
        if (tokenizer := read_tokenizer(self.contents).with_logged_remarks().tokenizer) is None:
            raise InputError(f"{self.origin}, has no tokenizer: put its tokenizer.json beside it")
        return tokenizer

    def load(
        self,
        *,
        dtype: str | None = None,
        execution: ExecutionConfig = ExecutionConfig(),
        shardings: Shardings = None,
    ) -> Decoder:
        """Returns the model with its weights; arguments and errors as for `load_model`."""
        config = self.config if dtype is None else self.config.replace(dtype=dtype)
        decoder = plugged_decoder(config, self.bricks, execution)
        return decoder.bind(self.read_all(dtype=dtype, shardings=shardings))

    def read_all(
        self, *, dtype: str | None = None, shardings: Shardings = None
    ) -> dict[str, jax.Array]:
        """Returns all parameters by path: of the model and of its bricks.

        Args:
          dtype: of the model's parameters; None: as stored. Bricks stay as they are stored: they
            are small, and their products are made in float32.
          shardings: one for all, or by path; None: the first device.
        """
        if self._held:
            parameters = self.base().read(config=self.config, dtype=dtype, shardings=shardings)
            parameters |= self.read(shardings=shardings)
        else:
            parameters = self.read(dtype=dtype, shardings=shardings)
        for name, brick in self.plugged.items():
            for path, value in brick.parameters(name, self.config).items():
                sharding = shardings[path] if isinstance(shardings, Mapping) else shardings
                parameters[path] = jax.device_put(value, sharding)
        return parameters

    def read(
        self,
        *,
        config: ModelConfig | None = None,
        paths: Collection[str] | None = None,
        dtype: Dtypes = None,
        shardings: Shardings = None,
    ) -> dict[str, jax.Array]:
        """Returns parameters by path; arguments and errors as for `load_parameters`."""
        if unknown := sorted(set(paths or ()) - set(self.paths)):
            remark = nearest(unknown[0], self.paths)
            raise InputError(f"{self.origin} has no parameter {listed(unknown)}; {remark}")
        wanted = [path for path in self.paths if paths is None or path in paths]
        dtypes = dtype if isinstance(dtype, Mapping) else dict.fromkeys(wanted, dtype)
        if isinstance(self.contents, OpenedSource):
            if config is not None:
                self._require_same(config)
            return read_onto_devices(self.contents, wanted, dtypes, shardings)
        found = checkpoints.load_checkpoint(
            self.contents, config=config, paths=paths, dtype=dtypes, shardings=shardings
        )
        return require_finite(*found, self.origin)

    def changes(self, config: ModelConfig) -> list[str]:
        """Returns what a config computes otherwise than this model, though shapes may agree."""
        return changes(self.config, config)

    def _require_same(self, config: ModelConfig) -> None:
        if changed := self.changes(config):
            raise InputError(
                f"{self.origin} is another model than the config's: {listed(changed, '; ')} "
                "(modbrick.models.open_model(PATH).config is its config)"
            )


def open_model(
    path: epath.PathLike, step: int | None = None, *, base: epath.PathLike | None = None
) -> StoredModel:
    """Finds a model on disk and reads what it says about itself, no values.

    Foreign checkpoints (see `modbrick.convert`) are read in place, without a second copy on disk.

    Args:
      path: a run's or model's directory, its `checkpoints`, a single checkpoint, or a foreign
        checkpoint: a directory with `config.json` and weights, or a GGUF file.
      step: which checkpoint of a run; None: the newest complete one.
      base: where the model lies that a run trained bricks for; None: where it lay.

    Raises:
      InputError: there is no model, it is damaged, or of a format that is not read.
    """
    if not _is_foreign(as_path(path)):
        found = checkpoints.locate(path, step)  # once: a run may save another meanwhile
        description = checkpoints.describe(found)
        origin, paths = f"{path}, step {description.step}", tuple(description.parameters)
        model = description.metadata.model
        return StoredModel(model, origin, paths, found, description, base_path=base)
    if step is not None:
        raise InputError(f"{path} is a single checkpoint, without steps: ask for none")
    opened = open_checkpoint(path)
    origin = f"{path}, a checkpoint of the format {opened.form.name}"
    paths = tuple(info.path for info in opened.correspondence.parameters)
    return StoredModel(opened.model, origin, paths, opened)


def _is_foreign(path: epath.Path) -> bool:
    """Returns whether a path is a foreign checkpoint: a run's directory has a `config.json` too."""
    if not is_local(path) or (path / CHECKPOINTS).is_dir() or (path / METADATA).is_dir():
        return False
    return path.is_file() or (path / "config.json").is_file()
