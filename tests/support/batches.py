"""Micro-batches written out cell by cell."""

from collections.abc import Sequence

import torch

from gm_train.objective.batches import MicroBatch, StepInfo


def batch_of(rows: Sequence[Sequence[Sequence[int]]], labelled: Sequence[int], length: int) -> MicroBatch:
    """Make a micro-batch of a run that learns a label; the class of a cell is its number modulo 3.

    Args:
        rows: the tokens of the cells of each row.
        labelled: numbers of the cells with a label, counted over all rows.
        length: of a row.
    """
    input_ids = torch.zeros(len(rows), length, dtype=torch.int64)
    segment = torch.zeros_like(input_ids)
    first = []
    for number, cells in enumerate(rows):
        at = 0
        for segment_number, cell in enumerate(cells, 1):
            input_ids[number, at : at + len(cell)] = torch.tensor(cell)
            segment[number, at : at + len(cell)] = segment_number
            first.append(number * length + at)
            at += len(cell)
    n_cells = len(first)
    info = StepInfo(len(labelled), 0, n_cells, int((segment > 0).sum()), input_ids.numel(), 0, {})
    return MicroBatch(
        input_ids,
        segment,
        torch.tensor([first[i] for i in labelled]),
        torch.tensor([i % 3 for i in labelled]),
        torch.empty(n_cells, 0, dtype=torch.int64),
        torch.empty(n_cells, 0, 0, dtype=torch.bool),
        int(segment.max()),
        info,
        True,
        True,
    )
