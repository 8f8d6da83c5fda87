"""`embed`: one vector for each cell, from Python."""

from os import PathLike
from pathlib import Path

import anndata as ad
import numpy as np
import torch

from data_shards.counts.count_file import CountFile, open_counts
from data_shards.counts.count_options import CountOptions
from data_shards.counts.in_memory import counts_in_memory
from data_shards.errors import OptionError
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.checkpoint.find import load_model, open_checkpoint
from gm_train.config.schema import Config
from gm_train.embedding.embed_cells import F32, embed_cells
from gm_train.embedding.token_chunks import TokenChunks
from gm_train.model.genemamba import GeneMamba
from gm_train.model.pooling import POOLS

PRECISIONS = ("fp32", "bf16")


def embed(
    checkpoint: str | PathLike[str] | tuple[GeneMamba, Tokenizer, Config],
    cells: str | PathLike[str] | ad.AnnData,
    *,
    pool: str = "mean",
    options: CountOptions | None = None,
    min_mapped: float = 0.5,
) -> F32:
    """Embed cells with a trained model: the same vectors as `gm-train embed` writes.

    Args:
        checkpoint: a checkpoint, a run directory for its newest one, or what `load_model` returns. The model of a path
            is put on a GPU if there is one; a model that is given stays where it is.
        cells: raw counts: an `.h5ad` file, an AnnData-Zarr folder, or an AnnData in memory.
        pool: "mean" over the cell's tokens, "max", or "rank" for a mean weighted by 1 / log2(1 + rank).
        options: where the counts are; None takes X.
        min_mapped: refuse cells if less than this share of their genes can be mapped, 0 to 1.

    Returns:
        float32 (n_cells, d_model), in the order of the cells; NaN for cells without a gene of the model.

    Raises:
        DataError: there is no checkpoint, it is damaged, or the cells cannot be used.
        OptionError: the pool is unknown.
    """
    require_pool(pool)
    if isinstance(checkpoint, tuple):
        model, tokenizer, config = checkpoint
        device = next(model.parameters()).device
    else:
        device = default_device()
        model, tokenizer, config = load_model(open_checkpoint(Path(checkpoint)))
        model.to(device)
    precision = default_precision(config, device)
    with _open(cells, options) as counts:
        chunks = TokenChunks(counts, tokenizer, min_mapped)
        was_training = model.training
        model.eval()
        try:
            parts = [embed_cells(model, chunk, pool, precision) for _, chunk in chunks]
        finally:
            model.train(was_training)
        chunks.drift()
    return np.concatenate(parts)


def default_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def default_precision(config: Config, device: torch.device) -> str:
    """The precision that the model was trained in on a GPU, and fp32 on a CPU."""
    return "fp32" if device.type == "cpu" else config.trainer.precision


def require_pool(pool: str) -> None:
    """Raise OptionError if there is no such pooling."""
    if pool not in POOLS:
        raise OptionError(f"pool {pool!r}: must be one of {', '.join(POOLS)}")


def _open(cells: str | PathLike[str] | ad.AnnData, options: CountOptions | None) -> CountFile:
    if isinstance(cells, ad.AnnData):
        return counts_in_memory(cells, options)
    return open_counts(Path(cells), options)
