"""Embed the cells of a file of any size, and write a copy of the file with their vectors."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from data_shards.counts.count_file import open_counts
from data_shards.counts.count_options import CountOptions
from data_shards.errors import OptionError
from data_shards.files.fingerprint import Fingerprint
from data_shards.tokens.vocabulary import FIRST_GENE
from gm_train.checkpoint.find import load_model, open_checkpoint
from gm_train.embedding.anndata_copy import copied, refuse_output, require_groups
from gm_train.embedding.embed import PRECISIONS, default_device, default_precision, require_pool
from gm_train.embedding.embedded_chunks import EmbeddedChunks
from gm_train.embedding.record import record_of
from gm_train.embedding.token_chunks import TokenChunks
from gm_train.model.genemamba import GeneMamba

#: Names of what is written.
CELLS, GENES, RECORD = "X_genemamba", "X_genemamba_genes", "genemamba"


@dataclass(frozen=True)
class EmbedOptions:
    """How to embed a file.

    Attributes:
        pool: one of `gm_train.model.pooling.POOLS`.
        precision: "fp32" or "bf16"; None chooses by the device and the model's run.
        genes: also write the embeddings of the genes.
        counts: where the counts are.
        min_mapped: refuse a file if less than this share of its genes can be mapped, 0 to 1.
    """

    pool: str = "mean"
    precision: str | None = None
    genes: bool = False
    counts: CountOptions = field(default_factory=CountOptions)
    min_mapped: float = 0.5

    def __post_init__(self) -> None:
        require_pool(self.pool)
        if self.precision not in (None, *PRECISIONS):
            raise OptionError(f"precision {self.precision!r}: must be one of {', '.join(PRECISIONS)}")
        if self.genes and self.counts.raw:
            raise OptionError("--genes with --raw: varm describes the genes of X, and raw has others: leave one out")


@dataclass(frozen=True)
class Embedded:
    """What embedding a file has done.

    Attributes:
        n_cells: cells of the file.
        n_empty: cells without a token, whose vectors are NaN.
        n_tokens: tokens of all cells.
        seconds: from the first cell to the last, reading and writing included.
        model_seconds: the part of it in the model.
    """

    n_cells: int
    n_empty: int
    n_tokens: int
    seconds: float
    model_seconds: float


def embed_file(
    checkpoint_path: Path,
    source: Path,
    out: Path,
    options: EmbedOptions | None = None,
    say: Callable[[str], object] = print,
) -> Embedded:
    """Write a copy of a file with `obsm["X_genemamba"]`, float32 (n_cells, d_model), and `uns["genemamba"]`.

    Memory does not grow with the number of cells.

    Args:
        checkpoint_path: a checkpoint, or a run directory for its newest one.
        source: raw counts, an `.h5ad` file or an AnnData-Zarr folder; it is not changed.
        out: the new `.h5ad` file or `.zarr` folder; it is complete or absent.
        options: how to embed.
        say: takes lines of the report.

    Raises:
        DataError: there is no checkpoint, the file cannot be used, or `out` exists or cannot be written.
    """
    options = options or EmbedOptions()
    refuse_output(source, out)
    checkpoint = open_checkpoint(checkpoint_path)
    say(f"checkpoint {checkpoint.path}, step {checkpoint.step:,}")
    device = default_device()
    model, tokenizer, config = load_model(checkpoint)
    model.to(device)
    precision = options.precision or default_precision(config, device)
    with open_counts(source, options.counts) as counts:
        require_groups(source, ("obsm", "varm", "uns"))
        chunks = TokenChunks(counts, tokenizer, options.min_mapped)
        n_genes = len(tokenizer.vocabulary.genes)
        say(f"{counts.n_cells:,} cells; {chunks.columns.report}; {chunks.columns.found:,} of the model's {n_genes:,}")
        say(f"hashing {source}, and copying it")
        fingerprint = Fingerprint.of(source)
        with copied(source, out) as copy:
            array = copy.add_array("obsm", CELLS, counts.n_cells, config.model.d_model)
            embedded = EmbeddedChunks(model, chunks, counts.n_cells, options.pool, precision)
            for first, vectors in embedded:
                array.write(first, vectors)
            drift = chunks.drift()
            if options.genes:
                copy.add_array("varm", GENES, counts.n_genes, config.model.d_model).write(
                    0, _gene_embeddings(model, chunks.columns.numbers)
                )
            used = {"pool": options.pool, "precision": precision, "min_mapped": options.min_mapped}
            used |= {name: value for name, value in asdict(options.counts).items() if value is not None}
            record = record_of(checkpoint, model, tokenizer, counts, chunks, drift) | {"options": used}
            record["hashes"]["input"] = fingerprint.sha256
            record["dropped"]["cells_without_tokens"] = embedded.n_empty
            copy.add_element("uns", RECORD, record)
            fingerprint.require_unchanged()
        return Embedded(counts.n_cells, embedded.n_empty, embedded.n_tokens, embedded.seconds, embedded.model_seconds)


def _gene_embeddings(model: GeneMamba, numbers: np.ndarray) -> np.ndarray:
    """The embedding of each gene of the file: float32 (n_genes, d_model), NaN for genes without a token."""
    weight = model.embedding.weight.detach().float().cpu().numpy()
    found = numbers >= 0
    rows = np.full((len(numbers), weight.shape[1]), np.nan, dtype=np.float32)
    rows[found] = weight[numbers[found] + FIRST_GENE]
    return rows
