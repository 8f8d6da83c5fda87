"""The cells that integration is scored on, and cells that it cannot be scored on."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from data_shards.errors import DataError
from gm_train.evaluation.integration.typed_cells import CELLS_A_TYPE, SEEDS, SUBSAMPLE, TypedCells
from gm_train.evaluation.labels import Labels


@dataclass
class Cells:
    """What `TypedCells` reads of the cells of an evaluation."""

    labels: Labels | None
    batches: Labels | None
    held_out: npt.NDArray[np.bool_]
    label: str = "cell_type"
    batch: str = "donor"


def grid(n_types: int, n_batches: int, each: int, held_out: float = 0.5) -> Cells:
    """Cells of all types in all batches; of each, the first ones are held out."""
    types, batches, numbers = (
        part.ravel() for part in np.meshgrid(range(n_types), range(n_batches), range(each), indexing="ij")
    )
    labels, names = (np.array([f"{number}" for number in part], object) for part in (types, batches))
    return Cells(labels, names, numbers < held_out * each)


def of(cells: Cells) -> TypedCells:
    return TypedCells.of(cells)  # type: ignore[arg-type]


def test_each_seed_draws_its_own_cells_and_as_many_of_each_type() -> None:
    cells = grid(3, 2, 20)
    found = of(cells)
    assert found.only_held_out
    assert found.numbers.tolist() == np.flatnonzero(cells.held_out).tolist()
    assert len(found.draws) == SEEDS
    assert len({tuple(draw) for draw in found.draws}) == SEEDS
    for draw in found.draws:
        assert set(draw) <= set(found.numbers)
        assert np.unique(found.types[draw].astype(str), return_counts=True)[1].tolist() == [SUBSAMPLE * 20] * 3
    assert all((draw == again).all() for draw, again in zip(found.draws, of(cells).draws, strict=True))


def test_all_cells_are_scored_if_held_out_ones_lack_a_batch_or_are_few() -> None:
    donors = grid(3, 4, 20)
    assert donors.batches is not None
    donors.held_out = np.isin(donors.batches.astype(str), ["0", "1"])
    few = grid(3, 2, 20, held_out=0.2)
    for cells, why in (
        (donors, "the held-out cells have 2 of 4 'donor'"),
        (few, "24 held-out cells of 3 'cell_type' are fewer than 10 for each, on average"),
    ):
        found = of(cells)
        assert found.why_all == why
        assert not found.only_held_out
        assert len(found.numbers) == len(cells.held_out)


@pytest.mark.parametrize(("n_cells", "alone"), [(CELLS_A_TYPE - 1, True), (CELLS_A_TYPE, False)])
def test_held_out_cells_are_scored_alone_only_with_all_types_that_have_enough_cells(n_cells: int, alone: bool) -> None:
    """A fourth type is in the training cells alone."""
    cells = grid(3, 2, 40)
    assert cells.labels is not None
    cells.labels[np.flatnonzero(~cells.held_out)[:n_cells]] = "fourth"
    found = of(cells)
    assert found.only_held_out == alone
    why = None if alone else "the held-out cells lack 1 'cell_type' that have at least 10 cells, such as 'fourth'"
    assert found.why_all == why


def test_held_out_cells_that_cannot_be_scored_give_way_to_all() -> None:
    """Each held-out type is in one batch alone; the training cells mix them."""
    cells = grid(2, 2, 40)
    assert cells.labels is not None
    assert cells.batches is not None
    cells.held_out = cells.labels == cells.batches
    found = of(cells)
    assert len(found.numbers) == len(cells.held_out)
    assert found.why_all is not None
    assert found.why_all.startswith("of the held-out cells, 'donor' is nested in 'cell_type'")


def test_cells_without_a_type_or_a_batch_are_left_out() -> None:
    cells = grid(3, 2, 20)
    assert cells.labels is not None
    assert cells.batches is not None
    cells.labels[:3] = None
    cells.batches[50:55] = None
    found = of(cells)
    assert set(found.typed) == set(range(120)) - {0, 1, 2, *range(50, 55)}
    assert set(found.numbers) <= set(found.typed)


def nested(cells: Cells) -> Cells:
    """Each type in a batch of its own."""
    cells.batches = cells.labels
    return cells


def halves(cells: Cells) -> Cells:
    """Each type in two batches of its own."""
    assert cells.labels is not None
    cells.batches = np.array([f"{name} {i % 2}" for i, name in enumerate(cells.labels)], object)
    return cells


def pairs(cells: Cells) -> Cells:
    """Two types in each batch, in no other."""
    assert cells.labels is not None
    cells.batches = np.array([str(int(name) // 2) for name in cells.labels], object)
    return cells


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (grid(3, 1, 20), "all cells have the same 'donor' \\(0\\)"),
        (grid(1, 3, 20), "all cells have the same 'cell_type' \\(0\\)"),
        (grid(2, 2, 4), "12 cells with both 'cell_type' and 'donor' can be scored at once, .* needs more than 15"),
        (nested(grid(4, 2, 20)), "'donor' is nested in 'cell_type'"),
        (halves(grid(4, 2, 20)), "'donor' is nested in 'cell_type'"),
        (pairs(grid(4, 2, 20)), "'cell_type' is nested in 'donor'"),
        (grid(20, 3, 1), "no 'cell_type' has several cells of one 'donor' and cells of another"),
        (Cells(None, None, np.ones(3, bool)), "are needed: add --label and --batch"),
        (Cells(np.array(["a"] * 40, object), None, np.ones(40, bool)), "are needed: add --batch$"),
        (Cells(np.full(40, None), np.full(40, None), np.ones(40, bool)), "^0 cells with both"),
    ],
)
def test_cells_that_cannot_be_scored_are_refused(cells: Cells, message: str) -> None:
    with pytest.raises(DataError, match=message):
        of(cells)
