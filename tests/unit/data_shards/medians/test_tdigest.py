"""Digests: exact up to 1,000 values, close beyond, independent of order, and cut into parts by the data alone."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from fastdigest import TDigest, merge_all
from hypothesis import given, settings
from hypothesis import strategies as st

from data_shards.counts.count_file import open_counts
from data_shards.errors import DataError
from data_shards.files.fingerprint import Fingerprint
from data_shards.medians import medians_source, tdigest
from data_shards.medians.medians_source import MediansSource
from data_shards.medians.tdigest import HEADER_PAIRS, MAX_CENTROIDS, Digests, digest_partition, library_digest
from data_shards.medians.tdigest_parts import DigestPart, gene_blocks, merge_digests, merge_tasks, write_digests
from tests.support.count_files import draw_counts, write_counts


def draw(lengths: list[int], seed: int) -> Digests:
    """Digests of genes with these numbers of values, many of them equal."""
    rng = np.random.default_rng(seed)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Digests.from_values(starts, rng.lognormal(size=starts[-1]).round(2).astype(np.float32))


def test_the_binary_form_of_the_library_is_as_we_write_it() -> None:
    """Our bytes equal the library's own, except the sum of many values, which it adds in another order."""
    for values, weights in (([1.5], [1.0]), ([1.0, 2.0, 2.0, 5.0], [3.0, 1.0, 2.0, 7.0])):
        theirs = TDigest.from_values(values, weights, max_centroids=0)
        ours = library_digest(np.array(values, np.float32), np.array(weights, np.uint32))
        assert ours.to_bytes() == theirs.to_bytes()
    values = np.sort(np.random.default_rng(0).lognormal(size=5_000).astype(np.float32))
    theirs, ours = (
        merge_all([digest], max_centroids=MAX_CENTROIDS)
        for digest in (TDigest.from_values(values, max_centroids=0), library_digest(values, np.empty(0, np.uint32)))
    )
    assert ours.centroids == theirs.centroids
    assert (ours.n_values, ours.min(), ours.max(), ours.median()) == (
        5_000, values[0], values[-1], theirs.median()
    )  # fmt: skip
    pairs = np.frombuffer(ours.to_bytes()).reshape(-1, 2)[HEADER_PAIRS:]
    assert [tuple(pair) for pair in pairs] == theirs.centroids


@given(st.lists(st.integers(0, 1_400), min_size=1, max_size=6), st.integers(0, 99))
def test_a_digest_is_its_values_or_near_them(lengths: list[int], seed: int) -> None:
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    values = np.random.default_rng(seed).lognormal(size=starts[-1]).astype(np.float32)
    digests = Digests.from_values(starts, values.copy())
    np.testing.assert_array_equal(digests.counts, lengths)
    for gene, (first, last) in enumerate(pairwise(starts)):
        span = slice(digests.indptr[gene], digests.indptr[gene + 1])
        weights = digests.weights[digests.weights_from[gene] : digests.weights_from[gene + 1]]
        assert weights.sum() == last - first if last - first > MAX_CENTROIDS else len(weights) == 0
        assert np.all(np.diff(digests.means[span]) >= 0)
        if last - first <= MAX_CENTROIDS:
            np.testing.assert_array_equal(digests.means[span], np.sort(values[first:last]))
        else:
            np.testing.assert_allclose(digests.medians()[gene], np.median(values[first:last]), rtol=5e-3)


@given(st.lists(st.sampled_from([0, 3, MAX_CENTROIDS, MAX_CENTROIDS + 1, 1_300]), min_size=1, max_size=8))
def test_how_many_genes_are_compressed_at_once_changes_nothing(lengths: list[int]) -> None:
    whole = draw(lengths, 0)
    for at_once in (1, 2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tdigest, "_AT_ONCE", at_once)
            found = draw(lengths, 0)
        for name in ("means", "weights", "indptr", "counts"):
            np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))


def test_parts_without_a_gene_are_merged(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        write_digests(tmp_path / name, draw([], 0))
    (task,) = merge_tasks([tmp_path / "a", tmp_path / "b"], tmp_path / "merged")
    merge_digests(task)
    assert merge_tasks([tmp_path / "a", tmp_path / "b"], tmp_path / "merged") == []
    merged = DigestPart(tmp_path / "merged")
    assert (merged.indptr.tolist(), merged.counts.tolist(), merged.n_weights) == ([0], [], 0)


def test_what_a_lost_task_leaves_is_no_piece(tmp_path: Path) -> None:
    for name in ("00000000", ".00000000.3f"):
        (tmp_path / name).mkdir()
        write_digests(tmp_path / name, draw([3, 1], 0))
    assert DigestPart(tmp_path).counts.tolist() == [3, 1]


@settings(max_examples=25)
@given(st.permutations(range(5)), st.integers(0, 99))
def test_merges_depend_neither_on_order_nor_on_blocks_of_genes(order: list[int], seed: int) -> None:
    """The parts have different genes, with ties between parts, and equal means with different weights."""
    lengths = [[0, 1_300, 7, 700], [900, 2, 0, 0], [40, 2_500, 0, 650], [0, 0, 3, 0], [1_200, 1_200, 1, 1]]
    parts = [draw(of_part, seed + i) for i, of_part in enumerate(lengths)]
    numbers = [
        np.array(own, np.int32) for own in ([0, 1, 2, 4], [0, 2, 3, 5], [0, 1, 4, 5], [1, 2, 3, 4], [0, 1, 4, 5])
    ]
    whole = Digests.merge(parts, numbers, 6)
    again = Digests.merge([parts[i] for i in order], [numbers[i] for i in order], 6)
    for name in ("means", "weights", "indptr", "counts"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    assert whole.counts.sum() == np.sum(lengths)
    assert np.diff(whole.indptr).max() <= MAX_CENTROIDS


def test_parts_are_read_by_genes_as_they_were_written(tmp_path: Path) -> None:
    """Read parts of one piece and of several pieces."""
    whole = draw([3, 0, 1_100, 1, 0, 20], 1)
    (tmp_path / "whole").mkdir()
    write_digests(tmp_path / "whole", whole)
    alone = DigestPart(tmp_path / "whole")
    for name in ("means", "weights", "indptr", "counts"):
        np.testing.assert_array_equal(getattr(alone.read(0, 6), name), getattr(whole, name))
    with_parts = [draw([3, 0], 1), draw([1_200, 7], 2)]
    for first, digests in zip((0, 6, 8), [whole, *with_parts], strict=True):
        piece = tmp_path / "part" / f"{first:08d}"
        piece.mkdir(parents=True)
        write_digests(piece, digests)
    part = DigestPart(tmp_path / "part")
    np.testing.assert_array_equal(part.counts, [3, 0, 1_100, 1, 0, 20, 3, 0, 1_200, 7])
    for name in ("means", "weights"):
        chunks = list(part.chunks(name, 16))
        assert {len(chunk) for chunk in chunks[:-1]} == {16}
        expected = [getattr(digests, name) for digests in [whole, *with_parts]]
        np.testing.assert_array_equal(np.concatenate(chunks), np.concatenate(expected))
    middle = part.read(1, 4)
    span = slice(whole.indptr[1], whole.indptr[4])
    np.testing.assert_array_equal(middle.means, whole.means[span])
    np.testing.assert_array_equal(middle.weights, whole.weights)
    np.testing.assert_array_equal(middle.indptr, whole.indptr[1:5] - whole.indptr[1])
    np.testing.assert_array_equal(middle.counts, [0, 1_100, 1])
    over = part.read(5, 9)  # spans three pieces
    expected = np.concatenate([whole.means[-20:], with_parts[0].means, with_parts[1].means[:-7]])
    np.testing.assert_array_equal(over.means, expected)
    np.testing.assert_array_equal(over.weights, with_parts[1].weights)
    np.testing.assert_array_equal(over.counts, [20, 3, 0, 1_200])
    np.testing.assert_array_equal(over.indptr, [0, 20, 23, 23, len(expected)])


@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 80))
def test_blocks_of_genes_cover_them_and_are_bounded(lengths: list[int], most: int) -> None:
    blocks = gene_blocks(np.array(lengths, np.int64), most)
    assert [gene for first, last in blocks for gene in range(first, last)] == list(range(len(lengths)))
    assert all(last - first == 1 or sum(lengths[first:last]) <= most for first, last in blocks)


@pytest.mark.parametrize("storage", ["csr", "csc", "dense"])
def test_partitions_are_bounded_in_cells_and_entries(
    tmp_path: Path, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(medians_source, "PARTITION_CELLS", 8)
    monkeypatch.setattr(medians_source, "PARTITION_ENTRIES", 60)
    counts = draw_counts(50, 12)
    counts = sp.vstack([counts[:20], sp.csr_matrix((20, 12)), counts[40:]], format="csr")  # cells without a count
    stored = {"csr": counts, "csc": counts.tocsc(), "dense": counts.toarray()}[storage]
    path = write_counts(tmp_path / "a.h5ad", stored)
    dataset = MediansSource.of(path, 50, "as-is", [f"g{i}" for i in range(12)])
    with open_counts(path, scratch=tmp_path) as file:
        found = list(dataset.partitions(file, Fingerprint.of(path), dataset.numbers, 12))
    assert [cell for one in found for cell in range(one.start, one.stop)] == list(range(50))
    entries = np.full(50, 12) if storage == "dense" else np.diff(counts.indptr)
    for one, after in zip(found, [*found[1:], None], strict=True):
        assert one.n_entries == entries[one.start : one.stop].sum() <= 60
        assert one.stop - one.start <= 8
        if after is not None:  # no partition is smaller than necessary
            assert one.stop - one.start == 8 or one.n_entries + entries[one.stop] > 60


def test_more_counts_than_a_partition_was_cut_for_are_refused(tmp_path: Path) -> None:
    """This covers a file with wrong row pointers, and a file replaced by a denser one."""
    path = write_counts(tmp_path / "a.h5ad", draw_counts(50, 12))
    dataset = MediansSource.of(path, 50, "as-is", [f"g{i}" for i in range(12)])
    with open_counts(path) as file:
        (partition,) = dataset.partitions(file, Fingerprint.of(path), dataset.numbers, 12)
    kept = digest_partition(partition).counts.sum()
    assert kept == partition.n_entries
    fewer = replace(partition, n_entries=partition.n_entries - 1)
    with pytest.raises(DataError, match=r"a\.h5ad: holds more counts than its row pointers say"):
        digest_partition(fewer)
    write_counts(path, draw_counts(50, 12).astype(np.float64))
    with pytest.raises(DataError, match=r"a\.h5ad: changed while it was read"):
        digest_partition(fewer)
