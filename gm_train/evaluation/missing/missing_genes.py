"""Missing-gene scores: a random half of a held-out cell's genes is shown, and a guess names the others.

A guess is made by a network or from counts. It gives each cell a distribution over the genes that are not shown. All
guesses are scored here, on the same halves, so that their scores can be compared.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse
import torch
from torch import Tensor

from data_shards.hashing import U64, fold, mix64, uniform
from data_shards.tokens.vocabulary import FIRST_GENE
from gm_train.embedding.ragged import Ragged, padded_batches
from gm_train.model.genemamba import GeneMamba, cell_embeddings
from gm_train.objective.loss import computing_in

#: Probability with which a gene is shown. It does not depend on training, so that scores of runs can be compared.
SHOWN = 0.5
_PURPOSE = 41


@dataclass(frozen=True)
class DividedCells:
    """Cells whose genes are divided into those that are shown and those that are missing; both have at least one.

    Attributes:
        shown, missing: their tokens, in the order of the cell.
        expression: float32 (n_cells, n_genes), log1p of counts per 10,000 counts of shown genes; 0 for other genes.
    """

    shown: Ragged
    missing: Ragged
    expression: scipy.sparse.csr_matrix

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.shown.n_cells

    def take(self, cells: npt.NDArray[np.int64]) -> "DividedCells":
        """The cells of these numbers, int64 (n,), in the order given."""
        return DividedCells(self.shown.take(cells), self.missing.take(cells), self.expression[cells])


#: Takes divided cells; yields cell numbers, int64 (n,), and log probabilities over the vocabulary, (n, vocabulary),
#: which are minus infinity for genes that are shown and for special tokens.
Guess = Callable[[DividedCells], Iterator[tuple[npt.NDArray[np.int64], Tensor]]]


@dataclass(frozen=True)
class MissingScore:
    """Means over cells.

    Attributes:
        cross_entropy: nats, over all genes that are not shown; averaged over a cell's missing genes.
        found: share of a cell's n missing genes that are among the n likeliest ones, in %.
    """

    cross_entropy: float
    found: float


def divide(cells: Ragged, expression: scipy.sparse.csr_matrix, keys: U64) -> DividedCells:
    """Show each gene of each cell with probability `SHOWN`; cells of which all genes or none are shown are left out.

    Args:
        cells: the cells.
        expression: float32 (n_cells, n_genes) of the same cells, log1p of counts in some unit, by gene of the
            vocabulary.
        keys: uint64 (n_cells,), from `cell_keys`: the random key of each cell.
    """
    number = np.repeat(np.arange(cells.n_cells), cells.lengths)
    # Of the gene and not of its rank, so that plain and dithered ranks show the same genes.
    hashes = mix64(mix64(keys ^ np.uint64(fold(_PURPOSE)))[number] ^ cells.tokens.astype(np.uint64))
    is_shown = uniform(hashes) < SHOWN
    n_shown = np.bincount(number[is_shown], minlength=cells.n_cells)
    kept = np.flatnonzero((n_shown > 0) & (n_shown < cells.lengths))
    genes = cells.tokens[is_shown].astype(np.int64) - FIRST_GENE
    ones = np.ones(len(genes), np.float32)
    of_shown = scipy.sparse.csr_matrix((ones, (number[is_shown], genes)), shape=expression.shape)

    def part(chosen: npt.NDArray[np.bool_]) -> Ragged:
        lengths = np.bincount(number[chosen], minlength=cells.n_cells)
        return Ragged(cells.tokens[chosen], np.concatenate([[0], np.cumsum(lengths)])).take(kept)

    shown_expression = expression.multiply(of_shown).tocsr()[kept]
    # The total of a whole cell would tell how much is missing.
    counts = np.expm1(shown_expression.data)
    of_cell = np.repeat(np.arange(len(kept)), np.diff(shown_expression.indptr))
    totals = np.bincount(of_cell, counts, len(kept))
    shown_expression.data = np.log1p(10_000 * counts / totals[of_cell]).astype(np.float32)
    return DividedCells(part(is_shown), part(~is_shown), shown_expression)


def score_missing(guess: Guess, cells: DividedCells) -> MissingScore:
    """Score one guess.

    Genes that are equally likely count as if in a random order.

    Raises:
        ValueError: the guess did not answer for each cell once, or there are no cells.
    """
    if not cells.n_cells:
        raise ValueError("there are no cells to score")
    answers = np.zeros(cells.n_cells, dtype=np.int64)
    entropy, found = np.zeros(cells.n_cells), np.zeros(cells.n_cells)
    for numbers, log_probs in guess(cells):
        answers[numbers] += 1
        for number, row in zip(numbers, log_probs, strict=True):
            missing = torch.from_numpy(cells.missing.cell(number).astype(np.int64)).to(row.device)
            of_missing, n = row[missing], len(missing)
            entropy[number] = -of_missing.double().mean().item()
            least = row.topk(n).values[-1]
            above, equal = (row > least).sum(), (row == least).sum()
            hits = (of_missing > least).sum() + (of_missing == least).sum() * (n - above) / equal
            found[number] = 100 * hits.item() / n
    if not (answers == 1).all():
        raise ValueError("the guess did not answer for every cell exactly once")
    return MissingScore(float(entropy.mean()), float(found.mean()))


def model_guess(model: GeneMamba, precision: str = "fp32") -> Guess:
    """Make the guess of the network: its output layer, applied to the mean of the states of the shown genes.

    Args:
        model: in evaluation mode, on the device to use.
        precision: "fp32", or "bf16" for autocast in the layers; the output layer is always float32.
    """
    device = next(model.parameters()).device

    @torch.inference_mode()
    def guess(cells: DividedCells) -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
        for numbers, input_ids, segment in padded_batches(cells.shown, device):
            with computing_in(precision, device):
                states = model(input_ids, segment)
            logits = model.logits(cell_embeddings(states, segment).float())
            is_shown = torch.zeros_like(logits, dtype=torch.bool)
            is_shown.scatter_(1, input_ids[: len(numbers)], segment[: len(numbers)] > 0)
            is_shown[:, :FIRST_GENE] = True
            yield numbers, torch.log_softmax(logits.masked_fill_(is_shown, -torch.inf), dim=-1)

    return guess
