"""Reconstruction as published: the model sees a cell's whole order and repeats it. Copying is enough for that.

As far as the published code could be read, it feeds whole cells, takes the likeliest token at each position, joins ten
cells, and compares the joined lists position by position with the input, although a model of next tokens answers one
position early.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from rapidfuzz.distance import Levenshtein

from data_shards.errors import DataError
from data_shards.tokens.vocabulary import PAD
from gm_train.embedding.ragged import Ragged, padded_batches
from gm_train.evaluation.masked.masked_genes import CHUNK_LOGITS
from gm_train.evaluation.reconstruction.bleu import bleu
from gm_train.model.genemamba import GeneMamba
from gm_train.objective.loss import computing_in

#: Cells that are joined to one list.
GROUP = 10

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PaperScore:
    """Scores of one group of cells.

    Attributes:
        distance: L-Dist, the Levenshtein distance of the joined lists, in tokens.
        bleu: of the joined lists, 0 to 1.
        exact: share of positions with the right token, in %.
    """

    distance: float
    bleu: float
    exact: float


def refuse_few(n_cells: int) -> None:
    """Raise DataError if there are too few cells for one group."""
    if n_cells < GROUP:
        raise DataError(
            f"--paper-reconstruction joins {GROUP} cells, but {n_cells} held-out cells are scored: "
            "evaluate more cells (--max-cells) or leave the option out"
        )


def copied_input(cells: Ragged) -> I64:
    """Answer each position with its own token: int64 (n_tokens,)."""
    return cells.tokens.astype(np.int64)


def copy_machine(cells: Ragged) -> I64:
    """Answer each position with the cell's next token, as a model of next tokens that sees them: int64 (n_tokens,).

    A cell's last position has no next token; `PAD` stands there, which is wrong.
    """
    answers = np.full(len(cells.tokens), PAD, dtype=np.int64)
    answers[:-1] = cells.tokens[1:]
    answers[cells.indptr[1:][cells.lengths > 0] - 1] = PAD
    return answers


@torch.inference_mode()
def repeated_by(model: GeneMamba, cells: Ragged, precision: str = "fp32") -> I64:
    """Answer each position with the model's likeliest token; it sees the whole cell.

    Args:
        model: in evaluation mode, on the device to use.
        cells: the cells.
        precision: "fp32", or "bf16" for autocast in the layers.

    Returns:
        int64 (n_tokens,).
    """
    device = next(model.parameters()).device
    rows = max(1, CHUNK_LOGITS // model.embedding.num_embeddings)
    answers = np.full(len(cells.tokens), PAD, dtype=np.int64)
    for numbers, input_ids, segment in padded_batches(cells, device):
        with computing_in(precision, device):
            states = model(input_ids, segment)[: len(numbers)][segment[: len(numbers)] > 0]
        found = [model.logits(states[i : i + rows].float()).argmax(-1) for i in range(0, len(states), rows)]
        answers[np.concatenate([np.arange(cells.indptr[n], cells.indptr[n + 1]) for n in numbers])] = (
            torch.cat(found).cpu().numpy()
        )
    return answers


def score_groups(cells: Ragged, answers: I64) -> list[PaperScore]:
    """Score the answers of each group of `GROUP` cells, in their order; cells of an incomplete last group are left out.

    Args:
        cells: the true tokens.
        answers: int64 (n_tokens,), a token for each position.
    """
    return [
        PaperScore(
            float(Levenshtein.distance(truth, guess)),
            bleu([(truth, guess)]),
            100 * float(np.mean(np.equal(truth, guess))),
        )
        for truth, guess in _groups(cells, answers)
    ]


def _groups(cells: Ragged, answers: I64) -> Iterator[tuple[list[int], list[int]]]:
    """Yield the joined tokens and answers of each group."""
    for first in range(0, cells.n_cells - GROUP + 1, GROUP):
        span = slice(cells.indptr[first], cells.indptr[first + GROUP])
        yield cells.tokens[span].tolist(), answers[span].tolist()
