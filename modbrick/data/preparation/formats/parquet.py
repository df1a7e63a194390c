"""Texts of a column of a Parquet file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from modbrick.data.preparation.formats.streams import UnreadableError, unreadable
from modbrick.schema import nearest

if TYPE_CHECKING:
    import pyarrow


def rows_of_groups(path: str, field: str) -> list[int]:
    """Returns how many rows each row group of a file has.

    Args:
      path: of the file.
      field: the column with the text; `doc.text`: the field `text` of the column `doc`.

    Raises:
      UnreadableError: a damaged file, or one without a column of text of that name.
    """
    import pyarrow  # slow to import, and rarely needed
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check(_column(file.schema_arrow, field)[1], field)
            groups = range(file.metadata.num_row_groups)
            return [file.metadata.row_group(group).num_rows for group in groups]
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise unreadable(error) from None


def texts_of_group(path: str, field: str, group: int) -> Iterator[bytes | None]:
    """Yields what each row of a row group has for a text: UTF-8 (or not), or None.

    Raises:
      UnreadableError: a damaged file; rows before the damage have been yielded.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names, _ = _column(file.schema_arrow, field)
            batches = file.iter_batches(1024, row_groups=[group], columns=[field])
            for batch in batches:
                yield from _bytes_of(batch, names)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise unreadable(error) from None


def _bytes_of(batch: pyarrow.RecordBatch, names: list[str]) -> list[bytes | None]:
    import pyarrow
    import pyarrow.compute

    column: Any = batch.column(batch.schema.get_field_index(names[0]))
    if len(names) > 1:
        column = pyarrow.compute.struct_field(column, names[1:])
    if pyarrow.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    # As bytes, of which one that is no UTF-8 spoils no other.
    return column.cast(pyarrow.large_binary()).to_pylist()


def _column(schema: pyarrow.Schema, field: str) -> tuple[list[str], pyarrow.DataType]:
    """Returns the names that lead to a field, and its type."""
    for names in _readings(field):
        level: Any = schema
        for name in names:
            found = [f for f in level if f.name == name]
            if len(found) > 1:
                raise UnreadableError(f"{len(found)} columns are called {name!r} (--text_field)")
            if not found:
                break
            level = found[0].type if _is_struct(found[0].type) else []
        else:
            return names, found[0].type
    remark = nearest(field, set(schema.names))
    raise UnreadableError(f"no column {field!r}; {remark[:160]} (--text_field)")


def _readings(field: str) -> Iterator[list[str]]:
    """Yields the ways to take dots of a name for steps into a struct, none of them first."""
    yield [field]
    for at, letter in enumerate(field):
        if letter == ".":
            yield from ([field[:at], *rest] for rest in _readings(field[at + 1 :]))


def _is_struct(kind: pyarrow.DataType) -> bool:
    import pyarrow

    return pyarrow.types.is_struct(kind)


def _check(kind: pyarrow.DataType, field: str) -> None:
    from pyarrow import types

    values = kind.value_type if types.is_dictionary(kind) else kind
    texts = (
        types.is_string,
        types.is_large_string,
        types.is_string_view,
        types.is_binary,
        types.is_large_binary,
        types.is_binary_view,
    )
    if not any(is_text(values) for is_text in texts):
        within = f" (a field of it: --text_field={field}.NAME)" if types.is_struct(kind) else ""
        raise UnreadableError(
            f"column {field!r} holds {kind}, not text; choose another with --text_field{within}"
        )
