"""`obs.parquet`: the annotations of the cells of a store, written a few thousand cells at a time."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

#: Columns that are added to those of the file: its row there and its name.
SOURCE_ROW, CELL_ID = "source_row", "cell_id"
_BATCH = 1 << 16


def obs_table(obs: pd.DataFrame, source_rows: npt.NDArray[np.int64]) -> pa.Table:
    """Annotations as they lie in `obs.parquet`; the schema does not depend on the values.

    Args:
        obs: annotations of cells, indexed by their names; columns named as the added ones are replaced.
        source_rows: int64 (n,), their rows in the source file.
    """
    frame = pd.DataFrame({str(name): _plain(obs[name]) for name in obs.columns}).reset_index(drop=True)
    frame[SOURCE_ROW] = source_rows
    frame[CELL_ID] = pd.Series(obs.index.astype(str), dtype="string")
    return pa.Table.from_pandas(frame, preserve_index=False)


class ObsWriter:
    """Appends cells to a Parquet file whose schema is that of the first ones."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pq.ParquetWriter | None = None

    def append(self, obs: pa.Table) -> None:
        """Add cells: what `obs_table` made of their annotations."""
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, obs.schema)
        self._writer.write_table(obs.cast(self._writer.schema))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def read_column(path: Path | IO[bytes], column: str) -> Iterator[pd.Series]:
    """One column of an `obs.parquet`, a few thousand cells at a time."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_BATCH, columns=[column]):
            # Whole numbers with missing ones would be float in the batches that miss some, and int in the others.
            yield batch.to_pandas(integer_object_nulls=True)[column]


def canonical_names(column: pd.Series) -> list[str | None]:
    """Values as text, the same whichever of int, float or text a file holds them as (3, 3.0, "3"); None if missing."""
    return [
        None if missing else _canonical(value) for value, missing in zip(column, pd.isna(column).tolist(), strict=True)
    ]


def _canonical(value: object) -> str:
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    whole = re.fullmatch(r"(-?\d+)\.0+", text := str(value))
    return whole[1] if whole else text


def _plain(column: pd.Series) -> pd.Series:
    """A column whose Parquet type does not depend on the values of the first cells."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        if pd.api.types.infer_dtype(column.cat.categories) == "string":
            return column
        return pd.Series(canonical_names(column), column.index, dtype="string")
    return column.astype("string") if column.dtype == object else column
