"""Values that must never change: otherwise existing stores, splits and runs would change their meaning.

mix64 of 0 and of 1 are the first outputs of SplitMix64 with these seeds. All other values were recorded from gm-train.
"""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from data_shards.counts.gene_ids import GeneReport
from data_shards.hashing import fold, hash_string, mix64, mix64_int, mix64_scalar
from data_shards.medians.make_medians import make_medians
from data_shards.prepare.make_store import make_store
from data_shards.prepare.splits import SplitOptions, assign_donors, split_by_cell
from data_shards.rows.block_order import permute
from data_shards.tokens.tokenizer import GeneColumns, Tokenizer
from data_shards.tokens.vocabulary import Vocabulary
from tests.support.count_files import write_counts


@pytest.mark.parametrize(
    ("key", "mixed"), [(0, 0xE220A8397B1DCDAF), (1, 0x910A2DEC89025CC1), (2**63, 0x481EC0A212A9F3DB)]
)
def test_mix64(key: int, mixed: int) -> None:
    assert mix64_int(key) == int(mix64_scalar(np.uint64(key))) == mixed
    assert mix64(np.array([key], np.uint64)).tolist() == [mixed]


def test_hash_string_and_fold() -> None:
    assert hash_string("ENSG00000141510") == 0x4FE415C2E07DE66F
    assert (fold(1, 2, 3), fold(2, 1, 3)) == (0x882D1ACC8D6C3B48, 0x97333B46C0665DFC)


def test_order_of_blocks() -> None:
    keys = np.full(10, 7, np.uint64)
    assert permute(np.arange(10), 10, keys).tolist() == [6, 8, 4, 3, 5, 9, 1, 7, 0, 2]
    keys = np.full(3, fold(3), np.uint64)
    assert permute(np.array([0, 1, 1_000_002]), 1_000_003, keys).tolist() == [416_305, 348_345, 70_464]


@pytest.mark.parametrize(
    ("dither", "expected"), [(False, [11, 4, 8, 7, 9, 6, 5, 3]), (True, [11, 3, 8, 7, 5, 9, 6, 2])]
)
def test_tokens_of_a_cell(dither: bool, expected: list[int]) -> None:
    """Eight genes are tied: the hash decides their order."""
    vocabulary = Vocabulary("as-is", tuple(f"g{i:02d}" for i in range(12)))
    medians = np.array([1, 1, 1, 1, 1, 1, 2, 2, 1, 0.5, 4, 4])
    columns = GeneColumns(np.arange(12, dtype=np.int32), 12, GeneReport("as-is", 0, 0, 0, 0, 0, 0, ()))
    cell = sp.csr_matrix(np.array([[1.0, 1, 1, 1, 1, 1, 2, 2, 0, 3, 1, 1]]))
    tokens, _ = Tokenizer(vocabulary, medians, 8, dither).encode(cell, columns)
    assert tokens.tolist() == expected


def test_hash_of_a_cell() -> None:
    """The same, dithered or not, and independent of the medians. A hand-made sum stands beside it."""
    vocabulary = Vocabulary("as-is", ("g0", "g1", "g2"))
    numbers = np.array([2, -1, 0, 1], np.int32)
    cell = sp.csr_matrix(np.array([[3.0, 7, 0, 1], [0, 5, 0.5, 0]]))
    terms = {("g2", 3.0): 0, ("g1", 1.0): 0, ("g0", 0.5): 1}
    expected = [0, 0]
    for (gene, count), row in terms.items():
        bits = int(np.float32(count).view(np.uint32))
        expected[row] = (expected[row] + mix64_int(hash_string(gene) ^ bits)) % 2**64
    for medians, dither in ((np.ones(3), False), (np.array([1.0, 2.0, 4.0]), True)):
        ranked = Tokenizer(vocabulary, medians, 8, dither).ranker.rank(cell, numbers)
        assert ranked.hashes.tolist() == expected == [0x0448C93619413135, 0x5CAAAE9299D2D0B6]


def test_splits() -> None:
    by_cell = split_by_cell("a", np.arange(20), SplitOptions(validation=0.3, test=0.2))
    assert by_cell.tolist() == [0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 2, 1, 1, 0, 1, 0, 0, 0, 1, 0]
    donors = Counter({f"d{i}": 10 + i for i in range(8)})
    split = assign_donors(donors, SplitOptions(validation=0.2, test=0.2, seed=1), {})
    assert [split[f"d{i}"] for i in range(8)] == [1, 2, 0, 0, 0, 1, 2, 0]


def test_hashes_of_a_tiny_store(tmp_path: Path) -> None:
    counts = (np.arange(72).reshape(9, 8) * 7 % 5).astype(np.float32)
    donors = [f"d{i % 3}" for i in range(9)]
    path = write_counts(tmp_path / "tiny.h5ad", sp.csr_matrix(counts), obs={"donor": donors})
    medians = make_medians([path], tmp_path / "m.zarr", say=lambda line: None)
    store = make_store([path], tmp_path / "m.zarr", tmp_path / "s.zarr", top_k=6, say=lambda line: None)
    assert medians.hash == "1d18adbc481f418a4bb2bfda21402f4b1dd808134e4a42e60ad427a65b7e08a0"
    assert store.tokenizer_hash == "8d835407aea6e1a79228fe634a7dc628328d48fe13eac5935ae1c72f459ccaac"
    assert store.datasets[0].content_hash == "8ac05ff8f6165b592c71979bf49ebf706143c50cdc6125757b54d03f257cdacb"
    assert store.hash == "d2846adebf50826006bfde786c039d4e6d1ce3c5e82c65737bd47b97c0eb680a"
