"""Directed influence: how much one gene that is shown changes what the model says of another gene that is hidden.

The genes of a cell are divided into two halves. One is shown, the other is hidden, each gene of the shown half is taken
out in turn, and the probabilities of the hidden genes are read again. Then the halves change places. So each pair of
genes in different halves is asked in both directions, in the same cell and as the model was trained to be asked.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data_shards.hashing import U64, fold, mix64, uniform
from data_shards.tokens.vocabulary import FIRST_GENE, MASK
from data_shards.workers import interrupts
from gm_train.embedding.ragged import Ragged, padded_batches
from gm_train.model.genemamba import GeneMamba, cell_embeddings
from gm_train.objective.loss import computing_in

_PURPOSE = 43

BOOL = npt.NDArray[np.bool_]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class HalvedCells:
    """Cells whose genes are divided into two halves.

    Attributes:
        cells: their tokens.
        first: bool (n_tokens,), which are in the first half.
    """

    cells: Ragged
    first: BOOL

    def turns(self) -> Iterator[tuple[I64, BOOL]]:
        """For each cell and each of its halves, yield the cell's tokens, int64 (n,), and which are shown, bool (n,)."""
        for start, end in zip(self.cells.indptr[:-1], self.cells.indptr[1:], strict=True):
            tokens, first = self.cells.tokens[start:end].astype(np.int64), self.first[start:end]
            for shown in (first, ~first):
                if shown.sum() > 1 and not shown.all():  # one can be taken out
                    yield tokens, shown

    def n_asked(self, pairs: I64, vocabulary_size: int) -> I64:
        """In how many cells each pair of tokens, int64 (n, 2), is asked for in its rarer direction: int64 (n,)."""
        shown, hidden = np.zeros((2, 2 * self.cells.n_cells, vocabulary_size), np.bool_)
        for turn, (tokens, is_shown) in enumerate(self.turns()):
            shown[turn, tokens[is_shown]], hidden[turn, tokens[~is_shown]] = True, True
        a, b = pairs.T
        counts = [np.count_nonzero(shown[:, i] & hidden[:, j], axis=0) for i, j in ((a, b), (b, a))]
        return np.asarray(np.minimum(*counts))


def halve(cells: Ragged, keys: U64) -> HalvedCells:
    """Divide the genes of each cell evenly by a hash.

    Args:
        cells: the cells.
        keys: uint64 (n_cells,), from `cell_keys`: the random key of each cell.
    """
    number = np.repeat(np.arange(cells.n_cells), cells.lengths)
    # Of the gene and not of its rank, so that plain and dithered ranks show the same genes.
    hashes = mix64(mix64(keys ^ np.uint64(fold(_PURPOSE)))[number] ^ cells.tokens.astype(np.uint64))
    return HalvedCells(cells, uniform(hashes) < 0.5)


@torch.inference_mode()
def influences(model: GeneMamba, halved: HalvedCells, genes: I64, language: str, precision: str = "fp32") -> F64:
    """Compute the mean influence of each gene on each other one: float64 (n_genes, n_genes), 0 where never asked.

    The influence of i on j in a cell is the change of log p(j), in nats, when i is taken out, less the mean change of
    all hidden genes of the cell:

        d_j = log p(j | shown) - log p(j | shown without i),    influence = d_j - mean over hidden k of d_k

    Args:
        model: in evaluation mode, on the device to use.
        halved: the cells.
        genes: int64 (n_genes,), tokens.
        language: "missing": hidden genes are taken out of the cell, and p(j) is that of the pooled state over genes
            that are not shown. "masked": hidden genes show `<mask>`, as does i, and p(j) is read at the place of j.
        precision: "fp32", or "bf16" for autocast in the layers; the output layer is always float32.
    """
    ask = {"missing": _ask_missing, "masked": _ask_masked}[language]
    place = np.full(model.embedding.num_embeddings, -1)
    place[genes] = np.arange(len(genes))
    sums, counts = np.zeros((2, len(genes), len(genes)))
    for tokens, shown in halved.turns():
        places = place[tokens]
        asked, hidden = np.flatnonzero(shown & (places >= 0)), np.flatnonzero(~shown)
        if not len(asked):
            continue
        # Row 0 with all that is shown, then without each gene that is asked for.
        without = np.repeat(shown[None], len(asked) + 1, axis=0)
        without[1 + np.arange(len(asked)), asked] = False
        log_probs = ask(model, tokens, without, hidden, precision)
        change = log_probs[0] - log_probs[1:]
        change -= change.mean(1, keepdims=True)
        of_genes = places[hidden] >= 0
        pairs = np.ix_(places[asked], places[hidden[of_genes]])
        sums[pairs] += change[:, of_genes]
        counts[pairs] += 1
        interrupts.check()
    return np.asarray(sums / np.maximum(counts, 1))


def _ask_missing(model: GeneMamba, tokens: I64, shown: BOOL, hidden: I64, precision: str) -> F64:
    """Log probabilities of the hidden genes, float64 (n_rows, n_hidden), for rows that show parts of a cell.

    Args:
        model: the model.
        tokens: int64 (n,), those of the cell.
        shown: bool (n_rows, n), what each row shows; the first row shows most.
        hidden: int64 (n_hidden,), positions that no row shows.
        precision: of the layers.
    """
    lengths = shown.sum(1)
    rows = Ragged(np.broadcast_to(tokens, shown.shape)[shown], np.concatenate([[0], np.cumsum(lengths)]))
    device = model.embedding.weight.device
    left_out = torch.zeros(model.embedding.num_embeddings, dtype=torch.bool, device=device)
    left_out[:FIRST_GENE] = True
    left_out[torch.from_numpy(tokens[shown[0]]).to(device)] = True
    targets = torch.from_numpy(tokens[hidden]).to(device)
    found = np.zeros((len(shown), len(hidden)))
    for numbers, input_ids, segment in padded_batches(rows, device):
        with computing_in(precision, device):
            states = model(input_ids, segment)
        logits = model.logits(cell_embeddings(states, segment).float())
        found[numbers] = _log_softmax(logits.masked_fill(left_out, -torch.inf), targets.expand(len(numbers), -1))
    return found


def _ask_masked(model: GeneMamba, tokens: I64, shown: BOOL, hidden: I64, precision: str) -> F64:
    """As `_ask_missing`; what a row does not show is `<mask>`, and each hidden gene is read at its own position."""
    rows = Ragged(np.where(shown, tokens, MASK).ravel(), np.arange(len(shown) + 1) * len(tokens))
    device = model.embedding.weight.device
    at, targets = (torch.from_numpy(array).to(device) for array in (hidden, tokens[hidden]))
    found = np.zeros((len(shown), len(hidden)))
    for numbers, input_ids, segment in padded_batches(rows, device):
        with computing_in(precision, device):
            states = model(input_ids, segment)[: len(numbers)]
        for number, of_row in zip(numbers, states, strict=True):  # a row at a time: its logits are as many as a batch
            logits = model.logits(of_row[at].float())
            found[number] = _log_softmax(logits, targets[:, None])[:, 0]
    return found


def _log_softmax(logits: Tensor, targets: Tensor) -> F64:
    """Log probabilities of the targets, float64 of their shape (rows, n), by logits (rows, vocabulary)."""
    return np.asarray(torch.log_softmax(logits, dim=-1).gather(1, targets).double().cpu().numpy())
