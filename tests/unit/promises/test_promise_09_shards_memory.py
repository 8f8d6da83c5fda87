"""Promise 9: the memory of `data shards` does not grow with the number of cells."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from data_shards.medians.make_medians import make_medians
from data_shards.store.manifest import Manifest
from tests.support.count_files import write_counts
from tests.support.counts_to_stores import quiet

CELLS, DETECTED, GENES = 30_000, 150, 2_000

MEASURE = """
import sys
from pathlib import Path
from data_shards.prepare import rank_datasets
from data_shards.prepare.make_store import make_store
from data_shards.store import writer
from gm_train.bench.measure.footprint import Footprint
rank_datasets.PART_CELLS = 4096
writer.LAYOUT = {name: (dtype, 1 << 12, 1 << 18) for name, (dtype, _, _) in writer.LAYOUT.items()}
make_store([Path(sys.argv[1])], Path(sys.argv[2]), Path(sys.argv[3]), keep_values=True, say=lambda line: None)
print(Footprint.own())
"""


def draw(path: Path, n_cells: int) -> Path:
    """Cells of 150 non-zero counts, each with a name and a donor."""
    rng = np.random.default_rng(0)
    genes = np.sort(rng.integers(GENES // DETECTED, size=(n_cells, DETECTED)) + np.arange(DETECTED) * 13, axis=1)
    indptr = np.arange(n_cells + 1) * DETECTED
    counts = rng.integers(1, 9, n_cells * DETECTED).astype(np.float32)
    matrix = sp.csr_matrix((counts, genes.ravel().astype(np.int32), indptr), (n_cells, GENES))
    return write_counts(path, matrix, obs={"donor_id": rng.integers(9, size=n_cells).astype(str)})


def peak_mib(folder: Path, path: Path) -> float:
    out = folder / f"{path.stem}.zarr"
    words = [sys.executable, "-c", MEASURE, str(path), str(folder / "m.zarr"), str(out)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert Manifest.load(out).n_tokens > 0
    return int(done.stdout) / (1 << 20)


def test_promise_09_memory_does_not_grow_with_the_cells(tmp_path: Path) -> None:
    """Twelve times the cells, whose tokens and values alone are 280 MiB more."""
    few, many = draw(tmp_path / "few.h5ad", CELLS), draw(tmp_path / "many.h5ad", 12 * CELLS)
    make_medians([few], tmp_path / "m.zarr", say=quiet)
    # The first start compiles kernels if they are not cached.
    peaks = [peak_mib(tmp_path, path) for path in (few, many)]
    # The freed memory that the allocator keeps varies from run to run by tens of MiB, but does not grow.
    assert peaks[1] < peaks[0] + 140, peaks
