"""Cell and gene annotations (`obs`, `var`) of AnnData files, readable by rows."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem


def read_annotations(element: Any, uns: Any = None) -> pd.DataFrame:
    """Read a whole annotation table, indexed by name; also reads the compound arrays of anndata before 0.7."""
    if not isinstance(element, h5py.Dataset):
        frame: pd.DataFrame = read_elem(element)
        return frame
    table = element[()]
    columns: dict[str, Any] = {}
    for name in table.dtype.names:
        values = table[name]
        columns[name] = _decoded(values) if values.dtype.kind in "SO" else values
        categories = f"{name}_categories"
        if uns is not None and categories in uns:
            columns[name] = pd.Categorical.from_codes(values, pd.Index(_decoded(uns[categories][()])))
    index = columns.pop(table.dtype.names[0])
    return pd.DataFrame(columns, index=pd.Index(index, dtype=object))


class CellAnnotations:
    """The table `obs` of one file.

    Tables in the current encoding ("0.2.0") are read by rows; other tables are read completely, once.

    Args:
        obs: group or compound array `obs` of the file.
        uns: group `uns`, which holds the categories of columns in files of anndata before 0.7.

    Attributes:
        n_cells: number of rows.
        columns: names of the columns.
    """

    def __init__(self, obs: Any, uns: Any = None) -> None:
        self._obs = obs
        self._uns = uns
        self._by_rows = not isinstance(obs, h5py.Dataset) and obs.attrs.get("encoding-version") == "0.2.0"
        self._cache: dict[str, Any] = {}
        if self._by_rows:
            self.columns = [str(name) for name in obs.attrs["column-order"]]
            index = obs[obs.attrs["_index"]]
            # Nullable strings are stored as a group of values and a mask.
            self.n_cells = int((index["values"] if _is_nullable(index) else index).shape[0])
        else:
            self.columns = [str(name) for name in self._whole.columns]
            self.n_cells = len(self._whole)

    @cached_property
    def _whole(self) -> pd.DataFrame:
        return read_annotations(self._obs, self._uns)

    def read(self, start: int = 0, stop: int | None = None, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Read rows [start, stop).

        Args:
            start: first row.
            stop: one more than the last row; None reads to the end.
            columns: names of the columns; None reads all.

        Returns:
            DataFrame (stop - start, columns), indexed by the cells' names.
        """
        rows = slice(start, self.n_cells if stop is None else min(stop, self.n_cells))
        if not self._by_rows:
            return self._whole.iloc[rows] if columns is None else self._whole.iloc[rows][list(columns)]
        index = pd.Index(self._column(self._obs.attrs["_index"], rows), dtype=object)
        return pd.DataFrame(
            {name: self._column(name, rows) for name in (self.columns if columns is None else columns)}, index=index
        )

    def read_column(self, name: str, start: int, stop: int) -> pd.Series:
        """Read rows [start, stop) of one column.

        Args:
            name: the column.
            start: first row.
            stop: one more than the last row.
        """
        column = self._column(name, slice(start, stop)) if self._by_rows else self._whole[name].iloc[start:stop]
        return pd.Series(column)

    def _column(self, name: str, rows: slice) -> Any:
        element = self._obs[name]
        if _is_nullable(element):
            values, mask = element["values"], np.asarray(element["mask"][rows])
            if element.attrs["encoding-type"] == "nullable-integer":
                return pd.arrays.IntegerArray(np.asarray(values[rows]), mask)
            if element.attrs["encoding-type"] == "nullable-boolean":
                return pd.arrays.BooleanArray(np.asarray(values[rows]), mask)
            texts = _strings(values, rows)
            texts[mask] = None
            return pd.array(texts, dtype="string")
        encoding = element.attrs.get("encoding-type")
        if encoding == "array":
            return element[rows]
        if encoding == "string-array":
            return _strings(element, rows)
        if encoding == "categorical":
            if name not in self._cache:
                self._cache[name] = pd.Index(read_elem(element["categories"]))
            ordered = bool(element.attrs.get("ordered", False))
            return pd.Categorical.from_codes(np.asarray(element["codes"][rows]), self._cache[name], ordered=ordered)
        if name not in self._cache:
            self._cache[name] = read_elem(element)
        return self._cache[name][rows]


def _is_nullable(element: Any) -> bool:
    return str(element.attrs.get("encoding-type", "")).startswith("nullable-")


def _strings(element: Any, rows: slice) -> Any:
    if isinstance(element, h5py.Dataset) and h5py.check_string_dtype(element.dtype) is not None:
        return element.asstr()[rows]
    return np.asarray(element[rows]).astype(object)


def _decoded(values: Any) -> Any:
    """Decode strings of fixed or variable length, which h5py returns as bytes: object (n,)."""
    return np.array([text.decode() if isinstance(text, bytes) else text for text in values], dtype=object)
