"""`obs.parquet`: the annotations of the cells of a data set, written a few thousand cells at a time."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

#: Columns added to those of the file: the cell's row in the file, and its name.
SOURCE_ROW, CELL_ID = "source_row", "cell_id"
_BATCH = 1 << 16


def obs_table(obs: pd.DataFrame, source_rows: npt.NDArray[np.int64]) -> pa.Table:
    """Convert annotations to the form stored in `obs.parquet`; the schema does not depend on the values.

    Args:
        obs: annotations, indexed by the names of the cells; columns with the names of the added ones are replaced.
        source_rows: int64 (n,), rows of the cells in the source file.
    """
    frame = pd.DataFrame({str(name): _plain(obs[name]) for name in obs.columns}).reset_index(drop=True)
    frame[SOURCE_ROW] = source_rows
    frame[CELL_ID] = pd.Series(obs.index.astype(str), dtype="string")
    return pa.Table.from_pandas(frame, preserve_index=False)


class ObsWriter:
    """Appends cells to a Parquet file; the first ones decide its schema.

    Args:
        path: the new file; it is created by the first `append`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pq.ParquetWriter | None = None

    def append(self, obs: pa.Table) -> None:
        """Add cells: a table made by `obs_table`."""
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, obs.schema)
        self._writer.write_table(obs.cast(self._writer.schema))

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()


def read_column(path: Path | IO[bytes], column: str) -> Iterator[pd.Series]:
    """Yield one column of an `obs.parquet` in batches of at most 65,536 cells."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_BATCH, columns=[column]):
            # Otherwise an integer column would be float in batches with missing values, and int in the others.
            yield batch.to_pandas(integer_object_nulls=True)[column]


def canonical_names(column: pd.Series) -> list[str | None]:
    """Convert values to text, None if missing; int, float and text give the same ("3" for 3, 3.0, "3" and "3.0")."""
    return [
        None if missing else _canonical(value) for value, missing in zip(column, pd.isna(column).tolist(), strict=True)
    ]


def _canonical(value: object) -> str:
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    integer = re.fullmatch(r"(-?\d+)\.0+", text := str(value))
    return integer[1] if integer else text


def _plain(column: pd.Series) -> pd.Series:
    """Convert a column so that its Parquet type does not depend on the values of the first cells."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        if pd.api.types.infer_dtype(column.cat.categories) == "string":
            return column
        return pd.Series(canonical_names(column), column.index, dtype="string")
    return column.astype("string") if column.dtype == object else column
