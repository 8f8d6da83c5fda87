"""Masked-gene scores: how well a predictor guesses the hidden genes of held-out cells.

A predictor is a network or a table. It gives each hidden position a distribution over the whole vocabulary. All
predictors are scored here, on the same positions, so that their scores can be compared.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data_shards.errors import DataError
from data_shards.hashing import U64
from gm_train.embedding.ragged import Ragged, padded_batches
from gm_train.model.genemamba import GeneMamba
from gm_train.objective.loss import computing_in
from gm_train.objective.masking import mask_tokens

#: Logits that the model's predictor holds at once: 256 MiB in fp32.
CHUNK_LOGITS = 1 << 26


@dataclass(frozen=True)
class MaskedCells:
    """Cells with some genes hidden; every hidden position shows `<mask>`.

    Attributes:
        cells: the true tokens.
        visible: int64 (n_tokens,), the tokens with `<mask>` at hidden positions.
        hidden: bool (n_tokens,), true at hidden positions.
    """

    cells: Ragged
    visible: npt.NDArray[np.int64]
    hidden: npt.NDArray[np.bool_]

    def spans(self) -> Iterator[tuple[slice, npt.NDArray[np.int64]]]:
        """For each cell with a hidden gene, yield its slice of the tokens and its hidden positions, int64 (n,)."""
        for start, end in zip(self.cells.indptr[:-1], self.cells.indptr[1:], strict=True):
            hidden = start + np.flatnonzero(self.hidden[start:end])
            if len(hidden):
                yield slice(int(start), int(end)), hidden


#: Takes masked cells; yields positions, int64 (n,), and log probabilities over the vocabulary, (n, vocabulary).
Predictor = Callable[[MaskedCells], Iterator[tuple[npt.NDArray[np.int64], Tensor]]]


@dataclass(frozen=True)
class Score:
    """Means over all hidden positions.

    Attributes:
        cross_entropy: nats, over the whole vocabulary.
        top1, top10: share of positions whose gene is the likeliest one, or among the ten likeliest, in %.
    """

    cross_entropy: float
    top1: float
    top10: float


def mask_cells(cells: Ragged, keys: U64, vocabulary_size: int, mask_rate: float) -> MaskedCells:
    """Hide genes as in training, except that `<mask>` always replaces them, never a random gene.

    Args:
        cells: the cells.
        keys: uint64 (n_cells,), from `cell_keys`: the random key of each cell.
        vocabulary_size: number of tokens, specials included.
        mask_rate: probability that a token is hidden.
    """
    tokens = cells.tokens.astype(np.int64)
    visible, hidden = mask_tokens(tokens, cells.lengths, keys, vocabulary_size, mask_rate, random_rate=0.0)
    return MaskedCells(Ragged(tokens, cells.indptr), visible, hidden)


def score_masked(predictor: Predictor, masked: MaskedCells) -> Score:
    """Score one predictor.

    Where genes are equally likely, a hit counts as its probability under a random order of them.

    Raises:
        DataError: no position is hidden.
        ValueError: the predictor did not answer for each hidden position once.
    """
    n_hidden = int(masked.hidden.sum())
    if not n_hidden:
        raise DataError("no gene of the held-out cells is hidden: evaluate more cells (--max-cells)")
    answers = np.zeros(len(masked.hidden), dtype=np.int64)
    sums = np.zeros(3)
    for positions, log_probs in predictor(masked):
        answers[positions] += 1
        targets = torch.from_numpy(masked.cells.tokens[positions]).to(log_probs.device)
        of_target = log_probs.gather(1, targets[:, None])
        better = (log_probs > of_target).sum(1)
        equal = (log_probs == of_target).sum(1)
        hits = [torch.clamp((k - better) / equal, 0, 1).sum() for k in (1, 10)]
        sums += torch.stack([-of_target.double().sum(), *hits]).cpu().double().numpy()
    if not np.array_equal(answers, masked.hidden):
        raise ValueError("the predictor did not answer for every hidden position exactly once")
    entropy, top1, top10 = sums / n_hidden
    return Score(float(entropy), 100 * float(top1), 100 * float(top10))


def model_predictor(model: GeneMamba, precision: str = "fp32") -> Predictor:
    """Make a predictor of the network. Unlike the controls, it may guess a visible gene.

    Args:
        model: in evaluation mode, on the device to use.
        precision: "fp32", or "bf16" for autocast in the layers; the output layer is always float32.
    """
    device = next(model.parameters()).device
    rows = max(1, CHUNK_LOGITS // model.embedding.num_embeddings)

    @torch.inference_mode()
    def predict(masked: MaskedCells) -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
        shown = Ragged(masked.visible, masked.cells.indptr)
        for numbers, input_ids, segment in padded_batches(shown, device):
            # Index of each token of the batch in the flat arrays; pads are never hidden.
            flat = masked.cells.indptr[numbers][:, None] + np.arange(input_ids.shape[1])
            hidden = segment[: len(numbers)].cpu().numpy() > 0
            hidden[hidden] = masked.hidden[flat[hidden]]
            with computing_in(precision, device):
                states = model(input_ids, segment)[: len(numbers)][torch.from_numpy(hidden).to(device)]
            positions = flat[hidden]
            for start in range(0, len(positions), rows):
                # In float32: in bfloat16 many genes would be equally likely.
                logits = model.logits(states[start : start + rows].float())
                yield positions[start : start + rows], torch.log_softmax(logits, dim=-1)

    return predict
