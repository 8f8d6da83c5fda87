"""`medians.zarr`: the medians of genes over data sets, and the digests that they come from.

`datasets/<name>` holds the digests of each data set (`means`, `weights`, `indptr`, `counts`, `genes.json`); in the root
are `medians`, `counts` and `genes.json` over all of them, and the gene table that later files are mapped with. The
attributes hold a SHA-256 of the medians, and one of the digests of each data set.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from tqdm import tqdm
from zarr.codecs import Crc32cCodec, ZstdCodec

from data_shards.digests import Digests
from data_shards.errors import DataError
from data_shards.genes import GENE_TABLE_FILE, GeneTable
from data_shards.output import set_aside

SCHEMA = 2
DATASETS = "datasets"
DIGEST_ARRAYS = ("means", "weights", "indptr", "counts")
GENES_FILE = "genes.json"
_GENE_BLOCK = 2048
_CHUNK = 1 << 18


@dataclass(frozen=True, eq=False)
class Medians:
    """The medians of a `medians.zarr`.

    Attributes:
        kind: "ensembl" or "as-is".
        genes: gene ids, sorted, each once.
        medians: float64 (n_genes,), median of non-zero `count / total * 10,000`; NaN without a value.
        counts: int64 (n_genes,), non-zero values.
        method: "t-digest" or "exact".
        datasets: names.
        gene_table: maps the symbols of later files.
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
            DataError: it is missing, not a medians file, or damaged.
        """
        if not path.exists():
            if (old := set_aside(path)) is not None:
                raise DataError(
                    f"{path}: an `--add` was killed while it replaced this file; the one before is {old}: rename it to "
                    f"{path.name} and add again"
                )
            raise DataError(f"{path}: no such medians file: make it with `gm-train data medians`")
        try:
            root = zarr.open_group(path, mode="r")
            attrs: dict[str, Any] = dict(root.attrs)
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
            if attrs["schema"] != SCHEMA or attrs["hash"] != medians.hash:
                raise DataError(f"{path}: damaged or of another version: make it again with `gm-train data medians`")
            return medians
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise DataError(
                f"{path}: not a medians file, or damaged ({error}): make it again with `gm-train data medians`"
            ) from error


def source_hashes(path: Path) -> dict[str, str]:
    """SHA-256 (hex) of the file that each data set of a `medians.zarr` was, by its name."""
    described: Any = zarr.open_group(path, mode="r").attrs["datasets"]
    return {entry["name"]: entry["source_hash"] for entry in described}


def store_array(group: zarr.Group, name: str, values: npt.NDArray[Any]) -> None:
    """Write a one-dimensional array with checksums, over one that is there."""
    group.create_array(
        name,
        data=np.ascontiguousarray(values),
        chunks=(min(max(1, len(values)), _CHUNK),),
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        overwrite=True,
    )


def hash_digests(folder: Path) -> str:
    """SHA-256 (hex) of the genes and digests of one data set, as they are read: of a missing chunk, zeros.

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


def merged_medians(
    root: zarr.Group, numbers: dict[str, npt.NDArray[np.int32]], n_genes: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Medians and counts over the digests of all data sets, a block of genes at a time."""
    medians, counts = np.full(n_genes, np.nan), np.zeros(n_genes, np.int64)
    for first in tqdm(range(0, n_genes, _GENE_BLOCK), desc="medians of all data sets", disable=None):
        last = min(first + _GENE_BLOCK, n_genes)
        parts, places = [], []
        for name, own in numbers.items():
            # A data set's genes are sorted as all genes are: those of a block stand together.
            low, high = (int(place) for place in np.searchsorted(own, [first, last]))
            group: Any = root[f"{DATASETS}/{name}"]
            indptr = np.asarray(group["indptr"][low : high + 1])
            span = slice(int(indptr[0]), int(indptr[-1]))
            parts.append(
                Digests(group["means"][span], group["weights"][span], indptr - indptr[0], group["counts"][low:high])
            )
            places.append(own[low:high] - first)
        merged = Digests.merge(parts, places, last - first)
        medians[first:last], counts[first:last] = merged.medians(), merged.counts
    return medians, counts


def _read(group: Any, name: str) -> Any:
    return np.asarray(group[name][:])
