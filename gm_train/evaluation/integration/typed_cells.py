"""The cells of an evaluation that integration is scored on: those with a type and a batch."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_shards.errors import DataError
from gm_train.evaluation.cells import EvaluationCells
from gm_train.evaluation.integration.scib_scores import NEIGHBOURS
from gm_train.evaluation.labels import Labels

#: Seeds of the subsamples; each also draws the random controls.
SEEDS = 3
#: Each seed scores this share of the cells of each type, drawn anew.
SUBSAMPLE = 0.8
#: Held-out cells are scored alone if they are so many for each type, on average, and have all types with so many cells.
CELLS_A_TYPE = 10

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TypedCells:
    """Cells with a type and a batch.

    Attributes:
        numbers: int64, the cells that are scored, ascending.
        draws: for each seed, int64, the cells among them that it scores.
        typed: int64, all cells of the evaluation with a type and a batch.
        types, batches: object (n_cells,) of all cells of the evaluation, str; None where a cell has none.
        why_all: why held-out cells are not scored alone; None if they are.
    """

    numbers: I64
    draws: tuple[I64, ...]
    typed: I64
    types: Labels
    batches: Labels
    why_all: str | None

    @property
    def only_held_out(self) -> bool:
        """Whether the scored cells are held-out ones."""
        return self.why_all is None

    @classmethod
    def of(cls, cells: EvaluationCells) -> "TypedCells":
        """Choose the held-out cells, or all cells if too few are held out or a batch or a type would be lost.

        A model is trained without types and batches, so training cells tell it neither.

        Raises:
            DataError: integration cannot be scored on these cells; the message says why.
        """
        if cells.labels is None or cells.batches is None:
            asked = " and ".join(
                option for option, given in (("--label", cells.labels), ("--batch", cells.batches)) if given is None
            )
            raise DataError(f"columns of obs with types and batches are needed: add {asked}")
        both = [t is not None and b is not None for t, b in zip(cells.labels, cells.batches, strict=True)]
        typed = np.flatnonzero(np.array(both, dtype=np.bool_))
        held_out = typed[cells.held_out[typed]]
        if not (why_all := _lost(cells, typed, held_out)):
            try:
                return cls(held_out, _draw(cells, held_out), typed, cells.labels, cells.batches, None)
            except DataError as error:  # All cells may still do.
                why_all = f"of the held-out cells, {error}"
        return cls(typed, _draw(cells, typed), typed, cells.labels, cells.batches, why_all)


def _lost(cells: EvaluationCells, typed: I64, held_out: I64) -> str:
    """Say what would be lost if the held-out cells were scored alone; empty if nothing."""
    assert cells.labels is not None
    assert cells.batches is not None
    n_batches, n_held_out = len(set(cells.batches[typed])), len(set(cells.batches[held_out]))
    if n_held_out < n_batches:
        return f"the held-out cells have {n_held_out:,} of {n_batches:,} {cells.batch!r}"
    kept = set(cells.labels[held_out])
    if len(held_out) < CELLS_A_TYPE * len(kept):
        return (
            f"{len(held_out):,} held-out cells of {len(kept):,} {cells.label!r} are fewer than {CELLS_A_TYPE} for "
            "each, on average"
        )
    names, counts = np.unique(cells.labels[typed].astype(str), return_counts=True)
    if lost := sorted(set(names[counts >= CELLS_A_TYPE].tolist()) - kept):
        return (
            f"the held-out cells lack {len(lost):,} {cells.label!r} that have at least {CELLS_A_TYPE} cells, such as "
            f"{lost[0]!r}"
        )
    return ""


def _draw(cells: EvaluationCells, numbers: I64) -> tuple[I64, ...]:
    """Draw the cells of each seed.

    Raises:
        DataError: types and batches of some cells do not allow to score integration.
    """
    assert cells.labels is not None
    assert cells.batches is not None
    _check(cells.labels[numbers], cells.batches[numbers], str(cells.label), str(cells.batch))
    draws = []
    for seed in range(SEEDS):
        generator = np.random.default_rng(seed)
        drawn = []
        # Each seed draws as many cells of each type as the others.
        for name in np.unique(cells.labels[numbers].astype(str)):
            here = numbers[cells.labels[numbers] == name]
            drawn.append(generator.permutation(here)[: max(1, round(SUBSAMPLE * len(here)))])
        draw = np.sort(np.concatenate(drawn))
        _check(cells.labels[draw], cells.batches[draw], str(cells.label), str(cells.batch))
        draws.append(draw)
    return tuple(draws)


def _check(types: Labels, batches: Labels, label: str, batch: str) -> None:
    """Refuse cells whose integration cannot be scored.

    Raises:
        DataError: the message says why.
    """
    if len(types) <= NEIGHBOURS:
        raise DataError(
            f"{len(types):,} cells with both {label!r} and {batch!r} can be scored at once, and the neighbour graph "
            f"needs more than {NEIGHBOURS}"
        )
    for column, names in ((label, types), (batch, batches)):
        if len(set(names)) < 2:
            raise DataError(f"all cells have the same {column!r} ({names[0]})")
    types_of: dict[str, set[str]] = {}
    batches_of: dict[str, list[str]] = {}
    for one, other in zip(types, batches, strict=True):
        types_of.setdefault(other, set()).add(one)
        batches_of.setdefault(one, []).append(other)
    if all(len(found) == 1 for found in types_of.values()):
        raise DataError(
            f"{batch!r} is nested in {label!r}: each batch has one type alone, so nothing tells batches from types"
        )
    if all(len(set(found)) == 1 for found in batches_of.values()):
        raise DataError(
            f"{label!r} is nested in {batch!r}: each type is in one batch alone, so there is nothing to mix"
        )
    if not any(1 < len(set(found)) < len(found) for found in batches_of.values()):
        raise DataError(f"no {label!r} has several cells of one {batch!r} and cells of another")
