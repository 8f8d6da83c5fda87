"""From counts and medians to a token store.

Ranges of cells are read, filtered and ranked in parallel; one writer takes them in the order of the files.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from data_shards.counts import CountFile, CountOptions, CountSource, open_counts
from data_shards.errors import DataError
from data_shards.genes import GENE_TABLE_FILE, map_gene
from data_shards.kernels import cell_totals
from data_shards.manifest import SCHEMA, TEST, TRAIN, VALIDATION, DatasetEntry, Manifest
from data_shards.medians import check_names
from data_shards.medians_file import Medians
from data_shards.obs_file import ObsWriter
from data_shards.output import hash_path, refuse_existing, whole_directory
from data_shards.parallel import Workers
from data_shards.splits import Annotated, SplitOptions, donor_names, draw_splits, too_few_donors
from data_shards.store import DatasetWriter, choose_block_cells, content_hash, hash_files
from data_shards.tokenizer import FILES, GeneColumns, Tokenizer
from data_shards.vocabulary import Vocabulary

_CELLS = 16_384
_CHUNK = 4096

Say = Callable[[str], None]


@dataclass(frozen=True)
class CellFilter:
    """Cells with fewer detected genes or counts, over all genes as delivered, are left out."""

    min_genes: int = 0
    min_counts: float = 0.0


def make_store(
    paths: Sequence[Path],
    medians_path: Path,
    out: Path,
    options: CountOptions | None = None,
    *,
    top_k: int = 2048,
    dither: bool = False,
    genes_file: Path | None = None,
    cells: CellFilter | None = None,
    splits: SplitOptions | None = None,
    min_mapped: float = 0.5,
    workers: int = 1,
    say: Say = print,
) -> Manifest:
    """Tokenize the cells of files into a new store.

    Args:
        paths: AnnData files; their stems name the data sets, in this order.
        medians_path: what `make_medians` wrote.
        out: a new `.zarr` directory.
        options: how counts are read, for all files.
        top_k: most tokens of a cell.
        dither: rank dithered counts.
        genes_file: genes of the vocabulary, one a line; none takes all with a median.
        cells: which cells are left out.
        splits: which cells are held out.
        min_mapped: share of a file's genes that must have Ensembl ids, if ids are Ensembl ids.
        workers: processes that rank; the result does not depend on it.
        say: takes lines of the report.

    Raises:
        DataError: `out` exists, files that cannot be used, bad counts, or nothing left to write.
    """
    options, cells, splits = options or CountOptions(), cells or CellFilter(), splits or SplitOptions()
    refuse_existing(out)
    check_names([path.stem for path in paths])
    medians = Medians.load(medians_path)
    tokenizer = make_tokenizer(medians, genes_file, top_k, dither, say)
    # What cannot be used is found before hours go into the files ahead of it.
    bound = [_bind(path, options, tokenizer, splits, min_mapped, say) for path in paths]
    known = frozenset().union(*(one.donors for one in bound))
    if splits.by == "donor" and splits.validation + splits.test > 0 and len(known) < 2:
        raise too_few_donors(len(known))
    with Workers(workers) as pool, whole_directory(out) as folder:
        tokenizer.save(folder)
        written = []
        for path, genes in zip(paths, bound, strict=True):
            with open_counts(path, options) as counts:
                written.append(_write_dataset(folder, counts, tokenizer, genes, cells, pool, say))
        manifest = Manifest(
            schema=SCHEMA,
            vocabulary_hash=tokenizer.vocabulary.hash,
            medians_hash=tokenizer.medians_hash,
            tokenizer_hash=tokenizer.hash,
            medians_file_hash=medians.hash,
            kind=tokenizer.vocabulary.kind,
            n_genes=len(tokenizer.vocabulary.genes),
            top_k=top_k,
            dither=dither,
            block_cells=choose_block_cells(
                [one.writer.n_cells for one in written], sum(one.writer.n_tokens for one in written)
            ),
            options={
                "splits": asdict(splits),
                "min_mapped": min_mapped,
                "genes_file": genes_file.name if genes_file is not None else None,
                "genes_file_hash": hash_path(genes_file) if genes_file is not None else None,
            },
            datasets=_finish(folder, written, splits, say),
            files=hash_files(folder, [*FILES, GENE_TABLE_FILE]),
        )
        manifest.save(folder)
    say(
        f"{out}: {manifest.n_cells:,} cells, {manifest.n_tokens:,} tokens of {manifest.n_genes:,} genes, "
        f"blocks of {manifest.block_cells} cells"
    )
    return manifest


def make_tokenizer(medians: Medians, genes_file: Path | None, top_k: int, dither: bool, say: Say) -> Tokenizer:
    """The tokenizer of all genes with a median, or of those that a file lists.

    Raises:
        DataError: the file cannot be read, or no gene is left.
    """
    chosen = {gene: i for i, gene in enumerate(medians.genes) if medians.counts[i] > 0}
    if not chosen:
        raise DataError("no gene has a median: the cells that the medians were made of have no counts")
    if genes_file is not None:
        try:
            names = [line.strip() for line in genes_file.read_text().splitlines() if line.strip()]
        except (OSError, ValueError) as error:
            raise DataError(f"{genes_file}: cannot be read ({error}): give a text file with one gene a line") from error
        wanted = {map_gene(name, medians.kind, medians.gene_table)[0] for name in names}
        kept = {gene: i for gene, i in chosen.items() if gene in wanted}
        dropped = len(names) - len(kept)
        say(
            f"{genes_file.name}: {len(kept):,} of {len(names):,} genes have a median"
            + (f"; {dropped:,} dropped" if dropped else "")
        )
        if not kept:
            raise DataError(
                f"{genes_file}: none of its {len(names):,} genes ({', '.join(names[:3])} …) has a median: "
                f"the medians are of {medians.kind} ids such as {', '.join(medians.genes[:3])}"
            )
        chosen = kept
    vocabulary = Vocabulary(medians.kind, tuple(chosen))
    return Tokenizer(vocabulary, medians.medians[list(chosen.values())], top_k, dither, medians.gene_table)


@dataclass(frozen=True)
class _Range:
    """Cells [start, stop) of a file."""

    source: CountSource
    start: int
    stop: int


@dataclass(frozen=True)
class _Ranked:
    """Tokens of a range of cells: those kept, their rows in the file, and counts for the report."""

    tokens: npt.NDArray[np.uint16]
    indptr: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    filtered: int
    empty: int
    detected: int
    in_vocabulary: int


def _rank(tokenizer: Tokenizer, columns: GeneColumns, cells: CellFilter, task: _Range) -> _Ranked:
    """Read, filter and tokenize a range of cells."""
    tokens, lengths, rows = [], [], []
    filtered = empty = detected = in_vocabulary = 0
    known = columns.numbers >= 0
    with task.source.open() as counts:
        for first, chunk in counts.chunks(_CHUNK, task.start, task.stop):
            n_genes = np.diff(chunk.indptr)
            enough = (n_genes >= cells.min_genes) & (cell_totals(chunk.indptr, chunk.data) >= cells.min_counts)
            if not enough.all():
                chunk = chunk[enough]
            found, indptr = tokenizer.encode(chunk, columns)
            length = np.diff(indptr)
            has_tokens = length > 0
            tokens.append(found)
            lengths.append(length[has_tokens])
            rows.append(np.flatnonzero(enough)[has_tokens] + first)
            filtered += int((~enough).sum())
            empty += int((~has_tokens).sum())
            detected += chunk.nnz
            in_vocabulary += int(known[chunk.indices].sum())
    indptr = np.concatenate([np.zeros(1, np.int64), np.concatenate(lengths).cumsum()])
    return _Ranked(np.concatenate(tokens), indptr, np.concatenate(rows), filtered, empty, detected, in_vocabulary)


@dataclass(frozen=True)
class _Bound:
    """The vocabulary's genes in a file, its column of donors and, where they are asked for, these."""

    columns: GeneColumns
    donor_key: str | None
    donors: frozenset[str]


def _bind(
    path: Path, options: CountOptions, tokenizer: Tokenizer, splits: SplitOptions, min_mapped: float, say: Say
) -> _Bound:
    with open_counts(path, options) as counts:
        columns = tokenizer.bind(counts, min_mapped)
        donor_key = splits.find_donor_key(counts.name, counts.annotations.columns)
        say(
            f"{counts.name}: {counts.n_cells:,} cells; {columns.report}; "
            f"{columns.found:,} of the {len(tokenizer.vocabulary.genes):,} genes of the vocabulary"
        )
        donors: set[str] = set()
        if splits.by == "donor" and donor_key is not None:
            for start in range(0, counts.n_cells, _CELLS):
                stop = min(start + _CELLS, counts.n_cells)
                donors.update(donor_names(counts.annotations.read_column(donor_key, start, stop)))
    return _Bound(columns, donor_key, frozenset(donors - {""}))


@dataclass(frozen=True)
class _Written:
    """A data set whose cells are written and whose splits are not drawn yet."""

    writer: DatasetWriter
    hashes: tuple[str, str]
    donor_key: str | None
    described: dict[str, Any]


def _write_dataset(
    folder: Path,
    counts: CountFile,
    tokenizer: Tokenizer,
    genes: _Bound,
    cells: CellFilter,
    workers: Workers,
    say: Say,
) -> _Written:
    writer = DatasetWriter(folder, counts.name)
    obs = ObsWriter(writer.folder / "obs.parquet")
    filtered = empty = detected = in_vocabulary = 0
    with tqdm(total=counts.n_cells, desc=f"tokens {counts.name}", unit=" cells", disable=None) as progress:
        for task, ranked in _ranked(counts, tokenizer, genes.columns, cells, workers):
            writer.append(ranked.tokens, ranked.indptr)
            annotations = counts.read_obs(task.start, task.stop)
            if len(ranked.rows):
                obs.append(annotations.iloc[ranked.rows - task.start], ranked.rows)
            filtered += ranked.filtered
            empty += ranked.empty
            detected += ranked.detected
            in_vocabulary += ranked.in_vocabulary
            progress.update(task.stop - task.start)
    obs.close()
    if writer.n_cells == 0:
        raise DataError(
            f"{counts.path}: no cell is left of {counts.n_cells:,} ({filtered:,} filtered, {empty:,} without a gene of "
            "the vocabulary): lower --min-genes and --min-counts, or leave the file out"
        )
    say(
        f"{counts.name}: {writer.n_cells:,} cells kept, {filtered:,} filtered, {empty:,} without a token left out; "
        f"{writer.n_tokens:,} tokens; of {detected:,} non-zero counts {in_vocabulary / detected:.1%} are in the "
        f"vocabulary and {writer.n_tokens / detected:.1%} became tokens"
    )
    report = asdict(genes.columns.report)
    described: dict[str, Any] = {
        "source_file": counts.path.name,
        "source_hash": hash_path(counts.path),
        "source_cells": counts.n_cells,
        "filtered_cells": filtered,
        "empty_cells": empty,
        "counts": asdict(counts.options),
        "min_genes": cells.min_genes,
        "min_counts": cells.min_counts,
        "obs_hash": hash_path(writer.folder / "obs.parquet"),
        "genes": {**report, "unknown_examples": list(report["unknown_examples"]), "in_vocabulary": genes.columns.found},
    }
    return _Written(writer, writer.close(), genes.donor_key, described)


def _ranked(
    counts: CountFile, tokenizer: Tokenizer, columns: GeneColumns, cells: CellFilter, workers: Workers
) -> Iterator[tuple[_Range, _Ranked]]:
    source = counts.source
    tasks = [_Range(source, start, min(start + _CELLS, counts.n_cells)) for start in range(0, counts.n_cells, _CELLS)]
    # Workers need no gene table: the columns are bound already.
    rank = partial(_rank, replace(tokenizer, gene_table=None), columns, cells)
    return zip(tasks, workers.map_in_order(rank, tasks), strict=True)


def _finish(folder: Path, written: Sequence[_Written], splits: SplitOptions, say: Say) -> tuple[DatasetEntry, ...]:
    """Draw and write the splits; what the manifest says of each data set."""
    names = [one.writer.folder.name for one in written]
    writers = {one.writer.folder.name: one.writer.split_writer() for one in written}
    annotated = [
        Annotated(name, folder / name / "obs.parquet", one.donor_key) for name, one in zip(names, written, strict=True)
    ]
    entries = []
    drawn = draw_splits(annotated, splits, lambda name, split: writers[name].append(split))
    for name, one, split in zip(names, written, drawn, strict=True):
        say(f"{name}: {split}")
        entries.append(
            DatasetEntry(
                name=name,
                n_cells=one.writer.n_cells,
                n_tokens=one.writer.n_tokens,
                n_train=split.cells[TRAIN],
                n_validation=split.cells[VALIDATION],
                n_test=split.cells[TEST],
                content_hash=content_hash(*one.hashes, writers[name].close()),
                split_by=split.by,
                donor_key=split.donor_key,
                **one.described,
            )
        )
    return tuple(entries)
