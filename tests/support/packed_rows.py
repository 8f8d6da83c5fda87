"""Rows of packed cells."""

import torch
from torch import Tensor


def packed(lengths: list[list[int]]) -> Tensor:
    """Segments of rows that hold cells of these lengths; shorter rows end in an unused tail."""
    length = max(map(sum, lengths))
    segment = torch.zeros(len(lengths), length, dtype=torch.int64)
    for row, cells in zip(segment, lengths, strict=True):
        ends = torch.tensor(cells).cumsum(0).tolist()
        for number, (n, end) in enumerate(zip(cells, ends, strict=True), start=1):
            row[end - n : end] = number
    return segment
