"""Import a corpus that is ranked already, in another vocabulary, as a data set of a store.

The ranks stay as they are; only the tokens get other numbers. So the corpus must have been ranked with the store's
medians. A new store takes the medians that come with the corpus.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data_shards.corpora.import_plan import plan_import
from data_shards.corpora.ranked_corpus import LENGTH, TOKENS, CorpusCells, RankedCorpus
from data_shards.corpora.token_map import NOT_KNOWN, Mapped, TokenMap
from data_shards.errors import DataError
from data_shards.files.atomic import flush, hash_path, refuse_existing
from data_shards.files.fingerprint import Fingerprint, read_fingerprints
from data_shards.files.work_folder import new_part
from data_shards.prepare.assemble import build_store
from data_shards.prepare.rank_datasets import RankedDataset, finish_once
from data_shards.prepare.rank_range import RangeSummary
from data_shards.prepare.splits import Earlier, SplitOptions, donor_codes, earlier_splits, refuse_too_few
from data_shards.store.manifest import Manifest
from data_shards.store.obs_parquet import CELL_ID, ObsWriter, obs_table
from data_shards.store.writer import DatasetWriter
from data_shards.tokens.tokenizer import Tokenizer
from data_shards.workers.progress import Progress
from data_shards.workers.workers import Workers

#: Why tokens are dropped: name of the count in `Mapped` -> text of the report.
_DROPPED = {
    "outside": "of genes without a median or outside of the vocabulary",
    "same_gene": "of other versions of a gene",
    "cut": "beyond the top-k",
}

Say = Callable[[str], None]


def import_corpus(
    paths: Sequence[Path],
    tokens_path: Path,
    medians_path: Path,
    out: Path,
    *,
    name: str | None = None,
    top_k: int | None = None,
    obs_columns: Sequence[str] | None = None,
    splits: SplitOptions | None = None,
    add: bool = False,
    say: Say = print,
) -> Manifest:
    """Make a store of cells that are ranked already, or add them to one.

    Args:
        paths: Parquet or Arrow files, or folders of them; all become one data set.
        tokens_path: gene id -> token, JSON or pickle.
        medians_path: gene id -> non-zero median that the cells were ranked with, JSON or pickle.
        out: a new `.zarr` directory, or with `add` the store to add to.
        name: the data set's name; None takes the stem of the only path.
        top_k: maximum number of tokens of a cell; None takes 2,048, or with `add` the store's own.
        obs_columns: columns that are kept as annotations; None keeps all that are not nested.
        splits: which cells are held out.
        add: add the data set to those of `out`.
        say: called with each line of the report.

    Raises:
        DataError: `out` exists; or files, dictionaries or medians cannot be used or do not belong together.
    """
    splits = splits or SplitOptions()
    if name is None and len(paths) > 1:
        raise DataError(f"{len(paths)} folders or files become one data set: name it with --name")
    name = paths[0].stem if name is None else name
    if add:
        out = out.resolve()  # it may be a link to another disk
    else:
        refuse_existing(out)
    plan, mapping, report = plan_import(out, tokens_path, medians_path, top_k, add)
    plan.check_names(out, [name], "choose another name with --name")
    corpus = RankedCorpus(paths)
    kept = _kept_columns(corpus, obs_columns, name, say)
    donor_key = splits.find_donor_key(name, corpus.columns)
    if donor_key is not None and donor_key not in kept:
        kept = (*kept, donor_key)
        say(f"{name}: column {donor_key!r} is kept too: cells are split by it")
    say(f"{name}: {corpus.n_cells:,} cells in {len(corpus.files):,} files; {report}")
    earlier = Earlier() if plan.store is None else earlier_splits(out, plan.store, say)
    donors: set[str] = set()
    if splits.by == "donor" and donor_key is not None:
        donors = {donor for column in corpus.column(donor_key) for donor in donor_codes(column)[1]} - {""}
    refuse_too_few([donors], splits, earlier)
    source = _Source(
        name,
        corpus,
        tuple(kept),
        None if obs_columns is None else list(obs_columns),
        tuple(read_fingerprints(corpus.files, Workers())),
        {"tokens": _named(tokens_path), "medians": _named(medians_path)},
    )
    return build_store(
        out,
        plan,
        {name: donor_key},
        splits,
        earlier,
        lambda works: [_import(work, source, mapping, plan.tokenizer, say) for work in works],
        say,
    )


def _kept_columns(corpus: RankedCorpus, asked: Sequence[str] | None, name: str, say: Say) -> tuple[str, ...]:
    if asked is None:
        if corpus.nested:
            say(f"{name}: nested columns are left out: {', '.join(corpus.nested)}")
        return tuple(corpus.columns)
    for column in asked:
        if column not in corpus.columns:
            why = "is nested" if column in corpus.nested else "does not exist"
            raise DataError(
                f"{corpus.files[0]}: column {column!r} {why}: --obs-columns can name "
                f"{', '.join(corpus.columns) or '(none)'}"
            )
    return tuple(dict.fromkeys(asked))


def _named(path: Path) -> dict[str, str]:
    return {"file": path.name, "hash": hash_path(path)}


@dataclass(frozen=True, eq=False)
class _Source:
    """A corpus and how it is imported.

    Attributes:
        name: name of the data set.
        corpus: its files.
        kept: columns that become annotations.
        asked: columns that were asked for; None for all.
        files: fingerprint of each file.
        dictionaries: file name and SHA-256 of the token dictionary and of the medians.
    """

    name: str
    corpus: RankedCorpus
    kept: tuple[str, ...]
    asked: list[str] | None
    files: tuple[Fingerprint, ...]
    dictionaries: dict[str, Any]

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of the file; of several files, SHA-256 of their hashes."""
        if len(self.files) == 1:
            return self.files[0].sha256
        return hashlib.sha256("\n".join(file.sha256 for file in self.files).encode()).hexdigest()

    def record(self) -> dict[str, Any]:
        """Where the cells come from, as JSON."""
        return {
            **self.dictionaries,
            "files": [{"file": file.path.name, "hash": file.sha256} for file in self.files],
            "obs_kept": list(self.kept),
        }


def _import(work: Path, source: _Source, mapping: TokenMap, tokenizer: Tokenizer, say: Say) -> RankedDataset:
    identity = {"source_hash": source.hash, **source.record()}
    dataset = finish_once(work, source.name, identity, lambda folder: _write(folder, source, mapping, tokenizer.top_k))
    dropped, summary = dataset.described["imported"]["dropped"], dataset.summary
    reasons = [f"{dropped[reason]:,} {why}" for reason, why in _DROPPED.items() if dropped[reason]]
    say(
        f"{source.name}: {summary.n_cells:,} cells kept, {summary.empty:,} without a token left out; "
        f"{summary.n_tokens:,} tokens" + (f"; dropped {', '.join(reasons)}" if reasons else "")
    )
    return dataset


def _write(finished: Path, source: _Source, mapping: TokenMap, top_k: int) -> None:
    corpus = source.corpus
    dropped = dict.fromkeys(_DROPPED, 0)
    total, row = RangeSummary(), 0
    with (
        new_part(finished) as folder,
        Progress(total=corpus.n_cells, desc=f"tokens {source.name}", unit=" cells") as progress,
    ):
        writer = DatasetWriter(folder, source.name)
        obs = ObsWriter(writer.folder / "obs.parquet")
        for cells in corpus.cells(source.kept):
            mapped = mapping.map(cells.tokens, cells.indptr, top_k)
            if mapped.problem:
                raise _bad_cell(cells, mapped)
            has_tokens = mapped.lengths > 0
            writer.append(mapped.tokens, np.concatenate([np.zeros(1, np.int64), mapped.lengths[has_tokens].cumsum()]))
            if has_tokens.any():
                obs.append(obs_table(_indexed(cells.obs, row)[has_tokens], row + np.flatnonzero(has_tokens)))
            total += RangeSummary(
                n_cells=int(has_tokens.sum()),
                n_tokens=len(mapped.tokens),
                empty=int((~has_tokens).sum()),
            )
            for reason in dropped:
                dropped[reason] += getattr(mapped, reason)
            row += len(has_tokens)
            progress.update(len(has_tokens))
        obs.close()
        for file in source.files:
            file.require_unchanged()
        if not total.n_cells:
            raise DataError(
                f"{corpus.files[0]}: none of its {row:,} cells has a token of a gene with a median: give the token "
                "dictionary and the medians of this corpus"
            )
        described = {
            "source_file": ", ".join(file.path.name for file in source.files[:3])
            + (", …" if len(source.files) > 3 else ""),
            "source_hash": source.hash,
            "source_cells": row,
            "counts": {},
            "filters": {},
            "min_mapped": 0.0,
            "obs_columns": source.asked,
            "obs_hash": hash_path(writer.folder / "obs.parquet"),
            "genes": {"in_vocabulary": mapping.n_known},
            "imported": {**source.record(), "dropped": dropped},
        }
        RankedDataset(source.name, folder, writer.close(), total, described).save()
        for path in folder.rglob("*"):
            flush(path)


def _indexed(obs: pd.DataFrame, first: int) -> pd.DataFrame:
    """Annotations indexed by cell id, or by the row in the corpus if there is no such column."""
    if CELL_ID in obs.columns:
        return obs.set_index(CELL_ID)
    return obs.set_axis([str(first + row) for row in range(len(obs))], axis=0)


def _bad_cell(cells: CorpusCells, mapped: Mapped) -> DataError:
    row = cells.first_row + mapped.cell
    if mapped.problem == NOT_KNOWN:
        return DataError(
            f"{cells.file}: row {row:,} has the token {mapped.token:,}, which the token dictionary does not know: give "
            "the dictionary that this corpus was made with"
        )
    return DataError(
        f"{cells.file}: row {row:,} has the token {mapped.token:,} twice, but a ranking has each gene once: is "
        f"{TOKENS!r} the column of tokens, and {LENGTH!r} that of their number?"
    )
