"""Map tokens of another vocabulary to tokens of a store; their order stays."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_shards.compiled import compiled
from data_shards.counts.gene_ids import ensembl_id
from data_shards.errors import DataError
from data_shards.tokens.vocabulary import FIRST_GENE, Vocabulary

#: Entries of the lookup table for foreign tokens that do not become tokens of the store.
SPECIAL, NO_GENE, UNKNOWN = -1, -2, -3
#: Why the tokens of a cell cannot be used.
NOT_KNOWN, TWICE = 1, 2

I64 = npt.NDArray[np.int64]


def gene_ids(names: list[str], kind: str | None = None) -> tuple[str, dict[str, str]]:
    """Get the gene ids of names.

    Args:
        names: gene names or ids.
        kind: "ensembl" or "as-is"; None takes "ensembl" if at least half of the names are Ensembl ids.

    Returns:
        The kind, and the gene id of each name that has one.
    """
    found = {name: gene for name in names if (gene := ensembl_id(name)) is not None}
    if kind is None:
        kind = "ensembl" if 2 * len(found) >= len(names) else "as-is"
    return kind, found if kind == "ensembl" else {name: name for name in names if name}


def medians_of_genes(medians: dict[str, float], kind: str, path: Path) -> dict[str, float]:
    """Median of each gene id that has one.

    Args:
        medians: median of each name, NaN for none.
        kind: kind of the ids, as in `gene_ids`.
        path: file of the medians, for errors.

    Raises:
        DataError: two versions of one gene id have different medians.
    """
    named: dict[str, str] = {}
    found: dict[str, float] = {}
    for name, gene in gene_ids(list(medians), kind)[1].items():
        median = medians[name]
        if not median > 0:
            continue
        if found.setdefault(gene, median) != median:
            raise DataError(
                f"{path}: {named[gene]} ({found[gene]:g}) and {name} ({median:g}) are one gene with different medians: "
                "leave out one of them"
            )
        named[gene] = name
    return found


@dataclass(frozen=True, eq=False)
class TokenMap:
    """What each foreign token becomes.

    Attributes:
        lookup: int32 (largest foreign token + 1,): number of a gene in the vocabulary, or SPECIAL, NO_GENE, UNKNOWN.
        n_genes: number of genes of the vocabulary.
    """

    lookup: npt.NDArray[np.int32]
    n_genes: int

    @property
    def n_known(self) -> int:
        """Number of genes of the vocabulary that have a foreign token."""
        return len(np.unique(self.lookup[self.lookup >= 0]))

    @classmethod
    def build(
        cls, tokens: dict[str, int], specials: dict[str, int], ids: dict[str, str], vocabulary: Vocabulary
    ) -> "TokenMap":
        """Make the map.

        Args:
            tokens: foreign token of each gene name.
            specials: foreign token of each special, such as `<pad>`.
            ids: gene id of each name that can be in the vocabulary.
            vocabulary: the store's vocabulary.
        """
        token_of = vocabulary.token_of
        lookup = np.full(max([*tokens.values(), *specials.values()]) + 1, UNKNOWN, np.int32)
        for name, token in tokens.items():
            ours = token_of.get(ids.get(name, ""))
            lookup[token] = NO_GENE if ours is None else ours - FIRST_GENE
        lookup[list(specials.values())] = SPECIAL
        return cls(lookup, len(vocabulary.genes))

    def map(self, tokens: I64, indptr: I64, top_k: int) -> "Mapped":
        """Map cells.

        Args:
            tokens: int64 (n,), foreign tokens, cell after cell.
            indptr: int64 (n_cells + 1,), where each cell begins.
            top_k: maximum number of tokens of a cell; later tokens are cut.
        """
        return Mapped(*_map(tokens, indptr, self.lookup, self.n_genes, top_k))


@dataclass(frozen=True, eq=False)
class Mapped:
    """Cells with tokens of a store, up to the first cell that cannot be used.

    Attributes:
        tokens: uint16 (n,), in the order of the foreign ones.
        lengths: int64 (n_cells,), tokens of each cell.
        outside: number of dropped tokens whose genes are outside of the vocabulary.
        same_gene: number of dropped tokens whose gene had an earlier token in the cell, under another version.
        cut: number of dropped tokens beyond `top_k`.
        problem: why a cell cannot be used: 0 (all can), NOT_KNOWN or TWICE.
        cell, token: the cell that cannot be used, and the token at fault.
    """

    tokens: npt.NDArray[np.uint16]
    lengths: I64
    outside: int
    same_gene: int
    cut: int
    problem: int
    cell: int
    token: int


@compiled()
def _map(tokens, indptr, lookup, n_genes, top_k):  # type: ignore[no-untyped-def]
    out = np.empty(len(tokens), np.uint16)
    lengths = np.zeros(len(indptr) - 1, np.int64)
    seen, seen_gene = np.full(len(lookup), -1, np.int64), np.full(n_genes, -1, np.int64)
    end = outside = same_gene = cut = 0
    for cell in range(len(lengths)):
        start = end
        for i in range(indptr[cell], indptr[cell + 1]):
            token = tokens[i]
            if token < 0 or token >= len(lookup) or lookup[token] == UNKNOWN:
                return out[:start], lengths, outside, same_gene, cut, NOT_KNOWN, cell, token
            gene = lookup[token]
            if gene == SPECIAL:
                continue
            if seen[token] == cell:
                return out[:start], lengths, outside, same_gene, cut, TWICE, cell, token
            seen[token] = cell
            if gene == NO_GENE:
                outside += 1
            elif seen_gene[gene] == cell:
                same_gene += 1
            elif end - start == top_k:
                cut += 1
            else:
                seen_gene[gene] = cell
                out[end] = gene + FIRST_GENE
                end += 1
        lengths[cell] = end - start
    return out[:end].copy(), lengths, outside, same_gene, cut, 0, 0, 0
