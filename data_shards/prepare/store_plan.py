"""Tokenizer and options that a store's cells are ranked with: chosen for a new store, fixed for an existing one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_shards.errors import DataError
from data_shards.files.atomic import hash_path
from data_shards.files.kinds import kind_of
from data_shards.files.names import check_names
from data_shards.files.work_folder import refuse_again
from data_shards.medians.medians_file import Medians, source_hashes
from data_shards.store.manifest import SCHEMA, DatasetEntry, Manifest
from data_shards.store.writer import choose_block_cells
from data_shards.tokens.choose_genes import make_tokenizer
from data_shards.tokens.tokenizer import Tokenizer

Say = Callable[[str], None]
TOP_K = 2048


@dataclass(frozen=True)
class StoreOptions:
    """Options that are the same for all data sets of a store.

    Attributes:
        top_k: maximum number of tokens of a cell; None takes 2,048, or the store's own if data sets are added.
        dither: rank dithered counts.
        genes_file: genes of the vocabulary, one per line; None takes all genes with a median.
        deny_file: genes that are left out of the vocabulary, one per line.
        keep_values: also store `count / total * 10,000 / median` of each token; with `dither`, of dithered counts.
    """

    top_k: int | None = None
    dither: bool = False
    genes_file: Path | None = None
    deny_file: Path | None = None
    keep_values: bool = False

    def record(self) -> dict[str, Any]:
        """Names and hashes of the gene lists, as the manifest stores them.

        Raises:
            DataError: a list does not exist.
        """
        files = {"genes_file": self.genes_file, "deny_file": self.deny_file}
        record: dict[str, Any] = {}
        for key, path in files.items():
            if path is not None and not path.is_file():
                what = f"is {kind}, not a file" if (kind := kind_of(path)) else "no such file"
                raise DataError(f"{path}: {what}: give a text file with one gene per line")
            record |= {key: path.name if path else None, f"{key}_hash": hash_path(path) if path else None}
        return record


@dataclass(frozen=True, eq=False)
class StorePlan:
    """What cells are ranked with.

    Attributes:
        tokenizer: the store's tokenizer.
        medians_file_hash: hash of the medians file that the tokenizer was made from; empty if it came without one.
        values: whether values are kept.
        options: the gene lists, as the manifest stores them.
        of_medians: SHA-256 of the source file of each data set in the medians; empty if no medians file was given.
        store: manifest of the store that data sets are added to; None for a new store.
    """

    tokenizer: Tokenizer
    medians_file_hash: str
    values: bool
    options: dict[str, Any]
    of_medians: Mapping[str, str] = field(default_factory=dict)
    store: Manifest | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The data sets that the store has already."""
        return () if self.store is None else tuple(entry.name for entry in self.store.datasets)

    def check_names(self, out: Path, names: Sequence[str], fix: str = "rename the file") -> None:
        """Raise DataError if a name is not allowed, is given twice, or is already in the store.

        Args:
            out: the store.
            names: names of the new data sets.
            fix: what the error message tells the user to do.
        """
        check_names(list(names), fix)
        for name in names:
            if name in self.names:
                refuse_again(out, name, fix)

    def manifest(self, entries: Sequence[DatasetEntry], files: dict[str, str]) -> Manifest:
        """Manifest of the store with its present data sets and `entries`; `files`: hash of each file in its root."""
        datasets = (*(self.store.datasets if self.store is not None else ()), *entries)
        n_tokens = sum(entry.n_tokens for entry in datasets)
        tokenizer = self.tokenizer
        return Manifest(
            schema=SCHEMA,
            vocabulary_hash=tokenizer.vocabulary.hash,
            medians_hash=tokenizer.medians_hash,
            tokenizer_hash=tokenizer.hash,
            medians_file_hash=self.medians_file_hash,
            kind=tokenizer.vocabulary.kind,
            n_genes=len(tokenizer.vocabulary.genes),
            top_k=tokenizer.top_k,
            dither=tokenizer.dither,
            values=self.values,
            block_cells=choose_block_cells([entry.n_cells for entry in datasets], n_tokens),
            options=self.options,
            datasets=datasets,
            files=files,
        )


def plan_new(medians_path: Path | None, options: StoreOptions, say: Say) -> StorePlan:
    """Make the plan of a new store.

    Args:
        medians_path: what `make_medians` wrote; None raises.
        options: the store's options.
        say: called with each line of the report.

    Raises:
        DataError: the medians or a gene list cannot be used.
    """
    if medians_path is None:
        raise DataError("a new store needs --medians: make them with `gm-train data medians`")
    medians = Medians.load(medians_path)
    record = options.record()
    top_k = TOP_K if options.top_k is None else options.top_k
    tokenizer = make_tokenizer(medians, top_k, options.dither, options.genes_file, options.deny_file, say)
    return StorePlan(tokenizer, medians.hash, options.keep_values, record, source_hashes(medians_path))


def plan_like(tokenizer: Tokenizer, options: StoreOptions) -> StorePlan:
    """Make the plan of a new store whose cells are ranked as those of a model.

    Args:
        tokenizer: the model's.
        options: the store's options; those that decide ranks must be the tokenizer's own.

    Raises:
        DataError: options differ from the tokenizer, or a gene list is given.
    """
    asked = [("--top-k", options.top_k, tokenizer.top_k), ("--dither", options.dither or None, tokenizer.dither)]
    differing = [f"{flag} {wanted}" for flag, wanted, have in asked if wanted is not None and wanted != have]
    differing += ["--genes"] * (options.genes_file is not None) + ["--deny-genes"] * (options.deny_file is not None)
    if differing:
        raise DataError(
            f"{', '.join(differing)} with --like: the model decides this (--top-k {tokenizer.top_k}, "
            f"{'' if tokenizer.dither else 'no '}--dither, its own genes): leave it out"
        )
    return StorePlan(tokenizer, "", options.keep_values, options.record())


def plan_more(store: Path, medians_path: Path | None, options: StoreOptions) -> StorePlan:
    """Make the plan for data sets that are added to a store.

    Args:
        store: the store.
        medians_path: the medians that the store was made with, or None.
        options: options of the new data sets; those that are set must be the store's own.

    Raises:
        DataError: the store cannot be read, or was made with other options or medians.
    """
    manifest = Manifest.load(store)
    tokenizer = Tokenizer.load(store)
    if tokenizer.hash != manifest.tokenizer_hash:
        raise DataError(f"{store}: the tokenizer is not the one that made the store: restore its files")
    asked: list[tuple[str, Any, Any]] = []
    if options.top_k is not None:
        asked.append(("--top-k", options.top_k, manifest.top_k))
    if options.dither:
        asked.append(("--dither", True, manifest.dither))
    if options.keep_values:
        asked.append(("--keep-values", True, manifest.values))
    record = options.record()
    for flag, key in (("--genes", "genes_file_hash"), ("--deny-genes", "deny_file_hash")):
        if record[key] is not None:
            asked.append((flag, record[key], manifest.options.get(key)))
    for flag, wanted, have in asked:
        if wanted != have:
            raise DataError(
                f"{store}: was made with another {flag} (its own: {have or 'none'}): leave it out, or make a new store"
            )
    of_medians: Mapping[str, str] = {}
    if medians_path is not None:
        if Medians.load(medians_path).hash != manifest.medians_file_hash:
            raise DataError(
                f"{medians_path}: not the medians that {store} was made with: leave out --medians (added data "
                "sets are ranked with the store's own), or make a new store"
            )
        of_medians = source_hashes(medians_path)
    return StorePlan(
        tokenizer, manifest.medians_file_hash, manifest.values, dict(manifest.options), of_medians, manifest
    )
