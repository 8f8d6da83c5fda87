"""From the names of genes as delivered to gene ids."""

import hashlib
import io
import re
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from data_shards.counts.count_file import CountFile
from data_shards.errors import DataError
from data_shards.files.location import Location

#: Where a gene table lies, in medians and in stores.
GENE_TABLE_FILE = "gene_table.parquet"
_ENSEMBL = re.compile(r"(ENS[A-Z]*G\d{11})(\.\d+)?(_PAR_Y)?")
_SYMBOL_AND_ID = re.compile(r".+_(ENS[A-Z]*G\d{11})(\.\d+)?")
#: Columns of `var` that hold Ensembl ids in files of Cell Ranger, scanpy and CELLxGENE.
_ID_COLUMNS = ("gene_ids", "ensembl_id", "feature_id", "gene_id")


def ensembl_id(name: str) -> str | None:
    """The Ensembl id in a name, without its version: of `ENSG00000141510.18` or `TP53_ENSG00000141510`."""
    match = _ENSEMBL.fullmatch(name) or _SYMBOL_AND_ID.fullmatch(name)
    return match[1] if match else None


@dataclass(frozen=True)
class GeneTable:
    """Ensembl ids and symbols, row by row.

    Attributes:
        ids: Ensembl ids without version.
        symbols: the symbol of each.
    """

    ids: tuple[str, ...]
    symbols: tuple[str, ...]

    @classmethod
    def read_csv(cls, path: Path) -> "GeneTable":
        """Read a table whose first two columns are Ensembl id and symbol; a header, if any, is passed over.

        Raises:
            DataError: the file cannot be read or has no Ensembl ids.
        """
        try:
            rows = pd.read_csv(path, header=None, usecols=[0, 1], dtype=str, keep_default_na=False)
        except (OSError, ValueError, EOFError, zlib.error) as error:
            raise DataError(
                f"{path}: not a gene table ({error}): expected CSV with columns Ensembl id, symbol"
            ) from error
        pairs = [(found, symbol) for name, symbol in zip(rows[0], rows[1], strict=True) if (found := ensembl_id(name))]
        if not pairs:
            raise DataError(f"{path}: no Ensembl id in the first column: expected CSV with columns Ensembl id, symbol")
        return cls(*map(tuple, zip(*pairs, strict=True)))

    @classmethod
    def load(cls, path: Location) -> "GeneTable":
        try:
            frame = pd.read_parquet(io.BytesIO(path.read_bytes()))
            return cls(tuple(frame["gene_id"]), tuple(frame["symbol"]))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path}: not a gene table ({error})") from error

    def save(self, path: Path) -> None:
        pd.DataFrame({"gene_id": self.ids, "symbol": self.symbols}).to_parquet(path, index=False)

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of the rows."""
        rows = (f"{gene}\t{symbol}" for gene, symbol in zip(self.ids, self.symbols, strict=True))
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()

    @cached_property
    def ids_of(self) -> dict[str, set[str]]:
        """Symbol to Ensembl ids; several make it ambiguous."""
        found: dict[str, set[str]] = defaultdict(set)
        for gene, symbol in zip(self.ids, self.symbols, strict=True):
            if symbol:
                found[symbol].add(gene)
        return dict(found)


@dataclass(frozen=True)
class GeneReport:
    """How many genes of a file were mapped and how; `repeated` stood for an id that had come before.

    `column` of `var` gave their names, its index if None.
    """

    kind: str
    delivered: int
    by_id: int
    by_symbol: int
    ambiguous: int
    unknown: int
    repeated: int
    unknown_examples: tuple[str, ...]
    column: str | None = None

    @property
    def mapped(self) -> int:
        return self.by_id + self.by_symbol

    @property
    def source(self) -> str:
        """Where the names stood, in words."""
        return "the index of var" if self.column is None else f"column {self.column!r} of var"

    def __str__(self) -> str:
        if self.kind == "as-is":
            text = f"{self.delivered:,} genes, ids as they are in {self.source}"
        else:
            how = f"{self.by_id:,} by id, {self.by_symbol:,} by symbol"
            text = f"{self.mapped:,} of {self.delivered:,} genes mapped ({how}) from {self.source}"
            if self.ambiguous:
                text += f"; {self.ambiguous:,} ambiguous symbols dropped"
            if self.unknown:
                text += f"; {self.unknown:,} unknown dropped ({', '.join(self.unknown_examples)} …)"
        if self.repeated:
            text += f"; {self.repeated:,} duplicate ids summed"
        return text


@dataclass(frozen=True)
class GeneIds:
    """Ids of the genes of a file, in its order.

    Attributes:
        kind: "ensembl" or "as-is".
        ids: one for each gene as delivered; None where it was dropped.
        report: what happened.
    """

    kind: str
    ids: tuple[str | None, ...]
    report: GeneReport


def find_gene_ids(
    counts: CountFile, table: GeneTable | None = None, min_mapped: float = 0.5, kind: str | None = None
) -> GeneIds:
    """Ids of the genes of a file: Ensembl ids where it has them or the table maps its symbols, else its own names.

    Args:
        counts: the file.
        table: maps symbols.
        min_mapped: share of the delivered genes that must be mapped when ids are Ensembl ids.
        kind: "ensembl" or "as-is" when it is known what the ids must be; as they are, they are the file's names even
            where a column has Ensembl ids.

    Raises:
        DataError: fewer genes than `min_mapped` could be mapped.
    """
    column, names = _names(counts) if kind == "as-is" else _names_or_ids(counts)
    if kind is None:
        kind = "ensembl" if table is not None or _share_of_ids(names) >= 0.5 else "as-is"
    counter: Counter[str] = Counter()
    ids: list[str | None] = []
    unknown: list[str] = []
    for name in names:
        gene, how = map_gene(name, kind, table)
        counter[how] += 1
        ids.append(gene)
        if how == "unknown" and len(unknown) < 3:
            unknown.append(name)
    mapped = [gene for gene in ids if gene is not None]
    report = GeneReport(
        kind=kind,
        delivered=len(names),
        by_id=counter["by_id"],
        by_symbol=counter["by_symbol"],
        ambiguous=counter["ambiguous"],
        unknown=counter["unknown"],
        repeated=len(mapped) - len(set(mapped)),
        unknown_examples=tuple(unknown),
        column=column,
    )
    share = report.mapped / max(1, report.delivered)
    if kind == "ensembl" and share < min_mapped:
        raise DataError(
            f"{counts.path}: only {report.mapped:,} of {report.delivered:,} genes ({share:.1%}) have an Ensembl id, "
            f"less than --min-mapped {min_mapped:g} (not found: {', '.join(unknown)} …): name the column of var with "
            "ids or symbols with --gene-column, or give the gene table of this species with --gene-table"
        )
    return GeneIds(kind, tuple(ids), report)


def map_gene(name: str, kind: str, table: GeneTable | None) -> tuple[str | None, str]:
    """The id of a gene, and how it was found: "by_id", "by_symbol", "ambiguous" or "unknown" (id None)."""
    if kind == "as-is":
        return (name, "by_id") if name else (None, "unknown")
    if (gene := ensembl_id(name)) is not None:
        return gene, "by_id"
    found = table.ids_of.get(name, set()) if table is not None else set()
    if len(found) == 1:
        return next(iter(found)), "by_symbol"
    return None, "ambiguous" if found else "unknown"


def _names(counts: CountFile) -> tuple[str | None, list[str]]:
    """The column of `var` with the delivered names (None for its index), and these."""
    return counts.options.gene_column, counts.gene_names


def _names_or_ids(counts: CountFile) -> tuple[str | None, list[str]]:
    """`_names`, or the usual column with Ensembl ids where the names are something else."""
    named, names = _names(counts)
    if named is not None or _share_of_ids(names) >= 0.5:
        return named, names
    for column in _ID_COLUMNS:
        if column in counts.var.columns:
            ids = ["" if pd.isna(value) else str(value) for value in counts.var[column]]
            if _share_of_ids(ids) >= 0.5:
                return column, ids
    return named, names


def _share_of_ids(names: list[str]) -> float:
    return sum(ensembl_id(name) is not None for name in names) / max(1, len(names))
