"""The record that is written into a file beside what a model has computed for its cells."""

import importlib.metadata
from typing import Any

from data_shards.counts.count_file import CountFile
from data_shards.tokens.drift import DRIFT_FACTOR, DRIFT_VALUES, Drift
from data_shards.tokens.tokenizer import Tokenizer
from gm_train.checkpoint.find import Checkpoint
from gm_train.checkpoint.state import hash_weights
from gm_train.embedding.token_chunks import DRIFT_CELLS, TokenChunks
from gm_train.model.genemamba import GeneMamba


def record_of(
    checkpoint: Checkpoint,
    model: GeneMamba,
    tokenizer: Tokenizer,
    counts: CountFile,
    chunks: TokenChunks,
    drift: Drift,
) -> dict[str, Any]:
    """What was computed, with what, and what was dropped, as elements that anndata can write.

    Args:
        checkpoint: of the model.
        model: the model.
        tokenizer: the model's.
        counts: the file.
        chunks: its cells.
        drift: how far the file's medians are from the tokenizer's.
    """
    report, found = chunks.columns.report, int((chunks.columns.numbers >= 0).sum())
    return {
        "checkpoint": str(checkpoint.path.resolve()),
        "step": checkpoint.step,
        "version": _version(),
        "input": str(counts.path.resolve()),
        "hashes": {
            "weights": hash_weights(model.state_dict()),
            "vocabulary": tokenizer.vocabulary.hash,
            "medians": tokenizer.medians_hash,
            "tokenizer": tokenizer.hash,
        },
        "genes": {
            "delivered": report.delivered,
            "with_an_id": report.mapped,
            "with_a_token": found,
            "of_the_model": len(tokenizer.vocabulary.genes),
            "of_the_model_found": chunks.columns.found,
        },
        "dropped": {"genes_without_token": report.delivered - found},
        "drift": {
            "share_of_genes": drift.share,
            "genes_compared": drift.n_genes,
            "factor": DRIFT_FACTOR,
            "values_of_a_gene": DRIFT_VALUES,
            "cells_at_most": DRIFT_CELLS,
        },
    }


def _version() -> str:
    try:
        return importlib.metadata.version("gm-train")
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        return "unknown"
