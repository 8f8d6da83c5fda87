"""L_pathway: the sampler against its definition, the loss against loops, and unusable gene sets."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_shards.errors import DataError
from gm_train.objective.cell_keys import cell_keys
from gm_train.objective.pathway import PathwayIndex, draw_pairs, pathway_loss_sum, read_gmt

SIZE = 40
SETS = {f"set {i}": [f"g{j}" for j in range(3 * i, 3 * i + 5 + i)] for i in range(6)}
TOKEN_OF = {f"g{i}": i + 2 for i in range(SIZE - 2)}


def share_a_set(a: int, b: int) -> bool:
    return any({f"g{a - 2}", f"g{b - 2}"} <= set(genes) for genes in SETS.values())


@given(data=st.data(), lengths=st.lists(st.integers(0, 30), min_size=1, max_size=5), n_draw=st.integers(1, 12))
def test_drawn_pairs_are_visible_annotated_and_share_a_set(data, lengths: list[int], n_draw: int) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    index = PathwayIndex.build(SETS, TOKEN_OF, SIZE, (2, 100))
    tokens = np.concatenate([rng.permutation(np.arange(2, SIZE))[:n] for n in lengths]).astype(np.int64)
    hidden = rng.random(len(tokens)) < 0.2
    sizes = np.array(lengths, dtype=np.int64)
    keys = cell_keys(7, np.arange(len(lengths)), np.arange(len(lengths)))
    drawn, positive = draw_pairs(tokens, hidden, sizes, keys, index, n_draw)
    starts = np.cumsum(sizes) - sizes
    for cell, n in enumerate(lengths):
        candidates = [
            i
            for i in range(starts[cell], starts[cell] + n)
            if not hidden[i] and any(f"g{tokens[i] - 2}" in gene_set for gene_set in SETS.values())
        ]
        genes = drawn[cell][drawn[cell] >= 0].tolist()
        assert len(genes) == min(n_draw, len(candidates)) == len(set(genes))
        assert set(genes) <= set(candidates)
        for a in range(n_draw):
            for b in range(n_draw):
                both = a != b and max(a, b) < len(genes)
                assert positive[cell, a, b] == (both and share_a_set(tokens[genes[a]], tokens[genes[b]]))


def loss_by_loops(states: np.ndarray, drawn: np.ndarray, positive: np.ndarray, temperature: float) -> float:
    total = 0.0
    for cell in range(len(drawn)):
        genes = [a for a in range(drawn.shape[1]) if drawn[cell, a] >= 0]

        def s(a: int, b: int, cell: int = cell) -> float:
            x, y = states[drawn[cell, a]], states[drawn[cell, b]]
            return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y) / temperature)

        for i in genes:
            for j in genes:
                if positive[cell, i, j]:
                    others = [k for k in genes if k != i and not positive[cell, i, k]]
                    total += -math.log(math.exp(s(i, j)) / (math.exp(s(i, j)) + sum(math.exp(s(i, k)) for k in others)))
    return total


@given(seed=st.integers(0, 10_000))
def test_loss_agrees_with_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(30, 8))
    drawn = np.stack([rng.permutation(30)[:6] for _ in range(4)])
    drawn[0, 4:] = -1
    drawn[1, :] = -1
    positive = rng.random((4, 6, 6)) < 0.3
    positive = (positive | positive.transpose(0, 2, 1)) & ~np.eye(6, dtype=bool)
    positive &= (drawn >= 0)[:, :, None] & (drawn >= 0)[:, None, :]
    ours = pathway_loss_sum(torch.from_numpy(states), torch.from_numpy(drawn), torch.from_numpy(positive), 0.3)
    assert float(ours) == pytest.approx(loss_by_loops(states, drawn, positive, 0.3), rel=1e-10, abs=1e-12)


def test_a_gene_without_negatives_has_no_loss_and_a_finite_gradient() -> None:
    states = torch.randn(3, 4, requires_grad=True)
    positive = ~torch.eye(3, dtype=torch.bool)[None]
    loss = pathway_loss_sum(states, torch.tensor([[0, 1, 2]]), positive, 0.1)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-5)
    assert states.grad is not None
    assert torch.isfinite(states.grad).all()


def test_sets_outside_the_size_are_left_out() -> None:
    index = PathwayIndex.build(
        {"small": ["g0"], "good": ["g1", "g2"], "big": [f"g{i}" for i in range(9)]}, TOKEN_OF, SIZE, (2, 5)
    )
    assert index.n_sets == 1
    assert np.flatnonzero(index.annotated).tolist() == [3, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "has no gene sets"), ("only a name\n", "line 1"), ("name\tdescription\n", "line 1")],
)
def test_a_file_that_is_not_gmt_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "sets.gmt"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_gmt(path)


def test_sets_of_other_genes_are_refused() -> None:
    with pytest.raises(DataError, match="gene-table"):
        PathwayIndex.build({"set": ["x", "y", "z"]}, TOKEN_OF, SIZE, (2, 5))
