"""Simulated regulation follows the table that is written, and rare types are as rare as their formula says."""

from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from data_shards.errors import DataError, OptionError
from data_shards.files.atomic import hash_path
from data_shards.simulate.atlas import CHUNK_CELLS, draw_atlas, draw_cells, type_shares
from data_shards.simulate.atlas_options import AtlasOptions
from data_shards.simulate.regulation import draw_activities
from data_shards.simulate.write_atlas import regulation_path, write_atlas

OPTIONS = AtlasOptions(
    cells=4000, genes=400, cell_types=3, programmes=6, genes_per_programme=10, counts_per_cell=4000.0, dropout=0.0,
    regulators=8, targets_per_regulator=10,
)  # fmt: skip


def logs(options: AtlasOptions) -> np.ndarray:
    """Log expression of the first cells, float64 (cells, genes)."""
    counts = draw_cells(draw_atlas(options), options, 0, min(options.cells, CHUNK_CELLS))[2].toarray()
    return np.log1p(10_000 * counts / counts.sum(1, keepdims=True))


def correlations(options: AtlasOptions, pairs: np.ndarray) -> np.ndarray:
    """Correlation of the log expression of pairs of genes over cells."""
    return np.corrcoef(logs(options).T)[*pairs.T]


def test_counts_of_a_regulator_and_its_target_correlate_with_the_written_sign(tmp_path: Path) -> None:
    write_atlas(tmp_path / "a.h5ad", OPTIONS)
    data = ad.read_h5ad(tmp_path / "a.h5ad")
    table = pd.read_csv(regulation_path(tmp_path / "a.h5ad"), sep="\t")
    assert list(table) == ["regulator", "target", "sign", "strength"]
    counts = data.X.toarray()
    share = np.log1p(10_000 * counts / counts.sum(1, keepdims=True))
    names = data.var_names
    found = np.corrcoef(share.T)[names.get_indexer(table["regulator"]), names.get_indexer(table["target"])]
    assert len(table) == 8 * 10 + 4
    assert set(table["sign"]) == {-1, 1}
    assert np.mean(found * table["sign"] > 0) > 0.95
    assert np.mean(found * table["sign"]) > 0.2


def test_without_strength_there_is_no_correlation() -> None:
    regulated = draw_atlas(OPTIONS).regulation
    assert regulated is not None
    pairs = regulated.genes[regulated.pairs]
    with_strength = np.abs(correlations(OPTIONS, pairs))
    without = np.abs(correlations(replace(OPTIONS, regulation_strength=0.0), pairs))
    assert with_strength.mean() > 0.2
    assert without.mean() < 0.08  # types alone


def test_regulators_form_a_chain_and_share_targets() -> None:
    regulated = draw_atlas(OPTIONS).regulation
    assert regulated is not None
    regulator, target = regulated.pairs.T
    in_the_middle = set(regulator.tolist()) & set(target.tolist())
    assert in_the_middle == {4, 5, 6, 7}
    assert set(regulator[np.isin(target, [4, 5, 6, 7])].tolist()) <= {0, 1, 2, 3}
    of_target = np.bincount(target)[8:]
    assert of_target.max() > 1
    assert np.bincount(regulator).min() >= 10
    assert len(np.unique(regulated.genes)) == len(regulated.genes)


def test_activities_have_variance_one_and_the_written_effects() -> None:
    """Regression of a target's activity on those of all its regulators gives the effects back."""
    regulated = draw_atlas(OPTIONS).regulation
    assert regulated is not None
    z = draw_activities(regulated, 50_000, np.random.default_rng(0))
    np.testing.assert_allclose(z.std(0), 1, atol=0.03)
    np.testing.assert_allclose(z.mean(0), 0, atol=0.03)
    for target in np.unique(regulated.pairs[:, 1]):
        of_target = regulated.pairs[:, 1] == target
        effects = np.linalg.lstsq(z[:, regulated.pairs[of_target, 0]], z[:, target], rcond=None)[0]
        np.testing.assert_allclose(effects, regulated.effects[of_target], atol=0.03)


def test_a_regulator_is_better_known_from_its_targets_than_a_target_from_its_regulators() -> None:
    """What gives a pair its direction: the residual variance of a regression on all other genes."""
    regulated = draw_atlas(OPTIONS).regulation
    assert regulated is not None
    x = logs(OPTIONS)[:, regulated.genes]
    residual = 1 / np.linalg.inv(np.cov(x.T)).diagonal()
    share = residual / x.var(0)
    n = regulated.n_regulators
    assert np.median(share[:n]) < np.median(share[n:])


def test_regulation_changes_no_other_gene() -> None:
    regulated = draw_atlas(OPTIONS).regulation
    assert regulated is not None
    types, donors, counts = draw_cells(draw_atlas(OPTIONS), OPTIONS, 1, 300)
    without = replace(OPTIONS, regulators=0)
    other_types, other_donors, other_counts = draw_cells(draw_atlas(without), without, 1, 300)
    np.testing.assert_array_equal(types, other_types)
    np.testing.assert_array_equal(donors, other_donors)
    differs = (counts != other_counts).toarray().any(0)
    assert set(np.flatnonzero(differs).tolist()) <= set(regulated.genes.tolist())
    assert differs.sum() > 20
    assert (counts.toarray() <= other_counts.toarray()).all()
    assert counts.data.min() > 0


def test_workers_do_not_change_cells_or_table(tmp_path: Path) -> None:
    options = replace(OPTIONS, cells=9000, counts_per_cell=100.0, type_skew=1.0)
    write_atlas(tmp_path / "one.h5ad", options)
    write_atlas(tmp_path / "two.h5ad", options, workers=2)
    for ending in (".h5ad", ".gmt", ".regulation.tsv"):
        assert hash_path(tmp_path / f"one{ending}") == hash_path(tmp_path / f"two{ending}")


@pytest.mark.parametrize("order", [False, True])
def test_types_are_as_rare_as_zipf_says(order: bool, tmp_path: Path) -> None:
    options = AtlasOptions(
        cells=20_000, genes=50, cell_types=16, programmes=6, genes_per_programme=10, counts_per_cell=20.0,
        type_skew=1.5, sorted=order,
    )  # fmt: skip
    shares = type_shares(options)
    assert shares[0] / shares[-1] == pytest.approx(16**1.5)
    assert shares[-1] < 0.01
    write_atlas(tmp_path / "a.h5ad", options)
    codes = ad.read_h5ad(tmp_path / "a.h5ad").obs["cell_type"].cat.codes.to_numpy()
    found = np.bincount(codes, minlength=16)
    expected = shares * 20_000
    # Sorted cells are divided exactly; drawn ones differ by a few standard deviations of a binomial.
    assert np.all(np.abs(found - expected) <= (1.5 if order else 4 * np.sqrt(expected)))
    assert not order or np.all(np.diff(codes) >= 0)


def test_bad_options_and_a_table_that_is_there_already_are_refused(tmp_path: Path) -> None:
    for options, message in (
        ({"type_skew": -1.0}, "--type-skew -1.0: must be at least 0"),
        ({"type_skew": float("nan")}, "--type-skew nan: must be at least 0"),
        ({"regulators": -1}, "--regulators -1: must be at least 0"),
        ({"regulation_strength": float("inf")}, "--regulation-strength inf: must be"),
        ({"targets_per_regulator": 0}, "--targets-per-regulator 0: must be at least 1"),
        ({"regulators": 200}, "--regulators 200 with 10 targets each need 1,200 genes .* --genes 4800 or more"),
    ):
        with pytest.raises(OptionError, match=message):
            AtlasOptions(**options)  # type: ignore[arg-type]
    AtlasOptions(genes=4800, regulators=200)
    # Without regulators, too: it would seem to belong to the new atlas.
    (tmp_path / "a.regulation.tsv").write_text("mine")
    for n in (0, 8):
        with pytest.raises(DataError, match=r"a\.regulation\.tsv: exists already"):
            write_atlas(tmp_path / "a.h5ad", replace(OPTIONS, regulators=n))
    assert [path.name for path in tmp_path.iterdir()] == ["a.regulation.tsv"]


def test_no_table_is_written_without_regulators_or_if_the_atlas_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atlas(tmp_path / "a.h5ad", replace(OPTIONS, cells=10, regulators=0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gmt", "a.h5ad"]

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data_shards.simulate.write_atlas._extend", full)
    with pytest.raises(DataError, match="cannot be written"):
        write_atlas(tmp_path / "b.h5ad", replace(OPTIONS, cells=10))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gmt", "a.h5ad"]
