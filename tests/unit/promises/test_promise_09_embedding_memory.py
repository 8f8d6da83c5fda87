"""Promise 9: the memory of `embed` does not grow with the number of cells."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from data_shards.medians.make_medians import make_medians
from data_shards.prepare.make_store import make_store
from data_shards.prepare.splits import SplitOptions
from gm_train.config.load import load_config
from gm_train.train.fit import fit
from tests.conftest import tiny_words
from tests.support.count_files import write_counts
from tests.support.counts_to_stores import quiet

CELLS, DETECTED, GENES, CHANNELS = 4_096, 6, 60, 512

# Footprint is used instead of ru_maxrss, which a process inherits: it would start at the peak of the tests' process.
MEASURE = """
import sys
from pathlib import Path
from gm_train.bench.measure.footprint import Footprint
from gm_train.embedding import ragged, token_chunks
from gm_train.embedding.embed_file import embed_file
ragged._LENGTH_STEP, token_chunks.CHUNK_CELLS = 8, 1024
ragged.batch_tokens = lambda device: 1024  # larger batches take more memory than all vectors, and vary by as much
embed_file(*map(Path, sys.argv[1:]), say=lambda line: None)
print(Footprint.own())
"""


def draw(path: Path, n_cells: int) -> Path:
    """Cells of six genes each."""
    rng = np.random.default_rng(0)
    genes = np.sort(rng.integers(GENES // DETECTED, size=(n_cells, DETECTED)) + np.arange(DETECTED) * 10, axis=1)
    counts = rng.integers(1, 9, n_cells * DETECTED).astype(np.float32)
    indptr = np.arange(n_cells + 1) * DETECTED
    return write_counts(path, sp.csr_matrix((counts, genes.ravel().astype(np.int32), indptr), (n_cells, GENES)))


def peak_mib(run: Path, cells: Path, out: Path) -> float:
    # Freed arrays go back to the system at once: what the allocator keeps varies by as much as the vectors.
    env = os.environ | {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 18)}
    words = [sys.executable, "-c", MEASURE, run, cells, out]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=env)
    return int(done.stdout) / (1 << 20)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["h5ad", "zarr"])
def test_promise_09_memory_does_not_grow_with_the_cells(tmp_path: Path, suffix: str) -> None:
    """Eight times the cells, whose vectors are 56 MiB more."""
    few, many = draw(tmp_path / "few.h5ad", CELLS), draw(tmp_path / "many.h5ad", 8 * CELLS)
    medians, store, run = tmp_path / "m.zarr", tmp_path / "s.zarr", tmp_path / "run"
    make_medians([few], medians, say=quiet)
    make_store([few], medians, store, top_k=48, splits=SplitOptions(by="cell", validation=0.2), say=quiet)
    wide = [f"model.d_model={CHANNELS}", "model.n_layers=1", "trainer.max_steps=1", "optim.warmup_steps=1"]
    fit(load_config(*tiny_words(store, run), *wide))
    peak_mib(run, few, tmp_path / f"warm.{suffix}")  # compiles the kernels
    less, more = (peak_mib(run, cells, tmp_path / f"{cells.stem}-out.{suffix}") for cells in (few, many))
    assert more < less + 25, f"{less:.0f} MiB, then {more:.0f} MiB"
