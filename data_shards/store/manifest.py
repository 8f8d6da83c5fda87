"""The manifest of a token store: its description, in the attributes of its root."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from data_shards.counts.count_options import CountOptions
from data_shards.errors import DataError
from data_shards.files.atomic import replace_file
from data_shards.files.kinds import MEDIANS, STORE, TO_A_STORE, is_other, kind_of
from data_shards.files.location import Location, location_of
from data_shards.store.writer import choose_block_cells

SCHEMA = 3
#: End of the path of the store that `make demo` makes.
DEMO_STORE = "demo-data/store.zarr"
#: Values of `split`.
TRAIN, VALIDATION, TEST = 0, 1, 2


@dataclass(frozen=True)
class DatasetEntry:
    """One data set of a store.

    Attributes:
        name: name of the data set and of its group: the stem of the file.
        n_cells, n_tokens: number of cells kept, and of their tokens.
        n_train, n_validation, n_test: number of cells in each split.
        content_hash: SHA-256 of tokens, indptr and split, and of values if the store has them.
        split_by: "donor", "dataset", "cell" or "none".
        donor_key: column of obs with the donors, if the split is by donor.
        source_file: name of the file, without its folder.
        source_hash: SHA-256 of the file.
        source_cells: number of cells in the file.
        filtered_cells: number of cells that the filters left out.
        empty_cells: number of other cells left out because they have no token.
        counts: options for reading the counts (`CountOptions`).
        min_mapped: share of the file's genes that had to have Ensembl ids.
        filters: options for leaving out cells (`CellFilter`).
        obs_columns: columns of obs that were asked for; None means all.
        splits: options for held-out cells (`SplitOptions`).
        obs_hash: SHA-256 of `obs.parquet`.
        genes: how its gene ids were found (`GeneReport`), and `in_vocabulary`: how many genes of the vocabulary it has.
        imported: for imported cells, which were ranked elsewhere: the files of the cells and of their tokens, and what
            was dropped; these have no counts to read, filter or map. None for cells that were ranked here.
        cell_hash: SHA-256 of `cell_hash`, the hashes of the cells' counts; None if the data set has none, because it
            was imported or made by an earlier version. It is not part of `content_hash`: the cells are the same.
    """

    name: str
    n_cells: int
    n_tokens: int
    n_train: int
    n_validation: int
    n_test: int
    content_hash: str
    split_by: str
    donor_key: str | None
    source_file: str
    source_hash: str
    source_cells: int
    filtered_cells: int
    empty_cells: int
    counts: dict[str, Any]
    min_mapped: float
    filters: dict[str, Any]
    obs_columns: list[str] | None
    splits: dict[str, Any]
    obs_hash: str
    genes: dict[str, Any]
    imported: dict[str, Any] | None = None
    cell_hash: str | None = None

    @property
    def count_options(self) -> CountOptions:
        """How to read the same counts again."""
        return CountOptions(**self.counts)


@dataclass(frozen=True)
class Manifest:
    """The description of a store.

    Attributes:
        schema: version of the layout.
        vocabulary_hash, medians_hash, tokenizer_hash: hashes of the tokenizer that the store was made with.
        medians_file_hash: hash of the genes, medians and counts of the medians file that the store was made with
            (`Medians.hash`); its digests are not part of it.
        kind: kind of the gene ids.
        n_genes: number of genes in the vocabulary.
        top_k: most tokens of a cell.
        dither: whether counts were dithered before ranking.
        values: whether each data set has `values` beside `tokens`.
        block_cells: number of cells in a block, the unit of shuffling.
        options: all other options that the store was made with. With gene lists: the file of the vocabulary's genes,
            the file of genes left out of it, and their SHA-256.
        datasets: the data sets, in order.
        files: SHA-256 of each file in the root.
    """

    schema: int
    vocabulary_hash: str
    medians_hash: str
    tokenizer_hash: str
    medians_file_hash: str
    kind: str
    n_genes: int
    top_k: int
    dither: bool
    values: bool
    block_cells: int
    options: dict[str, Any]
    datasets: tuple[DatasetEntry, ...]
    files: dict[str, str] = field(default_factory=dict)

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of everything that decides the content: the same for the same cells on every machine."""
        content = [
            self.schema,
            self.tokenizer_hash,
            self.block_cells,
            [[entry.name, entry.n_cells, entry.n_tokens, entry.content_hash] for entry in self.datasets],
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def n_cells(self) -> int:
        """Number of cells in all data sets."""
        return sum(entry.n_cells for entry in self.datasets)

    @property
    def n_tokens(self) -> int:
        """Number of tokens in all data sets."""
        return sum(entry.n_tokens for entry in self.datasets)

    @property
    def n_blocks(self) -> list[int]:
        """Number of blocks in each data set."""
        return [-(-entry.n_cells // self.block_cells) for entry in self.datasets]

    def before_adding(self, earlier_hash: str) -> "Manifest | None":
        """The description of this store before data sets were added to it.

        Data sets are added at the end and never change. So the first of them, with the number of cells in a block that
        they would have alone, have the hash of the store as it was.

        Args:
            earlier_hash: the hash that the store had then.

        Returns:
            The earlier manifest; None if no part of this store had that hash, or it is the store's own hash.
        """
        if earlier_hash == self.hash:
            return None
        for n_sets in range(1, len(self.datasets)):
            datasets = self.datasets[:n_sets]
            n_tokens = sum(entry.n_tokens for entry in datasets)
            block_cells = choose_block_cells([entry.n_cells for entry in datasets], n_tokens)
            earlier = replace(self, datasets=datasets, block_cells=block_cells)
            if earlier.hash == earlier_hash:
                return earlier
        return None

    @classmethod
    def load(cls, store: str | Location) -> "Manifest":
        """Read the manifest of a store, at a local path or a URL.

        Raises:
            DataError: there is no store, it has another layout version, its manifest is damaged, or its server cannot
                be reached.
        """
        location = location_of(store)
        if isinstance(location, Path) and not location.exists():
            how = (
                "`make demo` makes it" if str(location).endswith(DEMO_STORE) else "make it with `gm-train data shards`"
            )
            raise DataError(f"{store}: no such store: {how}")
        try:
            attrs: dict[str, Any] = dict(json.loads((location / "zarr.json").read_bytes())["attributes"])
            if "method" in attrs:
                raise DataError(f"{store}: is {MEDIANS}, not {STORE}: {TO_A_STORE[MEDIANS]}")
            if attrs["schema"] != SCHEMA:
                fix = "update gm-train" if attrs["schema"] > SCHEMA else "make it again with `gm-train data shards`"
                raise DataError(f"{store}: layout version {attrs['schema']}, this program reads {SCHEMA}: {fix}")
            check, expected = attrs.pop("check"), attrs.pop("hash")
            whole = check == _check({**attrs, "hash": expected})
            attrs["datasets"] = tuple(DatasetEntry(**entry) for entry in attrs["datasets"])
            manifest = cls(**attrs)
        except (OSError, ValueError, KeyError, TypeError) as error:
            if isinstance(location, Path) and (other := is_other(location, STORE)) is not None:
                way_out = TO_A_STORE.get(kind_of(location) or "", "give one that `gm-train data shards` has made")
                raise DataError(f"{store}: {other}: {way_out}") from error
            raise DataError(
                f"{store}: not a token store, or damaged ({error}): make it with `gm-train data shards`"
            ) from error
        if not whole or manifest.hash != expected:
            raise DataError(f"{store}: the manifest is damaged: make the store again with `gm-train data shards`")
        return manifest

    def save(self, store: Path) -> None:
        """Replace the manifest of a store atomically: a reader sees either the previous one or this one.

        Raises:
            OSError: it cannot be written; the previous one stays.
        """
        content = {**asdict(self), "hash": self.hash}
        attributes = {**content, "check": _check(content)}
        metadata = {"attributes": attributes, "zarr_format": 3, "node_type": "group"}
        replace_file(store / "zarr.json", json.dumps(metadata, indent=2) + "\n")


def _check(content: dict[str, Any]) -> str:
    """SHA-256 (hex) of a whole manifest. It detects any damage; `Manifest.hash` only identifies the content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
