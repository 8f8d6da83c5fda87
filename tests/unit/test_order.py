"""The order of blocks is a permutation in every pass, in constant memory."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from data_shards.order import BlockOrder, permute


@given(size=st.integers(1, 2000), key=st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(size: int, key: int) -> None:
    assert sorted(permute(i, size, key) for i in range(size)) == list(range(size))


@given(n_blocks=st.integers(1, 300), passes=st.integers(1, 3), seed=st.integers(0, 100))
def test_every_pass_visits_every_block_once(n_blocks: int, passes: int, seed: int) -> None:
    order = BlockOrder(seed, "ab" * 32, n_blocks)
    for number in range(passes):
        visited = [order.block(place) for place in range(number * n_blocks, (number + 1) * n_blocks)]
        assert sorted(visited) == list(range(n_blocks))


def test_passes_seeds_and_stores_differ() -> None:
    first = BlockOrder(0, "ab" * 32, 1000)
    one_pass = [first.block(q) for q in range(1000)]
    assert one_pass != [first.block(q) for q in range(1000, 2000)]
    assert one_pass != [BlockOrder(1, "ab" * 32, 1000).block(q) for q in range(1000)]
    assert one_pass != [BlockOrder(0, "cd" * 32, 1000).block(q) for q in range(1000)]


def test_a_shuffle_looks_like_one() -> None:
    """Neighbours of a pass are as far apart as in a random permutation: a third of the size on average."""
    order = BlockOrder(3, "ab" * 32, 4096)
    visited = [order.block(q) for q in range(4096)]
    gaps = [abs(a - b) for a, b in itertools.pairwise(visited)]
    assert abs(sum(gaps) / len(gaps) / 4096 - 1 / 3) < 0.02


def test_a_far_place_needs_no_more_work_than_a_near_one(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    import data_shards.order as module

    calls = 0
    mix = module.mix64_int

    def counted(x: int) -> int:
        nonlocal calls
        calls += 1
        return mix(x)

    monkeypatch.setattr(module, "mix64_int", counted)
    order = BlockOrder(0, "ab" * 32, 1_000_003)
    order.block(10**15)
    assert calls < 500
