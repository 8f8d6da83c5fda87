"""Movement: zero for what does not move, one for a cell that took its neighbour's place."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gm_train.evaluation.robustness.movement import movement


def vectors(n_cells: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n_cells, 6))


def test_movement_agrees_with_a_slow_reference() -> None:
    x, y = vectors(12, 0), vectors(12, 1)

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return 1 - float(a.astype(float) @ b / np.linalg.norm(a.astype(float)) / np.linalg.norm(b.astype(float)))

    moved = sum(distance(x[i], y[i]) for i in range(12))
    nearest = sum(min(distance(x[i], x[j]) for j in range(12) if j != i) for i in range(12))
    assert movement(x, y) == pytest.approx(moved / nearest, rel=1e-6)


@given(seed=st.integers(0, 1000), scale=st.floats(0.1, 50))
def test_what_stays_where_it_is_does_not_move_whatever_its_length(seed: int, scale: float) -> None:
    x = vectors(9, seed)
    assert movement(x, scale * x) == pytest.approx(0, abs=1e-6)


def test_two_cells_that_change_places_move_by_one() -> None:
    x = vectors(2, 3)
    assert movement(x, x[::-1]) == pytest.approx(1)


def test_vectors_that_are_all_equal_have_a_finite_movement() -> None:
    x = np.ones((4, 3))
    assert movement(x, x) == pytest.approx(0, abs=1e-6)
    assert np.isfinite(movement(x, -x))


def test_a_vector_of_zeros_is_at_distance_one() -> None:
    x = np.array([[1, 0], [0, 1]])
    assert movement(x, np.zeros_like(x)) == pytest.approx(1)
