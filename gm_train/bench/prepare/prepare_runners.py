"""The measurements of `gm-train bench prepare`: objects that live in their worker processes."""

import cProfile
import math
import pstats
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import scipy.sparse as sp

import data_shards
from data_shards.counts.count_file import open_counts
from data_shards.inspect.verify import find_damage
from data_shards.medians.make_medians import make_medians
from data_shards.prepare.make_store import make_store
from data_shards.prepare.splits import SplitOptions
from data_shards.simulate.write_atlas import write_atlas
from data_shards.store.manifest import Manifest
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.bench.atlases import TOP_K, atlas_options
from gm_train.bench.loader.loaders import LoaderCells, cycle_cells, own_batches, settle, take_cells
from gm_train.bench.measure.footprint import Footprint
from gm_train.bench.measure.process import BenchProcess
from gm_train.bench.rankings import RANKINGS, medians_of_columns

KERNEL = "gm-train's kernel"
READING = "h5py, reading twice"
#: Cells per read.
_ROWS = 4096
_FEWEST_CYCLES = 3

Row = dict[str, Any]


def nothing(line: str) -> None:
    """Drop progress lines."""


def read_counts(path: Path) -> int:
    """Read the counts and columns of a file with h5py, 4,096 cells at a time; return how many numbers it read."""
    n = 0
    with h5py.File(path, "r") as file:
        matrix = file["X"]
        indptr = matrix["indptr"]
        for first in range(0, indptr.shape[0] - 1, _ROWS):
            bounds = indptr[first : first + _ROWS + 1]
            span = slice(int(bounds[0]), int(bounds[-1]))
            n += len(matrix["data"][span]) + len(matrix["indices"][span])
    return n


class RankRunner:
    """One way to rank the cells of a file.

    Args:
        h5ad: counts.
        store: token store whose tokenizer ranks.
        name: `KERNEL` or a name of `RANKINGS`.
        n_cells: number of cells from the start of the file; the same cells are ranked in each step.
    """

    def __init__(self, h5ad: Path, store: Path, name: str, n_cells: int) -> None:
        tokenizer = Tokenizer.load(store)
        with open_counts(h5ad) as counts:
            columns = tokenizer.bind(counts)
            chunk: sp.csr_matrix = next(iter(counts.chunks(n_cells, stop=n_cells)))[1]
        self._n_cells = chunk.shape[0]
        self._rank: Callable[[], Any]
        if name == KERNEL:
            self._rank = lambda: tokenizer.encode(chunk, columns)
        else:
            medians = medians_of_columns(tokenizer, columns)
            self._rank = lambda: RANKINGS[name](chunk, medians, tokenizer.top_k)

    def use(self) -> None:
        """Rank once, untimed, so that code is compiled."""
        self._rank()

    def steps(self, n: int) -> list[float]:
        """Rank n times and return the cells/s of each time."""
        rates = []
        for _ in range(n):
            start = time.perf_counter()
            self._rank()
            rates.append(self._n_cells / (time.perf_counter() - start))
        return rates


#: The library, with the conversion of numbers into its binary form.
_LIBRARY = "fastdigest, from numbers to digests"


class MediansRunner:
    """Medians of one file by one worker, with a profile.

    Args:
        h5ad: counts.
        folder: for output.
    """

    def __init__(self, h5ad: Path, folder: Path) -> None:
        self._h5ad, self._out = h5ad, folder / "timed-medians.zarr"

    def _make(self, exact: bool) -> float:
        shutil.rmtree(self._out, ignore_errors=True)
        start = time.perf_counter()
        make_medians([self._h5ad], self._out, exact=exact, say=nothing)
        return time.perf_counter() - start

    def run(self) -> Row:
        """Return seconds of reading with h5py, of both methods, and of each function (own time, under a profiler)."""
        self._make(exact=False)  # untimed: compiles code and fills caches
        start = time.perf_counter()
        read_counts(self._h5ad)
        timed: Row = {"h5py_s": time.perf_counter() - start}
        timed |= {"digests_s": self._make(exact=False), "exact_s": self._make(exact=True)}
        profile = cProfile.Profile()
        profile.enable()
        self._make(exact=False)
        profile.disable()
        shutil.rmtree(self._out)
        return timed | {"functions": _own_seconds(profile)}


def _own_seconds(profile: cProfile.Profile) -> dict[str, float]:
    """Seconds of each function, without the functions that it calls."""
    package = str(Path(data_shards.__file__).parent)
    by_name: dict[str, float] = {}
    for (file, _, function), (_, _, own, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        if file == "~":
            name = _builtin(function)
        elif function in ("library_digest", "_pack"):
            name = _LIBRARY
        elif file.startswith(package):
            name = ".".join(["data_shards", *Path(file).relative_to(package).with_suffix("").parts, function])
        else:
            # For other code, the name of the package is enough.
            parts = Path(file).parts
            name = parts[parts.index("site-packages") + 1] if "site-packages" in parts else "the standard library"
        by_name[name] = by_name.get(name, 0.0) + own
    return dict(sorted(by_name.items(), key=lambda item: -item[1]))


def _builtin(function: str) -> str:
    if "_thread.lock" in function:
        return "waiting for threads, which read and compress"
    if any(word in function for word in ("fastdigest", "built-in method from_bytes")):
        return _LIBRARY
    return function.strip("<>")


class ReadRunner:
    """Reads a file's counts twice with h5py: the reference for preparation, which also reads them twice.

    Args:
        h5ad: counts.
    """

    def __init__(self, h5ad: Path) -> None:
        self._h5ad = h5ad

    def use(self) -> None:
        """Read once, untimed."""
        read_counts(self._h5ad)

    def steps(self, n: int) -> list[Row]:
        """Read the file twice, n times, and return the seconds of each time."""
        taken = []
        for _ in range(n):
            start = time.perf_counter()
            read_counts(self._h5ad)
            read_counts(self._h5ad)
            taken.append({"seconds": time.perf_counter() - start})
        return taken


class PrepareRunner:
    """Takes a file to finished shards: medians, then tokens.

    Args:
        h5ad: counts.
        folder: for output.
        workers: number of processes.
    """

    def __init__(self, h5ad: Path, folder: Path, workers: int) -> None:
        self._h5ad, self._workers, self._made_of = h5ad, workers, (h5ad, folder, workers)
        self._medians = folder / f"timed-{workers}-medians.zarr"
        self._store = folder / f"timed-{workers}-store.zarr"

    def use(self) -> None:
        """Prepare once, untimed."""
        self.steps(1)

    def steps(self, n: int) -> list[Row]:
        """Prepare n times. Each pass has a process of its own, like the commands; see `medians` and `shards`."""
        taken = []
        for _ in range(n):
            self._clear()
            passes: list[Row] = []
            for name in ("medians", "shards"):
                with BenchProcess(name, None, PrepareRunner, *self._made_of, has_children=True) as worker:
                    passes.append(worker.call(name))
            row: Row = {"seconds": sum(one["seconds"] for one in passes)}
            row |= {"medians_s": passes[0]["seconds"], "shards_s": passes[1]["seconds"]}
            for peak in ("own_peak", "child_peak"):
                row[peak] = max((one[peak] for one in passes if one[peak] is not None), default=None)
            taken.append(row)
        self._clear()
        return taken

    def medians(self) -> Row:
        """Return seconds (with the start of the workers) and peak memory of this process and its largest worker."""
        return _timed(lambda: make_medians([self._h5ad], self._medians, workers=self._workers, say=nothing))

    def shards(self) -> Row:
        """Return the same for the pass that ranks genes and writes shards."""
        paths, workers = (self._medians, self._store), self._workers
        return _timed(lambda: make_store([self._h5ad], *paths, top_k=TOP_K, workers=workers, say=nothing))

    def _clear(self) -> None:
        for path in (self._medians, self._store):
            shutil.rmtree(path, ignore_errors=True)


def _timed(make: Callable[[], object]) -> Row:
    with Footprint() as footprint:
        start = time.perf_counter()
        make()
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "own_peak": footprint.own_peak, "child_peak": footprint.child_peak}


class ScaleRunner:
    """One of the steps from simulated cells to batches, in a process of its own.

    Args:
        folder: for the files of all steps.
        n_cells: number of cells.
        workers: processes, in steps that can use several.
    """

    def __init__(self, folder: Path, n_cells: int, workers: int) -> None:
        self._folder, self._n_cells, self._workers = folder, n_cells, workers
        self._h5ad, self._medians, self._store = (
            folder / name for name in ("cells.h5ad", "medians.zarr", "store.zarr")
        )

    def run(self, step: str) -> Row:
        """Run a step of `STEPS`.

        Returns:
            Seconds, processor seconds of this process, cells, peak memory, and bytes of the files that it wrote. A step
            that times only a part of its work reports its own seconds and cells. Cells are None where a rate would be
            meaningless.
        """
        with Footprint() as footprint:
            start, own = time.perf_counter(), time.process_time()
            wrote, other = getattr(self, f"_{step}")()
            seconds, own = time.perf_counter() - start, time.process_time() - own
        on_disk = sum(disk_usage(path) for path in wrote)
        peaks = {"own_peak": footprint.own_peak, "child_peak": footprint.child_peak}
        row: Row = {"seconds": seconds, "own_cpu_s": own, "handled": self._n_cells, "bytes": on_disk, **peaks, **other}
        return row

    def _simulate(self) -> tuple[list[Path], Row]:
        gmt = write_atlas(self._h5ad, atlas_options(self._n_cells), "gzip", workers=self._workers)
        return [self._h5ad, gmt], {}

    def _read(self) -> tuple[list[Path], Row]:
        read_counts(self._h5ad)
        read_counts(self._h5ad)
        return [], {}

    def _make_medians(self) -> tuple[list[Path], Row]:
        make_medians([self._h5ad], self._medians, workers=self._workers, say=nothing)
        return [self._medians], {}

    def _make_shards(self) -> tuple[list[Path], Row]:
        splits = SplitOptions(by="none")
        manifest = make_store(
            [self._h5ad], self._medians, self._store, top_k=TOP_K, splits=splits, workers=self._workers, say=nothing
        )
        return [self._store], {"tokens": manifest.n_tokens}

    def _verify(self) -> tuple[list[Path], Row]:
        if problems := find_damage(self._store):
            raise ValueError(problems[0])
        return [], {}

    def _start_loader(self) -> tuple[list[Path], Row]:
        next(own_batches(LoaderCells(self._store, None, self._folder)))
        return [], {"handled": None}

    def _load(self) -> tuple[list[Path], Row]:
        """Time as many whole cycles as hold the cells of the store, at least three."""
        manifest = Manifest.load(self._store)
        batches = own_batches(LoaderCells(self._store, None, self._folder))
        settle(batches, manifest)
        cycle = cycle_cells(manifest)
        n_cycles = max(_FEWEST_CYCLES, math.ceil(self._n_cells / cycle))
        start = time.perf_counter()
        taken = take_cells(batches, n_cycles * cycle)
        return [], {"seconds": time.perf_counter() - start, "handled": taken.cells, "cycles": n_cycles}


FIRST_BATCH, LOADING = "the loader's first batch", "loading, whole cycles"
#: Steps of `ScaleRunner`, in order, with their names in tables.
STEPS = {
    "simulate": "simulate",
    "read": READING,
    "make_medians": "medians",
    "make_shards": "shards",
    "verify": "verify",
    "start_loader": FIRST_BATCH,
    "load": LOADING,
}


def disk_usage(path: Path) -> int:
    """Return the bytes of a file or of all files in a folder."""
    files = [path] if path.is_file() else [entry for entry in path.rglob("*") if entry.is_file()]
    return sum(file.stat().st_size for file in files)
