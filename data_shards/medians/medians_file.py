"""`medians.zarr`: the medians of genes over data sets, and the digests that they come from.

`datasets/<name>` holds the digests of each data set (`means`, `weights`, `indptr`, `counts`, `genes.json`). The root
holds `medians`, `counts` and `genes.json` over all data sets, and the gene table that later files are mapped with. The
attributes hold a SHA-256 of the medians, and one of the digests of each data set.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from data_shards.counts.gene_ids import GENE_TABLE_FILE, GeneTable
from data_shards.errors import DataError
from data_shards.files.atomic import set_aside
from data_shards.files.kinds import MEDIANS, is_other
from data_shards.files.work_folder import new_part
from data_shards.medians.tdigest import Digests, weights_indptr
from data_shards.medians.tdigest_parts import DigestPart, gene_blocks
from data_shards.workers.progress import Progress
from data_shards.workers.workers import Workers

SCHEMA = 3
DATASETS = "datasets"
DIGEST_ARRAYS = ("means", "weights", "indptr", "counts")
GENES_FILE = "genes.json"
_CHUNK = 1 << 18
#: Chunks written together, by threads of zarr.
_AT_ONCE = 16
#: Most centroids, over all data sets, in one merge.
_CENTROIDS = 1 << 22


@dataclass(frozen=True, eq=False)
class Medians:
    """The medians of a `medians.zarr`.

    Attributes:
        kind: "ensembl" or "as-is".
        genes: gene ids, sorted, each once.
        medians: float64 (n_genes,), median of non-zero `count / total * 10,000`; NaN for genes without a value.
        counts: int64 (n_genes,), number of non-zero values.
        method: "t-digest" or "exact".
        datasets: names of the data sets.
        gene_table: maps the symbols of later files to Ensembl ids; None if there is none.
    """

    kind: str
    genes: tuple[str, ...]
    medians: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]
    method: str
    datasets: tuple[str, ...]
    gene_table: GeneTable | None

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of genes, medians and counts."""
        digest = hashlib.sha256("\n".join([self.kind, *self.genes]).encode())
        digest.update(self.medians.astype("<f8").tobytes())
        digest.update(self.counts.astype("<i8").tobytes())
        return digest.hexdigest()

    @classmethod
    def load(cls, path: Path) -> "Medians":
        """Read a `medians.zarr`.

        Raises:
            DataError: the file is missing, of another layout version, damaged, or not a medians file.
        """
        if not path.exists():
            if (old := set_aside(path)) is not None:
                raise DataError(
                    f"{path}: an `--add` was killed while it replaced this file; the previous one is {old}: rename it "
                    f"to {path.name} and add again"
                )
            raise DataError(f"{path}: no such medians file: make it with `gm-train data medians`")
        if (other := is_other(path, MEDIANS)) is not None:
            raise DataError(f"{path}: {other}: give what `gm-train data medians` has made")
        try:
            root = zarr.open_group(path, mode="r")
            attrs: dict[str, Any] = dict(root.attrs)
            if attrs["schema"] != SCHEMA:
                fix = "update gm-train" if attrs["schema"] > SCHEMA else "make it again with `gm-train data medians`"
                raise DataError(f"{path}: layout version {attrs['schema']}, this program reads {SCHEMA}: {fix}")
            names = json.loads((path / GENES_FILE).read_text())
            medians = cls(
                kind=names["kind"],
                genes=tuple(names["genes"]),
                medians=_read(root, "medians"),
                counts=_read(root, "counts"),
                method=attrs["method"],
                datasets=tuple(dataset["name"] for dataset in attrs["datasets"]),
                gene_table=GeneTable.load(path / GENE_TABLE_FILE) if attrs["gene_table"] else None,
            )
            if attrs["hash"] != medians.hash:
                raise DataError(f"{path}: damaged: make it again with `gm-train data medians`")
            return medians
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise DataError(
                f"{path}: not a medians file, or damaged ({error}): make it again with `gm-train data medians`"
            ) from error


def source_hashes(path: Path) -> dict[str, str]:
    """Source files of a `medians.zarr`: name of the data set to SHA-256 (hex) of its file."""
    described: Any = zarr.open_group(path, mode="r").attrs["datasets"]
    return {entry["name"]: entry["source_hash"] for entry in described}


def store_array(group: zarr.Group, name: str, values: npt.NDArray[Any]) -> None:
    """Write a one-dimensional array with checksums.

    Args:
        group: the zarr group to write to.
        name: name of the new array.
        values: (n,), any dtype.
    """
    _create(group, name, len(values), values.dtype)[:] = values


@dataclass(frozen=True)
class StoreTask:
    """A part with the digests of a data set, the ids of its genes, and the group `out` to write them to."""

    part: Path
    genes: tuple[str, ...]
    out: Path


def store_digests(task: StoreTask) -> str:
    """Write the genes and digests of a data set, a chunk at a time.

    Returns:
        Their hash, the same as `hash_digests` computes.

    Raises:
        DataError: they cannot be written.
    """
    with new_part(task.out) as folder:
        return _store(folder, task.genes, DigestPart(task.part))


def _store(folder: Path, genes: Sequence[str], part: DigestPart) -> str:
    group = zarr.create_group(folder)
    names = (json.dumps(list(genes)) + "\n").encode()
    (folder / GENES_FILE).write_bytes(names)
    digest = hashlib.sha256(names)
    for name, size, dtype in (("means", int(part.indptr[-1]), np.float32), ("weights", part.n_weights, np.uint32)):
        array = _create(group, name, size, dtype)
        first = 0
        for chunk in part.chunks(name, _AT_ONCE * _CHUNK):
            array[first : first + len(chunk)] = chunk
            digest.update(chunk.data)
            first += len(chunk)
    for name in ("indptr", "counts"):
        values = getattr(part, name)
        store_array(group, name, values)
        digest.update(values.data)
    return digest.hexdigest()


def _create(group: zarr.Group, name: str, size: int, dtype: npt.DTypeLike) -> Any:
    return group.create_array(
        name,
        shape=(size,),
        dtype=dtype,
        chunks=(min(max(1, size), _CHUNK),),
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
    )


def hash_digests(folder: Path) -> str:
    """SHA-256 (hex) of the genes and digests of one data set, as read from disk; a missing chunk counts as zeros.

    Raises:
        DataError: they cannot be read.
    """
    try:
        digest = hashlib.sha256((folder / GENES_FILE).read_bytes())
        group: Any = zarr.open_group(folder, mode="r")
        for name in DIGEST_ARRAYS:
            array = group[name]
            for first in range(0, array.shape[0], _CHUNK):
                digest.update(np.asarray(array[first : first + _CHUNK]).tobytes())
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(f"{folder}: digests cannot be read ({error}): make the medians again from all files") from error
    return digest.hexdigest()


@dataclass(frozen=True)
class _Block:
    """A range of the genes of a medians file.

    Attributes:
        folder: the medians file.
        n_genes: genes of the range.
        spans: for each data set: its name, the first and last (exclusive) of its own genes that lie in the range, and
            int32 their numbers within the range.
    """

    folder: Path
    n_genes: int
    spans: tuple[tuple[str, int, int, npt.NDArray[np.int32]], ...]


def merged_medians(
    folder: Path, numbers: dict[str, npt.NDArray[np.int32]], n_genes: int, workers: Workers
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Compute medians and counts from the digests of all data sets, a block of genes at a time.

    Args:
        folder: the medians file.
        numbers: for each data set, int32 (its genes,), the number of each of its genes; rising, since genes are sorted.
        n_genes: number of genes over all data sets.
        workers: run the blocks.

    Returns:
        medians float64 (n_genes,), NaN for genes without a value, and counts int64 (n_genes,).
    """
    lengths = np.zeros(n_genes, np.int64)
    for name, own in numbers.items():
        lengths[own] += np.diff(_read(_open(folder, name), "indptr"))
    blocks = gene_blocks(lengths, _CENTROIDS)
    tasks = [
        _Block(
            folder,
            last - first,
            tuple(
                (name, low, high, own[low:high] - np.int32(first))
                for name, own in numbers.items()
                for low, high in [map(int, np.searchsorted(own, [first, last]))]
            ),
        )
        for first, last in blocks
    ]
    medians, counts = np.full(n_genes, np.nan), np.zeros(n_genes, np.int64)
    results = workers.map_in_order(_block_medians, tasks)
    for (first, last), result in zip(blocks, Progress(results, "medians of all data sets", len(blocks)), strict=True):
        medians[first:last], counts[first:last] = result
    return medians, counts


def _block_medians(block: _Block) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    parts = []
    for name, low, high, _ in block.spans:
        group = _open(block.folder, name)
        indptr, counts = _read(group, "indptr"), _read(group, "counts")
        weights_from = weights_indptr(indptr, counts)
        means = np.asarray(group["means"][indptr[low] : indptr[high]])
        weights = np.asarray(group["weights"][weights_from[low] : weights_from[high]])
        parts.append(Digests(means, weights, indptr[low : high + 1] - indptr[low], counts[low:high]))
    merged = Digests.merge(parts, [span[3] for span in block.spans], block.n_genes)
    return merged.medians(), merged.counts


def _open(folder: Path, dataset: str) -> Any:
    return zarr.open_group(folder / DATASETS / dataset, mode="r")


def _read(group: Any, name: str) -> Any:
    return np.asarray(group[name][:])
