"""What `gm-train data lookup` says: lines of text, and a table with a row for each cell of the file."""

import csv
from collections import defaultdict
from pathlib import Path

from data_shards.counts.count_file import open_counts
from data_shards.counts.count_options import CountOptions
from data_shards.files.atomic import whole_file
from data_shards.inspect.file_cells import FileCells
from data_shards.inspect.lookup import FEW_GENES, LEFT_OUT, Found, KnownCells
from data_shards.store.manifest import TEST, TRAIN, VALIDATION

_PLACES = {TRAIN: "training", VALIDATION: "validation", TEST: "test", LEFT_OUT: "left out"}
_ROWS = 1 << 16
#: Names of data sets in a line.
_SHOWN = 8


def describe(found: Found, known: KnownCells) -> list[str]:
    """Describe what was found, in lines of text."""
    lines = [f"{found.file.path} in {known.name}"]
    for one in found.same_file:
        entry = one.entry
        left_out = "" if one.trained else "; the run left it out of training (data.weights)"
        splits = _counts([entry.n_train, entry.n_validation, entry.n_test, 0])
        lines.append(f"  file       is the one that data set {entry.name} was made from: {splits} cells{left_out}")
    if not found.same_file:
        lines.append(f"  file       its SHA-256, {found.file.sha256[:12]}…, is not that of any data set's file")
    if found.cells is not None:
        lines += _describe_cells(found, found.cells, known)
    else:
        lines.append("  cells      were not looked up: only files can be compared")
    searched, unknown = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for one in known.datasets:
        where, key = (unknown, one.reason) if one.arrays is None else (searched, str(one.arrays))
        where[key].append(one.entry.name)
    if found.cells is not None:
        lines += [
            f"  searched   hashes of the cells of {_names(names)} in {where}" for where, names in searched.items()
        ]
    lines += [f"  no hashes  of the cells of {_names(names)}: {reason}" for reason, names in unknown.items()]
    return lines


def _describe_cells(found: Found, cells: FileCells, known: KnownCells) -> list[str]:
    n_found, asked = int((found.place >= 0).sum()), cells.looked_up
    empty = cells.n_cells - asked
    lines = [
        f"  cells      {cells.n_cells:,}"
        + (f"; {empty:,} have no count of a gene of the vocabulary and are not looked up" if empty else ""),
        f"  found      {n_found:,} of {asked:,} ({n_found / max(1, asked):.1%}): {_counts(found.by_place)}",
    ]
    for one, counts in zip(known.datasets, found.by_dataset.tolist(), strict=True):
        if sum(counts):
            lines.append(f"             {sum(counts):,} in {one.entry.name}: {_counts(counts)}")
    few = int(((found.place >= 0) & (cells.n_tokens < FEW_GENES)).sum())
    if few:
        lines.append(
            f"             {few:,} of them have fewer than {FEW_GENES} genes of the vocabulary: other cells can have "
            "the same counts by chance"
        )
    most = max(one.entry.genes["in_vocabulary"] for one in known.datasets if one.arrays is not None)
    if n_found < asked and cells.in_vocabulary < most:
        lines.append(
            f"  genes      the file has {cells.in_vocabulary:,} of the vocabulary's genes, a data set has up to "
            f"{most:,}: a cell is found only if no gene that it has counts of was cut away"
        )
    return lines


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN:,} more"


def _counts(by_place: list[int]) -> str:
    shown = [place for place in _PLACES if place != LEFT_OUT or by_place[place]]
    return ", ".join(f"{by_place[place]:,} {_PLACES[place]}" for place in shown)


def write_table(found: Found, known: KnownCells, options: CountOptions, out: Path) -> None:
    """Write a CSV with a row for each cell of the file, in its order.

    Columns: `cell`, its name; `tokens`, its number of genes of the vocabulary, at most top-k; and, if it was found,
    `data_set`, `row` there (of `obs.parquet`), and `split` ("training", "validation", "test" or "left out").

    Args:
        found: what was found; its cells were looked up.
        known: what was searched.
        options: where the counts of the file are.
        out: the new file.

    Raises:
        DataError: the file of cells cannot be read, or the table exists or cannot be written.
    """
    assert found.cells is not None
    names = [one.entry.name for one in known.datasets]
    with (
        open_counts(found.file.path, options) as counts,
        whole_file(out) as temporary,
        temporary.open("w", newline="") as file,
    ):
        table = csv.writer(file)
        table.writerow(("cell", "tokens", "data_set", "row", "split"))
        for start in range(0, counts.n_cells, _ROWS):
            stop = min(start + _ROWS, counts.n_cells)
            cells = counts.read_obs(start, stop, []).index
            for cell, n_tokens, data_set, row, place in zip(
                cells,
                found.cells.n_tokens[start:stop].tolist(),
                found.data_set[start:stop].tolist(),
                found.row[start:stop].tolist(),
                found.place[start:stop].tolist(),
                strict=True,
            ):
                match = (names[data_set], row, _PLACES[place]) if place >= 0 else ("", "", "")
                table.writerow((cell, n_tokens, *match))
