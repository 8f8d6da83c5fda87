"""The only tokenizer: it ranks a cell's genes by count / median and returns them as tokens.

Pretraining, evaluation and embedding all call `Tokenizer.encode`. A cell's total cancels out in its own ranking: it
matters only for the medians and in the hash that orders exact ties.
"""

import hashlib
import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from data_shards.counts.count_file import CountFile
from data_shards.counts.gene_ids import GENE_TABLE_FILE, GeneReport, GeneTable, find_gene_ids
from data_shards.counts.species import find_species, refuse_species_mixed
from data_shards.errors import DataError
from data_shards.files.location import Location
from data_shards.hashing import hash_strings
from data_shards.tokens.rank import Ranker
from data_shards.tokens.vocabulary import FIRST_GENE, Vocabulary

FILES = ("vocabulary.json", "medians.npy", "tokenizer.json")
#: No cell can have more tokens: they are uint16, and each occurs once.
MAX_TOP_K = 65_535
_SCHEMA = 1


@dataclass(frozen=True, eq=False)
class GeneColumns:
    """The genes of one file, numbered as in a vocabulary.

    Attributes:
        numbers: int32 (n_delivered,), number of each gene as delivered in the vocabulary, or -1.
        found: number of the vocabulary's genes that the file has.
        report: how its gene ids were found.
    """

    numbers: npt.NDArray[np.int32]
    found: int
    report: GeneReport


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """Everything that decides which tokens a cell becomes.

    Attributes:
        vocabulary: the genes that have tokens.
        medians: float64 (n_genes,), non-zero median of each gene in `count / total * 10,000`.
        top_k: most tokens of a cell.
        dither: spread each count evenly over an interval of width 1 around it before ranking.
        gene_table: maps the symbols of files without Ensembl ids; None if there is none.
    """

    vocabulary: Vocabulary
    medians: npt.NDArray[np.float64]
    top_k: int = 2048
    dither: bool = False
    gene_table: GeneTable | None = None

    def __post_init__(self) -> None:
        if self.medians.shape != (len(self.vocabulary.genes),) or self.medians.dtype != np.float64:
            raise DataError(
                f"{len(self.vocabulary.genes):,} genes need as many float64 medians, not {self.medians.dtype} of shape "
                f"{self.medians.shape}"
            )
        if not bool(np.all(self.medians > 0) and np.all(np.isfinite(self.medians))):
            raise DataError("every gene of a vocabulary needs a finite median above zero")
        if not 1 <= self.top_k <= MAX_TOP_K:
            raise DataError(
                f"--top-k {self.top_k:,}: must be at least 1 and at most {MAX_TOP_K:,}; no vocabulary has more genes"
            )

    @cached_property
    def medians_hash(self) -> str:
        """SHA-256 (hex) of the vocabulary and its medians."""
        digest = hashlib.sha256(self.vocabulary.hash.encode())
        digest.update(self.medians.astype("<f8").tobytes())
        return digest.hexdigest()

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of everything that decides the tokens."""
        table = self.gene_table.hash if self.gene_table is not None else None
        content = [self.medians_hash, self.top_k, self.dither, table]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @cached_property
    def ranker(self) -> Ranker:
        """The part of this tokenizer that ranks, without the gene ids."""
        return Ranker(self.medians, hash_strings(self.vocabulary.genes), self.top_k, self.dither)

    def bind(self, counts: CountFile, min_mapped: float = 0.5) -> GeneColumns:
        """Find the vocabulary's genes in a file.

        Args:
            counts: the file.
            min_mapped: share of its genes (0 to 1) that must map to Ensembl ids, unless ids are used as they are.

        Raises:
            DataError: less than `min_mapped` of its genes map to ids, they are of another species, or none is in the
                vocabulary.
        """
        found = find_gene_ids(counts, self.gene_table, min_mapped, self.vocabulary.kind)
        if self.vocabulary.kind == "ensembl":
            own = find_species(gene for gene in found.ids if gene is not None)
            refuse_species_mixed(
                {str(counts.path): own, "the vocabulary": find_species(self.vocabulary.genes)},
                "use medians, or a model, of its species, or name a column of var with the ids of orthologs with "
                "--gene-column",
            )
        token_of = self.vocabulary.token_of
        tokens = [token_of.get(gene, -1) if gene is not None else -1 for gene in found.ids]
        numbers = np.array([token - FIRST_GENE if token >= 0 else -1 for token in tokens], np.int32)
        n_found = len(np.unique(numbers[numbers >= 0]))
        if n_found == 0:
            raise DataError(
                f"{counts.path}: none of its {len(numbers):,} genes ({', '.join(counts.gene_names[:3])} …) is in the "
                f"vocabulary ({self.vocabulary.kind} ids: {', '.join(self.vocabulary.genes[:3])} …): "
                "name the column of var with its ids with --gene-column"
            )
        return GeneColumns(numbers, n_found, found.report)

    def encode(
        self, counts: sp.csr_matrix, columns: GeneColumns
    ) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.int64]]:
        """Return the tokens of the cells, best-ranked first.

        Genes are sorted by float32(count / median), descending. Exact ties are sorted by a hash of gene id, the cell's
        total and its number of detected genes, both over all genes as delivered. A total is the same for any order of
        the genes. Counts that are not above zero are left out.

        Args:
            counts: csr_matrix (n_cells, n_delivered), float64, without repeated columns, as `CountFile.chunks` yields
                it.
            columns: result of `bind` for the file.

        Returns:
            tokens uint16 (n_tokens,) and indptr int64 (n_cells + 1,).
        """
        ranked = self.ranker.rank(counts, columns.numbers)
        return ranked.genes + np.uint16(FIRST_GENE), ranked.indptr

    def save(self, directory: Path) -> None:
        """Write `vocabulary.json`, `medians.npy`, `tokenizer.json` and, with a gene table, `gene_table.parquet`."""
        self.vocabulary.save(directory / "vocabulary.json")
        medians = io.BytesIO()  # written straight to a file, numpy does not report a full disk
        np.save(medians, self.medians.astype("<f8"))
        (directory / "medians.npy").write_bytes(medians.getvalue())
        if self.gene_table is not None:
            self.gene_table.save(directory / GENE_TABLE_FILE)
        content = {
            "schema": _SCHEMA,
            "top_k": self.top_k,
            "dither": self.dither,
            "gene_table": self.gene_table is not None,
            "vocabulary_hash": self.vocabulary.hash,
            "medians_hash": self.medians_hash,
            "hash": self.hash,
        }
        (directory / "tokenizer.json").write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, directory: Location) -> "Tokenizer":
        """Read what `save` wrote.

        Raises:
            DataError: a file is missing or damaged, or the files do not belong together.
        """
        try:
            content = json.loads((directory / "tokenizer.json").read_text())
            medians = np.load(io.BytesIO((directory / "medians.npy").read_bytes())).astype(np.float64)
            table = GeneTable.load(directory / GENE_TABLE_FILE) if content["gene_table"] else None
            vocabulary = Vocabulary.load(directory / "vocabulary.json")
            tokenizer = cls(vocabulary, medians, int(content["top_k"]), bool(content["dither"]), table)
            expected = content["hash"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{directory}: cannot read a tokenizer ({error}): copy or make it again") from error
        if tokenizer.hash != expected:
            raise DataError(
                f"{directory}: vocabulary, medians and tokenizer.json do not belong together: copy or make them again"
            )
        return tokenizer
