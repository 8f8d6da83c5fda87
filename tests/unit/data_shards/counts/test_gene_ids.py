"""Mapping delivered gene names to gene ids."""

import gzip
from pathlib import Path

import pytest

from data_shards.counts.count_file import open_counts
from data_shards.counts.count_options import CountOptions
from data_shards.counts.gene_ids import GeneIds, GeneTable, ensembl_id, find_gene_ids
from data_shards.errors import DataError
from tests.support.count_files import draw_counts, write_counts

IDS = [f"ENSG{i:011d}" for i in range(10)]
TABLE = GeneTable(tuple(IDS), ("A", "B", "C", "D", "E", "F", "G", "H", "TWICE", "TWICE"))


def find(tmp_path: Path, names: list[str], table: GeneTable | None = TABLE, **options: object) -> GeneIds:
    """Write a file with these gene names and find their ids."""
    var = options.pop("var", None)
    column = options.pop("gene_column", None)
    path = write_counts(tmp_path / "a.h5ad", draw_counts(3, len(names)), names, var=var)  # type: ignore[arg-type]
    with open_counts(path, CountOptions(gene_column=column)) as counts:  # type: ignore[arg-type]
        return find_gene_ids(counts, table, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ENSG00000141510", "ENSG00000141510"),
        ("ENSG00000141510.18", "ENSG00000141510"),
        ("ENSG00000182378.14_PAR_Y", "ENSG00000182378"),
        ("ENSMUSG00000059552.8", "ENSMUSG00000059552"),
        ("7SK_ENSG00000260682", "ENSG00000260682"),
        ("TP53", None),
        ("ENST00000269305", None),
        ("", None),
    ],
)
def test_ensembl_id(name: str, expected: str | None) -> None:
    assert ensembl_id(name) == expected


def test_ids_symbols_ambiguous_and_unknown_are_counted(tmp_path: Path) -> None:
    found = find(tmp_path, ["A", "B", "X_" + IDS[5], IDS[2] + ".3", "TWICE", "nobody", "C"], min_mapped=0.1)
    assert found.kind == "ensembl"
    assert found.ids == (IDS[0], IDS[1], IDS[5], IDS[2], None, None, IDS[2])
    report = found.report
    assert (report.by_id, report.by_symbol, report.ambiguous, report.unknown, report.repeated) == (2, 3, 1, 1, 1)
    text = str(report)
    assert "5 of 7 genes mapped (2 by id, 3 by symbol)" in text
    assert "1 ambiguous symbols dropped" in text
    assert "1 unknown dropped (nobody …)" in text
    assert "1 duplicate ids summed" in text


def test_ids_are_found_in_names_without_a_table(tmp_path: Path) -> None:
    found = find(tmp_path, [f"{gene}.7" for gene in IDS], None)
    assert found.kind == "ensembl"
    assert list(found.ids) == IDS


@pytest.mark.parametrize("column", ["gene_ids", "ensembl_id", "feature_id", "gene_id"])
def test_ids_are_found_in_the_usual_columns(tmp_path: Path, column: str) -> None:
    found = find(tmp_path, ["A", "B", "C"], None, var={column: IDS[:3]})
    assert found.kind == "ensembl"
    assert list(found.ids) == IDS[:3]


def test_gene_column_is_taken_when_asked_for(tmp_path: Path) -> None:
    found = find(tmp_path, IDS[:3], var={"feature_name": ["C", "B", "A"]}, gene_column="feature_name")
    assert list(found.ids) == [IDS[2], IDS[1], IDS[0]]
    with pytest.raises(DataError, match=r"no column 'nope' in var: --gene-column can be one of: feature_name"):
        find(tmp_path, IDS[:3], var={"feature_name": ["C", "B", "A"]}, gene_column="nope")


def test_names_without_ids_or_table_stay_as_they_are(tmp_path: Path) -> None:
    found = find(tmp_path, ["A", "B"], None)
    assert (found.kind, found.ids) == ("as-is", ("A", "B"))


def test_low_mapped_share_is_refused(tmp_path: Path) -> None:
    names = ["A", "x1", "x2", "x3"]
    with pytest.raises(DataError, match=r"only 1 of 4 genes \(25\.0%\) .* --min-mapped 0\.5 .*x1, x2, x3"):
        find(tmp_path, names)
    assert find(tmp_path, names, min_mapped=0.25).report.mapped == 1


def test_gene_table_files(tmp_path: Path) -> None:
    csv = tmp_path / "genes.csv"
    csv.write_text("gene_id,symbol,version\nENSG00000000003.2,TSPAN6,15\nENSG00000000005,TNMD,6\n")
    table = GeneTable.read_csv(csv)
    assert table == GeneTable(("ENSG00000000003", "ENSG00000000005"), ("TSPAN6", "TNMD"))
    table.save(tmp_path / "genes.parquet")
    again = GeneTable.load(tmp_path / "genes.parquet")
    assert again == table
    assert again.hash == table.hash
    csv.write_text("symbol,other\nTNMD,1\n")
    with pytest.raises(DataError, match=r"no Ensembl id in the first column"):
        GeneTable.read_csv(csv)
    with pytest.raises(DataError, match=r"missing\.csv: no such file: expected CSV"):
        GeneTable.read_csv(tmp_path / "missing.csv")


def test_names_stay_as_they_are_where_that_is_the_kind(tmp_path: Path) -> None:
    found = find(tmp_path, ["A", "B", "C"], None, var={"gene_ids": IDS[:3]}, kind="as-is")
    assert (found.kind, found.ids, found.report.column) == ("as-is", ("A", "B", "C"), None)
    assert str(found.report) == "3 genes, ids as they are in the index of var"
    found = find(tmp_path, ["A", "B", "C"], None, var={"gene_ids": IDS[:3]})
    assert (found.kind, found.report.column) == ("ensembl", "gene_ids")
    assert "3 of 3 genes mapped (3 by id, 0 by symbol) from column 'gene_ids' of var" in str(found.report)


def test_damaged_gene_tables_are_refused_and_empty_symbols_skipped(tmp_path: Path) -> None:
    path = tmp_path / "genes.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write("".join(f"{gene},{'S' * i}\n" for i, gene in enumerate(IDS)))
    table = GeneTable.read_csv(path)
    assert table.symbols[0] == ""
    assert "" not in table.ids_of
    content = bytearray(path.read_bytes())
    content[20:40] = bytes(20)
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"genes\.csv\.gz: not a gene table"):
        GeneTable.read_csv(path)
