"""The cells of a panel: a fixed part of a store's training and validation cells, with the tokens that the store has."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse

from data_shards.errors import DataError
from data_shards.files.location import Location
from data_shards.store.arrays import ChunkDamaged, StoredArray, open_array
from data_shards.store.manifest import DatasetEntry, Manifest
from data_shards.tokens.vocabulary import FIRST_GENE
from gm_train.embedding.ragged import Ragged
from gm_train.evaluation.chosen_cells import choose_cells, read_labels
from gm_train.evaluation.labels import Labels

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PanelCells:
    """Training and held-out cells, in the order of the store.

    Attributes:
        tokens: their tokens, on the ranks of the store.
        held_out: bool (n_cells,); the others are training cells.
        data_set, row: int64 (n_cells,), number of each cell's data set in the store, and its row there.
        labels: object (n_cells,), str or None where a cell has none; None without labels.
    """

    tokens: Ragged
    held_out: npt.NDArray[np.bool_]
    data_set: I64
    row: I64
    labels: Labels | None

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of everything that decides the scores of controls."""
        digest = hashlib.sha256()
        for array in (self.tokens.tokens, self.tokens.indptr, self.held_out, self.data_set, self.row):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(repr(None if self.labels is None else self.labels.tolist()).encode())
        return digest.hexdigest()

    def expression(self, n_genes: int) -> scipy.sparse.csr_matrix:
        """What ranks say about expression: float32 (n_cells, n_genes), log1p of shares per 10,000.

        A store has no counts. So the shares of a cell's genes are those of Zipf's law, proportional to 1 / rank
        (Furusawa and Kaneko 2003, doi:10.1103/PhysRevLett.90.088102). On the demo's cells, PCA of them is as good a
        control as PCA of the counts: 82.1 and 82.3 % by nearest neighbours.
        """
        lengths = self.tokens.lengths
        rank = np.arange(len(self.tokens.tokens)) - np.repeat(self.tokens.indptr[:-1], lengths) + 1
        totals = np.cumsum(1 / np.arange(1, lengths.max(initial=1) + 1))[np.maximum(lengths, 1) - 1]
        values = np.log1p(10_000 / (rank * np.repeat(totals, lengths))).astype(np.float32)
        genes = self.tokens.tokens.astype(np.int64) - FIRST_GENE
        return scipy.sparse.csr_matrix((values, genes, self.tokens.indptr), shape=(self.tokens.n_cells, n_genes))


def read_panel_cells(
    store: Location, manifest: Manifest, max_cells: int, label: str | None, weights: Mapping[str, int] | None = None
) -> PanelCells:
    """Read cells that a hash chooses evenly, always the same ones of a store.

    Cells without tokens are left out, and those in a damaged chunk of tokens.

    Args:
        store: the store.
        manifest: its manifest, or that of the time when the run started.
        max_cells: most cells: a quarter held out if there are as many, the rest for training.
        label: a column of obs.
        weights: `data.weights`; data sets of weight 0, on which the run is not trained, are left out.

    Raises:
        DataError: there is no training cell or no validation cell, no data set has the label, or the store cannot be
            read.
    """
    where = {
        which: entry
        for which, entry in enumerate(manifest.datasets)
        if weights is None or weights.get(entry.name, 1) > 0
    }
    data_set, row, held_out = choose_cells(store, where, max_cells, "validation")
    tokens = Ragged.concatenate([_read(store, entry, row[data_set == which]) for which, entry in where.items()])
    labels = None if label is None else read_labels(store, where, label, "evaluation.label", data_set, row)
    kept = np.flatnonzero(tokens.lengths > 0)
    if held_out[kept].all() or not held_out[kept].any():
        raise DataError(
            f"{store}: {(~held_out[kept]).sum():,} training and {held_out[kept].sum():,} validation cells of the panel "
            "have tokens that can be read: raise evaluation.cells, or find damaged chunks with `gm-train data verify`"
        )
    return PanelCells(
        tokens.take(kept), held_out[kept], data_set[kept], row[kept], None if labels is None else labels[kept]
    )


def _read(store: Location, entry: DatasetEntry, rows: I64) -> Ragged:
    """The tokens of ascending rows of a data set; none for a cell in a damaged chunk, which training skips too."""
    indptr, tokens = (open_array(store, entry.name, name) for name in ("indptr", "tokens"))
    bounds = [begun() for begun in [indptr.begin(row, row + 2) for row in rows.tolist()]]
    # A read that fails is tried again for its chunks, and not for each of their cells: tries wait for a while.
    begun = [tokens.begin(int(start), int(stop), retry=False) for start, stop in bounds]
    damaged: set[int] = set()
    cells = []
    for (start, stop), read in zip(bounds, begun, strict=True):
        try:
            cells.append(read())
        except DataError:
            cells.append(_read_chunks(tokens, int(start), int(stop), damaged))
    lengths = [len(cell) for cell in cells]
    flat = np.concatenate([np.zeros(0, np.uint16), *cells])
    return Ragged(flat, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))


def _read_chunks(tokens: StoredArray, start: int, stop: int, damaged: set[int]) -> npt.NDArray[np.uint16]:
    """Read tokens [start, stop) chunk by chunk; none if a chunk is `damaged`, to which those found here are added."""
    parts = [np.zeros(0, np.uint16)]
    for number in range(start // tokens.chunk, -(-stop // tokens.chunk)):
        if number not in damaged:
            try:
                parts.append(tokens.read(max(start, number * tokens.chunk), min(stop, (number + 1) * tokens.chunk)))
            except ChunkDamaged:
                damaged.add(number)
        if number in damaged:
            return parts[0]
    return np.concatenate(parts)
