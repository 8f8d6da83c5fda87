"""Fixtures and helpers that all tests share."""

import os

# One thread for each process of pytest-xdist: more would wait for each other. Before torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The C library's default. Set, it keeps trainings from changing the allocator of a process in which other tests measure
# memory (`gm_train/ranks/allocator.py`).
os.environ.setdefault("MALLOC_MMAP_MAX_", "65536")

import gc
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from data_shards.medians.make_medians import make_medians
from data_shards.prepare.make_store import make_store
from data_shards.prepare.splits import SplitOptions

#: Folders whose files share something that one test at a time can use: the nodes of one SLURM.
SHARED = {"slurm"}
#: Folders in the order in which they are given to workers. Tests that mostly wait for other processes come first, so
#: that one worker waits while another computes. Files that take minutes come next, so that no worker ends with one.
ORDER = ("slurm", "dist", "faults", "e2e", "unit/promises", "unit/gm_train/bench", "unit/gm_train/model")

# Compiling a kernel on the first example takes seconds; on CI the examples are the same each time.
settings.register_profile("gm-train", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("gm-train")


class _ByFile(LoadScopeScheduling):
    """Gives all tests of a file to one process of pytest-xdist, since they share fixtures; of `SHARED`, a folder."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        folder = path.removeprefix("tests/").partition("/")[0]
        return folder if folder in SHARED else path


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist there is no such hook
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Schedule by file, whatever `--dist` says."""
    return _ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests in the order of `ORDER`, and otherwise leave them in their order."""
    here = Path(__file__).parent

    def number(item: pytest.Item) -> int:
        path = item.path.relative_to(here)
        return next((i for i, folder in enumerate(ORDER) if path.is_relative_to(folder)), len(ORDER))

    items.sort(key=number)


class _FailuresAtOnce:
    """Prints a failure when it comes: a run that is ended before pytest's summary would not name it."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Print the name and the traceback of a test that failed."""
        if report.failed:
            terminal = self._config.pluginmanager.get_plugin("terminalreporter")
            terminal.write_line(f"\n{report.nodeid} failed ({report.when}):\n{report.longreprtext}")


def pytest_configure(config: pytest.Config) -> None:
    """Switch the garbage collector off until all tests are collected: it would go through all imports many times."""
    gc.disable()
    if "PYTEST_XDIST_WORKER" not in os.environ:  # workers send their reports to the first process
        config.pluginmanager.register(_FailuresAtOnce(config))


def pytest_collection_finish() -> None:
    """Switch the garbage collector on again; it never goes through what is imported by now."""
    gc.freeze()
    gc.enable()


@pytest.fixture
def usual_ctrl_c() -> Iterator[None]:
    """Make SIGINT raise KeyboardInterrupt, even if a library imported by another test changed its handler."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real cells and gene sets, from GM_TEST_DATA."""
    if "GM_TEST_DATA" not in os.environ:
        pytest.skip("GM_TEST_DATA is not set: set it to the folder with scp1884_gut_1020.h5ad")
    return Path(os.environ["GM_TEST_DATA"])


@dataclass(frozen=True)
class Atlas:
    """A small store, and the files that it was made from."""

    store: Path
    files: tuple[Path, ...]


def write_cells(path: Path, n_cells: int, n_genes: int, seed: int) -> Path:
    """Write an .h5ad file of two cell types over skewed gene rates; about a third of the entries are above zero.

    Args:
        path: of the file.
        n_cells: number of cells.
        n_genes: number of genes.
        seed: of the random counts.
    """
    rng = np.random.default_rng(seed)
    rates = rng.gamma(0.4, 2.0, size=n_genes)
    types = rng.integers(2, size=n_cells)
    boost = np.where((np.arange(n_genes) % 2 == 0) == (types[:, None] == 0), 1.5, 0.5)
    counts = rng.poisson(rates * boost * rng.gamma(4, 0.25, size=(n_cells, 1)))
    counts[:, 0] += 1  # no cell is empty
    obs = pd.DataFrame(
        {"cell_type": [f"type {t}" for t in types], "donor_id": [f"donor {d}" for d in rng.integers(6, size=n_cells)]},
        index=[f"cell {i}" for i in range(n_cells)],
    )
    var = pd.DataFrame(index=[f"gene{i:04d}" for i in range(n_genes)])
    ad.AnnData(sp.csr_matrix(counts.astype(np.float32)), obs=obs, var=var).write_h5ad(path)
    return path


@pytest.fixture(scope="session")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Atlas:
    """Two data sets of 150 and 41 cells over 80 genes in one store."""
    folder = tmp_path_factory.mktemp("atlas")
    files = (write_cells(folder / "first.h5ad", 150, 80, seed=1), write_cells(folder / "second.h5ad", 41, 80, seed=2))
    make_medians(files, folder / "medians.zarr", say=lambda line: None)
    splits = SplitOptions(by="cell", validation=0.2)
    make_store(files, folder / "medians.zarr", folder / "store.zarr", top_k=48, splits=splits, say=lambda line: None)
    return Atlas(folder / "store.zarr", files)


def tiny_words(store: Path, run: Path) -> list[str]:
    """Configuration of a run whose steps take milliseconds."""
    return [
        f"data.store={store}", f"run.dir={run}", "data.lanes=4", "data.micro_rows=2", "data.row_length=96",
        "data.pool_blocks=2", "data.group_cells=16", "model.d_model=32", "model.n_layers=2", "model.d_state=8",
        "model.head_dim=16", "model.chunk=32", "model.norm=pre", "objective.language=masked",
        "optim.lr=3e-3", "optim.warmup_steps=5", "optim.schedule_steps=12",
        "trainer.max_steps=12", "trainer.validate_every_steps=5", "trainer.validation_cells=20",
        "checkpoint.every_steps=4", "tracking.mlflow=none",
    ]  # fmt: skip


def write_gene_sets(path: Path) -> Path:
    """Write a GMT file of overlapping sets over the genes of `write_cells`."""
    sets = {f"set {i}": [f"gene{j:04d}" for j in range(8 * i, 8 * i + 12)] for i in range(8)}
    path.write_text("".join("\t".join([name, "made for tests", *genes]) + "\n" for name, genes in sets.items()))
    return path
