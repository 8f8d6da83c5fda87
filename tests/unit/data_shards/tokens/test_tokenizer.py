"""The tokenizer against its definition in plain Python."""

import dataclasses
import math
import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import zarr
from hypothesis import given
from hypothesis import strategies as st

from data_shards.counts.count_file import open_counts
from data_shards.counts.count_options import CountOptions
from data_shards.counts.gene_ids import GeneReport, GeneTable
from data_shards.errors import DataError
from data_shards.hashing import hash_string, mix64_int
from data_shards.medians.make_medians import make_medians
from data_shards.prepare.make_store import make_store
from data_shards.store.manifest import Manifest
from data_shards.tokens.ties import DITHER, TIE
from data_shards.tokens.tokenizer import GeneColumns, Tokenizer
from data_shards.tokens.vocabulary import Vocabulary
from tests.support.count_files import draw_counts, write_counts

REPORT = GeneReport("as-is", 0, 0, 0, 0, 0, 0, ())
GENES = tuple(f"g{i:02d}" for i in range(40))


def cell_key(purpose: int, total: float, detected: int) -> int:
    bits = struct.unpack("<Q", struct.pack("<d", total))[0]
    return mix64_int(mix64_int(mix64_int(purpose) ^ bits) ^ detected)


def slow_tokens(cell: np.ndarray, numbers: list[int], tokenizer: Tokenizer) -> list[int]:
    """Tokens of one cell by the definition, without any compiled code."""
    total, detected = sum(sorted(cell.tolist())), int(np.count_nonzero(cell))
    summed: dict[int, float] = {}
    for count, number in zip(cell.tolist(), numbers, strict=True):
        if count == 0:
            continue
        if number >= 0:
            summed[number] = summed.get(number, 0.0) + count
    ranked = []
    for number, count in summed.items():
        gene_hash = hash_string(tokenizer.vocabulary.genes[number])
        if tokenizer.dither:
            drawn = mix64_int(cell_key(DITHER, total, detected) ^ gene_hash)
            uniform = ((drawn >> 12) + 0.5) * 2.0**-52
            count += (uniform - 0.5) * min(1.0, 2.0 * count)
            assert count > 0
        key = np.float32(count / tokenizer.medians[number])
        tie = mix64_int(cell_key(TIE, total, detected) ^ gene_hash)
        ranked.append((-key, tie, number + 2))
    return [token for _, _, token in sorted(ranked)][: tokenizer.top_k]


@given(st.data())
def test_kernel_equals_the_definition(data: st.DataObject) -> None:
    n_genes = data.draw(st.integers(1, 40))
    n_delivered = data.draw(st.integers(1, 60))
    # Few different medians and small counts make most keys tie. Some genes are delivered twice, some are unknown.
    medians = np.array(data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.7]), min_size=n_genes, max_size=n_genes)))
    numbers = data.draw(st.lists(st.integers(-1, n_genes - 1), min_size=n_delivered, max_size=n_delivered))
    count = st.one_of(st.sampled_from([0.0, 0.0, 1.0, 1.0, 2.0, 3.0]), st.floats(0.01, 1e6))
    cells = np.array(
        data.draw(st.lists(st.lists(count, min_size=n_delivered, max_size=n_delivered), min_size=1, max_size=4))
    )
    tokenizer = Tokenizer(
        Vocabulary("as-is", GENES[:n_genes]), medians, data.draw(st.integers(1, 50)), data.draw(st.booleans())
    )
    columns = GeneColumns(np.array(numbers, np.int32), 0, REPORT)
    tokens, indptr = tokenizer.encode(sp.csr_matrix(cells), columns)
    assert tokens.dtype == np.uint16
    assert indptr.dtype == np.int64
    for i, cell in enumerate(cells):
        assert tokens[indptr[i] : indptr[i + 1]].tolist() == slow_tokens(cell, numbers, tokenizer)


def test_long_runs_of_ties(monkeypatch: pytest.MonkeyPatch) -> None:
    genes = tuple(f"g{i:04d}" for i in range(3000))
    tokenizer = Tokenizer(Vocabulary("as-is", genes), np.ones(3000), 2048)
    cells = np.ones((2, 3000))
    cells[1, :500] = 2
    tokens, indptr = tokenizer.encode(sp.csr_matrix(cells), GeneColumns(np.arange(3000, dtype=np.int32), 0, REPORT))
    for i, cell in enumerate(cells):
        assert tokens[indptr[i] : indptr[i + 1]].tolist() == slow_tokens(cell, list(range(3000)), tokenizer)


def test_ties_tell_nothing_and_differ_between_cells() -> None:
    tokenizer = Tokenizer(Vocabulary("as-is", GENES), np.ones(40))
    cells = np.ones((1, 40))
    columns = GeneColumns(np.arange(40, dtype=np.int32), 40, REPORT)
    first, _ = tokenizer.encode(sp.csr_matrix(cells), columns)
    second, _ = tokenizer.encode(sp.csr_matrix(cells * 2), columns)
    assert first.tolist() != sorted(first.tolist())
    assert first.tolist() != second.tolist()
    assert sorted(first) == sorted(second)


def test_dither_keeps_genes_and_spreads_each_count_over_its_interval() -> None:
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(rng.poisson(3.0, (50, 40)).astype(float))
    columns = GeneColumns(np.arange(40, dtype=np.int32), 40, REPORT)
    plain = Tokenizer(Vocabulary("as-is", GENES), rng.lognormal(size=40))
    dithered = dataclasses.replace(plain, dither=True)
    assert dithered.hash != plain.hash
    assert dithered.medians_hash == plain.medians_hash
    tokens, indptr = plain.encode(counts, columns)
    other, other_indptr = dithered.encode(counts, columns)
    np.testing.assert_array_equal(indptr, other_indptr)
    assert np.any(tokens != other)
    for i in range(50):
        here = slice(indptr[i], indptr[i + 1])
        assert sorted(tokens[here]) == sorted(other[here])
        # Genes whose intervals of count / median do not touch keep their order.
        cell = counts[i].toarray()[0]
        upper = np.inf
        for token in other[here]:
            gene = token - 2
            assert (cell[gene] - 0.5) / plain.medians[gene] <= upper
            upper = min(upper, (cell[gene] + 0.5) / plain.medians[gene])


def test_zero_counts_are_never_tokens_and_the_best_are_kept() -> None:
    counts = sp.csr_matrix(np.array([[0.0, 5.0, 1.0, 0.0, 9.0]]))
    tokenizer = Tokenizer(Vocabulary("as-is", GENES[:5]), np.ones(5), top_k=2)
    tokens, indptr = tokenizer.encode(counts, GeneColumns(np.arange(5, dtype=np.int32), 5, REPORT))
    assert tokens.tolist() == [6, 3]
    assert indptr.tolist() == [0, 2]


def test_a_stored_zero_is_never_a_token() -> None:
    stored = sp.csr_matrix((np.array([0.0, 5.0, 0.0, 9.0]), np.array([0, 1, 2, 4]), np.array([0, 4])), (1, 5))
    tokenizer = Tokenizer(Vocabulary("as-is", GENES[:5]), np.ones(5), dither=True)
    columns = GeneColumns(np.arange(5, dtype=np.int32), 5, REPORT)
    tokens, indptr = tokenizer.encode(stored, columns)
    assert stored.nnz == 4  # the caller's matrix is not changed
    assert (tokens.tolist(), indptr.tolist()) == ([6, 3], [0, 2])
    without = sp.csr_matrix(stored.toarray())
    assert tokens.tolist() == tokenizer.encode(without, columns)[0].tolist()


@given(st.data())
def test_the_order_of_the_genes_changes_no_token(data: st.DataObject) -> None:
    """Sums of non-integer counts depend on the order of addition, so the total is that of the sorted counts."""
    cell = np.array(data.draw(st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.3, 1.7, 1e5]), min_size=12, max_size=12)))
    order = np.array(data.draw(st.permutations(range(12))))
    for dither in (False, True):
        tokenizer = Tokenizer(Vocabulary("as-is", GENES[:12]), np.ones(12), dither=dither)
        tokens, _ = tokenizer.encode(sp.csr_matrix(cell), GeneColumns(np.arange(12, dtype=np.int32), 12, REPORT))
        moved, _ = tokenizer.encode(sp.csr_matrix(cell[order]), GeneColumns(order.astype(np.int32), 12, REPORT))
        assert tokens.tolist() == moved.tolist()


def test_cells_without_a_gene_have_no_tokens() -> None:
    tokenizer = Tokenizer(Vocabulary("as-is", GENES[:2]), np.ones(2))
    columns = GeneColumns(np.array([0, 1, -1], np.int32), 2, REPORT)
    counts = sp.csr_matrix(np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 4.0], [0.0, 1.0, 0.0]]))
    tokens, indptr = tokenizer.encode(counts, columns)
    assert (tokens.tolist(), indptr.tolist()) == ([3], [0, 0, 0, 1])


def test_save_and_load(tmp_path: Path) -> None:
    table = GeneTable(("ENSG00000000001", "ENSG00000000002"), ("A", "B"))
    tokenizer = Tokenizer(Vocabulary("ensembl", table.ids), np.array([0.1, math.pi]), 7, True, table)
    tokenizer.save(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"vocabulary.json", "medians.npy", "tokenizer.json", "gene_table.parquet"}
    again = Tokenizer.load(tmp_path)
    assert again.hash == tokenizer.hash
    assert (again.top_k, again.dither, again.gene_table) == (7, True, table)
    np.save(tmp_path / "medians.npy", np.array([0.1, 3.0]))
    with pytest.raises(DataError, match=r"do not belong together"):
        Tokenizer.load(tmp_path)
    (tmp_path / "medians.npy").unlink()
    with pytest.raises(DataError, match=r"cannot read a tokenizer"):
        Tokenizer.load(tmp_path)


def test_impossible_tokenizers_are_refused() -> None:
    vocabulary = Vocabulary("as-is", GENES[:2])
    for medians in (np.ones(3), np.array([1.0, 0.0]), np.array([1.0, np.nan])):
        with pytest.raises(DataError, match=r"median"):
            Tokenizer(vocabulary, medians)
    with pytest.raises(DataError, match=r"--top-k 0"):
        Tokenizer(vocabulary, np.ones(2), 0)


def test_bind_maps_reports_and_refuses_foreign_genes(tmp_path: Path) -> None:
    tokenizer = Tokenizer(Vocabulary("as-is", GENES[:3]), np.ones(3))
    path = write_counts(tmp_path / "a.h5ad", draw_counts(3, 4), ["g02", "other", "g00", "g02"])
    with open_counts(path) as counts:
        columns = tokenizer.bind(counts)
    assert columns.numbers.tolist() == [2, -1, 0, 2]
    assert columns.found == 2
    assert columns.report.repeated == 1
    path = write_counts(tmp_path / "b.h5ad", draw_counts(3, 2), ["x", "y"])
    with open_counts(path) as counts, pytest.raises(DataError, match=r"none of its 2 genes \(x, y …\)"):
        tokenizer.bind(counts)


def test_as_is_medians_bind_names_even_where_a_file_has_ids(tmp_path: Path) -> None:
    ids = [f"ENSG{i:011d}" for i in range(3)]
    tokenizer = Tokenizer(Vocabulary("as-is", GENES[:3]), np.ones(3))
    path = write_counts(tmp_path / "a.h5ad", draw_counts(3, 3), list(GENES[:3]), var={"gene_ids": ids})
    with open_counts(path) as counts:
        columns = tokenizer.bind(counts)
    assert columns.numbers.tolist() == [0, 1, 2]
    assert columns.report.column is None


def test_promise_11_one_tokenizer(tmp_path: Path) -> None:
    """A store holds the tokens that the tokenizer loaded from it makes, whatever the chunks of reading."""
    counts = draw_counts(120, 30)
    path = write_counts(tmp_path / "a.h5ad", counts)
    say = [].append
    make_medians([path], tmp_path / "m.zarr", say=say)
    stores = []
    for workers, dither in ((1, False), (2, False), (1, True)):
        out = tmp_path / f"s{len(stores)}.zarr"
        stores.append(make_store([path], tmp_path / "m.zarr", out, dither=dither, workers=workers, say=say))
    assert stores[0].hash == stores[1].hash != stores[2].hash
    for number, manifest in enumerate(stores):
        store = tmp_path / f"s{number}.zarr"
        tokenizer = Tokenizer.load(store)
        assert (tokenizer.hash, tokenizer.medians_hash) == (manifest.tokenizer_hash, manifest.medians_hash)
        assert tokenizer.vocabulary.hash == manifest.vocabulary_hash == Manifest.load(store).vocabulary_hash
        stored = read_tokens(store, "a")
        for rows in (1, 7, 120):
            with open_counts(path, CountOptions()) as file:
                columns = tokenizer.bind(file)
                found = [tokenizer.encode(chunk, columns)[0] for _, chunk in file.chunks(rows)]
            np.testing.assert_array_equal(np.concatenate(found), stored)
    # The same cells, with their genes in another order and stored as csc.
    shuffled = np.random.default_rng(0).permutation(30)
    other = write_counts(tmp_path / "b.h5ad", counts.tocsc()[:, shuffled], [f"g{i:04d}" for i in shuffled])
    tokenizer = Tokenizer.load(tmp_path / "s0.zarr")
    with open_counts(other) as file:
        (_, chunk), *_ = file.chunks(200)
        tokens, _ = tokenizer.encode(chunk, tokenizer.bind(file))
    np.testing.assert_array_equal(tokens, read_tokens(tmp_path / "s0.zarr", "a"))


def read_tokens(store: Path, dataset: str) -> np.ndarray:
    return np.asarray(zarr.open_group(store, mode="r")[f"{dataset}/tokens"][:])  # type: ignore[index]
