"""Embed the cells of a file, a few thousand at a time."""

import time
from collections.abc import Iterator

from data_shards.workers.progress import Progress
from gm_train.embedding.embed_cells import F32, embed_cells
from gm_train.embedding.token_chunks import TokenChunks
from gm_train.model.genemamba import GeneMamba


class EmbeddedChunks:
    """The vectors of the cells of a file, in its order, with a progress bar.

    Args:
        model: in evaluation mode, on the device to use.
        chunks: the cells.
        n_cells: their number.
        pool: one of `gm_train.model.pooling.POOLS`.
        precision: "fp32" or "bf16".

    Attributes:
        n_empty: cells without a token so far, whose vectors are NaN.
        n_tokens: tokens so far.
        seconds: from the first cell to the last, with the work of the caller between chunks.
        model_seconds: the part of it in the model.
    """

    def __init__(self, model: GeneMamba, chunks: TokenChunks, n_cells: int, pool: str, precision: str) -> None:
        self._model, self._chunks, self._n_cells = model, chunks, n_cells
        self._pool, self._precision = pool, precision
        self.n_empty = self.n_tokens = 0
        self.seconds = self.model_seconds = 0.0

    def __iter__(self) -> Iterator[tuple[int, F32]]:
        """Yield the first cell of each chunk, and the vectors: float32 (n_cells, d_model)."""
        start = time.perf_counter()
        with Progress(total=self._n_cells, desc="embedding", unit=" cells") as bar:
            for first, cells in self._chunks:
                before = time.perf_counter()
                vectors = embed_cells(self._model, cells, self._pool, self._precision, bar.update)
                self.model_seconds += time.perf_counter() - before
                yield first, vectors
                empty = int((cells.lengths == 0).sum())
                bar.update(empty)
                self.n_empty += empty
                self.n_tokens += len(cells.tokens)
        self.seconds = time.perf_counter() - start
