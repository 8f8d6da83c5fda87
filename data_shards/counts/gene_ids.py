"""Map the names of genes as delivered to gene ids."""

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
from data_shards.files.kinds import kind_of
from data_shards.files.location import Location

#: File name of the gene table in medians and in stores.
GENE_TABLE_FILE = "gene_table.parquet"
_ENSEMBL = re.compile(r"(ENS[A-Z]*G\d{11})(\.\d+)?(_PAR_Y)?")
_SYMBOL_AND_ID = re.compile(r".+_(ENS[A-Z]*G\d{11})(\.\d+)?")
#: Columns of `var` that hold Ensembl ids in files of Cell Ranger, scanpy and CELLxGENE.
ID_COLUMNS = ("gene_ids", "ensembl_id", "feature_id", "gene_id")


def ensembl_id(name: str) -> str | None:
    """The Ensembl id, without version, in a name such as `ENSG00000141510.18` or `TP53_ENSG00000141510`; else None."""
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
        """Read a table whose first two columns are Ensembl id and symbol; a header, if any, is skipped.

        Raises:
            DataError: the file cannot be read or has no Ensembl ids.
        """
        try:
            rows = pd.read_csv(path, header=None, usecols=[0, 1], dtype=str, keep_default_na=False)
        except (OSError, ValueError, EOFError, zlib.error) as error:
            kind = kind_of(path)
            why = f"is {kind}, not a gene table" if kind not in (None, "a file") else f"not a gene table ({error})"
            why = why if path.exists() else "no such file"
            raise DataError(f"{path}: {why}: expected CSV with columns Ensembl id, symbol") from error
        pairs = [(gene, symbol) for name, symbol in zip(rows[0], rows[1], strict=True) if (gene := ensembl_id(name))]
        if not pairs:
            raise DataError(f"{path}: no Ensembl id in the first column: expected CSV with columns Ensembl id, symbol")
        return cls(*map(tuple, zip(*pairs, strict=True)))

    @classmethod
    def load(cls, path: Location) -> "GeneTable":
        """Read a table that `save` wrote.

        Raises:
            DataError: the file cannot be read or is not a gene table.
        """
        try:
            frame = pd.read_parquet(io.BytesIO(path.read_bytes()))
            return cls(tuple(frame["gene_id"]), tuple(frame["symbol"]))
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path}: not a gene table ({error})") from error

    def save(self, path: Path) -> None:
        """Write the table as Parquet with columns `gene_id` and `symbol`."""
        pd.DataFrame({"gene_id": self.ids, "symbol": self.symbols}).to_parquet(path, index=False)

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of the rows."""
        rows = (f"{gene}\t{symbol}" for gene, symbol in zip(self.ids, self.symbols, strict=True))
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()

    @cached_property
    def ids_of(self) -> dict[str, set[str]]:
        """The Ensembl ids of each symbol; a symbol with several is ambiguous."""
        ids: dict[str, set[str]] = defaultdict(set)
        for gene, symbol in zip(self.ids, self.symbols, strict=True):
            if symbol:
                ids[symbol].add(gene)
        return dict(ids)


@dataclass(frozen=True)
class GeneReport:
    """How many genes of a file were mapped, and how.

    Attributes:
        kind: "ensembl" or "as-is".
        delivered: genes in the file.
        by_id: genes whose name contains an Ensembl id; all with a name if `kind` is "as-is".
        by_symbol: genes whose symbol the table maps to one id.
        ambiguous: genes whose symbol has several ids; they are dropped.
        unknown: genes without an id; they are dropped.
        repeated: mapped genes whose id an earlier gene has already; their counts are summed.
        unknown_examples: names of up to three unknown genes.
        column: column of `var` that gave the names; None for its index.
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
        """Number of genes with an id."""
        return self.by_id + self.by_symbol

    @property
    def source(self) -> str:
        """Where the names came from, in words."""
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
    """Ids of the genes of a file, in the file's order.

    Attributes:
        kind: "ensembl" or "as-is".
        ids: the id of each gene as delivered; None if the gene was dropped.
        report: how many genes were mapped, and how.
    """

    kind: str
    ids: tuple[str | None, ...]
    report: GeneReport


def find_gene_ids(
    counts: CountFile, table: GeneTable | None = None, min_mapped: float = 0.5, kind: str | None = None
) -> GeneIds:
    """Find the ids of the genes of a file: Ensembl ids if it has them or a table is given, else its own names.

    Args:
        counts: the file.
        table: maps symbols to Ensembl ids.
        min_mapped: smallest share (0 to 1) of the delivered genes that must be mapped if ids are Ensembl ids.
        kind: "ensembl" or "as-is" requires ids of this kind; None decides by the file and the table. With "as-is" the
            ids are the file's names, even if a column has Ensembl ids.

    Raises:
        DataError: fewer genes than `min_mapped` could be mapped.
    """
    column, names = _names(counts) if kind == "as-is" else _names_or_ids(counts)
    kind_is_given = kind is not None
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
        # A given kind is that of a vocabulary, whose own gene table has been used already.
        remedy = "lower --min-mapped" if kind_is_given else "give the gene table of this species with --gene-table"
        raise DataError(
            f"{counts.path}: only {report.mapped:,} of {report.delivered:,} genes ({share:.1%}) have an Ensembl id, "
            f"less than --min-mapped {min_mapped:g} (not found: {', '.join(unknown)} …): name the column of var with "
            f"ids or symbols with --gene-column, or {remedy}"
        )
    return GeneIds(kind, tuple(ids), report)


def map_gene(name: str, kind: str, table: GeneTable | None) -> tuple[str | None, str]:
    """Map the name of a gene to its id.

    Args:
        name: the name as delivered.
        kind: "ensembl" or "as-is".
        table: maps symbols to Ensembl ids.

    Returns:
        The id, or None, and how it was found: "by_id", "by_symbol", "ambiguous" or "unknown".
    """
    if kind == "as-is":
        return (name, "by_id") if name else (None, "unknown")
    if (gene := ensembl_id(name)) is not None:
        return gene, "by_id"
    genes = table.ids_of.get(name, set()) if table is not None else set()
    if len(genes) == 1:
        return next(iter(genes)), "by_symbol"
    return None, "ambiguous" if genes else "unknown"


def _names(counts: CountFile) -> tuple[str | None, list[str]]:
    """The column of `var` with the delivered names (None for its index), and the names."""
    return counts.options.gene_column, counts.gene_names


def _names_or_ids(counts: CountFile) -> tuple[str | None, list[str]]:
    """`_names`, or one of `ID_COLUMNS` with its Ensembl ids if the names are not Ensembl ids."""
    named, names = _names(counts)
    if named is not None or _share_of_ids(names) >= 0.5:
        return named, names
    for column in ID_COLUMNS:
        if column in counts.var.columns:
            ids = ["" if pd.isna(value) else str(value) for value in counts.var[column]]
            if _share_of_ids(ids) >= 0.5:
                return column, ids
    return named, names


def _share_of_ids(names: list[str]) -> float:
    return sum(ensembl_id(name) is not None for name in names) / max(1, len(names))
