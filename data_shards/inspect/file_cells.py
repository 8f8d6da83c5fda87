"""The cells of a file as hashes of their counts, as a store holds them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from data_shards.counts.count_file import CountFile
from data_shards.counts.gene_ids import find_gene_ids
from data_shards.counts.species import find_species, species_name
from data_shards.errors import DataError
from data_shards.hashing import U64
from data_shards.tokens.tokenizer import Tokenizer
from data_shards.workers.progress import Progress

_CHUNK = 2048


@dataclass(frozen=True, eq=False)
class FileCells:
    """The cells of a file.

    Attributes:
        hashes: uint64 (n_cells,), hash of each cell's counts.
        n_tokens: int32 (n_cells,), number of tokens of each cell: its genes of the vocabulary, at most `top_k`. Cells
            with 0 are not looked up.
        in_vocabulary: number of the vocabulary's genes that the file has.
    """

    hashes: U64
    n_tokens: npt.NDArray[np.int32]
    in_vocabulary: int

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.hashes)

    @cached_property
    def looked_up(self) -> int:
        """Number of cells with a gene of the vocabulary."""
        return int((self.n_tokens > 0).sum())


def hash_file_cells(counts: CountFile, tokenizer: Tokenizer, known: str, min_mapped: float) -> FileCells:
    """Hash the cells of a file, a few thousand at a time.

    Args:
        counts: the open file.
        tokenizer: of the known cells.
        known: what they are, for messages.
        min_mapped: share of its genes (0 to 1) that must map to Ensembl ids, if the vocabulary has such ids.

    Raises:
        DataError: the file is of another species than the vocabulary, or its genes do not map.
    """
    vocabulary = tokenizer.vocabulary
    if vocabulary.kind == "ensembl":
        found = find_gene_ids(counts, tokenizer.gene_table, min_mapped, vocabulary.kind)
        own, theirs = find_species(gene for gene in found.ids if gene is not None), find_species(vocabulary.genes)
        if own is not None and theirs is not None and own != theirs:
            raise DataError(
                f"{counts.path}: its genes are of another species, {species_name(own)}, than those of {known}, "
                f"{species_name(theirs)}: none of its cells can be there; look it up where its species was trained on"
            )
    columns = tokenizer.bind(counts, min_mapped)
    hashes, n_tokens = np.zeros(counts.n_cells, np.uint64), np.zeros(counts.n_cells, np.int32)
    with Progress(total=counts.n_cells, desc=f"hashing {counts.name}", unit=" cells") as progress:
        for first, chunk in counts.chunks(_CHUNK):
            last = first + chunk.shape[0]
            ranked = tokenizer.ranker.rank(chunk, columns.numbers)
            hashes[first:last], n_tokens[first:last] = ranked.hashes, np.diff(ranked.indptr)
            progress.update(chunk.shape[0])
    return FileCells(hashes, n_tokens, columns.found)
