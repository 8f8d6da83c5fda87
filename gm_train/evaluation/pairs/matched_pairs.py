"""Pairs of genes that share a gene set, and random pairs that are like them but for that."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse

from gm_train.objective.pathway import PathwayIndex

#: Pairs that are scored, at most; more hardly change an AUROC.
MAX_PAIRS = 10_000
#: Genes are matched within classes of equal size by how many cells have them.
FREQUENCY_CLASSES = 5
_TRIES = 50

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PairSample:
    """Pairs of tokens, int64 (n, 2) each: the i-th random pair is matched with the i-th related one.

    Attributes:
        related: pairs that share a set.
        random: pairs that share none.
        unmatched: related pairs that were left out, because no random pair is like them.
    """

    related: I64
    random: I64
    unmatched: int


def sharing(index: PathwayIndex, pairs: I64) -> npt.NDArray[np.bool_]:
    """Which pairs of tokens, int64 (n, 2), share a set: bool (n,)."""
    return np.asarray((index.bits[pairs[:, 0]] & index.bits[pairs[:, 1]]).any(axis=1))


def related_pairs(index: PathwayIndex, genes: I64) -> I64:
    """All pairs of these tokens, int64 (n_genes,), that share a set: int64 (n, 2)."""
    as_bytes = index.bits[genes].astype("<u8").view(np.uint8)
    member = scipy.sparse.csr_matrix(np.unpackbits(as_bytes, axis=1, bitorder="little")).astype(np.int32)
    shared = scipy.sparse.triu(member @ member.T, k=1).tocoo()
    return np.stack([genes[shared.row], genes[shared.col]], axis=1)


def match_classes(
    index: PathwayIndex, genes: I64, frequency: npt.NDArray[np.float64], trained: npt.NDArray[np.bool_]
) -> I64:
    """The class of each gene within which random genes are drawn: int64 (n_genes,).

    Genes of a class are in 1, 2, 3 to 4, 5 to 8, ... sets, are about as frequent, and are all or none in a set of
    training.

    Args:
        index: the sets.
        genes: int64 (n_genes,), tokens, each in a set.
        frequency: float64 (n_genes,), share of cells that have each.
        trained: bool (n_genes,), whether each is in a set of training.
    """
    n_sets = np.bitwise_count(index.bits[genes]).sum(1, dtype=np.int64)
    degree = np.ceil(np.log2(n_sets)).astype(np.int64)
    order = np.argsort(np.argsort(frequency, kind="stable"), kind="stable")
    often = order * FREQUENCY_CLASSES // len(genes)
    return np.asarray((degree * FREQUENCY_CLASSES + often) * 2 + trained)


def draw_matched(
    related: I64, genes: I64, classes: I64, indices: list[PathwayIndex], generator: np.random.Generator
) -> PairSample:
    """Draw related pairs, and for each a random pair whose genes have the same classes and share no set.

    Args:
        related: int64 (n, 2), the related pairs.
        genes: int64 (n_genes,), tokens, ascending.
        classes: int64 (n_genes,), of `match_classes`.
        indices: gene sets, of which random pairs share none.
        generator: draws.
    """
    if len(related) > MAX_PAIRS:
        related = related[np.sort(generator.choice(len(related), MAX_PAIRS, replace=False))]
    by_class = np.argsort(classes, kind="stable")
    # The genes of class c are genes[by_class][start[c] : start[c] + size[c]].
    size = np.bincount(classes)
    start = np.cumsum(size) - size
    of_pair = classes[np.searchsorted(genes, related)]
    random = np.full_like(related, -1)
    for _ in range(_TRIES):
        left = np.flatnonzero(random[:, 0] < 0)
        if not len(left):
            break
        wanted = of_pair[left]
        drawn = genes[by_class[start[wanted] + (generator.random(wanted.shape) * size[wanted]).astype(np.int64)]]
        unlike = drawn[:, 0] != drawn[:, 1]
        for index in indices:
            unlike &= ~sharing(index, drawn)
        random[left[unlike]] = drawn[unlike]
    found = random[:, 0] >= 0
    return PairSample(related[found], random[found], int((~found).sum()))
