"""`obs.parquet`: the annotations of the cells of a store, written a few thousand cells at a time."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

#: Columns that are added to those of the file: its row there and its name.
SOURCE_ROW, CELL_ID = "source_row", "cell_id"


class ObsWriter:
    """Appends cells to a Parquet file whose schema is that of the first ones."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pq.ParquetWriter | None = None

    def append(self, obs: pd.DataFrame, source_rows: npt.NDArray[np.int64]) -> None:
        """Add cells.

        Args:
            obs: their annotations, indexed by the cells' names; columns named as the added ones are replaced.
            source_rows: int64 (n,), their rows in the source file.
        """
        frame = pd.DataFrame({str(name): _plain(obs[name]) for name in obs.columns}).reset_index(drop=True)
        frame[SOURCE_ROW] = source_rows
        frame[CELL_ID] = pd.Series(obs.index.astype(str), dtype="string")
        if self._writer is None:
            table = pa.Table.from_pandas(frame, preserve_index=False)
            self._writer = pq.ParquetWriter(self._path, table.schema)
        else:
            table = pa.Table.from_pandas(frame, schema=self._writer.schema, preserve_index=False)
        self._writer.write_table(table)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def read_column(path: Path, column: str) -> Iterator[pd.Series]:
    """One column of an `obs.parquet`, a few thousand cells at a time."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1 << 16, columns=[column]):
            yield batch.to_pandas()[column]


def _plain(column: pd.Series) -> pd.Series:
    """A column whose Parquet type does not depend on the values of the first cells."""
    is_category = isinstance(column.dtype, pd.CategoricalDtype)
    if column.dtype == object or (is_category and column.cat.categories.empty):
        return column.astype("string")
    return column
