"""Read corpora that are ranked already: cells as lists of tokens (`input_ids`) in Parquet or Arrow files.

A corpus is a folder as Hugging Face datasets saves it (`state.json`, `data-*.arrow`, Arrow IPC streams), a folder of
Parquet or Arrow files, or single files. They are read a few thousand cells at a time.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from data_shards.errors import DataError

TOKENS, LENGTH = "input_ids", "length"
_CELLS = 4096
_FILE_MAGIC = b"ARROW1"
#: A complete Arrow stream ends with these bytes.
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
# Nullable types: a column with missing values in some batches must have the same type in all batches.
_NULLABLE: dict[Any, Any] = {
    pa.bool_(): pd.BooleanDtype(),
    **{
        getattr(pa, name.lower())(): getattr(pd, f"{name}Dtype")()
        for name in ("Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64")
    },
    **dict.fromkeys([pa.string(), pa.large_string()], pd.StringDtype()),
}


@dataclass(frozen=True, eq=False)
class CorpusCells:
    """Some cells of a corpus.

    Attributes:
        file: the file that they are from.
        first_row: row of the first cell in that file.
        tokens: int64 (n_tokens,), cell after cell.
        indptr: int64 (n_cells + 1,), where each cell begins.
        obs: the requested annotation columns.
    """

    file: Path
    first_row: int
    tokens: npt.NDArray[np.int64]
    indptr: npt.NDArray[np.int64]
    obs: pd.DataFrame


class RankedCorpus:
    """The files of a corpus, in order, as one list of cells.

    Args:
        paths: folders and files.

    Attributes:
        files: the files with cells.
        rows: number of cells of each file.
        columns: names of the columns that can be annotations: all but tokens, lengths and nested ones.
        nested: names of the nested columns.

    Raises:
        DataError: there are no files, files cannot be read or do not belong together, or the token column is missing.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.files = tuple(file for path in paths for file in _find_files(path))
        schemas, rows = zip(*map(_look, self.files), strict=True)
        self.rows: tuple[int, ...] = rows
        schema = schemas[0]
        for file, other in zip(self.files, schemas, strict=True):
            _check_schema(file, other)
            if not other.equals(schema):
                raise DataError(
                    f"{file}: its columns ({_columns(other)}) are not those of {self.files[0]} ({_columns(schema)}): "
                    "import them as data sets of their own, with --add"
                )
        names = [name for name in schema.names if name not in (TOKENS, LENGTH)]
        self.columns = [name for name in names if not pa.types.is_nested(schema.field(name).type)]
        self.nested = [name for name in names if name not in self.columns]
        self._has_length = LENGTH in schema.names

    @property
    def n_cells(self) -> int:
        """Number of cells of all files."""
        return sum(self.rows)

    def cells(self, columns: Sequence[str]) -> Iterator[CorpusCells]:
        """Iterate over all cells, a few thousand at a time, with these annotation columns.

        Raises:
            DataError: a file is damaged, a token is missing, or a `length` is not the cell's number of tokens.
        """
        wanted = [TOKENS, *([LENGTH] if self._has_length else []), *columns]
        for file, rows in zip(self.files, self.rows, strict=True):
            done = 0
            with _readable(file):
                for batch in _batches(file, wanted):
                    for start in range(0, batch.num_rows, _CELLS):
                        part = batch.slice(start, _CELLS)
                        yield _cells(file, done, part, columns)
                        done += part.num_rows
            if done != rows:
                raise DataError(
                    f"{file}: had {rows:,} cells at first, and now {done:,}: do not change it during the import"
                )

    def column(self, name: str) -> Iterator[pd.Series]:
        """Iterate over one annotation column, a few thousand cells at a time.

        Raises:
            DataError: a file is damaged.
        """
        for file in self.files:
            with _readable(file):
                for batch in _batches(file, [name]):
                    yield _frame(batch, [name])[name]


def _find_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    if (path / "dataset_dict.json").exists():
        parts = sorted(state.parent.name for state in path.glob("*/state.json"))
        raise DataError(f"{path}: holds several data sets ({', '.join(parts)}): give one of these folders")
    state = path / "state.json"
    if state.exists():
        try:
            content = json.loads(state.read_text())
            files = [path / str(file["filename"]) for file in content["_data_files"]]
            chosen = content.get("_indices_data_files") or content.get("_indices_files")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{state}: cannot be read ({error}): save the data set again with save_to_disk") from error
        if chosen:
            raise DataError(
                f"{state}: its cells are a selection from its files: call flatten_indices() before save_to_disk"
            )
    else:
        files = sorted([*path.glob("*.parquet"), *path.glob("*.arrow")])
    if not files:
        raise DataError(f"{path}: no .parquet and no .arrow file in it: give the folder that has them")
    return files


def _look(file: Path) -> tuple[pa.Schema, int]:
    """Schema and number of cells of a file."""
    if not file.is_file():
        raise DataError(f"{file}: is missing: download the corpus again")
    with _readable(file):
        if file.suffix == ".parquet":
            with pq.ParquetFile(file) as parquet:
                return parquet.schema_arrow, parquet.metadata.num_rows
        with pa.memory_map(str(file)) as source:
            reader = _reader(file, source)
            return reader.schema, sum(batch.num_rows for batch in _each(reader))


def _reader(file: Path, source: Any) -> Any:
    """Open an Arrow file in either format, file or stream."""
    size = source.size()
    start = source.read(len(_FILE_MAGIC))
    source.seek(0)
    if start == _FILE_MAGIC:
        return pa.ipc.open_file(source)
    source.seek(max(0, size - len(_END_OF_STREAM)))
    end = source.read()
    source.seek(0)
    # Without this check, a stream that is cut off between two batches would only look shorter.
    if end != _END_OF_STREAM:
        raise DataError(f"{file}: is cut off, or not an Arrow file: the end marker is missing: download it again")
    return pa.ipc.open_stream(source)


def _each(reader: Any) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        return (reader.get_batch(number) for number in range(reader.num_record_batches))
    return iter(reader)


def _batches(file: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    if file.suffix == ".parquet":
        # A pre-buffer would load a whole row group, which can be the whole file; without it pieces are read.
        with pq.ParquetFile(file, pre_buffer=False, memory_map=True) as parquet:
            yield from parquet.iter_batches(batch_size=_CELLS, columns=columns, use_threads=False)
        return
    with pa.memory_map(str(file)) as source:
        for batch in _each(_reader(file, source)):
            yield batch.select(columns)


def _check_schema(file: Path, schema: pa.Schema) -> None:
    if TOKENS not in schema.names:
        raise DataError(
            f"{file}: no column {TOKENS!r} with the tokens of each cell: its columns are {_columns(schema)}"
        )
    kind = schema.field(TOKENS).type
    if not (_is_list(kind) and pa.types.is_integer(kind.value_type)):
        raise DataError(f"{file}: column {TOKENS!r} is of type {kind}: expected a list of whole numbers for each cell")


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema)


def _cells(file: Path, first_row: int, batch: pa.RecordBatch, columns: Sequence[str]) -> CorpusCells:
    batch.validate(full=True)  # damaged offsets could point anywhere in memory
    lists = batch.column(TOKENS)
    values = lists.flatten()  # of these rows only, without values under missing lists
    lengths = np.asarray(lists.value_lengths().fill_null(0), np.int64)
    indptr = np.concatenate([np.zeros(1, np.int64), lengths.cumsum()])
    if values.null_count:
        missing = int(np.argmax(np.asarray(values.is_null())))
        row = first_row + int(np.searchsorted(indptr, missing, side="right")) - 1
        raise DataError(f"{file}: row {row:,} has a missing token among its {TOKENS}: the file is damaged")
    if LENGTH in batch.schema.names:
        stated = batch.column(LENGTH).to_pandas().to_numpy(np.float64)
        wrong = stated != lengths  # a missing one is NaN, so wrong too
        if wrong.any():
            row = int(np.argmax(wrong))
            raise DataError(
                f"{file}: row {first_row + row:,} has {lengths[row]:,} {TOKENS}, but its {LENGTH!r} is "
                f"{stated[row]:g}: the file is damaged; if only that column is wrong, write the file without it"
            )
    return CorpusCells(file, first_row, np.asarray(values.cast(pa.int64())), indptr, _frame(batch, columns))


def _frame(batch: pa.RecordBatch, columns: Sequence[str]) -> pd.DataFrame:
    """Annotations of a batch, with types that do not depend on its values."""
    if not columns:
        return pd.DataFrame(index=range(batch.num_rows))
    arrays = [batch.column(name) for name in columns]
    plain = [array.dictionary_decode() if pa.types.is_dictionary(array.type) else array for array in arrays]
    frame: pd.DataFrame = pa.RecordBatch.from_arrays(plain, names=list(columns)).to_pandas(types_mapper=_NULLABLE.get)
    return frame


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turn what pyarrow raises for damaged files into DataError."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{file}: cannot be read ({str(error).splitlines()[0]}): cut off, damaged, or neither Parquet nor Arrow: "
            "download it again"
        ) from error
