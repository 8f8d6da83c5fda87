"""Name the gene of each hidden position of a cell, from the distributions that a predictor gives."""

import heapq
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data_shards.tokens.vocabulary import FIRST_GENE
from gm_train.evaluation.masked.masked_genes import MaskedCells, Predictor

I64 = npt.NDArray[np.int64]


def name_genes(log_probs: Tensor, visible: I64) -> I64:
    """Name a gene for each hidden position of a cell: the likeliest one first, each gene once.

    Of all pairs of a position and a gene, the likeliest is taken, then the likeliest of those whose position and gene
    are both free, and so on. A gene that the cell shows elsewhere is never named: a cell has each gene once. So the
    probabilities of each position are scaled to have the sum 1 over the other genes; those of the controls are so
    already. Of equally likely pairs, the first position comes first.

    Args:
        log_probs: (n, vocabulary), of the hidden positions, by position.
        visible: int64, the tokens that the cell shows.

    Returns:
        int64 (n,), a token for each position.
    """
    allowed = log_probs.clone()
    allowed[:, :FIRST_GENE] = -torch.inf
    allowed[:, torch.from_numpy(visible).to(allowed.device)] = -torch.inf
    allowed = allowed.log_softmax(-1)
    # Other positions take at most n - 1 genes away, so the n likeliest of each position suffice.
    n = len(allowed)
    values, genes = (part.cpu().tolist() for part in allowed.topk(n))
    named = np.zeros(n, dtype=np.int64)
    taken: set[int] = set()
    heap = [(-values[position][0], position, 0) for position in range(n)]
    heapq.heapify(heap)
    while heap:
        _, position, nth = heapq.heappop(heap)
        if genes[position][nth] not in taken:
            named[position] = genes[position][nth]
            taken.add(genes[position][nth])
            continue
        while genes[position][nth] in taken:
            nth += 1
        heapq.heappush(heap, (-values[position][nth], position, nth))
    return named


def reconstruct(predictor: Predictor, masked: MaskedCells) -> Iterator[tuple[I64, I64]]:
    """Reconstruct the hidden genes of each cell.

    Args:
        predictor: the network or a control.
        masked: the cells.

    Yields:
        For each cell with a hidden gene, in no fixed order: its hidden genes in their true order, and the genes named
        for their positions, both int64 (n,).

    Raises:
        ValueError: the predictor did not answer for each hidden position once.
    """
    spans = {int(np.searchsorted(masked.cells.indptr, at.start, "right")): (at, hid) for at, hid in masked.spans()}
    kept: dict[int, list[tuple[I64, Tensor]]] = defaultdict(list)
    for positions, log_probs in predictor(masked):
        cell_of = np.searchsorted(masked.cells.indptr, positions, "right")
        for cell in np.unique(cell_of).tolist():
            here = np.flatnonzero(cell_of == cell)
            kept[cell].append((positions[here], log_probs[torch.from_numpy(here).to(log_probs.device)]))
            if cell not in spans or sum(len(at) for at, _ in kept[cell]) < len(spans[cell][1]):
                continue
            span, hidden = spans.pop(cell)
            parts = kept.pop(cell)
            found = np.concatenate([at for at, _ in parts])
            order = np.argsort(found, kind="stable")
            if not np.array_equal(found[order], hidden):
                raise ValueError("the predictor did not answer for every hidden position exactly once")
            of_cell = torch.cat([part for _, part in parts])[torch.from_numpy(order).to(log_probs.device)]
            yield masked.cells.tokens[hidden].astype(np.int64), name_genes(of_cell, masked.visible[span])
    if kept or spans:
        raise ValueError("the predictor did not answer for every hidden position exactly once")
