"""A cell's vector does not depend on what else is embedded."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gm_train.embedding import ragged as ragged_module
from gm_train.embedding.embed_cells import embed_cells
from gm_train.embedding.ragged import Ragged, padded_batches
from gm_train.model.genemamba import GeneMamba
from gm_train.model.pooling import POOLS
from tests.support.evaluation_cases import ragged, random_cells
from tests.support.small_models import small_config

GENES = 300
CELLS = Ragged.concatenate([random_cells(38, seed=3, vocabulary_size=GENES), ragged([[], []])])


def model_of(**sizes: object) -> GeneMamba:
    torch.manual_seed(0)
    return GeneMamba(small_config(**sizes), GENES).eval()


MODELS = {arch: model_of(arch=arch) for arch in ("bimamba", "mamba", "transformer")}


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("arch", MODELS)
@settings(max_examples=15)
@given(taken=st.lists(st.integers(0, CELLS.n_cells - 1), min_size=1, max_size=25))
def test_the_same_cell_has_the_same_vector_in_any_batch(arch: str, pool: str, taken: list[int]) -> None:
    """Subsets, repetitions and any order of the cells, in float32."""
    model = MODELS[arch]
    numbers = np.array(taken)
    whole, part = (embed_cells(model, cells, pool) for cells in (CELLS, CELLS.take(numbers)))
    np.testing.assert_allclose(part, whole[numbers], rtol=0, atol=1e-6)


@pytest.mark.parametrize("pool", POOLS)
def test_the_vectors_of_a_deep_wide_model_are_as_exact(pool: str) -> None:
    model = model_of(d_model=256, n_layers=12, d_state=32, head_dim=64, chunk=64)
    whole = embed_cells(model, CELLS, pool)
    alone = np.concatenate([embed_cells(model, CELLS.take(np.array([cell])), pool) for cell in range(3)])
    np.testing.assert_allclose(alone, whole[:3], rtol=0, atol=1e-6)
    assert np.nanmax(np.abs(whole)) > 0.1


def test_a_vector_depends_on_its_cell() -> None:
    vectors = embed_cells(MODELS["bimamba"], CELLS)[CELLS.lengths > 0]
    assert np.abs(vectors[:, None] - vectors).max(-1)[~np.eye(len(vectors), dtype=bool)].min() > 1e-3


def test_cells_without_tokens_are_nan_and_progress_counts_the_others() -> None:
    advanced: list[int] = []
    vectors = embed_cells(MODELS["bimamba"], CELLS, advance=advanced.append)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(vectors).all(1), CELLS.lengths == 0)
    assert not np.isnan(vectors[CELLS.lengths > 0]).any()
    assert sum(advanced) == (CELLS.lengths > 0).sum() < CELLS.n_cells
    empty = CELLS.take(np.flatnonzero(CELLS.lengths == 0))
    assert np.isnan(embed_cells(MODELS["bimamba"], empty)).all()


def test_the_shape_of_a_batch_follows_from_the_lengths_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ragged_module, "batch_tokens", lambda device: 512)
    device = torch.device("cpu")
    shape_of: dict[int, tuple[int, ...]] = {}
    for cells in (CELLS, CELLS.take(np.arange(3)), CELLS.take(np.arange(20, 40))):
        for numbers, input_ids, segment in padded_batches(cells, device):
            assert input_ids.shape == segment.shape
            for length in cells.lengths[numbers].tolist():
                assert shape_of.setdefault(length, input_ids.shape) == input_ids.shape
    assert len(set(shape_of.values())) > 3


def test_bfloat16_is_near_float32() -> None:
    model = MODELS["bimamba"]
    exact, rounded = embed_cells(model, CELLS), embed_cells(model, CELLS, precision="bf16")
    assert rounded.dtype == np.float32
    np.testing.assert_allclose(rounded, exact, atol=0.1)
    assert not np.array_equal(rounded, exact, equal_nan=True)
