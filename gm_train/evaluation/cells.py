"""The cells of an evaluation, tokenised again from their counts: a store's tokens do not give dithered ranks."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse

from data_shards.counts.count_file import CountFile, open_counts
from data_shards.errors import DataError
from data_shards.files.atomic import hash_path
from data_shards.files.location import Location
from data_shards.store.manifest import Manifest
from data_shards.store.obs_parquet import SOURCE_ROW
from data_shards.tokens.drift import measure_drift
from data_shards.tokens.tokenizer import Tokenizer
from data_shards.workers.progress import Progress
from gm_train.embedding.ragged import Ragged
from gm_train.evaluation.cell_counts import CellCounts
from gm_train.evaluation.chosen_cells import I64, choose_cells, not_in_split, obs_column, read_labels, usual_split
from gm_train.evaluation.labels import Labels

#: Cells of counts read at once.
_ROWS = 4_096


@dataclass(frozen=True)
class EvaluationCells:
    """Training and held-out cells, in the order of the store.

    Attributes:
        plain, dithered: their tokens on both kinds of ranks.
        expression: float32 (n_cells, n_genes), log1p of counts per 10,000, over the genes of the vocabulary.
        held_out: bool (n_cells,); the others are training cells.
        split: name of the split of the held-out cells, "validation" or "test".
        data_set, row: int64 (n_cells,), number of each cell's data set in the store, and its row there.
        source_row: int64 (n_cells,), its row in the count file.
        files: number of each data set to its count file.
        label: name of the column of obs; None without labels.
        labels: object (n_cells,), str or None where a cell has none; None without labels.
        batch: name of the column of obs with the batches; None without batches.
        batches: object (n_cells,), str or None where a cell has none; None without batches.
        n_empty: cells left out because they have no token.
        missing: data sets of the store whose files were not given.
        not_scored: data sets of the given files that have no held-out cell of this split, but some of the other one.
        tokenizer: that of the model.
        counts: number of each data set to the counts of its held-out cells, in the order of the cells.
    """

    plain: Ragged
    dithered: Ragged
    expression: scipy.sparse.csr_matrix
    held_out: npt.NDArray[np.bool_]
    split: str
    data_set: I64
    row: I64
    source_row: I64
    files: dict[int, Path]
    label: str | None
    labels: Labels | None
    batch: str | None
    batches: Labels | None
    n_empty: int
    missing: tuple[str, ...]
    not_scored: tuple[str, ...]
    tokenizer: Tokenizer
    counts: dict[int, CellCounts]

    @property
    def hash(self) -> str:
        """A hash of all that scores depend on, besides the model and labels: genes, cells, their tokens and split."""
        digest = hashlib.sha256(self.tokenizer.vocabulary.hash.encode())
        for array in (
            self.plain.tokens,
            self.dithered.tokens,
            self.plain.indptr,
            self.data_set,
            self.row,
            self.held_out,
        ):
            digest.update(np.ascontiguousarray(array, dtype=np.int64).tobytes())
        return digest.hexdigest()

    def ranked(self, ranks: str) -> Ragged:
        """The tokens on "plain" or "dithered" ranks."""
        return {"plain": self.plain, "dithered": self.dithered}[ranks]


def read_cells(
    store: Location,
    files: Sequence[Path],
    tokenizer: Tokenizer,
    label: str | None = None,
    max_cells: int = 2_000,
    split: str | None = None,
    batch: str | None = None,
) -> EvaluationCells:
    """Read cells of a store from the count files that it was made from.

    If there are more cells than `max_cells`, a hash chooses evenly among them, always the same ones: a quarter held out
    if there are as many, the rest for training. A warning is logged for a file whose own medians drift from the
    tokenizer's.

    Args:
        store: has the cells' splits and labels, and the options that their counts are read with.
        files: count files, matched with the store's data sets by their stems.
        tokenizer: the model's; it must have the store's vocabulary and medians.
        label: a column of obs.
        max_cells: largest number of cells to read.
        split: name of the split of the held-out cells, "validation" or "test"; those of the other one are not read.
            None is "test" if the files have test cells, else "validation".
        batch: a column of obs.

    Raises:
        DataError: a file does not belong to the store or has changed, the tokenizer is not the store's, there is no
            training cell or no held-out cell, or no data set has the label or the batch.
    """
    manifest = Manifest.load(store)
    if tokenizer.medians_hash != manifest.medians_hash:
        raise DataError(
            f"{store}: made with another vocabulary or other medians than the model: pass the model's store"
        )
    counted = _match(store, manifest, files)
    where = {which: entry for which, entry in enumerate(manifest.datasets) if entry.name in counted}
    split = split or usual_split(where.values())
    data_set, row, held_out = choose_cells(store, where, max_cells, split)
    parts, source_rows = [], [np.zeros(0, np.int64)]
    held_out_counts: dict[int, CellCounts] = {}
    with Progress(total=len(row), desc="reading cells", unit=" cells") as bar:
        for which, entry in where.items():
            rows = row[data_set == which]
            source_row = obs_column(store, entry, SOURCE_ROW).to_numpy()[rows]
            source_rows.append(source_row)
            with open_counts(counted[entry.name], entry.count_options) as counts:
                read, kept_counts = _read(
                    counts, source_row, held_out[data_set == which], tokenizer, entry.min_mapped, bar
                )
            parts += read
            if kept_counts is not None:
                held_out_counts[which] = kept_counts
    plain, dithered = (Ragged.concatenate([part[i] for part in parts]) for i in (0, 1))
    expression = scipy.sparse.vstack([part[2] for part in parts], format="csr")
    labels, batches = (
        None if column is None else read_labels(store, where, column, option, data_set, row)
        for column, option in ((label, "--label"), (batch, "--batch"))
    )
    kept = np.flatnonzero(plain.lengths > 0)
    return EvaluationCells(
        plain.take(kept),
        dithered.take(kept),
        expression[kept],
        held_out[kept],
        split,
        data_set[kept],
        row[kept],
        np.concatenate(source_rows)[kept],
        {which: counted[entry.name] for which, entry in where.items()},
        label,
        None if labels is None else labels[kept],
        batch,
        None if batches is None else batches[kept],
        plain.n_cells - len(kept),
        tuple(entry.name for entry in manifest.datasets if entry.name not in counted),
        not_in_split(where.values(), split),
        tokenizer,
        held_out_counts,
    )


def _match(store: Location, manifest: Manifest, files: Sequence[Path]) -> dict[str, Path]:
    """The count file of each data set that has one, checked against the manifest."""
    entries = {entry.name: entry for entry in manifest.datasets}
    paths = {}
    for path in files:
        if not path.exists():
            raise DataError(f"{path}: no such file")
        entry = entries.get(path.stem)
        if entry is None:
            raise DataError(f"{path}: not of {store}, whose data sets are {', '.join(entries)}: pass their count files")
        if hash_path(path) != entry.source_hash:
            raise DataError(f"{path}: not the file that {store} was made from (its hash differs): pass that file")
        paths[entry.name] = path
    return paths


def _read(
    counts: CountFile,
    rows: I64,
    held_out: npt.NDArray[np.bool_],
    tokenizer: Tokenizer,
    min_mapped: float,
    bar: Progress,
) -> tuple[list[tuple[Ragged, Ragged, scipy.sparse.csr_matrix]], CellCounts | None]:
    """Read ascending rows of a file.

    Returns:
        Plain tokens, dithered tokens and expression, for each stretch of the file; and the counts of the held-out cells
        that have a token, None if there are no such cells.
    """
    columns = tokenizer.bind(counts, min_mapped)
    parts, scaled_counts, kept = [], [], []
    for stretch in np.unique(rows // _ROWS):
        here = rows // _ROWS == stretch
        for first, chunk in counts.chunks(_ROWS, start=stretch * _ROWS, stop=(stretch + 1) * _ROWS):
            cells = CellCounts(chunk[rows[here] - first], columns, tokenizer)
            scaled = cells.scaled()
            scaled_counts.append((scaled.indices, scaled.data))
            parts.append((cells.ranked("plain"), cells.ranked("dithered"), scaled.log1p().astype(np.float32)))
            kept.append(cells.counts[held_out[here] & (parts[-1][0].lengths > 0)])
        bar.update(int(here.sum()))
    if scaled_counts:
        measure_drift(counts.name, tokenizer, *(np.concatenate(each) for each in zip(*scaled_counts, strict=True)))
    found = sum(part.shape[0] for part in kept)
    return parts, CellCounts(scipy.sparse.vstack(kept, format="csr"), columns, tokenizer) if found else None
