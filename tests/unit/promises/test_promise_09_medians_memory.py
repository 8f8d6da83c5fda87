"""Promise 9: the memory of `data medians` does not grow with the number of cells."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata.io import write_elem

# Footprint is used instead of ru_maxrss, which a process inherits: it would start at the peak of the tests' process.
_PROGRAM = """
import sys
from pathlib import Path
from data_shards.medians import medians_source, tdigest_tree
from data_shards.medians.make_medians import make_medians
from gm_train.bench.measure.footprint import Footprint
{smaller}
with Footprint() as footprint:
    make_medians([Path(sys.argv[1])], Path(sys.argv[2]), exact={exact}, workers={workers}, say=lambda line: None)
print(max(footprint.own_peak, footprint.child_peak))
"""
_SMALLER = "medians_source.PARTITION_CELLS, tdigest_tree.FAN_IN = 1024, 4"


def write_repeated(path: Path, n_blocks: int, n_genes: int = 4000, molecules: float = 0.22) -> Path:
    """Write the same 1,024 cells `n_blocks` times, about `n_genes * molecules` genes a cell, block by block."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(molecules, (1024, n_genes)).astype(np.uint8)
    cells, genes = np.nonzero(counts)
    lengths = np.bincount(cells, minlength=1024)
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        matrix = file.create_group("X")
        matrix.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0"})
        matrix.attrs["shape"] = np.array([1024 * n_blocks, n_genes])
        for name, values in (("data", counts[cells, genes]), ("indices", genes.astype(np.int32))):
            array = matrix.create_dataset(name, (n_blocks * len(values),), values.dtype, chunks=(1 << 16,))
            for block in range(n_blocks):
                array[block * len(values) : (block + 1) * len(values)] = values
        matrix["indptr"] = np.concatenate([[0], np.tile(lengths, n_blocks).cumsum()])
        write_elem(file, "obs", pd.DataFrame(index=np.arange(1024 * n_blocks).astype(str)))
        write_elem(file, "var", pd.DataFrame(index=[f"g{i}" for i in range(n_genes)]))
    return path


def peak_mib(path: Path, out: Path, smaller: str = _SMALLER, exact: bool = False, workers: int = 1) -> float:
    program = _PROGRAM.format(smaller=smaller, exact=exact, workers=workers)
    done = subprocess.run([sys.executable, "-c", program, path, out], capture_output=True, text=True, check=True)
    return int(done.stdout) / (1 << 20)


def test_promise_09_bounded_memory(tmp_path: Path) -> None:
    """10 partitions against 40, whose digests take 200 MB more; such peaks vary by a quarter of that."""
    small = write_repeated(tmp_path / "small.h5ad", 10)
    large = write_repeated(tmp_path / "large.h5ad", 40)
    peak_mib(small, tmp_path / "warm.zarr")  # compiles the kernels
    less, more = peak_mib(small, tmp_path / "small.zarr"), peak_mib(large, tmp_path / "large.zarr")
    assert more < less + 50, f"{less:.0f} MiB, then {more:.0f} MiB"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_blocks", "n_genes", "molecules", "exact", "workers"),
    [
        (8, 60_000, 0.087, False, 1),  # 41 million counts, more than a partition; few for each gene, so all are kept
        (8, 60_000, 0.087, True, 1),
        (36, 30_000, 0.035, False, 1),  # just over a thousand counts of each gene in a partition: all are compressed
        (36, 30_000, 0.035, False, 2),  # worker processes keep the memory that they free
    ],
)
def test_promise_09_many_genes_take_less_than_two_gibibytes(
    tmp_path: Path, n_blocks: int, n_genes: int, molecules: float, exact: bool, workers: int
) -> None:
    many = write_repeated(tmp_path / "many.h5ad", n_blocks, n_genes, molecules)
    peak = peak_mib(many, tmp_path / "medians.zarr", smaller="", exact=exact, workers=workers)
    assert peak < 2048, f"{peak:.0f} MiB"
