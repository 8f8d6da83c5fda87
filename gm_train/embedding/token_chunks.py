"""Read the cells of a count file as tokens, a few thousand at a time."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.sparse as sp

from data_shards.counts.count_file import CountFile
from data_shards.counts.count_loops import cell_totals, map_genes, normalise
from data_shards.errors import DataError
from data_shards.tokens.drift import Drift, measure_drift
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.embedding.ragged import Ragged

#: Cells in a chunk.
CHUNK_CELLS = 4_096
#: The file's medians are compared with the tokenizer's on at most this many cells.
DRIFT_CELLS = 2_048


class TokenChunks:
    """The cells of a file as tokens, in the file's order. While a chunk is used, the next one is made in a thread.

    Args:
        counts: the file.
        tokenizer: the model's.
        min_mapped: share (0 to 1) of the file's genes that must have an id. It is also the share of the vocabulary's
            genes, or of the file's if these are fewer, that both must have.

    Attributes:
        columns: how the file's genes are mapped to the vocabulary's.

    Raises:
        DataError: too few genes are mapped, or they are of another species.
    """

    def __init__(self, counts: CountFile, tokenizer: Tokenizer, min_mapped: float = 0.5) -> None:
        self.columns = tokenizer.bind(counts, min_mapped)
        self._counts, self._tokenizer = counts, tokenizer
        # Evenly spaced over the file: donors and cell types often stand one after another.
        self._drift_every = -(-counts.n_cells // DRIFT_CELLS)
        self._sample: list[tuple[np.ndarray, np.ndarray]] = []
        vocabulary = tokenizer.vocabulary
        most = min(len(vocabulary.genes), counts.n_genes)
        if self.columns.found < min_mapped * most:
            raise DataError(
                f"{counts.path}: only {self.columns.found:,} of its {counts.n_genes:,} genes are among the "
                f"{len(vocabulary.genes):,} genes of the model ({vocabulary.kind} ids: "
                f"{', '.join(vocabulary.genes[:3])} …), less than --min-mapped {min_mapped:g} of what both could have: "
                f"name the column of var with these ids with --gene-column, or lower --min-mapped"
            )
        _ = counts.source  # copies counts stored by gene, here in the main thread, so that Ctrl-C can stop it

    def __iter__(self) -> Iterator[tuple[int, Ragged]]:
        """Yield the first cell of each chunk, and the chunk's tokens."""
        self._sample = []
        chunks = self._chunks()
        with ThreadPoolExecutor(1) as worker:
            making = worker.submit(next, chunks, None)
            while (chunk := making.result()) is not None:
                making = worker.submit(next, chunks, None)
                yield chunk

    def _chunks(self) -> Iterator[tuple[int, Ragged]]:
        for first, cells in self._counts.chunks(CHUNK_CELLS):
            sampled = np.arange(-first % self._drift_every, cells.shape[0], self._drift_every)
            if len(sampled):
                self._sample.append(self._scaled(cells[sampled]))
            yield first, Ragged(*self._tokenizer.encode(cells, self.columns))

    def _scaled(self, cells: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
        """The gene number and the scaled count of each entry."""
        n_genes = len(self._tokenizer.vocabulary.genes)
        indptr, genes, values = map_genes(cells.indptr, cells.indices, cells.data, self.columns.numbers, n_genes)
        return genes, normalise(indptr, values, cell_totals(cells.indptr, cells.data), 10_000.0)

    def drift(self) -> Drift:
        """Compare the medians of the cells read so far with the tokenizer's; log a warning if they drift."""
        genes, values = (np.concatenate(parts) for parts in zip(*self._sample, strict=True))
        return measure_drift(str(self._counts.path), self._tokenizer, genes, values)
