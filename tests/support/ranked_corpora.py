"""Small, already ranked corpora in the layouts that Hugging Face datasets and pyarrow write."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SPECIALS = {"<pad>": 0, "<mask>": 1, "<cls>": 2, "<eos>": 3}


def table_of(cells: Sequence[Any], length: Sequence[int] | bool = True, **columns: Any) -> pa.Table:
    """Make a table of cells.

    Args:
        cells: tokens of each cell.
        length: values of the column `length`; True takes the true lengths, False leaves the column out.
        columns: further columns, by name.
    """
    table = pa.table({"input_ids": pa.array(cells, pa.list_(pa.int64())), **columns})
    if length is True:
        length = [len(cell) for cell in cells]
    return table.append_column("length", pa.array(length)) if length else table


def write_arrow(path: Path, table: pa.Table, rows: int = 1000) -> Path:
    """Write an Arrow stream, as Hugging Face datasets does.

    Args:
        path: the new file.
        table: its rows.
        rows: largest number of rows in a record batch.
    """
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


def save_to_disk(folder: Path, tables: Sequence[pa.Table]) -> Path:
    """Write a folder as `Dataset.save_to_disk` does, with one file per table."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{len(tables):05d}.arrow" for i in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        write_arrow(folder / name, table, 7)
    state = {
        "_data_files": [{"filename": name} for name in names],
        "_fingerprint": "0123456789abcdef",
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def write_parquet(folder: Path, tables: Sequence[pa.Table]) -> Path:
    """Write a folder of Parquet files, one per table."""
    folder.mkdir(parents=True)
    for i, table in enumerate(tables):
        pq.write_table(table, folder / f"part-{i:03d}.parquet", row_group_size=11)
    return folder
