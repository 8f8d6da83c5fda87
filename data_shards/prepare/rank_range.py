"""Read, filter and rank a range of cells into a part: a directory that one writer reads later, in order.

A part holds plain files `tokens` (uint16), `lengths` (int64, tokens of each cell), `hashes` (uint64, of the counts of
each cell) and, if values are kept, `values` (float32); also `obs.arrow` with the annotations of its cells, and
`summary.json`.
"""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from data_shards.counts.count_file import CountFile, CountSource
from data_shards.counts.filters import BoundFilter
from data_shards.errors import DataError
from data_shards.files.fingerprint import Fingerprint
from data_shards.files.work_folder import new_part
from data_shards.hashing import U64
from data_shards.store.obs_parquet import obs_table
from data_shards.tokens.rank import Ranker
from data_shards.tokens.vocabulary import FIRST_GENE

#: Cells that are read from the source at a time.
_CHUNK = 2048
#: Tokens that are read from a part at a time.
_TOKENS = 1 << 22
_SUMMARY = "summary.json"


@dataclass(frozen=True, eq=False)
class RankPlan:
    """What is the same for all ranges of a data set.

    Attributes:
        ranker: the tokenizer's ranker.
        numbers: int32 (n_delivered,), number in the vocabulary of each gene of the file, or -1.
        cells: which cells are left out.
        obs_columns: columns of obs that are kept.
        values: whether the value behind each token is kept.
    """

    ranker: Ranker
    numbers: npt.NDArray[np.int32]
    cells: BoundFilter
    obs_columns: tuple[str, ...]
    values: bool


@dataclass(frozen=True)
class Range:
    """Cells [start, stop) of a file, and the part that they become.

    Attributes:
        source: opens the file.
        file: its fingerprint; the file must not change.
        start, stop: the cells.
        folder: the part.
    """

    source: CountSource
    file: Fingerprint
    start: int
    stop: int
    folder: Path


@dataclass(frozen=True)
class RangeSummary:
    """Totals of one part, or of several.

    Attributes:
        n_cells, n_tokens: cells kept, and their tokens.
        filtered: cells that the filters left out.
        empty: cells left out because they have no token.
        detected: non-zero counts of the cells that were not filtered.
        in_vocabulary: how many of these counts belong to genes of the vocabulary.
    """

    n_cells: int = 0
    n_tokens: int = 0
    filtered: int = 0
    empty: int = 0
    detected: int = 0
    in_vocabulary: int = 0

    def __add__(self, other: "RangeSummary") -> "RangeSummary":
        return RangeSummary(*(getattr(self, one.name) + getattr(other, one.name) for one in fields(self)))


def rank_range(plan: RankPlan, task: Range) -> RangeSummary:
    """Make the part of a range, unless it exists already.

    Raises:
        DataError: counts are bad, the file changed, or the part cannot be written.
    """
    if not (task.folder / _SUMMARY).exists():
        with task.source.open() as counts, new_part(task.folder) as folder:
            summary = _rank(plan, counts, task.start, task.stop, folder)
            task.file.require_unchanged()
            (folder / _SUMMARY).write_text(json.dumps(asdict(summary)))
    return RangeSummary(**json.loads((task.folder / _SUMMARY).read_text()))


def _rank(plan: RankPlan, counts: CountFile, start: int, stop: int, folder: Path) -> RangeSummary:
    summary = RangeSummary()
    rows: list[npt.NDArray[np.int64]] = []
    obs = counts.read_obs(start, stop, list(dict.fromkeys((*plan.obs_columns, *plan.cells.options.where))))
    with ExitStack() as files:
        tokens, lengths, hashes = (
            files.enter_context((folder / name).open("wb")) for name in ("tokens", "lengths", "hashes")
        )
        values = files.enter_context((folder / "values").open("wb")) if plan.values else None
        for first, chunk in counts.chunks(_CHUNK, start, stop):
            kept = plan.cells.keep(chunk, obs.iloc[first - start : first - start + chunk.shape[0]])
            n_filtered = int((~kept).sum())
            if n_filtered:
                chunk = chunk[kept]
            ranked = plan.ranker.rank(chunk, plan.numbers, plan.values)
            length = np.diff(ranked.indptr)
            has_tokens = length > 0
            rows.append(np.flatnonzero(kept)[has_tokens] + first)
            tokens.write((ranked.genes + np.uint16(FIRST_GENE)).astype("<u2", copy=False).data)
            lengths.write(length[has_tokens].astype("<i8", copy=False).data)
            hashes.write(ranked.hashes[has_tokens].astype("<u8", copy=False).data)
            if values is not None:
                values.write(ranked.values.astype("<f4", copy=False).data)
            summary += RangeSummary(
                n_cells=len(rows[-1]),
                n_tokens=len(ranked.genes),
                filtered=n_filtered,
                empty=int((~has_tokens).sum()),
                detected=chunk.nnz,
                in_vocabulary=ranked.known,
            )
    kept_rows = np.concatenate(rows)
    table = obs_table(obs.iloc[kept_rows - start][list(plan.obs_columns)], kept_rows)
    with pa.OSFile(str(folder / "obs.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return summary


@dataclass(frozen=True, eq=False)
class PartCells:
    """Some cells of a part.

    Attributes:
        tokens: uint16 (n_tokens,), cell after cell.
        indptr: int64 (n_cells + 1,), where each cell begins in `tokens`.
        values: float32 (n_tokens,), of each token; None if not kept.
        hashes: uint64 (n_cells,), of the counts of each cell.
    """

    tokens: npt.NDArray[np.uint16]
    indptr: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32] | None
    hashes: U64


def read_range_tokens(folder: Path, values: bool) -> Iterator[PartCells]:
    """Read the cells of a part, a few million tokens at a time.

    Args:
        folder: the part.
        values: whether values are kept.

    Raises:
        DataError: the part cannot be read.
    """
    lengths = _read(folder / "lengths", "<i8")
    bounds = np.concatenate([np.zeros(1, np.int64), lengths.cumsum()])
    first = 0
    while first < len(lengths):
        last = max(first + 1, int(np.searchsorted(bounds, bounds[first] + _TOKENS, side="right")) - 1)
        span = int(bounds[first]), int(bounds[last] - bounds[first])
        yield PartCells(
            _read(folder / "tokens", "<u2", *span),
            bounds[first : last + 1] - bounds[first],
            _read(folder / "values", "<f4", *span) if values else None,
            _read(folder / "hashes", "<u8", first, last - first),
        )
        first = last


def read_range_obs(folder: Path) -> pa.Table:
    """Read the annotations of a part.

    Raises:
        DataError: the part cannot be read.
    """
    try:
        with pa.OSFile(str(folder / "obs.arrow"), "rb") as source, pa.ipc.open_file(source) as reader:
            return reader.read_all()
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(folder, error) from error


def _read(path: Path, dtype: str, first: int = 0, size: int = -1) -> npt.NDArray[Any]:
    try:
        elements = np.fromfile(path, dtype, size, offset=first * np.dtype(dtype).itemsize)
    except OSError as error:
        raise _unreadable(path.parent, error) from error
    if size not in (-1, len(elements)):
        raise _unreadable(path.parent, ValueError(f"{len(elements):,} of {size:,} elements of {path.name}"))
    return elements


def _unreadable(folder: Path, error: Exception) -> DataError:
    return DataError(f"{folder}: cannot be read ({error}): remove {folder} and run the same command again")
