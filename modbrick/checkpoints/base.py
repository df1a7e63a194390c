"""The frozen parameters of a run, stored once for all its checkpoints.

`WORKDIR/base/FINGERPRINT` is laid out like a checkpoint. Its name is a digest of every value in it:
a checkpoint finds the base that it was trained over, or none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from etils import epath

from modbrick.checkpoints import files
from modbrick.checkpoints.inventory import verify_inventory
from modbrick.checkpoints.leaves import Leaf, named_arrays, table_of
from modbrick.checkpoints.metadata import (
    BaseReference,
    DamagedError,
    Metadata,
    fingerprint,
    new_description,
)
from modbrick.checkpoints.parts import SplitParameters, others
from modbrick.checkpoints.workdir.directory import is_complete, remove, remove_unfinished
from modbrick.errors import InputError
from modbrick.parallel.processes import everywhere, gather, is_first

BASE = "base"


def base_path(checkpoint: epath.Path, name: str) -> epath.Path:
    """Returns where the base of a run's checkpoint lies."""
    return checkpoint.parent.parent / BASE / name


def require_base(checkpoint: epath.Path, split: BaseReference) -> None:
    """Checks that a checkpoint's base is there, and is the one that it was trained over.

    Raises:
      DamagedError: it is not.
    """
    path = base_path(checkpoint, split.base)
    if not path.exists():
        raise DamagedError(
            f"the frozen parameters that it was trained over are not in {path}: a copy of a "
            f"checkpoint needs its {BASE} too"
        )
    try:
        found = files.read_description(path).parameters
    except DamagedError as error:
        raise DamagedError(f"its {BASE} {path}: {error}") from error
    if fingerprint(found, split.parts) != split.base or found != split.frozen:
        raise DamagedError(f"{path} is not the {BASE} that it was trained over")


class BaseWriter:
    """Writes the bases of a run, each of them once.

    Args:
      directory: of the run.
    """

    def __init__(self, directory: epath.Path):
        self._root = directory / BASE
        self._cast: dict[str, tuple[str, Mapping[str, Leaf]]] = {}

    def remember(self, split: BaseReference, restored: SplitParameters) -> None:
        """Remembers which base the frozen arrays of a restored run are, cast though they may be.

        Args:
          split: of the checkpoint that was read.
          restored: what was read.
        """
        if restored.parts == dict(split.parts):
            frozen = named_arrays(restored.frozen, "frozen")
            held = fingerprint(table_of(frozen, others(split.parts)), split.parts)
            self._cast[held] = (split.base, split.frozen)

    def write(
        self,
        parameters: SplitParameters,
        metadata: Metadata,
        failed: Callable[[Exception], InputError],
    ) -> BaseReference | None:
        """Writes the frozen parameters, unless they are there; waits until they are complete.

        Every process makes this call, and all of them go on or none does. The whole is not joined.

        Args:
          parameters: of the run.
          metadata: of the run.
          failed: makes the error out of the one that writing raised.

        Returns:
          What is where; None: nothing is frozen.

        Raises:
          InputError: they cannot be written.
        """

        def together[T](make: Callable[[], T]) -> T:
            def guarded() -> T:
                try:
                    return make()
                except files.WRITING as error:
                    raise failed(error) from error

            return everywhere(guarded)

        def there(name: str, table: Mapping[str, Leaf]) -> bool:
            whole = together(lambda: is_first() and self._is_whole(self._root / name, table))
            return bool(gather(whole)[0])

        frozen = named_arrays(parameters.frozen, "frozen")
        if not frozen:
            return None
        parts = parameters.parts
        table: Mapping[str, Leaf] = table_of(frozen, others(parts))
        trainable = table_of(named_arrays(parameters.trainable, "trainable"), parts)
        name = fingerprint(table, parts)
        if name in self._cast and there(*self._cast[name]):
            return BaseReference(self._cast[name][0], trainable, self._cast[name][1], parts)
        if not there(name, table):
            about = dataclasses.replace(metadata, data={}, extra={})
            description = new_description(0, about, {}, table, None)
            arrays = {"parameters": frozen}
            try:
                finish = together(
                    lambda: files.start_writing(self._root / name, description, arrays)
                )
                together(finish)
            except BaseException:
                if is_first():
                    remove_unfinished(self._root / name)
                raise
        return BaseReference(name, trainable, table, parts)

    def _is_whole(self, path: epath.Path, table: Mapping[str, Leaf]) -> bool:
        """Returns whether a base is there and whole; else removes what there is."""
        self._root.mkdir(parents=True, exist_ok=True)
        try:
            if path.exists() and is_complete(path):
                verify_inventory(path, sizes_only=True)
                return files.read_description(path).parameters == table
        except DamagedError:
            pass  # of a start that was killed before its first checkpoint: written anew
        remove(path)
        return False

    def keep(self, names: set[str]) -> None:
        """Deletes all bases but these."""
        for path in self._root.iterdir() if self._root.is_dir() else ():
            if path.name not in names:
                remove(path)
