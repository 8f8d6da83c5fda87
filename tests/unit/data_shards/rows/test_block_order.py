"""The order of blocks is a permutation in every pass, in constant memory; weights repeat data sets in it."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_shards.rows import block_order
from data_shards.rows.block_order import BlockOrder, permute


def one_pass(order: BlockOrder, number: int = 0) -> list[int]:
    return order.blocks(np.arange(number * order.size, (number + 1) * order.size)).tolist()


@given(size=st.integers(1, 2000), key=st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(size: int, key: int) -> None:
    assert sorted(permute(np.arange(size), size, np.full(size, key, np.uint64)).tolist()) == list(range(size))


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=5),
    passes=st.integers(1, 3),
    seed=st.integers(0, 100),
    data=st.data(),
)
def test_every_pass_visits_every_block_as_often_as_it_weighs(
    sizes: list[int], passes: int, seed: int, data: st.DataObject
) -> None:
    weights = data.draw(st.lists(st.integers(0, 4), min_size=len(sizes), max_size=len(sizes)).filter(any))
    order = BlockOrder(seed, "ab" * 32, sizes, weights)
    first = np.cumsum(sizes) - sizes
    expected = Counter(
        {int(first[i]) + block: weights[i] for i in range(len(sizes)) for block in range(sizes[i]) if weights[i]}
    )
    for number in range(passes):
        assert Counter(one_pass(order, number)) == expected


def test_equal_weights_of_one_are_no_weights() -> None:
    assert one_pass(BlockOrder(4, "ab" * 32, [30, 1, 12])) == one_pass(BlockOrder(4, "ab" * 32, [30, 1, 12], [1, 1, 1]))


def test_passes_seeds_and_stores_differ() -> None:
    first = BlockOrder(0, "ab" * 32, [1000])
    assert one_pass(first) != one_pass(first, 1)
    assert one_pass(first) != one_pass(BlockOrder(1, "ab" * 32, [1000]))
    assert one_pass(first) != one_pass(BlockOrder(0, "cd" * 32, [1000]))


def test_a_shuffle_looks_like_one() -> None:
    """Neighbours of a pass are as far apart as in a random permutation: a third of the size on average."""
    visited = np.array(one_pass(BlockOrder(3, "ab" * 32, [4096])))
    assert abs(np.abs(np.diff(visited)).mean() / 4096 - 1 / 3) < 0.02


def test_a_far_place_needs_no_more_work_than_a_near_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each place needs few more than one run of the network, however far it is."""
    turns = []
    real = block_order._permute

    def counted(*words: Any) -> Any:
        images, n_turns = real(*words)
        turns.append(n_turns)
        return images, n_turns

    monkeypatch.setattr(block_order, "_permute", counted)
    order = BlockOrder(0, "ab" * 32, [1_000_003])
    for first in (0, 10**9, 10**15):
        order.blocks(np.arange(first, first + 1000))
    assert len(turns) == 3
    assert all(1000 <= n < 1150 for n in turns)
