"""Turn packed rows into the tensors of a forward pass; draw hidden tokens, targets and pathway pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from data_shards.hashing import mix64
from data_shards.rows.pool import Rows
from data_shards.store.quarantine import DamagedChunk
from gm_train.config.parts import load_part
from gm_train.objective.cell_keys import cell_keys
from gm_train.objective.pathway import draw_pairs
from gm_train.objective.recipe import Objective, Recipe
from gm_train.ranks.ranks import Ranks

I64 = npt.NDArray[np.int64]

#: How many numbers the ranks exchange about a step, from `StepInfo.numbers`.
N_NUMBERS = 7


@dataclass
class Examples:
    """Rows with everything that was drawn for them, as NumPy arrays.

    Attributes:
        input_ids: int64 (rows, length), the tokens that the model sees; 0 on the unused tail and in damaged cells.
        segment: int64 (rows, length), 1 … n for the cells of a row, 0 on the unused tail.
        target_at: int64 (n_targets,), flat position (row * length + column) of the state that predicts; ascending.
        targets: int64 (n_targets,), what it predicts, as the objective's loss reads it: usually a token. In a run that
            learns a label, `target_at` is the first position of each labelled cell, and `targets` its class.
        drawn: int64 (n_parts, n_draw), flat positions of the genes drawn for L_pathway, in each cell or, if the
            objective divides cells, in each part; -1 where there are no more.
        positive: bool (n_parts, n_draw, n_draw), which of them share a gene set.
        row_of_part: int64 (n_parts,), ascending; damaged cells are left out.
        n_cells: number of cells, damaged ones left out.
        n_tokens: number of tokens, those of damaged cells left out.
        sample_hash: hash of the set of cells, independent of their order, modulo 2^64.
    """

    input_ids: I64
    segment: I64
    target_at: I64
    targets: I64
    drawn: I64
    positive: npt.NDArray[np.bool_]
    row_of_part: I64
    n_cells: int
    n_tokens: int
    sample_hash: int


@dataclass
class StepInfo:
    """Counts of a whole step on this rank, known before the step is computed.

    Attributes:
        n_targets, n_pairs: divisors of the two losses' sums, once they are summed over ranks.
        n_cells, n_tokens: cells and tokens of the step, damaged cells left out.
        n_slots: positions of the step's rows, the unused tails included.
        sample_hash: hash of the set of cells, independent of their order, modulo 2^64.
        lanes: position of each of this rank's lanes after the step.
        damaged: chunks of tokens that this process found damaged for the first time in this step.
    """

    n_targets: int
    n_pairs: int
    n_cells: int
    n_tokens: int
    n_slots: int
    sample_hash: int
    lanes: dict[int, tuple[int, int]]
    damaged: tuple[DamagedChunk, ...] = ()

    def numbers(self) -> list[int]:
        """The `N_NUMBERS` int64 numbers from which the counts of all ranks are made."""
        # The hash as a signed number.
        signed = (self.sample_hash + 2**63) % 2**64 - 2**63
        return [self.n_targets, self.n_pairs, self.n_cells, self.n_tokens, self.n_slots, signed, len(self.damaged)]

    def summed(self, numbers: Sequence[Sequence[int]], ranks: Ranks) -> "StepInfo":
        """Sum the counts and collect the damaged chunks of all ranks; `lanes` stay those of this rank.

        Args:
            numbers: `numbers` of each rank.
            ranks: this process among the others.
        """
        sums = [sum(of_ranks) for of_ranks in zip(*numbers, strict=True)]
        n_targets, n_pairs, n_cells, n_tokens, n_slots, sample_hash, n_damaged = sums
        damaged = tuple(chunk for of_rank in ranks.gather(self.damaged) for chunk in of_rank) if n_damaged else ()
        return StepInfo(n_targets, n_pairs, n_cells, n_tokens, n_slots, sample_hash % 2**64, self.lanes, damaged)

    def over(self, ranks: Ranks) -> "StepInfo":
        """As `summed`, after an exchange of the numbers."""
        return self.summed(ranks.gather_numbers(self.numbers())(), ranks)


@dataclass
class MicroBatch:
    """One forward pass: tensors as in `Examples`, its step, and whether it is the step's first and last.

    For a GPU, `targets` may end with pads, which count for nothing (`padded_targets.py`).

    Attributes:
        most_cells: number of cells, or parts of cells, of the row that has most of them, or more.
        ahead: with the last of a step, the counts of the next step on this rank; None if there is no next step.
    """

    input_ids: Tensor
    segment: Tensor
    target_at: Tensor
    targets: Tensor
    drawn: Tensor
    positive: Tensor
    most_cells: int
    info: StepInfo
    first: bool
    last: bool
    ahead: StepInfo | None = None


def make_examples(rows: Rows, recipe: Recipe, classes: I64 | None = None) -> Examples:
    """Draw masks and pairs for rows and lay them out; a pure function of the arguments.

    A damaged cell keeps its positions, which show `<pad>` and have a segment of their own. It has no targets and no
    pairs, and does not count as a cell or tokens.

    Args:
        rows: whole cells, packed.
        recipe: what is drawn.
        classes: int64 (n_cells,), the class of each cell, negative without one: then nothing is hidden, and the classes
            are the targets. None for a run that learns no label.
    """
    length = recipe.row_length
    language: Objective = load_part("objective.language", recipe.objective.language)
    of_cells = cell_keys(recipe.seed, rows.places[~rows.damaged], rows.cells[~rows.damaged])
    sample_hash = int(mix64(of_cells).sum(dtype=np.uint64)) if len(of_cells) else 0
    if classes is None and language.divide is not None:
        rows = language.divide(rows, recipe)
    input_ids, segment = rows.lay_out(length)
    lengths, places, cells = rows.lengths, rows.places, rows.cells
    tokens = rows.tokens.astype(np.int64)
    row_of_part = np.repeat(np.arange(len(rows)), rows.cells_of_row)
    ends = np.cumsum(lengths)
    begin_of_row = np.concatenate([[0], ends[np.cumsum(rows.cells_of_row) - 1]])[:-1]
    first = row_of_part * length + ends - lengths - begin_of_row[row_of_part]
    if rows.damaged.any():
        whole = ~rows.damaged
        tokens = tokens[np.repeat(whole, lengths)]
        lengths, places, cells, row_of_part, first = (
            of_parts[whole] for of_parts in (lengths, places, cells, row_of_part, first)
        )
        classes = None if classes is None else classes[whole]
    if classes is not None:
        labelled = classes >= 0
        return Examples(
            input_ids,
            segment,
            first[labelled],
            classes[labelled],
            np.empty((len(lengths), 0), dtype=np.int64),
            np.empty((len(lengths), 0, 0), dtype=bool),
            row_of_part,
            len(of_cells),
            len(tokens),
            sample_hash,
        )
    flat = np.repeat(first - np.cumsum(lengths) + lengths, lengths)
    flat += np.arange(len(tokens))
    keys = cell_keys(recipe.seed, places, cells)
    prediction = language.predict(tokens, lengths, keys, recipe)
    target_at = flat[prediction.states]
    input_ids.reshape(-1)[flat[prediction.hidden]] = prediction.visible[prediction.hidden]

    if recipe.pathways is None:
        drawn = np.empty((len(lengths), 0), dtype=np.int64)
        positive = np.empty((len(lengths), 0, 0), dtype=bool)
    else:
        drawn, positive = draw_pairs(
            tokens, prediction.hidden, lengths, keys, recipe.pathways, recipe.objective.pathway_genes
        )
        drawn = np.where(drawn >= 0, flat[drawn], -1)

    return Examples(
        input_ids,
        segment,
        target_at,
        prediction.targets,
        drawn,
        positive,
        row_of_part,
        len(of_cells),
        len(tokens),
        sample_hash,
    )


def join(parts: list[Examples]) -> Examples:
    """Concatenate examples, rows in the order of the parts."""
    if len(parts) == 1:
        return parts[0]
    n_rows = [len(part.input_ids) for part in parts]
    shifts = np.cumsum([0, *n_rows[:-1]])
    length = parts[0].input_ids.shape[1]
    pairs = list(zip(parts, shifts, strict=True))
    return Examples(
        np.concatenate([part.input_ids for part in parts]),
        np.concatenate([part.segment for part in parts]),
        np.concatenate([part.target_at + shift * length for part, shift in pairs]),
        np.concatenate([part.targets for part in parts]),
        np.concatenate([np.where(part.drawn >= 0, part.drawn + shift * length, -1) for part, shift in pairs]),
        np.concatenate([part.positive for part in parts]),
        np.concatenate([part.row_of_part + shift for part, shift in pairs]),
        sum(part.n_cells for part in parts),
        sum(part.n_tokens for part in parts),
        sum(part.sample_hash for part in parts) % (1 << 64),
    )


def split(
    examples: Examples,
    micro_rows: int,
    lanes: dict[int, tuple[int, int]],
    damaged: tuple[DamagedChunk, ...] = (),
) -> list[MicroBatch]:
    """Cut the examples of a step into forward passes of `micro_rows` rows (the last may be smaller).

    Args:
        examples: all rows of this rank in the step.
        micro_rows: rows of a forward pass.
        lanes: position of each of this rank's lanes after the step.
        damaged: chunks of tokens that were found damaged, as in `StepInfo`.
    """
    n_rows, length = examples.input_ids.shape
    info = StepInfo(
        n_targets=len(examples.targets),
        n_pairs=int(examples.positive.sum()),
        n_cells=examples.n_cells,
        n_tokens=examples.n_tokens,
        n_slots=n_rows * length,
        sample_hash=examples.sample_hash,
        lanes=lanes,
        damaged=damaged,
    )
    batches = []
    for first in range(0, n_rows, micro_rows):
        last = first + micro_rows
        target = slice(*np.searchsorted(examples.target_at, [first * length, last * length]))
        part = slice(*np.searchsorted(examples.row_of_part, [first, last]))
        drawn = examples.drawn[part]
        batches.append(
            MicroBatch(
                input_ids=torch.from_numpy(examples.input_ids[first:last]),
                segment=torch.from_numpy(examples.segment[first:last]),
                target_at=torch.from_numpy(examples.target_at[target] - first * length),
                targets=torch.from_numpy(examples.targets[target]),
                drawn=torch.from_numpy(np.where(drawn >= 0, drawn - first * length, -1)),
                positive=torch.from_numpy(examples.positive[part]),
                most_cells=int(examples.segment[first:last].max(initial=0)),
                info=info,
                first=first == 0,
                last=last >= n_rows,
            )
        )
    return batches
