"""Rows become tensors without loss or addition, however the rows are grouped."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.hashing import fold, mix64_int
from data_shards.rows.pool import Rows
from gm_train.config.schema import ObjectiveConfig
from gm_train.objective.batches import Examples, join, make_examples, split
from gm_train.objective.cell_keys import cell_keys
from gm_train.objective.masking import mask_tokens
from gm_train.objective.pathway import PathwayIndex
from gm_train.objective.recipe import Recipe

LENGTH, SIZE = 24, 30
PATHWAYS = PathwayIndex.build({"a": [str(i) for i in range(10)], "b": [str(i) for i in range(8, 20)]},
                              {str(i): i + 2 for i in range(SIZE - 2)}, SIZE, (2, 100))  # fmt: skip


@st.composite
def some_rows(draw: st.DrawFn) -> Rows:
    """Rows of one to four cells; in some examples some cells are damaged."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    fitting = st.lists(st.integers(1, 12), min_size=1, max_size=4).filter(lambda n: sum(n) <= LENGTH)
    rows = draw(st.lists(fitting, min_size=1, max_size=6))
    lengths = np.array([length for row in rows for length in row])
    tokens = np.concatenate([rng.permutation(np.arange(2, SIZE))[:n] for n in lengths]).astype(np.uint16)
    cells_of_row = np.array([len(row) for row in rows])
    places = np.repeat(np.arange(len(rows)) * 7, cells_of_row)
    damaged = rng.random(len(lengths)) < draw(st.sampled_from([0, 0.3]))
    tokens[np.repeat(damaged, lengths)] = 0
    return Rows(tokens, lengths, places, np.concatenate([np.arange(n) for n in cells_of_row]), damaged, cells_of_row)


def recipe(**objective: object) -> Recipe:
    chosen = {"language": "masked", "mask_rate": 0.4, "random_rate": 0.3, "pathway_genes": 6} | objective
    return Recipe(ObjectiveConfig(**chosen), 3, SIZE, LENGTH, PATHWAYS)  # type: ignore[arg-type]


def same(a: Examples, b: Examples) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))


@settings(max_examples=50)
@given(rows=some_rows())
def test_layout_keeps_every_token(rows: Rows) -> None:
    made = make_examples(rows, recipe())
    truth = made.input_ids.copy()
    truth.reshape(-1)[made.target_at] = made.targets
    for index in range(len(rows)):
        row = rows.part(index, index + 1)
        n = len(row.tokens)
        assert truth[index, :n].tolist() == row.tokens.tolist()
        assert (made.input_ids[index, n:] == 0).all()
        numbers = np.repeat([*range(1, len(row.lengths) + 1), 0], [*row.lengths, LENGTH - n])
        assert made.segment[index].tolist() == numbers.tolist()
    assert made.n_tokens == int(rows.lengths[~rows.damaged].sum())
    assert made.n_cells == int((~rows.damaged).sum())
    assert (made.targets > 1).all()
    # A hidden token never shows itself, and is never drawn for a pathway pair.
    assert (made.input_ids.reshape(-1)[made.target_at] != made.targets).all()
    assert not set(made.drawn[made.drawn >= 0]) & set(made.target_at)


@settings(max_examples=50)
@given(rows=some_rows(), cut=st.integers(0, 6), micro_rows=st.integers(1, 7))
def test_grouping_changes_nothing(rows: Rows, cut: int, micro_rows: int) -> None:
    whole = make_examples(rows, recipe())
    parts = [part for part in (rows.part(0, cut), rows.part(cut, len(rows))) if len(part)]
    assert same(join([make_examples(part, recipe()) for part in parts]), whole)
    batches = split(whole, micro_rows, {})
    assert torch.equal(torch.cat([b.input_ids for b in batches]), torch.from_numpy(whole.input_ids))
    assert [b.first for b in batches] == [True] + [False] * (len(batches) - 1)
    assert [b.last for b in batches] == [False] * (len(batches) - 1) + [True]
    shifts = np.cumsum([0] + [b.input_ids.numel() for b in batches[:-1]])
    targets = np.concatenate([b.target_at.numpy() + s for b, s in zip(batches, shifts, strict=True)])
    assert np.array_equal(targets, whole.target_at)
    assert np.array_equal(np.concatenate([b.targets.numpy() for b in batches]), whole.targets)
    drawn = [np.where(b.drawn >= 0, b.drawn.numpy() + s, -1) for b, s in zip(batches, shifts, strict=True)]
    assert np.array_equal(np.concatenate(drawn), whole.drawn)
    assert sum(int(b.positive.sum()) for b in batches) == batches[0].info.n_pairs


@settings(max_examples=50)
@given(rows=some_rows())
def test_next_token_targets_stay_within_their_cell(rows: Rows) -> None:
    made = make_examples(rows, recipe(language="next_token"))
    flat_ids, flat_segment = made.input_ids.reshape(-1), made.segment.reshape(-1)
    assert np.array_equal(flat_ids[made.target_at + 1], made.targets)
    assert np.array_equal(flat_segment[made.target_at], flat_segment[made.target_at + 1])
    assert len(made.targets) == int((rows.lengths - 1)[~rows.damaged].sum())


@settings(max_examples=50)
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5), seed=st.integers(0, 1000))
def test_masks_equal_a_reference_by_plain_hashes(lengths: list[int], seed: int) -> None:
    """Hashes of (seed, place, cell, token in the cell): one to choose, one to replace, one for the gene."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, SIZE, sum(lengths))
    places, cells = rng.integers(0, 2**40, len(lengths)), rng.integers(0, 128, len(lengths))
    keys = cell_keys(seed, places, cells)
    shown = []
    for key, n in zip(keys.tolist(), lengths, strict=True):
        for index in range(n):
            select, replace, gene = (
                (mix64_int(mix64_int(key ^ fold(purpose)) ^ index) >> 11) * 2.0**-53 for purpose in (1, 2, 3)
            )
            own = int(tokens[len(shown)])
            drawn = 2 + int(gene * (SIZE - 2))
            shown.append(own if select >= 0.4 else drawn if replace < 0.3 and drawn != own else 1)
    visible, hidden = mask_tokens(tokens, np.array(lengths), keys, SIZE, 0.4, 0.3)
    assert visible.tolist() == shown
    assert hidden.tolist() == [a != b for a, b in zip(shown, tokens.tolist(), strict=True)]


@settings(max_examples=50)
@given(rows=some_rows(), seed=st.integers(0, 1000))
def test_classes_stand_at_the_first_token_of_whole_cells(rows: Rows, seed: int) -> None:
    classes = np.random.default_rng(seed).integers(-1, 4, len(rows.lengths))
    made = make_examples(rows, recipe(), classes)
    expected = []
    cell = 0
    for index, n_cells in enumerate(rows.cells_of_row.tolist()):
        at = index * LENGTH
        for _ in range(n_cells):
            if classes[cell] >= 0 and not rows.damaged[cell]:
                expected.append((at, classes[cell]))
            at += int(rows.lengths[cell])
            cell += 1
    assert list(zip(made.target_at.tolist(), made.targets.tolist(), strict=True)) == expected
    # Nothing is hidden, and cells are the same ones as for other objectives.
    input_ids, segment = rows.lay_out(LENGTH)
    assert np.array_equal(made.input_ids, input_ids)
    assert np.array_equal(made.segment, segment)
    usual = make_examples(rows, recipe())
    assert (made.sample_hash, made.n_tokens) == (usual.sample_hash, usual.n_tokens)
    assert made.positive.size == 0
    parts = [make_examples(rows.part(i, i + 1), recipe(), part) for i, part in enumerate(
        np.split(classes, np.cumsum(rows.cells_of_row)[:-1]))]  # fmt: skip
    assert same(join(parts), made)
